//! `docs/api.md`: its examples are sent, and its answers are those that came.
//!
//! With `VIRTSHELL_WRITE_DOCS` set it is written (`make generate`), else it must be fresh.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use virtshell_gateway::dialects::virtshell;
use virtshell_gateway::service::is_uuid;

use crate::support::{Reply, Request, World, fixtures, row};

/// What is above the examples.
const INTRODUCTION: &str = include_str!("reference.md");
const BASE: &str = "/virtshell/api/v1";

/// A request of the reference.
pub struct Example {
    pub method: &'static str,
    /// The path in the document.
    pub route: &'static str,
    /// The path to send.
    pub path: String,
    pub body: Sent,
}

/// What is sent with a request.
#[derive(Clone, Copy)]
pub enum Sent {
    Nothing,
    Json(&'static str),
    /// Fields of a form, and the name of the file.
    Form(&'static [(&'static str, &'static str)], &'static str),
}

impl Example {
    fn request(&self) -> Request<'_> {
        let request = Request::new(self.method, &self.path);
        match self.body {
            Sent::Nothing => request,
            Sent::Json(body) => request.body(&serde_json::from_str(body).unwrap()),
            Sent::Form(fields, file) => {
                let mut parts: Vec<_> = fields.iter().map(|(name, value)| (*name, None, *value)).collect();
                parts.push(("file_data", Some(file), "content\n"));
                request.form(&parts)
            }
        }
    }

    fn show(&self) -> String {
        let mut text = format!("```http\n{} {BASE}{}\n", self.method, &self.path[2..]);
        match self.body {
            Sent::Nothing => {}
            Sent::Json(body) => writeln!(text, "\n{body}").unwrap(),
            Sent::Form(fields, file) => {
                text += "Content-Type: multipart/form-data\n\n";
                for (name, value) in fields {
                    writeln!(text, "{name}={value}").unwrap();
                }
                writeln!(text, "file_data=@{file}").unwrap();
            }
        }
        text + "```\n"
    }
}

#[test]
fn the_committed_reference_is_fresh() {
    row(async |w| {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
        let text = reference(w).await;
        if std::env::var_os("VIRTSHELL_WRITE_DOCS").is_some() {
            std::fs::write(file, text).unwrap();
            return;
        }
        let committed = std::fs::read_to_string(file).unwrap_or_default();
        let first = committed
            .lines()
            .zip(text.lines())
            .find(|(committed, now)| committed != now);
        assert!(
            committed == text,
            "docs/api.md is stale: run `make generate`; first difference: {first:?}"
        );
    });
}

async fn reference(w: &World) -> String {
    let document = virtshell::document();
    let mut text = INTRODUCTION.to_owned();
    let mut sent = BTreeSet::new();
    let mut shown: BTreeMap<(String, String), (u16, usize)> = BTreeMap::new();
    let mut entries: Vec<(String, String, Vec<String>)> = Vec::new();
    for example in super::reference_examples::all() {
        fixtures::reset(w).await;
        let example = resolve(example, w);
        let operation = &document["paths"][example.route][example.method.to_ascii_lowercase()];
        assert!(
            operation.is_object(),
            "{} {} is no route",
            example.method,
            example.route
        );
        sent.insert((example.method.to_owned(), example.route.to_owned()));
        let reply = w.send(&example.request());
        let (tag, summary) = (
            operation["tags"][0].as_str().unwrap(),
            operation["summary"].as_str().unwrap(),
        );
        let key = (tag.to_owned(), summary.to_owned());
        if let Some((status, at)) = shown.get(&key) {
            assert_eq!(
                reply.status, *status,
                "{} {}: {reply:?}",
                example.method, example.path
            );
            entries[*at]
                .2
                .push(format!("`{} {}`", example.method, plain(example.route)));
            continue;
        }
        shown.insert(key, (reply.status, entries.len()));
        let mut entry = format!(
            "### {summary}\n\n`{} {}`\n\n",
            example.method,
            plain(example.route)
        );
        if let Some(details) = operation["description"].as_str() {
            write!(entry, "{details}\n\n").unwrap();
        }
        write!(
            entry,
            "{}\n{}",
            same_every_time(&example.show()),
            answer(&reply, &w.address())
        )
        .unwrap();
        entries.push((tag.to_owned(), entry, Vec::new()));
    }
    let paths = document["paths"].as_object().unwrap();
    let documented = paths.iter().flat_map(|(path, item)| {
        item.as_object()
            .unwrap()
            .keys()
            .map(move |method| (method.to_ascii_uppercase(), path.clone()))
    });
    let missing: Vec<_> = documented
        .filter(|(_, path)| path != "/openapi.json")
        .filter(|route| !sent.contains(route))
        .collect();
    assert!(missing.is_empty(), "without an example: {missing:?}");
    let mut tag = String::new();
    for (its, entry, also) in entries {
        if its != tag {
            write!(text, "## {its}\n\n").unwrap();
            tag = its;
        }
        text += &entry;
        if !also.is_empty() {
            write!(text, "Also {}.\n\n", also.join(", ")).unwrap();
        }
    }
    text.trim_end().to_owned() + "\n"
}

/// The example, with the uuid of a task where it needs one.
fn resolve(mut example: Example, w: &World) -> Example {
    if example.path.contains("{task}") {
        let tasks = w.get("B1/tasks").json();
        let task = tasks["tasks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|task| task["description"] == "clone virtual machine database_01");
        example.path = example
            .path
            .replace("{task}", task.unwrap()["uuid"].as_str().unwrap());
    }
    example
}

/// `/hosts/{name}` as `/hosts/:name`.
fn plain(route: &str) -> String {
    route.replace('{', ":").replace('}', "")
}

fn answer(reply: &Reply, address: &str) -> String {
    let body = String::from_utf8_lossy(&reply.body).replace(address, "localhost:8080");
    let body = same_every_time(&shorten(&body));
    format!("{}:\n\n```json\n{}\n```\n\n", reply.status, pretty(&body))
}

/// uuids, dates and keys, which every run makes anew.
fn same_every_time(text: &str) -> String {
    let mut uuids: Vec<String> = Vec::new();
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(uuid) = rest.get(..36).filter(|word| is_uuid(word)) {
            let at = uuids.iter().position(|known| known == uuid).unwrap_or_else(|| {
                uuids.push(uuid.to_owned());
                uuids.len() - 1
            });
            write!(out, "72c05559-0590-4da6-be56-28ab36cb{:04x}", 0x669c + at).unwrap();
            rest = &rest[36..];
        } else if rest.len() > 12
            && rest.starts_with('"')
            && rest.as_bytes()[1..11].iter().all(u8::is_ascii_digit)
            && rest.as_bytes()[11] == b'"'
        {
            out += "\"1429207233\"";
            rest = &rest[12..];
        } else {
            let (first, others) = rest.split_at(rest.chars().next().map_or(1, char::len_utf8));
            out += first;
            rest = others;
        }
    }
    for (member, value) in [
        ("access_key_id", "AKIDEXAMPLE0000000XX"),
        ("secret_access_key", "shown-this-once-shown-this-once-shown-th"),
    ] {
        if let Some((before, after)) = out.split_once(&format!("\"{member}\":\"")) {
            let after = after.split_once('"').map_or("", |(_, after)| after);
            out = format!("{before}\"{member}\":\"{value}\"{after}");
        }
    }
    out
}

/// Of lists of objects only one object: the first by name, for the order of lists depends on when the fixtures were made.
fn shorten(json: &str) -> String {
    let mut out = String::new();
    let mut rest = json;
    while let Some(at) = rest.find("[{") {
        out += &rest[..=at];
        let (items, after) = items(&rest[at + 1..]);
        let name = |item: &str| {
            let after = |member: &str| Some(item.split_once(member)?.1.to_owned());
            after("name\":\"").or_else(|| after("description\":\""))
        };
        let first = items.iter().min_by_key(|item| name(item)).unwrap();
        out += &shorten(first);
        if items.len() > 1 {
            out += ",…";
        }
        rest = after;
    }
    out + rest
}

/// The objects of a list, and what follows them.
fn items(json: &str) -> (Vec<&str>, &str) {
    let (mut items, mut depth, mut start, mut in_string, mut escaped) = (Vec::new(), 0, 0, false, false);
    for (at, c) in json.char_indices() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            continue;
        }
        match c {
            '"' => in_string = true,
            '{' | '[' => depth += 1,
            ']' if depth == 0 => return (items, &json[at..]),
            '}' | ']' => {
                depth -= 1;
                if depth == 0 {
                    items.push(&json[start..=at]);
                }
            }
            ',' if depth == 0 => start = at + 1,
            _ => {}
        }
    }
    panic!("no end of a list: {json}");
}

/// Indented, members in the order in which they came.
fn pretty(json: &str) -> String {
    let (mut out, mut depth, mut in_string, mut escaped, mut last) = (String::new(), 0, false, false, ' ');
    let line = |depth: usize| format!("\n{}", "  ".repeat(depth));
    for c in json.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
            out.push(c);
            continue;
        }
        let opened = matches!(last, '{' | '[');
        if matches!(c, '}' | ']') {
            depth -= 1;
            if !opened {
                out += &line(depth);
            }
        } else if opened || last == ',' {
            out += &line(depth);
        }
        out.push(c);
        match c {
            '"' => in_string = true,
            '{' | '[' => depth += 1,
            ':' => out.push(' '),
            _ => {}
        }
        last = c;
    }
    out
}
