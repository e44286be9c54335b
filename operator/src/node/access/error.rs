//! What can go wrong on the way into a guest, in our words.

use std::time::Duration;

use crate::node::hypervisor::{HypervisorError, LibvirtErrorKind};

/// Why a command was not run in a guest, or how it was lost.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no domain of this Instance.
    #[error("there is no domain of this instance on the host")]
    NoDomain,
    /// The guest does not run.
    #[error("the instance is not running")]
    NotRunning,
    /// Nothing leads into the guest.
    #[error("no way into the guest: {0}")]
    NoChannel(String),
    /// The guest agent has stopped to answer.
    #[error("the guest agent does not answer")]
    AgentSilent(#[source] HypervisorError),
    /// The guest agent said no: it is configured not to do this.
    #[error("the guest agent refused")]
    AgentRefused(#[source] HypervisorError),
    /// The command was started, and how it ended cannot be known.
    #[error("the command was started, but its end is not known: {0}")]
    Lost(String),
    /// The program that leads into the guest failed.
    #[error("{program} failed: {why}")]
    Program {
        /// Which.
        program: &'static str,
        /// What it said.
        why: String,
    },
    /// libvirt could not be asked.
    #[error("libvirt could not be asked")]
    Hypervisor(#[source] HypervisorError),
    /// It took longer than it may.
    #[error("not done within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// A file could not be put in its place in the guest.
    #[error("the guest could not write {path}: {why}")]
    File {
        /// Where.
        path: String,
        /// What the guest said.
        why: String,
    },
}

impl AccessError {
    /// One word for a result: a closed set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoDomain => "NotFound",
            Self::NotRunning => "NotRunning",
            Self::NoChannel(_) => "NoChannel",
            Self::AgentSilent(_) => "AgentSilent",
            Self::AgentRefused(_) => "AgentRefused",
            Self::Lost(_) => "Lost",
            Self::Program { .. } => "ChannelFailed",
            Self::Hypervisor(source) => source.reason(),
            Self::TimedOut(_) => "TimedOut",
            Self::File { .. } => "WriteFailed",
        }
    }

    /// An answer of libvirt to a call to the guest agent.
    #[must_use]
    pub fn of_agent(error: HypervisorError) -> Self {
        match &error {
            HypervisorError::Refused { source, .. } => match source.kind {
                LibvirtErrorKind::AgentSilent => Self::AgentSilent(error),
                LibvirtErrorKind::NoDomain => Self::NoDomain,
                LibvirtErrorKind::WrongState => Self::NotRunning,
                LibvirtErrorKind::Connection
                | LibvirtErrorKind::NoMetadata
                | LibvirtErrorKind::NoNetwork
                | LibvirtErrorKind::BadDefinition
                | LibvirtErrorKind::Unsupported
                | LibvirtErrorKind::Other => Self::AgentRefused(error),
            },
            HypervisorError::TimedOut { .. } | HypervisorError::Stuck { .. } => Self::AgentSilent(error),
            HypervisorError::Disconnected { .. }
            | HypervisorError::Crowded { .. }
            | HypervisorError::Unreadable { .. } => Self::Hypervisor(error),
        }
    }

    /// The same, in terms of the file that was asked for.
    #[must_use]
    pub fn at(self, path: &str) -> Self {
        if let Self::File { why, .. } = self {
            return Self::File {
                path: path.to_owned(),
                why,
            };
        }
        self
    }

    /// Whether asking again may bring the answer: the guest and what runs in it may be well.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::AgentSilent(_) | Self::Hypervisor(_) => true,
            Self::NoDomain
            | Self::NotRunning
            | Self::NoChannel(_)
            | Self::AgentRefused(_)
            | Self::Lost(_)
            | Self::Program { .. }
            | Self::TimedOut(_)
            | Self::File { .. } => false,
        }
    }
}
