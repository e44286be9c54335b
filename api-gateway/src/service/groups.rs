//! Users that permissions speak of together.

use std::collections::BTreeMap;

use virtshell_crds::Group;

use super::Service;
use super::error::uid;
use crate::store::{Cached, by};

impl Service {
    /// Members of a group by name: the users it names and those that name it; with the uid of those that exist.
    #[must_use]
    pub fn members(&self, group: &Group) -> BTreeMap<String, Option<String>> {
        let named = group
            .spec
            .users
            .iter()
            .map(|name| (name.clone(), self.store().users.by_wire_name(name)));
        let naming = self.store().users.by_key(by::MEMBER, &group.wire_name());
        let naming = naming
            .into_iter()
            .map(|user| (user.wire_name().to_owned(), Some(user)));
        named
            .chain(naming)
            .map(|(name, user)| (name, user.map(|user| uid(user.as_ref()).to_owned())))
            .collect()
    }
}
