//! `/instances/start_instance`, `stop_instance`, `restart_instance`.

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::selector;
use crate::service::power::Power;
use crate::service::selection::Selector;

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
    let selectors = targets(&call)?;
    let task = call.service.change_power(&call.caller, power, &selectors).await?;
    Ok(Answer::in_progress(verb, &task))
}

/// The path names one target; the body names one too, or selects several.
fn targets(call: &Call) -> Result<Vec<Selector>, Rejection> {
    let fields = call.fields();
    let in_body = match fields.get(&["name", "uuid"]) {
        Some((name, _)) => fields.string(&[name])?.map(Selector::Name),
        None => None,
    };
    let in_path = call.captures.first().cloned().map(Selector::Name);
    if let (Some(path), Some(body)) = (&in_path, &in_body)
        && path != body
    {
        return Err(Rejection::invalid("name", "differs from the name in the path"));
    }
    let selected = selector::read(fields)?;
    match in_path {
        Some(path) if selected.iter().all(|selector| *selector == path) => Ok(vec![path]),
        Some(_) => Err(Rejection::invalid(
            "instances",
            "differs from the name in the path",
        )),
        None => {
            let all: Vec<Selector> = in_body.into_iter().chain(selected).collect();
            if all.is_empty() {
                Err(Rejection::MissingField("name"))
            } else {
                Ok(all)
            }
        }
    }
}
