//! `/instances/clone_instance`, `execute_command`, `copy_file`, `copy_files`.

use serde_json::json;
use virtshell_crds::Instance;
use virtshell_crds::file_ref::{file_of, path_of};

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::selector;
use super::values::Fields;
use crate::service::Verb;
use crate::service::guest_work::{Copy, CopySource};
use crate::service::selection::Selector;

pub async fn clone(call: Call) -> Result<Answer, Rejection> {
    if let Some(source) = call.captures.first() {
        call.service
            .permitted::<Instance>(&call.caller, Verb::Execute, source)?;
    }
    let (sources, new_name) = clone_of(call.fields(), call.captures.first())?;
    let task = call
        .service
        .clone_instance(&call.caller, &sources, new_name.as_deref())
        .await?;
    Ok(Answer::in_progress("clone", &task))
}

pub async fn execute_command(call: Call) -> Result<Answer, Rejection> {
    let (command, targets) = command(call.fields())?;
    let task = call
        .service
        .execute_command(&call.caller, command, &targets)
        .await?;
    Ok(Answer::in_progress("execute_command", &task))
}

pub async fn copy_files(call: Call) -> Result<Answer, Rejection> {
    let (copy, targets) = copy(call.fields())?;
    let task = call.service.copy_files(&call.caller, copy, &targets).await?;
    // Both spellings of the call are documented, each with a member of its own.
    Ok(Answer::ok(&json!({
        "copy_file": "in progress", "copy_files": "in progress", "task": task.metadata.uid,
    })))
}

/// What is cloned, and the clone's name.
fn clone_of(
    fields: Fields<'_>,
    in_path: Option<&String>,
) -> Result<(Vec<Selector>, Option<String>), Rejection> {
    let new_name = fields.text(&["new_name", "clone_name", "target"])?;
    match in_path {
        // The path has the source: what else has a name is the clone.
        Some(source) => {
            let new_name = match new_name {
                None => fields.text(&["name"])?,
                given => given,
            };
            Ok((vec![Selector::Name(source.clone())], new_name))
        }
        None => Ok((selector::targets(fields, None)?, new_name)),
    }
}

fn command(fields: Fields<'_>) -> Result<(String, Vec<Selector>), Rejection> {
    Ok((required(fields, &["command"])?, selector::read(fields)?))
}

fn copy(fields: Fields<'_>) -> Result<(Copy, Vec<Selector>), Rejection> {
    let copy = Copy {
        source: copy_source(fields)?,
        destination: required(fields, &["destination"])?,
        owner: fields.text(&["owner"])?,
        group: fields.text(&["group"])?,
        mode: fields.text(&["mode"])?,
    };
    Ok((copy, selector::read(fields)?))
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
            // A URI is encoded; a name is not.
            CopySource::File(file_of(&text).unwrap_or_else(|| path_of(&text).to_owned()))
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

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};
    use super::{clone_of, command, copy};

    pub fn clone() -> About {
        About::new("Clone an instance", Told::in_progress(&["clone"]))
            .details(
                "The clone has a copy of its disks, runs on the same host and is the caller's. Without a name it is called \
                `<source>_clone`, then `_clone_2` and so on.",
            )
            .reads_call("Clone", |fields| clone_of(fields, None).map(drop))
            .may_miss()
    }

    pub fn execute_command() -> About {
        About::new("Execute a command in instances", Told::in_progress(&["execute_command"]))
            .details("It is run by root's login shell; the task has what it printed and ended with, for each instance.")
            .reads_call("Command", |fields| command(fields).map(drop))
            .may_miss()
    }

    pub fn copy_files() -> About {
        About::new(
            "Copy a stored file, or a folder of them, into instances",
            Told::in_progress(&["copy_file", "copy_files"]),
        )
        .reads_call("Copy", |fields| copy(fields).map(drop))
        .may_miss()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_copied() {
        let file = |name: &str| Ok(CopySource::File(name.to_owned()));
        for (body, expected) in [
            (json!({"file": "a b"}), file("a b")),
            (json!({"file": "a%20b"}), file("a%20b")),
            (
                json!({"uri": "http://gw:80/api/virtshell/v1/files/my%20conf/a%2Bb"}),
                file("my conf/a+b"),
            ),
            (json!({"path": "https://gw/files/my.cnf"}), file("my.cnf")),
            (
                json!({"folder_name": "/a b/"}),
                Ok(CopySource::Folder("a b".to_owned())),
            ),
            (json!({}), Err(Rejection::MissingField("uuid_file"))),
        ] {
            let read = copy_source(Fields::of(body.as_object().unwrap()));
            assert_eq!(read, expected, "{body}");
        }
    }
}
