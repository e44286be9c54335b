//! Copies of another Instance's disks, under names of their own until all are complete.
//!
//! A copy rests on the same cached image as its source, and holds what the source's own file holds. The root gets its
//! name last: where it is, the copy was complete.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::disks::{DiskFormat, DiskInfo};
use super::error::StorageError;
use super::evict::below;
use super::fetch::blocking;
use super::format::{HEAD_BYTES, ImageFormat, detect};
use super::layout::{COPY_PREFIX, InstanceFiles, disk_file_name};
use super::room::RoomGuard;
use super::root_fs;
use super::tool::{CP, QEMU_IMG, Run};

/// One disk to copy, or copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskCopy {
    /// Name in the spec, or root.
    pub name: String,
    /// The source's file.
    pub from: PathBuf,
    /// How it is written.
    pub format: DiskFormat,
    /// Size that the guest sees, in MiB.
    pub virtual_mib: i64,
    /// The copy, until it is complete.
    pub to: PathBuf,
    target: PathBuf,
}

/// Says whether a file was written to: two that are equal were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    modified: Option<SystemTime>,
}

impl DiskCopy {
    pub(super) fn new(name: &str, source: &DiskInfo, files: &InstanceFiles) -> Self {
        let target = match (name, source.format) {
            ("root", DiskFormat::Raw) => files.root_image.clone(),
            ("root", DiskFormat::Qcow2) => files.root_qcow2.clone(),
            (name, _) => files.disk(name),
        };
        let temp = format!("{COPY_PREFIX}{}", disk_file_name(name));
        Self {
            name: name.to_owned(),
            from: source.path.clone(),
            format: source.format,
            virtual_mib: source.virtual_mib,
            to: files.dir.join(temp),
            target,
        }
    }

    /// Makes an empty file like the source's own, for a copy that QEMU fills.
    pub(super) async fn prepare(&self) -> Result<(), StorageError> {
        let from = self.from.clone();
        let base = blocking(move || base_of(&from)).await?;
        let mut run = Run::new(QEMU_IMG).args(&["create", "-q", "-f", self.format.as_str()]);
        if let Some((path, format)) = base {
            run = run.args(&["-u", "-F", format, "-b"]).arg(path);
        }
        run.arg(self.to.as_os_str())
            .arg(format!("{}M", self.virtual_mib))
            .output(&format!("making a copy of disk {}", self.name))
            .await
            .map(drop)
    }

    /// Copies a file that nobody writes to; shares its blocks where the file system can.
    ///
    /// Fails when somebody did write meanwhile.
    pub(super) async fn take(&self, room: &RoomGuard) -> Result<(), StorageError> {
        let before = self.stamp().await?;
        let (room, from, what) = (
            room.clone(),
            self.from.clone(),
            format!("a copy of disk {}", self.name),
        );
        blocking(move || {
            let found = std::fs::metadata(&from).map_err(StorageError::disk("reading", &from))?;
            room.check(&what, found.blocks() * 512)
        })
        .await?;
        Run::new(CP)
            .args(&["--reflink=auto", "--sparse=always"])
            .arg(&self.from)
            .arg(self.to.as_os_str())
            .output(&format!("copying disk {}", self.name))
            .await?;
        if self.stamp().await? == before {
            return Ok(());
        }
        Err(StorageError::ToolFailed {
            action: format!("copying disk {}", self.name),
            tool: CP.name,
            why: "it was written to meanwhile".to_owned(),
        })
    }

    async fn stamp(&self) -> Result<Stamp, StorageError> {
        let from = self.from.clone();
        blocking(move || {
            let found = std::fs::metadata(&from).map_err(StorageError::disk("reading", &from))?;
            Ok(Stamp {
                size: found.len(),
                modified: found.modified().ok(),
            })
        })
        .await
    }

    /// Makes the copy durable and gives it its name.
    pub(super) async fn publish(self) -> Result<(), StorageError> {
        if self.format == DiskFormat::Raw {
            root_fs::check(&self.to).await?;
        }
        let temp =
            tempfile::TempPath::try_from_path(&self.to).map_err(StorageError::disk("naming", &self.to))?;
        root_fs::publish(temp, self.target, 0o600).await
    }

    /// Removes what was not finished.
    pub(super) fn discard(&self) {
        if let Err(error) = std::fs::remove_file(&self.to)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.to.display(), %error, "a half-made copy stays until the next start");
        }
    }
}

/// Syncs the roots of a process's children.
pub(super) fn sync_children(parent: u32) -> Result<(), StorageError> {
    let tasks = PathBuf::from(format!("/proc/{parent}/task"));
    let failed = |error| StorageError::disk("syncing the container of", &tasks)(error);
    let mut synced = false;
    for task in std::fs::read_dir(&tasks).map_err(failed)? {
        let children = task.map_err(failed)?.path().join("children");
        for child in std::fs::read_to_string(children)
            .map_err(failed)?
            .split_whitespace()
        {
            std::fs::File::open(format!("/proc/{child}/root"))
                .and_then(|root| nix::unistd::syncfs(&root).map_err(std::io::Error::from))
                .map_err(failed)?;
            synced = true;
        }
    }
    if synced {
        return Ok(());
    }
    Err(failed(std::io::Error::from(std::io::ErrorKind::NotFound)))
}

/// What a disk of ours rests on, and how that is written.
fn base_of(path: &Path) -> Result<Option<(PathBuf, &'static str)>, StorageError> {
    use std::io::Read;
    let Some(base) = below(path)?.map(PathBuf::from) else {
        return Ok(None);
    };
    let mut head = Vec::with_capacity(HEAD_BYTES);
    std::fs::File::open(&base)
        .and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head))
        .map_err(StorageError::disk("reading", &base))?;
    let format = match detect(&head) {
        Ok(ImageFormat::Qcow2) => "qcow2",
        _ => "raw",
    };
    Ok(Some((base, format)))
}
