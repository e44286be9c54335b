//! Who may do what: users and the keys they sign with.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use virtshell_crds::names::object_name_candidate;
use virtshell_crds::permissions::is_meant;
use virtshell_crds::{API_VERSION, Group, LABEL_CREDENTIALS, User, UserSpec, UserType};

use super::caller::groups_naming;
use super::error::{object_name, uid};
use super::objects::{forbidden, keeps_name, put, set};
use super::{Caller, Field, Holder, Kind, Service, ServiceError, Verb, is_uuid};
use crate::store::{ACCESS_KEY_ID, Cached, SECRET_ACCESS_KEY, StoreError, by, created};

/// A Secret of a user that is not there is somebody else's create in progress for this many seconds, then a leftover.
const LEFTOVER_AFTER: i64 = 60;
/// Letters of an access key id.
const KEY_ID_LETTERS: &[u8; 36] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/// Values of a user; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserChange {
    /// Must be the user's own.
    pub name: Option<String>,
    /// What the user may do.
    pub user_type: Option<UserType>,
    /// Login.
    pub login: Option<String>,
    /// Names of groups, or uuids of existing ones.
    pub groups: Option<Vec<String>>,
}

/// The keys of a new user; nobody can read them later.
pub struct Keys {
    /// Says who signs.
    pub access_key_id: String,
    /// Signs.
    pub secret_access_key: String,
}

impl Service {
    /// Makes a user and its keys: first the Secret, so that the controller finds nothing to make up for.
    pub async fn create_user(
        &self,
        caller: &Caller,
        name: &str,
        change: UserChange,
    ) -> Result<Keys, ServiceError> {
        self.check_new_name::<User>(name)?;
        let groups = self.group_names(change.groups)?;
        let keys = new_keys()?;
        let secret = self.create_credentials(name, &keys).await?;
        let secret_name = object_name(secret.as_ref()).to_owned();
        let made = self
            .create(caller, name, |metadata| User {
                metadata,
                spec: UserSpec {
                    display_name: Some(name.to_owned()),
                    type_: change.user_type.unwrap_or_default(),
                    login: change.login.clone(),
                    groups: groups.clone().unwrap_or_default(),
                    credentials_secret: Some(secret_name.clone()),
                },
                status: None,
            })
            .await;
        let user = match made {
            Ok(user) => user,
            Err(error) => {
                // Keys of nobody; the next create would stumble over them.
                if let Err(cause) = self.store().secrets.delete(secret.as_ref()).await {
                    tracing::warn!(secret = secret_name, %cause, "keys of a user that was not made stay behind");
                }
                return Err(error);
            }
        };
        self.own_credentials(&user, &secret_name).await;
        Ok(keys)
    }

    /// Names of the groups a user is in.
    #[must_use]
    pub fn groups_of(&self, user: &User) -> Vec<String> {
        super::caller::groups_of(user, self.store())
    }

    /// Whether the caller may change anything of a user: system users, and everybody of themselves.
    pub fn permit_update_user(&self, caller: &Caller, user: &User) -> Result<(), ServiceError> {
        if caller.is_system || caller.uid == uid(user) {
            return Ok(());
        }
        Err(forbidden(caller, Verb::Update, Kind::User, user.wire_name()))
    }

    /// Changes a user.
    pub async fn update_user(
        &self,
        caller: &Caller,
        user: &Arc<User>,
        change: UserChange,
    ) -> Result<(), ServiceError> {
        let name = user.wire_name().to_owned();
        self.permit_update_user(caller, user)?;
        // Of itself, a regular user changes the login alone.
        if !caller.is_system && (change.user_type.is_some() || change.groups.is_some()) {
            return Err(forbidden(caller, Verb::Update, Kind::User, &name));
        }
        keeps_name(change.name.as_ref(), &name)?;
        let groups = self.group_names(change.groups.clone())?;
        if change.user_type == Some(UserType::Regular) && !self.may_lose_system(caller, user).await? {
            return Err(ServiceError::invalid(
                Field::Type,
                format!("{name} is the last system user"),
            ));
        }
        self.change(caller, user, |user| {
            put(&mut user.spec.type_, change.user_type);
            set(&mut user.spec.login, change.login.clone());
            put(&mut user.spec.groups, groups.clone());
            Ok(())
        })
        .await?;
        match groups {
            Some(groups) => self.leave_other_groups(caller, user, &groups).await,
            None => Ok(()),
        }
    }

    /// Removes a user and its keys.
    pub async fn delete_user(&self, caller: &Caller, user: &Arc<User>) -> Result<(), ServiceError> {
        if !self.may_lose_system(caller, user).await? {
            return Err(ServiceError::InUse {
                kind: Kind::User,
                name: user.wire_name().to_owned(),
                by: Holder::System,
            });
        }
        self.remove(user.as_ref()).await?;
        // Its owner reference would do, but a new user of this name must not meet the old keys.
        if let Some(secret) = self.store().secrets.by_object_name(&user.credentials_secret()) {
            match self.store().secrets.delete(secret.as_ref()).await {
                Ok(()) | Err(StoreError::NotFound) => {}
                Err(error) => return Err(ServiceError::of_write(error, Kind::User, user.wire_name())),
            }
        }
        Ok(())
    }

    /// Makes a user a regular one, unless there is no other system user; `false` then.
    ///
    /// Another replica may do that to the other one at the same moment, each of them counting on what the other takes away. So
    /// the API server is asked who is left after the change, and it is undone when that is nobody: of two at once, at most one
    /// comes through.
    async fn may_lose_system(&self, caller: &Caller, user: &Arc<User>) -> Result<bool, ServiceError> {
        if self.is_last_system_user(user) {
            return Ok(false);
        }
        let become_ = async |user: &Arc<User>, type_| {
            self.change(caller, user, |user| {
                user.spec.type_ = type_;
                Ok(())
            })
            .await
        };
        let Some(regular) = become_(user, UserType::Regular).await? else {
            return Ok(true);
        };
        let left = self.store().users.list_whole().await.map(|users| {
            users
                .iter()
                .any(|user| user.spec.type_ == UserType::System && user.metadata.deletion_timestamp.is_none())
        });
        if !matches!(left, Ok(true)) {
            become_(&regular, UserType::System).await?;
        }
        left.map_err(|error| ServiceError::of_write(error, Kind::User, user.wire_name()))
    }

    fn is_last_system_user(&self, user: &User) -> bool {
        let is_system = |user: &User| user.spec.type_ == UserType::System;
        is_system(user)
            && self
                .store()
                .users
                .list()
                .iter()
                .filter(|user| is_system(user))
                .count()
                == 1
    }

    /// Names of groups; a uuid must be one's.
    fn group_names(&self, groups: Option<Vec<String>>) -> Result<Option<Vec<String>>, ServiceError> {
        let Some(groups) = groups else { return Ok(None) };
        let mut names = Vec::with_capacity(groups.len());
        for group in groups {
            let name = if is_uuid(&group) {
                self.reference::<Group>(&group)?.wire_name().to_owned()
            } else {
                group
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(Some(names))
    }

    /// Takes the user out of groups that name it and that it shall not be in.
    async fn leave_other_groups(
        &self,
        caller: &Caller,
        user: &User,
        stay: &[String],
    ) -> Result<(), ServiceError> {
        for group in groups_naming(user, self.store()) {
            if stay.iter().any(|g| *g == group.wire_name()) {
                continue;
            }
            self.change(caller, &group, |group| {
                group.spec.users.retain(|entry| !is_meant(user, entry));
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn create_credentials(&self, name: &str, keys: &Keys) -> Result<Arc<Secret>, ServiceError> {
        let secret_name = format!("user-{}", object_name_candidate(name, 1));
        let of_write = |error| ServiceError::of_write(error, Kind::User, name);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(secret_name.clone()),
                labels: Some([(LABEL_CREDENTIALS.to_owned(), "true".to_owned())].into()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([
                (
                    ACCESS_KEY_ID.to_owned(),
                    ByteString(keys.access_key_id.clone().into_bytes()),
                ),
                (
                    SECRET_ACCESS_KEY.to_owned(),
                    ByteString(keys.secret_access_key.clone().into_bytes()),
                ),
            ])),
            ..Secret::default()
        };
        let secrets = &self.store().secrets;
        match secrets.create(&secret).await {
            Err(StoreError::AlreadyExists) => {}
            made => return made.map_err(of_write),
        }
        // Of a user that is being made now, or of one whose creation or removal broke off.
        let left = match secrets.refresh(&secret_name).await {
            Ok(left) => Some(left),
            Err(StoreError::NotFound) => None,
            Err(error) => return Err(of_write(error)),
        };
        if let Some(left) = left {
            let has_label = left
                .metadata
                .labels
                .as_ref()
                .is_some_and(|l| l.contains_key(LABEL_CREDENTIALS));
            let is_used = !self.store().users.by_key(by::SECRET, &secret_name).is_empty();
            let is_old = Timestamp::now().as_second() - created(left.as_ref()) > LEFTOVER_AFTER;
            if !has_label || is_used || !is_old {
                return Err(ServiceError::AlreadyExists {
                    kind: Kind::User,
                    name: name.to_owned(),
                });
            }
            match secrets.delete(left.as_ref()).await {
                Ok(()) | Err(StoreError::NotFound) => {}
                Err(error) => return Err(of_write(error)),
            }
        }
        secrets.create(&secret).await.map_err(of_write)
    }

    /// Lets the keys go with the user. The controller makes up for it when this fails.
    async fn own_credentials(&self, user: &User, secret: &str) {
        let owner = json!({"metadata": {"ownerReferences": [{
            "apiVersion": API_VERSION,
            "kind": Kind::User.as_str(),
            "name": object_name(user),
            "uid": uid(user),
        }]}});
        if let Err(error) = self.store().secrets.patch(secret, &owner).await {
            tracing::warn!(secret, %error, "keys are not owned by their user yet");
        }
    }
}

fn new_keys() -> Result<Keys, ServiceError> {
    let mut id = String::with_capacity(20);
    while id.len() < 20 {
        let bytes: [u8; 32] = random()?;
        // 252 is the largest multiple of 36 in a byte: above it, some letters would come more often.
        let letters = bytes
            .iter()
            .filter(|byte| **byte < 252)
            .map(|byte| KEY_ID_LETTERS[usize::from(byte % 36)] as char);
        id.extend(letters.take(20 - id.len()));
    }
    let secret: [u8; 30] = random()?;
    Ok(Keys {
        access_key_id: id,
        secret_access_key: URL_SAFE_NO_PAD.encode(secret),
    })
}

fn random<const N: usize>() -> Result<[u8; N], ServiceError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|_| ServiceError::Internal("the system has no random numbers".to_owned()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_shape_of_the_contract() {
        let (keys, others) = (new_keys().unwrap(), new_keys().unwrap());
        assert_eq!(keys.access_key_id.len(), 20);
        assert!(keys.access_key_id.bytes().all(|b| KEY_ID_LETTERS.contains(&b)));
        assert_eq!(keys.secret_access_key.len(), 40);
        assert!(
            keys.secret_access_key
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        );
        assert_ne!(keys.access_key_id, others.access_key_id);
        assert_ne!(keys.secret_access_key, others.secret_access_key);
    }
}
