//! Root file systems of containers: ext4 images, because a container's disk has a size.
//!
//! An archive becomes a small ext4 image once per host; every container gets a copy (a clone where the host's file system
//! can) that is enlarged to its size. Filling an image takes `mke2fs -d` 1.0 s for a root of 270 MB and 12,000 files, a
//! copy and `resize2fs` together 0.3 s, so the unpacked tree is not kept. Seed files are written into the image by
//! debugfs: no mount, and no link inside can point outside.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::archive::{self, Bounds, Unpacked};
use super::error::StorageError;
use super::fetch::blocking;
use super::format::ImageFormat;
use super::layout::TEMP_PREFIX;
use super::room::RoomGuard;
use super::seed::{LXC_SEED_DIR, SeedFiles};
use super::tool::{CP, DEBUGFS, E2FSCK, MKE2FS, RESIZE2FS, Run};

const MIB: u64 = 1 << 20;
/// One inode for so many bytes: mke2fs's default for ext4.
const BYTES_PER_INODE: u64 = 16_384;
/// A journal of 16 MiB: a container's host may lose power, and 64 MiB (the default of big disks) would be most of it.
const JOURNAL_MIB: u64 = 16;

/// What a template is made of.
pub(super) struct Archive<'a> {
    /// Name of the image, for messages.
    pub image: &'a str,
    pub path: &'a Path,
    pub format: ImageFormat,
    pub max_bytes: u64,
}

/// Unpacks an archive and makes the template `target` of it, which appears when it is complete.
pub(super) async fn make_template(
    archive: &Archive<'_>,
    target: &Path,
    room: &RoomGuard,
) -> Result<(), StorageError> {
    let dir = parent(target);
    let tree = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempdir_in(dir)
        .map_err(StorageError::disk("making a directory in", dir))?;
    let files = tree.path().join("root");
    let unpacked = {
        let (image, path, format) = (archive.image.to_owned(), archive.path.to_owned(), archive.format);
        let (files, room, max_bytes) = (files.clone(), room.clone(), archive.max_bytes);
        blocking(move || {
            std::fs::create_dir(&files).map_err(StorageError::disk("making", &files))?;
            let bounds = Bounds {
                image: &image,
                max_bytes,
                room: &room,
            };
            let unpacked = archive::unpack(&path, format, &files, &bounds)?;
            prepare_tree(&files, &image)?;
            Ok(unpacked)
        })
        .await?
    };
    room.check(
        &format!("image {}, as a file system,", archive.image),
        unpacked.bytes,
    )?;
    let image = temp_in(dir)?;
    let geometry = Geometry::of(unpacked);
    Run::new(MKE2FS)
        .args(&["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"])
        .args(&[
            "-J",
            &format!("size={JOURNAL_MIB}"),
            "-N",
            &geometry.inodes.to_string(),
        ])
        .args(&["-E", "lazy_journal_init=1,root_owner=0:0"])
        .arg("-d")
        .arg(&files)
        .arg(image.as_os_str())
        .arg(format!("{}M", geometry.mib))
        .output(&format!("making a file system of image {}", archive.image))
        .await?;
    publish(image, target.to_owned(), 0o644).await
}

/// Size and inodes of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Geometry {
    mib: u64,
    inodes: u64,
}

impl Geometry {
    /// A tight fit, as containers grow from it and never shrink: files, a tenth for extents and directories, inode
    /// tables, the journal, and 16 MiB.
    fn of(unpacked: Unpacked) -> Self {
        let inodes = unpacked.members + unpacked.members / 4 + 1024;
        let tables = inodes * 256;
        let data = unpacked.bytes + unpacked.bytes / 10 + unpacked.members * 512;
        let mib = (data + tables).div_ceil(MIB) + JOURNAL_MIB + 16;
        Self {
            mib,
            inodes: inodes.max(mib * MIB / BYTES_PER_INODE),
        }
    }
}

/// Makes the directories that a seed needs and takes away what it replaces.
fn prepare_tree(root: &Path, image: &str) -> Result<(), StorageError> {
    for directory in ["etc", LXC_SEED_DIR.trim_start_matches('/')] {
        let mut at = root.to_owned();
        for part in Path::new(directory) {
            at.push(part);
            match std::fs::symlink_metadata(&at) {
                Ok(found) if found.is_dir() => {}
                Ok(_) => {
                    let inside = at.strip_prefix(root).unwrap_or(&at).display();
                    return Err(StorageError::ImageFormatRefused {
                        image: image.to_owned(),
                        why: format!("/{inside} in its root is not a directory"),
                    });
                }
                Err(_) => {
                    std::fs::create_dir(&at).map_err(StorageError::disk("making", &at))?;
                    let mode = std::fs::Permissions::from_mode(0o755);
                    std::fs::set_permissions(&at, mode).map_err(StorageError::disk("making", &at))?;
                }
            }
        }
    }
    let seed = root.join(LXC_SEED_DIR.trim_start_matches('/'));
    std::fs::remove_dir_all(&seed).map_err(StorageError::disk("emptying", &seed))?;
    std::fs::create_dir(&seed).map_err(StorageError::disk("making", &seed))?;
    let hostname = root.join("etc/hostname");
    match std::fs::remove_file(&hostname) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StorageError::disk("replacing", &hostname)(error))
        }
        _ => Ok(()),
    }
}

/// What a container's root gets beside the image's files.
pub(super) struct RootSeed {
    pub hostname: String,
    pub files: SeedFiles,
}

/// Copies a template to `target`, enlarges it to at least `size_mib` and writes the seed. Appears when complete.
pub(super) async fn make_root(
    template: &Path,
    target: &Path,
    size_mib: u64,
    seed: Option<&RootSeed>,
    room: &RoomGuard,
) -> Result<(), StorageError> {
    let dir = parent(target);
    let used = tokio::fs::metadata(template)
        .await
        .map_err(StorageError::disk("reading", template))?;
    let stored = std::os::unix::fs::MetadataExt::blocks(&used) * 512;
    room.check("a container's root", stored)?;
    let image = temp_in(dir)?;
    Run::new(CP)
        .args(&["--reflink=auto", "--sparse=auto"])
        .arg(template)
        .arg(image.as_os_str())
        .output("copying the root of the image")
        .await?;
    let bytes = size_mib * MIB;
    if bytes > used.len() {
        resize(&image, bytes).await?;
    }
    if let Some(seed) = seed {
        write_seed(&image, seed, dir).await?;
    }
    publish(image, target.to_owned(), 0o600).await
}

/// An empty ext4 file system; for containers without an image.
pub(super) async fn make_empty(target: &Path, size_mib: u64) -> Result<(), StorageError> {
    let image = temp_in(parent(target))?;
    Run::new(MKE2FS)
        .args(&["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"])
        .args(&[
            "-J",
            &format!("size={JOURNAL_MIB}"),
            "-E",
            "lazy_journal_init=1,root_owner=0:0",
        ])
        .arg(image.as_os_str())
        .arg(format!("{}M", size_mib.max(JOURNAL_MIB + 16)))
        .output("making an empty file system")
        .await?;
    publish(image, target.to_owned(), 0o600).await
}

/// Enlarges the file system of a container that does not run. May be repeated after a crash.
pub(super) async fn grow(image: &Path, size_mib: u64) -> Result<(), StorageError> {
    check(image).await?;
    resize(image, size_mib * MIB).await
}

/// resize2fs and debugfs want a checked file system, and a container that lost power leaves one to repair.
pub(super) async fn check(image: &Path) -> Result<(), StorageError> {
    // 1 = repaired.
    let check = Run::new(E2FSCK).args(&["-f", "-p"]).arg(image).accept(&[1]);
    check.output("checking the file system").await.map(drop)
}

async fn resize(image: &Path, bytes: u64) -> Result<(), StorageError> {
    let path = image.to_owned();
    blocking(move || {
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        file.and_then(|file| file.set_len(bytes))
            .map_err(StorageError::disk("enlarging", &path))
    })
    .await?;
    Run::new(RESIZE2FS)
        .arg(image)
        .output("enlarging the file system")
        .await?;
    Ok(())
}

async fn write_seed(image: &Path, seed: &RootSeed, dir: &Path) -> Result<(), StorageError> {
    let staging = tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempdir_in(dir)
        .map_err(StorageError::disk("making a directory in", dir))?;
    let put = |name: &str, text: &str, mode: u32| {
        let path = staging.path().join(name);
        std::fs::write(&path, text)
            .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)))
            .map_err(StorageError::disk("writing", &path))
    };
    put("hostname", &format!("{}\n", seed.hostname), 0o644)?;
    for (name, text) in &seed.files.files {
        // User data may hold secrets.
        put(name, text, 0o600)?;
    }
    let output = Run::new(DEBUGFS)
        .args(&["-w", "-f", "-"])
        .arg(image)
        .directory(staging.path())
        .input(seed_commands(&seed.files))
        .output("writing the seed")
        .await?;
    // debugfs ends well even when a command did not: a silent run has nothing but its version on standard error.
    let complaint = String::from_utf8_lossy(&output.stderr);
    let mut complaints = complaint.lines().filter(|line| !line.starts_with("debugfs "));
    match complaints.next() {
        None => Ok(()),
        Some(line) => Err(StorageError::ToolFailed {
            action: "writing the seed".to_owned(),
            tool: DEBUGFS.name,
            why: line.to_owned(),
        }),
    }
}

/// debugfs commands; the source files are in its working directory.
fn seed_commands(files: &SeedFiles) -> String {
    let seed = files
        .files
        .iter()
        .map(|(name, _)| format!("write {name} {LXC_SEED_DIR}/{name}\n"));
    std::iter::once("write hostname /etc/hostname\n".to_owned())
        .chain(seed)
        .collect()
}

/// Writes the seed of a container that does not run anew, over whatever its guest made of the old one.
pub(super) async fn replace_seed(image: &Path, seed: &RootSeed, dir: &Path) -> Result<(), StorageError> {
    check(image).await?;
    let mut missing = Vec::new();
    for dir in seed_dirs() {
        if !has(image, dir).await? {
            missing.push(dir);
        }
    }
    // What is not there cannot be removed: that complaint is no failure. What is wrong in earnest fails the writing.
    Run::new(DEBUGFS)
        .args(&["-w", "-f", "-"])
        .arg(image)
        .input(clearing_commands(&seed.files, &missing))
        .output("removing the old seed")
        .await?;
    write_seed(image, seed, dir).await
}

/// The directories that a seed needs, outer ones first.
fn seed_dirs() -> Vec<&'static Path> {
    let above = Path::new(LXC_SEED_DIR)
        .ancestors()
        .filter(|dir| dir.parent().is_some());
    let mut dirs: Vec<_> = above.chain([Path::new("/etc")]).collect();
    dirs.sort_by_key(|dir| dir.components().count());
    dirs
}

async fn has(image: &Path, dir: &Path) -> Result<bool, StorageError> {
    let asked = Run::new(DEBUGFS)
        .arg("-R")
        .arg(format!("stat {}", dir.display()))
        .arg(image)
        .output("looking for the old seed")
        .await?;
    Ok(String::from_utf8_lossy(&asked.stdout).contains("Type: directory"))
}

/// debugfs commands that make room for [`seed_commands`].
///
/// Only `missing` directories are made: debugfs writes a directory that is there already into a block that it does not
/// mark as used, and damages what gets that block next.
fn clearing_commands(files: &SeedFiles, missing: &[&Path]) -> String {
    let made = missing.iter().map(|dir| format!("mkdir {}\n", dir.display()));
    let removed = files
        .files
        .iter()
        .map(|(name, _)| format!("rm {LXC_SEED_DIR}/{name}\n"));
    made.chain(["rm /etc/hostname\n".to_owned()])
        .chain(removed)
        .collect()
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// A name for a half-made file in `dir`; the file goes when the name is dropped.
pub(super) fn temp_in(dir: &Path) -> Result<tempfile::TempPath, StorageError> {
    tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempfile_in(dir)
        .map(tempfile::NamedTempFile::into_temp_path)
        .map_err(StorageError::disk("making a file in", dir))
}

/// Makes a finished file durable and gives it its name.
pub(super) async fn publish(
    temp: tempfile::TempPath,
    target: std::path::PathBuf,
    mode: u32,
) -> Result<(), StorageError> {
    blocking(move || {
        let file = std::fs::File::open(&temp).map_err(StorageError::disk("reading", &temp))?;
        file.set_permissions(std::fs::Permissions::from_mode(mode))
            .and_then(|()| file.sync_all())
            .map_err(StorageError::disk("writing", &temp))?;
        temp.persist(&target)
            .map_err(|error| StorageError::disk("naming", &target)(error.error))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn geometry_has_room_for_what_was_unpacked() {
        let small = Geometry::of(Unpacked {
            bytes: 10 * MIB,
            members: 100,
        });
        assert_eq!(
            small,
            Geometry {
                mib: 44,
                inodes: 2816
            }
        );
        let many = Geometry::of(Unpacked {
            bytes: 0,
            members: 1_000_000,
        });
        assert!(many.inodes > 1_000_000 && many.mib > 300, "{many:?}");
    }

    #[test]
    fn commands_name_only_files_of_ours() {
        let files = SeedFiles {
            files: vec![("meta-data", "x".into())],
        };
        assert_eq!(
            seed_commands(&files),
            "write hostname /etc/hostname\nwrite meta-data /var/lib/cloud/seed/nocloud/meta-data\n"
        );
        let dirs = seed_dirs();
        let names: Vec<_> = dirs.iter().map(|dir| dir.to_str().unwrap()).collect();
        let outer = [
            "/var",
            "/etc",
            "/var/lib",
            "/var/lib/cloud",
            "/var/lib/cloud/seed",
        ];
        assert_eq!(names, [&outer[..], &["/var/lib/cloud/seed/nocloud"]].concat());
        assert_eq!(
            clearing_commands(&files, &dirs[3..5]),
            "mkdir /var/lib/cloud\nmkdir /var/lib/cloud/seed\nrm /etc/hostname\n\
             rm /var/lib/cloud/seed/nocloud/meta-data\n"
        );
    }

    #[test]
    fn a_tree_gets_the_directories_of_a_seed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("etc/hostname")).unwrap();
        prepare_tree(dir.path(), "i").unwrap();
        assert!(dir.path().join("var/lib/cloud/seed/nocloud").is_dir());
        assert!(std::fs::symlink_metadata(dir.path().join("etc/hostname")).is_err());
        assert!(Path::new("/etc/hostname").exists(), "the host's own is untouched");
    }

    #[test]
    fn a_link_where_a_seed_goes_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("var")).unwrap();
        let error = prepare_tree(dir.path(), "i").expect_err("a link");
        assert!(error.to_string().contains("/var in its root"), "{error}");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
