//! `/enviroments`: where instances are created.

use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use virtshell_crds::{Environment, Host};

use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::values::Fields;
use super::view::{Common, common};
use crate::service::environments::EnvironmentChange;
use crate::service::{Service, Verb};
use crate::store::Cached;

pub async fn list(call: Call) -> Result<Answer, Rejection> {
    let environments = call.service.visible::<Environment>(&call.caller);
    let views: Vec<View> = environments
        .iter()
        .map(|environment| view(&call.service, environment))
        .collect();
    Ok(Answer::list("enviroments", &views))
}

pub async fn get(call: Call) -> Result<Answer, Rejection> {
    let environment = call
        .service
        .permitted::<Environment>(&call.caller, Verb::Read, call.id())?;
    Ok(Answer::ok(&view(&call.service, &environment)))
}

/// Names of eligible hosts.
pub async fn hosts(call: Call) -> Result<Answer, Rejection> {
    let environment = call
        .service
        .permitted::<Environment>(&call.caller, Verb::Read, call.id())?;
    let hosts = call.service.eligible_hosts(&environment);
    let names: Vec<&str> = hosts.iter().map(|host| host.wire_name()).collect();
    Ok(Answer::ok(&json!({"hosts": names})))
}

pub async fn section(call: Call) -> Result<Answer, Rejection> {
    let environment = call
        .service
        .permitted::<Environment>(&call.caller, Verb::Read, call.id())?;
    let section = view(&call.service, &environment).section;
    Ok(Answer::ok(&SectionOf {
        partition: section.clone(),
        section,
    }))
}

pub async fn create(call: Call) -> Result<Answer, Rejection> {
    call.service.permit_create::<Environment>(&call.caller)?;
    let name = call.new_name(&["name"])?;
    call.service
        .create_environment(&call.caller, &name, change(call.fields())?)
        .await?;
    Ok(Answer::success("create"))
}

pub async fn update(call: Call) -> Result<Answer, Rejection> {
    let environment = call
        .service
        .permitted::<Environment>(&call.caller, Verb::Update, call.id())?;
    call.service
        .update_environment(&call.caller, &environment, change(call.fields())?)
        .await?;
    Ok(Answer::success("update"))
}

pub async fn delete(call: Call) -> Result<Answer, Rejection> {
    let environment = call
        .service
        .permitted::<Environment>(&call.caller, Verb::Delete, call.id())?;
    call.service.delete_environment(&environment).await?;
    Ok(Answer::success("delete"))
}

/// `add_host` with the enviroment in the path or in the body, and the hosts in the body.
pub async fn add_hosts(call: Call) -> Result<Answer, Rejection> {
    let in_path = match call.captures.first() {
        Some(name) => Some(
            call.service
                .permitted::<Environment>(&call.caller, Verb::Update, name)?,
        ),
        None => None,
    };
    let in_body = named(call.fields())?;
    let environment = match (in_path, in_body) {
        (Some(path), Some(body))
            if path.wire_name() != body && path.metadata.uid.as_deref() != Some(&body) =>
        {
            return Err(Rejection::invalid(
                "enviroment",
                "differs from the name in the path",
            ));
        }
        (Some(path), _) => path,
        (None, Some(body)) => {
            // Who may not change any may not learn which there are.
            call.service.permit_create::<Environment>(&call.caller)?;
            call.service.reference::<Environment>(&body)?
        }
        (None, None) => return Err(Rejection::MissingField("enviroment")),
    };
    let hosts = added(call.fields())?;
    call.service.add_hosts(&call.caller, &environment, &hosts).await?;
    Ok(answer_added())
}

/// One host, named in the path.
pub async fn add_host(call: Call) -> Result<Answer, Rejection> {
    let host = call.service.find::<Host>(&call.captures[1]);
    let environment = call.service.find::<Environment>(call.id())?;
    let host = host?.wire_name().to_owned();
    call.service
        .permitted::<Environment>(&call.caller, Verb::Update, call.id())?;
    call.service
        .add_hosts(&call.caller, &environment, &[host])
        .await?;
    Ok(answer_added())
}

/// The enviroment that a body names.
fn named(fields: Fields<'_>) -> Result<Option<String>, Rejection> {
    fields.reference(&["enviroment", "environment", "environments", "name"])
}

/// The hosts that a body adds.
fn added(fields: Fields<'_>) -> Result<Vec<String>, Rejection> {
    let hosts = fields.references(&["hosts", "host"])?;
    hosts.ok_or(Rejection::MissingField("hosts"))
}

fn answer_added() -> Answer {
    Answer::ok(&json!({"add_host": "success", "add_hosts": "success"}))
}

fn change(fields: Fields<'_>) -> Result<EnvironmentChange, Rejection> {
    Ok(EnvironmentChange {
        name: fields.name(&["name"])?,
        description: fields.string(&["description"])?,
        users: fields.references(&["users"])?,
        section: fields.reference(&["section", "partition"])?,
        hosts: fields.references(&["hosts"])?,
    })
}

/// The section of an enviroment, by both of its words.
#[derive(Serialize, ToSchema)]
#[schema(as = SectionOf)]
struct SectionOf {
    /// Its name.
    #[schema(required = true)]
    section: Option<String>,
    /// Its name.
    #[schema(required = true)]
    partition: Option<String>,
}

/// A user of an enviroment.
#[derive(Serialize, ToSchema)]
#[schema(as = Login)]
struct Login {
    /// Name, login or uuid.
    login: String,
}

/// Where instances are created.
#[derive(Serialize, ToSchema)]
#[schema(as = Enviroment)]
struct View {
    /// Its name; it stays.
    name: String,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    /// Who may create instances in it: name, login or uuid of users, who need not exist yet; everybody when it is empty.
    users: Vec<Login>,
    /// The same as `section`.
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<String>,
    /// The section whose hosts it uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    section: Option<String>,
    /// Hosts that were added to it, beside those of the section.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hosts: Vec<String>,
    #[serde(flatten)]
    common: Common,
}

fn view(service: &Service, environment: &Environment) -> View {
    let section = service
        .section_of(environment)
        .map(|section| section.wire_name().to_owned());
    let section = section.or_else(|| environment.spec.section.clone());
    View {
        name: environment.wire_name().to_owned(),
        description: environment.spec.description.clone(),
        users: environment
            .spec
            .users
            .iter()
            .map(|login| Login { login: login.clone() })
            .collect(),
        partition: section.clone(),
        section,
        hosts: environment.spec.hosts.clone(),
        common: common(environment),
    }
}

/// What the API's document says of these routes.
pub mod about {
    use super::super::about::{About, Told};
    use super::super::edge::new_name;
    use super::super::error::Rejection;
    use super::{SectionOf, View, added, change, named};

    pub fn list() -> About {
        About::new("List enviroments", Told::list::<View>("enviroments"))
    }

    pub fn get() -> About {
        About::new("Show an enviroment", Told::one::<View>()).may_miss()
    }

    pub fn create() -> About {
        About::new("Create an enviroment", Told::success("create")).reads::<View>("NewEnviroment", |fields| {
            new_name(fields, None, &["name"])?;
            change(fields).map(drop)
        })
    }

    pub fn update() -> About {
        About::new("Change an enviroment", Told::success("update"))
            .reads::<View>("EnviromentChange", |fields| change(fields).map(drop))
            .may_miss()
    }

    pub fn delete() -> About {
        About::new("Delete an enviroment", Told::success("delete"))
            .details("Refused while it has instances.")
            .may_miss()
    }

    pub fn hosts() -> About {
        About::new("List the hosts that an enviroment may use", Told::names("hosts")).may_miss()
    }

    pub fn section() -> About {
        About::new("Show the section of an enviroment", Told::one::<SectionOf>()).may_miss()
    }

    pub fn add_hosts() -> About {
        About::new(
            "Let an enviroment use hosts",
            Told::successes(&["add_host", "add_hosts"]),
        )
        .details("A host without section joins the enviroment's; one of another section is refused.")
        .reads::<View>("HostsToAdd", |fields| {
            named(fields)?.ok_or(Rejection::MissingField("enviroment"))?;
            added(fields).map(drop)
        })
        .may_miss()
    }

    pub fn add_host() -> About {
        About::new(
            "Let an enviroment use a host",
            Told::successes(&["add_host", "add_hosts"]),
        )
        .may_miss()
    }
}
