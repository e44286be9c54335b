//! Object names from wire names, and domain names from object names.
//!
//! A wire name (what REST clients say) allows more than `metadata.name` does. The derivation is deterministic, so two
//! creates of one wire name through two gateways meet at one object and the API server refuses the second.

use sha2::{Digest, Sha256};

/// Longest `metadata.name`: what fits a label value and a libvirt LXC host name.
pub const MAX_OBJECT_NAME: usize = 63;
/// Longest slug in front of `-x` and ten hex digits.
const MAX_SLUG: usize = 50;
/// Longest part of `metadata.name` in a domain name: 63 less `-` and eight hex digits.
const MAX_DOMAIN_STEM: usize = 54;

/// `metadata.name` for a wire name: the name itself where it already is one, else a slug with a hash.
///
/// ```
/// use virtshell_crds::names::object_name;
/// assert_eq!(object_name("host-01-pdn"), "host-01-pdn");
/// assert_eq!(object_name("transactional_log"), "transactional-log-x1418a0faa8");
/// ```
#[must_use]
pub fn object_name(wire: &str) -> String {
    if is_object_name(wire) && !ends_like_a_hashed_name(wire) {
        return wire.to_owned();
    }
    hashed(wire, wire)
}

/// The `n`-th name (n = 1, 2, ...) to try when the derived object exists under another wire name.
///
/// That happens only to objects renamed with kubectl. The first candidate is [`object_name`]; later ones hash the wire
/// name with `#2`, `#3`, ... and so are deterministic too.
#[must_use]
pub fn object_name_candidate(wire: &str, n: u32) -> String {
    if n <= 1 {
        object_name(wire)
    } else {
        hashed(wire, &format!("{wire}#{n}"))
    }
}

/// The first 16 hex digits of SHA-256 of a wire name: the value of the label `virtshell.io/name-hash`.
#[must_use]
pub fn name_hash(wire: &str) -> String {
    sha256_hex(wire)[..16].to_owned()
}

/// The wire name of a file: `folder/name`, or `name` without a folder.
#[must_use]
pub fn file_wire_name(folder: &str, name: &str) -> String {
    if folder.is_empty() {
        name.to_owned()
    } else {
        format!("{folder}/{name}")
    }
}

/// The libvirt name of an Instance's domain.
///
/// The uid keeps the leftover of an older object with the same name out of the way; 63 characters is what LXC takes as
/// a host name and socket name.
#[must_use]
pub fn domain_name(object_name: &str, uid: &str) -> String {
    let stem = cut(object_name, MAX_DOMAIN_STEM).trim_end_matches('-');
    let short: String = uid.chars().filter(char::is_ascii_hexdigit).take(8).collect();
    format!("{stem}-{short}")
}

/// `metadata.name` of the TaskAssignment for one task, host and attempt: the same every time it is asked for.
#[must_use]
pub fn assignment_name(task: &str, task_uid: &str, host: &str, attempt: i32) -> String {
    // 63 less a dash and 12 hex digits; the hash alone tells assignments apart.
    let stem = cut(task, 50).trim_end_matches(['-', '.']);
    let hash = sha256_hex(&format!("{task_uid}/{host}/{attempt}"));
    format!("{stem}-{}", &hash[..12])
}

/// Whether a value may stand in a label.
#[must_use]
pub fn is_label_value(value: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    value.len() <= 63
        && value.chars().all(inner)
        && value.starts_with(|c: char| c.is_ascii_alphanumeric())
        && value.ends_with(|c: char| c.is_ascii_alphanumeric())
}

/// Whether a value is looked up as a uuid rather than a name: `8-4-4-4-12` hexadecimal digits.
#[must_use]
pub fn is_uuid(value: &str) -> bool {
    let groups: Vec<&str> = value.split('-').collect();
    groups.len() == 5
        && groups
            .iter()
            .zip([8, 4, 4, 4, 12])
            .all(|(group, length)| group.len() == length && group.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`, at most 63 characters.
fn is_object_name(name: &str) -> bool {
    let edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= MAX_OBJECT_NAME
        && name.starts_with(edge)
        && name.ends_with(edge)
        && name.chars().all(|c| edge(c) || c == '-')
}

/// `-x[0-9a-f]{10}$`: reserved for derived names, so that the two classes never meet.
fn ends_like_a_hashed_name(name: &str) -> bool {
    name.rsplit_once("-x").is_some_and(|(_, hash)| {
        hash.len() == 10
            && hash
                .chars()
                .all(|c| c.is_ascii_digit() || ('a'..='f').contains(&c))
    })
}

fn hashed(wire: &str, hash_input: &str) -> String {
    format!("{}-x{}", slug(wire), &sha256_hex(hash_input)[..10])
}

fn slug(wire: &str) -> String {
    let mut slug = String::with_capacity(wire.len());
    for c in wire.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            slug.push(c);
        } else if !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = cut(slug.trim_matches('-'), MAX_SLUG).trim_end_matches('-');
    if slug.is_empty() {
        "n".to_owned()
    } else {
        slug.to_owned()
    }
}

/// The first `max` bytes of an ASCII string.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.len().min(max)]
}

fn sha256_hex(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_names_and_hashes_of_the_contract() {
        for (wire, object, hash) in [
            ("host-01-pdn", "host-01-pdn", "2b45e28e50f9aded"),
            (
                "transactional_log",
                "transactional-log-x1418a0faa8",
                "1418a0faa846b5dd",
            ),
            ("centos:centos6", "centos-centos6-x94db5e524d", "94db5e524d2b73d3"),
            (
                "ubuntu_server_14.04.2_amd64",
                "ubuntu-server-14-04-2-amd64-x2949056471",
                "2949056471bc3a4e",
            ),
            ("web_server", "web-server-x198aae979e", "198aae979e99864e"),
            ("web.server", "web-server-x65f22fa678", "65f22fa678e8f0c0"),
            ("web-server", "web-server", "e4d165cf075d65fb"),
            ("WebServer_1", "webserver-1-xd84a93d632", "d84a93d6324580bb"),
            ("Webserver_1", "webserver-1-x5bc7cc66c7", "5bc7cc66c74f3665"),
            (
                "foo-x0123456789",
                "foo-x0123456789-x7475b5970d",
                "7475b5970da5c832",
            ),
            (
                "ubuntu_seeds/seed_file_ubuntu-14_04.txt",
                "ubuntu-seeds-seed-file-ubuntu-14-04-txt-xf4d381c406",
                "f4d381c40643aca8",
            ),
        ] {
            assert_eq!(
                (object_name(wire).as_str(), name_hash(wire).as_str()),
                (object, hash),
                "{wire}"
            );
        }
    }

    #[test]
    fn every_derived_name_is_an_object_name() {
        for wire in [
            "",
            "_",
            "ÄÖ",
            "a",
            "A",
            "-a-",
            &"long_".repeat(60),
            &"x".repeat(64),
            "@@@@",
        ] {
            for n in 1..4 {
                let name = object_name_candidate(wire, n);
                assert!(is_object_name(&name), "{wire} -> {name}");
            }
        }
        assert_ne!(object_name_candidate("a_b", 1), object_name_candidate("a_b", 2));
        assert_ne!(object_name_candidate("a_b", 2), object_name_candidate("a_b", 3));
    }

    #[test]
    fn an_assignment_is_named_by_task_host_and_attempt() {
        let name = |task: &str, uid: &str, host: &str, attempt| assignment_name(task, uid, host, attempt);
        let one = name("t", "u", "h", 0);
        assert_eq!(one, name("t", "u", "h", 0));
        for other in [
            name("t", "v", "h", 0),
            name("t", "u", "i", 0),
            name("t", "u", "h", 1),
        ] {
            assert_ne!(one, other);
        }
        let long = name(&format!("{}-b", "a".repeat(49)), "u", "h", 0);
        assert!(
            is_object_name(&long) && long.starts_with(&format!("{}-", "a".repeat(49))),
            "{long}"
        );
        assert!(is_object_name(&name(&"c".repeat(63), "u", "h", 0)));
    }

    #[test]
    fn domain_names_fit_and_tell_namesakes_apart() {
        let uid = "8f0c21d4-1111-2222-3333-444444444444";
        assert_eq!(domain_name("web", uid), "web-8f0c21d4");
        assert_eq!(
            domain_name("transactional-log-x1418a0faa8", uid),
            "transactional-log-x1418a0faa8-8f0c21d4"
        );
        let long = format!("{}-{}", "a".repeat(53), "b".repeat(9));
        assert_eq!(domain_name(&long, uid), format!("{}-8f0c21d4", "a".repeat(53)));
        assert_eq!(domain_name(&"c".repeat(63), uid).len(), 63);
    }
}
