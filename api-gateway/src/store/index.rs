//! What one cache holds, and which of two versions of an object counts.
//!
//! Pure: no clock, no network. [`super::cache`] puts a lock around it and [`super::feed`] feeds it. Objects arrive on
//! three ways (a list, a watch, the answer to a write of ours) in no order between them, so:
//!
//! * the numerically larger resourceVersion wins; versions of one resource are comparable;
//! * a removed uid never comes back ([`Index::forget_removals`] drops the memory of it once no late answer can arrive);
//! * a list removes what it lacks, but not what we wrote after it was asked for: that is reported for a closer look.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use kube::Resource;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// An object that a cache can hold.
pub trait Cached:
    Resource<DynamicType = ()> + Clone + Serialize + DeserializeOwned + Send + Sync + 'static
{
    /// Whether there may be so many that they are held packed; see [`Held`].
    const MANY: bool = false;

    /// The name clients use.
    fn wire_name(&self) -> &str;

    /// The name that no other object of the kind has: the wire name, for a file after its folder.
    fn full_name(&self) -> Cow<'_, str> {
        Cow::Borrowed(self.wire_name())
    }

    /// Drops what no reader of the cache asks for.
    fn project(&mut self) {}

    /// Further keys it can be found by.
    fn keys(&self) -> Vec<Key> {
        Vec::new()
    }

    /// Whether it keeps its wire name against a namesake that kubectl made.
    fn is_accepted(&self) -> bool {
        true
    }
}

/// A further key: the name of an index and a value in it.
pub type Key = (&'static str, String);

/// A uid, shared by all that lists it.
type Uid = Arc<str>;

/// Where a version of an object was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A list that is being read.
    List,
    /// The watch.
    Watch,
    /// The answer to a write of ours.
    Write,
}

/// An object as the cache has it.
///
/// Most fields of most objects are empty, and each that is not is an allocation of its own: an Instance takes 4 to 5 kB as a
/// value and 1 kB as JSON. Where there are many, a reader pays the 3 µs of unpacking for what it reads.
enum Held<K> {
    Whole(Arc<K>),
    Packed(Box<[u8]>),
}

impl<K: Cached> Held<K> {
    fn of(object: &Arc<K>) -> Self {
        if !K::MANY {
            return Self::Whole(object.clone());
        }
        match serde_json::to_vec(object.as_ref()) {
            Ok(bytes) => Self::Packed(bytes.into()),
            // It came as JSON, so this does not happen; if it did, it would cost memory and nothing else.
            Err(_) => Self::Whole(object.clone()),
        }
    }

    fn get(&self) -> Arc<K> {
        match self {
            Self::Whole(object) => object.clone(),
            Self::Packed(bytes) => {
                Arc::new(serde_json::from_slice(bytes).expect("what was packed can be unpacked"))
            }
        }
    }
}

struct Entry<K> {
    object: Held<K>,
    version: u64,
    /// The list it was last confirmed after, or during.
    epoch: u64,
    /// Known in this epoch from our own write alone.
    unconfirmed: bool,
}

/// The objects that share a key, in the order of their uids. Most keys have one object: a tree would begin with room for
/// eleven.
#[derive(Debug)]
enum Uids {
    One(Uid),
    Several(BTreeSet<Uid>),
}

impl Uids {
    fn iter(&self) -> impl Iterator<Item = &Uid> {
        let (one, several) = match self {
            Self::One(uid) => (Some(uid), None),
            Self::Several(uids) => (None, Some(uids)),
        };
        one.into_iter().chain(several.into_iter().flatten())
    }

    fn insert(&mut self, uid: &Uid) {
        match self {
            Self::One(present) if present == uid => {}
            Self::One(present) => *self = Self::Several([present.clone(), uid.clone()].into()),
            Self::Several(uids) => {
                uids.insert(uid.clone());
            }
        }
    }

    /// Whether any is left.
    fn remove(&mut self, uid: &str) -> bool {
        match self {
            Self::One(present) => **present != *uid,
            Self::Several(uids) => {
                uids.remove(uid);
                !uids.is_empty()
            }
        }
    }
}

/// Objects of one kind by uid, name and further keys.
pub struct Index<K> {
    by_uid: HashMap<Uid, Entry<K>>,
    by_wire_name: HashMap<Arc<str>, Uids>,
    by_object_name: HashMap<Box<str>, Uid>,
    by_key: HashMap<Key, Uids>,
    /// (creation second, wire name, uid): the order of lists.
    ordered: BTreeSet<(i64, Arc<str>, Uid)>,
    /// uids of objects that do not decode, by the list that they were seen in, or after.
    undecodable: HashMap<Uid, u64>,
    removed: HashMap<String, u64>,
    removals: VecDeque<(u64, String)>,
    epoch: u64,
}

impl<K> Default for Index<K> {
    fn default() -> Self {
        Self {
            by_uid: HashMap::new(),
            by_wire_name: HashMap::new(),
            by_object_name: HashMap::new(),
            by_key: HashMap::new(),
            ordered: BTreeSet::new(),
            undecodable: HashMap::new(),
            removed: HashMap::new(),
            removals: VecDeque::new(),
            epoch: 0,
        }
    }
}

impl<K: Cached> Index<K> {
    /// Takes a version of an object, unless a newer one is here or the object is known to be gone.
    ///
    /// Returns what the cache now holds for it; `None` when it is gone.
    pub fn put(&mut self, mut object: K, source: Source) -> Option<Arc<K>> {
        let meta = object.meta_mut();
        meta.managed_fields = None;
        let version = meta
            .resource_version
            .as_deref()
            .and_then(|v| v.parse().ok())
            .unwrap_or(0);
        let uid: Uid = meta.uid.as_deref()?.into();
        self.undecodable.remove(&uid);
        if self.removed.contains_key(&*uid) {
            return None;
        }
        let epoch = self.epoch;
        if let Some(entry) = self.by_uid.get_mut(&uid) {
            if source != Source::Write {
                entry.epoch = epoch;
                entry.unconfirmed = false;
            }
            if entry.version >= version {
                return Some(entry.object.get());
            }
        }
        // A name has one object at a time: the newer of two uids replaces the older, whose removal was not seen yet.
        let name = object.meta().name.clone().unwrap_or_default();
        if let Some(other) = self
            .by_object_name
            .get(name.as_str())
            .filter(|other| **other != uid)
            .cloned()
        {
            if self
                .by_uid
                .get(&other)
                .is_some_and(|entry| entry.version > version)
            {
                return None;
            }
            self.take(&other);
        }
        let was_unconfirmed = self
            .take(&uid)
            .is_none_or(|old| old.unconfirmed || old.epoch < epoch);
        object.project();
        // A copy takes what it needs and no more: what was read has room for what was dropped.
        let object = Arc::new(if K::MANY { object } else { object.clone() });
        self.insert(&uid, &object);
        self.by_uid.insert(
            uid,
            Entry {
                object: Held::of(&object),
                version,
                epoch,
                unconfirmed: source == Source::Write && was_unconfirmed,
            },
        );
        Some(object)
    }

    /// Removes an object for good; `at` is any clock that only moves forward.
    pub fn remove(&mut self, uid: &str, at: u64) {
        self.take(uid);
        self.undecodable.remove(uid);
        if self.removed.insert(uid.to_owned(), at).is_none() {
            self.removals.push_back((at, uid.to_owned()));
        }
    }

    /// Notes that there is an object that does not decode; what was known of it before is still held.
    pub fn leave_out(&mut self, uid: &str) {
        let epoch = self.epoch;
        self.undecodable.insert(uid.into(), epoch);
        if let Some(entry) = self.by_uid.get_mut(uid) {
            entry.epoch = epoch;
        }
    }

    /// Whether every object there is decodes.
    pub fn is_complete(&self) -> bool {
        self.undecodable.is_empty()
    }

    /// Drops the memory of removals made before `at`.
    pub fn forget_removals(&mut self, at: u64) {
        while self.removals.front().is_some_and(|(when, _)| *when < at) {
            if let Some((_, uid)) = self.removals.pop_front() {
                self.removed.remove(&uid);
            }
        }
    }

    /// A list is about to be asked for: whatever it will lack is gone, except for later writes of ours.
    pub fn begin_list(&mut self) {
        self.epoch += 1;
    }

    /// The list is complete. Returns the object names of our own writes that it does not confirm: each was made after
    /// the list, or was made and removed while it was read; only the API server knows.
    pub fn end_list(&mut self, at: u64) -> Vec<String> {
        let epoch = self.epoch;
        self.undecodable.retain(|_, seen| *seen == epoch);
        let lacking: Vec<Uid> = self
            .by_uid
            .iter()
            .filter(|(_, entry)| entry.epoch < epoch)
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in lacking {
            self.remove(&uid, at);
        }
        self.by_uid
            .values()
            .filter(|entry| entry.unconfirmed)
            .filter_map(|entry| entry.object.get().meta().name.clone())
            .collect()
    }

    /// By uid, in lower case.
    pub fn by_uid(&self, uid: &str) -> Option<Arc<K>> {
        self.by_uid.get(uid).map(|entry| entry.object.get())
    }

    /// By wire name, of a file after its folder. Of namesakes (only kubectl can make them) the accepted one, else the oldest, else the first by
    /// object name.
    pub fn by_wire_name(&self, name: &str) -> Option<Arc<K>> {
        let uids = self.by_wire_name.get(name)?;
        uids.iter()
            .filter_map(|uid| self.by_uid(uid))
            .min_by_key(|object| {
                (
                    !object.is_accepted(),
                    created(object.as_ref()),
                    object.meta().name.clone(),
                )
            })
    }

    /// By `metadata.name`.
    pub fn by_object_name(&self, name: &str) -> Option<Arc<K>> {
        self.by_object_name.get(name).and_then(|uid| self.by_uid(uid))
    }

    /// By a further key, in the order of uids.
    pub fn by_key(&self, index: &'static str, value: &str) -> Vec<Arc<K>> {
        self.by_key
            .get(&(index, value.to_owned()))
            .map(|uids| uids.iter().filter_map(|uid| self.by_uid(uid)).collect())
            .unwrap_or_default()
    }

    /// All, by creation time (seconds), then wire name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.ordered
            .iter()
            .filter_map(|(_, _, uid)| self.by_uid(uid))
            .collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_uid.len()
    }

    fn insert(&mut self, uid: &Uid, object: &Arc<K>) {
        let wire: Arc<str> = object.full_name().into();
        add_to(&mut self.by_wire_name, wire.clone(), uid);
        if let Some(name) = &object.meta().name {
            self.by_object_name.insert(name.as_str().into(), uid.clone());
        }
        for key in object.keys() {
            add_to(&mut self.by_key, key, uid);
        }
        self.ordered.insert((created(object.as_ref()), wire, uid.clone()));
    }

    fn take(&mut self, uid: &str) -> Option<Entry<K>> {
        let (uid, entry) = self.by_uid.remove_entry(uid)?;
        let object = entry.object.get();
        let wire: Arc<str> = object.full_name().into();
        remove_from(&mut self.by_wire_name, &wire, &uid);
        if let Some(name) = object.meta().name.as_deref()
            && self.by_object_name.get(name).is_some_and(|holder| *holder == uid)
        {
            self.by_object_name.remove(name);
        }
        for key in object.keys() {
            remove_from(&mut self.by_key, &key, &uid);
        }
        self.ordered.remove(&(created(object.as_ref()), wire, uid));
        Some(entry)
    }
}

fn add_to<Q: Hash + Eq>(map: &mut HashMap<Q, Uids>, key: Q, uid: &Uid) {
    map.entry(key)
        .and_modify(|uids| uids.insert(uid))
        .or_insert_with(|| Uids::One(uid.clone()));
}

fn remove_from<Q: Hash + Eq>(map: &mut HashMap<Q, Uids>, key: &Q, uid: &str) {
    if map.get_mut(key).is_some_and(|uids| !uids.remove(uid)) {
        map.remove(key);
    }
}

/// Creation time in seconds since the epoch.
pub fn created<K: Resource>(object: &K) -> i64 {
    object
        .meta()
        .creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    impl Cached for ConfigMap {
        fn wire_name(&self) -> &str {
            self.data
                .as_ref()
                .and_then(|d| d.get("name"))
                .map_or("", String::as_str)
        }

        fn keys(&self) -> Vec<Key> {
            self.data
                .iter()
                .filter_map(|d| d.get("host"))
                .map(|h| ("host", h.clone()))
                .collect()
        }
    }

    #[test]
    fn it_is_complete_when_nothing_there_does_not_decode() {
        let mut index = Index::default();
        assert!(index.is_complete());
        index.leave_out("a");
        assert!(!index.is_complete());
        index.put(object("a", "x", 1), Source::Watch);
        assert!(index.is_complete(), "it decodes by now");
        index.leave_out("a");
        index.remove("a", 0);
        assert!(index.is_complete(), "it is gone");

        index.put(object("b", "y", 2), Source::Watch);
        index.leave_out("b");
        index.begin_list();
        index.leave_out("b");
        index.end_list(0);
        assert!(!index.is_complete(), "the list had it");
        assert!(index.by_uid("b").is_some(), "and what was known of it is still");
        index.begin_list();
        index.end_list(0);
        assert!(index.is_complete(), "the list did not");
    }

    fn object(uid: &str, name: &str, version: u64) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.uid = Some(uid.into());
        map.metadata.name = Some(name.into());
        map.metadata.resource_version = Some(version.to_string());
        map.metadata.creation_timestamp = Some(Time(Timestamp::from_second(100).unwrap()));
        map.data = Some([("name".to_owned(), name.to_uppercase())].into());
        map
    }

    fn with_host(mut map: ConfigMap, host: &str) -> ConfigMap {
        map.data
            .get_or_insert_default()
            .insert("host".into(), host.into());
        map
    }

    fn version(index: &Index<ConfigMap>, uid: &str) -> Option<String> {
        index
            .by_uid(uid)
            .and_then(|o| o.metadata.resource_version.clone())
    }

    #[test]
    fn versions_compare_as_numbers() {
        let mut index = Index::default();
        index.put(object("u", "a", 9), Source::Watch);
        index.put(object("u", "a", 10), Source::Write);
        assert_eq!(version(&index, "u").as_deref(), Some("10"));
        index.put(object("u", "a", 9), Source::Watch);
        assert_eq!(
            version(&index, "u").as_deref(),
            Some("10"),
            "a late watch event does not undo a write"
        );
    }

    #[test]
    fn what_was_removed_stays_removed() {
        let mut index = Index::default();
        index.put(object("u", "a", 1), Source::Write);
        index.remove("u", 5);
        assert!(
            index.put(object("u", "a", 1), Source::Watch).is_none(),
            "the echo of its creation"
        );
        assert!(
            index.put(object("u", "a", 7), Source::Write).is_none(),
            "a late answer"
        );
        assert!(index.by_object_name("a").is_none() && index.list().is_empty());
        index.put(object("v", "a", 8), Source::Write);
        assert!(
            index.by_object_name("a").is_some(),
            "a new object of the name is another one"
        );
        index.forget_removals(5);
        assert!(index.removed.contains_key("u"));
        index.forget_removals(6);
        assert!(index.removed.is_empty());
    }

    #[test]
    fn a_relist_removes_what_it_lacks_but_not_later_writes() {
        let mut index = Index::default();
        index.begin_list();
        index.put(object("listed", "a", 1), Source::List);
        index.put(object("stale", "b", 2), Source::List);
        index.put(object("written-before", "c", 3), Source::Write);
        assert_eq!(index.end_list(1), ["c"]);
        index.begin_list();
        index.put(object("written-after", "d", 9), Source::Write);
        index.put(object("listed", "a", 1), Source::List);
        index.put(object("listed", "a", 10), Source::Write);
        assert_eq!(index.end_list(2), ["d"]);
        let names: Vec<_> = index
            .list()
            .iter()
            .map(|o| o.metadata.name.clone().unwrap())
            .collect();
        assert_eq!(names, ["a", "d"]);
        index.put(object("written-after", "d", 9), Source::Watch);
        index.begin_list();
        index.put(object("listed", "a", 10), Source::List);
        index.put(object("written-after", "d", 9), Source::List);
        assert!(index.end_list(3).is_empty(), "confirmed by the list");
    }

    #[test]
    fn a_name_belongs_to_the_newer_of_two_objects() {
        let mut index = Index::default();
        index.put(object("old", "a", 1), Source::Watch);
        index.put(object("new", "a", 5), Source::Write);
        assert_eq!(
            index.by_object_name("a").unwrap().metadata.uid.as_deref(),
            Some("new")
        );
        assert!(index.put(object("old", "a", 2), Source::Watch).is_none());
        index.remove("old", 1);
        assert_eq!(
            index.by_wire_name("A").unwrap().metadata.uid.as_deref(),
            Some("new")
        );
        assert_eq!(index.len(), 1);
    }

    #[test]
    fn further_keys_follow_the_object() {
        let mut index = Index::default();
        index.put(with_host(object("u", "a", 1), "h1"), Source::Watch);
        index.put(with_host(object("v", "b", 2), "h1"), Source::Watch);
        assert_eq!(index.by_key("host", "h1").len(), 2);
        index.put(with_host(object("u", "a", 3), "h2"), Source::Watch);
        assert_eq!(
            (index.by_key("host", "h1").len(), index.by_key("host", "h2").len()),
            (1, 1)
        );
        index.remove("v", 1);
        assert!(index.by_key("host", "h1").is_empty() && index.by_key.len() == 1);
    }
}
