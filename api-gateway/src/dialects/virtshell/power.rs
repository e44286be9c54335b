//! `/instances/start_instance`, `stop_instance`, `restart_instance`.

use virtshell_crds::Instance;

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::selector;
use crate::service::Verb;
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
    if let Some(name) = call.captures.first() {
        call.service
            .permitted::<Instance>(&call.caller, Verb::Execute, name)?;
    }
    let selectors = selector::targets(call.fields(), call.captures.first())?;
    let task = call.service.change_power(&call.caller, power, &selectors).await?;
    Ok(Answer::in_progress(verb, &task))
}

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};
    use super::selector;

    pub fn start() -> About {
        about("Start instances", "start", "A running one stays as it is.")
    }

    pub fn stop() -> About {
        about(
            "Stop instances",
            "stop",
            "They are asked to shut down, and powered off after 60 s.",
        )
    }

    pub fn restart() -> About {
        about("Restart instances", "restart", "A stopped one is started.")
    }

    fn about(summary: &'static str, verb: &'static str, details: &'static str) -> About {
        About::new(summary, Told::in_progress(&[verb]))
            .details(details)
            .reads_call("Targets", |fields| selector::targets(fields, None).map(drop))
            .may_miss()
    }
}
