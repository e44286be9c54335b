//! What members of a request's body may look like: each reader of [`super::values::Fields`] says so where it reads, so the
//! API's document knows what the code reads. Pure.

use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::error::Rejection;
use super::values::{Fields, MAX_LAUNCH, NAME_MEMBERS};

/// What a member may look like on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Text,
    /// A string that is not empty.
    NonEmpty,
    /// A scheme, and what follows it.
    Url,
    /// A name of an object of ours.
    Name,
    /// Who may do what with an object.
    Permissions,
    /// One of these words, in any case.
    Word(&'static [&'static str]),
    /// True, false, or either as a string.
    Boolean,
    /// An integer from the first to the second, or a string of its digits.
    Integer(i64, i64),
    /// A number, or a string with a unit.
    Size,
    /// One object, by its name or uuid.
    Reference,
    /// One or several.
    References,
    /// A number, or `min:max`.
    Launch,
    /// A dotted quad.
    Ipv4,
    /// A dotted quad, or nothing to clear one.
    Ipv4OrNone,
    /// Up to 64 characters.
    Ipv6,
    /// Scalars by name, or a URL.
    Vars,
    /// Provisioners, with versions if need be.
    Dependencies,
    /// One or several selectors of instances.
    Selectors,
}

impl Shape {
    /// The name in the document where the schema is stated once for all.
    const fn component(self) -> Option<&'static str> {
        match self {
            Self::Name => Some("Name"),
            Self::Permissions => Some("Permissions"),
            Self::Boolean => Some("BooleanInput"),
            Self::Size => Some("Size"),
            Self::Reference => Some("Reference"),
            Self::References => Some("References"),
            Self::Launch => Some("Launch"),
            Self::Ipv6 => Some("IPv6"),
            Self::Vars => Some("Vars"),
            Self::Dependencies => Some("Dependencies"),
            Self::Selectors => Some("Selectors"),
            Self::Text
            | Self::NonEmpty
            | Self::Url
            | Self::Word(_)
            | Self::Integer(..)
            | Self::Ipv4
            | Self::Ipv4OrNone => None,
        }
    }

    /// The schema of a member: a reference where it is a component, which then is among `components`.
    pub fn schema(self, components: &mut Map<String, Value>) -> Value {
        let Some(name) = self.component() else {
            return self.definition();
        };
        components.entry(name).or_insert_with(|| self.definition());
        if matches!(self, Self::References) {
            Self::Reference.schema(components);
        }
        json!({"$ref": format!("#/components/schemas/{name}")})
    }

    /// All of the schema. `null` is the same as absent everywhere.
    #[expect(clippy::too_many_lines, reason = "one table")]
    fn definition(self) -> Value {
        match self {
            Self::Text => json!({"type": ["string", "null"]}),
            Self::NonEmpty => json!({"type": ["string", "null"], "minLength": 1}),
            Self::Url => json!({
                "type": ["string", "null"], "pattern": "^[A-Za-z][A-Za-z0-9+.-]*:/+[^/]",
                "examples": ["https://example.org/image.iso"],
            }),
            Self::Name => json!({
                "description": "A name: letters, digits and `._:@+-`, up to 128, that begins with a letter or digit and does not \
                    look like a uuid.",
                "type": ["string", "null"], "pattern": "^[A-Za-z0-9][A-Za-z0-9._:@+-]{0,127}$",
            }),
            Self::Permissions => json!({
                "description": "Three triplets: owner, group, others. In a triplet the letters decide, not their places: `r`, `w` \
                    and `x` at most once each, `-` or `_` for what is not granted. A tenth `-` in front is dropped.",
                "type": ["string", "null"], "pattern": "^-?[rwx_-]{9}$", "examples": ["xwrxwrxwr", "rwxr-x---"],
            }),
            Self::Word(words) => json!({
                "description": format!("One of {}, in any case.", words.join(", ")),
                "type": ["string", "null"], "examples": words,
            }),
            Self::Boolean => json!({
                "description": "true or false, also as a string in any case.",
                "anyOf": [
                    {"type": ["boolean", "null"]},
                    {"type": "string", "pattern": "^([Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])$"},
                ],
            }),
            Self::Integer(least, most) => json!({
                "anyOf": [
                    {"type": ["integer", "null"], "minimum": least, "maximum": most},
                    {"type": "string", "pattern": "^[0-9]+$", "description": "Its digits."},
                ],
            }),
            Self::Size => json!({
                "description": "A size. 1 GB = 1024 MB. A number or a string without a unit takes the unit of the member.",
                "anyOf": [
                    {"type": ["number", "null"], "exclusiveMinimum": 0},
                    {"type": "string", "pattern": "^\\s*[0-9]+(\\.[0-9]+)?\\s*([MmGgTt]([Ii]?[Bb])?)?\\s*$"},
                ],
                "examples": ["16GB", "512MB", 4],
            }),
            Self::Reference => {
                let member = json!({"type": "string", "minLength": 1});
                let members: Map<String, Value> = NAME_MEMBERS
                    .iter()
                    .map(|name| ((*name).to_owned(), member.clone()))
                    .collect();
                json!({
                    "description": format!("An object: its name or uuid, or an object whose first member of {} is that.",
                        NAME_MEMBERS.join(", ")),
                    "anyOf": [
                        {"type": ["string", "null"], "minLength": 1},
                        {"type": "object", "properties": members, "minProperties": 1},
                    ],
                })
            }
            Self::References => {
                let one = json!({"$ref": "#/components/schemas/Reference"});
                json!({"description": "One reference, or several.", "anyOf": [one, {"type": "array", "items": one}]})
            }
            Self::Launch => json!({
                "description": format!("How many: n, or `min:max`, with 1 <= min <= max <= {MAX_LAUNCH}."),
                "anyOf": [
                    {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_LAUNCH},
                    {"type": "string", "pattern": "^[0-9]+(:[0-9]+)?$"},
                ],
                "examples": [3, "2:5"],
            }),
            Self::Ipv4 => json!({"type": ["string", "null"], "format": "ipv4"}),
            Self::Ipv4OrNone => json!({
                "description": "An empty string clears it.",
                "anyOf": [{"type": ["string", "null"], "format": "ipv4"}, {"type": "string", "maxLength": 0}],
            }),
            Self::Ipv6 => json!({
                "description": "An address; any text of up to 64 characters is taken.",
                "type": ["string", "null"], "maxLength": 64,
            }),
            Self::Vars => json!({
                "description": "What the executor gets as VS_<KEY>: scalars by name, or the URL of a stored file with `key: value` \
                    lines.",
                "anyOf": [
                    {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
                    {"type": "string", "pattern": "://"},
                ],
            }),
            Self::Dependencies => json!({
                "description": "Provisioners that must have made a running instance first, in this order.",
                "type": ["array", "null"],
                "items": {"anyOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "object", "properties": {
                        "provisioner_name": {"type": "string", "minLength": 1}, "version": {"type": ["string", "null"]},
                    }, "required": ["provisioner_name"]},
                ]},
            }),
            Self::Selectors => {
                let one = json!({"anyOf": [
                    {"type": "string", "minLength": 1,
                        "description": "A name; with `*` or a range like `[1-3]` a pattern."},
                    {"type": "object", "minProperties": 1, "maxProperties": 2, "additionalProperties": false, "properties": {
                        "name": {"type": "string", "minLength": 1, "description": "A name or a pattern."},
                        "range": {"type": "string", "description": "Numbers that follow the name: `[1-3]`."},
                        "pattern": {"type": "string", "minLength": 1, "description": "`*` is any text, `[1:5]` any of the numbers."},
                        "tag": {"type": "string", "minLength": 1, "description": "A tag of the instance or its provisioner."},
                        "type": {"type": "string", "minLength": 1, "description": "The same as `tag`."},
                        "uuid": {"type": "string", "format": "uuid"},
                        "id": {"type": "string", "format": "uuid", "description": "The same as `uuid`."},
                        "ip": {"type": "string", "minLength": 1, "description": "A present address."},
                    }},
                ]});
                json!({
                    "description": "One selector of instances, or several: the union of what they mean. A plain name that does not \
                        exist is refused; what patterns, ranges and tags do not find is left out. A request has at most 1000 \
                        selectors, tags among them, whose patterns stand for at most 1000 names; a pattern has at most 255 bytes.",
                    "anyOf": [one, {"type": "array", "items": one, "maxItems": 1000}, {"type": "null"}],
                })
            }
        }
    }

    /// A value that has this shape.
    pub fn sample(self) -> Value {
        match self {
            Self::Text | Self::NonEmpty | Self::Name | Self::Reference => json!("a"),
            Self::References | Self::Selectors | Self::Dependencies => json!(["a"]),
            Self::Permissions => json!("xwrxwrxwr"),
            Self::Word(words) => json!(words[0]),
            Self::Boolean => json!(true),
            Self::Integer(least, _) => json!(least),
            Self::Size => json!("1GB"),
            Self::Launch => json!(1),
            Self::Ipv4 | Self::Ipv4OrNone => json!("10.0.0.1"),
            Self::Ipv6 => json!("::1"),
            Self::Url => json!("https://example.org/a"),
            Self::Vars => json!({"a": "b"}),
        }
    }
}

/// A member that is read: the names that it may have, the canonical one first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its names.
    pub names: Vec<&'static str>,
    /// What it may look like.
    pub shape: Shape,
}

/// What was read, in the order in which it was read first.
#[derive(Debug, Default)]
pub struct Notes(Mutex<Vec<Member>>);

impl Notes {
    /// Notes a member, unless a reader has before.
    pub fn add(&self, names: &[&'static str], shape: Shape) {
        let mut members = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !members.iter().any(|known| known.names.contains(&names[0])) {
            members.push(Member {
                names: names.to_vec(),
                shape,
            });
        }
    }

    fn members(&self) -> Vec<Member> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reads a body, whatever it makes of it.
pub type Reader = fn(Fields<'_>) -> Result<(), Rejection>;

/// What a reader reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    /// The members.
    pub members: Vec<Member>,
    /// Of each of these groups of names one must be there.
    pub required: Vec<Vec<&'static str>>,
    /// A body that it takes, with no more than what must be there.
    pub least: Map<String, Value>,
}

/// Finds out what a reader reads, and what it cannot do without, by asking it.
pub fn observe(reader: Reader) -> Input {
    let mut input = Input::default();
    loop {
        let notes = Notes::default();
        let outcome = reader(Fields::noted(&input.least, &notes));
        input.members = notes.members();
        let Err(Rejection::MissingField(missing)) = outcome else {
            return input;
        };
        // What else would have done? Only the reader knows.
        let instead = |name: &&'static str, shape: Shape| {
            let mut body = input.least.clone();
            body.insert((*name).to_owned(), shape.sample());
            reader(Fields::of(&body)) != Err(Rejection::MissingField(missing))
        };
        let named = input
            .members
            .iter()
            .flat_map(|member| member.names.iter().map(move |name| (*name, member.shape)));
        let alternatives: Vec<(&'static str, Shape)> =
            named.filter(|(name, shape)| instead(name, *shape)).collect();
        let Some((name, shape)) = alternatives
            .iter()
            .find(|(name, _)| *name == missing)
            .or(alternatives.first())
        else {
            // Nothing that it reads would help: the document cannot say more.
            return input;
        };
        input.least.insert((*name).to_owned(), shape.sample());
        input
            .required
            .push(alternatives.into_iter().map(|(name, _)| name).collect());
    }
}
