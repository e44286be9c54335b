//! `/instances/start_instance`, `stop_instance`, `restart_instance`.

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::selector;
use crate::service::power::Power;

pub async fn start(call: Call) -> Result<Answer, Rejection> {
    change(call, Power::Start, "start").await
}

pub async fn stop(call: Call) -> Result<Answer, Rejection> {
    change(call, Power::Stop, "stop").await
}

pub async fn restart(call: Call) -> Result<Answer, Rejection> {
    change(call, Power::Restart, "restart").await
}

async fn change(call: Call, power: Power, verb: &str) -> Result<Answer, Rejection> {
    let selectors = selector::targets(&call)?;
    let task = call.service.change_power(&call.caller, power, &selectors).await?;
    Ok(Answer::in_progress(verb, &task))
}
