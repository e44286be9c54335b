//! Kubernetes Events: what a person wants to read in `kubectl describe`.
//!
//! Published only when something changes, in the background, one after the other, and lost when the API server does not
//! take them for some minutes: nothing depends on them.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Resource};
use tokio::sync::mpsc;
use virtshell_crds::ANNOTATION_REQUEST_ID;

/// Longest note the API takes, in bytes.
const LONGEST_NOTE: usize = 1024;
/// Events that may wait; more are dropped.
const BACKLOG: usize = 1000;
/// How often an event is tried to be written, and the first and the longest pause between: for about five minutes. Guests
/// are repaired while the API server is away, and that is told when it is back.
const TRIES: u32 = 12;
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(45));

/// Takes events; cloning shares the line.
#[derive(Clone)]
pub struct Events {
    line: mpsc::Sender<Event>,
    controller: String,
    instance: String,
}

/// How loud an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Normal,
    /// Somebody may want to look.
    Warning,
}

/// The line, and what publishes from it until dropped. `controller` and `instance` are the event's reporting ones.
pub fn events(
    client: Client,
    controller: impl Into<String>,
    instance: String,
) -> (Events, impl Future<Output = ()>) {
    let (line, mut waiting) = mpsc::channel::<Event>(BACKLOG);
    let publish = async move {
        while let Some(event) = waiting.recv().await {
            publish(&client, &event).await;
        }
    };
    let controller = controller.into();
    (
        Events {
            line,
            controller,
            instance,
        },
        publish,
    )
}

async fn publish(client: &Client, event: &Event) {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let mut pause = PAUSE.0;
    for attempt in 1..=TRIES {
        match api.create(&PostParams::default(), event).await {
            Ok(_) => return,
            // A write whose answer was lost.
            Err(kube::Error::Api(answer)) if answer.is_already_exists() => return,
            Err(error) => {
                tracing::debug!(reason = event.reason, %error, attempt, "an event was not taken");
                if is_final(&error) {
                    return;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Whether the API server will refuse again. One that has just started does not know its accounts and roles yet.
fn is_final(error: &kube::Error) -> bool {
    let kube::Error::Api(answer) = error else {
        return false;
    };
    let causes = answer.details.iter().flat_map(|details| &details.causes);
    let namespace_ends = causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating");
    (400..500).contains(&answer.code) && (namespace_ends || ![401, 403, 429].contains(&answer.code))
}

impl Events {
    /// Says of an object that `action` ended with `reason`.
    pub fn say<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        level: Level,
        action: &str,
        reason: &str,
        note: &str,
    ) {
        let reference = object.object_ref(&());
        let now = k8s_openapi::jiff::Timestamp::now();
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!(
                    "{}.{:x}",
                    reference.name.as_deref().unwrap_or_default(),
                    now.as_nanosecond()
                )),
                // Those of cluster-scoped objects live in "default".
                namespace: Some(
                    reference
                        .namespace
                        .clone()
                        .unwrap_or_else(|| "default".to_owned()),
                ),
                annotations: request_of(object),
                ..ObjectMeta::default()
            },
            action: Some(action.to_owned()),
            reason: Some(reason.to_owned()),
            note: Some(cut(note).to_owned()),
            type_: Some(
                match level {
                    Level::Normal => "Normal",
                    Level::Warning => "Warning",
                }
                .to_owned(),
            ),
            event_time: Some(MicroTime(now)),
            regarding: Some(ObjectReference {
                resource_version: None,
                ..reference
            }),
            reporting_controller: Some(self.controller.clone()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        };
        if self.line.try_send(event).is_err() {
            tracing::debug!("too many events wait; one is dropped");
        }
    }
}

/// The REST request behind what is told, when the object names one.
fn request_of<K: Resource>(object: &K) -> Option<BTreeMap<String, String>> {
    let id = object.meta().annotations.as_ref()?.get(ANNOTATION_REQUEST_ID)?;
    Some([(ANNOTATION_REQUEST_ID.to_owned(), id.clone())].into())
}

/// At most [`LONGEST_NOTE`] bytes.
fn cut(note: &str) -> &str {
    let mut end = note.len().min(LONGEST_NOTE);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    &note[..end]
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_refusal_is_final_unless_the_api_server_may_not_know_us_yet() {
        for (code, expected) in [
            (400, true),
            (404, true),
            (422, true),
            (401, false),
            (403, false),
            (429, false),
            (500, false),
        ] {
            let error = kube::Error::Api(Box::new(Status::failure("no", "").with_code(code)));
            assert_eq!(is_final(&error), expected, "{code}");
        }
    }

    #[test]
    fn a_namespace_that_ends_takes_no_more() {
        let status = serde_json::json!({
            "status": "Failure", "code": 403, "reason": "Forbidden", "message": "being terminated",
            "details": {"causes": [{"reason": "NamespaceTerminating", "message": "it is", "field": "metadata.namespace"}]},
        });
        let status: Status = serde_json::from_value(status).unwrap();
        assert!(is_final(&kube::Error::Api(Box::new(status))));
    }

    #[tokio::test]
    async fn an_event_names_the_request_that_its_object_names() {
        let (line, mut said) = mpsc::channel(2);
        let events = Events {
            line,
            controller: "c".to_owned(),
            instance: "i".to_owned(),
        };
        let mut object = k8s_openapi::api::core::v1::ConfigMap::default();
        events.say(&object, Level::Normal, "Act", "Done", "");
        assert_eq!(said.recv().await.unwrap().metadata.annotations, None);
        let id = (ANNOTATION_REQUEST_ID.to_owned(), "abc-1".to_owned());
        let other = ("other".to_owned(), "x".to_owned());
        object.metadata.annotations = Some([id.clone(), other].into());
        events.say(&object, Level::Normal, "Act", "Done", "");
        assert_eq!(said.recv().await.unwrap().metadata.annotations, Some([id].into()));
    }

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        assert_eq!(cut(&"ä".repeat(LONGEST_NOTE)).len(), LONGEST_NOTE);
        assert_eq!(
            cut(&format!("x{}", "ä".repeat(LONGEST_NOTE))).len(),
            LONGEST_NOTE - 1
        );
    }
}
