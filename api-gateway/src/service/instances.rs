//! Virtual machines and containers: create, change, delete.

use std::collections::BTreeMap;
use std::sync::Arc;

use virtshell_crds::instance::{DeclaredAddresses, Permissions, Tag};
use virtshell_crds::resolve::{self, DEFAULT_ENVIRONMENT, NamedImage};
use virtshell_crds::{
    ANNOTATION_CREATE_TASK, Driver, Environment, HostType, Image, Instance, InstanceSpec, Launch,
    Provisioner, Task, words,
};

use super::effective::Effective;
use super::error::uid;
use super::objects::{Ownership, checked_permissions, forbidden, keeps_name, permit, set};
use super::tasks::{Work, new_task_name};
use super::{Caller, Field, Kind, Managed, Service, ServiceError, Verb, dependencies, names, placement};
use crate::store::Cached;

/// Variables for the executor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vars {
    /// Given in the request.
    Given(BTreeMap<String, String>),
    /// URL of a stored file.
    From(String),
}

/// Values of an instance; what is absent is a default, or stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InstanceChange {
    /// Must be the instance's own in a change.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Name or uuid of the environment; fixed.
    pub environment: Option<String>,
    /// Name or uuid of the provisioner; fixed.
    pub provisioner: Option<String>,
    /// Name or uuid of the image; fixed.
    pub image: Option<String>,
    /// Kind of host; fixed.
    pub host_type: Option<HostType>,
    /// How it runs; fixed.
    pub driver: Option<Driver>,
    /// How many to launch; fixed.
    pub launch: Option<Launch>,
    /// Memory in MiB.
    pub memory_mib: Option<i64>,
    /// Virtual CPUs.
    pub cpus: Option<i32>,
    /// Root disk in MiB; may only grow.
    pub disk_mib: Option<i64>,
    /// Variables for the executor.
    pub vars: Option<Vars>,
    /// Tags beside the provisioner's.
    pub tags: Option<Vec<String>>,
    /// Permission string.
    pub permissions: Option<String>,
    /// Address to show instead of the observed one; empty = the observed one again.
    pub ipv4: Option<String>,
    /// As ipv4.
    pub ipv6: Option<String>,
    /// Owner and group.
    pub ownership: Ownership,
}

impl Service {
    /// Makes an instance, and the task that tells how its creation goes.
    pub async fn create_instance(
        &self,
        caller: &Caller,
        name: &str,
        wanted: InstanceChange,
    ) -> Result<Arc<Task>, ServiceError> {
        let permissions = checked_permissions(wanted.permissions.as_ref())?;
        self.check_new_name::<Instance>(name)?;
        self.permit_urls(caller, wanted.vars_url())?;
        let environment = self.usable_environment(caller, wanted.environment.as_deref())?;
        let provisioner = self.usable_provisioner(caller, &wanted)?;
        let (owner, group) = self.ownership_of_new(caller, &wanted.ownership)?;
        let mut spec = InstanceSpec {
            display_name: Some(name.to_owned()),
            environment: Some(environment.wire_name().to_owned()),
            provisioner: provisioner.as_ref().map(|p| p.wire_name().to_owned()),
            image: wanted.image.clone(),
            host_type: wanted.host_type,
            driver: wanted.driver,
            launch: wanted.launch,
            permissions,
            owner,
            group,
            ..blank()
        };
        apply(&wanted, &mut spec);
        let driver = self.resolved_driver(caller, &mut spec, provisioner.as_deref())?;
        self.check_dependencies(caller, provisioner.as_ref())?;
        self.check_children(name, &spec, provisioner.as_deref())?;
        let hosts = self.eligible_hosts(&environment);
        let host_type = spec.host_type.unwrap_or_default();
        if let Some(lacking) = placement::lacking(hosts.iter().map(AsRef::as_ref), host_type, driver) {
            return Err(ServiceError::NoHost(lacking));
        }
        let task = new_task_name();
        let instance = self
            .create(caller, name, |mut metadata| {
                // The controller makes the task when this process ends before it could.
                metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(ANNOTATION_CREATE_TASK.to_owned(), task.clone());
                Instance {
                    metadata,
                    spec: spec.clone(),
                    status: None,
                }
            })
            .await?;
        let work = Work {
            type_: "create_instance",
            description: format!("Create a new instance {name} using driver {driver}"),
            targets: &[instance],
            params: None,
        };
        self.start_work(caller, &task, work).await
    }

    /// Changes an instance. A change of its sizes is work, and has a task.
    pub async fn update_instance(
        &self,
        caller: &Caller,
        instance: &Arc<Instance>,
        mut wanted: InstanceChange,
    ) -> Result<Option<Arc<Task>>, ServiceError> {
        let name = instance.wire_name().to_owned();
        keeps_name(wanted.name.as_ref(), &name)?;
        checked_permissions(wanted.permissions.as_ref())?;
        self.permit_urls(caller, wanted.vars_url())?;
        self.check_fixed(instance, &wanted)?;
        wanted.ownership = self.ownership_of_changed(caller, instance.as_ref(), &wanted.ownership)?;
        let before = self.effective(instance);
        let changed = self
            .change(caller, instance, |instance| {
                let present = self.effective(instance);
                if wanted
                    .disk_mib
                    .zip(present.disk_mib)
                    .is_some_and(|(wanted, present)| wanted < present)
                {
                    return Err(ServiceError::invalid(Field::Disk, words::ONLY_GROWS));
                }
                apply(&wanted, &mut instance.spec);
                set(
                    &mut instance.spec.permissions,
                    wanted.permissions.clone().map(Permissions),
                );
                wanted
                    .ownership
                    .apply(&mut instance.spec.owner, &mut instance.spec.group);
                Ok(())
            })
            .await?;
        match changed {
            Some(changed) if sizes(&self.effective(&changed)) != sizes(&before) => {
                let work = Work {
                    type_: "update_instance",
                    description: format!("Update instance {name}"),
                    targets: &[changed],
                    params: None,
                };
                self.start_work(caller, &new_task_name(), work).await.map(Some)
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Asks for the end of an instance: first the task, so that it can tell how it went, then the deletion.
    pub async fn delete_instance(
        &self,
        caller: &Caller,
        instance: &Arc<Instance>,
    ) -> Result<Arc<Task>, ServiceError> {
        let name = instance.wire_name();
        let work = Work {
            type_: "delete_instance",
            description: format!("Delete instance {name}"),
            targets: std::slice::from_ref(instance),
            params: None,
        };
        let task = self.start_work(caller, &new_task_name(), work).await?;
        let deleted = self.store().instances.delete(instance.as_ref()).await;
        deleted.map_err(|error| ServiceError::of_write(error, Kind::Instance, name))?;
        Ok(task)
    }

    /// Instances that a list shows: launch parents are found by name only.
    #[must_use]
    pub fn visible_instances(&self, caller: &Caller) -> Vec<Arc<Instance>> {
        let mut instances = self.visible::<Instance>(caller);
        instances.retain(|instance| !self.is_launch_parent(instance));
        instances
    }

    pub(super) fn usable_environment(
        &self,
        caller: &Caller,
        wanted: Option<&str>,
    ) -> Result<Arc<Environment>, ServiceError> {
        let environment = match wanted {
            Some(name) => self.reference::<Environment>(name)?,
            None => self
                .named(DEFAULT_ENVIRONMENT)
                .ok_or(ServiceError::Missing(Field::Environment))?,
        };
        let users = &environment.spec.users;
        let is_user = |user: &String| {
            *user == caller.name || *user == caller.login || user.eq_ignore_ascii_case(&caller.uid)
        };
        if caller.is_system || users.is_empty() || users.iter().any(is_user) {
            return Ok(environment);
        }
        Err(forbidden(
            caller,
            Verb::Use,
            Kind::Environment,
            environment.wire_name(),
        ))
    }

    fn usable_provisioner(
        &self,
        caller: &Caller,
        wanted: &InstanceChange,
    ) -> Result<Option<Arc<Provisioner>>, ServiceError> {
        let Some(name) = &wanted.provisioner else {
            if wanted.image.is_none() {
                return Err(ServiceError::Missing(Field::Provisioner));
            }
            return Ok(None);
        };
        let provisioner = self.reference::<Provisioner>(name)?;
        permit(caller, Verb::Use, provisioner.as_ref())?;
        Ok(Some(provisioner))
    }

    /// Looks up the image and says which driver the instance will have; the spec's own image becomes its wire name.
    fn resolved_driver(
        &self,
        caller: &Caller,
        spec: &mut InstanceSpec,
        provisioner: Option<&Provisioner>,
    ) -> Result<Driver, ServiceError> {
        let from = provisioner.map(|p| &p.spec);
        let image = match resolve::image_name(spec, from) {
            Some(name) => {
                let image = self.reference::<Image>(name)?;
                permit(caller, Verb::Use, image.as_ref())?;
                Some(image)
            }
            None => None,
        };
        if let (Some(image), true) = (&image, spec.image.is_some()) {
            spec.image = Some(image.wire_name().to_owned());
        }
        let name = image.as_ref().map(|image| image.wire_name());
        let named = image.as_ref().zip(name).map(|(image, name)| NamedImage {
            name,
            spec: &image.spec,
        });
        let resolved = resolve::resolve(spec, from, named, &BTreeMap::new())?;
        Ok(resolved.driver.unwrap_or(Driver::Kvm))
    }

    /// Every provisioner that has to run first exists, may be used, and does not wait for itself.
    fn check_dependencies(
        &self,
        caller: &Caller,
        provisioner: Option<&Arc<Provisioner>>,
    ) -> Result<(), ServiceError> {
        let Some(provisioner) = provisioner else {
            return Ok(());
        };
        dependencies::walk(provisioner, |name| {
            let needed = self.reference::<Provisioner>(name)?;
            permit(caller, Verb::Use, needed.as_ref())?;
            Ok(needed)
        })
    }

    /// The names that a launch will give its instances are valid and free.
    fn check_children(
        &self,
        name: &str,
        spec: &InstanceSpec,
        provisioner: Option<&Provisioner>,
    ) -> Result<(), ServiceError> {
        let launch = spec
            .launch
            .or(provisioner.and_then(|p| p.spec.launch))
            .unwrap_or_default();
        if launch.max <= 1 {
            return Ok(());
        }
        for child in (1..=launch.max).map(|n| format!("{name}_{n}")) {
            names::check(Kind::Instance, &child)
                .map_err(|reason| ServiceError::invalid(Field::Name, reason))?;
            if self.store().instances.by_wire_name(&child).is_some() {
                return Err(ServiceError::AlreadyExists {
                    kind: Kind::Instance,
                    name: child,
                });
            }
        }
        Ok(())
    }

    /// Refuses other values for what was settled at creation; the same ones are fine.
    fn check_fixed(&self, instance: &Instance, wanted: &InstanceChange) -> Result<(), ServiceError> {
        let present = self.effective(instance);
        let fixed = |field, same: bool| {
            if same {
                Ok(())
            } else {
                Err(ServiceError::invalid(field, words::IMMUTABLE))
            }
        };
        fixed(
            Field::Environment,
            self.is_same::<Environment>(wanted.environment.as_deref(), Some(&present.environment)),
        )?;
        let provisioner = instance.spec.provisioner.as_deref();
        fixed(
            Field::Provisioner,
            self.is_same::<Provisioner>(wanted.provisioner.as_deref(), provisioner),
        )?;
        fixed(
            Field::Image,
            self.is_same::<Image>(wanted.image.as_deref(), present.image.as_deref()),
        )?;
        fixed(
            Field::HostType,
            wanted.host_type.is_none_or(|wanted| wanted == present.host_type),
        )?;
        fixed(
            Field::Driver,
            wanted.driver.is_none_or(|wanted| Some(wanted) == present.driver),
        )?;
        fixed(
            Field::Launch,
            wanted.launch.is_none_or(|wanted| wanted == present.launch),
        )
    }

    /// Whether a request names, by name or uuid, what the spec names.
    fn is_same<K: Managed>(&self, wanted: Option<&str>, present: Option<&str>) -> bool {
        let Some(wanted) = wanted else { return true };
        if Some(wanted) == present {
            return true;
        }
        let ids = [Some(wanted), present].map(|name| {
            name.and_then(|n| self.named::<K>(n))
                .map(|o| uid(o.as_ref()).to_owned())
        });
        ids[0].is_some() && ids[0] == ids[1]
    }
}

impl InstanceChange {
    fn vars_url(&self) -> Option<&String> {
        match &self.vars {
            Some(Vars::From(url)) => Some(url),
            Some(Vars::Given(_)) | None => None,
        }
    }
}

/// Writes what may change at any time.
fn apply(wanted: &InstanceChange, spec: &mut InstanceSpec) {
    set(&mut spec.description, wanted.description.clone());
    set(&mut spec.memory_mib, wanted.memory_mib);
    set(&mut spec.cpus, wanted.cpus);
    set(&mut spec.disk_mib, wanted.disk_mib);
    // Bounds that kubectl set never stay below what is asked for now.
    if let (Some(max), Some(cpus)) = (spec.max_cpus, spec.cpus) {
        spec.max_cpus = Some(max.max(cpus));
    }
    if let (Some(max), Some(memory)) = (spec.max_memory_mib, spec.memory_mib) {
        spec.max_memory_mib = Some(max.max(memory));
    }
    match &wanted.vars {
        Some(Vars::Given(vars)) => {
            spec.vars.clone_from(vars);
            spec.vars_from = None;
        }
        Some(Vars::From(url)) => {
            spec.vars.clear();
            spec.vars_from = Some(url.clone());
        }
        None => {}
    }
    if let Some(tags) = &wanted.tags {
        spec.tags = tags.iter().cloned().map(Tag).collect();
    }
    if wanted.ipv4.is_some() || wanted.ipv6.is_some() {
        let addresses = spec.addresses.get_or_insert_default();
        super::objects::put(&mut addresses.ipv4, wanted.ipv4.clone());
        super::objects::put(&mut addresses.ipv6, wanted.ipv6.clone());
    }
    if spec
        .addresses
        .as_ref()
        .is_some_and(|addresses| *addresses == DeclaredAddresses::default())
    {
        spec.addresses = None;
    }
}

fn sizes(effective: &Effective) -> (Option<i64>, Option<i32>, Option<i64>) {
    (effective.memory_mib, effective.cpus, effective.disk_mib)
}

/// A spec with the schema's defaults.
fn blank() -> InstanceSpec {
    InstanceSpec {
        autostart: true,
        shutdown_grace_seconds: 60,
        ..InstanceSpec::default()
    }
}
