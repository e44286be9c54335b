//! `/files`, `/file` and `/static`: stored files, their metadata and their content.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;
use utoipa::ToSchema;
use virtshell_crds::File;
use virtshell_crds::file_ref::path_of;

use super::about::Success;
use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::upload::Form;
use super::values::Fields;
use super::view::{Common, common, non_empty, permissions, uuid};
use crate::service::Verb;
use crate::service::files::{Bytestream, FileChange, NewFile};
use crate::service::objects::Ownership;
use crate::store::Cached;

/// What a name of a file may hold and a URI may not.
const ESCAPED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');
/// Names of the folder.
const FOLDER: [&str; 2] = ["folder_name", "directory_path"];

pub async fn list(call: Call) -> Result<Answer, Rejection> {
    let files = call.service.visible::<File>(&call.caller);
    let views: Vec<View> = files.iter().map(|file| view(&call, file)).collect();
    Ok(Answer::list("files", &views))
}

pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let file = permitted(&call, Verb::Read)?;
    Ok(Answer::ok(&view(&call, &file)))
}

/// The content as a JSON string in base64.
pub async fn content(call: Call) -> Result<Answer, Rejection> {
    let file = permitted(&call, Verb::Read)?;
    let content = call.service.content(&file).await?;
    Ok(Answer::json_stream(Body::from_stream(quoted(content))))
}

/// Metadata for clients that ask for JSON by name, the bytes for all others.
pub async fn raw(call: Call) -> Result<Answer, Rejection> {
    if call.names_json {
        return get(call).await;
    }
    let file = permitted(&call, Verb::Read)?;
    let content = call.service.content(&file).await?;
    Ok(Answer::bytes(Body::from_stream(content)))
}

pub async fn create(mut call: Call) -> Result<Answer, Rejection> {
    call.service.permit_create::<File>(&call.caller)?;
    let form = read_form(&mut call).await?;
    let file = form.file.ok_or(Rejection::MissingParameter("file"))?;
    let beside = beside(Fields::of(&form.fields))?;
    let (folder, name) = full_name(
        call.captures.first().map(|path| path_of(path)),
        beside.folder,
        file.name,
    )?;
    let new = NewFile {
        folder,
        name,
        permissions: beside.permissions,
        ownership: beside.ownership,
        content: file.content,
    };
    let made = call.service.create_file(&call.caller, new).await?;
    let uri = uri(&call, &made);
    let body = Made {
        create: "success",
        location: uri.clone(),
        uri,
        uuid: uuid(made.as_ref()),
    };
    Ok(Answer::ok(&body).created())
}

pub async fn update(mut call: Call) -> Result<Answer, Rejection> {
    let file = permitted(&call, Verb::Update)?;
    let form = read_form(&mut call).await?;
    let (permissions, ownership) = who_may(Fields::of(&form.fields))?;
    let change = FileChange {
        permissions,
        ownership,
        // The name that comes with it is ignored: files are not renamed.
        content: form.file.map(|file| file.content),
    };
    call.service.update_file(&call.caller, &file, change).await?;
    Ok(Answer::success("update"))
}

pub async fn delete(call: Call) -> Result<Answer, Rejection> {
    let file = permitted(&call, Verb::Delete)?;
    call.service.delete_file(&file).await?;
    Ok(Answer::success("delete"))
}

/// What a form says of a new file, beside its content.
struct Beside {
    folder: Option<String>,
    permissions: Option<String>,
    ownership: Ownership,
}

fn beside(fields: Fields<'_>) -> Result<Beside, Rejection> {
    let folder = fields.string(&FOLDER)?;
    let (permissions, ownership) = who_may(fields)?;
    Ok(Beside {
        folder: folder.map(|folder| folder.trim_matches('/').to_owned()),
        permissions,
        ownership,
    })
}

fn who_may(fields: Fields<'_>) -> Result<(Option<String>, Ownership), Rejection> {
    Ok((fields.permissions()?, fields.ownership()?))
}

fn permitted(call: &Call, verb: Verb) -> Result<Arc<File>, Rejection> {
    Ok(call
        .service
        .permitted_file(&call.caller, verb, path_of(call.id()))?)
}

/// The multipart form, or the JSON body, which has no file.
async fn read_form(call: &mut Call) -> Result<Form, Rejection> {
    match call.upload.take() {
        Some(upload) => upload.read(|| call.service.intake()).await,
        None => Ok(Form {
            fields: std::mem::take(&mut call.body),
            file: None,
        }),
    }
}

/// Folder and name of a new file: from the path, the field and the part's name, which must not contradict each other.
fn full_name(
    path: Option<&str>,
    folder: Option<String>,
    name: Option<String>,
) -> Result<(String, String), Rejection> {
    let in_path = path.map(|path| {
        path.rsplit_once('/')
            .map_or(("", path), |(folder, name)| (folder, name))
    });
    let (folder_in_path, name_in_path) = in_path.unzip();
    let folder_in_path = folder_in_path.filter(|folder| !folder.is_empty());
    match (name_in_path, &name) {
        (Some(path), Some(name)) if path != name => {
            return Err(Rejection::invalid(
                "file_data",
                "is named other than the path says",
            ));
        }
        (None, None) => return Err(Rejection::invalid("file_data", "the part has no filename")),
        _ => {}
    }
    match (folder_in_path, &folder) {
        (Some(path), Some(folder)) if path != folder => Err(Rejection::invalid(
            "folder_name",
            "differs from the folder in the path",
        )),
        _ => Ok((
            folder.or(folder_in_path.map(str::to_owned)).unwrap_or_default(),
            name.or(name_in_path.map(str::to_owned)).unwrap_or_default(),
        )),
    }
}

/// A JSON string with the bytes in base64, as they come.
fn quoted(content: Bytestream) -> Bytestream {
    let quote = || stream::once(async { Ok(Bytes::from_static(b"\"")) });
    // Three bytes are four letters: what is left over goes before the next step.
    let letters = stream::unfold(
        (content, Vec::new(), false),
        |(mut content, mut left, is_done)| async move {
            if is_done {
                return None;
            }
            match content.next().await {
                Some(Ok(bytes)) => {
                    left.extend_from_slice(&bytes);
                    let rest = left.split_off(left.len() / 3 * 3);
                    let letters = Bytes::from(STANDARD.encode(&left));
                    Some((Ok(letters), (content, rest, false)))
                }
                Some(Err(error)) => Some((Err(error), (content, left, true))),
                None => {
                    let letters = Bytes::from(STANDARD.encode(&left));
                    Some((Ok(letters), (content, Vec::new(), true)))
                }
            }
        },
    );
    quote().chain(letters).chain(quote()).boxed()
}

fn uri(call: &Call, file: &File) -> String {
    format!(
        "{}/files/{}",
        call.base_uri,
        utf8_percent_encode(&file.full_name(), ESCAPED)
    )
}

/// A new file.
#[derive(Serialize, ToSchema)]
#[schema(as = FileCreated)]
struct Made {
    /// That it was made.
    #[schema(value_type = Success)]
    create: &'static str,
    /// Where its metadata is.
    uri: String,
    /// The same as `uri`.
    location: String,
    /// Names it as well as its name does.
    #[schema(format = Uuid)]
    uuid: String,
}

/// A stored file, without its content.
#[derive(Serialize, ToSchema)]
#[schema(as = File)]
struct View {
    /// Its name within its folder; it stays.
    name: String,
    /// The same as `folder_name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    directory_path: Option<String>,
    /// The folder it is in, if any: names, joined with `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    folder_name: Option<String>,
    /// Where the content is kept; it means nothing to clients.
    location: String,
    /// Where this metadata is.
    uri: String,
    /// The same as `uri`.
    download_url: String,
    /// Bytes of the content.
    size: i64,
    /// SHA-256 of the content, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    /// Who may do what with it, as it was sent.
    permissions: String,
    /// Name of the user who owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// Name of the group that owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(flatten)]
    common: Common,
}

fn view(call: &Call, file: &File) -> View {
    let spec = &file.spec;
    let uri = uri(call, file);
    View {
        name: file.wire_name().to_owned(),
        directory_path: non_empty(&spec.folder),
        folder_name: non_empty(&spec.folder),
        location: match &spec.content.blob {
            Some(blob) => format!("blob:{blob}"),
            None => format!("inline:{}", uuid(file)),
        },
        download_url: uri.clone(),
        uri,
        size: spec.size,
        sha256: spec.sha256.clone(),
        permissions: permissions(spec.permissions.as_ref()),
        owner: spec.owner.clone(),
        group: spec.group.clone(),
        common: common(file),
    }
}

/// What the API's document says of these routes.
pub mod about {
    use serde_json::json;

    use super::super::about::{About, Told};
    use super::{Made, View, beside, who_may};

    pub fn list() -> About {
        About::new("List files", Told::list::<View>("files"))
    }

    pub fn get() -> About {
        About::new("Show a file", Told::one::<View>()).may_miss()
    }

    pub fn content() -> About {
        let content = json!({"type": "string", "contentEncoding": "base64"});
        About::new("Read a file's content, in base64", Told::json(content)).may_miss()
    }

    pub fn raw() -> About {
        let mut answer = Told::one::<View>();
        answer.content.push(("application/octet-stream", json!({})));
        About::new("Download a file", answer)
            .details("Clients that accept JSON by name get what is known of the file, all others its bytes.")
            .may_miss()
    }

    pub fn create() -> About {
        About::new("Store a file", Told::one::<Made>().with_status(201))
            .reads_form::<View>("NewFile", |fields| beside(fields).map(drop))
    }

    pub fn update() -> About {
        About::new("Change a file's content or permissions", Told::success("update"))
            .reads_form::<View>("FileChange", |fields| who_may(fields).map(drop))
            .reads::<View>("FilePermissions", |fields| who_may(fields).map(drop))
            .may_miss()
    }

    pub fn delete() -> About {
        About::new("Delete a file", Told::success("delete")).may_miss()
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;

    use super::*;

    #[test]
    fn where_a_name_comes_from() {
        for (path, folder, name, expected) in [
            (None, None, Some("n"), Some(("", "n"))),
            (None, Some("f"), Some("n"), Some(("f", "n"))),
            (Some("n"), None, None, Some(("", "n"))),
            (Some("f/g/n"), None, None, Some(("f/g", "n"))),
            (Some("f/n"), Some("f"), Some("n"), Some(("f", "n"))),
            (Some("n"), Some("f"), None, Some(("f", "n"))),
            (Some("f/n"), Some("g"), None, None),
            (Some("n"), None, Some("m"), None),
            (None, Some("f"), None, None),
        ] {
            let seen = full_name(path, folder.map(str::to_owned), name.map(str::to_owned)).ok();
            let expected = expected.map(|(folder, name)| (folder.to_owned(), name.to_owned()));
            assert_eq!(seen, expected, "{path:?} {folder:?} {name:?}");
        }
    }

    #[tokio::test]
    async fn content_as_a_json_string() {
        for steps in [vec!["", "a", "bc", "", "defg", "h"], vec![], vec!["abc", "def"]] {
            let content = stream::iter(steps.clone().into_iter().map(|step| Ok(Bytes::from(step)))).boxed();
            let letters: Vec<Bytes> = quoted(content).try_collect().await.unwrap();
            let expected = format!("\"{}\"", STANDARD.encode(steps.concat()));
            assert_eq!(letters.concat(), expected.as_bytes(), "{steps:?}");
        }
    }
}
