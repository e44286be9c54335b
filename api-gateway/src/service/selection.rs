//! Which instances a request means by names, patterns, tags and addresses.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use virtshell_crds::{Instance, Provisioner, resolve};

use super::objects::{may, permit};
use super::{Caller, Kind, Service, ServiceError, Verb};

/// One way to mean instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Exactly this one, by name or uuid; a launch parent stands for its children.
    Name(String),
    /// All whose name matches one of these; `*` matches any run of characters.
    Matching(Vec<String>),
    /// All with this tag, their own or their provisioner's.
    Tag(String),
    /// The one with this address now.
    Address(String),
}

/// What is looked for among all instances: one pass, however many selectors a request has.
#[derive(Default)]
struct Search<'a> {
    /// With stars.
    patterns: Vec<&'a str>,
    tags: HashSet<&'a str>,
    /// In lower case.
    addresses: HashSet<String>,
}

impl Search<'_> {
    fn is_empty(&self) -> bool {
        self.patterns.is_empty() && self.tags.is_empty() && self.addresses.is_empty()
    }
}

impl Service {
    /// The union of what the selectors mean, without doubles, by name.
    ///
    /// What is named must exist and be permitted; of the rest only what the caller may act on counts. An empty union is
    /// an error.
    pub fn select(
        &self,
        caller: &Caller,
        verb: Verb,
        selectors: &[Selector],
    ) -> Result<Vec<Arc<Instance>>, ServiceError> {
        let mut union: BTreeMap<String, Arc<Instance>> = BTreeMap::new();
        let mut add = |instance: Arc<Instance>| union.insert(instance.wire_name().to_owned(), instance);
        let mut search = Search::default();
        for selector in selectors {
            match selector {
                Selector::Name(name) => {
                    self.select_named(caller, verb, name)?
                        .into_iter()
                        .for_each(|instance| drop(add(instance)));
                }
                Selector::Matching(patterns) => {
                    for pattern in patterns {
                        if pattern.contains('*') {
                            search.patterns.push(pattern);
                        } else if let Some(instance) = self.store().instances.by_wire_name(pattern)
                            && self.is_candidate(caller, verb, &instance)
                        {
                            add(instance);
                        }
                    }
                }
                Selector::Tag(tag) => drop(search.tags.insert(tag)),
                Selector::Address(address) => drop(search.addresses.insert(address.to_ascii_lowercase())),
            }
        }
        if !search.is_empty() {
            for instance in self.store().instances.list() {
                if self.is_candidate(caller, verb, &instance) && self.fits(&search, &instance) {
                    add(instance);
                }
            }
        }
        if union.is_empty() {
            return Err(ServiceError::NotFound {
                kind: Kind::Instance,
                name: describe(selectors),
            });
        }
        Ok(union.into_values().collect())
    }

    fn select_named(
        &self,
        caller: &Caller,
        verb: Verb,
        name: &str,
    ) -> Result<Vec<Arc<Instance>>, ServiceError> {
        let instance = self.find::<Instance>(name)?;
        permit(caller, verb, instance.as_ref())?;
        if !self.is_launch_parent(&instance) {
            return Ok(vec![instance]);
        }
        let children = self.children(&instance);
        for child in &children {
            permit(caller, verb, child.as_ref())?;
        }
        Ok(children)
    }

    /// Whether an instance that nobody named counts.
    fn is_candidate(&self, caller: &Caller, verb: Verb, instance: &Instance) -> bool {
        may(caller, verb, Some(instance)) && !self.is_launch_parent(instance)
    }

    fn fits(&self, search: &Search<'_>, instance: &Instance) -> bool {
        let name = instance.wire_name();
        search.patterns.iter().any(|pattern| matches(pattern, name))
            || (!search.tags.is_empty()
                && self
                    .tags(instance)
                    .iter()
                    .any(|tag| search.tags.contains(tag.as_str())))
            || (!search.addresses.is_empty() && has_address(instance, &search.addresses))
    }

    /// Tags of an instance: its own and its provisioner's.
    #[must_use]
    pub fn tags(&self, instance: &Instance) -> Vec<String> {
        let provisioner = instance
            .spec
            .provisioner
            .as_deref()
            .and_then(|name| self.named::<Provisioner>(name));
        let mut tags = resolve::tags(&instance.spec, provisioner.as_deref().map(|p| &p.spec));
        // The provisioner may be gone; the controller remembers its tags.
        for tag in instance.status.iter().flat_map(|status| &status.tags) {
            if !tags.contains(tag) {
                tags.push(tag.clone());
            }
        }
        tags
    }
}

fn has_address(instance: &Instance, wanted: &HashSet<String>) -> bool {
    let declared = instance.spec.addresses.iter().flat_map(|a| [&a.ipv4, &a.ipv6]);
    let observed = instance
        .status
        .iter()
        .filter_map(|s| s.addresses.as_ref())
        .flat_map(|a| a.ipv4.iter().chain(&a.ipv6));
    declared
        .chain(observed)
        .any(|known| wanted.contains(&known.to_ascii_lowercase()))
}

fn describe(selectors: &[Selector]) -> String {
    let words = selectors.iter().map(|selector| match selector {
        Selector::Name(name) => name.clone(),
        Selector::Matching(patterns) => patterns.first().cloned().unwrap_or_default(),
        Selector::Tag(tag) => format!("tagged {tag}"),
        Selector::Address(address) => format!("with address {address}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Whether `pattern`, in which `*` stands for any run of characters, matches the whole of `text`.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_run_of_characters() {
        for (pattern, text, expected) in [
            ("web", "web", true),
            ("web", "web1", false),
            ("web*", "web", true),
            ("web*", "web1", true),
            ("web*", "aweb", false),
            ("*web", "aweb", true),
            ("*", "", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "axbxc", true),
            ("a*b*c", "acb", false),
            ("a*a", "a", false),
            ("ab*ba", "aba", false),
            ("**", "x", true),
            ("WEB*", "web1", false),
            ("a*bc*c", "abcc", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
