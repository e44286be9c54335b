//! Variables for a builder, from a stored file.

use std::collections::BTreeMap;

use virtshell_crds::file_ref::FileUrl;

use crate::node::files::Files;

/// The largest file of variables, in bytes: as much as an Instance may have in its spec.
const LARGEST: u64 = 1 << 20;

/// Reads them; the error says what is wrong with the file.
pub async fn read(files: &Files, url: &str) -> Result<BTreeMap<String, String>, String> {
    let at = FileUrl::parse(url).ok_or_else(|| format!("{url} is no stored file"))?;
    let bytes = files
        .read(&at, LARGEST)
        .await
        .map_err(|error| error.to_string())?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("file {} is no text", at.name))?;
    parse(text).map_err(|why| format!("file {}: {why}", at.name))
}

/// Reads `key: value` lines of YAML. Values are taken as they are written.
fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    if text.trim().is_empty() {
        return Ok(BTreeMap::new());
    }
    serde_saphyr::from_str(text).map_err(|error| format!("these are no `key: value` lines: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_key_and_value() {
        let vars =
            parse("# database\nuser: app\nport: 5432\nquoted: \"a: b\"\nempty: ''\nyes: no\nzip: 01\n")
                .unwrap();
        let expected = [
            ("user", "app"),
            ("port", "5432"),
            ("quoted", "a: b"),
            ("empty", ""),
            ("yes", "no"),
            ("zip", "01"),
        ];
        let expected = expected.map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(vars, expected.into());
        assert_eq!(parse(" \n"), Ok(BTreeMap::new()));
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        for text in [
            "- a\n- b\n",
            "text",
            "a: {b: c}\n",
            "a: 1\na: 2\n",
            "a: [\n",
            "a: *b\n",
        ] {
            let why = parse(text).unwrap_err();
            assert!(
                why.starts_with("these are no `key: value` lines: "),
                "{text:?}: {why}"
            );
        }
    }
}
