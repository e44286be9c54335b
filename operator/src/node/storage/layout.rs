//! Where files are: pure paths, and the rule which names are ours.
//!
//! ```text
//! DATA_DIR/lock                    held while an agent runs
//! DATA_DIR/images/<sha256>         content, as fetched
//! DATA_DIR/images/<sha256>.json    what it is
//! DATA_DIR/urls/<key>.json         which content a URL gave
//! DATA_DIR/roots/<sha256>.img      an archive as a small ext4 file system, copied for every container
//! DATA_DIR/parts/<key>             a download under way; <key>.json: where from, and how much of it is certain
//! DATA_DIR/vm/<uid>/               root.qcow2 | root, seed.iso, answers.iso, disk-<name>.qcow2
//! ```
//!
//! The names on the way to a container's root are short on purpose: libvirt takes loop device files of at most 63
//! characters ([`LOOP_PATH`]), which `/var/lib/virtshell/vm/<uid>/root` just fits.
//!
//! A finished file appears under its name by rename; until then it has a name that starts with [`TEMP_PREFIX`].

use std::path::{Path, PathBuf};

/// Start of the name of every half-made file; what an interrupted run left is removed by it.
pub(super) const TEMP_PREFIX: &str = ".tmp-";

/// Start of the name of a disk that is being copied: libvirt may have it open.
pub(in crate::node) const COPY_PREFIX: &str = ".tmp-copy-";

/// Longest path of a loop device's file in libvirt, from the kernel's `LO_NAME_SIZE` (64 with the closing zero).
pub(super) const LOOP_PATH: usize = 63;

/// Files of one Instance. Only names: whether they exist is for [`super::Storage::observe`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceFiles {
    /// The directory of the Instance.
    pub dir: PathBuf,
    /// Root disk of a virtual machine, qcow2.
    pub root_qcow2: PathBuf,
    /// Root file system of a container, an ext4 image.
    pub root_image: PathBuf,
    /// The NoCloud seed.
    pub seed: PathBuf,
    /// The answer file of an unattended installation.
    pub answers: PathBuf,
}

impl InstanceFiles {
    /// Paths for an Instance's uid under the data directory.
    #[must_use]
    pub fn new(data_dir: &Path, uid: &str) -> Self {
        let dir = data_dir.join("vm").join(uid);
        Self {
            root_qcow2: dir.join(disk_file_name("root")),
            root_image: dir.join("root"),
            seed: dir.join("seed.iso"),
            answers: dir.join("answers.iso"),
            dir,
        }
    }

    /// An additional disk, qcow2.
    #[must_use]
    pub fn disk(&self, name: &str) -> PathBuf {
        self.dir.join(disk_file_name(name))
    }
}

/// File name of a virtual machine's disk: root, or one by name.
#[must_use]
pub fn disk_file_name(name: &str) -> String {
    match name {
        "root" => "root.qcow2".to_owned(),
        name => format!("disk-{name}.qcow2"),
    }
}

/// Where links to container roots with long paths are.
pub(super) const LINKS: &str = "/run/virtshell";

/// The link to a container's root.
pub(super) fn short_link(uid: &str) -> PathBuf {
    Path::new(LINKS).join(uid)
}

/// What a file name in an Instance's directory stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Root,
    RootImage,
    Seed,
    Answers,
    Disk(String),
    Temp,
    /// Not ours: never touched.
    Foreign,
}

pub(super) fn role(file_name: &str) -> Role {
    match file_name {
        "root.qcow2" => Role::Root,
        "root" => Role::RootImage,
        "seed.iso" => Role::Seed,
        "answers.iso" => Role::Answers,
        _ if file_name.starts_with(TEMP_PREFIX) => Role::Temp,
        _ => file_name
            .strip_prefix("disk-")
            .and_then(|rest| rest.strip_suffix(".qcow2"))
            .filter(|name| is_disk_name(name))
            .map_or(Role::Foreign, |name| Role::Disk(name.to_owned())),
    }
}

/// A uid that can be a directory name: letters, digits, `-`, 1 to 64 of them.
pub(super) fn is_uid(uid: &str) -> bool {
    (1..=64).contains(&uid.len()) && uid.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A disk name of the API: 1 to 32 lower-case letters, digits, `-`.
pub(super) fn is_disk_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A lower-case hexadecimal SHA-256.
pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_file_names() {
        for (name, expected) in [
            ("root.qcow2", Role::Root),
            ("root", Role::RootImage),
            ("seed.iso", Role::Seed),
            ("answers.iso", Role::Answers),
            ("disk-data.qcow2", Role::Disk("data".into())),
            ("disk-.qcow2", Role::Foreign),
            ("disk-UP.qcow2", Role::Foreign),
            (".tmp-a1", Role::Temp),
            ("notes.txt", Role::Foreign),
        ] {
            assert_eq!(role(name), expected, "{name}");
        }
    }

    #[test]
    fn names_that_are_no_path_components_are_refused() {
        for uid in ["", ".", "..", "a/b", "a b", "../../etc"] {
            assert!(!is_uid(uid), "{uid}");
            assert!(!is_disk_name(uid), "{uid}");
        }
        assert!(is_uid("8f0c21d4-0000-4000-8000-000000000001"));
    }
}
