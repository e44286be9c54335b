//! How requests name stored files: a uuid, a name, `folder/name`, or a complete URI. Pure.

/// The part of a file's name that counts: of a complete URI what follows `/files/` or `/file/` after the authority, else
/// all of it.
///
/// One or two slashes after the scheme are accepted: some clients and proxies fold them.
#[must_use]
pub fn path_of(reference: &str) -> &str {
    without_origin(reference).trim_matches('/')
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
