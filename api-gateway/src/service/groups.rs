//! Users that permissions speak of together.
//!
//! A user is a member when the group names it or it names the group. A change of one side sets exactly what that side
//! shows: the other side's word is taken back where it disagrees.

use std::collections::BTreeMap;
use std::sync::Arc;

use virtshell_crds::{Group, GroupSpec, User};

use super::error::uid;
use super::objects::keeps_name;
use super::{Caller, Holder, Kind, Service, ServiceError, is_uuid};
use crate::store::{Cached, by};

/// Values of a group; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupChange {
    /// Must be the group's own.
    pub name: Option<String>,
    /// Names of users, or uuids of existing ones.
    pub users: Option<Vec<String>>,
}

impl Service {
    /// Makes a group.
    pub async fn create_group(
        &self,
        caller: &Caller,
        name: &str,
        change: GroupChange,
    ) -> Result<(), ServiceError> {
        self.check_new_name::<Group>(name)?;
        let users = self.user_names(change.users)?.unwrap_or_default();
        let spec = GroupSpec {
            display_name: Some(name.to_owned()),
            users,
        };
        self.create(caller, name, |metadata| Group {
            metadata,
            spec: spec.clone(),
            status: None,
        })
        .await?;
        Ok(())
    }

    /// Changes a group.
    pub async fn update_group(
        &self,
        caller: &Caller,
        group: &Arc<Group>,
        change: GroupChange,
    ) -> Result<(), ServiceError> {
        let name = group.wire_name();
        keeps_name(change.name.as_ref(), name)?;
        let Some(users) = self.user_names(change.users)? else {
            return Ok(());
        };
        self.change(caller, group, |group| {
            group.spec.users.clone_from(&users);
            Ok(())
        })
        .await?;
        for user in self.store().users.by_key(by::MEMBER, name) {
            if users.iter().any(|stays| stays == user.wire_name()) {
                continue;
            }
            self.change(caller, &user, |user| {
                user.spec.groups.retain(|group| group != name);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Removes a group without members that exist.
    pub async fn delete_group(&self, group: &Group) -> Result<(), ServiceError> {
        if let Some((user, _)) = self.members(group).into_iter().find(|(_, uid)| uid.is_some()) {
            let name = group.wire_name().to_owned();
            return Err(ServiceError::InUse {
                kind: Kind::Group,
                name,
                by: Holder::Object {
                    kind: Kind::User,
                    name: user,
                },
            });
        }
        self.remove(group).await
    }

    /// Members of a group by name: the users it names and those that name it; with the uid of those that exist.
    #[must_use]
    pub fn members(&self, group: &Group) -> BTreeMap<String, Option<String>> {
        let users = &self.store().users;
        let named = group.spec.users.iter().map(|entry| {
            let user = users.by_wire_name(entry).or_else(|| users.by_uid(entry));
            let name = user.as_ref().map_or(entry.as_str(), |user| user.wire_name());
            (name.to_owned(), user)
        });
        let naming = users.by_key(by::MEMBER, group.wire_name());
        let naming = naming
            .into_iter()
            .map(|user| (user.wire_name().to_owned(), Some(user)));
        named
            .chain(naming)
            .map(|(name, user)| (name, user.map(|user| uid(user.as_ref()).to_owned())))
            .collect()
    }

    /// Names of users; a uuid must be one's.
    fn user_names(&self, users: Option<Vec<String>>) -> Result<Option<Vec<String>>, ServiceError> {
        let Some(users) = users else { return Ok(None) };
        let mut names = Vec::with_capacity(users.len());
        for user in users {
            let name = if is_uuid(&user) {
                self.reference::<User>(&user)?.wire_name().to_owned()
            } else {
                user
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        Ok(Some(names))
    }
}
