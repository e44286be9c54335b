//! What each cache keeps of its kind, and by what it finds it.

use std::borrow::Cow;

use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use virtshell_crds::condition::{self, ACCEPTED};
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

/// Drops annotations that nothing here reads: kubectl's copy of the manifest is as large as the object.
fn slim(object: &mut impl ResourceExt) {
    object.annotations_mut().retain(|key, _| {
        [
            ANNOTATION_CREATED_BY,
            ANNOTATION_MODIFIED_AT,
            ANNOTATION_MODIFIED_BY,
        ]
        .contains(&key.as_str())
    });
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
    named!();

    fn project(&mut self) {
        slim(self);
        self.spec.cloud_init = None;
        if let Some(status) = &mut self.status {
            status.conditions.retain(|c| c.type_ == ACCEPTED);
            status.disks.clear();
            status.interfaces.clear();
            status.timings = None;
            status.domain = None;
            if let Some(resolved) = &mut status.resolved {
                resolved.disk_images.clear();
            }
        }
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

impl Cached for Task {
    /// Tasks are addressed by uid alone.
    fn wire_name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn project(&mut self) {
        if let Some(status) = &mut self.status {
            status.conditions.clear();
            status.generations.clear();
        }
    }
}

impl Cached for TaskAssignment {
    fn wire_name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn project(&mut self) {
        self.spec.params = None;
        self.spec.targets.clear();
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
