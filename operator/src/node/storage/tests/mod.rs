//! The storage as a whole: real files, real programs, a real HTTP server on the loopback.

mod disks;
mod downloads;
mod evict;
mod images;
mod parts;
mod roots;
mod server;
mod speed;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use virtshell_crds::image::ImageType;
use virtshell_crds::instance::ResolvedImage;

use super::{Options, Retry, Storage, StorageError, Web};
use crate::node::files::Files;

pub(super) const UID: &str = "8f0c21d4-0000-4000-8000-000000000001";

/// A storage of its own, removed with everything in it when dropped.
pub(super) struct Bench {
    pub dir: TempDir,
    pub options: Options,
    /// The host's own network that images may come from.
    pub allowed: &'static str,
}

impl Bench {
    pub fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            dir: tempfile::tempdir().unwrap(),
            allowed: "127.0.0.1/32",
            options: Options {
                allow_file_images: true,
                min_free_mib: 1,
                retry: Retry {
                    failures: 4,
                    delay: Duration::from_millis(5),
                },
                ..Options::default()
            },
        }
    }

    pub fn open(&self) -> Storage {
        self.try_open().unwrap()
    }

    pub fn try_open(&self) -> Result<Storage, StorageError> {
        let web = Web::new(vec![self.allowed.parse().unwrap()]).unwrap();
        Storage::open(&self.data(), self.options, web, Arc::new(Files::nowhere()))
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// A file beside the data directory.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// Names in a directory of the storage, sorted.
    pub fn names(&self, dir: &str) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.data().join(dir))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Fails when a failed fetch left anything.
    pub fn assert_nothing_cached(&self) {
        for dir in ["images", "urls", "roots", "parts"] {
            assert_eq!(self.names(dir), Vec::<String>::new(), "{dir}");
        }
    }
}

pub(super) fn image(type_: ImageType, url: &str) -> ResolvedImage {
    ResolvedImage {
        name: "i".into(),
        type_,
        url: url.into(),
        sha256: String::new(),
        boot: None,
        timezone: String::new(),
        ssh_key: String::new(),
        preseed_url: String::new(),
    }
}

pub(super) fn disk_image(url: &str) -> ResolvedImage {
    image(ImageType::Disk, url)
}

pub(super) fn file_url(path: &Path) -> String {
    reqwest::Url::from_file_path(path).unwrap().into()
}

pub(super) fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

/// Bytes without a pattern or a magic, always the same.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Runs a program that must succeed; its standard output.
pub(super) fn run(program: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}
