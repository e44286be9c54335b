//! Users' keys and groups' members.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Resource;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use serde_json::json;
use virtshell_crds::group::GroupMember;
use virtshell_crds::permissions::{is_meant, is_member};
use virtshell_crds::{Group, LABEL_CREDENTIALS, MANAGER_CONTROLLER, User};

use super::cache::{Cached, ObjectKey};
use super::context::Context;
use super::wire_name;
use super::write::{self, Error};
use crate::status::differs;

/// Keys are looked at this often: the controller may read a Secret by name, not watch them all, so nobody tells when one was
/// deleted or changed.
const KEYS_PERIOD: Duration = Duration::from_mins(1);
const ACCESS_KEY_ID: &str = "accessKeyId";
const SECRET_ACCESS_KEY: &str = "secretAccessKey";
/// Characters of an access key id.
const ID_ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// Characters of a secret key: those of URL-safe base64.
const KEY_ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Looks at one User: makes its default keys when they are missing, and shows the id. The answer is when to look again.
pub async fn reconcile(ctx: &Context, key: &ObjectKey) -> Result<Option<Duration>, Error> {
    let Some(user) = ctx
        .users
        .get(key)
        .filter(|u| u.metadata.deletion_timestamp.is_none())
    else {
        return Ok(None);
    };
    let name = user.credentials_secret();
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), &key.namespace);
    let found = secrets
        .get_opt(&name)
        .await
        .map_err(Error::api(format!("read the keys of user {key}")))?;
    let secret = match found {
        Some(secret) => Ok(secret),
        None if user.spec.credentials_secret.is_none() => {
            let made = new_credentials(&user, &name)?;
            let made = secrets
                .create(&PostParams::default(), &made)
                .await
                .map_err(Error::api(format!("make keys for user {key}")))?;
            ctx.metrics.wrote("Secret");
            tracing::info!(user.name = %key, secret = name, "made keys");
            Ok(made)
        }
        None => Err(("SecretNotFound", format!("secret {name} not found"))),
    };
    let id = secret.and_then(|secret| access_key_id(&secret).ok_or_else(|| {
        let message = format!("secret {name} needs {ACCESS_KEY_ID}, {SECRET_ACCESS_KEY} and the label {LABEL_CREDENTIALS}=true");
        ("SecretUnusable", message)
    }));
    let generation = user.metadata.generation;
    let flaw = id.as_ref().err().cloned();
    let flaw = wire_name::conflict(&ctx.users, &*user, "user").or(flaw);
    let accepted = wire_name::accepted(generation, flaw);
    let present = user
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let status = json!({
        "observedGeneration": generation,
        "accessKeyId": id.unwrap_or_default(),
        "conditions": write::conditions(present, [accepted]),
    });
    if differs(
        &json!(user.status),
        &status,
        &["observedGeneration", "accessKeyId", "conditions"],
    ) {
        let api: Api<User> = Api::namespaced(ctx.client.clone(), &key.namespace);
        write::apply_as_read(&api, &*user, MANAGER_CONTROLLER, &status)
            .await
            .map_err(Error::api(format!("write the status of user {key}")))?;
        ctx.metrics.wrote("User");
    }
    Ok(Some(KEYS_PERIOD))
}

/// The id in a Secret that the gateway can use.
fn access_key_id(secret: &Secret) -> Option<String> {
    let labelled = secret
        .labels()
        .get(LABEL_CREDENTIALS)
        .is_some_and(|v| v == "true");
    let data = secret.data.as_ref()?;
    let id = String::from_utf8(data.get(ACCESS_KEY_ID)?.0.clone()).ok()?;
    let usable = labelled && !id.is_empty() && data.get(SECRET_ACCESS_KEY).is_some_and(|k| !k.0.is_empty());
    usable.then_some(id)
}

fn new_credentials(user: &User, name: &str) -> Result<Secret, Error> {
    Ok(Secret {
        metadata: kube::api::ObjectMeta {
            name: Some(name.to_owned()),
            namespace: user.namespace(),
            labels: Some([(LABEL_CREDENTIALS.to_owned(), "true".to_owned())].into()),
            owner_references: user.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..kube::api::ObjectMeta::default()
        },
        string_data: Some(
            [
                (ACCESS_KEY_ID.to_owned(), random_text(20, ID_ALPHABET)?),
                (SECRET_ACCESS_KEY.to_owned(), random_text(40, KEY_ALPHABET)?),
            ]
            .into(),
        ),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    })
}

/// `length` characters of an alphabet whose size is a power of two, so that each is equally likely.
fn random_text<const N: usize>(length: usize, alphabet: &[u8; N]) -> Result<String, Error> {
    const { assert!(N.is_power_of_two()) };
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).map_err(Error::Random)?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(alphabet[usize::from(*byte) % N]))
        .collect())
}

/// Looks at one Group: who is in it.
pub async fn reconcile_group(ctx: &Context, key: &ObjectKey) -> Result<(), Error> {
    let Some(group) = ctx.groups.get(key) else {
        return Ok(());
    };
    let users: Vec<_> = ctx
        .users
        .all()
        .into_iter()
        .filter(|u| u.metadata.namespace == group.metadata.namespace)
        .collect();
    let members = members(&group, &users);
    let generation = group.metadata.generation;
    let accepted = wire_name::accepted(generation, wire_name::conflict(&ctx.groups, &*group, "group"));
    let present = group
        .status
        .as_ref()
        .map(|s| s.conditions.as_slice())
        .unwrap_or_default();
    let status = json!({
        "observedGeneration": generation,
        "members": members,
        "conditions": write::conditions(present, [accepted]),
    });
    if differs(
        &json!(group.status),
        &status,
        &["observedGeneration", "members", "conditions"],
    ) {
        let api: Api<Group> = Api::namespaced(ctx.client.clone(), &key.namespace);
        write::apply_as_read(&api, &*group, MANAGER_CONTROLLER, &status)
            .await
            .map_err(Error::api(format!("write the status of group {key}")))?;
        ctx.metrics.wrote("Group");
    }
    Ok(())
}

/// The members of a group, sorted by name.
fn members(group: &Group, users: &[std::sync::Arc<User>]) -> Vec<GroupMember> {
    let mut members: Vec<GroupMember> = users
        .iter()
        .filter(|user| is_member(user, group))
        .map(|user| GroupMember {
            name: user.wire_name().to_owned(),
            uid: user.uid().unwrap_or_default(),
        })
        .collect();
    let strangers = group
        .spec
        .users
        .iter()
        .filter(|name| !users.iter().any(|user| is_meant(user, name)));
    members.extend(strangers.map(|name| GroupMember {
        name: name.clone(),
        uid: String::new(),
    }));
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::needless_pass_by_value,
        reason = "JSON literals read better as arguments"
    )]

    use super::*;
    use serde_json::Value;
    use std::sync::Arc;

    fn user(name: &str, spec: Value) -> Arc<User> {
        let object = json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "User",
            "metadata": {"name": name, "namespace": "n", "uid": format!("{name}-uid")}, "spec": spec,
        });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn keys_have_the_right_shape_and_differ() {
        let user = user("tester", json!({}));
        let (one, two) = (
            new_credentials(&user, "s").unwrap(),
            new_credentials(&user, "s").unwrap(),
        );
        let (one, two) = (one.string_data.unwrap(), two.string_data.unwrap());
        assert_ne!(one, two);
        let (id, key) = (&one[ACCESS_KEY_ID], &one[SECRET_ACCESS_KEY]);
        assert!(id.len() == 20 && id.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit()));
        assert!(key.len() == 40 && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)));
    }

    #[test]
    fn only_a_labelled_complete_secret_counts() {
        let secret = |label: &str, data: Value| -> Secret {
            serde_json::from_value(json!({"metadata": {"labels": {LABEL_CREDENTIALS: label}}, "data": data}))
                .unwrap()
        };
        let full = json!({"accessKeyId": "QUI=", "secretAccessKey": "QUI="});
        assert_eq!(
            access_key_id(&secret("true", full.clone())).as_deref(),
            Some("AB")
        );
        assert_eq!(access_key_id(&secret("false", full)), None);
        assert_eq!(
            access_key_id(&secret("true", json!({"accessKeyId": "QUI="}))),
            None
        );
    }

    #[test]
    fn members_come_from_both_sides() {
        let group: Group = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Group", "metadata": {"name": "g"},
            "spec": {"displayName": "team", "users": ["zoe", "nobody", "bob-uid"]},
        }))
        .unwrap();
        let users = [
            user("zoe", json!({})),
            user("ann", json!({"groups": ["team"]})),
            user("bob", json!({})),
            user("eve", json!({"groups": ["g2"]})),
        ];
        let names: Vec<_> = members(&group, &users)
            .into_iter()
            .map(|m| (m.name, m.uid))
            .collect();
        let pair = |name: &str, uid: &str| (name.to_owned(), uid.to_owned());
        assert_eq!(
            names,
            [
                pair("ann", "ann-uid"),
                pair("bob", "bob-uid"),
                pair("nobody", ""),
                pair("zoe", "zoe-uid")
            ]
        );
    }
}
