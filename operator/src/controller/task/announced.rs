//! Tasks that a REST request announced on its Instance and then did not make: the gateway ended between its two writes.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, PostParams};
use virtshell_crds::task::TaskTarget;
use virtshell_crds::{ANNOTATION_CREATE_TASK, Instance, Task, TaskSpec};

use super::progress::age;
use super::{SECOND_HALF, origin};
use crate::controller::accept;
use crate::controller::cache::ObjectKey;
use crate::controller::context::Context;
use crate::controller::write::Error;

/// Older Instances have had their Task, or nobody waits for it any more.
const ANNOUNCEMENT: Duration = Duration::from_mins(10);

/// Makes the Task that a REST create announced on its Instance and then did not make. The answer is when to look again.
pub async fn make(ctx: &Context, instance: &Instance) -> Result<Option<Duration>, Error> {
    let Some(name) = instance.annotations().get(ANNOTATION_CREATE_TASK) else {
        return Ok(None);
    };
    let namespace = instance.namespace().unwrap_or_default();
    let key = ObjectKey {
        namespace: namespace.clone(),
        name: name.clone(),
    };
    let uid = instance.uid().unwrap_or_default();
    let age = age(instance.metadata.creation_timestamp.as_ref(), Timestamp::now());
    if age > ANNOUNCEMENT || ctx.is_announced(&uid) {
        return Ok(None);
    }
    if ctx.tasks.get(&key).is_some() {
        ctx.set_announced(&uid);
        return Ok(None);
    }
    // A second more than the whole seconds of creation times can hide.
    let left = (SECOND_HALF + Duration::from_secs(1)).saturating_sub(age);
    if !left.is_zero() {
        return Ok(Some(left));
    }
    let api: Api<Task> = Api::namespaced(ctx.client.clone(), &namespace);
    let source = instance.spec.clone_from.as_ref().map(|from| {
        let source = ctx.clone_source(instance);
        source.map_or_else(|| from.name.clone(), |source| source.wire_name().to_owned())
    });
    let task = announced(instance, name, source.as_deref());
    match api.create(&PostParams::default(), &task).await {
        Ok(task) => {
            ctx.metrics.wrote("Task");
            tracing::info!(
                task.name = name,
                instance.name = instance.name_any(),
                "made a task that was announced and missing"
            );
            ctx.stored_task(task);
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => return Err(Error::api(format!("make task {name}"))(error)),
    }
    ctx.set_announced(&uid);
    Ok(None)
}

/// The Task that the gateway would have made; `source` is what a clone is a clone of.
fn announced(instance: &Instance, name: &str, source: Option<&str>) -> Task {
    let driver = accept::frozen(instance)
        .and_then(|r| r.driver)
        .or(instance.spec.driver);
    let what = instance.wire_name();
    let (type_, description) = match (source, driver) {
        (Some(source), _) => ("clone_instance", format!("Clone instance {source} to {what}")),
        (None, Some(driver)) => (
            "create_instance",
            format!("Create a new instance {what} using driver {driver}"),
        ),
        (None, None) => ("create_instance", format!("Create a new instance {what}")),
    };
    Task {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: instance.namespace(),
            annotations: Some(origin(instance)),
            ..ObjectMeta::default()
        },
        spec: TaskSpec {
            description,
            type_: type_.to_owned(),
            targets: vec![TaskTarget {
                kind: "Instance".to_owned(),
                name: instance.name_any(),
                uid: instance.uid(),
            }],
            timeout_seconds: 3600,
            ..TaskSpec::default()
        },
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use virtshell_crds::{ANNOTATION_CREATED_AT, ANNOTATION_CREATED_BY};

    use super::*;

    #[test]
    fn the_task_is_the_one_that_the_gateway_would_have_made() {
        let instance = |spec: Value| -> Instance {
            serde_json::from_value(json!({
                "apiVersion": virtshell_crds::API_VERSION, "kind": "Instance",
                "metadata": {"name": "web-x1", "namespace": "ns", "uid": "u", "annotations": {
                    ANNOTATION_CREATE_TASK: "task-1", ANNOTATION_CREATED_BY: "me", ANNOTATION_CREATED_AT: "5",
                    "virtshell.io/modified-by": "other",
                }},
                "spec": spec,
            }))
            .unwrap()
        };
        let clone = json!({"displayName": "web_1", "driver": "lxc", "cloneFrom": {"name": "db-x2"}});
        for (spec, source, type_, description) in [
            (
                json!({"displayName": "web_1", "image": "i", "driver": "lxc"}),
                None,
                "create_instance",
                "Create a new instance web_1 using driver lxc",
            ),
            (
                json!({"displayName": "web_1", "image": "i"}),
                None,
                "create_instance",
                "Create a new instance web_1",
            ),
            (
                clone,
                Some("db_2"),
                "clone_instance",
                "Clone instance db_2 to web_1",
            ),
        ] {
            let task = announced(&instance(spec), "task-1", source);
            assert_eq!(
                (task.spec.type_.as_str(), task.spec.description.as_str()),
                (type_, description)
            );
            assert_eq!(
                (task.name_any(), task.namespace()),
                ("task-1".to_owned(), Some("ns".to_owned()))
            );
            assert_eq!(
                task.annotations().len(),
                2,
                "who asked, and when: {:?}",
                task.annotations()
            );
            assert_eq!(task.spec.targets[0].uid.as_deref(), Some("u"));
        }
    }
}
