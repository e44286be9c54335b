//! Which way leads into a guest. Pure.

use std::time::Duration;

use virtshell_crds::Instance;

use crate::node::context::Context;
use crate::node::goal::DomainType;
use crate::node::observed::Moment;

/// How long a guest may take from its start until its agent answers, before another way is taken.
const PATIENCE: Duration = Duration::from_mins(2);

/// A way into a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    /// The QEMU guest agent.
    Agent,
    /// A process in the container's namespaces.
    Namespaces,
    /// SSH to this address.
    Ssh(String),
}

/// What is known of a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signs {
    /// What it is for libvirt.
    pub domain_type: Option<DomainType>,
    /// Whether its agent answers; absent before it did for the first time.
    pub agent: Option<bool>,
    /// Where it can be reached.
    pub address: Option<String>,
    /// Whether this agent has a key that it trusts.
    pub key: bool,
    /// Since when this agent knows that it runs.
    pub running_since: Option<Moment>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Take this one.
    Use(Channel),
    /// It boots: nothing is there yet.
    Wait,
    /// There is none; the text says why.
    Nothing(String),
}

impl Signs {
    /// Reads them.
    #[must_use]
    pub fn of(context: &Context, instance: &Instance) -> Self {
        let view = context
            .guests
            .view(instance.metadata.uid.as_deref().unwrap_or_default());
        let type_ = instance.status.as_ref().and_then(|s| s.domain.as_ref());
        let all = [
            DomainType::Kvm,
            DomainType::Qemu,
            DomainType::Lxc,
            DomainType::Test,
        ];
        let addresses = || view.interfaces.iter();
        Self {
            domain_type: type_.and_then(|d| all.into_iter().find(|t| t.as_str() == d.type_)),
            agent: view.agent,
            // What a guest says of itself may be another's address: commands go where libvirt's leases lead.
            address: addresses()
                .filter(|_| !view.said_by_agent)
                .filter_map(|i| i.ipv4.first())
                .chain(
                    addresses()
                        .filter(|_| !view.said_by_agent)
                        .filter_map(|i| i.ipv6.first()),
                )
                .next()
                .cloned(),
            key: context.ssh_key.is_some(),
            running_since: view.since,
        }
    }
}

/// The way into a guest of which this is known.
#[must_use]
pub fn choose(signs: &Signs, now: Moment) -> Choice {
    match signs.domain_type {
        None => return Choice::Wait,
        Some(DomainType::Lxc) => return Choice::Use(Channel::Namespaces),
        Some(DomainType::Test) => {
            return Choice::Nothing("guests of libvirt's test driver run nothing".to_owned());
        }
        Some(DomainType::Kvm | DomainType::Qemu) => {}
    }
    if signs.agent == Some(true) {
        return Choice::Use(Channel::Agent);
    }
    let boots = signs
        .running_since
        .is_none_or(|since| now.saturating_sub(since) < PATIENCE);
    match &signs.address {
        // An agent that was there comes back after a reboot of the guest, or never.
        _ if boots => Choice::Wait,
        Some(address) if signs.key => Choice::Use(Channel::Ssh(address.clone())),
        Some(_) => Choice::Nothing(
            "its guest agent does not answer, and this host has no ssh-keygen to make a key for SSH with (Debian package openssh-client)"
                .to_owned(),
        ),
        None => Choice::Nothing(
            "its guest agent does not answer, and no address is known for SSH; install qemu-guest-agent in the guest"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_first_and_ssh_last() {
        let at = |seconds| Some(Duration::from_secs(seconds));
        let signs = |domain_type, agent, address: Option<&str>, key, running_since| Signs {
            domain_type: Some(domain_type),
            agent,
            address: address.map(str::to_owned),
            key,
            running_since,
        };
        let (qemu, kvm) = (DomainType::Qemu, DomainType::Kvm);
        let ssh = Choice::Use(Channel::Ssh("10.0.0.2".to_owned()));
        let nothing = |word: &str| Choice::Nothing(word.to_owned());
        for (rule, signs, expected) in [
            (
                "a container",
                signs(DomainType::Lxc, None, None, false, None),
                Choice::Use(Channel::Namespaces),
            ),
            (
                "a test guest",
                signs(DomainType::Test, None, None, true, at(0)),
                nothing("test driver"),
            ),
            ("no domain yet", Signs::default(), Choice::Wait),
            (
                "the agent answers",
                signs(qemu, Some(true), Some("10.0.0.2"), true, at(0)),
                Choice::Use(Channel::Agent),
            ),
            ("it boots", signs(kvm, None, None, true, at(990)), Choice::Wait),
            (
                "it boots and has an address",
                signs(kvm, None, Some("10.0.0.2"), true, at(990)),
                Choice::Wait,
            ),
            (
                "not heard of yet",
                signs(kvm, None, Some("10.0.0.2"), true, None),
                Choice::Wait,
            ),
            (
                "no agent after two minutes",
                signs(qemu, None, Some("10.0.0.2"), true, at(880)),
                ssh.clone(),
            ),
            (
                "the agent went",
                signs(qemu, Some(false), Some("10.0.0.2"), true, at(0)),
                ssh,
            ),
            (
                "no key",
                signs(qemu, None, Some("10.0.0.2"), false, at(0)),
                nothing("ssh-keygen"),
            ),
            (
                "no address",
                signs(qemu, Some(false), None, true, at(0)),
                nothing("no address"),
            ),
        ] {
            let chosen = choose(&signs, Duration::from_secs(1000));
            match (&chosen, &expected) {
                (Choice::Nothing(why), Choice::Nothing(word)) => assert!(why.contains(word), "{rule}: {why}"),
                _ => assert_eq!(chosen, expected, "{rule}"),
            }
        }
    }
}
