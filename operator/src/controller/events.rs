//! Kubernetes Events: what a person wants to read in `kubectl describe`.
//!
//! Published only when something changes, in the background, and lost when the API server does not take them: nothing
//! depends on them.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, Resource};
use tokio::sync::mpsc;
use virtshell_crds::MANAGER_CONTROLLER;

/// Longest note the API takes, in bytes.
const LONGEST_NOTE: usize = 1024;
/// Events that may wait; more are dropped.
const BACKLOG: usize = 1000;

/// Takes events; cloning shares the line.
#[derive(Clone)]
pub struct Events {
    line: mpsc::Sender<Event>,
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

/// The line, and what publishes from it until dropped.
pub fn events(client: Client, instance: String) -> (Events, impl Future<Output = ()>) {
    let (line, mut waiting) = mpsc::channel::<Event>(BACKLOG);
    let publish = async move {
        while let Some(event) = waiting.recv().await {
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
            if let Err(error) = api.create(&PostParams::default(), &event).await {
                tracing::debug!(error = super::write::words(&error), "an event was not taken");
            }
        }
    };
    (Events { line, instance }, publish)
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
            reporting_controller: Some(format!("virtshell.io/{MANAGER_CONTROLLER}")),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        };
        if self.line.try_send(event).is_err() {
            tracing::debug!("too many events wait; one is dropped");
        }
    }
}

/// At most [`LONGEST_NOTE`] bytes.
fn cut(note: &str) -> &str {
    let mut end = note.len().min(LONGEST_NOTE);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    &note[..end]
}
