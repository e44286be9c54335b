//! Where instances are created: a section, more hosts, and who may use it.

use std::collections::BTreeSet;
use std::sync::Arc;

use virtshell_crds::{Environment, EnvironmentSpec, Host, Instance, Section};

use super::error::{object_name, uid};
use super::objects::{keeps_name, put, set};
use super::{Caller, Field, Holder, Kind, Service, ServiceError};
use crate::store::{Cached, by};

/// Values of an environment; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvironmentChange {
    /// Must be the environment's own.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Who may use it.
    pub users: Option<Vec<String>>,
    /// Name or uuid of its section.
    pub section: Option<String>,
    /// Names or uuids of the hosts it has beside those of its section.
    pub hosts: Option<Vec<String>>,
}

impl Service {
    /// Makes an environment.
    pub async fn create_environment(
        &self,
        caller: &Caller,
        name: &str,
        change: EnvironmentChange,
    ) -> Result<(), ServiceError> {
        self.check_new_name::<Environment>(name)?;
        let section = change
            .section
            .as_deref()
            .map(|name| self.reference::<Section>(name))
            .transpose()?;
        let hosts = self.joinable(change.hosts.as_deref().unwrap_or_default(), section.as_deref())?;
        let spec = EnvironmentSpec {
            display_name: Some(name.to_owned()),
            description: change.description,
            section: section.as_ref().map(|s| s.wire_name().to_owned()),
            users: change.users.unwrap_or_default(),
            hosts: hosts.iter().map(|host| host.wire_name().to_owned()).collect(),
        };
        let made = self.create(caller, name, |metadata| Environment {
            metadata,
            spec: spec.clone(),
            status: None,
        });
        made.await?;
        self.join(caller, &hosts, section.as_deref()).await
    }

    /// Changes an environment.
    pub async fn update_environment(
        &self,
        caller: &Caller,
        environment: &Arc<Environment>,
        change: EnvironmentChange,
    ) -> Result<(), ServiceError> {
        keeps_name(change.name.as_ref(), environment.wire_name())?;
        let section = match &change.section {
            Some(name) => Some(self.reference::<Section>(name)?),
            None => self.section_of(environment),
        };
        let hosts = match &change.hosts {
            Some(hosts) => Some(self.joinable(hosts, section.as_deref())?),
            None => None,
        };
        self.change(caller, environment, |environment| {
            let moves = section.as_ref().map(|s| uid(s.as_ref()))
                != self.section_of(environment).as_ref().map(|s| uid(s.as_ref()));
            if change.section.is_some() && moves {
                self.check_no_instances(environment)?;
                environment.spec.section = section.as_ref().map(|s| s.wire_name().to_owned());
            }
            set(&mut environment.spec.description, change.description.clone());
            put(&mut environment.spec.users, change.users.clone());
            put(&mut environment.spec.hosts, hosts.as_deref().map(names_of));
            Ok(())
        })
        .await?;
        self.join(caller, &hosts.unwrap_or_default(), section.as_deref())
            .await
    }

    /// Adds hosts to an environment: those without a section join its section; one of another section stays out, and
    /// then nothing changes.
    pub async fn add_hosts(
        &self,
        caller: &Caller,
        environment: &Arc<Environment>,
        hosts: &[String],
    ) -> Result<(), ServiceError> {
        let section = self.section_of(environment);
        let hosts = self.joinable(hosts, section.as_deref())?;
        self.join(caller, &hosts, section.as_deref()).await?;
        self.change(caller, environment, |environment| {
            for name in names_of(&hosts) {
                if !environment.spec.hosts.contains(&name) {
                    environment.spec.hosts.push(name);
                }
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Removes an environment without instances.
    pub async fn delete_environment(&self, environment: &Environment) -> Result<(), ServiceError> {
        self.check_no_instances(environment)?;
        self.remove(environment).await
    }

    /// The section of an environment.
    #[must_use]
    pub fn section_of(&self, environment: &Environment) -> Option<Arc<Section>> {
        environment
            .spec
            .section
            .as_deref()
            .and_then(|name| self.named(name))
    }

    fn check_no_instances(&self, environment: &Environment) -> Result<(), ServiceError> {
        match Holder::instances(&self.instances_in(environment)) {
            Some(by) => Err(ServiceError::InUse {
                kind: Kind::Environment,
                name: environment.wire_name().to_owned(),
                by,
            }),
            None => Ok(()),
        }
    }

    fn instances_in(&self, environment: &Environment) -> Vec<Arc<Instance>> {
        let mut instances = self
            .store()
            .instances
            .by_key(by::CONTAINER, environment.wire_name());
        if object_name(environment) != environment.wire_name() {
            instances.extend(
                self.store()
                    .instances
                    .by_key(by::CONTAINER, object_name(environment)),
            );
        }
        instances
    }

    /// Hosts that the input names, none of which another section isolates.
    fn joinable(&self, names: &[String], section: Option<&Section>) -> Result<Vec<Arc<Host>>, ServiceError> {
        let hosts = names
            .iter()
            .map(|name| self.reference::<Host>(name))
            .collect::<Result<Vec<_>, _>>()?;
        let Some(section) = section else { return Ok(hosts) };
        for host in &hosts {
            let present = host
                .spec
                .section
                .as_deref()
                .and_then(|name| self.named::<Section>(name));
            if let Some(present) = present.filter(|present| uid(present.as_ref()) != uid(section)) {
                let reason = format!("{} is in section {}", host.wire_name(), present.wire_name());
                return Err(ServiceError::invalid(Field::Hosts, reason));
            }
        }
        Ok(hosts)
    }

    async fn join(
        &self,
        caller: &Caller,
        hosts: &[Arc<Host>],
        section: Option<&Section>,
    ) -> Result<(), ServiceError> {
        let Some(section) = section else { return Ok(()) };
        for host in hosts {
            self.move_host(caller, host, Some(section.wire_name())).await?;
        }
        Ok(())
    }
}

fn names_of(hosts: impl AsRef<[Arc<Host>]>) -> Vec<String> {
    let names: BTreeSet<&str> = hosts.as_ref().iter().map(|host| host.wire_name()).collect();
    names.into_iter().map(str::to_owned).collect()
}
