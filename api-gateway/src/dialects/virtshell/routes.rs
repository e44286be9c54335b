//! Every route of the dialect, on one page.
//!
//! Paths stand under each base path. A collection may be spelled in several ways ([`COLLECTIONS`]); templates here use
//! the canonical word. Literal segments come before `:captures` of the same place.

use axum::http::Method;
use futures::future::BoxFuture;

use super::about::About;
use super::answer::Answer;
use super::edge::Call;
use super::error::Rejection;
use super::{
    calls, enviroments, files, groups, hosts, images, instances, missing, openapi, packages, power,
    properties, provisioners, sections, tasks, users,
};
use crate::service::{Kind, Verb};

/// Base paths on the main listener; the root listener has the empty one too.
pub const BASES: [&str; 4] = [
    "/virtshell/api/v1",
    "/api/virtshell/v1",
    "/api/virtsh/v1",
    "/api/v1",
];

/// A collection's canonical word and its other spellings.
pub const COLLECTIONS: &[(&str, &[&str])] = &[
    ("hosts", &["host"]),
    ("images", &["image"]),
    ("sections", &["section", "partitions", "partition"]),
    ("enviroments", &["enviroment", "environments", "environment"]),
    ("provisioners", &["provisioner"]),
    ("instances", &["instance"]),
    ("tasks", &["task"]),
    ("properties", &["property"]),
    ("packages", &["package"]),
    ("files", &["file"]),
    ("groups", &["group"]),
    ("users", &["user"]),
];

/// What a route's body must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Not even read: the request is refused whatever it is.
    Unread,
    /// Not looked at.
    None,
    /// An object, or nothing.
    Optional,
    /// An object with something in it, to create from.
    Create(Kind),
    /// An object with something in it, to change by.
    Update(Kind),
    /// A multipart form, or an object with something in it, to create a file from.
    CreateFile,
    /// The same to change one by.
    UpdateFile,
    /// An object with something in it; the verb and the word are those of the message.
    Needed(Verb, &'static str),
}

impl Input {
    /// Whether a form with a boundary is read as one; everywhere else it is no JSON.
    #[must_use]
    pub const fn may_be_a_form(self) -> bool {
        matches!(self, Self::CreateFile | Self::UpdateFile)
    }
}

/// What answers a request.
pub type Handler = fn(Call) -> BoxFuture<'static, Result<Answer, Rejection>>;

/// One route.
pub struct Route {
    /// The method.
    pub method: Method,
    /// Segments; `:word` captures one, `*word` at the end all that is left.
    pub path: &'static str,
    /// What the body must be.
    pub input: Input,
    /// What answers.
    pub handler: Handler,
    /// What the API's document says of it.
    pub about: fn() -> About,
}

macro_rules! routes {
    ($($method:ident $path:literal $input:expr => $module:ident::$name:ident;)*) => {
        &[$(Route {
            method: Method::$method,
            path: $path,
            input: $input,
            handler: |call| Box::pin($module::$name(call)),
            about: $module::about::$name,
        }),*]
    };
}

/// All routes.
pub const ROUTES: &[Route] = routes! {
    GET    "/hosts"           Input::None                    => hosts::list;
    POST   "/hosts"           Input::Create(Kind::Host)      => hosts::create;
    PUT    "/hosts"           Input::Unread                  => missing::name;
    DELETE "/hosts"           Input::Unread                  => missing::name;
    GET    "/hosts/:name"     Input::None                    => hosts::get;
    POST   "/hosts/:name"     Input::Create(Kind::Host)      => hosts::create;
    PUT    "/hosts/:name"     Input::Update(Kind::Host)      => hosts::update;
    DELETE "/hosts/:name"     Input::None                    => hosts::delete;

    GET    "/images"          Input::None                    => images::list;
    POST   "/images"          Input::Create(Kind::Image)     => images::create;
    PUT    "/images"          Input::Create(Kind::Image)     => images::create_or_update;
    DELETE "/images"          Input::Unread                  => missing::name;
    GET    "/images/:name"    Input::None                    => images::get;
    POST   "/images/:name"    Input::Create(Kind::Image)     => images::create;
    PUT    "/images/:name"    Input::Update(Kind::Image)     => images::update;
    DELETE "/images/:name"    Input::None                    => images::delete;

    GET    "/sections"            Input::None                       => sections::list;
    POST   "/sections"            Input::Create(Kind::Section)      => sections::create;
    PUT    "/sections"            Input::Unread                     => missing::name;
    DELETE "/sections"            Input::Unread                     => missing::name;
    GET    "/sections/:name"      Input::None                       => sections::get;
    POST   "/sections/:name"      Input::Create(Kind::Section)      => sections::create;
    PUT    "/sections/:name"      Input::Update(Kind::Section)      => sections::update;
    DELETE "/sections/:name"      Input::None                       => sections::delete;
    GET    "/sections/:name/hosts"           Input::None     => sections::hosts;
    PUT    "/sections/:name/host/:hostname"  Input::None     => sections::add_host;
    POST   "/sections/:name/host/:hostname"  Input::None     => sections::add_host;
    PUT    "/sections/:name/hosts/:hostname" Input::None     => sections::add_host;
    POST   "/sections/:name/hosts/:hostname" Input::None     => sections::add_host;

    POST   "/enviroments/add_host"              Input::Optional => enviroments::add_hosts;
    POST   "/enviroments/add_host/:name"        Input::Optional => enviroments::add_hosts;
    POST   "/enviroments/add_hosts"             Input::Optional => enviroments::add_hosts;
    POST   "/enviroments/add_hosts/:name"       Input::Optional => enviroments::add_hosts;
    POST   "/enviroments/:name/add_host"        Input::Optional => enviroments::add_hosts;
    POST   "/enviroments/:name/add_hosts"       Input::Optional => enviroments::add_hosts;
    POST   "/enviroments/:name/host/:hostname"  Input::None     => enviroments::add_host;
    POST   "/enviroments/:name/hosts/:hostname" Input::None     => enviroments::add_host;
    PUT    "/enviroments/add_host"              Input::Optional => enviroments::add_hosts;
    PUT    "/enviroments/add_host/:name"        Input::Optional => enviroments::add_hosts;
    PUT    "/enviroments/add_hosts"             Input::Optional => enviroments::add_hosts;
    PUT    "/enviroments/add_hosts/:name"       Input::Optional => enviroments::add_hosts;
    PUT    "/enviroments/:name/add_host"        Input::Optional => enviroments::add_hosts;
    PUT    "/enviroments/:name/add_hosts"       Input::Optional => enviroments::add_hosts;
    PUT    "/enviroments/:name/host/:hostname"  Input::None     => enviroments::add_host;
    PUT    "/enviroments/:name/hosts/:hostname" Input::None     => enviroments::add_host;
    GET    "/enviroments/:name/hosts"           Input::None     => enviroments::hosts;
    GET    "/enviroments/:name/section"         Input::None     => enviroments::section;
    GET    "/enviroments/:name/partition"       Input::None     => enviroments::section;
    GET    "/enviroments"         Input::None                       => enviroments::list;
    POST   "/enviroments"         Input::Create(Kind::Environment)  => enviroments::create;
    PUT    "/enviroments"         Input::Unread                     => missing::name;
    DELETE "/enviroments"         Input::Unread                     => missing::name;
    GET    "/enviroments/:name"   Input::None                       => enviroments::get;
    POST   "/enviroments/:name"   Input::Create(Kind::Environment)  => enviroments::create;
    PUT    "/enviroments/:name"   Input::Update(Kind::Environment)  => enviroments::update;
    DELETE "/enviroments/:name"   Input::None                       => enviroments::delete;

    GET    "/provisioners"        Input::None                       => provisioners::list;
    POST   "/provisioners"        Input::Create(Kind::Provisioner)  => provisioners::create;
    PUT    "/provisioners"        Input::Unread                     => missing::name;
    DELETE "/provisioners"        Input::Unread                     => missing::name;
    GET    "/provisioners/:name"  Input::None                       => provisioners::get;
    POST   "/provisioners/:name"  Input::Create(Kind::Provisioner)  => provisioners::create;
    PUT    "/provisioners/:name"  Input::Update(Kind::Provisioner)  => provisioners::update;
    DELETE "/provisioners/:name"  Input::None                       => provisioners::delete;

    POST   "/instances/start_instance"          Input::Optional => power::start;
    PUT    "/instances/start_instance"          Input::Optional => power::start;
    POST   "/instances/start_instance/:name"    Input::Optional => power::start;
    PUT    "/instances/start_instance/:name"    Input::Optional => power::start;
    POST   "/instances/stop_instance"           Input::Optional => power::stop;
    PUT    "/instances/stop_instance"           Input::Optional => power::stop;
    POST   "/instances/stop_instance/:name"     Input::Optional => power::stop;
    PUT    "/instances/stop_instance/:name"     Input::Optional => power::stop;
    POST   "/instances/restart_instance"        Input::Optional => power::restart;
    PUT    "/instances/restart_instance"        Input::Optional => power::restart;
    POST   "/instances/restart_instance/:name"  Input::Optional => power::restart;
    PUT    "/instances/restart_instance/:name"  Input::Optional => power::restart;
    POST   "/instances/clone_instance"          Input::Optional => calls::clone;
    PUT    "/instances/clone_instance"          Input::Optional => calls::clone;
    POST   "/instances/clone_instance/:name"    Input::Optional => calls::clone;
    PUT    "/instances/clone_instance/:name"    Input::Optional => calls::clone;
    POST   "/instances/execute_command"         Input::Optional => calls::execute_command;
    PUT    "/instances/execute_command"         Input::Optional => calls::execute_command;
    POST   "/instances/copy_file"               Input::Optional => calls::copy_files;
    PUT    "/instances/copy_file"               Input::Optional => calls::copy_files;
    POST   "/instances/copy_files"              Input::Optional => calls::copy_files;
    PUT    "/instances/copy_files"              Input::Optional => calls::copy_files;

    GET    "/instances"       Input::None                    => instances::list;
    POST   "/instances"       Input::Create(Kind::Instance)  => instances::create;
    PUT    "/instances"       Input::Unread                  => missing::name;
    DELETE "/instances"       Input::Unread                  => missing::name;
    GET    "/instances/:name" Input::None                    => instances::get;
    POST   "/instances/:name" Input::Create(Kind::Instance)  => instances::create;
    PUT    "/instances/:name" Input::Update(Kind::Instance)  => instances::update;
    DELETE "/instances/:name" Input::None                    => instances::delete;

    GET    "/tasks"                Input::None               => tasks::list;
    POST   "/tasks"                Input::Create(Kind::Task) => tasks::create;
    PUT    "/tasks"                Input::Unread             => missing::uuid;
    DELETE "/tasks"                Input::None               => tasks::delete_all;
    GET    "/tasks/status"         Input::None               => tasks::missing_status;
    GET    "/tasks/status/:status" Input::None               => tasks::by_status;
    GET    "/tasks/:uuid"          Input::None               => tasks::get;
    PUT    "/tasks/:uuid"          Input::Update(Kind::Task) => tasks::update;
    DELETE "/tasks/:uuid"          Input::None               => tasks::delete;

    GET    "/properties" Input::Optional                          => properties::list;
    POST   "/properties" Input::Needed(Verb::Create, "property")  => properties::list;
    GET    "/properties/:property/instance/:instance/enviroment/:enviroment" Input::None => properties::get;

    POST   "/packages"          Input::Needed(Verb::Create, "package") => packages::install;
    PUT    "/packages"          Input::Needed(Verb::Update, "package") => packages::upgrade;
    DELETE "/packages"          Input::Optional                        => packages::remove;
    POST   "/install_packages"  Input::Needed(Verb::Create, "package") => packages::install;
    PUT    "/install_packages"  Input::Needed(Verb::Update, "package") => packages::install;
    POST   "/upgrade_packages"  Input::Needed(Verb::Create, "package") => packages::upgrade;
    PUT    "/upgrade_packages"  Input::Needed(Verb::Update, "package") => packages::upgrade;
    POST   "/remove_packages"   Input::Needed(Verb::Create, "package") => packages::remove;
    PUT    "/remove_packages"   Input::Needed(Verb::Update, "package") => packages::remove;
    DELETE "/remove_packages"   Input::Optional                        => packages::remove;

    GET    "/file/*ref"         Input::None       => files::content;
    GET    "/static/files"      Input::None       => files::list;
    GET    "/static/files/*ref" Input::None       => files::raw;
    GET    "/static/*ref"       Input::None       => files::raw;
    GET    "/files"             Input::None       => files::list;
    POST   "/files"             Input::CreateFile => files::create;
    PUT    "/files"             Input::Unread     => missing::name;
    DELETE "/files"             Input::Unread     => missing::name;
    GET    "/files/*ref"        Input::None       => files::get;
    POST   "/files/*ref"        Input::CreateFile => files::create;
    PUT    "/files/*ref"        Input::UpdateFile => files::update;
    DELETE "/files/*ref"        Input::None       => files::delete;

    GET    "/groups"              Input::None                       => groups::list;
    POST   "/groups"              Input::Create(Kind::Group)        => groups::create;
    PUT    "/groups"              Input::Unread                     => missing::name;
    DELETE "/groups"              Input::Unread                     => missing::name;
    GET    "/groups/:name"        Input::None                       => groups::get;
    POST   "/groups/:name"        Input::Create(Kind::Group)        => groups::create;
    PUT    "/groups/:name"        Input::Update(Kind::Group)        => groups::update;
    DELETE "/groups/:name"        Input::None                       => groups::delete;

    GET    "/users"           Input::None                    => users::list;
    POST   "/users"           Input::Create(Kind::User)      => users::create;
    PUT    "/users"           Input::Unread                  => missing::name;
    DELETE "/users"           Input::Unread                  => missing::name;
    GET    "/users/:name"     Input::None                    => users::get;
    POST   "/users/:name"     Input::Create(Kind::User)      => users::create;
    PUT    "/users/:name"     Input::Update(Kind::User)      => users::update;
    DELETE "/users/:name"     Input::None                    => users::delete;
};

/// A path below the bases that anybody may read with GET, signed or not, and what answers.
pub type Public = (&'static str, fn() -> Answer);

/// All of them.
pub const PUBLIC: &[Public] = &[("/openapi.json", openapi::answer)];

/// The public path of a request, and what answers.
#[must_use]
pub fn find_public(method: &Method, segments: &[String]) -> Option<&'static Public> {
    let [segment] = segments else {
        return None;
    };
    let is_it = |path: &str| path.strip_prefix('/') == Some(segment.as_str());
    PUBLIC
        .iter()
        .find(|(path, _)| *method == Method::GET && is_it(path))
}

/// A route and what its captures caught.
pub struct Match {
    /// The route.
    pub route: &'static Route,
    /// What `:captures` caught, in order, decoded.
    pub captures: Vec<String>,
    /// The collection as the client spelled it.
    pub spelling: String,
}

/// The canonical word of a collection, from any of its spellings.
#[must_use]
pub fn canonical(word: &str) -> Option<&'static str> {
    COLLECTIONS
        .iter()
        .find(|(canonical, aliases)| *canonical == word || aliases.contains(&word))
        .map(|(c, _)| *c)
}

/// The route of a request; `segments` are decoded and without the base path. The last may have come as the `id` of the query:
/// that is a name, whatever it says.
#[must_use]
pub fn find(method: &Method, segments: &[String], id_in_query: bool) -> Option<Match> {
    let spelling = segments.first()?;
    let collection = canonical(spelling);
    ROUTES
        .iter()
        .filter(|route| route.method == *method)
        .find_map(|route| {
            let captures = captures(route.path, (spelling, collection), &segments[1..], id_in_query)?;
            Some(Match {
                route,
                captures,
                spelling: spelling.clone(),
            })
        })
}

/// `first` is the first segment as it was sent, and the collection that it means: routes may say either.
fn captures(
    path: &str,
    first: (&str, Option<&str>),
    rest: &[String],
    id_in_query: bool,
) -> Option<Vec<String>> {
    let mut parts = path.split('/').skip(1);
    let collection = parts.next()?;
    if collection != first.0 && Some(collection) != first.1 {
        return None;
    }
    let kind = match collection {
        "instances" => Some(Kind::Instance),
        "enviroments" => Some(Kind::Environment),
        _ => None,
    };
    let mut captures = Vec::new();
    let mut rest = rest.iter();
    for part in parts {
        let segment = rest.next()?;
        if part.starts_with('*') {
            let all: Vec<&str> = std::iter::once(segment).chain(rest).map(String::as_str).collect();
            let all = all.join("/");
            return (!all.is_empty()).then(|| {
                captures.push(all);
                captures
            });
        }
        let is_id = id_in_query && rest.len() == 0;
        let is_word = || kind.is_some_and(|kind| crate::service::names::is_reserved(kind, segment));
        if !part.starts_with(':') {
            if part != segment || is_id {
                return None;
            }
        } else if segment.is_empty() || (!is_id && is_word()) {
            // Words of calls are no names: their routes are written out.
            return None;
        } else {
            captures.push(segment.clone());
        }
    }
    rest.next().is_none().then_some(captures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_find_their_route() {
        for (method, path, expected) in [
            (Method::GET, "hosts", Some(("/hosts", vec![]))),
            (Method::GET, "host", Some(("/hosts", vec![]))),
            (Method::GET, "host/a", Some(("/hosts/:name", vec!["a"]))),
            (Method::GET, "hosts/a/b", None),
            (Method::GET, "hosts/", None),
            (Method::GET, "Hosts", None),
            (Method::PATCH, "hosts/a", None),
            (Method::HEAD, "hosts", None),
            (Method::OPTIONS, "hosts", None),
            (Method::GET, "volumes", None),
            (Method::GET, "instances/start_instance", None),
            (
                Method::POST,
                "instances/start_instance",
                Some(("/instances/start_instance", vec![])),
            ),
            (
                Method::PUT,
                "instance/stop_instance/a",
                Some(("/instances/stop_instance/:name", vec!["a"])),
            ),
            (Method::DELETE, "instances/clone_instance", None),
            (Method::POST, "instances/execute_command/a", None),
            (Method::GET, "packages", None),
            (Method::DELETE, "package", Some(("/packages", vec![]))),
            (
                Method::PUT,
                "install_packages",
                Some(("/install_packages", vec![])),
            ),
            (Method::DELETE, "install_packages", None),
            (Method::POST, "instances/a", Some(("/instances/:name", vec!["a"]))),
            (Method::GET, "tasks/status", Some(("/tasks/status", vec![]))),
            (
                Method::GET,
                "tasks/status/pending",
                Some(("/tasks/status/:status", vec!["pending"])),
            ),
            (
                Method::GET,
                "tasks/sucess",
                Some(("/tasks/:uuid", vec!["sucess"])),
            ),
            (Method::PUT, "image", Some(("/images", vec![]))),
            (Method::GET, "files/a/b", Some(("/files/*ref", vec!["a/b"]))),
            (
                Method::GET,
                "files/http://h/files/b",
                Some(("/files/*ref", vec!["http://h/files/b"])),
            ),
            (Method::GET, "files/", None),
            (Method::GET, "file", Some(("/files", vec![]))),
            (Method::GET, "file/a", Some(("/file/*ref", vec!["a"]))),
            (Method::PUT, "file/a", Some(("/files/*ref", vec!["a"]))),
            (Method::GET, "static/files", Some(("/static/files", vec![]))),
            (
                Method::GET,
                "static/files/a/b",
                Some(("/static/files/*ref", vec!["a/b"])),
            ),
            (Method::GET, "static/a", Some(("/static/*ref", vec!["a"]))),
            (Method::GET, "static", None),
            (Method::PUT, "static/a", None),
            (Method::DELETE, "fles/a", None),
        ] {
            let segments: Vec<String> = path.split('/').map(str::to_owned).collect();
            let found = find(&method, &segments, false);
            let found = found
                .as_ref()
                .map(|m| (m.route.path, m.captures.iter().map(String::as_str).collect()));
            assert_eq!(found, expected, "{method} {path}");
        }
    }

    #[test]
    fn an_id_in_the_query_is_no_word_of_a_route() {
        for (method, path, expected) in [
            (Method::GET, "hosts/a", "/hosts/:name"),
            (Method::POST, "instances/start_instance", "/instances/:name"),
            (Method::GET, "instances/start_instance", "/instances/:name"),
            (Method::PUT, "enviroments/add_host", "/enviroments/:name"),
            (Method::GET, "tasks/status", "/tasks/:uuid"),
            (Method::GET, "static/files/a", "/static/files/*ref"),
            (Method::GET, "files/a", "/files/*ref"),
        ] {
            let segments: Vec<String> = path.split('/').map(str::to_owned).collect();
            let found = find(&method, &segments, true);
            assert_eq!(found.map(|m| m.route.path), Some(expected), "{method} {path}");
        }
    }
}
