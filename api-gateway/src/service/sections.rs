//! Groups of hosts that isolate. A host says which section it is in; that is the only record.

use std::sync::Arc;

use virtshell_crds::{Environment, Host, Section, SectionSpec};

use super::error::{object_name, uid};
use super::objects::{keeps_name, set};
use super::{Caller, Holder, Kind, Service, ServiceError};
use crate::store::{Cached, by};

/// Values of a section; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SectionChange {
    /// Must be the section's own.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Names or uuids of the hosts that become its members, in place of those it has.
    pub hosts: Option<Vec<String>>,
}

impl Service {
    /// Makes a section.
    pub async fn create_section(
        &self,
        caller: &Caller,
        name: &str,
        change: SectionChange,
    ) -> Result<(), ServiceError> {
        self.check_new_name::<Section>(name)?;
        let hosts = self.movable(change.hosts.as_deref(), name)?;
        let made = self.create(caller, name, |metadata| Section {
            metadata,
            spec: SectionSpec {
                display_name: Some(name.to_owned()),
                description: change.description.clone(),
                ..SectionSpec::default()
            },
            status: None,
        });
        made.await?;
        for host in hosts.unwrap_or_default() {
            self.move_host(caller, &host, Some(name)).await?;
        }
        Ok(())
    }

    /// Changes a section.
    pub async fn update_section(
        &self,
        caller: &Caller,
        section: &Arc<Section>,
        change: SectionChange,
    ) -> Result<(), ServiceError> {
        let name = section.wire_name();
        keeps_name(change.name.as_ref(), name)?;
        let hosts = self.movable(change.hosts.as_deref(), name)?;
        let leaving: Vec<Arc<Host>> = match &hosts {
            Some(stay) => {
                let stays = |host: &Arc<Host>| stay.iter().any(|s| uid(s.as_ref()) == uid(host.as_ref()));
                self.hosts_of(section)
                    .into_iter()
                    .filter(|host| !stays(host))
                    .collect()
            }
            None => Vec::new(),
        };
        for host in &leaving {
            self.may_leave_for(host, "")?;
        }
        self.change(caller, section, |section| {
            set(&mut section.spec.description, change.description.clone());
            Ok(())
        })
        .await?;
        for host in &leaving {
            self.move_host(caller, host, None).await?;
        }
        for host in hosts.unwrap_or_default() {
            self.move_host(caller, &host, Some(name)).await?;
        }
        Ok(())
    }

    /// Puts a host into a section.
    pub async fn add_host_to_section(
        &self,
        caller: &Caller,
        section: &Section,
        host: &Arc<Host>,
    ) -> Result<(), ServiceError> {
        self.may_leave_for(host, section.wire_name())?;
        self.move_host(caller, host, Some(section.wire_name())).await
    }

    /// Removes a section that no environment refers to; its hosts are in none then.
    pub async fn delete_section(&self, caller: &Caller, section: &Section) -> Result<(), ServiceError> {
        if let Some(environment) = self.environments_of(section).first() {
            return Err(ServiceError::InUse {
                kind: Kind::Section,
                name: section.wire_name().to_owned(),
                by: Holder::Object {
                    kind: Kind::Environment,
                    name: environment.wire_name().to_owned(),
                },
            });
        }
        for host in self.hosts_of(section) {
            self.move_host(caller, &host, None).await?;
        }
        self.remove(section).await
    }

    /// Writes where a host belongs, unless it is there already.
    pub(super) async fn move_host(
        &self,
        caller: &Caller,
        host: &Arc<Host>,
        section: Option<&str>,
    ) -> Result<(), ServiceError> {
        self.change(caller, host, |host| {
            self.may_leave_for(host, section.unwrap_or_default())?;
            host.spec.section = section.map(str::to_owned);
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Hosts that the input names, all of which may go into the section of this name.
    fn movable(
        &self,
        names: Option<&[String]>,
        section: &str,
    ) -> Result<Option<Vec<Arc<Host>>>, ServiceError> {
        let Some(names) = names else { return Ok(None) };
        let hosts = names
            .iter()
            .map(|name| self.reference::<Host>(name))
            .collect::<Result<Vec<_>, _>>()?;
        for host in &hosts {
            self.may_leave_for(host, section)?;
        }
        Ok(Some(hosts))
    }

    fn environments_of(&self, section: &Section) -> Vec<Arc<Environment>> {
        let mut environments = self
            .store()
            .environments
            .by_key(by::CONTAINER, section.wire_name());
        if object_name(section) != section.wire_name() {
            environments.extend(
                self.store()
                    .environments
                    .by_key(by::CONTAINER, object_name(section)),
            );
        }
        environments.sort_by(|a, b| a.wire_name().cmp(b.wire_name()));
        environments
    }
}
