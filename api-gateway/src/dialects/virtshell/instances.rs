//! `/instances`: virtual machines and containers.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use virtshell_crds::{Instance, Phase};

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
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
        name: fields.string(&["name"])?,
        driver,
        host_type,
        memory_mib,
        cpus,
        disk_mib,
        launch,
        permissions: fields.string(&["permissions"])?,
        description: fields.string(&["description"])?,
        environment: fields.reference(&["enviroment", "environment"])?,
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
    match fields.get(&["vars"]) {
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

#[derive(Serialize)]
pub struct View {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    enviroment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    provisioner: Option<String>,
    permissions: String,
    host_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv4: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drive: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hdsize: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operating_system: Option<String>,
    launch: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    launched: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vars: Option<Value>,
    tags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(flatten)]
    common: Common,
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
        status: status_word(service.phase(instance)),
        host: service.host_name(instance),
        common: common(instance),
    }
}

const fn status_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "pending",
        Phase::Creating => "creating",
        Phase::Provisioning => "provisioning",
        Phase::Running => "running",
        Phase::Stopped => "stopped",
        Phase::Paused => "paused",
        Phase::Deleting => "deleting",
        Phase::Failed => "failed",
    }
}
