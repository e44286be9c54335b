//! What the API server last showed of one kind, with an index by full name.
//!
//! A cache is filled by a watch and by the answers to our own writes, whichever is newer, so that a reconcile sees what
//! the last one wrote. An object that does not decode keeps its last good form and stops nobody else.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, PoisonError, RwLock};

use futures::StreamExt;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event, InitialListStrategy};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Resource, ResourceExt};
use tokio::sync::watch as signal;

/// Where an object is; the namespace of cluster-scoped ones is empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace.
    pub namespace: String,
    /// metadata.name.
    pub name: String,
}

impl ObjectKey {
    /// Where this object is.
    pub fn of<K: Resource>(object: &K) -> Self {
        Self {
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: object.meta().name.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// A kind that can be cached.
pub trait Cached:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
    /// `spec.displayName`, if the kind and the object have one.
    fn display_name(&self) -> Option<&str> {
        None
    }

    /// The name REST clients use.
    fn wire_name(&self) -> &str {
        self.display_name()
            .or(self.meta().name.as_deref())
            .unwrap_or_default()
    }

    /// The name that is unique in its namespace: the wire name, with the folder of what lies in one.
    fn full_name(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.wire_name())
    }

    /// Drops what no reader of the cache needs.
    fn strip(&mut self) {}
}

/// One change: the object before and after.
#[derive(Clone, Debug)]
pub struct Change<K> {
    /// Absent when it is new.
    pub old: Option<Arc<K>>,
    /// Absent when it is gone.
    pub new: Option<Arc<K>>,
}

impl<K: Resource> Change<K> {
    /// Whether the object is new, gone, another one, or asks for something else: more than a change of its status.
    #[must_use]
    pub fn alters_spec(&self) -> bool {
        let view = |object: &Option<Arc<K>>| {
            let meta = object.as_ref()?.meta();
            Some((meta.uid.clone(), meta.generation))
        };
        view(&self.old) != view(&self.new)
    }
}

type Track<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// The objects of one kind.
pub struct Cache<K: Cached> {
    inner: RwLock<Inner<K>>,
    synced: signal::Sender<bool>,
    track: Track<K>,
}

struct Inner<K> {
    objects: HashMap<ObjectKey, Arc<K>>,
    /// (namespace, full name) to metadata names.
    by_wire: HashMap<ObjectKey, BTreeSet<String>>,
    /// What the list in progress has shown so far.
    listed: Option<BTreeSet<ObjectKey>>,
}

impl<K: Cached> Default for Cache<K> {
    fn default() -> Self {
        Self::tracked(|_| {})
    }
}

impl<K: Cached> Cache<K> {
    /// A cache that tells `track` of every change in order, under its lock: for bookkeeping that must never lag.
    pub fn tracked(track: impl Fn(&Change<K>) + Send + Sync + 'static) -> Self {
        Self {
            inner: RwLock::new(Inner {
                objects: HashMap::new(),
                by_wire: HashMap::new(),
                listed: None,
            }),
            synced: signal::Sender::new(false),
            track: Box::new(track),
        }
    }

    /// The object at `key`.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read().objects.get(key).cloned()
    }

    /// The object that `name` means: by wire name first, then by `metadata.name`.
    ///
    /// Of several with one wire name, the oldest counts, then the first by name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let inner = self.read();
        let key = ObjectKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        inner
            .namesakes(&key)
            .min_by_key(|object| (object.meta().creation_timestamp.clone(), object.name_any()))
            .or_else(|| inner.objects.get(&key))
            .cloned()
    }

    /// Every object of this full name in the namespace.
    pub fn namesakes(&self, namespace: &str, full_name: &str) -> Vec<Arc<K>> {
        let key = ObjectKey {
            namespace: namespace.to_owned(),
            name: full_name.to_owned(),
        };
        self.read().namesakes(&key).cloned().collect()
    }

    /// Every object, in no order.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.read().objects.values().cloned().collect()
    }

    /// Every key, in no order.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.read().objects.keys().cloned().collect()
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        // The sender lives as long as self: it cannot close.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Takes in the answer to a write of ours; nothing when the watch has shown it, or something newer, already.
    ///
    /// A write may let an object go, and the watch may show that before the write is answered: what is being deleted
    /// and is not here has gone.
    pub fn store(&self, object: K) -> Option<Change<K>> {
        let mut inner = self.write();
        let going = object.meta().deletion_timestamp.is_some();
        if going && !inner.objects.contains_key(&ObjectKey::of(&object)) {
            return None;
        }
        inner.put(object, &self.track)
    }

    /// Follows the API server until dropped; tells `notify` of every change, without holding the lock, `listed` of
    /// every list that begins, and `failed` of every failure.
    ///
    /// Lists are streamed: pages of hundreds of objects would be in memory beside those that are known.
    pub async fn follow(
        &self,
        api: Api<DeserializeGuard<K>>,
        config: watcher::Config,
        notify: impl Fn(Change<K>),
        listed: impl Fn(),
        failed: impl Fn(),
    ) {
        let kind = K::kind(&());
        let mut config = config.streaming_lists();
        loop {
            let mut events = pin!(watch(api.clone(), config.clone()).default_backoff());
            let streams = config.initial_list_strategy == InitialListStrategy::StreamingList;
            let refused = loop {
                match events.next().await {
                    Some(Ok(event)) => {
                        if matches!(event, Event::Init) {
                            listed();
                        }
                        for change in self.apply(event) {
                            notify(change);
                        }
                    }
                    Some(Err(error)) if streams && cannot_stream(&error) => break true,
                    Some(Err(error)) => {
                        failed();
                        tracing::warn!(%kind, %error, "a watch failed and is started again");
                    }
                    None => break false,
                }
            };
            if !refused {
                return;
            }
            tracing::info!(%kind, "the API server does not stream lists: pages are asked for");
            config.initial_list_strategy = InitialListStrategy::ListWatch;
        }
    }

    fn apply(&self, event: Event<DeserializeGuard<K>>) -> Vec<Change<K>> {
        let mut inner = self.write();
        match event {
            Event::Init => {
                inner.listed = Some(BTreeSet::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                let key = ObjectKey::of(&object);
                if let Some(listed) = inner.listed.as_mut() {
                    listed.insert(key);
                }
                decoded(object)
                    .and_then(|o| inner.put(o, &self.track))
                    .into_iter()
                    .collect()
            }
            Event::InitDone => {
                let listed = inner.listed.take().unwrap_or_default();
                let gone: Vec<_> = inner
                    .objects
                    .keys()
                    .filter(|k| !listed.contains(k))
                    .cloned()
                    .collect();
                let changes = gone
                    .iter()
                    .filter_map(|key| inner.remove(key, &self.track))
                    .collect();
                drop(inner);
                self.synced.send_replace(true);
                changes
            }
            Event::Apply(object) => decoded(object)
                .and_then(|o| inner.put(o, &self.track))
                .into_iter()
                .collect(),
            Event::Delete(object) => inner
                .remove(&ObjectKey::of(&object), &self.track)
                .into_iter()
                .collect(),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner<K>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner<K>> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Cached> Inner<K> {
    fn namesakes(&self, key: &ObjectKey) -> impl Iterator<Item = &Arc<K>> {
        let names = self.by_wire.get(key).into_iter().flatten();
        names.filter_map(|name| {
            self.objects.get(&ObjectKey {
                namespace: key.namespace.clone(),
                name: name.clone(),
            })
        })
    }

    /// Nothing changes when what is there is as new.
    fn put(&mut self, mut object: K, track: &Track<K>) -> Option<Change<K>> {
        let key = ObjectKey::of(&object);
        let old = self.objects.get(&key).cloned();
        if let Some(old) = &old
            && old.uid() == object.uid()
            && version(&**old) >= version(&object)
        {
            return None;
        }
        object.managed_fields_mut().clear();
        object.strip();
        // A copy takes what it needs and no more: what was read has room for what was dropped.
        let new = Arc::new(object.clone());
        if let Some(old) = &old {
            self.unindex(old);
        }
        let wire = ObjectKey {
            namespace: key.namespace.clone(),
            name: new.full_name().into_owned(),
        };
        self.by_wire.entry(wire).or_default().insert(key.name.clone());
        self.objects.insert(key, new.clone());
        let change = Change { old, new: Some(new) };
        track(&change);
        Some(change)
    }

    fn remove(&mut self, key: &ObjectKey, track: &Track<K>) -> Option<Change<K>> {
        let old = self.objects.remove(key)?;
        self.unindex(&old);
        let change = Change {
            old: Some(old),
            new: None,
        };
        track(&change);
        Some(change)
    }

    fn unindex(&mut self, object: &K) {
        let ObjectKey { namespace, name } = ObjectKey::of(object);
        let wire = ObjectKey {
            namespace,
            name: object.full_name().into_owned(),
        };
        if let Some(names) = self.by_wire.get_mut(&wire) {
            names.remove(&name);
            if names.is_empty() {
                self.by_wire.remove(&wire);
            }
        }
    }
}

/// Whether an API server refuses streamed lists: older ones do not have them, or have them switched off (feature gate `WatchList`).
fn cannot_stream(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 400 | 422))
}

/// Resource versions are numbers that grow (Kubernetes 1.35 made that part of the API); anything else counts as old.
fn version<K: Resource>(object: &K) -> u64 {
    let text = object.meta().resource_version.as_deref();
    text.and_then(|v| v.parse().ok()).unwrap_or_default()
}

fn decoded<K: Cached>(object: DeserializeGuard<K>) -> Option<K> {
    match object.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            let name = invalid.metadata.name.unwrap_or_default();
            tracing::warn!(kind = %K::kind(&()), name, error = invalid.error, "an object does not decode and is left as it was");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use virtshell_crds::Image;

    fn image(name: &str, wire: &str, version: u64) -> Image {
        serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Image",
            "metadata": {"name": name, "namespace": "n", "uid": name, "resourceVersion": version.to_string()},
            "spec": {"displayName": wire, "type": "disk"},
        }))
        .unwrap()
    }

    fn seen(cache: &Cache<Image>, name: &str) -> Option<String> {
        cache.find("n", name).map(|image| image.name_any())
    }

    #[test]
    fn wire_names_win_over_object_names() {
        let cache = Cache::default();
        cache.store(image("a", "b", 1));
        cache.store(image("b", "c", 2));
        assert_eq!(seen(&cache, "b").as_deref(), Some("a"));
        assert_eq!(seen(&cache, "c").as_deref(), Some("b"));
        assert_eq!(seen(&cache, "a").as_deref(), Some("a"));
        cache.store(image("a", "renamed", 3));
        assert_eq!(seen(&cache, "b").as_deref(), Some("b"));
    }

    #[test]
    fn an_older_version_never_replaces_a_newer_one() {
        let cache = Cache::default();
        cache.store(image("a", "new", 10));
        assert!(cache.store(image("a", "old", 9)).is_none());
        assert_eq!(seen(&cache, "new").as_deref(), Some("a"));
        assert_eq!(seen(&cache, "old"), None);
    }

    #[test]
    fn what_the_watch_showed_as_gone_does_not_come_back_with_the_answer_to_a_write() {
        let cache = Cache::default();
        let mut going = image("a", "a", 11);
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        assert!(cache.store(going.clone()).is_none());
        assert_eq!(seen(&cache, "a"), None);
        cache.store(image("a", "a", 10));
        assert!(cache.store(going).is_some(), "while it is there, it is taken in");
    }

    #[test]
    fn what_does_not_decode_stays_as_it_was_and_stops_nobody() {
        let cache = Cache::default();
        cache.store(image("a", "a", 1));
        let broken = json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Image", "spec": {"type": 7},
            "metadata": {"name": "a", "namespace": "n", "uid": "a", "resourceVersion": "2"},
        });
        let broken: DeserializeGuard<Image> = serde_json::from_value(broken).unwrap();
        assert!(broken.0.is_err());
        assert!(cache.apply(Event::Apply(broken)).is_empty());
        let next = DeserializeGuard(Ok(image("b", "b", 3)));
        assert_eq!(cache.apply(Event::Apply(next)).len(), 1);
        assert_eq!(seen(&cache, "a").as_deref(), Some("a"));
    }

    #[test]
    fn only_an_api_server_that_cannot_stream_is_asked_for_pages() {
        let refused = |code: u16| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": code});
            let status = serde_json::from_value(status).unwrap();
            cannot_stream(&watcher::Error::WatchStartFailed(kube::Error::Api(status)))
        };
        // Invalid: sendInitialEvents is forbidden unless the WatchList feature gate is enabled.
        assert!(refused(422) && refused(400));
        assert!(!refused(403) && !refused(410) && !refused(429) && !refused(503));
    }

    #[test]
    fn a_new_list_removes_what_it_does_not_show() {
        let cache = Cache::default();
        let guard = |image| DeserializeGuard(Ok(image));
        for event in [
            Event::Init,
            Event::InitApply(guard(image("a", "a", 1))),
            Event::InitApply(guard(image("b", "b", 1))),
            Event::InitDone,
        ] {
            cache.apply(event);
        }
        cache.apply(Event::Init);
        assert!(
            cache
                .apply(Event::InitApply(guard(image("a", "a", 1))))
                .is_empty()
        );
        let gone = cache.apply(Event::InitDone);
        assert_eq!(gone.len(), 1);
        assert_eq!(
            (seen(&cache, "a").as_deref(), seen(&cache, "b")),
            (Some("a"), None)
        );
    }
}
