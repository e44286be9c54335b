//! `/groups`: users that permissions speak of together.

use serde::Serialize;
use virtshell_crds::Group;

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::values::Fields;
use super::view::{Common, common};
use crate::service::groups::GroupChange;
use crate::service::{Service, Verb};
use crate::store::Cached;

pub async fn list(call: Call) -> Result<Answer, Rejection> {
    let groups = call.service.visible::<Group>(&call.caller);
    let views: Vec<View> = groups.iter().map(|group| view(&call.service, group)).collect();
    Ok(Answer::list("groups", &views))
}

pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let group = call
        .service
        .permitted::<Group>(&call.caller, Verb::Read, call.id())?;
    Ok(Answer::ok(&view(&call.service, &group)))
}

pub async fn create(call: Call) -> Result<Answer, Rejection> {
    call.service.permit_create::<Group>(&call.caller)?;
    let name = call.new_name(&["name"])?;
    call.service
        .create_group(&call.caller, &name, change(call.fields())?)
        .await?;
    Ok(Answer::success("create"))
}

pub async fn update(call: Call) -> Result<Answer, Rejection> {
    let group = call
        .service
        .permitted::<Group>(&call.caller, Verb::Update, call.id())?;
    call.service
        .update_group(&call.caller, &group, change(call.fields())?)
        .await?;
    Ok(Answer::success("update"))
}

pub async fn delete(call: Call) -> Result<Answer, Rejection> {
    let group = call
        .service
        .permitted::<Group>(&call.caller, Verb::Delete, call.id())?;
    call.service.delete_group(&group).await?;
    Ok(Answer::success("delete"))
}

fn change(fields: Fields<'_>) -> Result<GroupChange, Rejection> {
    Ok(GroupChange {
        name: fields.string(&["name"])?,
        users: fields.references(&["users"])?,
    })
}

#[derive(Serialize)]
struct Member {
    username: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

#[derive(Serialize)]
struct View {
    name: String,
    users: Vec<Member>,
    #[serde(flatten)]
    common: Common,
}

fn view(service: &Service, group: &Group) -> View {
    View {
        name: group.wire_name().to_owned(),
        users: service
            .members(group)
            .into_iter()
            .map(|(username, id)| Member { username, id })
            .collect(),
        common: common(group),
    }
}
