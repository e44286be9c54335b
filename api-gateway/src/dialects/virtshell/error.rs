//! Why a request is refused, and its envelope: the only place where an error becomes a response.

use axum::body::Body;
use axum::http::{Response, StatusCode};
use serde_json::json;

use super::answer::json_response;
use crate::auth::AuthError;
use crate::service::{Field, Holder, Kind, Lacking, ServiceError, Verb};
use crate::store::Stale;

/// Most characters of a message.
const MAX_MESSAGE: usize = 1000;
/// Most characters of a name in a message: more than a file with its folder has, as a rule.
const MAX_NAME: usize = 300;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The client does not take JSON.
    NotAcceptable,
    /// No such route, or no such method on it.
    NotImplemented {
        /// Of the request.
        method: String,
        /// Of the request, as on the wire.
        path: String,
    },
    /// Nobody is let in.
    Auth(AuthError),
    /// The path has percent signs that encode nothing.
    BadPath,
    /// There is nothing to create or update from.
    MissingInput(Verb, &'static str),
    /// The body is not a JSON object.
    NotJson,
    /// The body cannot be used, for a reason outside of it.
    BadBody(&'static str),
    /// `missing <what>`: an identifier that belongs into the path.
    MissingParameter(&'static str),
    /// A member that must be there is not.
    MissingField(&'static str),
    /// A member of another JSON type.
    WrongType {
        /// The member.
        field: &'static str,
        /// Its value, or the beginning of it.
        value: String,
        /// The type it has.
        is: &'static str,
        /// The type it should have.
        should_be: &'static str,
    },
    /// A member that makes no sense.
    Invalid {
        /// The member.
        field: &'static str,
        /// Why.
        reason: String,
    },
    /// A word in the body that means no property.
    UnknownProperty(String),
    /// A word in the path that means no property.
    NoSuchProperty(String),
    /// The caches cannot be trusted.
    Stale(Stale),
    /// The service said no.
    Service(ServiceError),
}

impl Rejection {
    /// A member that makes no sense.
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            reason: reason.into(),
        }
    }

    /// The status of the response.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::NotImplemented { .. } => StatusCode::NOT_IMPLEMENTED,
            Self::Auth(_) => StatusCode::FORBIDDEN,
            Self::BadPath
            | Self::MissingInput(..)
            | Self::NotJson
            | Self::BadBody(_)
            | Self::MissingParameter(_)
            | Self::MissingField(_)
            | Self::WrongType { .. }
            | Self::UnknownProperty(_)
            | Self::Invalid { .. } => StatusCode::BAD_REQUEST,
            Self::NoSuchProperty(_) => StatusCode::NOT_FOUND,
            Self::Stale(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Service(error) => service_status(error),
        }
    }

    /// The brief message in the envelope. What it repeats of the request has an end.
    #[must_use]
    pub fn message(&self) -> String {
        let mut message = self.whole_message();
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
            message.truncate(end);
            message.push_str("...");
        }
        message
    }

    fn whole_message(&self) -> String {
        match self {
            Self::NotAcceptable => String::new(),
            Self::NotImplemented { method, path } => format!("{method} {path} is not implemented"),
            Self::Auth(error) => error.to_string(),
            Self::BadPath => "Field uri: its percent-encoding is not valid UTF-8".to_owned(),
            Self::MissingInput(verb, what) => format!("Missing input for {} {what}", verb.as_str()),
            Self::NotJson => "No JSON object could be decoded.".to_owned(),
            Self::BadBody(reason) => format!("Field body: {reason}"),
            Self::MissingParameter(what) => format!("missing {what}"),
            Self::MissingField(field) => format!("{field} field was not provided"),
            Self::WrongType {
                field,
                value,
                is,
                should_be,
            } => {
                format!("Field {field} - {value} is type {is} but should be {should_be}")
            }
            Self::Invalid { field, reason } => format!("Field {field}: {reason}"),
            Self::UnknownProperty(word) | Self::NoSuchProperty(word) => {
                format!("property {} not found", Shown(word))
            }
            Self::Stale(stale) => format!("internal error: {stale}"),
            Self::Service(error) => service_message(error),
        }
    }

    /// The response: the envelope, or nothing at all for clients that do not take JSON.
    #[must_use]
    pub fn into_response(self) -> Response<Body> {
        if self == Self::NotAcceptable {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = self.status();
            return response;
        }
        let message = self.message();
        // The one documented error that says more.
        let body = if matches!(self, Self::Service(ServiceError::NoHost(_))) {
            json!({"error": message, "create": "error", "reason": message})
        } else {
            json!({"error": message})
        };
        json_response(self.status(), &body)
    }

    /// Whether somebody who runs the gateway should look.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Stale(_) | Self::Service(ServiceError::Internal(_)))
    }
}

impl From<ServiceError> for Rejection {
    fn from(error: ServiceError) -> Self {
        Self::Service(error)
    }
}

impl From<AuthError> for Rejection {
    fn from(error: AuthError) -> Self {
        Self::Auth(error)
    }
}

impl From<Stale> for Rejection {
    fn from(stale: Stale) -> Self {
        Self::Stale(stale)
    }
}

/// The word for a kind in messages.
#[must_use]
pub const fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Host => "host",
        Kind::Section => "section",
        Kind::Environment => "enviroment",
        Kind::Image => "image",
        Kind::Provisioner => "provisioner",
        Kind::Instance => "instance",
        Kind::Task => "task",
        Kind::File => "file",
        Kind::User => "user",
        Kind::Group => "group",
    }
}

/// The member of the body in which a value travels.
const fn member(field: Field) -> &'static str {
    match field {
        Field::Name => "name",
        Field::Environment => "enviroment",
        Field::Provisioner => "provisioner",
        Field::Image => "image",
        Field::HostType => "host_type",
        Field::Driver => "driver",
        Field::Launch => "launch",
        Field::Disk => "hdsize",
        Field::Permissions => "permissions",
        Field::Owner => "owner",
        Field::Group => "group",
        Field::Section => "section",
        Field::Hosts => "hosts",
        Field::Type => "type",
        Field::Status => "status",
        Field::Log => "log",
        Field::Description => "description",
        Field::Executor => "executor",
        Field::Depends => "depends",
        Field::Targets => "instances",
        Field::NewName => "new_name",
        Field::Packages => "packages",
        Field::Mode => "mode",
        Field::Folder => "folder_name",
    }
}

fn service_status(error: &ServiceError) -> StatusCode {
    match error {
        ServiceError::Missing(_)
        | ServiceError::Invalid { .. }
        | ServiceError::AlreadyExists { .. }
        | ServiceError::UnknownReference { .. }
        | ServiceError::InUse { .. }
        | ServiceError::Refused(_) => StatusCode::BAD_REQUEST,
        ServiceError::Forbidden { .. } => StatusCode::FORBIDDEN,
        ServiceError::NotFound { .. } => StatusCode::NOT_FOUND,
        ServiceError::NoHost(_) | ServiceError::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        ServiceError::UnsupportedDriver(_) => StatusCode::NOT_IMPLEMENTED,
    }
}

fn holder(by: &Holder) -> String {
    match by {
        Holder::Instances { count: 1, first } => format!("instance {}", Shown(first)),
        Holder::Instances { count, first } => format!("{count} instances, {} among them", Shown(first)),
        Holder::InstancesOf { environment } => {
            format!("instances of enviroment {} in its section", Shown(environment))
        }
        Holder::Object { kind, name } => format!("{} {}", word(*kind), Shown(name)),
        Holder::System => "the system, whose last system user it is".to_owned(),
    }
}

fn service_message(error: &ServiceError) -> String {
    match error {
        ServiceError::Missing(field) => format!("{} field was not provided", member(*field)),
        ServiceError::Invalid { field, reason } => format!("Field {}: {reason}", member(*field)),
        // As documented: without the name.
        ServiceError::AlreadyExists { kind: Kind::File, .. } => "file already exists".to_owned(),
        ServiceError::AlreadyExists { kind, name } => {
            format!("{} {} already exists", word(*kind), Shown(name))
        }
        ServiceError::UnknownReference { kind, name } | ServiceError::NotFound { kind, name } => {
            format!("{} {} not found", word(*kind), Shown(name))
        }
        ServiceError::InUse { kind, name, by } => {
            format!("{} {} is in use: {}", word(*kind), Shown(name), holder(by))
        }
        ServiceError::Forbidden {
            caller,
            verb,
            kind,
            name,
        } => format!(
            "User {caller} is not allowed to {} {} {}",
            verb.as_str(),
            word(*kind),
            Shown(name)
        )
        .trim_end()
        .to_owned(),
        ServiceError::NoHost(Lacking::HostType) => {
            "The enviroment doesn't have the host_type requested".to_owned()
        }
        ServiceError::NoHost(Lacking::Driver) => {
            "The enviroment doesn't have a host with the driver requested".to_owned()
        }
        ServiceError::UnsupportedDriver(driver) => {
            format!(
                "driver {} is not supported; supported drivers: kvm, qemu, lxc",
                Shown(driver)
            )
        }
        ServiceError::Refused(reason) => in_words_of_the_wire(reason),
        ServiceError::Internal(cause) => format!("internal error: {cause}"),
    }
}

/// A name from a request, in a message: the beginning of it is enough to recognize it.
struct Shown<'a>(&'a str);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.char_indices().nth(MAX_NAME) {
            Some((end, _)) => write!(f, "{}...", &self.0[..end]),
            None => f.write_str(self.0),
        }
    }
}

/// What the schema refused, with the member of the body in place of the field of the object: `Field spec.downloadUrl: ...`.
fn in_words_of_the_wire(reason: &str) -> String {
    let parts = reason
        .strip_prefix("Field ")
        .and_then(|text| text.split_once(": "));
    let Some((path, why)) = parts.filter(|(path, _)| !path.contains(' ')) else {
        return reason.to_owned();
    };
    // Without `spec` and the places in lists.
    let path = path.strip_prefix("spec.").unwrap_or(path);
    let fields: Vec<&str> = path
        .split('.')
        .map(|field| field.split('[').next().unwrap_or_default())
        .collect();
    let member = match fields.as_slice() {
        ["displayName"] => "name".to_owned(),
        ["memoryMiB"] => "memory".to_owned(),
        ["diskMiB"] => "hdsize".to_owned(),
        ["environment"] => "enviroment".to_owned(),
        ["folder"] => "folder_name".to_owned(),
        ["targets", ..] => "object_uuid".to_owned(),
        ["params", field, ..] | [field, ..] => snake_case(field),
        [] => String::new(),
    };
    format!("Field {member}: {why}")
}

/// `localIPv4` becomes `local_ipv4`.
fn snake_case(field: &str) -> String {
    let mut word = String::with_capacity(field.len() + 4);
    let mut after_lower = false;
    for letter in field.chars() {
        if letter.is_ascii_uppercase() && after_lower {
            word.push('_');
        }
        word.push(letter.to_ascii_lowercase());
        after_lower = letter.is_ascii_lowercase();
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::too_many_lines, reason = "one table")]
    fn the_exact_messages_of_the_contract() {
        let host = || "h".to_owned();
        for (rejection, status, message) in [
            (
                Rejection::MissingInput(Verb::Create, word(Kind::Instance)),
                400,
                "Missing input for create instance",
            ),
            (
                Rejection::MissingInput(Verb::Update, word(Kind::Environment)),
                400,
                "Missing input for update enviroment",
            ),
            (Rejection::NotJson, 400, "No JSON object could be decoded."),
            (
                Rejection::MissingField("name"),
                400,
                "name field was not provided",
            ),
            (
                Rejection::MissingParameter("name parameter"),
                400,
                "missing name parameter",
            ),
            (
                Rejection::Auth(AuthError::NotAuthenticated),
                403,
                "User not authenticated",
            ),
            (
                Rejection::Service(ServiceError::Missing(Field::Environment)),
                400,
                "enviroment field was not provided",
            ),
            (
                Rejection::Service(ServiceError::AlreadyExists {
                    kind: Kind::Host,
                    name: host(),
                }),
                400,
                "host h already exists",
            ),
            (
                Rejection::Service(ServiceError::UnknownReference {
                    kind: Kind::Section,
                    name: host(),
                }),
                400,
                "section h not found",
            ),
            (
                Rejection::Service(ServiceError::NotFound {
                    kind: Kind::Host,
                    name: host(),
                }),
                404,
                "host h not found",
            ),
            (
                Rejection::Service(ServiceError::InUse {
                    kind: Kind::Host,
                    name: host(),
                    by: Holder::Instances {
                        count: 2,
                        first: "x".into(),
                    },
                }),
                400,
                "host h is in use: 2 instances, x among them",
            ),
            (
                Rejection::Service(ServiceError::NoHost(Lacking::HostType)),
                500,
                "The enviroment doesn't have the host_type requested",
            ),
            (
                Rejection::Service(ServiceError::NoHost(Lacking::Driver)),
                500,
                "The enviroment doesn't have a host with the driver requested",
            ),
            (
                Rejection::Service(ServiceError::UnsupportedDriver("docker".into())),
                501,
                "driver docker is not supported; supported drivers: kvm, qemu, lxc",
            ),
            (
                Rejection::Service(ServiceError::Forbidden {
                    caller: "ann".into(),
                    verb: Verb::Delete,
                    kind: Kind::Image,
                    name: "i".into(),
                }),
                403,
                "User ann is not allowed to delete image i",
            ),
            (
                Rejection::NotImplemented {
                    method: "GET".into(),
                    path: "/x".into(),
                },
                501,
                "GET /x is not implemented",
            ),
        ] {
            assert_eq!(
                (rejection.status().as_u16(), rejection.message().as_str()),
                (status, message)
            );
        }
        assert!(
            Rejection::Auth(AuthError::TooSkewed)
                .message()
                .starts_with("RequestTimeTooSkewed")
        );
    }

    #[test]
    fn a_message_is_brief_whatever_was_sent() {
        let long = || "n".repeat(1024 * 1024);
        for (rejection, end) in [
            (
                Rejection::Service(ServiceError::NotFound {
                    kind: Kind::Host,
                    name: long(),
                }),
                "... not found",
            ),
            (
                Rejection::Service(ServiceError::AlreadyExists {
                    kind: Kind::Host,
                    name: long(),
                }),
                "... already exists",
            ),
            (Rejection::NoSuchProperty(long()), "... not found"),
            (
                Rejection::invalid("instances", format!("{} is not a uuid", long())),
                "...",
            ),
        ] {
            let message = rejection.message();
            assert!(message.len() <= 1003 && message.ends_with(end), "{message}");
        }
        // A file in a folder of folders is shown whole.
        let name = "a".repeat(255);
        let missing = ServiceError::NotFound {
            kind: Kind::File,
            name: name.clone(),
        };
        assert_eq!(
            Rejection::Service(missing).message(),
            format!("file {name} not found")
        );
    }

    #[test]
    fn the_schema_speaks_in_words_of_the_wire() {
        for (reason, expected) in [
            ("Field spec.downloadUrl: too long", "Field download_url: too long"),
            ("Field spec.nodeName: no", "Field node_name: no"),
            ("Field spec.localIPv4: no", "Field local_ipv4: no"),
            (
                "Field spec.targets[0].name: too long",
                "Field object_uuid: too long",
            ),
            ("Field spec.tags[3]: too long", "Field tags: too long"),
            ("Field spec.params.command: too long", "Field command: too long"),
            ("Field spec.memoryMiB: no", "Field memory: no"),
            ("Field launch: min: no", "Field launch: min: no"),
            ("denied by a policy", "denied by a policy"),
        ] {
            let refused = Rejection::Service(ServiceError::Refused(reason.to_owned()));
            assert_eq!(refused.message(), expected);
        }
    }
}
