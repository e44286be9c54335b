//! Which domain a request means, and whether it runs.

use std::sync::Arc;
use std::time::Duration;

use virtshell_crds::Instance;
use virtshell_crds::instance::Driver;

use super::super::connection::{Connection, Lane};
use super::super::context::Context;
use super::super::goal::identity;
use super::super::hypervisor::HypervisorError;
use super::super::libvirt::Link;
use super::super::observed::{DomainState, Power};
use super::error::ApiError;

/// How long libvirt may take for one answer. A caller asks for one guest among many: it gives up sooner than this.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The running domain of an Instance of this host.
pub struct Target {
    /// The Instance.
    pub instance: Arc<Instance>,
    /// Its driver.
    pub driver: Driver,
    /// uid of the Instance.
    pub uid: String,
    /// UUID of the domain.
    pub uuid: String,
    /// Whether its CPUs are suspended.
    pub paused: bool,
    connection: Arc<Connection>,
}

impl Target {
    /// Finds it.
    ///
    /// # Errors
    /// [`ApiError::NotFound`] for an Instance that this host does not have, [`ApiError::Conflict`] while its domain does not
    /// run.
    pub async fn find(context: &Context, namespace: &str, name: &str) -> Result<Self, ApiError> {
        let instance = context.instances.named(namespace, name).ok_or_else(|| {
            let host = &context.host;
            ApiError::NotFound(format!(
                "the host {host} has no Instance {name} in the namespace {namespace}"
            ))
        })?;
        let not_running = |state: &str| ApiError::Conflict(format!("the Instance {name} {state}"));
        let resolved = instance.status.as_ref().and_then(|s| s.resolved.as_ref());
        let placed = resolved.and_then(|r| Some((r.driver?, context.connections.get(&r.driver?)?)));
        let Some((driver, connection)) = placed else {
            return Err(not_running("has no domain yet"));
        };
        let id = identity(&instance);
        let uid = id.uid.clone();
        let seen = connection.call(Lane::Live, &uid, "look at", DEADLINE, move |link| {
            link.observe(&id)
        });
        let seen = seen.await.map_err(|error| speaking_of(name, error))?;
        let domain = match seen {
            DomainState::Ours(domain) => domain,
            DomainState::Absent => return Err(not_running("has no domain yet")),
            DomainState::Foreign { .. } => {
                return Err(not_running("has no domain: its name is taken by a foreign one"));
            }
        };
        let paused = match domain.power {
            Power::Running => false,
            Power::Paused(_) => true,
            Power::Off => return Err(not_running("is stopped")),
        };
        Ok(Self {
            driver,
            uid,
            uuid: domain.uuid,
            paused,
            connection: Arc::clone(connection),
            instance,
        })
    }

    /// The name of the Instance, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        self.instance.metadata.name.as_deref().unwrap_or_default()
    }

    /// Asks libvirt about it.
    pub async fn ask<T: Send + 'static>(
        &self,
        what: &'static str,
        question: impl FnOnce(&Link, &str) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        self.ask_on(Lane::Live, what, DEADLINE, question).await
    }

    /// The same on another line, for a longer time.
    pub async fn ask_on<T: Send + 'static>(
        &self,
        lane: Lane,
        what: &'static str,
        deadline: Duration,
        question: impl FnOnce(&Link, &str) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let uuid = self.uuid.clone();
        self.connection
            .call(lane, &self.uid, what, deadline, move |link| question(link, &uuid))
            .await
            .map_err(|error| speaking_of(self.name(), error))
    }
}

/// The error in the caller's words: he knows the Instance by its name, not by a UUID.
fn speaking_of(name: &str, mut error: HypervisorError) -> HypervisorError {
    match &mut error {
        HypervisorError::Refused { domain, .. }
        | HypervisorError::TimedOut { domain, .. }
        | HypervisorError::Stuck { domain }
        | HypervisorError::Unreadable { domain, .. } => name.clone_into(domain),
        HypervisorError::Disconnected { .. } | HypervisorError::Crowded { .. } => {}
    }
    error
}
