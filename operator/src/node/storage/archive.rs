//! Unpacks an untrusted root file system archive without leaving its directory.
//!
//! The archive is read by the `tar` crate rather than by GNU tar: every member is judged before it is written (size,
//! number, kind, path), which a program's flags cannot express. It strips a leading `/`, and checks for each member that
//! the directory it goes to is really inside, symbolic links followed. Decompression, where parsers of foreign formats
//! live, is done by child processes under limits. Device nodes, FIFOs and sockets are left out: libvirt gives a container
//! its own `/dev`. Owners and groups are kept by number, as root.

use std::io::Read;
use std::path::{Component, Path};
use std::process::{Child, Stdio};

use tar::EntryType;

use super::error::StorageError;
use super::format::ImageFormat;
use super::room::RoomGuard;
use super::tool::{self, GZIP, Limits, Run, Tool, XZ, ZSTD};

/// Memory and time of a decompressor. 1 GiB: xz -9 needs 65 MiB, zstd's longest window 128 MiB.
const LIMITS: Limits = Limits {
    memory: 1 << 30,
    cpu: 900,
};
/// More members than any root file system has.
const MAX_MEMBERS: u64 = 2_000_000;
/// How many unpacked bytes may come between two looks at the room that is left.
const ROOM_EVERY: u64 = 64 << 20;

/// What an archive held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Bytes that the files need on disk, in whole blocks.
    pub bytes: u64,
    pub members: u64,
}

/// Bounds of one unpacking.
pub(super) struct Bounds<'a> {
    pub image: &'a str,
    pub max_bytes: u64,
    pub room: &'a RoomGuard,
}

/// Unpacks `archive` into the empty directory `root`. Blocks.
pub(super) fn unpack(
    archive: &Path,
    format: ImageFormat,
    root: &Path,
    bounds: &Bounds<'_>,
) -> Result<Unpacked, StorageError> {
    let file = std::fs::File::open(archive).map_err(StorageError::disk("reading", archive))?;
    let Some(tool) = decompressor(format) else {
        return unpack_tar(file, root, bounds);
    };
    let mut child = Decompressor::start(tool, file)?;
    let unpacked = unpack_tar(child.output(), root, bounds);
    match (unpacked, child.finish()) {
        // A decompressor that stopped early makes the archive look short: its own words are the better ones.
        (_, Err(why)) => Err(refused(bounds.image, &why)),
        (unpacked, Ok(())) => unpacked,
    }
}

const fn decompressor(format: ImageFormat) -> Option<Tool> {
    match format {
        ImageFormat::Gzip => Some(GZIP),
        ImageFormat::Xz => Some(XZ),
        ImageFormat::Zstd => Some(ZSTD),
        ImageFormat::Tar | ImageFormat::Qcow2 | ImageFormat::Raw | ImageFormat::Iso => None,
    }
}

/// A decompressor that runs; ended when dropped.
struct Decompressor {
    child: Child,
    tool: Tool,
}

impl Decompressor {
    fn start(tool: Tool, input: std::fs::File) -> Result<Self, StorageError> {
        let mut command = Run::new(tool)
            .args(&["-d", "-c"])
            .limits(LIMITS)
            .command()
            .into_std();
        let child = command
            .stdin(Stdio::from(input))
            .spawn()
            .map_err(|_| tool::missing(tool::PRLIMIT))?;
        Ok(Self { child, tool })
    }

    fn output(&mut self) -> impl Read + use<> {
        let pipe: Box<dyn Read> = match self.child.stdout.take() {
            Some(pipe) => Box::new(pipe),
            None => Box::new(std::io::empty()),
        };
        pipe
    }

    fn finish(mut self) -> Result<(), String> {
        let mut text = String::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            let _ = pipe.by_ref().take(4096).read_to_string(&mut text);
        }
        let status = self.child.wait().map_err(|error| error.to_string())?;
        // Our side closed the pipe: it refused a member, and has said so, or saw the archive's end.
        let broken_pipe = std::os::unix::process::ExitStatusExt::signal(&status) == Some(13);
        if status.success() || broken_pipe || text.contains("Broken pipe") {
            return Ok(());
        }
        let text = text.trim();
        let why = if text.is_empty() {
            status.to_string()
        } else {
            text.to_owned()
        };
        Err(format!("{} cannot decompress it: {why}", self.tool.name))
    }
}

impl Drop for Decompressor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unpack_tar(reader: impl Read, root: &Path, bounds: &Bounds<'_>) -> Result<Unpacked, StorageError> {
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_unpack_xattrs(true);
    archive.set_preserve_ownerships(nix::unistd::geteuid().is_root());
    let damaged =
        |error: std::io::Error| refused(bounds.image, &format!("it is no complete tar archive: {error}"));
    let mut unpacked = Unpacked::default();
    let mut room_checked_at = 0;
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        match judge(&path, entry.header().entry_type()) {
            Verdict::Take => {}
            Verdict::LeaveOut => continue,
            Verdict::Refuse(why) => {
                return Err(refused(
                    bounds.image,
                    &format!("its member {} {why}", path.display()),
                ));
            }
        }
        unpacked.members += 1;
        unpacked.bytes = unpacked
            .bytes
            .saturating_add(entry.size().saturating_add(4095) & !4095);
        if unpacked.members > MAX_MEMBERS || unpacked.bytes > bounds.max_bytes {
            let why = format!(
                "it unpacks to more than {} MiB or {MAX_MEMBERS} files",
                bounds.max_bytes >> 20
            );
            return Err(refused(bounds.image, &why));
        }
        if unpacked.bytes - room_checked_at > ROOM_EVERY {
            bounds
                .room
                .check(&format!("image {}, unpacked,", bounds.image), entry.size())?;
            room_checked_at = unpacked.bytes;
        }
        let inside = entry
            .unpack_in(root)
            .map_err(|error| unpack_failed(&path, bounds, &error))?;
        if !inside {
            return Err(refused(
                bounds.image,
                &format!("its member {} leaves the root", path.display()),
            ));
        }
    }
    if unpacked.members == 0 {
        return Err(refused(bounds.image, "the archive is empty"));
    }
    Ok(unpacked)
}

/// Members that become files. The tar crate applies long names and extended headers before it shows a member.
const TAKEN: [EntryType; 6] = [
    EntryType::Regular,
    EntryType::Continuous,
    EntryType::GNUSparse,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Link,
];
const LEFT_OUT: [EntryType; 4] = [
    EntryType::Char,
    EntryType::Block,
    EntryType::Fifo,
    EntryType::XGlobalHeader,
];

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Take,
    LeaveOut,
    Refuse(&'static str),
}

fn judge(path: &Path, kind: EntryType) -> Verdict {
    if path.components().any(|part| part == Component::ParentDir) {
        return Verdict::Refuse("leaves the root by `..`");
    }
    if TAKEN.contains(&kind) {
        Verdict::Take
    } else if LEFT_OUT.contains(&kind) {
        Verdict::LeaveOut
    } else {
        Verdict::Refuse("is of a kind that no file system has")
    }
}

/// Tells a full disk from an archive that wants out or is short.
fn unpack_failed(path: &Path, bounds: &Bounds<'_>, error: &std::io::Error) -> StorageError {
    let cause = root_cause(error);
    let disk_is_full = cause.contains("No space left") || cause.contains("Disk quota exceeded");
    if disk_is_full {
        let what = format!("image {}, unpacked,", bounds.image);
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        return bounds.room.write_error(&what, path, full);
    }
    refused(
        bounds.image,
        &format!("its member {} cannot be unpacked: {cause}", path.display()),
    )
}

fn root_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

fn refused(image: &str, why: &str) -> StorageError {
    StorageError::ImageFormatRefused {
        image: image.to_owned(),
        why: format!("{why}; a root file system archive is a tar, tar.gz, tar.xz or tar.zst"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn bounds(room: &RoomGuard) -> Bounds<'_> {
        Bounds {
            image: "i",
            max_bytes: 1 << 20,
            room,
        }
    }

    fn guard(dir: &Path) -> RoomGuard {
        RoomGuard {
            path: dir.to_owned(),
            keep_mib: 0,
        }
    }

    /// A header whose name is not checked, as an attacker writes it.
    fn header(name: &str, kind: EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        header
    }

    fn link(name: &str, kind: EntryType, target: &str) -> tar::Header {
        let mut header = header(name, kind, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        header
    }

    fn archive(members: &[(tar::Header, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (header, content) in members {
            builder.append(header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn nothing_leaves_the_root() {
        let file = |name: &str| header(name, EntryType::Regular, 1);
        for (rule, members) in [
            ("parent", vec![(file("../escaped"), &b"x"[..])]),
            ("parent in the middle", vec![(file("a/../../escaped"), b"x")]),
            (
                "through a symbolic link",
                vec![
                    (link("out", EntryType::Symlink, "../"), b""),
                    (file("out/escaped"), b"x"),
                ],
            ),
            (
                "through an absolute link",
                vec![
                    (link("out", EntryType::Symlink, "/tmp"), b""),
                    (file("out/virtshell-escaped"), b"x"),
                ],
            ),
            (
                "hard link to a file outside",
                vec![(link("passwd", EntryType::Link, "/etc/passwd"), b"")],
            ),
            (
                "hard link upwards",
                vec![(link("passwd", EntryType::Link, "../secret"), b"")],
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("secret"), "s").unwrap();
            let root = dir.path().join("root");
            std::fs::create_dir(&root).unwrap();
            let tar = archive(&members);
            let error = unpack_tar(&tar[..], &root, &bounds(&guard(dir.path()))).expect_err(rule);
            assert_eq!(error.reason(), "ImageFormatRefused", "{rule}: {error}");
            assert!(!dir.path().join("escaped").exists(), "{rule}");
            assert!(!Path::new("/tmp/virtshell-escaped").exists(), "{rule}");
            assert!(!root.join("passwd").exists(), "{rule}");
        }
    }

    #[test]
    fn absolute_names_stay_inside_and_devices_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let tar = archive(&[
            (header("/etc-file", EntryType::Regular, 1), b"x"),
            (header("dev-null", EntryType::Char, 0), b""),
            (header("pipe", EntryType::Fifo, 0), b""),
            (link("abs", EntryType::Symlink, "/usr/lib"), b""),
            (link("same", EntryType::Link, "etc-file"), b""),
        ]);
        let unpacked = unpack_tar(&tar[..], dir.path(), &bounds(&guard(dir.path()))).unwrap();
        assert_eq!(
            unpacked,
            Unpacked {
                bytes: 4096,
                members: 3
            }
        );
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["abs", "etc-file", "same"]);
    }

    #[test]
    fn bombs_and_broken_archives() {
        let big = header("big", EntryType::Regular, 2 << 20);
        let content = vec![7; 2 << 20];
        let whole = archive(&[(big, &content)]);
        for (rule, bytes, word) in [
            ("more than allowed", &whole[..], "more than 1 MiB"),
            ("no tar", &content[..], "no complete tar"),
            ("empty", &[0; 1024][..], "empty"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let error = unpack_tar(bytes, dir.path(), &bounds(&guard(dir.path()))).expect_err(rule);
            assert!(error.to_string().contains(word), "{rule}: {error}");
        }
    }

    #[test]
    fn every_compression_is_read_and_damage_is_named() {
        let tar = archive(&[(header("file", EntryType::Regular, 5), b"hello")]);
        for (tool, format) in [
            ("gzip", ImageFormat::Gzip),
            ("xz", ImageFormat::Xz),
            ("zstd", ImageFormat::Zstd),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let plain = dir.path().join("a.tar");
            std::fs::write(&plain, &tar).unwrap();
            let out = std::process::Command::new(tool).arg("-c").arg(&plain).output();
            let packed = out.expect("the compressor is installed").stdout;
            let path = dir.path().join("a");
            std::fs::File::create(&path).unwrap().write_all(&packed).unwrap();
            let tree = dir.path().join("root");
            std::fs::create_dir(&tree).unwrap();
            let room = guard(dir.path());
            unpack(&path, format, &tree, &bounds(&room)).expect(tool);
            assert_eq!(std::fs::read_to_string(tree.join("file")).unwrap(), "hello");
            std::fs::write(&path, &packed[..packed.len() / 2]).unwrap();
            let error = unpack(&path, format, &tree, &bounds(&room)).expect_err(tool);
            assert_eq!(error.reason(), "ImageFormatRefused", "{tool}: {error}");
        }
    }
}
