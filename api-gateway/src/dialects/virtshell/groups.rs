//! `/groups`: users that permissions speak of together.

use serde::Serialize;
use utoipa::ToSchema;
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
        name: fields.name(&["name"])?,
        users: fields.references(&["users"])?,
    })
}

/// A user of a group.
#[derive(Serialize, ToSchema)]
#[schema(as = Member)]
struct Member {
    /// Name of the user.
    username: String,
    /// uuid of the user, when there is such a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

/// Users that permissions speak of together.
#[derive(Serialize, ToSchema)]
#[schema(as = Group)]
struct View {
    /// Its name; it stays.
    name: String,
    /// Its members: who is listed here, and the users that list the group.
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

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};
    use super::super::edge::new_name;
    use super::{View, change};

    pub fn list() -> About {
        About::new("List groups", Told::list::<View>("groups"))
    }

    pub fn get() -> About {
        About::new("Show a group", Told::one::<View>()).may_miss()
    }

    pub fn create() -> About {
        About::new("Create a group", Told::success("create")).reads::<View>("NewGroup", |fields| {
            new_name(fields, None, &["name"])?;
            change(fields).map(drop)
        })
    }

    pub fn update() -> About {
        About::new("Change a group", Told::success("update"))
            .reads::<View>("GroupChange", |fields| change(fields).map(drop))
            .may_miss()
    }

    pub fn delete() -> About {
        About::new("Delete a group", Told::success("delete"))
            .details("Refused while an existing user is a member.")
            .may_miss()
    }
}
