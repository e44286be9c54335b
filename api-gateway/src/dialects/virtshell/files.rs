//! `/files`, `/file` and `/static`: stored files, their metadata and their content.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use futures::stream;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Serialize;
use serde_json::json;
use virtshell_crds::File;
use virtshell_crds::file_ref::path_of;

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::upload::Form;
use super::values::Fields;
use super::view::{Common, common, non_empty, permissions, uuid};
use crate::service::Verb;
use crate::service::files::{Bytestream, FileChange, NewFile};
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
    let fields = Fields(&form.fields);
    let file = form.file.ok_or(Rejection::MissingParameter("file"))?;
    let folder = fields
        .string(&FOLDER)?
        .map(|folder| folder.trim_matches('/').to_owned());
    let (folder, name) = full_name(call.captures.first().map(|path| path_of(path)), folder, file.name)?;
    let new = NewFile {
        folder,
        name,
        permissions: fields.string(&["permissions"])?,
        ownership: fields.ownership()?,
        content: file.content,
    };
    let made = call.service.create_file(&call.caller, new).await?;
    let uri = uri(&call, &made);
    let body = json!({"create": "success", "uri": uri, "location": uri, "uuid": uuid(made.as_ref())});
    Ok(Answer::ok(&body).created())
}

pub async fn update(mut call: Call) -> Result<Answer, Rejection> {
    let file = permitted(&call, Verb::Update)?;
    let form = read_form(&mut call).await?;
    let fields = Fields(&form.fields);
    let change = FileChange {
        permissions: fields.string(&["permissions"])?,
        ownership: fields.ownership()?,
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

#[derive(Serialize)]
struct View {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    directory_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    folder_name: Option<String>,
    location: String,
    uri: String,
    download_url: String,
    size: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    permissions: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
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
