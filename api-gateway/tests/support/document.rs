//! Whether the API's document allows what the gateway answers: asked of every reply of every row.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use jsonschema::Validator;
use serde_json::{Map, Value, json};
use virtshell_gateway::dialects::virtshell;

use super::Reply;

const BASES: [&str; 4] = [
    "/virtshell/api/v1",
    "/api/virtshell/v1",
    "/api/virtsh/v1",
    "/api/v1",
];

/// The document, in which objects have no members but those that it names.
fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let mut document = virtshell::document();
        let names: Vec<String> = document["components"]["schemas"]
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect();
        let text = document.to_string();
        for name in names {
            // A part of other schemas is strict where those are.
            let is_part = text.contains(&format!(r##""allOf":[{{"$ref":"#/components/schemas/{name}""##));
            strict(&mut document["components"]["schemas"][&name], is_part);
        }
        strict(&mut document["paths"], true);
        document
    })
}

/// `is_part` of a schema that is strict itself.
fn strict(schema: &mut Value, is_part: bool) {
    if let Some(values) = schema.as_array_mut() {
        for value in values {
            strict(value, false);
        }
    }
    let Some(members) = schema.as_object_mut() else {
        return;
    };
    for (name, value) in members.iter_mut() {
        if name == "properties" {
            value
                .as_object_mut()
                .into_iter()
                .flatten()
                .for_each(|(_, value)| strict(value, false));
        } else if name == "allOf" {
            value
                .as_array_mut()
                .into_iter()
                .flatten()
                .for_each(|part| strict(part, true));
        } else {
            strict(value, false);
        }
    }
    let is_object = members.contains_key("allOf") || members.get("properties").is_some_and(Value::is_object);
    if is_object && !is_part && !members.contains_key("additionalProperties") {
        members.insert("unevaluatedProperties".to_owned(), json!(false));
    }
}

/// Fails when the document does not allow the answer to a request.
#[track_caller]
pub fn allows(method: &str, target: &str, reply: &Reply) {
    if ["/healthz", "/readyz", "/metrics", "/agents/"]
        .iter()
        .any(|path| target.starts_with(path))
    {
        // Not of this API.
        return;
    }
    let is_below_a_base = BASES.iter().any(|base| target.starts_with(base));
    if !is_below_a_base && matches!(reply.status, 406 | 501) {
        // The root is only this API's on a listener of its own.
        return;
    }
    let Some(operation) = operation(method, target) else {
        assert!(
            matches!(reply.status, 406 | 501),
            "{method} {target} is not documented and was answered: {reply:?}"
        );
        return;
    };
    let response = &operation["responses"][reply.status.to_string()];
    let response = match response["$ref"].as_str() {
        Some(reference) => document().pointer(&reference[1..]).unwrap(),
        None => response,
    };
    assert!(
        !response.is_null(),
        "{method} {target}: {} is not documented",
        reply.status
    );
    let Some(kind) = reply.headers.get("content-type") else {
        assert!(
            response["content"].is_null() && reply.body.is_empty(),
            "{method} {target}"
        );
        return;
    };
    let schema = &response["content"][kind]["schema"];
    assert!(!schema.is_null(), "{method} {target}: {kind} is not documented");
    if kind == "application/json" {
        let complaints = complaints(schema, &reply.json());
        assert!(
            complaints.is_empty(),
            "{method} {target}: {complaints}\n{}",
            reply.json()
        );
    }
}

fn complaints(schema: &Value, body: &Value) -> String {
    static VALIDATORS: Mutex<Option<HashMap<String, Validator>>> = Mutex::new(None);
    let mut validators = VALIDATORS.lock().unwrap_or_else(PoisonError::into_inner);
    let validator = validators
        .get_or_insert_default()
        .entry(schema.to_string())
        .or_insert_with(|| {
            let whole = json!({"allOf": [schema], "components": document()["components"]});
            jsonschema::options()
                .should_validate_formats(true)
                .build(&whole)
                .unwrap()
        });
    let complaints = validator
        .iter_errors(body)
        .map(|error| format!("{}: {error}", error.instance_path()));
    complaints.collect::<Vec<_>>().join("; ")
}

/// The operation of a request: literal parts of a path come before parameters.
fn operation(method: &str, target: &str) -> Option<&'static Value> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let below = BASES
        .iter()
        .chain(&[""])
        .find_map(|base| path.strip_prefix(base).filter(|rest| rest.starts_with('/')))?;
    let below = below.strip_suffix('/').unwrap_or(below);
    let mut segments: Vec<&str> = below.split('/').skip(1).collect();
    if segments == ["file"] && query.starts_with("id=") {
        // The one path that is only there with a name.
        segments.push("name");
    }
    let first = segments.first()?;
    let paths = document()["paths"].as_object().unwrap();
    let method = method.to_ascii_lowercase();
    let literals = |template: &str| template.split('/').filter(|part| !part.starts_with('{')).count();
    let found = |first: &str| operation_of(paths, &method, first, &segments);
    let mut fitting: Vec<(&String, &Value)> =
        [canonical(first), *first].into_iter().flat_map(found).collect();
    fitting.sort_by_key(|(template, _)| literals(template));
    fitting.pop().map(|(_, operation)| operation)
}

fn operation_of(
    paths: &'static Map<String, Value>,
    method: &str,
    first: &str,
    rest: &[&str],
) -> Vec<(&'static String, &'static Value)> {
    let fits = |template: &str| {
        let parts: Vec<&str> = template.split('/').skip(1).collect();
        let rests = parts.last() == Some(&"{ref}") && rest.len() >= parts.len();
        parts[0] == first
            && (rests || parts.len() == rest.len())
            && parts
                .iter()
                .zip(rest)
                .skip(1)
                .all(|(part, segment)| part == segment || (part.starts_with('{') && !segment.is_empty()))
    };
    let fitting = paths.iter().filter(|(template, _)| fits(template));
    fitting
        .filter_map(|(template, item)| Some((template, item.get(method)?)))
        .collect()
}

/// The collection that a spelling means.
fn canonical(word: &str) -> &str {
    match word {
        "partition" | "partitions" | "section" => "sections",
        "enviroment" | "environment" | "environments" => "enviroments",
        "host" => "hosts",
        "image" => "images",
        "provisioner" => "provisioners",
        "instance" => "instances",
        "task" => "tasks",
        "property" => "properties",
        "package" => "packages",
        "file" => "files",
        "group" => "groups",
        "user" => "users",
        other => other,
    }
}
