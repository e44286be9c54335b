//! The Lease by which the agent shows that it lives.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use virtshell_crds::host_lease;

use super::context::Context;

/// How often it is renewed; the controller gives a host up after four times this.
const PERIOD: Duration = Duration::from_secs(10);
/// How soon a renewal that failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Renews the Lease until the process ends.
pub async fn run(context: Arc<Context>, namespace: String) {
    let api: Api<Lease> = Api::namespaced(context.client.clone(), &namespace);
    let name = host_lease(&context.host);
    loop {
        let renewed = renew(&api, &name, &context).await;
        if let Err(error) = &renewed {
            tracing::warn!(lease = name, %error, "the Lease cannot be renewed");
        }
        tokio::time::sleep(if renewed.is_ok() { PERIOD } else { AGAIN }).await;
    }
}

async fn renew(api: &Api<Lease>, name: &str, context: &Context) -> kube::Result<Lease> {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(context.host.clone()),
            lease_duration_seconds: Some(40),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    api.patch(
        name,
        &PatchParams::apply(&context.manager).force(),
        &Patch::Apply(&lease),
    )
    .await
}
