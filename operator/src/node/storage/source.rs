//! Where content comes from: a URL and what it must hash to. Pure.

use std::path::PathBuf;

use reqwest::Url;
use sha2::{Digest, Sha256};
use virtshell_crds::file_ref::FileUrl;

use super::error::StorageError;
use super::layout::is_sha256;

/// Content to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    /// Name of the Image, for messages and the Host's list.
    pub name: String,
    /// As given, less the fragment.
    pub url: String,
    pub location: Location,
    /// Declared SHA-256; of a stored file, that with which it was named.
    pub sha256: Option<String>,
    /// What came of it is not kept for a later try.
    pub aside: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Location {
    Http(Url),
    /// A file of this host.
    File(PathBuf),
    /// A stored file.
    Stored(FileUrl),
}

impl Source {
    /// Checks URL and checksum; an empty `sha256` declares none.
    pub(super) fn new(name: &str, url: &str, sha256: &str, allow_files: bool) -> Result<Self, StorageError> {
        let refused = |why: String| StorageError::UrlRefused {
            url: url.to_owned(),
            why,
        };
        let mut parsed = Url::parse(url.trim()).map_err(|error| refused(error.to_string()))?;
        parsed.set_fragment(None);
        let stored = FileUrl::parse(url.trim());
        let declared = sha256.to_ascii_lowercase();
        let sha256 = match &stored {
            Some(file) if !declared.is_empty() && declared != file.sha256 => {
                return Err(StorageError::ChecksumMismatch {
                    url: url.to_owned(),
                    expected: declared,
                    found: file.sha256.clone(),
                });
            }
            Some(file) => file.sha256.clone(),
            None => declared,
        };
        if !sha256.is_empty() && !is_sha256(&sha256) {
            return Err(refused(format!(
                "its sha256 {sha256:?} is not 64 hexadecimal digits"
            )));
        }
        let location = match parsed.scheme() {
            "http" | "https" => Location::Http(parsed.clone()),
            "file" if !allow_files => {
                return Err(StorageError::FileImagesNotAllowed { url: url.to_owned() });
            }
            "file" => Location::File(
                parsed
                    .to_file_path()
                    .map_err(|()| refused("it names another host".to_owned()))?,
            ),
            scheme => match stored {
                Some(file) => Location::Stored(file),
                None => return Err(refused(format!("nothing here fetches {scheme}://"))),
            },
        };
        Ok(Self {
            name: name.to_owned(),
            url: parsed.into(),
            location,
            sha256: Some(sha256).filter(|s| !s.is_empty()),
            aside: false,
        })
    }

    /// Equal for those whom one download serves: they name the same URL, and expect the same of it.
    pub(super) fn key(&self) -> String {
        match &self.sha256 {
            // The URL has no fragment of its own.
            Some(sha256) => format!("{}#{sha256}", self.url),
            None => self.url.clone(),
        }
    }
}

/// The file name under which the content of a URL is remembered.
pub(super) fn url_key(url: &str) -> String {
    hex::encode(Sha256::digest(url.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHA: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    const OTHER: &str = "f123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const STORED: &str =
        "virtshell://team/files/a?sha256=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn urls() {
        let stored = format!("{STORED}#{SHA}");
        for (url, sha256, allow_files, expected) in [
            (
                "https://example.org/a.qcow2",
                "",
                false,
                Ok("https://example.org/a.qcow2"),
            ),
            (
                "http://example.org/a#part",
                SHA,
                false,
                Ok(&*format!("http://example.org/a#{SHA}")),
            ),
            (
                "file:///images/a%20b.qcow2",
                "",
                true,
                Ok("file:///images/a%20b.qcow2"),
            ),
            ("file:///images/a.qcow2", "", false, Err("FileImagesNotAllowed")),
            ("file://other/images/a.qcow2", "", true, Err("ImageUrlRefused")),
            (STORED, "", false, Ok(&stored)),
            (STORED, SHA, false, Ok(&stored)),
            (STORED, OTHER, false, Err("ChecksumMismatch")),
            ("virtshell://team/files/a", "", true, Err("ImageUrlRefused")),
            ("ftp://example.org/a", "", true, Err("ImageUrlRefused")),
            ("/images/a.qcow2", "", true, Err("ImageUrlRefused")),
            ("", "", true, Err("ImageUrlRefused")),
            ("http://example.org/a", "abc", true, Err("ImageUrlRefused")),
        ] {
            let source = Source::new("i", url, sha256, allow_files);
            let got = source.as_ref().map(Source::key).map_err(StorageError::reason);
            assert_eq!(got.as_deref().map_err(|reason| *reason), expected, "{url}");
        }
        let upper = Source::new("i", "http://x/", &SHA.to_uppercase(), false).unwrap();
        assert_eq!(upper.sha256.as_deref(), Some(SHA));
        let spaced = Source::new("i", "file:///images/a%20b.qcow2", "", true).unwrap();
        assert_eq!(spaced.location, Location::File("/images/a b.qcow2".into()));
    }
}
