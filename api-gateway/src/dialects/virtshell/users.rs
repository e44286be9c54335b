//! `/users`: who may do what.

use serde::Serialize;
use utoipa::ToSchema;
use virtshell_crds::{User, UserType};

use super::about::{Success, UserWord};
use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::values::Fields;
use super::view::{Common, common};
use crate::service::users::UserChange;
use crate::service::{Service, Verb};
use crate::store::Cached;

/// The words for what a user may be, with the documents' aliases.
const TYPES: [&str; 6] = [
    "system",
    "regular",
    "administrator",
    "admin",
    "user",
    "system/regular",
];

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
    Ok(Answer::ok(&Made {
        create: "success",
        access_key_id: keys.access_key_id,
        secret_access_key: keys.secret_access_key,
    }))
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
    call.service.delete_user(&call.caller, &user).await?;
    Ok(Answer::success("delete"))
}

fn change(fields: Fields<'_>) -> Result<UserChange, Rejection> {
    let user_type = match fields.word(&["type"], &TYPES)? {
        None => None,
        Some(text) => Some(match text.to_ascii_lowercase().as_str() {
            "system" | "administrator" | "admin" => UserType::System,
            // The documents print the choice itself as an example.
            "regular" | "user" | "system/regular" => UserType::Regular,
            _ => return Err(Rejection::invalid("type", "must be system or regular")),
        }),
    };
    Ok(UserChange {
        name: fields.name(&["username", "name"])?,
        user_type,
        login: fields.text(&["login"])?,
        groups: fields.references(&["groups"])?,
    })
}

/// A new user and its keys, which are shown this once.
#[derive(Serialize, ToSchema)]
#[schema(as = UserCreated)]
struct Made {
    /// That it was made.
    #[schema(value_type = Success)]
    create: &'static str,
    /// Names the user in signatures.
    access_key_id: String,
    /// Signs.
    secret_access_key: String,
}

/// A group of a user.
#[derive(Serialize, ToSchema)]
#[schema(as = GroupName)]
struct GroupName {
    /// Its name.
    name: String,
}

/// Who signs requests.
#[derive(Serialize, ToSchema)]
#[schema(as = User)]
struct View {
    /// Its name, without a colon; it stays.
    username: String,
    /// Whether every permission is theirs.
    #[serde(rename = "type")]
    #[schema(value_type = UserWord)]
    type_: &'static str,
    /// What enviroments know them by; the name, unless it was set.
    login: String,
    /// Groups that list the user or that the user lists; the first owns what they make.
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

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};
    use super::super::edge::new_name;
    use super::{Made, View, change};

    pub fn list() -> About {
        About::new("List users", Told::list::<View>("users"))
    }

    pub fn get() -> About {
        About::new("Show a user", Told::one::<View>()).may_miss()
    }

    pub fn create() -> About {
        About::new("Create a user", Told::one::<Made>())
            .details("The keys are shown this once.")
            .reads::<View>("NewUser", |fields| {
                new_name(fields, None, &["username", "name"])?;
                change(fields).map(drop)
            })
    }

    pub fn update() -> About {
        About::new("Change a user", Told::success("update"))
            .reads::<View>("UserChange", |fields| change(fields).map(drop))
            .may_miss()
    }

    pub fn delete() -> About {
        About::new("Delete a user", Told::success("delete"))
            .details("Refused for the last system user.")
            .may_miss()
    }
}
