//! `/instances`: virtual machines and containers.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use virtshell_crds::{Instance, Phase};

use super::about::{HostWord, LaunchCount, SizeText, VarsGiven};
use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::shape::Shape;
use super::sizes::{self, size_text};
use super::values::{Fields, launch_value, wrong_type};
use super::view::{Common, common, permissions};
use crate::service::effective::addresses;
use crate::service::instances::{InstanceChange, Vars};
use crate::service::{Field, Kind, Service, ServiceError, Verb, names};

/// Spellings of the image.
const IMAGE: [&str; 5] = [
    "image",
    "operating_system",
    "iso",
    "container_resource",
    "container_template",
];

pub async fn list(call: Call) -> Result<Answer, Rejection> {
    let instances = call.service.visible_instances(&call.caller);
    let views: Vec<View> = instances
        .iter()
        .map(|instance| view(&call.service, instance, None))
        .collect();
    Ok(Answer::list("instances", &views))
}

pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let instance = call
        .service
        .permitted::<Instance>(&call.caller, Verb::Read, call.id())?;
    let launched = call.service.is_launch_parent(&instance).then(|| {
        call.service
            .children(&instance)
            .iter()
            .map(|child| child.wire_name().to_owned())
            .collect()
    });
    Ok(Answer::ok(&view(&call.service, &instance, launched)))
}

pub async fn create(call: Call) -> Result<Answer, Rejection> {
    call.service.permit_create::<Instance>(&call.caller)?;
    let name = call.new_name(&["name"])?;
    names::check(Kind::Instance, &name).map_err(|reason| ServiceError::invalid(Field::Name, reason))?;
    let wanted = change(call.fields())?;
    let task = call.service.create_instance(&call.caller, &name, wanted).await?;
    Ok(Answer::in_progress("create", &task))
}

pub async fn update(call: Call) -> Result<Answer, Rejection> {
    let instance = call
        .service
        .permitted::<Instance>(&call.caller, Verb::Update, call.id())?;
    let wanted = change(call.fields())?;
    match call
        .service
        .update_instance(&call.caller, &instance, wanted)
        .await?
    {
        Some(task) => Ok(Answer::ok(
            &json!({"update": "success", "task": task.metadata.uid}),
        )),
        None => Ok(Answer::success("update")),
    }
}

pub async fn delete(call: Call) -> Result<Answer, Rejection> {
    let instance = call
        .service
        .permitted::<Instance>(&call.caller, Verb::Delete, call.id())?;
    let task = call.service.delete_instance(&call.caller, &instance).await?;
    Ok(Answer::in_progress("delete", &task))
}

/// In the contract's order of checks.
fn change(fields: Fields<'_>) -> Result<InstanceChange, Rejection> {
    let driver = fields.driver()?;
    let host_type = fields.host_type("host_type")?;
    let memory_mib = fields.size("memory", sizes::INSTANCE_MEMORY)?;
    let cpus = fields.cpus()?;
    let disk_mib = fields.size("hdsize", sizes::INSTANCE_DISK)?;
    let launch = fields.launch()?;
    Ok(InstanceChange {
        name: fields.name(&["name"])?,
        driver,
        host_type,
        memory_mib,
        cpus,
        disk_mib,
        launch,
        permissions: fields.permissions()?,
        description: fields.string(&["description"])?,
        environment: fields.reference(&["enviroment", "environment", "environments"])?,
        provisioner: fields.reference(&["provisioner"])?,
        image: fields.reference(&IMAGE)?,
        vars: vars(fields)?,
        tags: fields.references(&["tags", "tag"])?,
        ipv4: fields.ipv4(&["ipv4"], true)?,
        ipv6: fields.ipv6("ipv6")?,
        ownership: fields.ownership()?,
    })
}

/// Scalars by name, or the URL of a stored file.
fn vars(fields: Fields<'_>) -> Result<Option<Vars>, Rejection> {
    match fields.get(&["vars"], Shape::Vars) {
        None => Ok(None),
        Some((_, Value::String(url))) if url.contains("://") => Ok(Some(Vars::From(url.clone()))),
        Some((name, Value::String(_))) => {
            Err(Rejection::invalid(name, "must be an object of scalars or a URL"))
        }
        Some((name, Value::Object(members))) => {
            let mut vars = BTreeMap::new();
            for (key, value) in members {
                let text = match value {
                    Value::Null => continue,
                    Value::String(text) => text.clone(),
                    Value::Bool(_) | Value::Number(_) => value.to_string(),
                    Value::Array(_) | Value::Object(_) => {
                        return Err(Rejection::invalid(
                            name,
                            format!("{key} must be a string, number or boolean"),
                        ));
                    }
                };
                vars.insert(key.clone(), text);
            }
            Ok(Some(Vars::Given(vars)))
        }
        Some((name, other)) => Err(wrong_type(name, other, "object")),
    }
}

/// Members of an instance on the wire.
pub const MEMBERS: [&str; 26] = [
    "name",
    "description",
    "enviroment",
    "provisioner",
    "permissions",
    "host_type",
    "ipv4",
    "ipv6",
    "driver",
    "drive",
    "memory",
    "cpus",
    "hdsize",
    "image",
    "operating_system",
    "launch",
    "launched",
    "vars",
    "tags",
    "owner",
    "group",
    "status",
    "host",
    "uuid",
    "created",
    "modified",
];

/// A virtual machine or container.
#[derive(Serialize, ToSchema)]
#[schema(as = Instance)]
pub struct View {
    /// Its name, which no other enviroment has either; it stays.
    name: String,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// The enviroment it is in; `default` when none was given and there is one. It stays.
    enviroment: String,
    /// How it is built; it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    provisioner: Option<String>,
    /// Who may do what with it, as it was sent.
    permissions: String,
    /// The type of host that it wants; it stays.
    #[schema(value_type = HostWord)]
    host_type: &'static str,
    /// Address: what was sent, else what its host sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    /// Address: what was sent, else what its host sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    /// What runs it: kvm, qemu or lxc; it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<&'static str>,
    /// The same as `driver`.
    #[serde(skip_serializing_if = "Option::is_none")]
    drive: Option<&'static str>,
    /// Memory in MB.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<i64>,
    /// Virtual CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<i32>,
    /// Disk; a bare number is in GB, in MB from 10240 on. It only grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = SizeText, required = false)]
    hdsize: Option<String>,
    /// What it boots from; it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    /// The same as `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    operating_system: Option<String>,
    /// How many it stands for; it stays.
    #[schema(value_type = LaunchCount)]
    launch: Value,
    /// Names of the instances that it stands for, when it stands for several.
    #[serde(skip_serializing_if = "Option::is_none")]
    launched: Option<Vec<String>>,
    /// What its executor gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = VarsGiven, required = false)]
    vars: Option<Value>,
    /// Its own tags: selectors find it by these and by its provisioner's.
    tags: Vec<String>,
    /// Name of the user who owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// Name of the group that owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    /// What it is doing.
    status: Status,
    /// Name of the host it is placed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(flatten)]
    common: Common,
}

/// What an instance is doing.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = InstanceStatus)]
enum Status {
    Pending,
    Creating,
    Provisioning,
    Running,
    Stopped,
    Paused,
    Deleting,
    Failed,
}

impl From<Phase> for Status {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Pending => Self::Pending,
            Phase::Creating => Self::Creating,
            Phase::Provisioning => Self::Provisioning,
            Phase::Running => Self::Running,
            Phase::Stopped => Self::Stopped,
            Phase::Paused => Self::Paused,
            Phase::Deleting => Self::Deleting,
            Phase::Failed => Self::Failed,
        }
    }
}

/// All that is shown.
pub fn view(service: &Service, instance: &Instance, launched: Option<Vec<String>>) -> View {
    let spec = &instance.spec;
    let values = service.effective(instance);
    let driver = values.driver.map(virtshell_crds::Driver::as_str);
    let [ipv4, ipv6] = addresses(instance).map(|family| family.first().cloned());
    let given = (!spec.vars.is_empty()).then(|| json!(spec.vars));
    View {
        name: instance.wire_name().to_owned(),
        description: spec.description.clone(),
        enviroment: values.environment,
        provisioner: spec.provisioner.clone(),
        permissions: permissions(spec.permissions.as_ref()),
        host_type: values.host_type.as_str(),
        ipv4,
        ipv6,
        driver,
        drive: driver,
        memory: values.memory_mib,
        cpus: values.cpus,
        hdsize: values.disk_mib.map(size_text),
        image: values.image.clone(),
        operating_system: values.image,
        launch: launch_value(values.launch),
        launched,
        vars: given.or_else(|| spec.vars_from.clone().map(Value::String)),
        tags: spec.tags.iter().map(|tag| tag.0.clone()).collect(),
        owner: spec.owner.clone(),
        group: spec.group.clone(),
        status: service.phase(instance).into(),
        host: service.host_name(instance),
        common: common(instance),
    }
}

/// What the API's document says of these routes.
pub mod about {
    use serde_json::json;

    use super::super::about::{About, Told, object, uuid};
    use super::super::edge::new_name;
    use super::{View, change};

    pub fn list() -> About {
        About::new("List instances", Told::list::<View>("instances"))
    }

    pub fn get() -> About {
        About::new("Show an instance", Told::one::<View>()).may_miss()
    }

    pub fn create() -> About {
        About::new("Create an instance", Told::in_progress(&["create"]))
            .details("It needs a provisioner or an image. The task tells how it goes.")
            .reads::<View>("NewInstance", |fields| {
                new_name(fields, None, &["name"])?;
                change(fields).map(drop)
            })
            .may_lack()
            .may_find_no_host()
    }

    pub fn update() -> About {
        About::new(
            "Change an instance",
            Told::success("update").or(Told::json(object(&[
                ("update", json!({"const": "success"})),
                ("task", uuid()),
            ]))),
        )
        .details("There is a task when memory, cpus or hdsize change.")
        .reads::<View>("InstanceChange", |fields| change(fields).map(drop))
        .may_miss()
        .may_lack()
    }

    pub fn delete() -> About {
        About::new("Delete an instance", Told::in_progress(&["delete"]))
            .details("It can be read until its host has removed it.")
            .may_miss()
    }
}
