//! Finding, permitting, making, changing and removing objects: the same for every kind.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};
use virtshell_crds::permissions::{self, Right};
use virtshell_crds::{
    ANNOTATION_CREATED_AT, ANNOTATION_CREATED_BY, ANNOTATION_MODIFIED_AT, ANNOTATION_MODIFIED_BY,
    ANNOTATION_REQUEST_ID, LABEL_NAME, LABEL_NAME_HASH, User, instance::Permissions, names as derived,
};

use super::error::{object_name, uid};
use super::{Caller, Field, Kind, Managed, Service, ServiceError, Verb, is_uuid, names};
use crate::store::{Cached, StoreError};

/// How often a change is decided anew when others write at the same time.
const RETRIES: u32 = 3;
/// How many object names are tried for one wire name; more than one only after renames with kubectl.
const CANDIDATES: u32 = 10;
/// How long a DELETE waits for finalizers that guard an object in use.
const DELETION_PATIENCE: Duration = Duration::from_secs(10);

impl Service {
    /// The object that a URI names, by name or uuid.
    pub fn find<K: Managed>(&self, id: &str) -> Result<Arc<K>, ServiceError> {
        let objects = K::collection(&self.store);
        let found = if is_uuid(id) {
            objects.by_uid(id)
        } else {
            objects.by_wire_name(id)
        };
        found.ok_or_else(|| ServiceError::NotFound {
            kind: K::KIND,
            name: id.to_owned(),
        })
    }

    /// The object that a value of the input names, by name or uuid.
    pub fn reference<K: Managed>(&self, id: &str) -> Result<Arc<K>, ServiceError> {
        self.named(id).ok_or_else(|| ServiceError::UnknownReference {
            kind: K::KIND,
            name: id.to_owned(),
        })
    }

    /// The object that another object's spec names: by wire name, else by `metadata.name`; or by uuid.
    pub(super) fn named<K: Managed>(&self, id: &str) -> Option<Arc<K>> {
        let objects = K::collection(&self.store);
        if is_uuid(id) {
            return objects.by_uid(id);
        }
        objects.by_wire_name(id).or_else(|| objects.by_object_name(id))
    }

    /// All objects of a kind that the caller may see, by creation time and name.
    #[must_use]
    pub fn visible<K: Managed>(&self, caller: &Caller) -> Vec<Arc<K>> {
        let mut objects = K::collection(&self.store).list();
        if !caller.is_system {
            objects.retain(|object| may(caller, Verb::Read, Some(object.as_ref())));
        }
        objects
    }

    /// The object that a URI names, if the caller may do this with it.
    pub fn permitted<K: Managed>(
        &self,
        caller: &Caller,
        verb: Verb,
        id: &str,
    ) -> Result<Arc<K>, ServiceError> {
        let object = self.find::<K>(id)?;
        permit(caller, verb, object.as_ref())?;
        Ok(object)
    }

    /// Whether the caller may make objects of a kind.
    pub fn permit_create<K: Managed>(&self, caller: &Caller) -> Result<(), ServiceError> {
        if may::<K>(caller, Verb::Create, None) {
            return Ok(());
        }
        Err(forbidden(caller, Verb::Create, K::KIND, ""))
    }

    /// Checks that a name may be given to a new object and is free.
    pub(super) fn check_new_name<K: Managed>(&self, name: &str) -> Result<(), ServiceError> {
        names::check(K::KIND, name).map_err(|reason| ServiceError::invalid(Field::Name, reason))?;
        if K::collection(&self.store).by_wire_name(name).is_some() {
            return Err(exists::<K>(name));
        }
        Ok(())
    }

    /// Makes an object under the first object name that its wire name may have. The API server decides races.
    pub(super) async fn create<K: Managed>(
        &self,
        caller: &Caller,
        name: &str,
        make: impl Fn(ObjectMeta) -> K,
    ) -> Result<Arc<K>, ServiceError> {
        let objects = K::collection(&self.store);
        for n in 1..=CANDIDATES {
            let candidate = derived::object_name_candidate(name, n);
            match objects
                .create(&make(new_metadata(caller, name, &candidate)))
                .await
            {
                Err(StoreError::AlreadyExists) => match objects.refresh(&candidate).await {
                    Ok(holder) if holder.full_name() == name => return Err(exists::<K>(name)),
                    // It carries another wire name, or is gone already: the next candidate is as good.
                    Ok(_) | Err(StoreError::NotFound) => {}
                    Err(error) => return Err(ServiceError::of_write(error, K::KIND, name)),
                },
                outcome => return outcome.map_err(|error| ServiceError::of_write(error, K::KIND, name)),
            }
        }
        Err(exists::<K>(name))
    }

    /// Changes an object: `edit` is applied to what is known of it, and only the fields that differ are sent. `None`
    /// when nothing differs.
    ///
    /// What is known may be old, because another replica has written since. So a change holds only for the version that it was
    /// decided on, and that nothing differs is not believed of a cache.
    pub(super) async fn change<K: Managed>(
        &self,
        caller: &Caller,
        object: &Arc<K>,
        edit: impl Fn(&mut K) -> Result<(), ServiceError>,
    ) -> Result<Option<Arc<K>>, ServiceError> {
        let objects = K::collection(&self.store);
        let name = object_name(object.as_ref()).to_owned();
        let of_write = |error| ServiceError::of_write(error, K::KIND, object.wire_name());
        let mut known = object.clone();
        for attempt in 0.. {
            let mut edited = known.as_ref().clone();
            edit(&mut edited)?;
            match difference(&spec_of(known.as_ref()), &spec_of(&edited)) {
                Some(spec) => {
                    let mut patch = json!({"metadata": {"annotations": modified(caller)}, "spec": spec});
                    patch["metadata"]["resourceVersion"] = json!(known.meta().resource_version);
                    // A namesake made meanwhile is not the object that was asked for.
                    patch["metadata"]["uid"] = json!(known.meta().uid);
                    match objects.patch(&name, &patch).await {
                        Err(StoreError::Conflict) if attempt < RETRIES => {}
                        changed => return changed.map(Some).map_err(of_write),
                    }
                }
                None if attempt > 0 => return Ok(None),
                None => {}
            }
            known = objects.refresh(&name).await.map_err(of_write)?;
            if known.meta().uid != object.meta().uid {
                return Err(of_write(StoreError::NotFound));
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Removes an object that no node works on, and waits until it is gone.
    pub(super) async fn remove<K: Managed>(&self, object: &K) -> Result<(), ServiceError> {
        let objects = K::collection(&self.store);
        let name = object.wire_name();
        objects
            .delete(object)
            .await
            .map_err(|error| ServiceError::of_write(error, K::KIND, name))?;
        if objects.is_gone(uid(object), DELETION_PATIENCE).await {
            return Ok(());
        }
        Err(ServiceError::Internal(
            "the object is marked for deletion and still held by a finalizer".to_owned(),
        ))
    }

    /// Owner and group of a new object.
    pub(super) fn ownership_of_new(
        &self,
        caller: &Caller,
        wanted: &Ownership,
    ) -> Result<(Option<String>, Option<String>), ServiceError> {
        let owner = match &wanted.owner {
            Some(owner) => {
                let owner = self.reference::<User>(owner)?.wire_name().to_owned();
                // Rights go by the owner: nobody takes those of another.
                if !caller.is_system && owner != caller.name {
                    let reason = "only a system user may name another owner";
                    return Err(ServiceError::invalid(Field::Owner, reason));
                }
                Some(owner)
            }
            None => caller.as_owner(),
        };
        let group = match &wanted.group {
            Some(group) => Some(self.group_of_owner(owner.as_deref(), group)?),
            None => caller.primary_group.clone(),
        };
        Ok((owner, group))
    }

    /// Owner and group that a change asks for; only the owner and system users may ask.
    pub(super) fn ownership_of_changed<K: Managed>(
        &self,
        caller: &Caller,
        object: &K,
        wanted: &Ownership,
    ) -> Result<Ownership, ServiceError> {
        if wanted.is_empty() {
            return Ok(Ownership::default());
        }
        let current = object
            .guarded()
            .and_then(|guarded| guarded.owner.map(str::to_owned));
        if !caller.is_system && current.as_deref() != Some(&caller.name) {
            return Err(forbidden(caller, Verb::Update, K::KIND, object.wire_name()));
        }
        let owner = match &wanted.owner {
            Some(owner) => Some(self.reference::<User>(owner)?.wire_name().to_owned()),
            None => None,
        };
        let group = match &wanted.group {
            Some(group) => Some(self.group_of_owner(owner.as_deref().or(current.as_deref()), group)?),
            None => None,
        };
        Ok(Ownership { owner, group })
    }

    fn group_of_owner(&self, owner: Option<&str>, group: &str) -> Result<String, ServiceError> {
        let Some(user) = owner.and_then(|owner| self.store.users.by_wire_name(owner)) else {
            return Ok(group.to_owned());
        };
        if super::caller::groups_of(&user, &self.store)
            .iter()
            .any(|g| g == group)
        {
            return Ok(group.to_owned());
        }
        let reason = format!("{} is not a member of {group}", user.wire_name());
        Err(ServiceError::invalid(Field::Group, reason))
    }
}

/// Owner and group that a request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ownership {
    /// User name or uuid.
    pub owner: Option<String>,
    /// Name of a group.
    pub group: Option<String>,
}

impl Ownership {
    fn is_empty(&self) -> bool {
        self.owner.is_none() && self.group.is_none()
    }

    /// Writes what is given over what is there.
    pub(super) fn apply(&self, owner: &mut Option<String>, group: &mut Option<String>) {
        set(owner, self.owner.clone());
        set(group, self.group.clone());
    }
}

/// Checks a permission string that a request brings.
pub(super) fn checked_permissions(text: Option<&String>) -> Result<Option<Permissions>, ServiceError> {
    let Some(text) = text else { return Ok(None) };
    permissions::parse(text).map_err(|reason| ServiceError::invalid(Field::Permissions, reason))?;
    Ok(Some(Permissions(text.clone())))
}

/// Refuses a name in a change that is not the object's own.
pub(super) fn keeps_name(wanted: Option<&String>, name: &str) -> Result<(), ServiceError> {
    match wanted {
        Some(wanted) if wanted != name => Err(ServiceError::invalid(
            Field::Name,
            virtshell_crds::words::IMMUTABLE,
        )),
        Some(_) | None => Ok(()),
    }
}

/// Writes a value that was given; leaves the field alone otherwise.
pub(super) fn set<T>(field: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *field = value;
    }
}

/// Writes a value that was given; leaves the field alone otherwise.
pub(super) fn put<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Whether the caller may do this with an object, or with the kind as a whole.
pub(super) fn may<K: Managed>(caller: &Caller, verb: Verb, object: Option<&K>) -> bool {
    if caller.is_system {
        return true;
    }
    let Some(guarded) = object.and_then(Managed::guarded) else {
        return match K::KIND {
            Kind::Image | Kind::Provisioner | Kind::Instance | Kind::Task | Kind::File => {
                verb == Verb::Create
            }
            Kind::Host | Kind::Section | Kind::Environment | Kind::User | Kind::Group => verb == Verb::Read,
        };
    };
    let right = match verb {
        Verb::Create | Verb::Read | Verb::Use => Right::Read,
        Verb::Update | Verb::Delete => Right::Write,
        Verb::Execute => Right::Execute,
    };
    permissions::allows(&guarded, caller.subject(), right)
}

/// Refuses what the caller may not do with an object.
pub(super) fn permit<K: Managed>(caller: &Caller, verb: Verb, object: &K) -> Result<(), ServiceError> {
    if may(caller, verb, Some(object)) {
        return Ok(());
    }
    Err(forbidden(caller, verb, K::KIND, object.wire_name()))
}

pub(super) fn forbidden(caller: &Caller, verb: Verb, kind: Kind, name: &str) -> ServiceError {
    ServiceError::Forbidden {
        caller: caller.name.clone(),
        verb,
        kind,
        name: name.to_owned(),
    }
}

fn exists<K: Managed>(name: &str) -> ServiceError {
    ServiceError::AlreadyExists {
        kind: K::KIND,
        name: name.to_owned(),
    }
}

fn new_metadata(caller: &Caller, wire_name: &str, object_name: &str) -> ObjectMeta {
    let mut labels = vec![(LABEL_NAME_HASH.to_owned(), derived::name_hash(wire_name))];
    if derived::is_label_value(wire_name) {
        labels.push((LABEL_NAME.to_owned(), wire_name.to_owned()));
    }
    ObjectMeta {
        name: Some(object_name.to_owned()),
        labels: Some(labels.into_iter().collect()),
        annotations: Some(created(caller)),
        ..ObjectMeta::default()
    }
}

/// Annotations of whatever this caller makes now.
pub(super) fn created(caller: &Caller) -> std::collections::BTreeMap<String, String> {
    let now = Timestamp::now().as_microsecond().to_string();
    let request = (!caller.request_id.is_empty()).then(|| (ANNOTATION_REQUEST_ID, caller.request_id.clone()));
    [
        (ANNOTATION_CREATED_BY, caller.uid.clone()),
        (ANNOTATION_CREATED_AT, now),
    ]
    .into_iter()
    .chain(request)
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// Annotations of whatever this caller changes now.
pub(super) fn modified(caller: &Caller) -> Value {
    let mut annotations = json!({
        ANNOTATION_MODIFIED_AT: Timestamp::now().as_second().to_string(),
        ANNOTATION_MODIFIED_BY: caller.uid,
    });
    if !caller.request_id.is_empty() {
        annotations[ANNOTATION_REQUEST_ID] = json!(caller.request_id);
    }
    annotations
}

fn spec_of<K: Managed>(object: &K) -> Value {
    serde_json::to_value(object)
        .ok()
        .and_then(|mut value| value.get_mut("spec").map(Value::take))
        .unwrap_or_default()
}

/// The merge patch (RFC 7396) from one value to another; `None` when they are equal.
fn difference(from: &Value, to: &Value) -> Option<Value> {
    let (Some(old), Some(new)) = (from.as_object(), to.as_object()) else {
        return (from != to).then(|| to.clone());
    };
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        let part = match old.get(key) {
            Some(before) => difference(before, value),
            None => Some(value.clone()),
        };
        patch.extend(part.map(|part| (key.clone(), part)));
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_sent() {
        for (from, to, patch) in [
            (json!({"a": 1}), json!({"a": 1}), None),
            (
                json!({"a": 1, "b": 2}),
                json!({"a": 1, "b": 3}),
                Some(json!({"b": 3})),
            ),
            (json!({"a": 1, "b": 2}), json!({"b": 2}), Some(json!({"a": null}))),
            (json!({}), json!({"a": {"b": 1}}), Some(json!({"a": {"b": 1}}))),
            (
                json!({"a": {"b": 1, "c": 2}}),
                json!({"a": {"b": 5, "c": 2}}),
                Some(json!({"a": {"b": 5}})),
            ),
            (json!({"l": [1, 2]}), json!({"l": [2]}), Some(json!({"l": [2]}))),
            (
                json!({"a": {"b": 1}}),
                json!({"a": {}}),
                Some(json!({"a": {"b": null}})),
            ),
        ] {
            assert_eq!(difference(&from, &to), patch, "{from} -> {to}");
        }
    }
}
