//! What can go wrong between the agent and libvirt, in our words.

use std::time::Duration;

/// Why a question or an order to libvirt failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HypervisorError {
    /// There is no connection now; the answer is unknown, not "no".
    #[error("no connection to {uri}")]
    Disconnected {
        /// The connection.
        uri: String,
        /// What libvirt said, when it said something.
        #[source]
        source: Option<LibvirtError>,
    },
    /// libvirt, or the hypervisor behind it, said no.
    #[error("libvirt refused to {what} {domain}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Of which domain.
        domain: String,
        /// Its answer.
        #[source]
        source: LibvirtError,
    },
    /// No answer in time. The call may still be carried out.
    #[error("no answer within {} s when asked to {what} {domain}", after.as_secs())]
    TimedOut {
        /// What was asked.
        what: &'static str,
        /// Of which domain.
        domain: String,
        /// How long was waited.
        after: Duration,
    },
    /// An earlier call for this domain has not come back; no other is made until it does.
    #[error("an earlier call for {domain} has not come back: its QEMU or container does not respond")]
    Stuck {
        /// Which domain.
        domain: String,
    },
    /// So many guests hold up their calls that this one was not made: libvirtd would have no worker left for the others.
    #[error(
        "{held} calls to guests have not come back; more of them would leave {uri} no worker for the other guests (its max_workers, and --libvirt-workers of the agent)"
    )]
    Crowded {
        /// The connection.
        uri: String,
        /// How many calls were given up.
        held: usize,
    },
    /// libvirt answered with something that cannot be understood.
    #[error("libvirt's answer for {domain} cannot be read")]
    Unreadable {
        /// Which domain.
        domain: String,
        /// What is wrong with it.
        #[source]
        source: super::xml::XmlError,
    },
}

/// An error of libvirt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LibvirtError {
    /// What kind, as far as it makes a difference here.
    pub kind: LibvirtErrorKind,
    /// libvirt's own text.
    pub message: String,
}

/// Kinds of libvirt errors that make a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibvirtErrorKind {
    /// The connection is gone.
    Connection,
    /// No such domain.
    NoDomain,
    /// No such metadata.
    NoMetadata,
    /// No such network.
    NoNetwork,
    /// Not possible in the domain's present state.
    WrongState,
    /// The guest agent does not answer.
    AgentSilent,
    /// The definition is not acceptable: only another spec helps.
    BadDefinition,
    /// The driver has no such call.
    Unsupported,
    /// Any other.
    Other,
}

impl HypervisorError {
    /// One word for condition, Event and metric label: a closed set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Disconnected { .. } => "HypervisorUnreachable",
            Self::Refused { source, .. } => match source.kind {
                LibvirtErrorKind::BadDefinition | LibvirtErrorKind::Unsupported => "DomainRejected",
                LibvirtErrorKind::NoNetwork => "NetworkMissing",
                LibvirtErrorKind::Connection
                | LibvirtErrorKind::NoDomain
                | LibvirtErrorKind::NoMetadata
                | LibvirtErrorKind::WrongState
                | LibvirtErrorKind::AgentSilent
                | LibvirtErrorKind::Other => "HypervisorRefused",
            },
            Self::TimedOut { .. } | Self::Stuck { .. } => "GuestStuck",
            Self::Crowded { .. } => "HypervisorBusy",
            Self::Unreadable { .. } => "HypervisorUnreadable",
        }
    }

    /// Whether the answer is unknown, so that nothing may be said about the domain.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Disconnected { .. }
            | Self::TimedOut { .. }
            | Self::Stuck { .. }
            | Self::Crowded { .. }
            | Self::Unreadable { .. } => true,
            Self::Refused { .. } => false,
        }
    }
}

/// The text of an error and of what caused it.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
