//! Tries every limit, word list, pattern and required field: values that are admitted, and values that are refused, each by a create (what
//! client-side apply sends) and by server-side apply.

use std::sync::LazyLock;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use virtshell_tests::ControlPlane;
use virtshell_tests::schema::What;

use crate::fields::{Field, fields};

/// How an object is sent.
#[derive(Clone, Copy, Debug)]
enum Way {
    Create,
    Apply,
}

/// A word or two of the API server's own message for a demand. Server-side apply finds some things earlier and says them
/// differently.
fn said(what: &What, way: Way) -> Vec<String> {
    let one = |text: String| vec![text];
    match what {
        What::MinLength(n) => one(format!("should be at least {n} chars long")),
        What::MaxLength(n) => one(format!("Too long: may not be more than {n} bytes")),
        What::Minimum(n) => one(format!("should be greater than or equal to {n}")),
        What::Maximum(n) => one(format!("should be less than or equal to {n}")),
        What::MinItems(n) => one(format!("should have at least {n} items")),
        What::MaxItems(n) | What::MaxProperties(n) => one(format!("must have at most {n} items")),
        What::Pattern(pattern) => one(format!("should match '{pattern}'")),
        What::Enum(words) => std::iter::once("Unsupported value".to_owned())
            .chain(words.iter().map(|word| format!("\"{word}\"")))
            .collect(),
        What::Required(field) => vec![field.clone(), "Required value".to_owned()],
        What::Unique => one(match way {
            Way::Create => "Duplicate value".to_owned(),
            Way::Apply => "duplicate entries for key".to_owned(),
        }),
        What::Rule(message) => one(message.clone()),
    }
}

/// Whether a message refuses the field for this reason.
fn refuses(message: &str, field: &Field, what: &What, way: Way) -> bool {
    // Before the schema is asked: the parser of an apply takes no control characters, and entries are merged by their key.
    let before_the_schema = match (what, way) {
        (What::Pattern(_), Way::Apply) => "control characters are not allowed",
        (What::Required(_), Way::Apply) => {
            "associative list with keys has an element that omits all key fields"
        }
        _ => "\0",
    };
    let place = field.path.replace("[]", "[0]");
    let place = place.split("{}").next().unwrap_or_default();
    // Of a list with a double entry, server-side apply names the list, a create the entry.
    message.contains(before_the_schema)
        || message.contains(place.trim_end_matches("[0]"))
            && said(what, way).iter().all(|part| message.contains(part.as_str()))
}

#[derive(Clone, Copy)]
struct Try<'a> {
    field: &'a Field,
    value: &'a Value,
    refused: Option<&'a What>,
}

#[tokio::test]
async fn every_limit_is_kept_and_reaches_as_far_as_it_says() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let namespace = control_plane.namespace("limits").await?;
    let client = control_plane.admin().await?;
    let fields = fields();
    let tries = fields.iter().flat_map(|field| {
        let admitted = field.admitted.iter().map(|value| (value, None));
        let refused = field.refused.iter().map(|(value, what)| (value, Some(what)));
        admitted.chain(refused).map(move |(value, refused)| Try {
            field,
            value,
            refused,
        })
    });
    // Eight at once keep two cores of the API server busy.
    let wrong: Vec<String> = stream::iter(tries.flat_map(|t| [Way::Create, Way::Apply].map(|way| (t, way))))
        .map(|(t, way)| attempt(&client, &namespace, t, way))
        .buffer_unordered(8)
        .try_filter_map(async |wrong| Ok(wrong))
        .try_collect()
        .await?;
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// Sends the object as a dry run; returns what is wrong with the answer.
async fn attempt(client: &Client, namespace: &str, t: Try<'_>, way: Way) -> anyhow::Result<Option<String>> {
    let api = api(client, t.field.kind, namespace);
    let object: DynamicObject = serde_json::from_value(json!({
        "apiVersion": virtshell_crds::API_VERSION, "kind": t.field.kind,
        "metadata": {"name": "tried"}, "spec": t.field.spec(t.value),
    }))?;
    let answer = match way {
        Way::Create => {
            let params = PostParams {
                dry_run: true,
                field_manager: None,
            };
            api.create(&params, &object).await
        }
        Way::Apply => {
            let params = PatchParams::apply("tests").dry_run();
            api.patch("tried", &params, &Patch::Apply(&object)).await
        }
    };
    let shown: String = t.value.to_string().chars().take(60).collect();
    let place = format!("{} {} = {shown} by {way:?}", t.field.kind, t.field.path);
    Ok(match (answer, t.refused) {
        (Ok(_), None) => None,
        (Ok(_), Some(what)) => Some(format!("{place}: admitted against {what:?}")),
        (Err(kube::Error::Api(status)), Some(what)) => {
            let said = &status.message;
            (!refuses(said, t.field, what, way))
                .then(|| format!("{place}: expected {what:?}, was told {said}"))
        }
        (Err(error), _) => Some(format!("{place}: {error}")),
    })
}

/// Definitions are made from types, which takes its time.
static DEFINITIONS: LazyLock<Vec<CustomResourceDefinition>> =
    LazyLock::new(virtshell_crds::manifests::definitions);

/// The definition of a kind.
pub fn definition(kind: &str) -> &'static CustomResourceDefinition {
    DEFINITIONS.iter().find(|d| d.spec.names.kind == kind).unwrap()
}

/// Objects of a kind, in `namespace` if it has namespaces.
pub fn api(client: &Client, kind: &str, namespace: &str) -> Api<DynamicObject> {
    let definition = definition(kind);
    let gvk = GroupVersionKind::gvk(virtshell_crds::GROUP, virtshell_crds::VERSION, kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, &definition.spec.names.plural);
    if definition.spec.scope == "Cluster" {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), namespace, &resource)
    }
}
