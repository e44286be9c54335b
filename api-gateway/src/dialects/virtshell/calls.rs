//! `/instances/clone_instance`, `execute_command`, `copy_file`, `copy_files`.

use serde_json::json;
use virtshell_crds::file_ref::path_of;

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::selector;
use super::values::Fields;
use crate::service::guest_work::{Copy, CopySource};
use crate::service::selection::Selector;

pub async fn clone(call: Call) -> Result<Answer, Rejection> {
    let fields = call.fields();
    let new_name = fields.text(&["new_name", "clone_name", "target"])?;
    let (sources, new_name) = match call.captures.first() {
        // The path has the source: what else has a name is the clone.
        Some(source) => {
            let new_name = match new_name {
                None => fields.text(&["name"])?,
                given => given,
            };
            (vec![Selector::Name(source.clone())], new_name)
        }
        None => (selector::targets(&call)?, new_name),
    };
    let task = call
        .service
        .clone_instance(&call.caller, &sources, new_name.as_deref())
        .await?;
    Ok(Answer::in_progress("clone", &task))
}

pub async fn execute_command(call: Call) -> Result<Answer, Rejection> {
    let fields = call.fields();
    let command = required(fields, &["command"])?;
    let targets = selector::read(fields)?;
    let task = call
        .service
        .execute_command(&call.caller, command, &targets)
        .await?;
    Ok(Answer::in_progress("execute_command", &task))
}

pub async fn copy_files(call: Call) -> Result<Answer, Rejection> {
    let fields = call.fields();
    let copy = Copy {
        source: copy_source(fields)?,
        destination: required(fields, &["destination"])?,
        owner: fields.text(&["owner"])?,
        group: fields.text(&["group"])?,
        mode: fields.text(&["mode"])?,
    };
    let targets = selector::read(fields)?;
    let task = call.service.copy_files(&call.caller, copy, &targets).await?;
    // Both spellings of the call are documented, each with a member of its own.
    Ok(Answer::ok(&json!({
        "copy_file": "in progress", "copy_files": "in progress", "task": task.metadata.uid,
    })))
}

/// What is copied is named in exactly one way.
fn copy_source(fields: Fields<'_>) -> Result<CopySource, Rejection> {
    let mut sources = Vec::new();
    for (members, is_folder) in [
        (&["uuid_file"][..], false),
        (&["path", "uri"][..], false),
        (&["file"][..], false),
        (&["folder_name"][..], true),
    ] {
        let Some(text) = fields.text(members)? else {
            continue;
        };
        sources.push(if is_folder {
            CopySource::Folder(text.trim_matches('/').to_owned())
        } else {
            CopySource::File(path_of(&text).to_owned())
        });
    }
    match (sources.pop(), sources.is_empty()) {
        (Some(source), true) => Ok(source),
        (Some(_), false) => Err(Rejection::invalid(
            "uuid_file",
            "only one of uuid_file, path, uri, file and folder_name can be copied at a time",
        )),
        (None, _) => Err(Rejection::MissingField("uuid_file")),
    }
}

fn required(fields: Fields<'_>, members: &[&'static str]) -> Result<String, Rejection> {
    let text = fields.text(members)?;
    text.ok_or(Rejection::MissingField(members[0]))
}
