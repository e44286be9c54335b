//! `/properties`: live values of instances and hosts.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use virtshell_crds::{Environment, Instance};

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::selector;
use super::values::Fields;
use super::{hosts, instances};
use crate::service::live::{Live, Subject, Wanted};
use crate::service::selection::Selector;
use crate::service::{Kind, Service, ServiceError, Verb};

/// Words for values that are asked for when they are read.
const LIVE: [&str; 10] = [
    "memory",
    "total_memory",
    "cpu",
    "cpus",
    "swap",
    "process",
    "ip",
    "gateway",
    "mask",
    "interfaces",
];

/// Values of what the body, or the query, selects.
pub async fn list(call: Call) -> Result<Answer, Rejection> {
    let asked = if call.body.is_empty() {
        Cow::Owned(of_query(&call.query)?)
    } else {
        Cow::Borrowed(&call.body)
    };
    let (properties, selectors) = input(Fields::of(&asked))?;
    let subjects = call.service.subjects(&call.caller, &selectors)?;
    let live = call.service.live(&subjects, wanted(&properties)).await;
    let rows: Vec<Value> = subjects
        .iter()
        .zip(&live)
        .map(|(subject, live)| row(&call.service, subject, live, &properties))
        .collect();
    match (selectors.as_slice(), rows.as_slice()) {
        // One plain name is one object; a launch parent's stands for several.
        ([Selector::Name(_)], [row]) if !is_parent(&call.service, &selectors) => Ok(Answer::ok(row)),
        _ => Ok(Answer::list("properties", &rows)),
    }
}

/// What is asked, and of what.
fn input(fields: Fields<'_>) -> Result<(Vec<String>, Vec<Selector>), Rejection> {
    let properties = match fields.references(&["properties"])? {
        Some(properties) if !properties.is_empty() => properties,
        Some(_) | None => return Err(Rejection::MissingField("properties")),
    };
    let selectors = selector::read(fields)?;
    if selectors.is_empty() {
        return Err(Rejection::MissingField("hosts"));
    }
    match properties.iter().find(|word| !is_known(word)) {
        Some(unknown) => Err(Rejection::UnknownProperty(unknown.clone())),
        None => Ok((properties, selectors)),
    }
}

/// One value of one instance, bare.
pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let [property, instance, enviroment] = call.captures.as_slice() else {
        return Err(Rejection::MissingParameter("name parameter"));
    };
    let found = call.service.find::<Instance>(instance)?;
    let within = call.service.find::<Environment>(enviroment)?;
    let its = call.service.environment_of(&found);
    if its.is_none_or(|its| its.metadata.uid != within.metadata.uid) {
        return Err(ServiceError::NotFound {
            kind: Kind::Instance,
            name: instance.clone(),
        }
        .into());
    }
    let found = call
        .service
        .permitted::<Instance>(&call.caller, Verb::Read, instance)?;
    if !is_known(property) {
        return Err(Rejection::NoSuchProperty(property.clone()));
    }
    let properties = std::slice::from_ref(property);
    let subject = [Subject::Instance(found)];
    let live = call.service.live(&subject, wanted(properties)).await;
    let mut row = row(&call.service, &subject[0], &live[0], properties);
    Ok(Answer::ok(&row[property.as_str()].take()))
}

/// `?properties=a,b&hosts=x,y&tags=t&range=[1-3]` as the body it stands for.
fn of_query(query: &str) -> Result<Map<String, Value>, Rejection> {
    let mut body = Map::new();
    let mut range = None;
    for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| Rejection::BadPath)?;
        if key == "range" {
            range = Some(value.into_owned());
        } else {
            let words = value.split(',').filter(|word| !word.is_empty());
            body.insert(key.to_owned(), words.collect());
        }
    }
    if let Some(range) = range {
        for key in ["instances", "hosts", "host", "instance"] {
            for name in body
                .get_mut(key)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                *name = json!({"name": name, "range": range});
            }
        }
    }
    Ok(body)
}

fn is_parent(service: &Service, selectors: &[Selector]) -> bool {
    let [Selector::Name(name)] = selectors else {
        return false;
    };
    service
        .find::<Instance>(name)
        .is_ok_and(|instance| service.is_launch_parent(&instance))
}

fn is_known(word: &str) -> bool {
    LIVE.contains(&word) || instances::MEMBERS.contains(&word) || hosts::MEMBERS.contains(&word)
}

fn wanted(properties: &[String]) -> Wanted {
    let any = |words: &[&str]| properties.iter().any(|word| words.contains(&word.as_str()));
    Wanted {
        stats: any(&["memory", "total_memory", "cpus"]),
        cpu_use: any(&["cpu"]),
        guest: any(&["mask", "gateway", "swap", "process"]),
        interfaces: any(&["interfaces"]),
    }
}

fn row(service: &Service, subject: &Subject, live: &Live, properties: &[String]) -> Value {
    let mut row = json!({"id": subject.uid(), "name": subject.name()});
    let stored = properties.iter().any(|word| !LIVE.contains(&word.as_str()));
    let stored = if stored {
        members(service, subject)
    } else {
        Value::Null
    };
    for word in properties {
        row[word] = if LIVE.contains(&word.as_str()) {
            live_value(word, live)
        } else {
            stored.get(word).cloned().unwrap_or_default()
        };
    }
    row
}

/// All that a GET of the subject shows.
fn members(service: &Service, subject: &Subject) -> Value {
    match subject {
        Subject::Instance(instance) => json!(instances::view(service, instance, None)),
        Subject::Host(host) => json!(hosts::view(service, host)),
    }
}

fn live_value(word: &str, live: &Live) -> Value {
    match word {
        "memory" => json!(live.memory_mib),
        "total_memory" => json!(live.total_memory_mib),
        "cpu" => json!(live.cpu_percent),
        "cpus" => json!(live.cpus),
        "ip" => json!({"ipv4": live.addresses.ipv4, "ipv6": live.addresses.ipv6}),
        "mask" => json!(live.mask),
        "interfaces" => live.interfaces.as_ref().map_or(Value::Null, |interfaces| {
            let view = interfaces.iter().map(|interface| {
                json!({"name": interface.name, "mac": interface.mac, "ipv4": interface.ipv4, "ipv6": interface.ipv6})
            });
            view.collect()
        }),
        "swap" => json!(live.swap_mib),
        "gateway" => json!(live.gateway),
        // Linux says how many threads there are, and of how many processes nowhere but in a list of them.
        "process" => live.tasks.map_or(Value::Null, |tasks| {
            json!({
                "total": null,
                "running": tasks.running,
                "sleeping": tasks.total.saturating_sub(tasks.running + tasks.blocked),
                "stuck": tasks.blocked,
                "threads": tasks.total,
            })
        }),
        _ => Value::Null,
    }
}

/// What the API's document says of these routes.
pub mod about {
    use serde_json::json;

    use super::super::about::{About, Told, object, uuid};
    use super::input;

    pub fn list() -> About {
        let row = json!({
            "type": "object", "required": ["id", "name"], "additionalProperties": true,
            "properties": {"id": uuid(), "name": {"type": "string"}},
            "description": "A property each; null for what cannot be had now.",
        });
        let rows = object(&[("properties", json!({"type": "array", "items": row}))]);
        About::new(
            "Read properties of instances and hosts",
            Told::json(row).or(Told::json(rows)),
        )
        .details("One plain name is answered with one object, everything else with a list.")
        .reads_call("PropertiesOf", |fields| input(fields).map(drop))
        .query(
            "properties",
            "What to read, joined with commas; used when there is no body.",
        )
        .query("instances", "Names of instances, joined with commas.")
        .query("hosts", "Names of instances or hosts, joined with commas.")
        .query("tags", "Tags of instances, joined with commas.")
        .query("range", "Numbers that follow the names: `[1-3]`.")
        .may_miss()
    }

    pub fn get() -> About {
        About::new(
            "Read one property of an instance",
            Told::json(json!({"description": "The bare value."})),
        )
        .may_miss()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_the_body_it_stands_for() {
        for (query, expected) in [
            ("", Some(json!({}))),
            (
                "properties=memory,cpu&hosts=WebServer",
                Some(json!({"properties": ["memory", "cpu"], "hosts": ["WebServer"]})),
            ),
            (
                "properties=memory&hosts=Database00&range=[1-3]",
                Some(json!({"properties": ["memory"], "hosts": [{"name": "Database00", "range": "[1-3]"}]})),
            ),
            (
                "range=%5B1-3%5D&host=a",
                Some(json!({"host": [{"name": "a", "range": "[1-3]"}]})),
            ),
            (
                "tags=web&properties=",
                Some(json!({"tags": ["web"], "properties": []})),
            ),
            ("nonsense", Some(json!({}))),
            ("hosts=%ff", None),
        ] {
            assert_eq!(of_query(query).ok().map(Value::Object), expected, "{query}");
        }
    }
}
