//! Disks of Instances: making, enlarging, looking at and removing them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::cache::CachedImage;
use super::error::StorageError;
use super::fetch::blocking;
use super::format::{QCOW2_HEADER_BYTES, Qcow2Header};
use super::layout::{InstanceFiles, Role, role};
use super::pattern::{Pattern, Patterns, Request};
use super::root_fs::{publish, temp_in};
use super::tool::{QEMU_IMG, Run};

const MIB: u64 = 1 << 20;

/// How a disk file of ours is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFormat {
    /// For virtual machines.
    Qcow2,
    /// A file system image, for containers.
    Raw,
}

impl DiskFormat {
    /// libvirt's word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// A finished disk file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskInfo {
    /// Where it is.
    pub path: PathBuf,
    /// How it is written.
    pub format: DiskFormat,
    /// Size that the guest sees, in MiB, rounded up.
    pub virtual_mib: i64,
}

/// The finished files of one Instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedFiles {
    /// Root disk.
    pub root: Option<DiskInfo>,
    /// NoCloud seed.
    pub seed: Option<PathBuf>,
    /// Additional disks by name, also those that are no longer in the spec.
    pub disks: BTreeMap<String, DiskInfo>,
}

/// Reads which finished files are there; a missing directory is none. Blocks.
pub(super) fn observe(files: &InstanceFiles) -> Result<ObservedFiles, StorageError> {
    let mut observed = ObservedFiles::default();
    for (path, role) in entries(&files.dir)? {
        match role {
            Role::Root => observed.root = Some(qcow2_info("root", path)?),
            Role::RootImage => observed.root = Some(raw_info(path)?),
            Role::Seed => observed.seed = Some(path),
            Role::Disk(name) => {
                let info = qcow2_info(&name, path)?;
                observed.disks.insert(name, info);
            }
            Role::Answers | Role::Temp | Role::Foreign => {}
        }
    }
    Ok(observed)
}

fn entries(dir: &Path) -> Result<Vec<(PathBuf, Role)>, StorageError> {
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StorageError::disk("reading", dir)(error)),
    };
    listing
        .map(|entry| {
            let entry = entry.map_err(StorageError::disk("reading", dir))?;
            let role = entry.file_name().to_str().map_or(Role::Foreign, role);
            Ok((entry.path(), role))
        })
        .collect()
}

/// The size is read from the header: no program, no lock, and it works while QEMU has the file open.
fn qcow2_info(name: &str, path: PathBuf) -> Result<DiskInfo, StorageError> {
    let mut head = Vec::with_capacity(QCOW2_HEADER_BYTES);
    std::fs::File::open(&path)
        .and_then(|file| file.take(QCOW2_HEADER_BYTES as u64).read_to_end(&mut head))
        .map_err(StorageError::disk("reading", &path))?;
    let header = Qcow2Header::parse(&head).ok_or_else(|| StorageError::DiskRefused {
        name: name.to_owned(),
        why: format!(
            "{} is not a qcow2 file; restore it, or remove it to start anew",
            path.display()
        ),
    })?;
    Ok(DiskInfo {
        path,
        format: DiskFormat::Qcow2,
        virtual_mib: header.virtual_bytes.div_ceil(MIB) as i64,
    })
}

fn raw_info(path: PathBuf) -> Result<DiskInfo, StorageError> {
    let metadata = std::fs::metadata(&path).map_err(StorageError::disk("reading", &path))?;
    Ok(DiskInfo {
        path,
        format: DiskFormat::Raw,
        virtual_mib: metadata.len().div_ceil(MIB) as i64,
    })
}

/// The disk at `path` if it is there.
pub(super) async fn existing(name: &str, path: &Path) -> Result<Option<DiskInfo>, StorageError> {
    let (name, path) = (name.to_owned(), path.to_owned());
    blocking(move || {
        if !path
            .try_exists()
            .map_err(StorageError::disk("looking for", &path))?
        {
            return Ok(None);
        }
        if path.extension().is_none() {
            raw_info(path).map(Some)
        } else {
            qcow2_info(&name, path).map(Some)
        }
    })
    .await
}

/// Makes a qcow2 disk at `target`, empty or an overlay on `base`, of at least `size_mib`. Appears when complete.
pub(super) async fn make_qcow2(
    name: &str,
    target: &Path,
    base: Option<&CachedImage>,
    size_mib: i64,
    patterns: &Patterns,
) -> Result<DiskInfo, StorageError> {
    let dir = target.parent().unwrap_or(target);
    let wanted = u64::try_from(size_mib).unwrap_or(0) * MIB;
    let bytes = wanted
        .max(base.map_or(0, |base| base.virtual_bytes))
        .next_multiple_of(512);
    if bytes == 0 {
        return Err(StorageError::DiskRefused {
            name: name.to_owned(),
            why: "it has no size; give sizeMiB or an image".to_owned(),
        });
    }
    let temp = temp_in(dir)?;
    let base = base
        .map(|base| Ok((base.path.clone(), base.backing_format()?)))
        .transpose()?;
    let request = Request { base, bytes };
    let path = temp.to_path_buf();
    if let Some(pattern) = patterns.get(&request) {
        blocking(move || pattern.write(&path).map_err(StorageError::disk("writing", &path))).await?;
    } else {
        create_qcow2(name, &path, &request).await?;
        let made = blocking(move || Pattern::read(&path).map_err(StorageError::disk("reading", &path)));
        if let Some(pattern) = made.await? {
            patterns.keep(request, pattern);
        }
    }
    publish(temp, target.to_owned(), 0o600).await?;
    Ok(DiskInfo {
        path: target.to_owned(),
        format: DiskFormat::Qcow2,
        virtual_mib: bytes.div_ceil(MIB) as i64,
    })
}

async fn create_qcow2(name: &str, path: &Path, request: &Request) -> Result<(), StorageError> {
    let mut run = Run::new(QEMU_IMG).args(&["create", "-q", "-f", "qcow2"]);
    if let Some((base, format)) = &request.base {
        // -u: the base was inspected when it came, and its size is known; nothing needs to open it again.
        run = run.args(&["-u", "-F", format, "-b"]).arg(base);
    }
    run.arg(path)
        .arg(request.bytes.to_string())
        .output(&format!("making disk {name}"))
        .await
        .map(drop)
}

/// Enlarges a qcow2 disk that no domain has open; QEMU's lock refuses otherwise.
pub(super) async fn grow_qcow2(name: &str, path: &Path, size_mib: i64) -> Result<(), StorageError> {
    Run::new(QEMU_IMG)
        .args(&["resize", "-q", "-f", "qcow2"])
        .arg(path)
        .arg(format!("{size_mib}M"))
        .output(&format!("enlarging disk {name}"))
        .await
        .map(drop)
}

/// Removes what is ours in an Instance's directory; with `retain_disks`, all but the disks. Absent is success. Blocks.
pub(super) fn remove(files: &InstanceFiles, retain_disks: bool) -> Result<(), StorageError> {
    let mut left = false;
    for (path, role) in entries(&files.dir)? {
        let goes = match role {
            Role::Root | Role::RootImage | Role::Disk(_) => !retain_disks,
            Role::Seed | Role::Answers | Role::Temp => true,
            Role::Foreign => false,
        };
        if !goes {
            left = true;
            continue;
        }
        // A half-made root of a container has a directory beside it.
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        absent_is_success(removed).map_err(StorageError::disk("removing", &path))?;
    }
    if left {
        return Ok(());
    }
    absent_is_success(std::fs::remove_dir(&files.dir)).map_err(StorageError::disk("removing", &files.dir))
}

fn absent_is_success(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
