//! What a File object holds. Pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::ResourceExt;
use sha2::{Digest, Sha256};
use virtshell_crds::File;

/// Where the content of a File is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Here.
    Inline(Vec<u8>),
    /// With the gateway.
    Blob,
}

/// The name to show.
#[must_use]
pub fn shown(file: &File) -> String {
    file.spec.display_name.clone().unwrap_or_else(|| file.name_any())
}

/// Where the content of a File is; the error says what is wrong with what it holds.
pub fn content(file: &File) -> Result<Content, String> {
    match &file.spec.content.inline {
        None => Ok(Content::Blob),
        Some(text) => STANDARD
            .decode(text)
            .map(Content::Inline)
            .map_err(|error| format!("its content is not base64: {error}")),
    }
}

/// SHA-256 of the content of a File, whatever the File says of it; `None` when it has none.
#[must_use]
pub fn sha256(file: &File) -> Option<String> {
    match content(file).ok()? {
        Content::Inline(bytes) => Some(hex::encode(Sha256::digest(bytes))),
        Content::Blob => file.spec.content.blob.clone(),
    }
}

#[cfg(test)]
mod tests {
    use virtshell_crds::{FileContent, FileSpec};

    use super::*;

    #[test]
    fn where_the_content_is() {
        let file = |inline: Option<&str>| {
            let spec = FileSpec {
                content: FileContent {
                    inline: inline.map(str::to_owned),
                    blob: inline.is_none().then(|| "0".repeat(64)),
                },
                ..FileSpec::default()
            };
            File::new("object-name", spec)
        };
        assert_eq!(content(&file(Some("aGk="))), Ok(Content::Inline(b"hi".to_vec())));
        assert_eq!(content(&file(Some(""))), Ok(Content::Inline(vec![])));
        assert_eq!(content(&file(None)), Ok(Content::Blob));
        let why = content(&file(Some("a"))).unwrap_err();
        assert!(why.starts_with("its content is not base64"), "{why}");
        assert_eq!(sha256(&file(None)), Some("0".repeat(64)));
        assert_eq!(sha256(&file(Some("a"))), None);
        let hi = "8f434346648f6b96df89dda901c5176b10a6d83961dd3c1ac88b59b2dc327aa4";
        assert_eq!(sha256(&file(Some("aGk="))), Some(hi.to_owned()));
    }
}
