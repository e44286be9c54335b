//! `/tasks`: asynchronous work.

use serde::Serialize;
use serde_json::{Value, json};
use virtshell_crds::task::TargetState;
use virtshell_crds::{Task, TaskState};

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::values::Fields;
use super::view::{NameAndId, Stamp, created_stamp, epoch, non_empty, uuid};
use crate::service::outcomes::Outcome;
use crate::service::tasks::{Filter, NewRecord, Progress, TaskChange, shown_status};
use crate::service::{Service, Verb};
use crate::store::created;

/// Words of older servers and agents for work in progress: each is a stage.
const STAGES: [&str; 17] = [
    "dispatching",
    "dispatched",
    "received",
    "setting up",
    "creating",
    "created",
    "provisioning",
    "registering",
    "registered",
    "assigning_properties",
    "assigned_properties",
    "creating_storage",
    "storage_created",
    "installing",
    "checking",
    "executing",
    "copying",
];

pub async fn list(call: Call) -> Result<Answer, Rejection> {
    Ok(answer_list(&call, None))
}

pub async fn by_status(call: Call) -> Result<Answer, Rejection> {
    let filter = filter(call.id());
    Ok(answer_list(&call, Some(&filter)))
}

pub async fn missing_status(_: Call) -> Result<Answer, Rejection> {
    Err(Rejection::MissingParameter("status name parameter"))
}

/// A task by its uuid; where a status stands instead, the tasks that have it.
pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let filter = filter(call.id());
    if filter != Filter::Nothing {
        return Ok(answer_list(&call, Some(&filter)));
    }
    let task = call.service.permitted_task(&call.caller, Verb::Read, call.id())?;
    Ok(Answer::ok(&view(&call.service, &task)))
}

pub async fn create(call: Call) -> Result<Answer, Rejection> {
    let fields = call.fields();
    let description = match fields.string(&["description"])? {
        Some(description) if !description.is_empty() => description,
        Some(_) | None => return Err(Rejection::MissingField("description")),
    };
    let record = NewRecord {
        description,
        task_type: fields.string(&["type"])?,
        object: fields.string(&["object_uuid"])?.filter(|id| !id.is_empty()),
        progress: progress(fields)?,
    };
    let task = call.service.create_record(&call.caller, record).await?;
    Ok(Answer::ok(
        &json!({"create": "success", "task_id": task.metadata.uid}),
    ))
}

pub async fn update(call: Call) -> Result<Answer, Rejection> {
    let task = call
        .service
        .permitted_task(&call.caller, Verb::Update, call.id())?;
    let fields = call.fields();
    let change = TaskChange {
        description: fields.text(&["description"])?,
        task_type: fields.string(&["type"])?,
        progress: progress(fields)?,
    };
    call.service.update_task(&call.caller, &task, change).await?;
    Ok(Answer::success("update"))
}

pub async fn delete(call: Call) -> Result<Answer, Rejection> {
    let task = call
        .service
        .permitted_task(&call.caller, Verb::Delete, call.id())?;
    call.service.delete_task(&task).await?;
    Ok(Answer::success("delete"))
}

pub async fn delete_all(call: Call) -> Result<Answer, Rejection> {
    call.service.delete_tasks(&call.caller).await?;
    Ok(Answer::success("delete"))
}

fn answer_list(call: &Call, filter: Option<&Filter>) -> Answer {
    let tasks = call.service.visible_tasks(&call.caller, filter);
    let views: Vec<View> = tasks.iter().map(|task| view(&call.service, task)).collect();
    Answer::list("tasks", &views)
}

fn progress(fields: Fields<'_>) -> Result<Progress, Rejection> {
    let status = match fields.string(&["status"])? {
        Some(text) => Some(
            status(&text).ok_or_else(|| Rejection::invalid("status", format!("{text} is not a status")))?,
        ),
        None => None,
    };
    let (state, word) = status.unzip();
    Ok(Progress {
        state,
        stage: word.flatten().map(str::to_owned),
        log: fields.string(&["log"])?,
    })
}

/// State and finer word of a status, in any of its spellings.
fn status(text: &str) -> Option<(TaskState, Option<&'static str>)> {
    let text = text.trim().to_ascii_lowercase();
    match text.as_str() {
        "pending" => Some((TaskState::Pending, None)),
        "in progress" | "in_progress" | "in-progress" | "inprogress" => Some((TaskState::InProgress, None)),
        "sucess" | "success" | "succeeded" | "provisioned" => Some((TaskState::Succeeded, None)),
        "failed" | "error" => Some((TaskState::Failed, None)),
        finer => STAGES
            .iter()
            .find(|stage| **stage == finer)
            .map(|stage| (TaskState::InProgress, Some(*stage))),
    }
}

fn filter(text: &str) -> Filter {
    match status(text) {
        Some((_, Some(stage))) => Filter::Stage(stage.to_owned()),
        Some((state, None)) => Filter::State(state),
        None => Filter::Nothing,
    }
}

const fn word(state: TaskState) -> &'static str {
    match state {
        TaskState::Pending => "pending",
        TaskState::InProgress => "in progress",
        // As documented.
        TaskState::Succeeded => "sucess",
        TaskState::Failed => "failed",
    }
}

const fn result_word(state: TargetState) -> &'static str {
    match state {
        TargetState::Pending => "pending",
        TargetState::Started => "in progress",
        TargetState::Succeeded => "sucess",
        TargetState::Failed => "failed",
    }
}

#[derive(Serialize)]
struct View {
    uuid: String,
    description: String,
    status: &'static str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    type_: Option<String>,
    object_uuid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    objects: Vec<NameAndId>,
    log: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<String>,
    created: Stamp,
    last_update: String,
    status_history: Vec<(&'static str, String, String)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    results: Vec<Value>,
}

fn view(service: &Service, task: &Task) -> View {
    let status = shown_status(task);
    let mut objects: Vec<NameAndId> = task
        .spec
        .targets
        .iter()
        .map(|target| {
            let instance = service.instance_of(target);
            let uid = target
                .uid
                .clone()
                .or_else(|| instance.as_ref().map(|i| uuid(i.as_ref())));
            NameAndId {
                name: instance.map_or_else(|| target.name.clone(), |i| i.wire_name().to_owned()),
                id: uid.unwrap_or_default(),
            }
        })
        .collect();
    objects.sort_by(|a, b| a.name.cmp(&b.name));
    let object_uuid = match objects.as_slice() {
        [one] => one.id.clone(),
        _ => String::new(),
    };
    if objects.len() == 1 {
        objects.clear();
    }
    View {
        uuid: uuid(task),
        description: task.spec.description.clone(),
        status: word(status.state.unwrap_or_default()),
        type_: non_empty(&task.spec.type_),
        object_uuid,
        objects,
        stage: non_empty(&status.stage),
        created: created_stamp(task),
        last_update: status
            .last_update
            .as_ref()
            .map_or_else(|| created(task).to_string(), |time| epoch(time.0)),
        status_history: status
            .history
            .iter()
            .map(|entry| (word(entry.state), epoch(entry.at.0), entry.log.clone()))
            .collect(),
        results: service.outcomes(task).into_iter().map(outcome_view).collect(),
        log: status.log,
    }
}

/// An outcome; `reason` is an extension, which says why a target failed.
fn outcome_view(outcome: Outcome) -> Value {
    let mut value = json!({"name": outcome.name, "id": outcome.uid, "status": result_word(outcome.state)});
    if let Some(code) = outcome.exit_code {
        value["exit_code"] = json!(code);
    }
    for (member, text) in [("output", outcome.output), ("reason", outcome.reason)] {
        if !text.is_empty() {
            value[member] = json!(text);
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_words_of_the_contract() {
        use TaskState::{Failed, InProgress, Pending, Succeeded};
        for (text, expected) in [
            ("pending", Some((Pending, None))),
            ("in progress", Some((InProgress, None))),
            ("In_Progress", Some((InProgress, None))),
            ("in-progress", Some((InProgress, None))),
            ("inprogress", Some((InProgress, None))),
            ("sucess", Some((Succeeded, None))),
            ("success", Some((Succeeded, None))),
            ("succeeded", Some((Succeeded, None))),
            ("provisioned", Some((Succeeded, None))),
            ("failed", Some((Failed, None))),
            ("error", Some((Failed, None))),
            ("setting up", Some((InProgress, Some("setting up")))),
            ("copying", Some((InProgress, Some("copying")))),
            ("done", None),
            ("", None),
        ] {
            assert_eq!(status(text), expected, "{text}");
        }
        assert_eq!(filter("executing"), Filter::Stage("executing".into()));
        assert_eq!(filter("success"), Filter::State(Succeeded));
        assert_eq!(filter("nonsense"), Filter::Nothing);
    }
}
