//! Files of the cluster into guests.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use virtshell_crds::task::TaskParams;
use virtshell_crds::{File, FileContent};

use crate::node::access::{AccessError, Command, Guest, NewFile, quoted};
use crate::node::hypervisor::chain;

/// Files asked for in one call when a folder is copied: at most 64 KiB each.
const PAGE: u32 = 50;
/// Bytes of a guest's answer to where a destination is.
const ANSWER: usize = 8 << 10;

/// What is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whether it is a folder: then the destination is a directory.
    pub folder: bool,
    /// Name and content of each file.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Why nothing was copied: a word, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoSource(pub &'static str, pub String);

/// Reads what is to be copied.
pub async fn read(api: &Api<File>, params: &TaskParams) -> Result<Source, NoSource> {
    let unreadable = |error: kube::Error| {
        if let (kube::Error::Api(answer), Some(name)) = (&error, &params.file)
            && answer.is_not_found()
        {
            return NoSource("FileNotFound", format!("file {name} not found"));
        }
        NoSource("FileUnreadable", format!("it cannot be read: {}", chain(&error)))
    };
    let mut found = Vec::new();
    match (&params.file, &params.folder) {
        (Some(name), _) => found.push(api.get(name).await.map_err(unreadable)?),
        (None, Some(folder)) => {
            let mut page = ListParams::default().limit(PAGE);
            loop {
                let list = api.list(&page).await.map_err(unreadable)?;
                let next = list.metadata.continue_.clone().filter(|token| !token.is_empty());
                found.extend(list.items.into_iter().filter(|file| file.spec.folder == *folder));
                let Some(token) = next else { break };
                page = page.continue_token(&token);
            }
            if found.is_empty() {
                return Err(NoSource("FileNotFound", format!("folder {folder} has no files")));
            }
        }
        (None, None) => return Err(invalid("file or folder is missing")),
    }
    let files = found.iter().map(content).collect::<Result<_, _>>()?;
    Ok(Source {
        folder: params.file.is_none(),
        files,
    })
}

fn invalid(why: &str) -> NoSource {
    NoSource("Invalid", why.to_owned())
}

/// Name and content.
fn content(file: &File) -> Result<(String, Vec<u8>), NoSource> {
    let name = file.spec.display_name.clone().unwrap_or_else(|| file.name_any());
    if matches!(name.as_str(), "" | "." | "..") || name.contains('/') {
        return Err(invalid(&format!("{name:?} is no name for a file")));
    }
    match &file.spec.content {
        FileContent {
            inline: Some(text), ..
        } => match STANDARD.decode(text) {
            Ok(bytes) => Ok((name, bytes)),
            Err(error) => Err(NoSource(
                "FileUnreadable",
                format!("the content of file {name} is not base64: {error}"),
            )),
        },
        FileContent { inline: None, .. } => Err(NoSource(
            "ContentUnavailable",
            format!(
                "the content of file {name} is in the gateway's store, which agents cannot read; only files of up to 64 KiB can be copied"
            ),
        )),
    }
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
    fn only_content_that_is_here_is_copied() {
        let file = |name: Option<&str>, inline: Option<&str>| {
            let spec = FileSpec {
                display_name: name.map(str::to_owned),
                content: FileContent {
                    inline: inline.map(str::to_owned),
                    blob: inline.is_none().then(|| "0".repeat(64)),
                },
                ..FileSpec::default()
            };
            content(&File::new("object-name", spec))
        };
        assert_eq!(
            file(Some("my.cnf"), Some("aGk=")),
            Ok(("my.cnf".into(), b"hi".to_vec()))
        );
        assert_eq!(file(None, Some("")), Ok(("object-name".into(), vec![])));
        for (name, inline, reason) in [
            (Some(".."), Some("aGk="), "Invalid"),
            (Some("f"), Some("a"), "FileUnreadable"),
            (Some("f"), None, "ContentUnavailable"),
        ] {
            assert_eq!(file(name, inline).unwrap_err().0, reason, "{name:?}");
        }
    }
}
