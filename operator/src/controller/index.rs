//! Objects by something that they name: a host, an environment, a parent.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

use super::cache::ObjectKey;

/// Keys of objects, by what they name; in the order of the keys.
#[derive(Debug)]
pub struct Index<N> {
    by: HashMap<N, BTreeSet<ObjectKey>>,
}

impl<N> Default for Index<N> {
    fn default() -> Self {
        Self { by: HashMap::new() }
    }
}

impl<N: Eq + Hash> Index<N> {
    /// The object named `old` until now, and names `new` from now on.
    pub fn observe(
        &mut self,
        key: &ObjectKey,
        old: impl IntoIterator<Item = N>,
        new: impl IntoIterator<Item = N>,
    ) {
        for name in old {
            if let Some(keys) = self.by.get_mut(&name) {
                keys.remove(key);
                if keys.is_empty() {
                    self.by.remove(&name);
                }
            }
        }
        for name in new {
            self.by.entry(name).or_default().insert(key.clone());
        }
    }

    /// Those that name `name`.
    pub fn of(&self, name: &N) -> impl Iterator<Item = &ObjectKey> {
        self.by.get(name).into_iter().flatten()
    }

    /// How many name `name`.
    #[must_use]
    pub fn count(&self, name: &N) -> usize {
        self.by.get(name).map_or(0, BTreeSet::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::testing::Random;

    /// Whatever objects name in whatever order, they are found by that and by nothing else.
    #[test]
    fn objects_are_found_by_what_they_name_now() {
        for seed in 0..300 {
            let random = &mut Random::new(seed);
            let mut index = Index::default();
            let mut named: HashMap<ObjectKey, BTreeSet<u64>> = HashMap::new();
            for _ in 0..60 {
                let key = ObjectKey {
                    namespace: "n".to_owned(),
                    name: random.below(6).to_string(),
                };
                let new: BTreeSet<u64> = (0..random.below(3)).map(|_| random.below(4)).collect();
                let old = named.insert(key.clone(), new.clone()).unwrap_or_default();
                index.observe(&key, old, new);
            }
            for name in 0..4 {
                let expected: BTreeSet<&ObjectKey> = named
                    .iter()
                    .filter_map(|(key, names)| names.contains(&name).then_some(key))
                    .collect();
                assert_eq!(index.of(&name).collect::<BTreeSet<_>>(), expected, "seed {seed}");
                assert_eq!(index.count(&name), expected.len(), "seed {seed}");
            }
            let used: BTreeSet<u64> = named.values().flatten().copied().collect();
            assert_eq!(index.by.len(), used.len(), "seed {seed}: nothing empty is kept");
        }
    }
}
