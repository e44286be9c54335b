//! `/hosts`: machines that run instances.

use serde::Serialize;
use utoipa::ToSchema;
use virtshell_crds::Host;

use super::about::{BooleanText, HostWord, SizeText};
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
        name: fields.name(&["name"])?,
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

/// A machine that runs instances.
#[derive(Serialize, ToSchema)]
#[schema(as = Host)]
pub struct View {
    /// Its name; it stays.
    name: String,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    os: Option<String>,
    /// Memory for instances: what was declared, else what its agent reports; a bare number is in GB, in MB from 1024 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = SizeText, required = false)]
    memory: Option<String>,
    /// Disk for instances: what was declared, else what its agent reports; a bare number is in GB.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = SizeText, required = false)]
    capacity: Option<String>,
    /// Whether new instances are placed here.
    #[schema(value_type = BooleanText)]
    enabled: &'static str,
    /// What it is good for.
    #[serde(rename = "type")]
    #[schema(value_type = HostWord)]
    type_: &'static str,
    /// Its address inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    local_ipv4: Option<String>,
    /// Its address inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    local_ipv6: Option<String>,
    /// Its address outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    public_ipv4: Option<String>,
    /// Its address outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    public_ipv6: Option<String>,
    /// Instances that are placed here.
    instances: Vec<NameAndId>,
    /// The same as `section`.
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<String>,
    /// The section it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    section: Option<String>,
    /// What it can run: what was declared, else what its agent reports.
    drivers: Vec<String>,
    /// The Kubernetes node whose agent serves it.
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

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};
    use super::super::edge::new_name;
    use super::{View, change};

    pub fn list() -> About {
        About::new("List hosts", Told::list::<View>("hosts"))
    }

    pub fn get() -> About {
        About::new("Show a host", Told::one::<View>()).may_miss()
    }

    pub fn create() -> About {
        About::new("Create a host", Told::success("create")).reads::<View>("NewHost", |fields| {
            new_name(fields, None, &["name"])?;
            change(fields).map(drop)
        })
    }

    pub fn update() -> About {
        About::new("Change a host", Told::success("update"))
            .reads::<View>("HostChange", |fields| change(fields).map(drop))
            .may_miss()
    }

    pub fn delete() -> About {
        About::new("Delete a host", Told::success("delete"))
            .details("Refused while it has instances.")
            .may_miss()
    }
}
