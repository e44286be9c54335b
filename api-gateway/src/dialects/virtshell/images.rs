//! `/images`: what instances boot from.

use serde::Serialize;
use virtshell_crds::Image;

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
    let change = change(call.fields())?;
    if change.image_type.is_none() {
        return Err(Rejection::MissingField("type"));
    }
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

fn change(fields: Fields<'_>) -> Result<ImageChange, Rejection> {
    Ok(ImageChange {
        name: fields.string(&["name"])?,
        image_type: fields.image_type()?,
        download_url: fields.text(&["download_url"])?,
        container_resource: fields.text(&["container_resource"])?,
        preseed_url: fields.text(&["preseed_url", "preseed_file"])?,
        timezone: fields.text(&["timezone"])?,
        ssh_key: fields.string(&["ssh_key", "key"])?,
        details: fields.string(&["details"])?,
        os: fields.string(&["os"])?,
        release: fields.string(&["release"])?,
        version: fields.string(&["version"])?,
        variant: fields.string(&["variant"])?,
        arch: fields.string(&["arch"])?,
        permissions: fields.string(&["permissions"])?,
        ownership: fields.ownership()?,
    })
}

#[derive(Serialize)]
struct View {
    id: String,
    name: String,
    #[serde(rename = "type")]
    type_: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_resource: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    download_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preseed_url: Option<String>,
    timezone: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ssh_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    os: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    arch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<String>,
    permissions: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
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
