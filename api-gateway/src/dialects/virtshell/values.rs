//! Values on the wire: how JSON members become typed values, and how values are written back. Pure.

use std::collections::HashSet;

use serde_json::{Map, Number, Value};
use virtshell_crds::{Driver, HostType, ImageType, Launch};

use super::error::Rejection;
use super::shape::{Notes, Shape};
use super::sizes::Size;
use crate::service::ServiceError;
use crate::service::objects::Ownership;

/// Most of a launch.
pub const MAX_LAUNCH: i32 = 100;
/// Most virtual CPUs.
const MAX_CPUS: i64 = 256;
/// What machines are good for.
const TYPES: [HostType; 5] = [
    HostType::GeneralPurpose,
    HostType::ComputeOptimized,
    HostType::HighPerformance,
    HostType::MemoryOptimized,
    HostType::StorageOptimized,
];
/// The words for that.
pub const HOST_TYPES: [&str; 5] = [
    HostType::GeneralPurpose.as_str(),
    HostType::ComputeOptimized.as_str(),
    HostType::HighPerformance.as_str(),
    HostType::MemoryOptimized.as_str(),
    HostType::StorageOptimized.as_str(),
];
/// Drivers that the documents know; no host runs the last four.
pub const DRIVERS: [&str; 7] = ["kvm", "qemu", "lxc", "docker", "virtualbox", "vmware", "ec2"];
/// What images may be said to be; the last four are aliases.
const IMAGE_TYPES: [&str; 8] = [
    "iso",
    "lxc-container",
    "docker-container",
    "disk",
    "container",
    "qcow2",
    "raw",
    "cloud-image",
];
/// Members of an object that may carry the name it stands for, in order of preference.
pub const NAME_MEMBERS: [&str; 9] = [
    "name",
    "username",
    "user",
    "login",
    "provisioner_name",
    "host",
    "hostname",
    "uuid",
    "id",
];

/// The members of a request's body; `null` is absent.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    members: &'a Map<String, Value>,
    notes: Option<&'a Notes>,
}

impl<'a> Fields<'a> {
    /// The members of a body.
    pub const fn of(members: &'a Map<String, Value>) -> Self {
        Self { members, notes: None }
    }

    /// The same; what is read is noted, which is how the API's document knows.
    pub const fn noted(members: &'a Map<String, Value>, notes: &'a Notes) -> Self {
        Self {
            members,
            notes: Some(notes),
        }
    }

    /// The first of these members that is there, with its name; each may have this shape.
    pub fn get(self, names: &[&'static str], shape: Shape) -> Option<(&'static str, &'a Value)> {
        if let Some(notes) = self.notes {
            notes.add(names, shape);
        }
        names.iter().find_map(|name| {
            self.members
                .get(*name)
                .filter(|value| !value.is_null())
                .map(|value| (*name, value))
        })
    }

    /// A string.
    pub fn string(self, names: &[&'static str]) -> Result<Option<String>, Rejection> {
        self.string_like(names, Shape::Text)
    }

    /// A string; what it must be beyond that is for others to say.
    fn string_like(self, names: &[&'static str], shape: Shape) -> Result<Option<String>, Rejection> {
        let Some((name, value)) = self.get(names, shape) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(|text| Some(text.to_owned()))
            .ok_or_else(|| wrong_type(name, value, "string"))
    }

    /// A URL: a scheme, and what follows it. Hosts may be placeholders.
    pub fn url(self, names: &[&'static str]) -> Result<Option<String>, Rejection> {
        let text = self.string_like(names, Shape::Url)?;
        let is_url = |text: &str| {
            text.split_once(":/").is_some_and(|(scheme, rest)| {
                scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                    && scheme
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
                    && !rest.trim_start_matches('/').is_empty()
            })
        };
        match text {
            Some(text) if !is_url(&text) => Err(Rejection::invalid(
                names[0],
                "must be a URL, as https://example.org/image.iso",
            )),
            other => Ok(other),
        }
    }

    /// A name of an object; the service says which are names.
    pub fn name(self, names: &[&'static str]) -> Result<Option<String>, Rejection> {
        self.string_like(names, Shape::Name)
    }

    /// A permission string; the service says which are.
    pub fn permissions(self) -> Result<Option<String>, Rejection> {
        self.string_like(&["permissions"], Shape::Permissions)
    }

    /// One of these words, in whatever case.
    pub fn word(
        self,
        names: &[&'static str],
        words: &'static [&'static str],
    ) -> Result<Option<String>, Rejection> {
        self.string_like(names, Shape::Word(words))
    }

    /// A string that is not empty; an empty one is refused.
    pub fn text(self, names: &[&'static str]) -> Result<Option<String>, Rejection> {
        let text = self.string_like(names, Shape::NonEmpty)?;
        match text {
            Some(text) if text.is_empty() => Err(Rejection::invalid(names[0], "must not be empty")),
            other => Ok(other),
        }
    }

    /// `true`, `false`, or either as a string in any case.
    pub fn boolean(self, name: &'static str) -> Result<Option<bool>, Rejection> {
        let Some((_, value)) = self.get(&[name], Shape::Boolean) else {
            return Ok(None);
        };
        if let Some(value) = value.as_bool() {
            return Ok(Some(value));
        }
        let text = value.as_str().ok_or_else(|| wrong_type(name, value, "boolean"))?;
        match text.to_ascii_lowercase().as_str() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err(Rejection::invalid(name, "must be true or false")),
        }
    }

    /// A number of virtual CPUs.
    pub fn cpus(self) -> Result<Option<i32>, Rejection> {
        let number = self.integer("cpus", 1, MAX_CPUS)?;
        Ok(number.map(|number| number as i32))
    }

    /// An integer, or a string of digits, within these bounds.
    pub fn integer(self, name: &'static str, least: i64, most: i64) -> Result<Option<i64>, Rejection> {
        let Some((_, value)) = self.get(&[name], Shape::Integer(least, most)) else {
            return Ok(None);
        };
        let digits = value
            .as_str()
            .filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let number = value
            .as_i64()
            .or_else(|| digits.and_then(|digits| digits.parse().ok()));
        let number = number.ok_or_else(|| wrong_type(name, value, "integer"))?;
        if !(least..=most).contains(&number) {
            return Err(Rejection::invalid(
                name,
                format!("must be between {least} and {most}"),
            ));
        }
        Ok(Some(number))
    }

    /// A size in whole MiB.
    pub fn size(self, name: &'static str, size: Size) -> Result<Option<i64>, Rejection> {
        let Some((_, value)) = self.get(&[name], Shape::Size) else {
            return Ok(None);
        };
        let text = number_or_string(value).ok_or_else(|| wrong_type(name, value, "size"))?;
        size.parse(&text)
            .map(Some)
            .map_err(|reason| Rejection::invalid(name, reason))
    }

    /// A reference to one object: a string, or an object with a member that names it.
    pub fn reference(self, names: &[&'static str]) -> Result<Option<String>, Rejection> {
        self.get(names, Shape::Reference)
            .map(|(name, value)| one_reference(name, value))
            .transpose()
    }

    /// Owner and group, which the owner and system users may send.
    pub fn ownership(self) -> Result<Ownership, Rejection> {
        Ok(Ownership {
            owner: self.reference(&["owner"])?,
            group: self.reference(&["group"])?,
        })
    }

    /// One reference or a list of them.
    pub fn references(self, names: &[&'static str]) -> Result<Option<Vec<String>>, Rejection> {
        let Some((name, value)) = self.get(names, Shape::References) else {
            return Ok(None);
        };
        let values = value
            .as_array()
            .map_or(std::slice::from_ref(value), Vec::as_slice);
        let mut list = Vec::with_capacity(values.len());
        let mut known = HashSet::with_capacity(values.len());
        for value in values {
            let reference = one_reference(name, value)?;
            if known.insert(reference.clone()) {
                list.push(reference);
            }
        }
        Ok(Some(list))
    }

    /// How many to launch: n, `"n"` or `"min:max"`.
    pub fn launch(self) -> Result<Option<Launch>, Rejection> {
        let Some((name, value)) = self.get(&["launch"], Shape::Launch) else {
            return Ok(None);
        };
        let text = number_or_string(value).ok_or_else(|| wrong_type(name, value, "launch"))?;
        let bound = |digits: &str| {
            digits
                .parse::<i32>()
                .ok()
                .filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))
        };
        let bounds = match text.split_once(':') {
            Some((min, max)) => bound(min).zip(bound(max)),
            None => bound(&text).map(|n| (n, n)),
        };
        match bounds {
            Some((min, max)) if 1 <= min && min <= max && max <= MAX_LAUNCH => Ok(Some(Launch { min, max })),
            _ => Err(Rejection::invalid(
                "launch",
                format!("must be a number or min:max, with 1 <= min <= max <= {MAX_LAUNCH}"),
            )),
        }
    }

    /// A dotted quad; `""` only where that clears a value.
    pub fn ipv4(self, names: &[&'static str], may_clear: bool) -> Result<Option<String>, Rejection> {
        let text = self.string_like(names, if may_clear { Shape::Ipv4OrNone } else { Shape::Ipv4 })?;
        match text {
            Some(text) if text.is_empty() && may_clear => Ok(Some(text)),
            Some(text) if text.parse::<std::net::Ipv4Addr>().is_err() => {
                Err(Rejection::invalid(names[0], "must be an IPv4 address"))
            }
            other => Ok(other),
        }
    }

    /// Any text of up to 64 characters: a documented example is not valid IPv6.
    pub fn ipv6(self, name: &'static str) -> Result<Option<String>, Rejection> {
        let text = self.string_like(&[name], Shape::Ipv6)?;
        if text.as_ref().is_some_and(|text| text.chars().count() > 64) {
            return Err(Rejection::invalid(name, "must have at most 64 characters"));
        }
        Ok(text)
    }

    /// What a machine is good for, in any case.
    pub fn host_type(self, name: &'static str) -> Result<Option<HostType>, Rejection> {
        let Some(text) = self.word(&[name], &HOST_TYPES)? else {
            return Ok(None);
        };
        let found = TYPES.into_iter().find(|t| t.as_str().eq_ignore_ascii_case(&text));
        found
            .map(Some)
            .ok_or_else(|| Rejection::invalid(name, format!("must be one of {}", HOST_TYPES.join(", "))))
    }

    /// A driver that hosts run, in any case; a documented one that none runs is not implemented.
    pub fn driver(self) -> Result<Option<Driver>, Rejection> {
        let Some((name, text)) = self.driver_word()? else {
            return Ok(None);
        };
        match text.as_str() {
            "kvm" => Ok(Some(Driver::Kvm)),
            "qemu" => Ok(Some(Driver::Qemu)),
            "lxc" => Ok(Some(Driver::Lxc)),
            "docker" | "virtualbox" | "vmware" | "ec2" => Err(ServiceError::UnsupportedDriver(text).into()),
            _ => Err(Rejection::invalid(name, "must be one of kvm, qemu, lxc")),
        }
    }

    /// The word of a driver in lower case, whether there is such a driver or not, and the member that has it.
    pub fn driver_word(self) -> Result<Option<(&'static str, String)>, Rejection> {
        let names = ["driver", "drive"];
        let Some((name, _)) = self.get(&names, Shape::Word(&DRIVERS)) else {
            return Ok(None);
        };
        let text = self.string(&[name])?.unwrap_or_default();
        Ok(Some((name, text.to_ascii_lowercase())))
    }

    /// What an image is, with the documents' aliases.
    pub fn image_type(self) -> Result<Option<ImageType>, Rejection> {
        let Some(text) = self.word(&["type"], &IMAGE_TYPES)? else {
            return Ok(None);
        };
        match text.to_ascii_lowercase().as_str() {
            "iso" => Ok(Some(ImageType::Iso)),
            "lxc-container" | "container" => Ok(Some(ImageType::LxcContainer)),
            "docker-container" => Ok(Some(ImageType::DockerContainer)),
            "disk" | "qcow2" | "raw" | "cloud-image" => Ok(Some(ImageType::Disk)),
            _ => Err(Rejection::invalid(
                "type",
                "must be one of iso, lxc-container, docker-container, disk",
            )),
        }
    }
}

/// A number or a string, as text.
fn number_or_string(value: &Value) -> Option<String> {
    value
        .as_str()
        .map(str::to_owned)
        .or_else(|| value.as_number().map(Number::to_string))
}

/// The name that a reference carries.
pub fn one_reference(field: &'static str, value: &Value) -> Result<String, Rejection> {
    let name = match value.as_object() {
        Some(members) => NAME_MEMBERS.iter().find_map(|name| members.get(*name)?.as_str()),
        None => Some(value.as_str().ok_or_else(|| wrong_type(field, value, "name"))?),
    };
    let name = name.filter(|name| !name.is_empty());
    name.map(str::to_owned)
        .ok_or_else(|| Rejection::invalid(field, "must be a name or an object with a name"))
}

/// A member of another JSON type than the field has.
pub fn wrong_type(field: &'static str, value: &Value, wanted: &'static str) -> Rejection {
    let type_ = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    };
    // Enough to recognize it; a whole body in an error message helps nobody.
    let shown: String = value.to_string().chars().take(64).collect();
    Rejection::WrongType {
        field,
        value: shown,
        is: type_,
        should_be: wanted,
    }
}

/// n, or `"min:max"`.
pub fn launch_value(launch: Launch) -> Value {
    if launch.min == launch.max {
        Value::Number(Number::from(launch.max))
    } else {
        Value::String(format!("{}:{}", launch.min, launch.max))
    }
}

#[cfg(test)]
#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the methods are not general over the lifetime"
)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with<T>(
        value: &Value,
        read: impl Fn(Fields<'_>) -> Result<Option<T>, Rejection>,
    ) -> Result<Option<T>, String> {
        let object = json!({"f": value, "cpus": value, "launch": value, "driver": value, "type": value});
        read(Fields::of(object.as_object().unwrap())).map_err(|rejection| rejection.message())
    }

    #[test]
    fn booleans_in_any_form() {
        for (value, expected) in [
            (json!(true), Some(true)),
            (json!("true"), Some(true)),
            (json!("False"), Some(false)),
            (json!("TRUE"), Some(true)),
            (json!(null), None),
        ] {
            assert_eq!(with(&value, |f| f.boolean("f")), Ok(expected), "{value}");
        }
        for value in [json!("yes"), json!(1), json!("")] {
            assert!(with(&value, |f| f.boolean("f")).is_err(), "{value}");
        }
    }

    #[test]
    fn integers_and_cpus() {
        for (value, expected) in [
            (json!(2), Some(2)),
            (json!("2"), Some(2)),
            (json!(256), Some(256)),
            (json!(null), None),
        ] {
            assert_eq!(with(&value, |f| f.cpus()), Ok(expected), "{value}");
        }
        for value in [
            json!(0),
            json!(257),
            json!("-1"),
            json!("2.0"),
            json!(2.5),
            json!(""),
            json!([2]),
            json!("+2"),
        ] {
            assert!(with(&value, |f| f.cpus()).is_err(), "{value}");
        }
        assert_eq!(
            with(&json!(["x"]), |f| f.cpus()),
            Err(r#"Field cpus - ["x"] is type list but should be integer"#.to_owned())
        );
    }

    #[test]
    fn launches() {
        for (value, expected) in [
            (json!(1), Some((1, 1))),
            (json!("3"), Some((3, 3))),
            (json!("1:3"), Some((1, 3))),
            (json!("100:100"), Some((100, 100))),
            (json!(null), None),
        ] {
            assert_eq!(
                with(&value, |f| f.launch()),
                Ok(expected.map(|(min, max)| Launch { min, max })),
                "{value}"
            );
        }
        for value in [
            json!(0),
            json!("0:1"),
            json!("3:1"),
            json!(101),
            json!("1:101"),
            json!("1:"),
            json!(":"),
            json!("a"),
            json!("1:2:3"),
            json!("+1"),
            json!(true),
        ] {
            assert!(with(&value, |f| f.launch()).is_err(), "{value}");
        }
        assert_eq!(launch_value(Launch { min: 2, max: 2 }), json!(2));
        assert_eq!(launch_value(Launch { min: 1, max: 3 }), json!("1:3"));
    }

    #[test]
    fn references_in_every_documented_form() {
        for (value, expected) in [
            (json!("a"), vec!["a"]),
            (json!({"name": "a"}), vec!["a"]),
            (
                json!([{"login": "a"}, {"user": "b"}, "c", {"provisioner_name": "d"}, {"hostname": "e"}]),
                vec!["a", "b", "c", "d", "e"],
            ),
            (json!({"id": "x", "name": "a"}), vec!["a"]),
            (json!({"uuid": "u", "id": "x"}), vec!["u"]),
            (json!(["a", "a"]), vec!["a"]),
            (json!([]), vec![]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(
                with(&value, |f| f.references(&["f"])),
                Ok(Some(expected)),
                "{value}"
            );
        }
        for value in [
            json!({}),
            json!({"name": 1}),
            json!([1]),
            json!([["a"]]),
            json!(""),
            json!({"nome": "a"}),
        ] {
            assert!(with(&value, |f| f.references(&["f"])).is_err(), "{value}");
        }
    }

    #[test]
    fn urls() {
        for (text, is_url) in [
            ("http://releases.ubuntu.com/raring/ubuntu.iso", true),
            ("https://<host>:<port>/api/virtshell/v1/files/a b#c", true),
            ("https:/gw/files/a", true),
            ("file:///var/lib/a", true),
            ("s3+x://bucket/a", true),
            ("a", false),
            ("/var/lib/a", false),
            ("releases.ubuntu.com/a", false),
            ("://a", false),
            ("1http://a", false),
            ("ht tp://a", false),
            ("http://", false),
            ("mailto:a", false),
        ] {
            assert_eq!(with(&json!(text), |f| f.url(&["f"])).is_ok(), is_url, "{text}");
        }
    }

    #[test]
    fn a_long_list_is_read_in_one_pass() {
        let names: Vec<String> = (0..150_000).map(|n| n.to_string()).collect();
        let began = std::time::Instant::now();
        let read = with(&json!(names), |f| f.references(&["f"]));
        // Compared each with each it takes minutes.
        assert!(began.elapsed() < std::time::Duration::from_secs(10));
        assert_eq!(read, Ok(Some(names)));
    }

    #[test]
    fn addresses() {
        for (text, may_clear, valid) in [
            ("15.54.88.19", false, true),
            ("256.1.1.1", false, false),
            ("1.2.3", false, false),
            ("", false, false),
            ("", true, true),
            ("::1", true, false),
        ] {
            assert_eq!(
                with(&json!(text), |f| f.ipv4(&["f"], may_clear)).is_ok(),
                valid,
                "{text}"
            );
        }
        assert!(with(&json!("yt06:0:0:0:0:0:0:c3"), |f| f.ipv6("f")).is_ok());
        assert!(with(&json!("x".repeat(65)), |f| f.ipv6("f")).is_err());
    }

    #[test]
    fn words_in_any_case() {
        assert_eq!(
            with(&json!("storageoptimized"), |f| f.host_type("f")),
            Ok(Some(HostType::StorageOptimized))
        );
        assert!(with(&json!("Huge"), |f| f.host_type("f")).is_err());
        assert_eq!(with(&json!("KVM"), |f| f.driver()), Ok(Some(Driver::Kvm)));
        for word in ["docker", "VirtualBox", "vmware", "ec2"] {
            let message = with(&json!(word), |f| f.driver()).unwrap_err();
            assert!(
                message.ends_with("is not supported; supported drivers: kvm, qemu, lxc"),
                "{message}"
            );
        }
        assert!(
            with(&json!("xen"), |f| f.driver())
                .unwrap_err()
                .starts_with("Field driver: ")
        );
        for (word, expected) in [
            ("iso", Some(ImageType::Iso)),
            ("container", Some(ImageType::LxcContainer)),
            ("LXC-container", Some(ImageType::LxcContainer)),
            ("qcow2", Some(ImageType::Disk)),
            ("raw", Some(ImageType::Disk)),
            ("cloud-image", Some(ImageType::Disk)),
            ("floppy", None),
        ] {
            assert_eq!(
                with(&json!(word), |f| f.image_type()).ok().flatten(),
                expected,
                "{word}"
            );
        }
    }
}
