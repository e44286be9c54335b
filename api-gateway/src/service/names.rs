//! Which names objects may have. Pure.

use virtshell_crds::names::is_uuid;

use super::{Field, Kind, ServiceError};

/// Longest name.
const MAX_NAME: usize = 128;
/// Longest name of a file.
const MAX_FILE_NAME: usize = 255;
/// Longest folder of a file.
const MAX_FOLDER: usize = 1024;

/// Words that follow `instances/` and `enviroments/` in paths of calls.
const RESERVED_INSTANCES: [&str; 7] = [
    "start_instance",
    "stop_instance",
    "restart_instance",
    "clone_instance",
    "execute_command",
    "copy_file",
    "copy_files",
];
const RESERVED_ENVIRONMENTS: [&str; 2] = ["add_host", "add_hosts"];

/// Whether a new object of this kind may have this name; the error is the reason for a refusal.
pub fn check(kind: Kind, name: &str) -> Result<(), String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || "._:@+-".contains(c);
    if name.len() > MAX_NAME {
        return Err(format!("must have at most {MAX_NAME} characters"));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(inner) {
        return Err(
            "must begin with a letter or digit and hold only letters, digits and . _ : @ + -".to_owned(),
        );
    }
    if is_uuid(name) {
        return Err("must not look like a uuid".to_owned());
    }
    if kind == Kind::User && name.contains(':') {
        return Err("must not contain a colon".to_owned());
    }
    if is_reserved(kind, name) {
        return Err(format!("{name} is a reserved word"));
    }
    Ok(())
}

/// Whether a new file may have this folder and name.
pub fn check_file(folder: &str, name: &str) -> Result<(), ServiceError> {
    check_part(name).map_err(|reason| ServiceError::invalid(Field::Name, reason))?;
    if is_uuid(name) {
        return Err(ServiceError::invalid(Field::Name, "must not look like a uuid"));
    }
    if folder.len() > MAX_FOLDER {
        let reason = format!("must have at most {MAX_FOLDER} characters");
        return Err(ServiceError::invalid(Field::Folder, reason));
    }
    let mut parts = folder.split('/').filter(|_| !folder.is_empty());
    parts
        .try_for_each(check_part)
        .map_err(|reason| ServiceError::invalid(Field::Folder, reason))
}

/// A name of a file, or one of the names that make up its folder.
fn check_part(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:@+ -".contains(c);
    if !(1..=MAX_FILE_NAME).contains(&name.len()) {
        return Err(format!("must have 1 to {MAX_FILE_NAME} characters"));
    }
    if !name.chars().all(allowed) {
        return Err("must hold only letters, digits, spaces and . _ : @ + -".to_owned());
    }
    if matches!(name, "." | "..") {
        return Err("must not be . or ..".to_owned());
    }
    Ok(())
}

/// Whether this is a word of the API's calls rather than a name.
#[must_use]
pub fn is_reserved(kind: Kind, name: &str) -> bool {
    match kind {
        Kind::Instance => RESERVED_INSTANCES.contains(&name),
        Kind::Environment => RESERVED_ENVIRONMENTS.contains(&name),
        Kind::Host
        | Kind::Section
        | Kind::Image
        | Kind::Provisioner
        | Kind::Task
        | Kind::File
        | Kind::User
        | Kind::Group => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        let long = "n".repeat(256);
        for (folder, name, field) in [
            ("", "seed_file_ubuntu-14_04.txt", None),
            ("a/b c", ".hidden", None),
            ("", "a b:c@d+e", None),
            ("", "", Some(Field::Name)),
            ("", "..", Some(Field::Name)),
            ("", "a/b", Some(Field::Name)),
            ("", "é", Some(Field::Name)),
            ("", "a\nb", Some(Field::Name)),
            ("", &long, Some(Field::Name)),
            ("", "72c05559-0590-4da6-be56-28ab36cb669c", Some(Field::Name)),
            ("a//b", "n", Some(Field::Folder)),
            ("../etc", "n", Some(Field::Folder)),
            ("a/./b", "n", Some(Field::Folder)),
            ("/a", "n", Some(Field::Folder)),
            (&long.repeat(5), "n", Some(Field::Folder)),
        ] {
            let seen = match check_file(folder, name) {
                Err(ServiceError::Invalid { field, .. }) => Some(field),
                _ => None,
            };
            assert_eq!(seen, field, "{folder} {name}");
        }
    }

    #[test]
    fn names_of_the_contract() {
        let long = "n".repeat(129);
        for (kind, name, valid) in [
            (Kind::Host, "host-01-pdn", true),
            (Kind::Image, "centos:centos6", true),
            (Kind::Image, "ubuntu_server_14.04.2_amd64", true),
            (Kind::Image, "a@b+c", true),
            (Kind::Host, &long[..128], true),
            (Kind::Host, &long, false),
            (Kind::Host, "", false),
            (Kind::Host, "-a", false),
            (Kind::Host, "_a", false),
            (Kind::Host, "a b", false),
            (Kind::Host, "a/b", false),
            (Kind::Host, "é", false),
            (Kind::Host, "72c05559-0590-4da6-be56-28ab36cb669c", false),
            (Kind::Host, "72C05559-0590-4DA6-BE56-28AB36CB669C", false),
            (Kind::User, "a:b", false),
            (Kind::User, "ab", true),
            (Kind::Instance, "start_instance", false),
            (Kind::Instance, "copy_files", false),
            (Kind::Instance, "add_host", true),
            (Kind::Environment, "add_hosts", false),
            (Kind::Environment, "copy_files", true),
        ] {
            assert_eq!(check(kind, name).is_ok(), valid, "{kind:?} {name}");
        }
    }

    #[test]
    fn uuids() {
        for (value, is) in [
            ("72c05559-0590-4da6-be56-28ab36cb669c", true),
            ("72C05559-0590-4DA6-BE56-28AB36CB669C", true),
            ("72c05559-0590-4da6-be56-28ab36cb669", false),
            ("72c0555-90590-4da6-be56-28ab36cb669c", false),
            ("72c05559-0590-4da6-be56-28ab36cb669g", false),
            ("72c055590590-4da6-be56-28ab36cb669c", false),
            ("", false),
        ] {
            assert_eq!(is_uuid(value), is, "{value}");
        }
    }
}
