//! On whose behalf a request is made.

use std::collections::BTreeSet;
use std::sync::Arc;

use virtshell_crds::permissions::{self, Subject};
use virtshell_crds::{Group, User, UserType};

use super::error::uid;
use crate::store::{Cached, Store, by};

/// uid of the identity of unsigned requests.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// On whose behalf a request is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// uid of the User.
    pub uid: String,
    /// User name.
    pub name: String,
    /// Login.
    pub login: String,
    /// Passes every check.
    pub is_system: bool,
    /// Names of all groups it is in.
    pub groups: BTreeSet<String>,
    /// The group of what it creates.
    pub primary_group: Option<String>,
    /// The id of the request, which what it makes and changes carries; empty where there is none.
    pub request_id: String,
}

impl Caller {
    /// The caller of an unsigned request where these are allowed.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            uid: NOBODY.to_owned(),
            name: "system:anonymous".to_owned(),
            login: "system:anonymous".to_owned(),
            is_system: true,
            groups: BTreeSet::new(),
            primary_group: None,
            request_id: String::new(),
        }
    }

    /// This user, with the groups it names and those that name it.
    #[must_use]
    pub fn of(user: &User, store: &Store) -> Self {
        let name = user.wire_name().to_owned();
        Self {
            uid: uid(user).to_owned(),
            login: user.spec.login.clone().unwrap_or_else(|| name.clone()),
            is_system: user.spec.type_ == UserType::System,
            groups: groups_of(user, store).into_iter().collect(),
            primary_group: user.spec.groups.first().cloned(),
            request_id: String::new(),
            name,
        }
    }

    /// As permissions see it.
    #[must_use]
    pub fn subject(&self) -> Subject<'_> {
        Subject {
            name: &self.name,
            is_system: self.is_system,
            groups: &self.groups,
        }
    }

    /// Who owns what it creates: nobody for unsigned requests, which then belongs to everybody.
    #[must_use]
    pub fn as_owner(&self) -> Option<String> {
        (self.uid != NOBODY).then(|| self.name.clone())
    }
}

/// Names of the groups of a user: those it names, in its order, then those that name it.
#[must_use]
pub fn groups_of(user: &User, store: &Store) -> Vec<String> {
    permissions::groups_of(user, groups_naming(user, store).iter().map(AsRef::as_ref))
}

/// The groups that name a user, by name or uid.
pub(super) fn groups_naming(user: &User, store: &Store) -> Vec<Arc<Group>> {
    let by = |name| store.groups.by_key(by::MEMBER, name);
    let mut groups = by(user.wire_name());
    groups.extend(by(uid(user)));
    groups
}
