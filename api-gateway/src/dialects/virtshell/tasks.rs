//! `/tasks`: asynchronous work.

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use virtshell_crds::task::TargetState;
use virtshell_crds::{Task, TaskState};

use super::about::{Epoch, TaskStatus};
use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::values::Fields;
use super::view::{NameAndId, Stamp, created_stamp, epoch, non_empty, uuid};
use crate::service::outcomes::Outcome;
use crate::service::tasks::{Filter, NewRecord, Progress, TaskChange, shown_status};
use crate::service::{Service, Verb};
use crate::store::created;

/// Words for how far a task is, in any spelling; the canonical ones first.
const STATUSES: [&str; 28] = [
    "pending",
    "in progress",
    "sucess",
    "failed",
    "in_progress",
    "in-progress",
    "inprogress",
    "success",
    "succeeded",
    "provisioned",
    "error",
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
/// Words of older servers and agents for work in progress: each is a stage.
const STAGES: &[&str] = STATUSES.split_at(11).1;

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
    let outcomes = call.service.outcomes_with_output(&task).await?;
    Ok(Answer::ok(&view(&call.service, &task, outcomes)))
}

pub async fn create(call: Call) -> Result<Answer, Rejection> {
    let task = call
        .service
        .create_record(&call.caller, record(call.fields())?)
        .await?;
    Ok(Answer::ok(
        &json!({"create": "success", "task_id": task.metadata.uid}),
    ))
}

pub async fn update(call: Call) -> Result<Answer, Rejection> {
    let task = call
        .service
        .permitted_task(&call.caller, Verb::Update, call.id())?;
    call.service
        .update_task(&call.caller, &task, change(call.fields())?)
        .await?;
    Ok(Answer::success("update"))
}

fn record(fields: Fields<'_>) -> Result<NewRecord, Rejection> {
    let description = match fields.string(&["description"])? {
        Some(description) if !description.is_empty() => description,
        Some(_) | None => return Err(Rejection::MissingField("description")),
    };
    Ok(NewRecord {
        description,
        task_type: fields.string(&["type"])?,
        object: fields.string(&["object_uuid"])?.filter(|id| !id.is_empty()),
        progress: progress(fields)?,
    })
}

fn change(fields: Fields<'_>) -> Result<TaskChange, Rejection> {
    Ok(TaskChange {
        description: fields.text(&["description"])?,
        task_type: fields.string(&["type"])?,
        progress: progress(fields)?,
    })
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
    let service = &call.service;
    let views: Vec<View> = tasks
        .iter()
        .map(|task| view(service, task, service.outcomes(task)))
        .collect();
    Answer::list("tasks", &views)
}

fn progress(fields: Fields<'_>) -> Result<Progress, Rejection> {
    let status = match fields.word(&["status"], &STATUSES)? {
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

/// Asynchronous work.
#[derive(Serialize, ToSchema)]
#[schema(as = Task)]
struct View {
    /// Names it.
    #[schema(format = Uuid)]
    uuid: String,
    /// What is done, for people.
    description: String,
    /// How far it is.
    #[schema(value_type = TaskStatus)]
    status: &'static str,
    /// What is done, in a word.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    type_: Option<String>,
    /// uuid of what it is done to; empty when that is nothing or several.
    object_uuid: String,
    /// What it is done to, when that is several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    objects: Vec<NameAndId>,
    /// The latest that there is to say.
    log: String,
    /// A finer word for how far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    stage: Option<String>,
    /// When it was made, and by whom.
    created: Stamp,
    /// When its status or log changed last.
    #[schema(value_type = Epoch)]
    last_update: String,
    /// What status and log were before, and since when: oldest first.
    status_history: Vec<(&'static str, String, String)>,
    /// What came of it, for each object that something came of.
    results: Vec<OutcomeView>,
}

/// What came of a task for one object.
#[derive(Serialize, ToSchema)]
#[schema(as = Outcome)]
struct OutcomeView {
    /// Name of the object.
    name: String,
    /// Its uuid; empty for what is gone.
    id: String,
    /// How far the work on it is.
    #[schema(value_type = TaskStatus)]
    status: &'static str,
    /// What a command ended with.
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    /// What it printed, up to 64 KiB. Lists leave it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

fn view(service: &Service, task: &Task, outcomes: Vec<Outcome>) -> View {
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
        results: outcomes.into_iter().map(outcome_view).collect(),
        log: status.log,
    }
}

fn outcome_view(outcome: Outcome) -> OutcomeView {
    OutcomeView {
        name: outcome.name,
        id: outcome.uid,
        status: result_word(outcome.state),
        exit_code: outcome.exit_code,
        output: non_empty(&outcome.output),
        reason: non_empty(&outcome.reason),
    }
}

/// What the API's document says of these routes.
pub mod about {
    use serde_json::json;

    use super::super::about::{About, Told, object, uuid};
    use super::{View, change, record};

    pub fn list() -> About {
        About::new("List tasks", Told::list::<View>("tasks"))
    }

    pub fn by_status() -> About {
        About::new("List tasks that are as far as that", Told::list::<View>("tasks"))
            .details("A finer word lists the tasks that are at that stage; an unknown one lists nothing.")
    }

    pub fn missing_status() -> About {
        super::super::missing::about::status()
    }

    pub fn get() -> About {
        About::new("Show a task", Told::one::<View>().or(by_status().answer))
            .details("A word for a status instead of a uuid lists the tasks that have it.")
            .may_miss()
    }

    pub fn create() -> About {
        let made = object(&[("create", json!({"const": "success"})), ("task_id", uuid())]);
        About::new("Record a task", Told::json(made))
            .details("It is a record of the client's: nothing acts on it.")
            .reads::<View>("NewTask", |fields| record(fields).map(drop))
    }

    pub fn update() -> About {
        About::new("Change a task", Told::success("update"))
            .details("`pending` on a finished task of VirtShell's own has it tried again; a `log` sent with it is not kept.")
            .reads::<View>("TaskChange", |fields| change(fields).map(drop))
            .may_miss()
    }

    pub fn delete() -> About {
        About::new("Delete a task", Told::success("delete")).may_miss()
    }

    pub fn delete_all() -> About {
        About::new(
            "Delete all tasks that the caller may delete",
            Told::success("delete"),
        )
    }
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
