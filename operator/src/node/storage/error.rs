//! What can go wrong with images, disks and seeds, and what helps.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::node::files::FileError;

/// A failure of the storage of this host.
///
/// Cloneable, because every Instance that waits for one download gets its error. The texts say what was wrong and what
/// would be right; the cause, where there is one, is the source.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StorageError {
    /// The URL cannot be fetched by an agent at all.
    #[error("image URL {url:?} is refused: {why}; give an http://, https:// or file:// URL")]
    UrlRefused {
        /// The URL as given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// `file://` without the flag.
    #[error(
        "image URL {url} is refused: this host's agent does not allow files of the host as images; serve it by http(s), or start the agent with --allow-file-images"
    )]
    FileImagesNotAllowed {
        /// The URL.
        url: String,
    },
    /// The URL leads to the host itself, or to what serves it alone.
    #[error(
        "image URL {url} is refused: it leads to {address}, an address of the host itself or of services for it alone; serve it elsewhere, or start the agent with --image-source-allow {}",
        ipnet::IpNet::from(*address)
    )]
    SourceForbidden {
        /// The URL.
        url: String,
        /// Where it leads.
        address: IpAddr,
    },
    /// The server, or the disk, says that there is nothing under the URL.
    #[error("image URL {url} has no content: {answer}; correct the Image's URL or put the file there")]
    ImageNotFound {
        /// The URL.
        url: String,
        /// Status line, or that there is no such file.
        answer: String,
    },
    /// The server refuses, and will do so again.
    #[error("image URL {url} cannot be fetched: {answer}; it must be readable without a login")]
    FetchRefused {
        /// The URL.
        url: String,
        /// Status line or the like.
        answer: String,
    },
    /// A stored file has no content that this agent could get.
    #[error("{0}")]
    FileUnavailable(FileError),
    /// The network or the server failed; a later try may succeed.
    #[error("image URL {url} could not be fetched: {why}; tried again later")]
    DownloadFailed {
        /// The URL.
        url: String,
        /// What happened.
        why: String,
    },
    /// The content ended early.
    #[error(
        "image URL {url} ended after {got} bytes of {expected}: the copy on the server is truncated, or connections break"
    )]
    ImageTruncated {
        /// The URL.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that were announced.
        expected: u64,
    },
    /// The content is not what the Image declares.
    #[error("image URL {url} has sha256 {found}, the Image declares {expected}; correct one of them")]
    ChecksumMismatch {
        /// The URL.
        url: String,
        /// From the Image.
        expected: String,
        /// Of the content.
        found: String,
    },
    /// The content is of a kind that cannot be used so.
    #[error("image {image} cannot be used: {why}")]
    ImageFormatRefused {
        /// Name of the image, or of the file.
        image: String,
        /// What was found and what would be right.
        why: String,
    },
    /// No room on the file system of the data directory.
    #[error("no room in {}: {what} needs {need_mib} MiB, {free_mib} MiB are free, {keep_mib} MiB of them are kept free", path.display())]
    NoRoom {
        /// The directory.
        path: PathBuf,
        /// What was to be written.
        what: String,
        /// MiB that are needed.
        need_mib: u64,
        /// MiB that are free.
        free_mib: u64,
        /// MiB that the agent leaves free.
        keep_mib: u64,
    },
    /// A program is not installed.
    #[error("{tool} is not installed on this host; install the package {package}")]
    ToolMissing {
        /// The program.
        tool: &'static str,
        /// Debian's package.
        package: &'static str,
    },
    /// A program ended badly.
    #[error("{action} failed: {tool}: {why}")]
    ToolFailed {
        /// What was done.
        action: String,
        /// The program.
        tool: &'static str,
        /// The end of its standard error, or how it ended.
        why: String,
    },
    /// A file operation failed.
    #[error("{action} {} failed", path.display())]
    Disk {
        /// What was done, such as "writing".
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A request that makes no sense, such as a disk that shrinks.
    #[error("disk {name}: {why}")]
    DiskRefused {
        /// Name of the disk.
        name: String,
        /// What is wrong and what would be right.
        why: String,
    },
    /// Another agent uses the data directory.
    #[error("{} is in use by another node agent; end it, or give this one its own --data-dir", path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
}

impl StorageError {
    /// Whether a later try may succeed without anyone's edit.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::DownloadFailed { .. }
            | Self::ImageTruncated { .. }
            | Self::NoRoom { .. }
            | Self::ToolMissing { .. }
            | Self::ToolFailed { .. }
            | Self::Disk { .. } => true,
            Self::UrlRefused { .. }
            | Self::FileImagesNotAllowed { .. }
            | Self::SourceForbidden { .. }
            | Self::ImageNotFound { .. }
            | Self::FetchRefused { .. }
            | Self::FileUnavailable(_)
            | Self::ChecksumMismatch { .. }
            | Self::ImageFormatRefused { .. }
            | Self::DiskRefused { .. }
            | Self::InUse { .. } => false,
        }
    }

    /// One word for a condition's reason, an Event or a metric label; a closed set.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::UrlRefused { .. } => "ImageUrlRefused",
            Self::FileImagesNotAllowed { .. } => "FileImagesNotAllowed",
            Self::SourceForbidden { .. } => "ImageSourceForbidden",
            Self::ImageNotFound { .. } => "ImageNotFound",
            Self::FetchRefused { .. } => "DownloadRefused",
            Self::FileUnavailable(error) => error.reason(),
            Self::DownloadFailed { .. } => "DownloadFailed",
            Self::ImageTruncated { .. } => "ImageTruncated",
            Self::ChecksumMismatch { .. } => "ChecksumMismatch",
            Self::ImageFormatRefused { .. } => "ImageFormatRefused",
            Self::NoRoom { .. } => "NoRoom",
            Self::ToolMissing { .. } => "ToolMissing",
            Self::ToolFailed { .. } | Self::Disk { .. } => "DiskFailed",
            Self::DiskRefused { .. } => "DiskRefused",
            Self::InUse { .. } => "DataDirInUse",
        }
    }

    /// The message with its causes, for a condition.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// What the failure of a stored file means for whoever waits for its content.
    pub(super) fn of_file(url: &str, error: FileError) -> Self {
        match error {
            FileError::Unreadable(_, why) => Self::DownloadFailed {
                url: url.to_owned(),
                why,
            },
            FileError::NotFound(_)
            | FileError::Changed(_)
            | FileError::NoGateway(_)
            | FileError::TooLarge(..) => Self::FileUnavailable(error),
        }
    }

    /// Wraps a failed file operation.
    pub(super) fn disk(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Disk {
            action,
            path,
            source: Arc::new(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explain_walks_the_causes() {
        let error = StorageError::disk("writing", Path::new("/d/x"))(std::io::Error::other("media error"));
        assert_eq!(error.explain(), "writing /d/x failed: media error");
        assert_eq!(error.reason(), "DiskFailed");
        assert!(error.is_transient());
    }

    #[test]
    fn messages_name_the_thing_and_the_cure() {
        let not_allowed = StorageError::FileImagesNotAllowed {
            url: "file:///x".into(),
        };
        assert!(not_allowed.to_string().contains("--allow-file-images"));
        let room = StorageError::NoRoom {
            path: "/d".into(),
            what: "image i".into(),
            need_mib: 900,
            free_mib: 600,
            keep_mib: 512,
        };
        assert_eq!(
            room.to_string(),
            "no room in /d: image i needs 900 MiB, 600 MiB are free, 512 MiB of them are kept free"
        );
    }
}
