//! What a route's document says: stated by the module that answers the route, beside the code that does. Pure.
//!
//! [`super::openapi`] puts it together; what all routes share (authentication, the common refusals) is said there.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::shape::Reader;

/// One route's entry.
pub struct About {
    /// What it does, in a few words.
    pub summary: &'static str,
    /// What else a user should know.
    pub details: &'static str,
    /// Query parameters: name, shape, meaning.
    pub query: Vec<(&'static str, &'static str)>,
    /// What it reads from a JSON body.
    pub json: Option<Reads>,
    /// What it reads from a form, beside the file.
    pub form: Option<Reads>,
    /// What it answers when all is well.
    pub answer: Told,
    /// Whether what the path or the body names may not be there.
    pub may_miss: bool,
    /// Whether it may ask for something that no host does.
    pub may_lack: bool,
    /// Whether the host that it asks for may not be there.
    pub may_find_no_host: bool,
}

/// What a route reads from a body.
#[derive(Clone, Copy)]
pub struct Reads {
    /// Name of the schema.
    pub name: &'static str,
    /// The code that reads.
    pub reader: Reader,
    /// Where members are described: the view that shows them too.
    pub view: fn() -> Seen,
}

/// What a view looks like.
pub struct Seen {
    /// Its schema's name.
    pub name: String,
    /// All schemas that it needs, its own included.
    pub schemas: Map<String, Value>,
}

/// What a route answers.
pub struct Told {
    /// The status.
    pub status: u16,
    /// Schemas by content type.
    pub content: Vec<(&'static str, Value)>,
    /// Schemas that those refer to.
    pub schemas: Map<String, Value>,
}

impl About {
    /// A route that answers with this.
    pub fn new(summary: &'static str, answer: Told) -> Self {
        Self {
            summary,
            details: "",
            query: Vec::new(),
            json: None,
            form: None,
            answer,
            may_miss: false,
            may_lack: false,
            may_find_no_host: false,
        }
    }

    /// What else a user should know.
    pub fn details(self, details: &'static str) -> Self {
        Self { details, ..self }
    }

    /// It reads a body with this reader; the view `V` describes members of the same name.
    pub fn reads<V: ToSchema>(mut self, name: &'static str, reader: Reader) -> Self {
        self.json = Some(Reads {
            name,
            reader,
            view: seen::<V>,
        });
        self
    }

    /// It reads a body that no view is like.
    pub fn reads_call(mut self, name: &'static str, reader: Reader) -> Self {
        let view = || Seen {
            name: String::new(),
            schemas: Map::new(),
        };
        self.json = Some(Reads { name, reader, view });
        self
    }

    /// The same from a form, which has a file too.
    pub fn reads_form<V: ToSchema>(mut self, name: &'static str, reader: Reader) -> Self {
        self.form = Some(Reads {
            name,
            reader,
            view: seen::<V>,
        });
        self
    }

    /// It reads a query parameter.
    pub fn query(mut self, name: &'static str, meaning: &'static str) -> Self {
        self.query.push((name, meaning));
        self
    }

    /// 404 when what the request names is not there.
    pub const fn may_miss(mut self) -> Self {
        self.may_miss = true;
        self
    }

    /// 501 when it asks for a driver or an image type that is only documented.
    pub const fn may_lack(mut self) -> Self {
        self.may_lack = true;
        self
    }

    /// 500 with a body of its own when no host has the type or the driver.
    pub const fn may_find_no_host(mut self) -> Self {
        self.may_find_no_host = true;
        self
    }
}

impl Told {
    /// 200 with this JSON.
    pub fn json(schema: Value) -> Self {
        Self {
            status: 200,
            content: vec![("application/json", schema)],
            schemas: Map::new(),
        }
    }

    /// One view.
    pub fn one<V: ToSchema>() -> Self {
        let seen = seen::<V>();
        Self {
            schemas: seen.schemas,
            ..Self::json(reference(&seen.name))
        }
    }

    /// `{"<key>": [...]}` of views.
    pub fn list<V: ToSchema>(key: &str) -> Self {
        let seen = seen::<V>();
        let list = object(&[(key, json!({"type": "array", "items": reference(&seen.name)}))]);
        Self {
            schemas: seen.schemas,
            ..Self::json(list)
        }
    }

    /// `{"<key>": ["<name>", ...]}`.
    pub fn names(key: &str) -> Self {
        Self::json(object(&[(
            key,
            json!({"type": "array", "items": {"type": "string"}}),
        )]))
    }

    /// `{"<verb>": "success"}`.
    pub fn success(verb: &str) -> Self {
        Self::json(object(&[(verb, json!({"const": "success"}))]))
    }

    /// `{"<verb>": "in progress", "task": "<uuid>"}`, for one or more verbs.
    pub fn in_progress(verbs: &[&str]) -> Self {
        let mut members: Vec<(&str, Value)> = verbs
            .iter()
            .map(|verb| (*verb, json!({"const": "in progress"})))
            .collect();
        members.push(("task", uuid()));
        Self::json(object(&members))
    }

    /// The same with another status.
    pub fn with_status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// The same of several verbs.
    pub fn successes(verbs: &[&str]) -> Self {
        let members: Vec<(&str, Value)> = verbs
            .iter()
            .map(|verb| (*verb, json!({"const": "success"})))
            .collect();
        Self::json(object(&members))
    }

    /// No answer is a good one.
    pub fn nothing() -> Self {
        Self {
            status: 400,
            content: Vec::new(),
            schemas: Map::new(),
        }
    }

    /// One of these two.
    pub fn or(mut self, other: Self) -> Self {
        self.schemas.extend(other.schemas);
        for (kind, schema) in other.content {
            match self.content.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, known)) if *known != schema => *known = json!({"anyOf": [known.take(), schema]}),
                Some(_) => {}
                None => self.content.push((kind, schema)),
            }
        }
        self
    }
}

/// An object with exactly these members.
pub fn object(members: &[(&str, Value)]) -> Value {
    let properties: Map<String, Value> = members
        .iter()
        .map(|(name, schema)| ((*name).to_owned(), schema.clone()))
        .collect();
    let required: Vec<&str> = members.iter().map(|(name, _)| *name).collect();
    json!({"type": "object", "properties": properties, "required": required})
}

/// The uuid of an object.
pub fn uuid() -> Value {
    json!({"type": "string", "format": "uuid"})
}

/// A reference to a schema of the document.
pub fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn seen<V: ToSchema>() -> Seen {
    let name = V::name().into_owned();
    let mut schemas = vec![(name.clone(), V::schema())];
    V::schemas(&mut schemas);
    let schemas = schemas.into_iter().map(|(name, schema)| {
        let mut schema = json!(schema);
        set_or_absent(&mut schema);
        (name, schema)
    });
    Seen {
        name,
        schemas: schemas.collect(),
    }
}

/// Views leave out what is not set: a member that need not be there is never `null`.
fn set_or_absent(schema: &mut Value) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for (name, property) in properties {
            if let Some(Value::Array(types)) = property.get_mut("type")
                && !required.contains(&json!(name))
            {
                types.retain(|type_| type_ != "null");
                if let [one] = types.as_slice() {
                    property["type"] = one.clone();
                }
            }
        }
    }
    for part in schema
        .get_mut("allOf")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        set_or_absent(part);
    }
}

/// Members of views whose Rust type does not say enough: name, what it looks like.
macro_rules! looks {
    ($($(#[$doc:meta])* $name:ident: $schema:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                // What this module writes is what utoipa reads; the document's snapshot shows it.
                RefOr::T(serde_json::from_value($schema).expect("a schema"))
            }
        }

        impl ToSchema for $name {
            fn name() -> Cow<'static, str> {
                stringify!($name).into()
            }
        }
    )*};
}

looks! {
    /// n, or `min:max`.
    LaunchCount: json!({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+:[0-9]+$"}],
        "description": "n, or `min:max`."});
    /// A number of GB, or text in MB.
    Gigabytes: json!({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[0-9]+MB$"}],
        "description": "A number of GB, or `<n>MB` when it is not whole GB."});
    /// What variables are given by.
    VarsGiven: json!({"anyOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "string"}],
        "description": "Values by name, or the URL of a stored file that has them."});
    /// A size in text.
    SizeText: json!({"type": "string", "pattern": "^[0-9]+(GB|MB)$",
        "description": "In GB, or in MB when it is not whole GB."});
    /// What a machine is good for.
    HostWord: json!({"type": "string", "enum": super::values::HOST_TYPES});
    /// Seconds since the epoch, in text.
    Epoch: json!({"type": "string", "pattern": "^-?[0-9]+$", "description": "Seconds since the epoch."});
    /// A boolean in text.
    BooleanText: json!({"type": "string", "enum": ["true", "false"]});
    /// What an image may be.
    ImageWord: json!({"type": "string", "enum": ["iso", "disk", "lxc-container", "docker-container"]});
    /// What a user may be.
    UserWord: json!({"type": "string", "enum": ["system", "regular"]});
    /// How far a task, or its part, is.
    TaskStatus: json!({"type": "string", "enum": ["pending", "in progress", "sucess", "failed"]});
    /// That it was done.
    Success: json!({"type": "string", "enum": ["success"]});
}
