//! What each cache keeps of its kind, and by what it finds it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use virtshell_crds::condition::{self, ACCEPTED};
use virtshell_crds::instance::{InstanceStatus, Resolved, ResolvedImage};
use virtshell_crds::{
    ANNOTATION_CREATED_BY, ANNOTATION_MODIFIED_AT, ANNOTATION_MODIFIED_BY, Environment, File, Group, Host,
    Image, Instance, LABEL_LAUNCH_PARENT, Provisioner, Section, Task, TaskAssignment, User, names,
};

use super::by;
use super::index::{Cached, Key};
use super::{ACCESS_KEY_ID, SECRET_ACCESS_KEY};

/// The wire name and whether it was accepted, for the kinds that have both the same way.
macro_rules! named {
    () => {
        fn wire_name(&self) -> &str {
            let name = self
                .spec
                .display_name
                .as_deref()
                .or(self.metadata.name.as_deref());
            name.unwrap_or_default()
        }

        fn is_accepted(&self) -> bool {
            self.status
                .as_ref()
                .is_some_and(|s| condition::is_true(&s.conditions, ACCEPTED))
        }
    };
}

/// Drops annotations and labels that nothing here reads: kubectl's copy of the manifest is as large as the object.
fn slim(object: &mut impl ResourceExt) {
    let kept = [
        ANNOTATION_CREATED_BY,
        ANNOTATION_MODIFIED_AT,
        ANNOTATION_MODIFIED_BY,
    ];
    let meta = object.meta_mut();
    keep(&mut meta.annotations, &kept);
    keep(&mut meta.labels, &[LABEL_LAUNCH_PARENT]);
}

fn keep(map: &mut Option<BTreeMap<String, String>>, keys: &[&str]) {
    let kept = map.take().map(|mut map| {
        map.retain(|key, _| keys.contains(&key.as_str()));
        map
    });
    // An empty map takes nothing, one with an entry as much as one with eleven.
    *map = kept.filter(|map| !map.is_empty());
}

impl Cached for Host {
    named!();

    fn project(&mut self) {
        slim(self);
        if let Some(status) = &mut self.status {
            status.images.clear();
            status.foreign_domains.clear();
            status.orphan_domains.clear();
            status.cpu = None;
            status.hypervisor = None;
        }
    }

    fn keys(&self) -> Vec<Key> {
        self.spec
            .section
            .iter()
            .map(|section| (by::CONTAINER, section.clone()))
            .collect()
    }
}

impl Cached for Section {
    named!();

    fn project(&mut self) {
        slim(self);
    }
}

impl Cached for Environment {
    named!();

    fn project(&mut self) {
        slim(self);
    }

    fn keys(&self) -> Vec<Key> {
        self.spec
            .section
            .iter()
            .map(|section| (by::CONTAINER, section.clone()))
            .collect()
    }
}

impl Cached for Image {
    named!();

    fn project(&mut self) {
        slim(self);
    }
}

impl Cached for Provisioner {
    named!();

    fn project(&mut self) {
        slim(self);
    }
}

impl Cached for Instance {
    const MANY: bool = true;

    named!();

    fn project(&mut self) {
        slim(self);
        self.spec.cloud_init = None;
        self.status = self.status.take().map(shown_status);
    }

    fn keys(&self) -> Vec<Key> {
        let status_host = self.status.as_ref().and_then(|s| s.host.as_ref());
        let host = status_host.or(self.spec.host.as_ref());
        let environment = self
            .spec
            .environment
            .as_deref()
            .unwrap_or(virtshell_crds::resolve::DEFAULT_ENVIRONMENT);
        let parent = self
            .metadata
            .labels
            .as_ref()
            .and_then(|l| l.get(LABEL_LAUNCH_PARENT));
        let mut keys = vec![(by::CONTAINER, environment.to_owned())];
        keys.extend(host.map(|host| (by::HOST, host.clone())));
        keys.extend(parent.map(|parent| (by::LAUNCH_PARENT, parent.clone())));
        keys
    }
}

/// The part of a status that routes show or decide by.
fn shown_status(status: InstanceStatus) -> InstanceStatus {
    let mut accepted = status.conditions;
    accepted.retain(|condition| condition.type_ == ACCEPTED);
    for condition in &mut accepted {
        condition.reason.clear();
        condition.message.clear();
    }
    InstanceStatus {
        observed_generation: status.observed_generation,
        phase: status.phase,
        host: status.host,
        power_state: status.power_state,
        provisioned: status.provisioned,
        resolved: status.resolved.map(|resolved| Resolved {
            environment: resolved.environment,
            driver: resolved.driver,
            host_type: resolved.host_type,
            cpus: resolved.cpus,
            memory_mib: resolved.memory_mib,
            disk_mib: resolved.disk_mib,
            launch: resolved.launch,
            image: resolved.image.map(|image| ResolvedImage {
                name: image.name,
                type_: image.type_,
                url: String::new(),
                sha256: String::new(),
                boot: None,
                timezone: String::new(),
                ssh_key: String::new(),
                preseed_url: String::new(),
            }),
            ..Resolved::default()
        }),
        addresses: status.addresses,
        tags: status.tags,
        conditions: accepted,
        ..InstanceStatus::default()
    }
}

impl Cached for Task {
    const MANY: bool = true;

    /// Tasks are addressed by uid alone.
    fn wire_name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn project(&mut self) {
        self.metadata.labels = None;
        if let Some(status) = &mut self.status {
            status.conditions.clear();
            status.generations.clear();
        }
    }
}

impl Cached for TaskAssignment {
    const MANY: bool = true;

    fn wire_name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn project(&mut self) {
        self.spec.params = None;
        self.spec.targets.clear();
        if let Some(status) = &mut self.status {
            status.conditions.clear();
            // What was printed is read past the cache: it may be 512 KiB, and stays for as long as the task.
            for result in &mut status.results {
                result.output = String::new();
            }
        }
    }

    fn keys(&self) -> Vec<Key> {
        vec![(by::TASK, self.spec.task.uid.clone())]
    }
}

impl Cached for File {
    named!();

    fn full_name(&self) -> Cow<'_, str> {
        Cow::Owned(names::file_wire_name(&self.spec.folder, self.wire_name()))
    }

    /// Content is read past the cache; what it was is told by a blob, or the lack of one.
    fn project(&mut self) {
        slim(self);
        self.spec.content.inline = None;
    }

    fn keys(&self) -> Vec<Key> {
        let named = (by::FILE_NAME, self.wire_name().to_owned());
        let within = (by::FOLDER, self.spec.folder.clone());
        let blob = self.spec.content.blob.iter().map(|blob| (by::BLOB, blob.clone()));
        blob.chain([named, within]).collect()
    }
}

impl Cached for User {
    named!();

    fn project(&mut self) {
        slim(self);
    }

    fn keys(&self) -> Vec<Key> {
        let groups = self.spec.groups.iter().map(|group| (by::MEMBER, group.clone()));
        groups.chain([(by::SECRET, self.credentials_secret())]).collect()
    }
}

impl Cached for Group {
    named!();

    fn project(&mut self) {
        slim(self);
    }

    fn keys(&self) -> Vec<Key> {
        self.spec
            .users
            .iter()
            .map(|user| (by::MEMBER, user.clone()))
            .collect()
    }
}

impl Cached for Secret {
    fn wire_name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn project(&mut self) {
        self.metadata.annotations = None;
        if let Some(data) = &mut self.data {
            data.retain(|key, _| key == ACCESS_KEY_ID || key == SECRET_ACCESS_KEY);
        }
    }

    fn keys(&self) -> Vec<Key> {
        let id = self.data.as_ref().and_then(|data| data.get(ACCESS_KEY_ID));
        id.and_then(|id| String::from_utf8(id.0.clone()).ok())
            .map(|id| (by::ACCESS_KEY, id))
            .into_iter()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_an_assignment_no_output_is_kept() {
        let mut part: TaskAssignment = serde_json::from_value(json!({
            "apiVersion": virtshell_crds::API_VERSION, "kind": "TaskAssignment",
            "metadata": {"name": "part", "uid": "u"},
            "spec": {"task": {"name": "t", "uid": "t"}, "host": "h", "attempt": 0, "type": "execute_command",
                "timeoutSeconds": 60, "targets": [{"name": "web", "uid": "w"}]},
            "status": {"results": [{"uid": "w", "name": "web", "state": "Failed", "exitCode": 1, "output": "long"}]},
        }))
        .unwrap();
        part.project();
        let results = &json!(part)["status"]["results"];
        assert_eq!(
            results,
            &json!([{"uid": "w", "name": "web", "state": "Failed", "exitCode": 1, "truncated": false}])
        );
    }

    #[test]
    fn of_an_instance_only_what_is_shown_or_decided_by_is_kept() {
        let mut instance: Instance = serde_json::from_value(json!({
            "apiVersion": virtshell_crds::API_VERSION, "kind": "Instance",
            "metadata": {
                "name": "web", "uid": "u",
                "labels": {LABEL_LAUNCH_PARENT: "p", "virtshell.io/name": "web"},
                "annotations": {ANNOTATION_CREATED_BY: "me", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
            },
            "spec": {"displayName": "web_1", "image": "i", "vars": {"a": "b"}, "cloudInit": {"userData": "#cloud-config"}},
            "status": {
                "phase": "Running", "host": "h", "message": "m", "tags": ["t"],
                "addresses": {"ipv4": ["10.0.0.1"], "ipv6": []},
                "resolved": {"environment": "e", "cpus": 2, "builder": "b",
                    "image": {"name": "i", "type": "disk", "url": "https://example.org/i", "sha256": "0"}},
                "disks": [{"name": "root", "path": "/d", "sizeMiB": 1, "detached": false}],
                "conditions": [
                    {"type": "Accepted", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                    {"type": "Ready", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                ],
            },
        }))
        .unwrap();
        instance.project();
        assert!(instance.is_accepted());
        let kept = json!(instance);
        assert_eq!(kept["metadata"]["labels"], json!({LABEL_LAUNCH_PARENT: "p"}));
        assert_eq!(
            kept["metadata"]["annotations"],
            json!({ANNOTATION_CREATED_BY: "me"})
        );
        assert_eq!(kept["spec"]["vars"], json!({"a": "b"}));
        assert!(kept["spec"].get("cloudInit").is_none());
        assert_eq!(
            kept["status"],
            json!({
                "phase": "Running", "host": "h", "tags": ["t"], "addresses": {"ipv4": ["10.0.0.1"], "ipv6": []},
                "resolved": {"environment": "e", "cpus": 2, "image": {"name": "i", "type": "disk"}},
                "conditions": [{"type": "Accepted", "status": "True", "reason": "", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            })
        );
    }
}
