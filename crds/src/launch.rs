//! Launch groups: one Instance that stands for several.
//!
//! The parent has no guest of its own; its children are called `<name>_1` to `<name>_max`. Pure; the controller makes the
//! children, the gateway shows them.

use crate::instance::{Instance, Launch, Phase};

/// The wire name of the `n`-th child (1, 2, ...) of a launch parent.
#[must_use]
pub fn child_name(parent: &str, n: i32) -> String {
    format!("{parent}_{n}")
}

/// The wire name of the launch parent that would have a child of this name.
#[must_use]
pub fn parent_name(child: &str) -> Option<&str> {
    let (parent, number) = child.rsplit_once('_')?;
    let n = number.parse::<i32>().ok().filter(|n| *n > 0)?;
    (child_name(parent, n) == child).then_some(parent)
}

/// What a launch parent was accepted with; `None` for any other Instance, and before it is accepted.
#[must_use]
pub fn of_parent(instance: &Instance) -> Option<Launch> {
    let resolved = instance.status.as_ref()?.resolved.as_ref()?;
    resolved.launch.filter(|launch| launch.max > 1)
}

/// The phase of a group: failed when one failed, else that of the one that is least far.
pub fn phase(phases: impl IntoIterator<Item = Phase>) -> Option<Phase> {
    phases.into_iter().min_by_key(|phase| match phase {
        Phase::Failed => 0,
        Phase::Pending => 1,
        Phase::Creating => 2,
        Phase::Provisioning => 3,
        Phase::Deleting => 4,
        Phase::Stopped => 5,
        Phase::Paused => 6,
        Phase::Running => 7,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_named_after_its_parent() {
        for (child, parent) in [
            ("web_1", Some("web")),
            ("web_2_10", Some("web_2")),
            ("web", None),
            ("web_0", None),
            ("web_-1", None),
            ("web_01", None),
            ("web_x", None),
        ] {
            assert_eq!(parent_name(child), parent, "{child}");
        }
        assert_eq!(parent_name(&child_name("a b", 7)), Some("a b"));
    }

    #[test]
    fn a_group_is_as_far_as_its_least() {
        use Phase::{Creating, Failed, Pending, Running, Stopped};
        for (phases, expected) in [
            (vec![], None),
            (vec![Running, Running], Some(Running)),
            (vec![Running, Creating, Pending], Some(Pending)),
            (vec![Running, Stopped], Some(Stopped)),
            (vec![Running, Failed, Pending], Some(Failed)),
        ] {
            assert_eq!(phase(phases.clone()), expected, "{phases:?}");
        }
    }
}
