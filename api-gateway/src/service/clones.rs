//! Clones: a new instance with a copy of another one's disks.
//!
//! The gateway copies the spec, the controller places the clone beside its source, the node copies the disks.

use std::sync::Arc;

use virtshell_crds::instance::CloneFrom;
use virtshell_crds::{ANNOTATION_CREATE_TASK, Instance, InstanceSpec, PowerState, Task};

use super::effective::Effective;
use super::error::{object_name, uid};
use super::selection::Selector;
use super::tasks::{Work, new_task_name};
use super::{Caller, Field, Kind, Service, ServiceError, Verb};

/// Names that are tried for a clone that nobody named.
const NAMES: u32 = 1000;

impl Service {
    /// Clones the one instance that is selected. Without a name for it, the first free one of `<source>_clone`,
    /// `<source>_clone_2`, ...
    pub async fn clone_instance(
        &self,
        caller: &Caller,
        sources: &[Selector],
        name: Option<&str>,
    ) -> Result<Arc<Task>, ServiceError> {
        let source = self.source_of_clone(caller, sources)?;
        if let Some(name) = name {
            self.check_new_name::<Instance>(name)?;
        }
        self.usable_environment(caller, Some(&self.effective(&source).environment))?;
        // The cache keeps less than all of the spec.
        let whole = self.store().instances.whole(object_name(source.as_ref())).await;
        let whole =
            whole.map_err(|error| ServiceError::of_write(error, Kind::Instance, source.wire_name()))?;
        if uid(&whole) != uid(source.as_ref()) {
            return Err(ServiceError::NotFound {
                kind: Kind::Instance,
                name: source.wire_name().to_owned(),
            });
        }
        let spec = spec_of_clone(&whole, &self.effective(&whole), caller);
        let task = new_task_name();
        let clone = match name {
            Some(name) => self.make_clone(caller, name, &spec, &task).await?,
            None => {
                self.make_named_clone(caller, source.wire_name(), &spec, &task)
                    .await?
            }
        };
        let work = Work {
            type_: "clone_instance",
            description: format!("Clone instance {} to {}", source.wire_name(), clone.wire_name()),
            targets: std::slice::from_ref(&clone),
            params: None,
        };
        self.start_work(caller, &task, work).await
    }

    /// A launch parent would stand for its children, which cannot be cloned at once.
    fn source_of_clone(&self, caller: &Caller, sources: &[Selector]) -> Result<Arc<Instance>, ServiceError> {
        if let [Selector::Name(name)] = sources {
            let source = self.permitted::<Instance>(caller, Verb::Execute, name)?;
            if self.is_launch_parent(&source) {
                let reason = format!("{name} stands for several instances: name one of them");
                return Err(ServiceError::invalid(Field::Targets, reason));
            }
            return Ok(source);
        }
        match self.select(caller, Verb::Execute, sources)?.as_slice() {
            [one] => Ok(one.clone()),
            several => Err(ServiceError::invalid(
                Field::Targets,
                format!(
                    "{} instances are selected; one can be cloned at a time",
                    several.len()
                ),
            )),
        }
    }

    /// Under the first free name. Whoever asks at the same time gets the next one.
    async fn make_named_clone(
        &self,
        caller: &Caller,
        source: &str,
        spec: &InstanceSpec,
        task: &str,
    ) -> Result<Arc<Instance>, ServiceError> {
        for n in 1..=NAMES {
            let name = match n {
                1 => format!("{source}_clone"),
                n => format!("{source}_clone_{n}"),
            };
            match self.check_new_name::<Instance>(&name) {
                Ok(()) => {}
                Err(ServiceError::AlreadyExists { .. }) => continue,
                Err(error) => return Err(error),
            }
            match self.make_clone(caller, &name, spec, task).await {
                Err(ServiceError::AlreadyExists { .. }) => {}
                made => return made,
            }
        }
        Err(ServiceError::invalid(
            Field::NewName,
            format!("{source} has {NAMES} clones already: give the new one a name"),
        ))
    }

    async fn make_clone(
        &self,
        caller: &Caller,
        name: &str,
        spec: &InstanceSpec,
        task: &str,
    ) -> Result<Arc<Instance>, ServiceError> {
        self.create(caller, name, |mut metadata| {
            metadata
                .annotations
                .get_or_insert_default()
                .insert(ANNOTATION_CREATE_TASK.to_owned(), task.to_owned());
            Instance {
                metadata,
                spec: InstanceSpec {
                    display_name: Some(name.to_owned()),
                    ..spec.clone()
                },
                status: None,
            }
        })
        .await
    }
}

/// All of the source's spec but what is its own: names, owner, addresses and tokens. Values that the source has from its
/// provisioner are written out, for that may have changed since.
fn spec_of_clone(source: &Instance, values: &Effective, caller: &Caller) -> InstanceSpec {
    let mut interfaces = source.spec.interfaces.clone();
    for interface in &mut interfaces {
        interface.mac = None;
    }
    InstanceSpec {
        display_name: None,
        hostname: None,
        owner: caller.as_owner(),
        group: caller.primary_group.clone(),
        addresses: None,
        launch: None,
        restart_token: String::new(),
        interfaces,
        power_state: PowerState::Running,
        // The controller chooses the source's.
        host: None,
        driver: values.driver,
        cpus: values.cpus,
        memory_mib: values.memory_mib,
        disk_mib: values.disk_mib,
        clone_from: Some(CloneFrom {
            name: object_name(source).to_owned(),
            uid: source.metadata.uid.clone(),
        }),
        ..source.spec.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use virtshell_crds::Driver;

    use super::*;

    #[test]
    fn a_clone_has_everything_but_what_is_the_sources_own() {
        let source: Instance = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": "web-x1", "uid": "u"},
            "spec": {
                "displayName": "web_1", "hostname": "web", "provisioner": "p", "owner": "ann", "group": "web",
                "host": "h", "powerState": "Stopped", "restartToken": "t", "launch": {"min": 1, "max": 1},
                "addresses": {"ipv4": "10.0.0.1"}, "permissions": "rwx------", "tags": ["a"], "vars": {"k": "v"},
                "cloudInit": {"userData": "#cloud-config\n"}, "disks": [{"name": "data", "sizeMiB": 10}],
                "interfaces": [{"name": "lan", "network": "n", "mac": "52:54:00:aa:bb:01"}],
            },
        }))
        .unwrap();
        let values = Effective {
            driver: Some(Driver::Lxc),
            cpus: Some(2),
            memory_mib: Some(64),
            disk_mib: Some(99),
            ..Effective::default()
        };
        let caller = Caller {
            name: "bob".into(),
            uid: "b".into(),
            primary_group: Some("db".into()),
            ..Caller::anonymous()
        };
        let spec = serde_json::to_value(spec_of_clone(&source, &values, &caller)).unwrap();
        let original = serde_json::to_value(&source.spec).unwrap();
        for (field, expected) in [
            ("owner", json!("bob")),
            ("group", json!("db")),
            ("powerState", json!("Running")),
            ("driver", json!("lxc")),
            ("cpus", json!(2)),
            ("memoryMiB", json!(64)),
            ("diskMiB", json!(99)),
            ("cloneFrom", json!({"name": "web-x1", "uid": "u"})),
            (
                "interfaces",
                json!([{"name": "lan", "network": "n", "model": original["interfaces"][0]["model"]}]),
            ),
        ] {
            assert_eq!(spec[field], expected, "{field}");
        }
        for own in [
            "displayName",
            "hostname",
            "host",
            "restartToken",
            "launch",
            "addresses",
        ] {
            assert!(spec.get(own).is_none(), "{own}");
        }
        for copied in ["provisioner", "permissions", "tags", "vars", "cloudInit", "disks"] {
            assert_eq!(spec[copied], original[copied], "{copied}");
        }
    }
}
