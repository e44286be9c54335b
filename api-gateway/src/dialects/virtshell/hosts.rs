//! `/hosts`: machines that run instances.

use serde::Serialize;
use virtshell_crds::Host;

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::sizes::{self, size_text};
use super::values::Fields;
use super::view::{Common, NameAndId, common, non_empty, uuid};
use crate::service::hosts::HostChange;
use crate::service::{Service, Verb};
use crate::store::Cached;

pub async fn list(call: Call) -> Result<Answer, Rejection> {
    let hosts = call.service.visible::<Host>(&call.caller);
    let views: Vec<View> = hosts.iter().map(|host| view(&call.service, host)).collect();
    Ok(Answer::list("hosts", &views))
}

pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let host = call
        .service
        .permitted::<Host>(&call.caller, Verb::Read, call.id())?;
    Ok(Answer::ok(&view(&call.service, &host)))
}

pub async fn create(call: Call) -> Result<Answer, Rejection> {
    call.service.permit_create::<Host>(&call.caller)?;
    let name = call.new_name(&["name"])?;
    let change = change(call.fields())?;
    call.service.create_host(&call.caller, &name, change).await?;
    Ok(Answer::success("create"))
}

pub async fn update(call: Call) -> Result<Answer, Rejection> {
    let host = call
        .service
        .permitted::<Host>(&call.caller, Verb::Update, call.id())?;
    call.service
        .update_host(&call.caller, &host, change(call.fields())?)
        .await?;
    Ok(Answer::success("update"))
}

pub async fn delete(call: Call) -> Result<Answer, Rejection> {
    let host = call
        .service
        .permitted::<Host>(&call.caller, Verb::Delete, call.id())?;
    call.service.delete_host(&host).await?;
    Ok(Answer::success("delete"))
}

fn change(fields: Fields<'_>) -> Result<HostChange, Rejection> {
    Ok(HostChange {
        name: fields.string(&["name"])?,
        os: fields.string(&["os"])?,
        memory_mib: fields.size("memory", sizes::HOST_MEMORY)?,
        disk_mib: fields.size("capacity", sizes::HOST_CAPACITY)?,
        enabled: fields.boolean("enabled")?,
        host_type: fields.host_type("type")?,
        local_ipv4: fields.ipv4(&["local_ipv4", "ip"], false)?,
        local_ipv6: fields.ipv6("local_ipv6")?,
        public_ipv4: fields.ipv4(&["public_ipv4"], false)?,
        public_ipv6: fields.ipv6("public_ipv6")?,
        section: fields.reference(&["section", "partition"])?,
        drivers: fields.references(&["drivers"])?,
        node_name: fields.text(&["node_name"])?,
    })
}

/// Members of a host on the wire.
pub const MEMBERS: [&str; 18] = [
    "name",
    "os",
    "memory",
    "capacity",
    "enabled",
    "type",
    "local_ipv4",
    "local_ipv6",
    "public_ipv4",
    "public_ipv6",
    "instances",
    "partition",
    "section",
    "drivers",
    "node_name",
    "uuid",
    "created",
    "modified",
];

#[derive(Serialize)]
pub struct View {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    os: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capacity: Option<String>,
    enabled: &'static str,
    #[serde(rename = "type")]
    type_: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_ipv6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_ipv6: Option<String>,
    instances: Vec<NameAndId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    section: Option<String>,
    drivers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    #[serde(flatten)]
    common: Common,
}

/// All that is shown.
pub fn view(service: &Service, host: &Host) -> View {
    let spec = &host.spec;
    let status = host.status.as_ref();
    let capacity = status.and_then(|s| s.capacity.as_ref());
    let declared = |mib: i64| (mib > 0).then_some(mib);
    let drivers = if spec.drivers.is_empty() {
        status
            .map(|s| s.drivers.iter().map(ToString::to_string).collect())
            .unwrap_or_default()
    } else {
        spec.drivers.iter().map(|word| word.0.clone()).collect()
    };
    let instances = service.instances_on(host);
    View {
        name: host.wire_name().to_owned(),
        os: non_empty(&spec.os),
        memory: declared(spec.memory_mib)
            .or(capacity.map(|c| c.memory_mib))
            .map(size_text),
        capacity: declared(spec.disk_mib)
            .or(capacity.map(|c| c.disk_mib))
            .map(size_text),
        enabled: if spec.enabled { "true" } else { "false" },
        type_: spec.type_.as_str(),
        local_ipv4: non_empty(&spec.local_ipv4),
        local_ipv6: non_empty(&spec.local_ipv6),
        public_ipv4: non_empty(&spec.public_ipv4),
        public_ipv6: non_empty(&spec.public_ipv6),
        instances: instances
            .iter()
            .map(|instance| NameAndId {
                name: instance.wire_name().to_owned(),
                id: uuid(instance.as_ref()),
            })
            .collect(),
        partition: spec.section.clone(),
        section: spec.section.clone(),
        drivers,
        node_name: spec
            .node_name
            .clone()
            .or_else(|| status.and_then(|s| non_empty(&s.node_name))),
        common: common(host),
    }
}
