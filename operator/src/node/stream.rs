//! Follows what of one kind is this host's: a watch that selects by `.spec.host`.
//!
//! A watch that has stopped looks like a world that stands still. So what it has said is compared with a list now and
//! then, and it is opened anew when it missed something.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use kube::api::{Api, ListParams, ObjectMeta};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;

use super::context::version;
use super::metrics::Metrics;

/// How often a watch is compared with a list.
const CHECK: Duration = Duration::from_mins(5);
/// How far it may be behind the list.
const BEHIND: Duration = Duration::from_secs(15);

/// What is watched, and for whom.
pub struct Stream<'a> {
    /// To the API server.
    pub client: &'a Client,
    /// Name of the Host.
    pub host: &'a str,
    /// Where its age is shown.
    pub metrics: &'a Metrics,
    /// Its name among the streams of events: the plural of the kind.
    pub name: &'static str,
}

/// A kind that can be followed.
pub trait Kind: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static {}

impl<K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static> Kind for K {}

/// What the watch has said: uids, with versions.
#[derive(Default)]
struct Heard {
    versions: HashMap<String, u64>,
    /// uids of a list that is not complete yet.
    listing: HashSet<String>,
}

impl Heard {
    fn note<K: Resource>(&mut self, event: &Event<K>) {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => {
                self.listing.extend(object.meta().uid.clone());
                self.put(object.meta());
            }
            Event::InitDone => self.versions.retain(|uid, _| self.listing.contains(uid)),
            Event::Apply(object) => self.put(object.meta()),
            Event::Delete(object) => {
                self.versions
                    .remove(object.meta().uid.as_deref().unwrap_or_default());
            }
        }
    }

    fn put(&mut self, of: &ObjectMeta) {
        if let Some(uid) = &of.uid {
            self.versions.insert(uid.clone(), version(of));
        }
    }
}

impl Stream<'_> {
    /// Tells `hear` all that is and all that changes, until the process ends. Errors back off inside the watch.
    pub async fn follow<K: Kind>(&self, mut hear: impl FnMut(Event<DeserializeGuard<K>>)) {
        let heard = Mutex::new(Heard::default());
        loop {
            tokio::select! {
                () = self.listen(&heard, &mut hear) => return,
                uid = self.until_missed::<K>(&heard) => {
                    tracing::warn!(stream = self.name, object.uid = uid, "a watch missed a change; it is opened anew");
                }
            }
        }
    }

    async fn listen<K: Kind>(&self, heard: &Mutex<Heard>, hear: &mut impl FnMut(Event<DeserializeGuard<K>>)) {
        let api: Api<DeserializeGuard<K>> = Api::all(self.client.clone());
        let config = watcher::Config::default().fields(&self.selector());
        let mut events = std::pin::pin!(watch(api, config).default_backoff());
        loop {
            match events.try_next().await {
                Ok(Some(event)) => {
                    self.metrics.heard(self.name);
                    lock(heard).note(&event);
                    hear(event);
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(stream = self.name, %error, "a watch failed; it is opened again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Returns the uid of an object of which the watch has not said the newest.
    async fn until_missed<K: Kind>(&self, heard: &Mutex<Heard>) -> String {
        loop {
            tokio::time::sleep(CHECK).await;
            match self.check::<K>(heard).await {
                Ok(Some(uid)) => return uid,
                Ok(None) => self.metrics.heard(self.name),
                Err(error) => {
                    tracing::debug!(stream = self.name, %error, "no list to compare the watch with");
                }
            }
        }
    }

    /// Compares what the watch has said with a list that it had time to follow.
    async fn check<K: Kind>(&self, heard: &Mutex<Heard>) -> kube::Result<Option<String>> {
        let (listed, at) = self.list::<K>().await?;
        tokio::time::sleep(BEHIND).await;
        if missed(&listed, &listed, at, &lock(heard).versions).is_none() {
            return Ok(None);
        }
        let (still, _) = self.list::<K>().await?;
        Ok(missed(&listed, &still, at, &lock(heard).versions))
    }

    /// What there is by uid, with versions, and the version of the list.
    async fn list<K: Kind>(&self) -> kube::Result<(HashMap<String, u64>, u64)> {
        let api: Api<K> = Api::all(self.client.clone());
        let select = ListParams::default().fields(&self.selector());
        let list = api.list_metadata(&select).await?;
        let listed = list.items.iter().filter_map(|item| {
            let of = &item.metadata;
            Some((of.uid.clone()?, version(of)))
        });
        let at = list.metadata.resource_version.as_deref();
        Ok((listed.collect(), at.and_then(|v| v.parse().ok()).unwrap_or(0)))
    }

    fn selector(&self) -> String {
        format!("spec.host={}", self.host)
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An object whose change up to the list, made at version `at`, is not known: uids and versions on both sides. What is
/// not there `still`, was deleted since the list, and rightly is not known either.
fn missed(
    listed: &HashMap<String, u64>,
    still: &HashMap<String, u64>,
    at: u64,
    known: &HashMap<String, u64>,
) -> Option<String> {
    let older = |(uid, version): &(&String, &u64)| match known.get(*uid) {
        Some(known) => known < *version,
        None => still.contains_key(*uid),
    };
    let gone = |(uid, version): &(&String, &u64)| !listed.contains_key(*uid) && **version < at;
    let stale = listed.iter().find(older);
    stale
        .or_else(|| known.iter().find(gone))
        .map(|(uid, _)| uid.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hyper::body::Bytes;
    use hyper::{Request, Response};
    use kube::ResourceExt;
    use kube::client::Body;
    use prometheus_client::registry::Registry;
    use serde_json::json;
    use virtshell_crds::TaskAssignment;

    use super::*;

    #[test]
    fn a_watch_is_behind_when_it_does_not_know_what_a_list_knew() {
        let map = |list: &[(&str, u64)]| -> HashMap<String, u64> {
            list.iter().map(|(uid, v)| ((*uid).to_owned(), *v)).collect()
        };
        let a: &[_] = &[("a", 5)];
        for (rule, listed, still, known, expected) in [
            ("the same", a, a, a, None),
            ("newer than the list", a, a, &[("a", 12)][..], None),
            ("made after the list", &[], &[], &[("a", 11)], None),
            ("not heard of", a, a, &[], Some("a")),
            ("deleted since", a, &[], &[], None),
            ("an older one", a, a, &[("a", 4)], Some("a")),
            (
                "gone before the list",
                &[("b", 5)],
                &[("b", 5)],
                &[("a", 4), ("b", 5)],
                Some("a"),
            ),
        ] {
            assert_eq!(
                missed(&map(listed), &map(still), 10, &map(known)).as_deref(),
                expected,
                "{rule}"
            );
        }
    }

    /// An API server whose watches never say a thing; what the first list of whole objects lacks, came a moment later.
    fn silent(lists: &Arc<AtomicUsize>) -> Client {
        let lists = Arc::clone(lists);
        let answer = move |request: Request<Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            assert!(query.contains("fieldSelector=spec.host"), "{query}");
            let accepts = request.headers().get("accept");
            let of_metadata = accepts.is_some_and(|accepts| {
                accepts
                    .to_str()
                    .is_ok_and(|accepts| accepts.contains("PartialObjectMetadata"))
            });
            let empty = !of_metadata
                && lists.fetch_add(usize::from(!query.contains("watch=")), Ordering::SeqCst) == 0;
            async move {
                if query.contains("watch=") {
                    return std::future::pending().await;
                }
                let item = json!({
                    "apiVersion": virtshell_crds::API_VERSION, "kind": "TaskAssignment",
                    "metadata": {"name": "late", "namespace": "n", "uid": "u", "resourceVersion": "11"},
                    "spec": {"host": "h", "task": {"name": "t", "uid": "t"}, "type": "execute_command", "targets": []},
                });
                let items = if empty { vec![] } else { vec![item] };
                let list = json!({
                    "apiVersion": virtshell_crds::API_VERSION, "kind": "TaskAssignmentList",
                    "metadata": {"resourceVersion": "12"}, "items": items,
                });
                Ok::<_, std::convert::Infallible>(Response::new(http_body(&list.to_string())))
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    fn http_body(text: &str) -> Body {
        Body::from(Bytes::from(text.to_owned()).to_vec())
    }

    /// Guards: work that a dead watch did not bring is found by the comparison, and the stream's age is shown.
    #[tokio::test(start_paused = true)]
    async fn what_a_silent_watch_missed_is_heard_after_the_comparison() {
        let lists = Arc::new(AtomicUsize::new(0));
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let client = silent(&lists);
        let stream = Stream {
            client: &client,
            host: "h",
            metrics: &metrics,
            name: "taskassignments",
        };
        let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let follow = stream.follow::<TaskAssignment>(|event| {
            if let Event::InitApply(object) = event {
                let _ = said.send(object.name_any());
            }
        });
        let first = tokio::select! {
            () = follow => None,
            first = heard.recv() => first,
            () = tokio::time::sleep(CHECK * 2) => None,
        };
        assert_eq!(first.as_deref(), Some("late"));
        assert_eq!(lists.load(Ordering::SeqCst), 2, "the watch was opened twice");
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert!(text.contains("stream=\"taskassignments\""), "{text}");
    }
}
