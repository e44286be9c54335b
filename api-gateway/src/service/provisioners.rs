//! How instances are built.

use std::collections::BTreeSet;
use std::sync::Arc;

use virtshell_crds::instance::{Permissions, Tag};
use virtshell_crds::provisioner::ProvisionerDriver;
use virtshell_crds::{Dependency, Launch, Provisioner, ProvisionerSpec};

use super::objects::{Ownership, checked_permissions, keeps_name, put, set};
use super::{Caller, Field, Service, ServiceError};
use crate::store::Cached;

/// Values of a provisioner; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProvisionerChange {
    /// Must be the provisioner's own.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Version, for people.
    pub version: Option<String>,
    /// How many a request launches.
    pub launch: Option<Launch>,
    /// Virtual CPUs.
    pub cpus: Option<i32>,
    /// Memory in MiB.
    pub memory_mib: Option<i64>,
    /// Root disk in MiB.
    pub disk_mib: Option<i64>,
    /// Name of the image; checked when an instance uses it.
    pub image: Option<String>,
    /// Default driver, any known word.
    pub driver: Option<ProvisionerDriver>,
    /// Repository with the builder.
    pub builder: Option<String>,
    /// Command that builds.
    pub executor: Option<String>,
    /// Tags for selectors.
    pub tags: Option<Vec<String>>,
    /// What must have run first.
    pub depends: Option<Vec<Dependency>>,
    /// Permission string.
    pub permissions: Option<String>,
    /// Owner and group.
    pub ownership: Ownership,
}

impl ProvisionerChange {
    fn apply(self, spec: &mut ProvisionerSpec) {
        set(&mut spec.description, self.description);
        set(&mut spec.version, self.version);
        set(&mut spec.launch, self.launch);
        set(&mut spec.cpus, self.cpus);
        set(&mut spec.memory_mib, self.memory_mib);
        set(&mut spec.disk_mib, self.disk_mib);
        set(&mut spec.image, self.image);
        set(&mut spec.driver, self.driver);
        set(&mut spec.builder, self.builder);
        set(&mut spec.executor, self.executor);
        put(
            &mut spec.tags,
            self.tags.map(|tags| tags.into_iter().map(Tag).collect()),
        );
        put(&mut spec.depends, self.depends);
        set(&mut spec.permissions, self.permissions.map(Permissions));
        self.ownership.apply(&mut spec.owner, &mut spec.group);
    }
}

impl Service {
    /// Makes a provisioner.
    pub async fn create_provisioner(
        &self,
        caller: &Caller,
        name: &str,
        mut change: ProvisionerChange,
    ) -> Result<(), ServiceError> {
        checked_permissions(change.permissions.as_ref())?;
        self.check_new_name::<Provisioner>(name)?;
        let (owner, group) = self.ownership_of_new(caller, &change.ownership)?;
        change.ownership = Ownership { owner, group };
        let mut spec = ProvisionerSpec {
            display_name: Some(name.to_owned()),
            ..ProvisionerSpec::default()
        };
        change.apply(&mut spec);
        self.check_provisioner(name, &spec)?;
        self.create(caller, name, |metadata| Provisioner {
            metadata,
            spec: spec.clone(),
            status: None,
        })
        .await?;
        Ok(())
    }

    /// Changes a provisioner; instances keep what they were created with.
    pub async fn update_provisioner(
        &self,
        caller: &Caller,
        provisioner: &Arc<Provisioner>,
        mut change: ProvisionerChange,
    ) -> Result<(), ServiceError> {
        keeps_name(change.name.as_ref(), provisioner.wire_name())?;
        checked_permissions(change.permissions.as_ref())?;
        change.ownership = self.ownership_of_changed(caller, provisioner.as_ref(), &change.ownership)?;
        self.change(caller, provisioner, |provisioner| {
            change.clone().apply(&mut provisioner.spec);
            self.check_provisioner(provisioner.wire_name(), &provisioner.spec)
        })
        .await?;
        Ok(())
    }

    /// Removes a provisioner.
    pub async fn delete_provisioner(&self, provisioner: &Provisioner) -> Result<(), ServiceError> {
        self.remove(provisioner).await
    }

    fn check_provisioner(&self, name: &str, spec: &ProvisionerSpec) -> Result<(), ServiceError> {
        if spec.builder.is_some() && spec.executor.is_none() {
            return Err(ServiceError::Missing(Field::Executor));
        }
        // Through the provisioners that exist; those that do not are checked when an instance needs them.
        let mut seen = BTreeSet::new();
        let mut next: Vec<Dependency> = spec.depends.clone();
        while let Some(dependency) = next.pop() {
            if dependency.provisioner == name {
                return Err(ServiceError::invalid(
                    Field::Depends,
                    format!("provisioner {name} depends on itself"),
                ));
            }
            let Some(needed) = self.named::<Provisioner>(&dependency.provisioner) else {
                continue;
            };
            if needed.wire_name() == name {
                return Err(ServiceError::invalid(
                    Field::Depends,
                    format!("provisioner {name} depends on itself"),
                ));
            }
            if seen.insert(needed.wire_name().to_owned()) {
                next.extend(needed.spec.depends.clone());
            }
        }
        Ok(())
    }
}
