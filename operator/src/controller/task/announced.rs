//! Tasks that a REST create announced on its Instance, and then did not make.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{Api, ObjectMeta, PostParams};
use virtshell_crds::task::TaskTarget;
use virtshell_crds::{
    ANNOTATION_CREATE_TASK, ANNOTATION_CREATED_AT, ANNOTATION_CREATED_BY, Instance, Task, TaskSpec,
};

use super::SECOND_HALF;
use super::progress::age;
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
    match api
        .create(&PostParams::default(), &announced(instance, name))
        .await
    {
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

fn announced(instance: &Instance, name: &str) -> Task {
    let driver = accept::frozen(instance)
        .and_then(|r| r.driver)
        .or(instance.spec.driver);
    let description = match driver {
        Some(driver) => format!(
            "Create a new instance {} using driver {driver}",
            instance.wire_name()
        ),
        None => format!("Create a new instance {}", instance.wire_name()),
    };
    let kept = [ANNOTATION_CREATED_BY, ANNOTATION_CREATED_AT];
    let annotations = kept
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), instance.annotations().get(key)?.clone())));
    Task {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: instance.namespace(),
            annotations: Some(annotations.collect()),
            ..ObjectMeta::default()
        },
        spec: TaskSpec {
            description,
            type_: "create_instance".to_owned(),
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
