//! Keeps a Host, Section or Environment while something needs it: a finalizer that is there only as long as it is in use, so
//! that an unused one goes at once.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::Api;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use virtshell_crds::FINALIZER_IN_USE;
use virtshell_crds::condition::{self, Status};

use super::context::Context;
use super::write::{self, Error};

/// Condition of an object that is asked to go and cannot yet.
const IN_USE: &str = "InUse";

/// Holds or releases the object; `user` says what uses it, in the REST API's words. Returns the object as it is then, where
/// that was a write.
pub async fn guard<K>(ctx: &Context, api: &Api<K>, object: &K, user: Option<&str>) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let kind = K::kind(&()).to_lowercase();
    let name = object.name_any();
    let Some(finalizers) = finalizers(object, user.is_some()) else {
        return Ok(None);
    };
    let patch = json!({"metadata": {"finalizers": finalizers}});
    let patched = write::patch_as_read(api, object, patch)
        .await
        .map_err(Error::api(format!("hold or release {kind} {name}")))?;
    ctx.metrics.wrote("Guard");
    Ok(Some(patched))
}

/// What uses an object, in the REST API's words: the one Instance, or how many and one of them.
#[must_use]
pub fn instances(count: usize, first: Option<&str>) -> Option<String> {
    match (count, first?) {
        (0, _) => None,
        (1, name) => Some(format!("instance {name}")),
        (n, name) => Some(format!("{n} instances, {name} among them")),
    }
}

/// What keeps an object that is asked to go: the condition `InUse`, in the REST API's words.
#[must_use]
pub fn condition<K: Resource<DynamicType = ()>>(
    object: &K,
    word: &str,
    name: &str,
    user: Option<&str>,
) -> Option<Condition> {
    let user = user.filter(|_| object.meta().deletion_timestamp.is_some())?;
    let message = format!("{word} {name} is in use: {user}");
    let generation = object.meta().generation;
    Some(condition::condition(
        IN_USE,
        Status::True,
        "InUse",
        message,
        generation,
        write::now(),
    ))
}

/// The finalizers as they should be; `None` when they are. One that is being deleted gets no new ones: that is refused.
fn finalizers<K: Resource>(object: &K, in_use: bool) -> Option<Vec<String>> {
    let present = object.finalizers();
    let held = present.iter().any(|f| f == FINALIZER_IN_USE);
    match (in_use, held) {
        (true, false) if object.meta().deletion_timestamp.is_none() => Some(
            present
                .iter()
                .cloned()
                .chain([FINALIZER_IN_USE.to_owned()])
                .collect(),
        ),
        (false, true) => Some(
            present
                .iter()
                .filter(|f| *f != FINALIZER_IN_USE)
                .cloned()
                .collect(),
        ),
        (true | false, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtshell_crds::Section;

    #[test]
    fn only_what_is_in_use_is_held() {
        let section = |finalizers: &[&str], deleted: bool| -> Section {
            serde_json::from_value(json!({
                "apiVersion": "virtshell.io/v1alpha1", "kind": "Section", "spec": {},
                "metadata": {"name": "s", "finalizers": finalizers, "deletionTimestamp": deleted.then_some("2026-01-01T00:00:00Z")},
            }))
            .unwrap()
        };
        for (rule, present, deleted, in_use, expected) in [
            (
                "becomes used",
                &["other"][..],
                false,
                true,
                Some(vec!["other", FINALIZER_IN_USE]),
            ),
            ("is held", &[FINALIZER_IN_USE], false, true, None),
            (
                "no longer used",
                &["other", FINALIZER_IN_USE],
                true,
                false,
                Some(vec!["other"]),
            ),
            ("never used", &[], false, false, None),
            ("too late", &["other"], true, true, None),
        ] {
            let expected = expected.map(|list| list.into_iter().map(str::to_owned).collect::<Vec<_>>());
            assert_eq!(finalizers(&section(present, deleted), in_use), expected, "{rule}");
        }
    }
}
