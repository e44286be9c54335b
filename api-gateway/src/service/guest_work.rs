//! What hosts do inside guests: commands, copies of stored files, packages. One task for all targets.

use std::sync::Arc;

use virtshell_crds::Task;
use virtshell_crds::task::TaskParams;

use super::error::object_name;
use super::objects::permit;
use super::selection::Selector;
use super::tasks::{Work, new_task_name};
use super::{Caller, Field, Kind, Service, ServiceError, Verb};
use crate::store::by;

/// What is done with packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackageChange {
    /// Install them.
    Install,
    /// Bring them to their newest version; none named = the whole system.
    Upgrade,
    /// Remove them.
    Remove,
}

impl PackageChange {
    const fn task_type(self) -> &'static str {
        match self {
            Self::Install => "install_packages",
            Self::Upgrade => "upgrade_packages",
            Self::Remove => "remove_packages",
        }
    }

    const fn verb(self) -> &'static str {
        match self {
            Self::Install => "Install",
            Self::Upgrade => "Upgrade",
            Self::Remove => "Remove",
        }
    }
}

/// What is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopySource {
    /// One stored file, by uuid, name or `folder/name`.
    File(String),
    /// Every stored file of a folder.
    Folder(String),
}

/// A copy into guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// What is copied.
    pub source: CopySource,
    /// Where to; the guest's shell expands it.
    pub destination: String,
    /// Owner of the copies inside the guest.
    pub owner: Option<String>,
    /// Group of the copies inside the guest.
    pub group: Option<String>,
    /// Mode of the copies, octal.
    pub mode: Option<String>,
}

impl Service {
    /// Runs a command as root in everything selected.
    pub async fn execute_command(
        &self,
        caller: &Caller,
        command: String,
        selectors: &[Selector],
    ) -> Result<Arc<Task>, ServiceError> {
        let params = TaskParams {
            command: Some(command),
            ..TaskParams::default()
        };
        self.work_inside(caller, "execute_command", "Execute command in", params, selectors)
            .await
    }

    /// Copies stored files into everything selected. The caller must be allowed to read them.
    pub async fn copy_files(
        &self,
        caller: &Caller,
        copy: Copy,
        selectors: &[Selector],
    ) -> Result<Arc<Task>, ServiceError> {
        if copy.mode.as_deref().is_some_and(|mode| !is_mode(mode)) {
            return Err(ServiceError::invalid(
                Field::Mode,
                "must be three or four octal digits",
            ));
        }
        let mut params = TaskParams {
            destination: Some(copy.destination),
            owner: copy.owner,
            group: copy.group,
            mode: copy.mode,
            ..TaskParams::default()
        };
        match copy.source {
            CopySource::File(id) => {
                let file = self.referenced_file(caller, &id)?;
                permit(caller, Verb::Use, file.as_ref())?;
                params.file = Some(object_name(file.as_ref()).to_owned());
            }
            CopySource::Folder(folder) => {
                let files = self.store().files.by_key(by::FOLDER, &folder);
                if folder.is_empty() || files.is_empty() {
                    return Err(ServiceError::UnknownReference {
                        kind: Kind::File,
                        name: format!("{folder}/"),
                    });
                }
                if files.len() > MAX_FILES {
                    let reason = format!("has {} files; at most {MAX_FILES} fit one task", files.len());
                    return Err(ServiceError::invalid(Field::Folder, reason));
                }
                for file in &files {
                    permit(caller, Verb::Use, file.as_ref())?;
                }
                // By name: what comes into the folder until it is copied was not asked about.
                params.files = files
                    .iter()
                    .map(|file| object_name(file.as_ref()).to_owned())
                    .collect();
                params.folder = Some(folder);
            }
        }
        self.work_inside(caller, "copy_files", "Copy files to", params, selectors)
            .await
    }

    /// Installs, upgrades or removes packages in everything selected.
    pub async fn change_packages(
        &self,
        caller: &Caller,
        change: PackageChange,
        packages: Vec<String>,
        selectors: &[Selector],
    ) -> Result<Arc<Task>, ServiceError> {
        if packages.is_empty() && change != PackageChange::Upgrade {
            return Err(ServiceError::Missing(Field::Packages));
        }
        if packages.len() > MAX_PACKAGES {
            let reason = format!("at most {MAX_PACKAGES} fit one task");
            return Err(ServiceError::invalid(Field::Packages, reason));
        }
        if let Some(word) = packages.iter().find(|word| !is_package(word)) {
            return Err(ServiceError::invalid(
                Field::Packages,
                format!("{word} is no name of a package"),
            ));
        }
        let params = TaskParams {
            packages,
            ..TaskParams::default()
        };
        let what = format!("{} packages in", change.verb());
        self.work_inside(caller, change.task_type(), &what, params, selectors)
            .await
    }

    async fn work_inside(
        &self,
        caller: &Caller,
        type_: &str,
        what: &str,
        params: TaskParams,
        selectors: &[Selector],
    ) -> Result<Arc<Task>, ServiceError> {
        if selectors.is_empty() {
            return Err(ServiceError::Missing(Field::Targets));
        }
        let targets = self.select(caller, Verb::Execute, selectors)?;
        let description = match targets.len() {
            1 => format!("{what} 1 instance"),
            n => format!("{what} {n} instances"),
        };
        let work = Work {
            type_,
            description,
            targets: &targets,
            params: Some(params),
        };
        self.start_work(caller, &new_task_name(), work).await
    }
}

/// Most files of a folder that one task copies.
const MAX_FILES: usize = 1024;
/// Most package words of one task.
const MAX_PACKAGES: usize = 256;

/// `[A-Za-z0-9][A-Za-z0-9.+:_~@/-]*`: no manager takes it for an option, no shell for anything else.
fn is_package(word: &str) -> bool {
    word.len() <= 255
        && word.starts_with(|c: char| c.is_ascii_alphanumeric())
        && word
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".+:_~@/-".contains(c))
}

fn is_mode(text: &str) -> bool {
    matches!(text.len(), 3 | 4) && text.bytes().all(|b| (b'0'..=b'7').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_packages() {
        for (word, expected) in [
            ("git", true),
            ("libstdc++6", true),
            ("nginx=1", false),
            ("foo:amd64", true),
            ("python3.11", true),
            ("@development", false),
            ("a/b", true),
            ("-rf", false),
            ("a b", false),
            ("a;b", false),
            ("", false),
            ("é", false),
        ] {
            assert_eq!(is_package(word), expected, "{word}");
        }
    }

    #[test]
    fn modes() {
        for (text, expected) in [
            ("644", true),
            ("0755", true),
            ("64", false),
            ("888", false),
            ("00644", false),
        ] {
            assert_eq!(is_mode(text), expected, "{text}");
        }
    }
}
