//! What of each kind is kept in memory, and by which name people know it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeStatus};
use kube::ResourceExt;
use virtshell_crds::condition::{ACCEPTED, IMAGE_READY, READY, SCHEDULED};
use virtshell_crds::file::FileContent;
use virtshell_crds::{
    ANNOTATION_LAUNCH_SPEC, Environment, File, Group, Host, Image, Instance, Provisioner, Section, Task,
    TaskAssignment, User,
};

use super::cache::Cached;
use super::ledger::strip_disks;
use crate::file_content;

/// Conditions of Instances that are read here.
const READ: [&str; 4] = [ACCEPTED, SCHEDULED, READY, IMAGE_READY];

/// kubectl keeps a copy of the whole object in an annotation.
fn strip_annotations(annotations: &mut BTreeMap<String, String>) {
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
}

impl Cached for Instance {
    fn display_name(&self) -> Option<&str> {
        self.spec.display_name.as_deref()
    }

    fn strip(&mut self) {
        // Only which Secret it comes from matters here (for the node's Role); user data is not for us.
        if let Some(seed) = &mut self.spec.cloud_init {
            seed.user_data = None;
            seed.network_data = None;
        }
        strip_annotations(self.annotations_mut());
        // Read when the parent is edited, from the API server.
        self.annotations_mut().remove(ANNOTATION_LAUNCH_SPEC);
        // What the node alone knows and reads, and no decision rests on: half of an Instance that runs.
        if let Some(status) = &mut self.status {
            status.domain = None;
            status.interfaces = Vec::new();
            strip_disks(&self.spec, status);
            status.timings = None;
            status.conditions.retain(|c| READ.contains(&c.type_.as_str()));
            status.conditions.shrink_to_fit();
        }
    }
}

impl Cached for File {
    fn display_name(&self) -> Option<&str> {
        self.spec.display_name.as_deref()
    }

    fn full_name(&self) -> Cow<'_, str> {
        match self.spec.folder.as_str() {
            "" => Cow::Borrowed(self.wire_name()),
            folder => Cow::Owned(format!("{folder}/{}", self.wire_name())),
        }
    }

    fn strip(&mut self) {
        // Whatever the writer says that it is.
        self.spec.sha256 = file_content::sha256(self);
        self.spec.content = FileContent::default();
    }
}

impl Cached for Lease {}

impl Cached for Node {
    fn strip(&mut self) {
        // A node's status lists every image that it has pulled.
        if let Some(status) = self.status.take() {
            self.status = Some(NodeStatus {
                addresses: status.addresses,
                ..NodeStatus::default()
            });
        }
    }
}

macro_rules! cached_by_display_name {
    ($($kind:ty),*) => {$(
        impl Cached for $kind {
            fn display_name(&self) -> Option<&str> {
                self.spec.display_name.as_deref()
            }
        }
    )*};
}
cached_by_display_name!(Host, Section, Environment, Image, Provisioner, User, Group);

impl Cached for Task {}

impl Cached for TaskAssignment {
    fn strip(&mut self) {
        // Up to 512 KiB each, for those who ask for the Task through REST.
        for result in self.status.iter_mut().flat_map(|s| &mut s.results) {
            result.output = String::new();
        }
    }
}
