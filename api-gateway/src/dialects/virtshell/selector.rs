//! The selector grammar: which instances a call's body means. Pure; [`crate::service::selection`] looks them up.
//!
//! ```text
//! pattern = 1*( literal / "*" / bracket )        ; must match the whole name
//! bracket = "[" number (":" / "-") number "]"    ; inclusive; first > second is an error
//! range   = bracket / number (":" / "-") number
//! number  = 1*DIGIT                              ; a leading zero in the first pads every value to that width
//! ```

use serde_json::{Map, Value};

use super::error::Rejection;
use super::shape::Shape;
use super::values::{Fields, wrong_type};
use crate::service::is_uuid;
use crate::service::selection::Selector;

/// Most names that the brackets and stars of one request may stand for.
const MAX_EXPANSIONS: usize = 1000;
/// Most selectors of one request.
const MAX_SELECTORS: usize = 1000;
/// Most bytes of a pattern, which each of its names repeats: enough for a name (128) with brackets in it.
const MAX_PATTERN: usize = 255;
/// The member that an error names.
const FIELD: &str = "instances";

/// Selectors of a body: `instances` (or an alias) and `tags`.
pub fn read(fields: Fields<'_>) -> Result<Vec<Selector>, Rejection> {
    let values = match fields.get(&["instances", "hosts", "host", "instance"], Shape::Selectors) {
        None => &[],
        Some((_, Value::Array(values))) => values.as_slice(),
        Some((_, one)) => std::slice::from_ref(one),
    };
    let tags = fields.references(&["tags", "tag"])?.unwrap_or_default();
    if values.len() + tags.len() > MAX_SELECTORS {
        let reason = format!("more than {MAX_SELECTORS} selectors");
        return Err(Rejection::invalid(FIELD, reason));
    }
    let mut selectors = Vec::with_capacity(values.len() + tags.len());
    let mut room = MAX_EXPANSIONS;
    for value in values {
        let selector = selector(value, room)?;
        if let Selector::Matching(names) = &selector {
            room -= names.len();
        }
        selectors.push(selector);
    }
    selectors.extend(tags.into_iter().map(Selector::Tag));
    Ok(selectors)
}

/// The path names one target; the body names one too, or selects several.
pub fn targets(fields: Fields<'_>, in_path: Option<&String>) -> Result<Vec<Selector>, Rejection> {
    let in_body = match fields.get(&["name", "uuid"], Shape::Text) {
        Some((name, _)) => fields.string(&[name])?.map(Selector::Name),
        None => None,
    };
    let in_path = in_path.cloned().map(Selector::Name);
    if let (Some(path), Some(body)) = (&in_path, &in_body)
        && path != body
    {
        return Err(Rejection::invalid("name", "differs from the name in the path"));
    }
    let selected = read(fields)?;
    match in_path {
        Some(path) if selected.iter().all(|selector| *selector == path) => Ok(vec![path]),
        Some(_) => Err(Rejection::invalid(
            "instances",
            "differs from the name in the path",
        )),
        None => {
            let all: Vec<Selector> = in_body.into_iter().chain(selected).collect();
            if all.is_empty() {
                Err(Rejection::MissingField("name"))
            } else {
                Ok(all)
            }
        }
    }
}

/// One selector, which may stand for `room` names.
fn selector(value: &Value, room: usize) -> Result<Selector, Rejection> {
    match (value.as_str(), value.as_object()) {
        (Some(text), _) => named(text, room),
        (None, Some(members)) => of_members(members, room),
        (None, None) => Err(wrong_type(FIELD, value, "selector")),
    }
}

fn of_members(members: &Map<String, Value>, room: usize) -> Result<Selector, Rejection> {
    let members: Vec<(&str, &Value)> = members
        .iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| (key.as_str(), value))
        .collect();
    let text = |value: &Value| match value.as_str() {
        Some("") => Err(Rejection::invalid(FIELD, "a selector must not be empty")),
        Some(text) => Ok(text.to_owned()),
        None => Err(wrong_type(FIELD, value, "string")),
    };
    match members.as_slice() {
        [("name", name)] => named(&text(name)?, room),
        [("name", name), ("range", range)] | [("range", range), ("name", name)] => {
            let numbers = numbers(&text(range)?)?;
            let mut names = expand(&text(name)?, room)?;
            multiply(&mut names, "", &numbers, room)?;
            Ok(Selector::Matching(names))
        }
        [("pattern", pattern)] => expand(&text(pattern)?, room).map(Selector::Matching),
        [("tag" | "type", tag)] => text(tag).map(Selector::Tag),
        [("uuid" | "id", id)] => {
            let id = text(id)?;
            if is_uuid(&id) {
                Ok(Selector::Name(id))
            } else {
                Err(Rejection::invalid(FIELD, format!("{id} is not a uuid")))
            }
        }
        [("ip", address)] => text(address).map(Selector::Address),
        _ => Err(Rejection::invalid(
            FIELD,
            "a selector has one of name, pattern, tag, type, uuid, id, ip; only name may come with range",
        )),
    }
}

/// A name, unless it holds a star or a bracket range.
fn named(text: &str, room: usize) -> Result<Selector, Rejection> {
    if text.is_empty() {
        return Err(Rejection::invalid(FIELD, "a selector must not be empty"));
    }
    if text.contains(['*', '[', ']']) {
        return expand(text, room).map(Selector::Matching);
    }
    Ok(Selector::Name(text.to_owned()))
}

/// The patterns that one with brackets stands for, at most `room`; several brackets multiply.
fn expand(pattern: &str, room: usize) -> Result<Vec<String>, Rejection> {
    if pattern.len() > MAX_PATTERN {
        let reason = format!("a pattern must have at most {MAX_PATTERN} bytes");
        return Err(Rejection::invalid(FIELD, reason));
    }
    let mut expanded = vec![String::new()];
    let mut rest = pattern;
    while let Some(start) = rest.find(['[', ']']) {
        let (literal, bracket) = rest.split_at(start);
        let end = bracket.find(']').filter(|_| bracket.starts_with('['));
        let Some(end) = end else {
            return Err(Rejection::invalid(
                FIELD,
                format!("{pattern} has a bracket without its other half"),
            ));
        };
        multiply(&mut expanded, literal, &numbers(&bracket[..=end])?, room)?;
        rest = &bracket[end + 1..];
    }
    if expanded.len() > room {
        return Err(too_many());
    }
    for prefix in &mut expanded {
        prefix.push_str(rest);
    }
    Ok(expanded)
}

/// Each of the names, followed by `literal` and each of the numbers.
fn multiply(
    names: &mut Vec<String>,
    literal: &str,
    numbers: &[String],
    room: usize,
) -> Result<(), Rejection> {
    if names.len() * numbers.len() > room {
        return Err(too_many());
    }
    *names = names
        .iter()
        .flat_map(|name| numbers.iter().map(move |n| format!("{name}{literal}{n}")))
        .collect();
    Ok(())
}

/// The numbers of `[a:b]`, `[a-b]`, `a:b` or `a-b`.
fn numbers(range: &str) -> Result<Vec<String>, Rejection> {
    let malformed = || Rejection::invalid(FIELD, format!("{range} is not a range like [1-3]"));
    let inner = match range.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').ok_or_else(malformed)?,
        None => range,
    };
    let (first, last) = inner.split_once([':', '-']).ok_or_else(malformed)?;
    let number = |digits: &str| {
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse::<u64>().ok())
            .flatten()
            .ok_or_else(malformed)
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(Rejection::invalid(
            FIELD,
            format!("{range} is the wrong way round"),
        ));
    }
    if to - from >= MAX_EXPANSIONS as u64 {
        return Err(too_many());
    }
    let width = if first.len() > 1 && first.starts_with('0') {
        first.len()
    } else {
        0
    };
    // A width of its own could make the names as long as the body; no name is.
    if width > 128 {
        return Err(malformed());
    }
    Ok((from..=to).map(|n| format!("{n:0width$}")).collect())
}

fn too_many() -> Rejection {
    Rejection::invalid(
        FIELD,
        format!("patterns stand for more than {MAX_EXPANSIONS} names"),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(value: &Value) -> Result<Selector, String> {
        selector(value, MAX_EXPANSIONS).map_err(|rejection| rejection.message())
    }

    fn matching(names: &[&str]) -> Selector {
        Selector::Matching(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn every_form_of_the_contract() {
        let uuid = "72c05559-0590-4da6-be56-28ab36cb669c";
        for (value, expected) in [
            (json!("web"), Selector::Name("web".into())),
            (json!({"name": "web"}), Selector::Name("web".into())),
            (
                json!({"name": "web", "range": null}),
                Selector::Name("web".into()),
            ),
            (json!({"name": "web_server*"}), matching(&["web_server*"])),
            (json!("grid_[1:3]"), matching(&["grid_1", "grid_2", "grid_3"])),
            (json!({"name": "grid_[1:2]"}), matching(&["grid_1", "grid_2"])),
            (
                json!({"pattern": "grid_server_[1:2]"}),
                matching(&["grid_server_1", "grid_server_2"]),
            ),
            (json!({"pattern": "web"}), matching(&["web"])),
            (
                json!({"name": "Database00", "range": "[1-3]"}),
                matching(&["Database001", "Database002", "Database003"]),
            ),
            (
                json!({"name": "db", "range": "08-10"}),
                matching(&["db08", "db09", "db10"]),
            ),
            (
                json!({"name": "db", "range": "[9:10]"}),
                matching(&["db9", "db10"]),
            ),
            (
                json!({"pattern": "[1-2]x[3-4]"}),
                matching(&["1x3", "1x4", "2x3", "2x4"]),
            ),
            (json!({"pattern": "a[1-2]*"}), matching(&["a1*", "a2*"])),
            (json!({"tag": "web"}), Selector::Tag("web".into())),
            (json!({"type": "web"}), Selector::Tag("web".into())),
            (json!({"uuid": uuid}), Selector::Name(uuid.into())),
            (json!({"id": uuid}), Selector::Name(uuid.into())),
            (json!({"ip": "10.0.0.1"}), Selector::Address("10.0.0.1".into())),
        ] {
            assert_eq!(one(&value), Ok(expected), "{value}");
        }
    }

    #[test]
    fn what_is_refused() {
        for value in [
            json!(""),
            json!({}),
            json!({"name": ""}),
            json!({"name": 1}),
            json!(1),
            json!([["a"]]),
            json!({"nome": "a"}),
            json!({"name": "a", "tag": "b"}),
            json!({"tag": "b", "range": "[1-2]"}),
            json!({"pattern": "grid_[5:1]"}),
            json!({"pattern": "grid_[1:"}),
            json!({"pattern": "grid_1]"}),
            json!({"pattern": "grid_[]"}),
            json!({"pattern": "grid_[a-b]"}),
            json!({"pattern": "grid_[1]"}),
            json!({"pattern": "grid_[-1-2]"}),
            json!({"pattern": "[0-1000]"}),
            json!({"pattern": "[1-50][1-50]"}),
            json!({"name": "[1-50]", "range": "1-50"}),
            json!({"name": "a", "range": "1"}),
            json!({"name": "a", "range": "[1-2"}),
            json!({"name": "a", "range": "99999999999999999999-99999999999999999999"}),
            json!({"uuid": "web"}),
        ] {
            let message = one(&value).expect_err(&value.to_string());
            assert!(message.starts_with("Field instances"), "{value} {message}");
        }
        assert!(one(&json!({"pattern": "[1-1000]"})).is_ok());
    }

    #[test]
    fn bodies() {
        for (body, expected) in [
            (json!({}), vec![]),
            (json!({"instances": "a"}), vec![Selector::Name("a".into())]),
            (
                json!({"hosts": ["a", {"tag": "t"}]}),
                vec![Selector::Name("a".into()), Selector::Tag("t".into())],
            ),
            (
                json!({"tags": ["t", {"name": "u"}]}),
                vec![Selector::Tag("t".into()), Selector::Tag("u".into())],
            ),
            (
                json!({"instance": {"name": "a"}, "tag": "t"}),
                vec![Selector::Name("a".into()), Selector::Tag("t".into())],
            ),
        ] {
            assert_eq!(
                read(Fields::of(body.as_object().unwrap())),
                Ok(expected),
                "{body}"
            );
        }
    }

    #[test]
    fn a_request_has_bounds_however_it_is_divided() {
        let many = |value: &str, count| Value::Array(vec![json!(value); count]);
        let names = |count| (0..count).map(|n| format!("t{n}")).collect::<Vec<_>>();
        for (body, fits) in [
            (json!({"instances": many("a", 1000)}), true),
            (json!({"instances": many("a", 1001)}), false),
            (json!({"instances": many("a", 999), "tags": ["t", "u"]}), false),
            (json!({"tags": names(1000)}), true),
            (json!({"tags": names(1001)}), false),
            (json!({"instances": ["[1-500]", "[501-1000]"]}), true),
            (json!({"instances": ["[1-500]", "[500-1000]"]}), false),
            (json!({"instances": ["[1-1000]", "a*"]}), false),
            (json!({"instances": ["[1-1000]", "a"]}), true),
            (json!({"instances": format!("{}[1-2]", "a".repeat(250))}), true),
            (json!({"instances": format!("{}[1-2]", "a".repeat(251))}), false),
            (
                json!({"instances": {"name": "a".repeat(256), "range": "1-2"}}),
                false,
            ),
        ] {
            let read = read(Fields::of(body.as_object().unwrap()));
            assert_eq!(read.is_ok(), fits, "{body}");
        }
    }
}
