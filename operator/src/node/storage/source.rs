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
    /// Declared SHA-256; of a stored file, what the File says that it is.
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
        let sha256 = sha256.to_ascii_lowercase();
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
            scheme => match FileUrl::parse(url.trim()) {
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

    /// Equal for sources that give the same content: one download serves them all.
    pub(super) fn key(&self) -> &str {
        match (&self.location, &self.sha256) {
            // Its checksum is found out on the way, and others ask for its progress.
            (Location::Stored(_), _) | (_, None) => &self.url,
            (Location::Http(_) | Location::File(_), Some(sha256)) => sha256,
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

    #[test]
    fn urls() {
        for (url, sha256, allow_files, expected) in [
            (
                "https://example.org/a.qcow2",
                "",
                false,
                Ok("https://example.org/a.qcow2"),
            ),
            ("http://example.org/a#part", SHA, false, Ok(SHA)),
            (
                "file:///images/a%20b.qcow2",
                "",
                true,
                Ok("file:///images/a%20b.qcow2"),
            ),
            ("file:///images/a.qcow2", "", false, Err("FileImagesNotAllowed")),
            ("file://other/images/a.qcow2", "", true, Err("ImageUrlRefused")),
            (
                "virtshell://team/files/a",
                SHA,
                false,
                Ok("virtshell://team/files/a"),
            ),
            ("virtshell://team/images/a", "", true, Err("ImageUrlRefused")),
            ("ftp://example.org/a", "", true, Err("ImageUrlRefused")),
            ("/images/a.qcow2", "", true, Err("ImageUrlRefused")),
            ("", "", true, Err("ImageUrlRefused")),
            ("http://example.org/a", "abc", true, Err("ImageUrlRefused")),
        ] {
            let source = Source::new("i", url, sha256, allow_files);
            let got = source.as_ref().map(Source::key).map_err(StorageError::reason);
            assert_eq!(got, expected, "{url}");
        }
        let upper = Source::new("i", "http://x/", &SHA.to_uppercase(), false).unwrap();
        assert_eq!(upper.key(), SHA);
        let spaced = Source::new("i", "file:///images/a%20b.qcow2", "", true).unwrap();
        assert_eq!(spaced.location, Location::File("/images/a b.qcow2".into()));
    }
}
