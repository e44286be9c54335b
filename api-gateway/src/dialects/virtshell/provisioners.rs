//! `/provisioners`: how instances are built.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use virtshell_crds::provisioner::ProvisionerDriver;
use virtshell_crds::{Dependency, Provisioner};

use super::about::{Gigabytes, LaunchCount};
use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::shape::Shape;
use super::sizes::{self, size_in_gb};
use super::values::{DRIVERS, Fields, launch_value, one_reference, wrong_type};
use super::view::{Common, common, non_empty, permissions};
use crate::service::Verb;
use crate::service::provisioners::ProvisionerChange;
use crate::store::Cached;

pub async fn list(call: Call) -> Result<Answer, Rejection> {
    let provisioners = call.service.visible::<Provisioner>(&call.caller);
    let views: Vec<View> = provisioners.iter().map(|provisioner| view(provisioner)).collect();
    Ok(Answer::list("provisioners", &views))
}

pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let provisioner = call
        .service
        .permitted::<Provisioner>(&call.caller, Verb::Read, call.id())?;
    Ok(Answer::ok(&view(&provisioner)))
}

pub async fn create(call: Call) -> Result<Answer, Rejection> {
    call.service.permit_create::<Provisioner>(&call.caller)?;
    let name = call.new_name(&["name"])?;
    call.service
        .create_provisioner(&call.caller, &name, change(call.fields())?)
        .await?;
    Ok(Answer::success("create"))
}

pub async fn update(call: Call) -> Result<Answer, Rejection> {
    let provisioner = call
        .service
        .permitted::<Provisioner>(&call.caller, Verb::Update, call.id())?;
    call.service
        .update_provisioner(&call.caller, &provisioner, change(call.fields())?)
        .await?;
    Ok(Answer::success("update"))
}

pub async fn delete(call: Call) -> Result<Answer, Rejection> {
    let provisioner = call
        .service
        .permitted::<Provisioner>(&call.caller, Verb::Delete, call.id())?;
    call.service.delete_provisioner(&provisioner).await?;
    Ok(Answer::success("delete"))
}

fn change(fields: Fields<'_>) -> Result<ProvisionerChange, Rejection> {
    let builder = fields.text(&["builder", "repository"])?;
    let executor = match (
        fields.text(&["executor"])?,
        fields.text(&["how_to_run"])?,
        &builder,
    ) {
        (Some(executor), _, _) => Some(executor),
        // The older form: an interpreter, and the file that the builder's URL names.
        (None, Some(how), Some(url)) => Some(format!("{how} {}", base_name(url))),
        (None, Some(how), None) => Some(how),
        (None, None, _) => None,
    };
    Ok(ProvisionerChange {
        name: fields.name(&["name"])?,
        description: fields.string(&["description"])?,
        version: fields.string(&["version"])?,
        launch: fields.launch()?,
        cpus: fields.cpus()?,
        memory_mib: fields.size("memory", sizes::PROVISIONER_MEMORY)?,
        disk_mib: fields.size("hdsize", sizes::PROVISIONER_DISK)?,
        image: fields.reference(&["image"])?,
        driver: driver(fields)?,
        builder: builder.map(checked_builder).transpose()?,
        executor,
        tags: fields.references(&["tags", "tag"])?,
        depends: depends(fields)?,
        permissions: fields.permissions()?,
        ownership: fields.ownership()?,
    })
}

/// Any documented word; whether hosts run it matters when an instance is made.
fn driver(fields: Fields<'_>) -> Result<Option<ProvisionerDriver>, Rejection> {
    let Some((name, text)) = fields.driver_word()? else {
        return Ok(None);
    };
    let found = serde_json::from_value(Value::String(text));
    found
        .map(Some)
        .map_err(|_| Rejection::invalid(name, format!("must be one of {}", DRIVERS.join(", "))))
}

fn checked_builder(url: String) -> Result<String, Rejection> {
    let has_scheme = ["http://", "https://", "git://", "ssh://", "file://"]
        .iter()
        .any(|scheme| url.starts_with(scheme));
    // git's short form, `user@host:path`.
    if has_scheme
        || url
            .split_once('@')
            .is_some_and(|(user, rest)| !user.is_empty() && rest.contains(':'))
    {
        return Ok(url);
    }
    Err(Rejection::invalid(
        "builder",
        "must be a git URL: http, https, git, ssh or file",
    ))
}

fn base_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or(url)
}

/// Strings, or objects with a version.
fn depends(fields: Fields<'_>) -> Result<Option<Vec<Dependency>>, Rejection> {
    let values = match fields.get(&["depends"], Shape::Dependencies) {
        None => return Ok(None),
        Some((_, Value::Array(values))) => values,
        Some((name, other)) => return Err(wrong_type(name, other, "list")),
    };
    let dependency = |value: &Value| {
        let version = match value.get("version") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(version)) => version.clone(),
            Some(other) => return Err(wrong_type("depends", other, "string")),
        };
        let provisioner = match value.get("provisioner") {
            Some(Value::String(name)) if !name.is_empty() => name.clone(),
            _ => one_reference("depends", value)?,
        };
        Ok(Dependency { provisioner, version })
    };
    values.iter().map(dependency).collect::<Result<_, _>>().map(Some)
}

/// A provisioner that another one depends on.
#[derive(Serialize, ToSchema)]
#[schema(as = Dependency)]
struct DependencyView {
    /// Its name.
    provisioner_name: String,
    /// The version that is wanted; a note.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

/// How instances are built.
#[derive(Serialize, ToSchema)]
#[schema(as = Provisioner)]
struct View {
    /// Its name; it stays.
    name: String,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// How many instances one request makes.
    #[schema(value_type = LaunchCount)]
    launch: Value,
    /// Memory of its instances; a bare number is in GB, in MB from 1024 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Gigabytes, required = false)]
    memory: Option<Value>,
    /// Virtual CPUs of its instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpus: Option<i32>,
    /// Disk of its instances; a bare number is in GB, in MB from 10240 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Gigabytes, required = false)]
    hdsize: Option<Value>,
    /// Name of the image; it must exist when an instance uses it.
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<String>,
    /// Driver of its instances; docker, virtualbox, vmware and ec2 can be stored and not be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<&'static str>,
    /// Git URL (http, https, git, ssh, file) of what is run in a new instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    builder: Option<String>,
    /// Command line that is run in the builder's folder; needed when there is a builder.
    #[serde(skip_serializing_if = "Option::is_none")]
    executor: Option<String>,
    /// The first of its tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    /// Its tags, when there are several: selectors find instances by them.
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Vec<String>>,
    /// Provisioners of which a running instance must be in the same enviroment first.
    depends: Vec<DependencyView>,
    /// Who may do what with it, as it was sent.
    permissions: String,
    /// Name of the user who owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    /// Name of the group that owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(flatten)]
    common: Common,
}

fn view(provisioner: &Provisioner) -> View {
    let spec = &provisioner.spec;
    let tags: Vec<String> = spec.tags.iter().map(|tag| tag.0.clone()).collect();
    View {
        name: provisioner.wire_name().to_owned(),
        description: spec.description.clone(),
        version: spec.version.clone(),
        launch: launch_value(spec.launch.unwrap_or_default()),
        memory: spec.memory_mib.map(size_in_gb),
        cpus: spec.cpus,
        hdsize: spec.disk_mib.map(size_in_gb),
        image: spec.image.clone(),
        driver: spec.driver.map(ProvisionerDriver::as_str),
        builder: spec.builder.clone(),
        executor: spec.executor.clone(),
        tag: tags.first().cloned(),
        tags: (tags.len() > 1).then_some(tags),
        depends: spec.depends.iter().map(dependency_view).collect(),
        permissions: permissions(spec.permissions.as_ref()),
        owner: spec.owner.clone(),
        group: spec.group.clone(),
        common: common(provisioner),
    }
}

fn dependency_view(dependency: &Dependency) -> DependencyView {
    DependencyView {
        provisioner_name: dependency.provisioner.clone(),
        version: non_empty(&dependency.version),
    }
}

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};
    use super::super::edge::new_name;
    use super::{View, change};

    pub fn list() -> About {
        About::new("List provisioners", Told::list::<View>("provisioners"))
    }

    pub fn get() -> About {
        About::new("Show a provisioner", Told::one::<View>()).may_miss()
    }

    pub fn create() -> About {
        About::new("Create a provisioner", Told::success("create")).reads::<View>(
            "NewProvisioner",
            |fields| {
                new_name(fields, None, &["name"])?;
                change(fields).map(drop)
            },
        )
    }

    pub fn update() -> About {
        About::new("Change a provisioner", Told::success("update"))
            .details("Instances that it made keep what they have.")
            .reads::<View>("ProvisionerChange", |fields| change(fields).map(drop))
            .may_miss()
    }

    pub fn delete() -> About {
        About::new("Delete a provisioner", Told::success("delete"))
            .details("Instances that it made keep what they have.")
            .may_miss()
    }
}
