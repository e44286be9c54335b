//! The API's document in OpenAPI 3.1, put together from the table of routes, from what each says of itself
//! ([`super::about`]) and from what its code is seen to read ([`super::shape`]).
//!
//! It is served to everybody at `/openapi.json` below each base path; `docs/openapi.json` is the same, for readers and for
//! reviews of changes (`make generate`).

use std::sync::OnceLock;

use axum::body::{Body, Bytes};
use axum::http::Method;
use serde_json::{Map, Value, json};

use super::about::{About, Reads, reference};
use super::answer::Answer;
use super::routes::{self, BASES, COLLECTIONS, Input, PUBLIC, ROUTES, Route};
use super::shape::{Shape, observe};
use crate::service::Kind;
use crate::service::names::is_reserved;

/// Members of bodies that no view shows, and what they mean.
const WORDS: &[(&str, &str)] = &[
    ("command", "A command line for root's login shell."),
    (
        "destination",
        "Where to: a path, in which the guest's login shell expands variables.",
    ),
    ("mode", "Permissions of the copy, in octal."),
    ("uuid_file", "The file to copy: its uuid."),
    ("path", "The file to copy: its URI."),
    ("file", "The file to copy: `name` or `folder/name`."),
    ("folder_name", "The folder to copy: every file in it."),
    ("owner", "Name of the user who owns it."),
    ("group", "Name of the group that owns it."),
    ("new_name", "Name of the clone."),
    (
        "name",
        "Name of one instance; beside a name in the path, it is the clone's.",
    ),
    ("packages", "Names of packages."),
    (
        "properties",
        "What to read: memory, total_memory, cpu, cpus, swap, process, ip, gateway, mask, interfaces, or any member \
        that an instance or a host is shown with.",
    ),
    ("instances", "Which instances."),
    ("tags", "All instances with one of these tags."),
    ("enviroment", "The enviroment, when the path does not say it."),
    (
        "how_to_run",
        "Older form of `executor`: an interpreter, for the file that `builder` names.",
    ),
];

/// What the captures of paths catch.
const CAPTURES: &[(&str, &str)] = &[
    ("name", "Name or uuid."),
    ("hostname", "Name or uuid of the host."),
    ("uuid", "uuid of the task; with GET also a word for a status."),
    ("status", "A word for how far tasks are."),
    ("property", "What to read."),
    ("instance", "Name or uuid of the instance."),
    ("enviroment", "Name or uuid of its enviroment."),
    (
        "ref",
        "uuid, `name`, `folder/name` (with a plain or an encoded slash) or complete URI of the file.",
    ),
];

/// Refusals that routes share: status, name, meaning.
const REFUSALS: [(u16, &str, &str); 6] = [
    (
        400,
        "BadRequest",
        "The request makes no sense; it will not the next time either.",
    ),
    (403, "Forbidden", "Who sends it is not known, or may not do that."),
    (404, "NotFound", "What the request names is not there."),
    (
        406,
        "NotAcceptable",
        "The client does not take JSON. There is no body.",
    ),
    (
        500,
        "InternalError",
        "Something is wrong here; it may be worth another try.",
    ),
    (501, "NotImplemented", "Nothing here does that."),
];

/// `GET /openapi.json`.
pub fn answer() -> Answer {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    let text = TEXT.get_or_init(|| Bytes::from(document().to_string()));
    Answer::json_stream(Body::from(text.clone()))
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut schemas = Map::new();
    schemas.insert(
        "Error".to_owned(),
        json!({
            "type": "object", "properties": {"error": {"type": "string", "minLength": 1}}, "required": ["error"],
            "description": "Why the request was refused, in a sentence.",
        }),
    );
    schemas.insert(
        "NoHost".to_owned(),
        json!({
            "type": "object", "required": ["error", "create", "reason"],
            "properties": {"error": {"type": "string"}, "create": {"const": "error"}, "reason": {"type": "string"}},
            "description": "The enviroment has no host of the type, or none with the driver.",
        }),
    );
    let mut paths = Map::new();
    for route in ROUTES {
        let item = paths.entry(template(route.path)).or_insert_with(|| json!({}));
        item[route.method.as_str().to_ascii_lowercase()] = operation(route, &mut schemas);
    }
    for (path, _) in PUBLIC {
        paths.insert((*path).to_owned(), json!({"get": this_document()}));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "VirtShell",
            "version": "1",
            "summary": "Virtual machines and containers on machines that run libvirt.",
            "description": "JSON, whatever the Content-Type of a request says; `null` is the same as absent, and members that are \
                not listed here are ignored. The same API is below four paths. Words for collections may be sent in the singular; \
                one slash at the end of a path is ignored.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": BASES.map(|base| json!({"url": base})),
        "security": [{"signature": []}, {"authorization": []}],
        "tags": COLLECTIONS.iter().map(|(name, aliases)| {
            json!({"name": name, "description": format!("Also spelled {}.", aliases.join(", "))})
        }).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": refusals(),
            "headers": {"RequestId": {
                "description": "Names the request in logs; a short plain one of the client's own is kept.",
                "schema": {"type": "string"},
            }},
            "securitySchemes": {
                "signature": security("X-VirtShell-Authorization"),
                "authorization": security("Authorization"),
            },
        },
    })
}

/// The document as `docs/openapi.json` has it.
#[must_use]
pub fn document_text() -> String {
    format!("{:#}\n", document())
}

fn security(header: &str) -> Value {
    json!({
        "type": "apiKey", "in": "header", "name": header,
        "description": "`UserId:Signature`. UserId is an access key id, uuid or name of a user. Signature = \
            Base64(HMAC-SHA1(secret access key, METHOD LF Host LF Content-MD5 LF Content-Type LF Date LF Path)), where the headers \
            count as they are sent and an absent one is empty, and Path is the request target before `?`. `Date` must be sent and be \
            within 15 minutes of the gateway's clock; a `Content-MD5` that is sent must be that of the body.",
    })
}

/// `/hosts/:name` as `/hosts/{name}`.
fn template(path: &str) -> String {
    let parts = path.split('/').map(|part| match part.strip_prefix([':', '*']) {
        Some(name) => format!("{{{name}}}"),
        None => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("/")
}

fn captures(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|part| part.strip_prefix([':', '*']))
}

fn operation(route: &Route, schemas: &mut Map<String, Value>) -> Value {
    let mut about = (route.about)();
    let mut details = about.details.to_owned();
    let mut parameters: Vec<Value> = captures(route.path).map(path_parameter).collect();
    if let Some(item) = item_of(route) {
        // `?id=` is another way to say what is in the path of the other route.
        let its = (item.about)();
        let must = about.answer.content.is_empty();
        if must {
            about = its;
            about.details.clone_into(&mut details);
        } else {
            about.may_miss |= its.may_miss && route.method != Method::POST;
            about.answer = about.answer.or(its.answer);
        }
        parameters.push(json!({
            "name": "id", "in": "query", "required": must, "schema": {"type": "string"},
            "description": format!("Name or uuid: the same as {} with it.", template(item.path)),
        }));
    }
    parameters.extend(about.query.iter().map(|(name, meaning)| {
        json!({"name": name, "in": "query", "required": false, "schema": {"type": "string"}, "description": meaning})
    }));
    let mut operation = json!({
        "operationId": operation_id(route),
        "tags": [tag(route.path)],
        "summary": about.summary,
        "responses": responses(route, &about),
    });
    if !details.is_empty() {
        operation["description"] = json!(details);
    }
    if !parameters.is_empty() {
        operation["parameters"] = json!(parameters);
    }
    if let Some(body) = request_body(route, &about, schemas) {
        operation["requestBody"] = body;
    }
    schemas.extend(about.answer.schemas);
    operation
}

/// The route of one object, for that of its collection.
fn item_of(route: &Route) -> Option<&'static Route> {
    let item = |other: &&Route| {
        other.method == route.method
            && other
                .path
                .strip_prefix(route.path)
                .is_some_and(|rest| matches!(rest, "/:name" | "/:uuid" | "/*ref"))
    };
    (route.path.matches('/').count() == 1 || route.path == "/static/files")
        .then(|| ROUTES.iter().find(item))
        .flatten()
}

fn operation_id(route: &Route) -> String {
    let words = route
        .path
        .split(['/', '_'])
        .map(|part| part.trim_start_matches([':', '*']));
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    format!(
        "{}_{}",
        route.method.as_str().to_ascii_lowercase(),
        words.join("_")
    )
}

/// The collection that a path belongs to, by its first word or by what it is about.
fn tag(path: &str) -> &'static str {
    let word = path.split('/').nth(1).unwrap_or_default();
    match word {
        "static" => "files",
        other => routes::canonical(other).unwrap_or("packages"),
    }
}

fn path_parameter(name: &str) -> Value {
    let meaning = CAPTURES
        .iter()
        .find(|(known, _)| *known == name)
        .map_or("", |(_, meaning)| meaning);
    json!({
        "name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}, "description": meaning,
    })
}

fn responses(route: &Route, about: &About) -> Value {
    let mut responses = Map::new();
    for (status, name, _) in REFUSALS {
        let happens = match status {
            404 => about.may_miss,
            501 => about.may_lack || may_be_a_call(route),
            _ => true,
        };
        if happens {
            responses.insert(
                status.to_string(),
                json!({"$ref": format!("#/components/responses/{name}")}),
            );
        }
    }
    if about.may_find_no_host {
        let schema = json!({"anyOf": [reference("Error"), reference("NoHost")]});
        let told = response(
            "No host can do it, or something is wrong here.",
            &[("application/json", schema)],
        );
        responses.insert("500".to_owned(), told);
    }
    if !about.answer.content.is_empty() {
        let told = response("Done.", &about.answer.content);
        responses.insert(about.answer.status.to_string(), told);
    }
    Value::Object(responses)
}

fn refusals() -> Map<String, Value> {
    let refusal = |(status, name, meaning): (u16, &str, &str)| {
        let content = [("application/json", reference("Error"))];
        let content = if status == 406 {
            &content[..0]
        } else {
            &content[..]
        };
        (name.to_owned(), response(meaning, content))
    };
    REFUSALS.into_iter().map(refusal).collect()
}

/// Whether the name in the path could be the word of a call, for which there is no such method.
fn may_be_a_call(route: &Route) -> bool {
    let kind = match tag(route.path) {
        "instances" => Kind::Instance,
        "enviroments" => Kind::Environment,
        _ => return false,
    };
    let has_name = route.path.contains("/:name") || item_of(route).is_some();
    has_name
        && ["start_instance", "add_host"]
            .iter()
            .any(|word| is_reserved(kind, word))
}

fn response(description: &str, content: &[(&str, Value)]) -> Value {
    let mut response = json!({
        "description": description, "headers": {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}},
    });
    for (kind, schema) in content {
        response["content"][*kind] = json!({"schema": schema});
    }
    response
}

fn request_body(route: &Route, about: &About, schemas: &mut Map<String, Value>) -> Option<Value> {
    let mut content = Map::new();
    if let Some(reads) = &about.json {
        let schema = json_schema(reads, captures(route.path).next().is_some(), schemas);
        content.insert("application/json".to_owned(), json!({"schema": schema}));
    }
    if let Some(reads) = &about.form {
        let schema = form_schema(reads, route.method == Method::POST);
        content.insert("multipart/form-data".to_owned(), json!({"schema": schema}));
    }
    let required =
        !matches!(route.input, Input::Unread | Input::None | Input::Optional) || item_of(route).is_some();
    (!content.is_empty()).then(|| json!({"required": required, "content": content}))
}

/// What a reader was seen to read, as a schema of that name. Where the path has the name, the body need not.
fn json_schema(reads: &Reads, is_named: bool, schemas: &mut Map<String, Value>) -> Value {
    let input = observe(reads.reader);
    let view = (reads.view)();
    let mut properties = Map::new();
    for member in &input.members {
        let [canonical, aliases @ ..] = member.names.as_slice() else {
            continue;
        };
        let described = describe(canonical, view.schemas.get(&view.name));
        properties.insert(
            (*canonical).to_owned(),
            with(member.shape.schema(schemas), &described),
        );
        for alias in aliases {
            let schema = with(
                member.shape.schema(schemas),
                &format!("The same as `{canonical}`."),
            );
            properties.entry(*alias).or_insert(schema);
        }
    }
    let mut schema = json!({"type": "object", "properties": properties});
    for group in &input.required {
        if is_named && group.contains(&"name") {
            continue;
        }
        match group.as_slice() {
            [one] => push(&mut schema, "required", json!(one)),
            several => {
                let any: Vec<Value> = several.iter().map(|name| json!({"required": [name]})).collect();
                push(&mut schema, "allOf", json!({"anyOf": any}));
            }
        }
    }
    let name = if is_named && input.required.iter().any(|group| group.contains(&"name")) {
        format!("{}Named", reads.name)
    } else {
        reads.name.to_owned()
    };
    schemas.insert(name.clone(), schema);
    reference(&name)
}

fn push(schema: &mut Value, key: &str, value: Value) {
    match schema[key].as_array_mut() {
        Some(values) => values.push(value),
        None => schema[key] = json!([value]),
    }
}

/// Fields of a form are text.
fn form_schema(reads: &Reads, is_new: bool) -> Value {
    let view = (reads.view)();
    let mut properties = Map::new();
    for member in observe(reads.reader).members {
        let schema = if member.shape == Shape::Permissions {
            json!({"type": "string", "pattern": "^-?[rwx_-]{9}$"})
        } else {
            json!({"type": "string"})
        };
        let described = describe(member.names[0], view.schemas.get(&view.name));
        for (at, name) in member.names.iter().enumerate() {
            let text = if at == 0 {
                described.clone()
            } else {
                format!("The same as `{}`.", member.names[0])
            };
            properties.insert((*name).to_owned(), with(schema.clone(), &text));
        }
    }
    properties.insert(
        "file_data".to_owned(),
        json!({
            "type": "string", "contentMediaType": "application/octet-stream",
            "description": "The content; a new file is called as this part's filename says. The same as `file`.",
        }),
    );
    let mut schema = json!({"type": "object", "properties": properties});
    if is_new {
        schema["required"] = json!(["file_data"]);
    }
    schema
}

/// What a member means: as the view that shows it says, else as [`WORDS`] do.
fn describe<'a>(name: &str, view: Option<&'a Value>) -> String {
    let parts = |view: &'a Value| {
        Value::as_array(&view["allOf"])
            .into_iter()
            .flatten()
            .chain([view])
    };
    let shown = view
        .into_iter()
        .flat_map(parts)
        .find_map(|part| part["properties"][name]["description"].as_str());
    let words = || {
        WORDS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, text)| *text)
    };
    shown.or_else(words).unwrap_or_default().to_owned()
}

fn with(mut schema: Value, description: &str) -> Value {
    if !description.is_empty() {
        schema["description"] = json!(match schema["description"].as_str() {
            Some(more) => format!("{description} {more}"),
            None => description.to_owned(),
        });
    }
    schema
}

/// The operation that serves this document.
fn this_document() -> Value {
    json!({
        "operationId": "get_openapi_json",
        "summary": "This document",
        "security": [],
        "responses": {
            "200": response("Done.", &[("application/json", json!({"type": "object"}))]),
            "406": {"$ref": "#/components/responses/NotAcceptable"},
        },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::error::Rejection;
    use super::super::shape::Reader;
    use super::super::values::Fields;
    use super::*;

    /// Every reader of a body, with the route that it belongs to.
    fn readers() -> Vec<(String, Reader)> {
        let of = |route: &Route| {
            let about = (route.about)();
            let readers = [about.json, about.form].into_iter().flatten();
            let name = format!("{} {}", route.method, route.path);
            readers
                .map(|reads| (name.clone(), reads.reader))
                .collect::<Vec<_>>()
        };
        ROUTES.iter().flat_map(of).collect()
    }

    #[test]
    fn the_committed_document_is_fresh() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let committed = std::fs::read_to_string(file).unwrap_or_default();
        assert!(
            committed == document_text(),
            "docs/openapi.json is stale: run `make generate`"
        );
    }

    #[test]
    fn every_route_is_documented_and_nothing_else() {
        let document = document();
        let mut documented = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                documented.insert((method.to_ascii_uppercase(), path.clone()));
            }
        }
        let routes = ROUTES
            .iter()
            .map(|route| (route.method.to_string(), template(route.path)));
        let public = PUBLIC
            .iter()
            .map(|(path, _)| ("GET".to_owned(), (*path).to_owned()));
        assert_eq!(documented, routes.chain(public).collect());
        let operations = document["paths"]
            .as_object()
            .unwrap()
            .values()
            .flat_map(|item| item.as_object().unwrap().values());
        let ids: Vec<&str> = operations
            .map(|operation| operation["operationId"].as_str().unwrap())
            .collect();
        assert_eq!(
            ids.iter().collect::<BTreeSet<_>>().len(),
            ids.len(),
            "an operationId names several"
        );
    }

    #[test]
    fn every_route_that_needs_a_body_says_what_it_reads() {
        for route in ROUTES {
            let about = (route.about)();
            assert_eq!(
                about.json.is_some() || about.form.is_some(),
                !matches!(route.input, Input::Unread | Input::None),
                "{} {}",
                route.method,
                route.path
            );
        }
    }

    #[test]
    fn what_is_documented_is_read_and_nothing_else() {
        // No member of any body may look like this.
        let nonsense = json!([[{}]]);
        for (route, reader) in readers() {
            let input = observe(reader);
            for member in &input.members {
                for name in &member.names {
                    let mut body = input.least.clone();
                    body.retain(|known, _| !member.names.contains(&known.as_str()));
                    body.insert((*name).to_owned(), nonsense.clone());
                    let read = reader(Fields::of(&body));
                    assert!(
                        matches!(read, Err(Rejection::WrongType { .. } | Rejection::Invalid { .. })),
                        "{route} does not read {name}: {read:?}"
                    );
                }
            }
            let mut body = input.least.clone();
            body.insert("undocumented".to_owned(), nonsense.clone());
            assert_eq!(
                reader(Fields::of(&body)),
                reader(Fields::of(&input.least)),
                "{route}"
            );
        }
    }

    #[test]
    fn documented_words_are_taken_and_no_others() {
        for (route, reader) in readers() {
            let input = observe(reader);
            for member in &input.members {
                let Shape::Word(words) = member.shape else {
                    continue;
                };
                let read = |word: &str| {
                    let mut body = input.least.clone();
                    body.insert(member.names[0].to_owned(), json!(word));
                    reader(Fields::of(&body))
                };
                for word in words {
                    // Some mean what no host does.
                    let taken = read(word).map_or_else(|refused| refused.status() == 501, |()| true);
                    assert!(
                        taken && read(&word.to_uppercase()) == read(word),
                        "{route} {word}"
                    );
                }
                assert!(
                    matches!(read("undocumented"), Err(Rejection::Invalid { .. })),
                    "{route}"
                );
            }
        }
    }

    #[test]
    fn everything_is_described() {
        let document = document();
        let text = document.to_string();
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            let parts = schema["allOf"].as_array().into_iter().flatten().chain([schema]);
            for (member, property) in
                parts.flat_map(|part| part["properties"].as_object().into_iter().flatten())
            {
                let is_plain = matches!(name.as_str(), "Error" | "NoHost" | "Reference");
                assert!(is_plain || property["description"].is_string(), "{name}.{member}");
            }
        }
        for (word, meaning) in WORDS.iter().chain(CAPTURES) {
            assert!(
                text.contains(meaning),
                "nothing is described by the words for {word}"
            );
        }
    }

    #[test]
    fn references_lead_somewhere() {
        fn walk<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(members) => {
                    found.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|value| walk(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| walk(value, found)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        walk(&document, &mut found);
        assert!(found.len() > 100);
        for reference in found {
            assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
        }
    }
}
