//! Files of the cluster into guests.

use std::collections::BTreeSet;

use kube::ResourceExt;
use kube::api::{Api, ListParams};
use virtshell_crds::File;
use virtshell_crds::file_ref::FileUrl;
use virtshell_crds::task::TaskParams;

use crate::file_content;
use crate::node::access::{AccessError, Command, Content, Guest, NewFile, quoted};
use crate::node::context::Context;
use crate::node::files::FileError;
use crate::node::hypervisor::chain;
use crate::node::storage::StorageError;

/// Files asked for in one call when a folder is copied: at most 64 KiB each.
const PAGE: u32 = 50;
/// Bytes of small files of a folder, together: they are in memory until all guests have them.
const LARGEST_FOLDER: usize = 64 << 20;
/// Bytes of a guest's answer to where a destination is.
const ANSWER: usize = 8 << 10;

/// What is copied.
#[derive(Debug)]
pub struct Source {
    /// Whether it is a folder: then the destination is a directory.
    pub folder: bool,
    /// Name and content of each file.
    pub files: Vec<(String, Content)>,
}

/// Why nothing was copied: a word, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSource(pub &'static str, pub String);

impl From<FileError> for NoSource {
    fn from(error: FileError) -> Self {
        Self(error.reason(), error.to_string())
    }
}

/// Why a large file did not come, without the words of images.
fn not_fetched(name: &str, error: &StorageError) -> NoSource {
    let why = if let StorageError::FileUnavailable(error) = error {
        return error.clone().into();
    } else if let StorageError::DownloadFailed { why, .. } = error {
        why.clone()
    } else if let StorageError::ImageNotFound { answer, .. } | StorageError::FetchRefused { answer, .. } =
        error
    {
        answer.clone()
    } else {
        error.explain()
    };
    FileError::Unreadable(name.to_owned(), why).into()
}

/// Reads what is to be copied; what is large comes into files of this host.
pub async fn read(context: &Context, namespace: &str, params: &TaskParams) -> Result<Source, NoSource> {
    let api: Api<File> = Api::namespaced(context.client.clone(), namespace);
    let unreadable = |error: kube::Error| {
        if let (kube::Error::Api(answer), Some(name)) = (&error, &params.file)
            && answer.is_not_found()
        {
            return NoSource("FileNotFound", format!("file {name} not found"));
        }
        NoSource("FileUnreadable", format!("it cannot be read: {}", chain(&error)))
    };
    let mut files = Vec::new();
    match (&params.file, &params.folder) {
        (Some(name), _) => {
            let file = api.get(name).await.map_err(unreadable)?;
            files.push(read_one(context, namespace, &file).await?);
        }
        (None, Some(folder)) => {
            let mut room = LARGEST_FOLDER;
            let mut missing: BTreeSet<&str> = params.files.iter().map(String::as_str).collect();
            let mut page = ListParams::default().limit(PAGE);
            loop {
                let list = api.list(&page).await.map_err(unreadable)?;
                for file in list.items.iter().filter(|file| is_meant(params, file)) {
                    missing.remove(file.name_any().as_str());
                    let (name, content) = read_one(context, namespace, file).await?;
                    if let Content::Bytes(bytes) = &content {
                        room = room.checked_sub(bytes.len()).ok_or_else(|| too_much(folder))?;
                    }
                    files.push((name, content));
                }
                let Some(token) = list.metadata.continue_.filter(|token| !token.is_empty()) else {
                    break;
                };
                page = page.continue_token(&token);
            }
            if let Some(name) = missing.first() {
                return Err(NoSource(
                    "FileNotFound",
                    format!("file {name} is not in folder {folder} any more"),
                ));
            }
            if files.is_empty() {
                return Err(NoSource("FileNotFound", format!("folder {folder} has no files")));
            }
        }
        (None, None) => return Err(invalid("file or folder is missing")),
    }
    Ok(Source {
        folder: params.file.is_none(),
        files,
    })
}

/// Whether a file is one of those that a folder is copied with.
fn is_meant(params: &TaskParams, file: &File) -> bool {
    let named = params.files.is_empty() || params.files.contains(&file.name_any());
    named && params.folder.as_ref() == Some(&file.spec.folder)
}

fn invalid(why: &str) -> NoSource {
    NoSource("Invalid", why.to_owned())
}

fn too_much(folder: &str) -> NoSource {
    let most = LARGEST_FOLDER >> 20;
    NoSource(
        "FolderTooLarge",
        format!("folder {folder} has more than {most} MiB of small files"),
    )
}

/// Name and content.
async fn read_one(context: &Context, namespace: &str, file: &File) -> Result<(String, Content), NoSource> {
    let name = name(file)?;
    let unreadable = |why: String| NoSource::from(FileError::Unreadable(name.clone(), why));
    let content = match file_content::content(file).map_err(unreadable)? {
        file_content::Content::Inline(bytes) => Content::Bytes(bytes),
        file_content::Content::Blob => {
            let at = FileUrl {
                namespace: namespace.to_owned(),
                name: file.name_any(),
                sha256: file_content::sha256(file).unwrap_or_default(),
            };
            let fetched = context.storage.fetch_file(&at).await;
            Content::File(fetched.map_err(|error| not_fetched(&name, &error))?)
        }
    };
    Ok((name, content))
}

fn name(file: &File) -> Result<String, NoSource> {
    let name = file_content::shown(file);
    if matches!(name.as_str(), "" | "." | "..") || name.contains('/') {
        return Err(invalid(&format!("{name:?} is no name for a file")));
    }
    Ok(name)
}

/// Copies into one guest; returns where the files are then.
pub async fn copy(
    guest: &Guest,
    source: &Source,
    params: &TaskParams,
    left: impl Fn() -> std::time::Duration,
) -> Result<Vec<String>, AccessError> {
    let destination = params.destination.as_deref().unwrap_or_default();
    let name = (!source.folder).then(|| source.files.first().map_or("", |(name, _)| name));
    let command = Command {
        text: place(destination, name),
        limit: ANSWER,
        ..Command::default()
    };
    let ended = guest.run(&command, left()).await?;
    let said = String::from_utf8_lossy(&ended.output).into_owned();
    // A login shell may greet before.
    let last = said.lines().last().unwrap_or_default();
    let path = match ended.exit_code {
        Some(0) if last.starts_with('/') && !ended.truncated => last,
        None => return Err(AccessError::TimedOut(left())),
        Some(_) => {
            return Err(AccessError::File {
                path: destination.to_owned(),
                why: said.trim().to_owned(),
            });
        }
    };
    let mut copied = Vec::with_capacity(source.files.len());
    for (name, content) in &source.files {
        let path = if source.folder {
            format!("{}/{name}", path.trim_end_matches('/'))
        } else {
            path.to_owned()
        };
        let file = NewFile {
            path: &path,
            content,
            owner: params.owner.as_deref(),
            group: params.group.as_deref(),
            mode: params.mode.as_deref(),
        };
        guest.write_file(&file, left()).await?;
        copied.push(path);
    }
    Ok(copied)
}

/// The shell text that expands a destination, makes the directories it needs and says where it is: for a file its path,
/// for a folder (no name) the directory.
fn place(destination: &str, name: Option<&str>) -> String {
    let home = match destination.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("$HOME{}", escaped(rest)),
        Some(_) | None => escaped(destination),
    };
    let name = match name {
        Some(name) => format!(
            "name={}\ncase $to in */) to=$to$name ;; *) [ ! -d \"$to\" ] || to=$to/$name ;; esac\nin=${{to%/*}}\n",
            quoted(name)
        ),
        None => "in=$to\n".to_owned(),
    };
    format!(
        "to=\"{home}\"\n[ -n \"$to\" ] || {{ echo 'the destination expands to nothing'; exit 64; }}\n\
         case $to in /*) ;; *) to=$HOME/$to ;; esac\n{name}mkdir -p \"${{in:-/}}\" && printf '\\n%s' \"$to\"\n"
    )
}

/// For double quotes in which variables count and nothing else ends the text.
fn escaped(text: &str) -> String {
    text.replace('\\', r"\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use std::process::Command as Process;

    use virtshell_crds::FileSpec;

    use super::*;

    fn placed(home: &std::path::Path, destination: &str, name: Option<&str>) -> String {
        let done = Process::new("/bin/sh")
            .args(["-c", &place(destination, name)])
            .env("HOME", home)
            .env("MYSQL_HOME", home.join("my sql"))
            .output()
            .unwrap();
        let said = String::from_utf8(done.stdout).unwrap();
        let last = said.lines().last().unwrap_or_default().to_owned();
        last.replace(home.to_str().unwrap(), "H")
    }

    #[test]
    fn where_a_destination_is() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        std::fs::create_dir(home.join("there")).unwrap();
        let at = |rest: &str| format!("{}/{rest}", home.display());
        for (rule, destination, name, expected) in [
            ("a path", at("a/b.cnf"), Some("f"), "H/a/b.cnf"),
            ("a directory to be", at("new/"), Some("f"), "H/new/f"),
            ("a directory that is", at("there"), Some("f"), "H/there/f"),
            (
                "a variable",
                "$MYSQL_HOME/my.cnf".into(),
                Some("f"),
                "H/my sql/my.cnf",
            ),
            ("home", "~/x".into(), Some("f"), "H/x"),
            ("home alone", "~".into(), Some("f"), "H/f"),
            ("below home", "x/y".into(), Some("f"), "H/x/y"),
            ("a folder", at("dir/sub"), None, "H/dir/sub"),
            ("quotes are text", at("a\"b\\c/d"), Some("f"), "H/a\"b\\c/d"),
            (
                "nothing",
                "$NO_SUCH_VARIABLE".into(),
                Some("f"),
                "the destination expands to nothing",
            ),
        ] {
            assert_eq!(placed(home, &destination, name), expected, "{rule}");
        }
        for made in ["a", "new", "my sql", "dir/sub", "a\"b\\c"] {
            assert!(home.join(made).is_dir(), "{made} was made");
        }
    }

    #[test]
    fn what_did_not_come_is_said_in_the_words_of_files() {
        let url = "virtshell://ns/files/f".to_owned();
        for (error, reason, message) in [
            (
                StorageError::DownloadFailed {
                    url: url.clone(),
                    why: "connection refused".to_owned(),
                },
                "FileUnreadable",
                "file my.cnf cannot be read: connection refused",
            ),
            (
                StorageError::FetchRefused {
                    url,
                    answer: "the server answers 403 Forbidden".to_owned(),
                },
                "FileUnreadable",
                "file my.cnf cannot be read: the server answers 403 Forbidden",
            ),
            (
                StorageError::FileUnavailable(FileError::NotFound("f".to_owned())),
                "FileNotFound",
                "file f not found",
            ),
        ] {
            assert_eq!(
                not_fetched("my.cnf", &error),
                NoSource(reason, message.to_owned())
            );
        }
    }

    /// Guards: a file that comes into the folder after the request was not asked about, and is not copied.
    #[test]
    fn of_a_folder_those_are_copied_that_were_named() {
        let file = |name: &str, folder: &str| {
            let spec = FileSpec {
                folder: folder.to_owned(),
                ..FileSpec::default()
            };
            File::new(name, spec)
        };
        let params = |files: &[&str]| TaskParams {
            folder: Some("conf".to_owned()),
            files: files.iter().map(|name| (*name).to_owned()).collect(),
            ..TaskParams::default()
        };
        for (rule, files, found, expected) in [
            ("all", &[][..], file("a", "conf"), true),
            ("of this folder", &[], file("a", "other"), false),
            ("named", &["a", "b"], file("b", "conf"), true),
            ("came later", &["a", "b"], file("c", "conf"), false),
            ("named, but moved", &["a"], file("a", "other"), false),
        ] {
            assert_eq!(is_meant(&params(files), &found), expected, "{rule}");
        }
    }

    #[test]
    fn a_name_stays_in_its_directory() {
        let named = |display: Option<&str>| {
            let spec = FileSpec {
                display_name: display.map(str::to_owned),
                ..FileSpec::default()
            };
            name(&File::new("object-name", spec))
        };
        assert_eq!(named(Some("my.cnf")), Ok("my.cnf".into()));
        assert_eq!(named(None), Ok("object-name".into()));
        for wrong in ["..", "a/b", ""] {
            assert_eq!(named(Some(wrong)).unwrap_err().0, "Invalid", "{wrong:?}");
        }
    }
}
