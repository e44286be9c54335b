//! `/sections`, also spelled `/partitions`: groups of hosts.

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use virtshell_crds::{Host, Section};

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::values::Fields;
use super::view::{Common, common};
use crate::service::sections::SectionChange;
use crate::service::{Service, Verb};
use crate::store::Cached;

pub async fn list(call: Call) -> Result<Answer, Rejection> {
    let sections = call.service.visible::<Section>(&call.caller);
    let views: Vec<View> = sections
        .iter()
        .map(|section| view(&call.service, section))
        .collect();
    // The list is named as the client named it.
    Ok(Answer::list(
        if call.spelling.starts_with("partition") {
            "partitions"
        } else {
            "sections"
        },
        &views,
    ))
}

pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let section = call
        .service
        .permitted::<Section>(&call.caller, Verb::Read, call.id())?;
    Ok(Answer::ok(&view(&call.service, &section)))
}

pub async fn hosts(call: Call) -> Result<Answer, Rejection> {
    let section = call
        .service
        .permitted::<Section>(&call.caller, Verb::Read, call.id())?;
    Ok(Answer::ok(&json!({"hosts": view(&call.service, &section).hosts})))
}

pub async fn create(call: Call) -> Result<Answer, Rejection> {
    call.service.permit_create::<Section>(&call.caller)?;
    let name = call.new_name(&["name"])?;
    call.service
        .create_section(&call.caller, &name, change(call.fields())?)
        .await?;
    Ok(Answer::success("create"))
}

pub async fn update(call: Call) -> Result<Answer, Rejection> {
    let section = call
        .service
        .permitted::<Section>(&call.caller, Verb::Update, call.id())?;
    call.service
        .update_section(&call.caller, &section, change(call.fields())?)
        .await?;
    Ok(Answer::success("update"))
}

pub async fn add_host(call: Call) -> Result<Answer, Rejection> {
    let section = call.service.find::<Section>(call.id())?;
    let host = call.service.find::<Host>(&call.captures[1])?;
    call.service
        .permitted::<Section>(&call.caller, Verb::Update, call.id())?;
    call.service
        .add_host_to_section(&call.caller, &section, &host)
        .await?;
    Ok(Answer::success("add_host"))
}

pub async fn delete(call: Call) -> Result<Answer, Rejection> {
    let section = call
        .service
        .permitted::<Section>(&call.caller, Verb::Delete, call.id())?;
    call.service.delete_section(&call.caller, &section).await?;
    Ok(Answer::success("delete"))
}

fn change(fields: Fields<'_>) -> Result<SectionChange, Rejection> {
    Ok(SectionChange {
        name: fields.name(&["name"])?,
        description: fields.string(&["description"])?,
        hosts: fields.references(&["hosts"])?,
    })
}

/// A group of hosts, apart from all others.
#[derive(Serialize, ToSchema)]
#[schema(as = Section)]
struct View {
    /// Its name; it stays.
    name: String,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// Names of its hosts; each is in one section at most.
    hosts: Vec<String>,
    #[serde(flatten)]
    common: Common,
}

fn view(service: &Service, section: &Section) -> View {
    View {
        name: section.wire_name().to_owned(),
        description: section.spec.description.clone(),
        hosts: service
            .hosts_of(section)
            .iter()
            .map(|host| host.wire_name().to_owned())
            .collect(),
        common: common(section),
    }
}

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};
    use super::super::edge::new_name;
    use super::{View, change};

    pub fn list() -> About {
        About::new(
            "List sections",
            Told::list::<View>("sections").or(Told::list::<View>("partitions")),
        )
        .details("Below `/partitions` the list is called `partitions`.")
    }

    pub fn get() -> About {
        About::new("Show a section", Told::one::<View>()).may_miss()
    }

    pub fn create() -> About {
        About::new("Create a section", Told::success("create")).reads::<View>("NewSection", |fields| {
            new_name(fields, None, &["name"])?;
            change(fields).map(drop)
        })
    }

    pub fn update() -> About {
        About::new("Change a section", Told::success("update"))
            .reads::<View>("SectionChange", |fields| change(fields).map(drop))
            .may_miss()
    }

    pub fn delete() -> About {
        About::new("Delete a section", Told::success("delete"))
            .details("Its hosts are then in no section. Refused while an enviroment uses it.")
            .may_miss()
    }

    pub fn hosts() -> About {
        About::new("List the hosts of a section", Told::names("hosts")).may_miss()
    }

    pub fn add_host() -> About {
        About::new("Move a host into a section", Told::success("add_host")).may_miss()
    }
}
