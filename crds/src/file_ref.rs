//! How stored files are named: by clients a uuid, a name, `folder/name` or a complete URI; in the values that an Instance
//! was created with, a [`FileUrl`]. Pure.

use percent_encoding::percent_decode_str;

/// A File as the source of content, as it was when it was named: `virtshell://NAMESPACE/files/METADATA-NAME?sha256=HEX`.
///
/// The controller puts it where an Image or an Instance has a URL that leads to a file of the gateway. Nobody else may write
/// one: whether the file may be read was decided then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileUrl {
    /// Namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
    /// SHA-256 of its content, lower-case hexadecimal.
    pub sha256: String,
}

impl FileUrl {
    /// What they begin with.
    pub const SCHEME: &str = "virtshell://";

    /// Reads one; `None` for every other URL.
    ///
    /// ```
    /// use virtshell_crds::file_ref::FileUrl;
    /// let file = FileUrl::parse("virtshell://team/files/my-cnf?sha256=e3b0c4").unwrap();
    /// assert_eq!((file.namespace.as_str(), file.name.as_str(), file.sha256.as_str()), ("team", "my-cnf", "e3b0c4"));
    /// assert_eq!(file.to_string(), "virtshell://team/files/my-cnf?sha256=e3b0c4");
    /// assert_eq!(FileUrl::parse("https://example.org/files/my-cnf?sha256=e3b0c4"), None);
    /// assert_eq!(FileUrl::parse("virtshell://team/files/a/b?sha256=e3b0c4"), None);
    /// assert_eq!(FileUrl::parse("virtshell://team/files/my-cnf"), None);
    /// ```
    #[must_use]
    pub fn parse(url: &str) -> Option<Self> {
        let (path, sha256) = url.strip_prefix(Self::SCHEME)?.split_once("?sha256=")?;
        let (namespace, name) = path.split_once("/files/")?;
        let is_name = |text: &str| !text.is_empty() && !text.contains('/');
        (is_name(namespace) && is_name(name)).then(|| Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            sha256: sha256.to_owned(),
        })
    }
}

impl std::fmt::Display for FileUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            namespace,
            name,
            sha256,
        } = self;
        write!(f, "{}{namespace}/files/{name}?sha256={sha256}", Self::SCHEME)
    }
}

/// The part of a file's name that counts: of a complete URI what follows `/files/` or `/file/` after the authority, else
/// all of it.
///
/// One or two slashes after the scheme are accepted: some clients and proxies fold them.
#[must_use]
pub fn path_of(reference: &str) -> &str {
    without_origin(reference).trim_matches('/')
}

/// What a URL with a host names of the files of a gateway, if that is a gateway's: its path as [`path_of`] reads it, decoded,
/// without query and fragment.
///
/// ```
/// use virtshell_crds::file_ref::file_of;
/// assert_eq!(file_of("https://gw/api/virtshell/v1/files/a%20b/c?x#y").as_deref(), Some("a b/c"));
/// assert_eq!(file_of("https://gw/images/c"), None);
/// assert_eq!(file_of("files/c"), None);
/// ```
#[must_use]
pub fn file_of(url: &str) -> Option<String> {
    let url = url.trim();
    let path = path_of(url);
    if !url.contains("://") || path.contains("://") {
        return None;
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let name = decoded.trim_matches('/');
    (!name.is_empty()).then(|| name.to_owned())
}

fn without_origin(reference: &str) -> &str {
    let Some((scheme, rest)) = reference.split_once(":/") else {
        return reference;
    };
    if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        return reference;
    }
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    let Some(authority_end) = rest.find('/') else {
        return reference;
    };
    let path = &rest[authority_end..];
    let marks = ["/files/", "/file/"]
        .into_iter()
        .filter_map(|mark| Some((path.find(mark)?, mark.len())));
    match marks.min() {
        Some((at, length)) => &path[at + length..],
        None => reference,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_of_a_reference() {
        for (reference, expected) in [
            ("my.cnf", "my.cnf"),
            ("mysql/my.cnf", "mysql/my.cnf"),
            (
                "72c05559-0590-4da6-be56-28ab36cb669c",
                "72c05559-0590-4da6-be56-28ab36cb669c",
            ),
            ("http://h:1/api/virtshell/v1/files/a/b", "a/b"),
            ("http:/h:1/api/virtshell/v1/files/a/b", "a/b"),
            ("https://<host>:<port>/api/virtshell/v1/files/b", "b"),
            ("HTTPS://h/files/b", "b"),
            ("http://h/file/b", "b"),
            ("http://h/files/file/b", "file/b"),
            ("http://h/file/files/b", "files/b"),
            ("http://files/files/b", "b"),
            ("http://h/static/files/b", "b"),
            ("http://h/other/b", "http://h/other/b"),
            ("http://h", "http://h"),
            ("ftp://h/files/b", "ftp://h/files/b"),
            ("a:/files/b", "a:/files/b"),
            ("/a/", "a"),
            ("", ""),
        ] {
            assert_eq!(path_of(reference), expected, "{reference}");
        }
    }
}
