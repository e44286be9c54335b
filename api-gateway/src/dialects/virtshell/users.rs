//! `/users`: who may do what.

use serde::Serialize;
use serde_json::json;
use virtshell_crds::{User, UserType};

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::values::Fields;
use super::view::{Common, common};
use crate::service::users::UserChange;
use crate::service::{Service, Verb};
use crate::store::Cached;

pub async fn list(call: Call) -> Result<Answer, Rejection> {
    let users = call.service.visible::<User>(&call.caller);
    let views: Vec<View> = users.iter().map(|user| view(&call.service, user)).collect();
    Ok(Answer::list("users", &views))
}

pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let user = call
        .service
        .permitted::<User>(&call.caller, Verb::Read, call.id())?;
    Ok(Answer::ok(&view(&call.service, &user)))
}

pub async fn create(call: Call) -> Result<Answer, Rejection> {
    call.service.permit_create::<User>(&call.caller)?;
    let name = call.new_name(&["username", "name"])?;
    let change = change(call.fields())?;
    let keys = call.service.create_user(&call.caller, &name, change).await?;
    Ok(Answer::ok(&json!({
        "create": "success",
        "access_key_id": keys.access_key_id,
        "secret_access_key": keys.secret_access_key,
    })))
}

pub async fn update(call: Call) -> Result<Answer, Rejection> {
    // Who may change what of a user depends on what is changed: the service decides.
    let user = call
        .service
        .permitted::<User>(&call.caller, Verb::Read, call.id())?;
    call.service.permit_update_user(&call.caller, &user)?;
    call.service
        .update_user(&call.caller, &user, change(call.fields())?)
        .await?;
    Ok(Answer::success("update"))
}

pub async fn delete(call: Call) -> Result<Answer, Rejection> {
    let user = call
        .service
        .permitted::<User>(&call.caller, Verb::Delete, call.id())?;
    call.service.delete_user(&user).await?;
    Ok(Answer::success("delete"))
}

fn change(fields: Fields<'_>) -> Result<UserChange, Rejection> {
    let user_type = match fields.string(&["type"])? {
        None => None,
        Some(text) => Some(match text.to_ascii_lowercase().as_str() {
            "system" | "administrator" | "admin" => UserType::System,
            // The documents print the choice itself as an example.
            "regular" | "user" | "system/regular" => UserType::Regular,
            _ => return Err(Rejection::invalid("type", "must be system or regular")),
        }),
    };
    Ok(UserChange {
        name: fields.string(&["username", "name"])?,
        user_type,
        login: fields.text(&["login"])?,
        groups: fields.references(&["groups"])?,
    })
}

#[derive(Serialize)]
struct GroupName {
    name: String,
}

#[derive(Serialize)]
struct View {
    username: String,
    #[serde(rename = "type")]
    type_: &'static str,
    login: String,
    groups: Vec<GroupName>,
    #[serde(flatten)]
    common: Common,
}

fn view(service: &Service, user: &User) -> View {
    let name = user.wire_name().to_owned();
    View {
        type_: match user.spec.type_ {
            UserType::System => "system",
            UserType::Regular => "regular",
        },
        login: user.spec.login.clone().unwrap_or_else(|| name.clone()),
        groups: service
            .groups_of(user)
            .into_iter()
            .map(|name| GroupName { name })
            .collect(),
        username: name,
        common: common(user),
    }
}
