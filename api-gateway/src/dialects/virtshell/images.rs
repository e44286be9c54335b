//! `/images`: what instances boot from.

use serde::Serialize;
use utoipa::ToSchema;
use virtshell_crds::Image;

use super::about::ImageWord;
use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::values::Fields;
use super::view::{Common, common, permissions, uuid};
use crate::service::images::ImageChange;
use crate::service::{ServiceError, Verb};
use crate::store::Cached;

pub async fn list(call: Call) -> Result<Answer, Rejection> {
    let images = call.service.visible::<Image>(&call.caller);
    let views: Vec<View> = images.iter().map(|image| view(image)).collect();
    Ok(Answer::list("images", &views))
}

pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let image = call
        .service
        .permitted::<Image>(&call.caller, Verb::Read, call.id())?;
    Ok(Answer::ok(&view(&image)))
}

pub async fn create(call: Call) -> Result<Answer, Rejection> {
    call.service.permit_create::<Image>(&call.caller)?;
    let name = call.new_name(&["name"])?;
    let change = new(call.fields())?;
    call.service.create_image(&call.caller, &name, change).await?;
    Ok(Answer::success("create"))
}

/// `PUT /images`: the older documents create and change images this way.
pub async fn create_or_update(call: Call) -> Result<Answer, Rejection> {
    let name = call.new_name(&["name"])?;
    match call.service.find::<Image>(&name) {
        Ok(_) => {
            let image = call
                .service
                .permitted::<Image>(&call.caller, Verb::Update, &name)?;
            call.service
                .update_image(&call.caller, &image, change(call.fields())?)
                .await?;
            Ok(Answer::success("update"))
        }
        Err(ServiceError::NotFound { .. }) => create(call).await,
        Err(error) => Err(error.into()),
    }
}

pub async fn update(call: Call) -> Result<Answer, Rejection> {
    let image = call
        .service
        .permitted::<Image>(&call.caller, Verb::Update, call.id())?;
    call.service
        .update_image(&call.caller, &image, change(call.fields())?)
        .await?;
    Ok(Answer::success("update"))
}

pub async fn delete(call: Call) -> Result<Answer, Rejection> {
    let image = call
        .service
        .permitted::<Image>(&call.caller, Verb::Delete, call.id())?;
    call.service.delete_image(&image).await?;
    Ok(Answer::success("delete"))
}

fn new(fields: Fields<'_>) -> Result<ImageChange, Rejection> {
    let change = change(fields)?;
    match change.image_type {
        Some(_) => Ok(change),
        None => Err(Rejection::MissingField("type")),
    }
}

fn change(fields: Fields<'_>) -> Result<ImageChange, Rejection> {
    Ok(ImageChange {
        name: fields.name(&["name"])?,
        image_type: fields.image_type()?,
        download_url: fields.url(&["download_url"])?,
        container_resource: fields.url(&["container_resource"])?,
        preseed_url: fields.url(&["preseed_url", "preseed_file"])?,
        timezone: fields.text(&["timezone"])?,
        ssh_key: fields.string(&["ssh_key", "key"])?,
        details: fields.string(&["details"])?,
        os: fields.string(&["os"])?,
        release: fields.string(&["release"])?,
        version: fields.string(&["version"])?,
        variant: fields.string(&["variant"])?,
        arch: fields.string(&["arch"])?,
        permissions: fields.permissions()?,
        ownership: fields.ownership()?,
    })
}

/// What instances boot from.
#[derive(Serialize, ToSchema)]
#[schema(as = Image)]
struct View {
    /// The same as `uuid`.
    #[schema(format = Uuid)]
    id: String,
    /// Its name; it stays.
    name: String,
    /// What it is.
    #[serde(rename = "type")]
    #[schema(value_type = ImageWord)]
    type_: &'static str,
    /// Where the archive of a root file system is; of a stored file by its URI.
    #[serde(skip_serializing_if = "Option::is_none")]
    container_resource: Option<String>,
    /// Where the ISO, disk or archive is; of a stored file by its URI.
    #[serde(skip_serializing_if = "Option::is_none")]
    download_url: Option<String>,
    /// Where the answers for an installer are; of a stored file by its URI.
    #[serde(skip_serializing_if = "Option::is_none")]
    preseed_url: Option<String>,
    /// Time zone of its instances.
    timezone: String,
    /// Public key of who may log in.
    #[serde(skip_serializing_if = "Option::is_none")]
    ssh_key: Option<String>,
    /// Operating system, when it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    os: Option<String>,
    /// Its release, when it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<String>,
    /// Its version, when it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    /// server or desktop, when it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    /// Architecture, when it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    arch: Option<String>,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<String>,
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

fn view(image: &Image) -> View {
    let spec = image.spec.clone();
    View {
        id: uuid(image),
        name: image.wire_name().to_owned(),
        type_: spec.type_.as_str(),
        container_resource: spec.container_resource,
        download_url: spec.download_url,
        preseed_url: spec.preseed_url,
        timezone: spec.timezone.unwrap_or_else(|| "UTC".to_owned()),
        ssh_key: spec.ssh_key,
        os: spec.os,
        release: spec.release,
        version: spec.version,
        variant: spec.variant,
        arch: spec.arch,
        details: spec.details,
        permissions: permissions(image.spec.permissions.as_ref()),
        owner: spec.owner,
        group: spec.group,
        common: common(image),
    }
}

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};
    use super::super::edge::new_name;
    use super::{View, change, new};

    pub fn list() -> About {
        About::new("List images", Told::list::<View>("images"))
    }

    pub fn get() -> About {
        About::new("Show an image", Told::one::<View>()).may_miss()
    }

    pub fn create() -> About {
        About::new("Create an image", Told::success("create")).reads::<View>("NewImage", |fields| {
            new_name(fields, None, &["name"])?;
            new(fields).map(drop)
        })
    }

    pub fn update() -> About {
        About::new("Change an image", Told::success("update"))
            .reads::<View>("ImageChange", |fields| change(fields).map(drop))
            .may_miss()
    }

    pub fn delete() -> About {
        About::new("Delete an image", Told::success("delete"))
            .details("Instances that were made from it keep their copy.")
            .may_miss()
    }

    pub fn create_or_update() -> About {
        let answer = Told::success("create").or(Told::success("update"));
        About::new("Create an image, or change the one of that name", answer).reads::<View>(
            "NewImage",
            |fields| {
                new_name(fields, None, &["name"])?;
                new(fields).map(drop)
            },
        )
    }
}
