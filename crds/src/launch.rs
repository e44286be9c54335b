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
