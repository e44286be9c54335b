//! What each identity may write: RBAC and the admission policies together, with real tokens.

use anyhow::Context;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use virtshell_crds::{FINALIZER_DOMAIN, Host, HostSpec, Instance, TaskAssignment, host_lease};
use virtshell_tests::identity::{SYSTEM, SimulatedNode};
use virtshell_tests::wait::SOON;
use virtshell_tests::{ControlPlane, wait_for};

/// What the API server said against a request.
fn refusal<T: std::fmt::Debug>(answer: kube::Result<T>) -> String {
    match answer {
        Err(kube::Error::Api(status)) if status.code == 403 || status.code == 422 => status.message.clone(),
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(answer: kube::Result<T>, words: &str) {
    let said = refusal(answer);
    assert!(said.contains(words), "expected {words:?}, was told {said:?}");
}

/// An Instance as the controller leaves it: bound to `host`, with the finalizer.
async fn bound(
    control_plane: &ControlPlane,
    namespace: &str,
    name: &str,
    host: &str,
) -> anyhow::Result<Instance> {
    let admin: Api<Instance> = Api::namespaced(control_plane.admin().await?, namespace);
    admin
        .create(
            &PostParams::default(),
            &from(json!({"metadata": {"name": name}, "spec": {"blank": true}})),
        )
        .await?;
    let controller = control_plane.account(SYSTEM, "virtshell-controller").await?;
    let patch = json!({"metadata": {"finalizers": [FINALIZER_DOMAIN]}, "spec": {"host": host}});
    Ok(Api::namespaced(controller.client, namespace)
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await?)
}

fn from<K: Resource<DynamicType = ()> + DeserializeOwned>(mut object: Value) -> K {
    object["apiVersion"] = json!(K::api_version(&()));
    object["kind"] = json!(K::kind(&()));
    serde_json::from_value(object).unwrap()
}

/// A merge patch and a server-side apply that ask for the same.
fn both_ways<K: Resource<DynamicType = ()>>(name: &str, change: &Value) -> [(PatchParams, Patch<Value>); 2] {
    let mut apply = change.clone();
    apply["apiVersion"] = json!(K::api_version(&()));
    apply["kind"] = json!(K::kind(&()));
    apply["metadata"]["name"] = json!(name);
    [
        (PatchParams::default(), Patch::Merge(change.clone())),
        (PatchParams::apply("tests").force(), Patch::Apply(apply)),
    ]
}

#[tokio::test]
async fn the_controller_binds_again_and_nobody_else_does() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    bound(control_plane, "virtshell", "rebound", "host-1").await?;
    let of = async |account: &str| -> anyhow::Result<Api<Instance>> {
        let account = control_plane.account(SYSTEM, account).await?;
        Ok(Api::namespaced(account.client, "virtshell"))
    };
    let (gateway, controller) = (of("virtshell-gateway").await?, of("virtshell-controller").await?);
    for (params, patch) in
        both_ways::<Instance>("rebound", &json!({"spec": {"host": "host-2", "blank": true}}))
    {
        assert_refused(
            gateway.patch("rebound", &params, &patch).await,
            "Field host: is host-1 and cannot change once set; keep host: host-1",
        );
    }
    let patch = Patch::Merge(json!({"spec": {"host": "host-2"}}));
    let moved = controller
        .patch("rebound", &PatchParams::default(), &patch)
        .await?;
    assert_eq!(moved.spec.host.as_deref(), Some("host-2"));
    Ok(())
}

#[tokio::test]
async fn the_finalizer_is_the_controllers_and_the_nodes() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let namespace = control_plane.namespace("finalizer").await?;
    let kubectl = control_plane.kubectl();
    let node = SimulatedNode::join(control_plane, "finalizer-host", HostSpec::default()).await?;
    let other = SimulatedNode::join(control_plane, "finalizer-other", HostSpec::default()).await?;
    let instance = bound(control_plane, &namespace, "held", &node.host).await?;
    let uid = instance.metadata.uid.context("it has a uid")?;
    let admin: Api<Instance> = Api::namespaced(control_plane.admin().await?, &namespace);

    // kubectl replace sends what the file says, and the file knows of no finalizer.
    let file = json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
        "metadata": {"name": "held", "namespace": namespace}, "spec": {"blank": true, "host": node.host},
    });
    let outcome = kubectl.run(["replace", "-f", "-"], &file.to_string())?;
    let words = "finalizer virtshell.io/domain: is removed by the agent of host finalizer-host when the domain is gone";
    assert!(!outcome.success && outcome.stderr.contains(words), "{outcome:?}");
    assert!(
        outcome
            .stderr
            .contains(&format!("set annotation virtshell.io/abandon to {uid}")),
        "{outcome:?}"
    );

    let drop = |abandon: Option<&str>| {
        let annotations = abandon.map_or(json!({}), |value| json!({"virtshell.io/abandon": value}));
        Patch::Merge(json!({"metadata": {"finalizers": null, "annotations": annotations}}))
    };
    let params = PatchParams::default();
    assert_refused(admin.patch("held", &params, &drop(None)).await, words);
    assert_refused(admin.patch("held", &params, &drop(Some("another"))).await, words);
    // Two policies object; which one is quoted is the API server's choice.
    assert_refused(other.release(&namespace, "held").await, "host finalizer-host");
    // What is not about the finalizer is not held up by it: not even a delete.
    kubectl.ok(["label", "vsi", "held", "-n", &namespace, "a=b"])?;
    kubectl.ok(["delete", "vsi", "held", "-n", &namespace, "--wait=false"])?;
    assert!(admin.get("held").await?.metadata.deletion_timestamp.is_some());
    node.release(&namespace, "held").await?;
    assert!(admin.get_opt("held").await?.is_none());

    let instance = bound(control_plane, &namespace, "abandoned", "gone-for-good").await?;
    let uid = instance.metadata.uid.context("it has a uid")?;
    let abandoned = admin.patch("abandoned", &params, &drop(Some(&uid))).await?;
    assert_eq!(abandoned.metadata.finalizers, None);
    let add = Patch::Merge(json!({"metadata": {"finalizers": [FINALIZER_DOMAIN]}}));
    assert_refused(
        admin.patch("abandoned", &params, &add).await,
        "finalizer virtshell.io/domain: is set by the controller",
    );
    Ok(())
}

#[tokio::test]
async fn a_host_account_writes_its_own_host_and_lease() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let one = SimulatedNode::join(control_plane, "own-one", HostSpec::default()).await?;
    let two = SimulatedNode::join(control_plane, "own-two", HostSpec::default()).await?;
    let hosts: Api<Host> = Api::all(one.account.client.clone());

    one.report_host(json!({"hostname": "one.example.org"})).await?;
    let status = json!({"status": {"hostname": "not-mine"}});
    let words = "Host own-two is written by the account virtshell-host-own-two alone; \
                 this is system:serviceaccount:virtshell-system:virtshell-host-own-one";
    for (params, patch) in both_ways::<Host>("own-two", &status) {
        assert_refused(hosts.patch_status("own-two", &params, &patch).await, words);
    }
    let foreign = Host::new("own-three", HostSpec::default());
    assert_refused(
        hosts.create(&PostParams::default(), &foreign).await,
        "Host own-three is written by the account virtshell-host-own-three alone",
    );

    let leases = |namespace| Api::<Lease>::namespaced(one.account.client.clone(), namespace);
    one.renew().await?;
    let renewed = json!({"spec": {"holderIdentity": "own-one"}});
    let words = "is not that of system:serviceaccount:virtshell-system:virtshell-host-own-one";
    for (params, patch) in both_ways::<Lease>(&host_lease(&two.host), &renewed) {
        assert_refused(
            leases(SYSTEM)
                .patch(&host_lease(&two.host), &params, &patch)
                .await,
            words,
        );
    }
    for (namespace, name) in [
        (SYSTEM, "virtshell-controller"),
        ("virtshell", host_lease("own-one").as_str()),
    ] {
        let lease: Lease = from(json!({"metadata": {"name": name}}));
        let answer = leases(namespace).create(&PostParams::default(), &lease).await;
        let said = refusal(answer);
        // RBAC may already know that a Lease elsewhere is not the account's.
        assert!(
            said.contains(words) || said.contains("cannot create resource \"leases\""),
            "{said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_host_account_reports_on_its_own_instances_and_changes_none() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let namespace = control_plane.namespace("reports").await?;
    let one = SimulatedNode::join(control_plane, "reports-one", HostSpec::default()).await?;
    let two = SimulatedNode::join(control_plane, "reports-two", HostSpec::default()).await?;
    bound(control_plane, &namespace, "mine", &one.host).await?;
    let unbound: Instance = from(json!({"metadata": {"name": "nobodys"}, "spec": {"blank": true}}));
    Api::namespaced(control_plane.admin().await?, &namespace)
        .create(&PostParams::default(), &unbound)
        .await?;

    let reported = one
        .report_instance(&namespace, "mine", json!({"phase": "Running"}))
        .await?;
    assert!(reported.status.is_some_and(|status| status.phase.is_some()));
    let status = json!({"status": {"phase": "Failed"}});
    for (name, host) in [("mine", "reports-one"), ("nobodys", "(none)")] {
        for (params, patch) in both_ways::<Instance>(name, &status) {
            assert_refused(
                two.instances(&namespace)
                    .patch_status(name, &params, &patch)
                    .await,
                &format!("Instance {name} is on host {host} and that host alone reports its status"),
            );
        }
    }
    let label = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"blank": true, "host": "reports-one"}});
    for (params, patch) in both_ways::<Instance>("mine", &label) {
        assert_refused(
            two.instances(&namespace).patch("mine", &params, &patch).await,
            "Instance mine is on host reports-one and is written by that host alone",
        );
    }
    for change in [
        json!({"spec": {"cpus": 8, "blank": true, "host": "reports-one"}}),
        label,
        json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"blank": true, "host": "reports-one"}}),
    ] {
        for (params, patch) in both_ways::<Instance>("mine", &change) {
            assert_refused(
                one.instances(&namespace).patch("mine", &params, &patch).await,
                "Instance mine: its host writes status and takes away the finalizer",
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_host_account_reports_results_of_its_own_assignments() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let namespace = control_plane.namespace("results").await?;
    let one = SimulatedNode::join(control_plane, "results-one", HostSpec::default()).await?;
    let two = SimulatedNode::join(control_plane, "results-two", HostSpec::default()).await?;
    let mut spec = crate::kinds::least_of("TaskAssignment");
    spec["host"] = json!(one.host);
    let assignment: TaskAssignment = from(json!({"metadata": {"name": "a"}, "spec": spec}));
    Api::namespaced(control_plane.admin().await?, &namespace)
        .create(&PostParams::default(), &assignment)
        .await?;
    let assignments = |client: &Client| Api::<TaskAssignment>::namespaced(client.clone(), &namespace);
    let status = json!({"status": {"results": [{"uid": "u", "name": "a", "state": "Succeeded"}]}});
    for (params, patch) in both_ways::<TaskAssignment>("a", &status) {
        assignments(&one.account.client)
            .patch_status("a", &params, &patch)
            .await?;
        assert_refused(
            assignments(&two.account.client)
                .patch_status("a", &params, &patch)
                .await,
            "TaskAssignment a is for host results-one and that host alone reports its results",
        );
    }
    Ok(())
}

/// Asks for a token of `account` with `client`; what it gets, or what it is told.
async fn token(client: &Client, account: &str) -> Result<(), String> {
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(client.clone(), SYSTEM);
    let request = from(json!({"spec": {"audiences": [], "expirationSeconds": 600}}));
    match accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await
    {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => Err(error.to_string()),
    }
}

#[tokio::test]
async fn tokens_are_for_the_account_that_asks() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let one = SimulatedNode::join(control_plane, "tokens-one", HostSpec::default()).await?;
    SimulatedNode::join(control_plane, "tokens-two", HostSpec::default()).await?;
    // More than any account has of its own, so that the policy alone is asked.
    let subject = format!("--serviceaccount={SYSTEM}:virtshell-host-tokens-one");
    let verbs = [
        "create",
        "role",
        "any-token",
        "-n",
        SYSTEM,
        "--verb=create",
        "--resource=serviceaccounts/token",
    ];
    control_plane.kubectl().ok(verbs)?;
    control_plane.kubectl().ok([
        "create",
        "rolebinding",
        "any-token",
        "-n",
        SYSTEM,
        "--role=any-token",
        &subject,
    ])?;
    let own = async || token(&one.account.client, "virtshell-host-tokens-one").await;
    wait_for("its own token", SOON, own, |()| true).await?;
    for account in ["virtshell-host-tokens-two", "virtshell-controller"] {
        let said = token(&one.account.client, account).await.unwrap_err();
        let words = format!("token of {account}: the account of a host may renew its own token only");
        assert!(said.contains(&words), "{said}");
    }
    let controller = control_plane.account(SYSTEM, "virtshell-controller").await?;
    let said = token(&controller.client, "virtshell-host-tokens-one")
        .await
        .unwrap_err();
    assert!(said.contains("the controller asks for no tokens"), "{said}");
    Ok(())
}

#[tokio::test]
async fn the_controller_makes_identities_of_hosts_only() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let controller = control_plane.account(SYSTEM, "virtshell-controller").await?;
    let kubectl = control_plane.kubectl_with(&controller.kubeconfig);
    // What the controller applies for a Host, and what it must not: by name, and more than it holds itself.
    let objects = |name: &str, role: &str, verb: &str| {
        [
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": SYSTEM}}),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
                   "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                   "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": SYSTEM}]}),
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name, "namespace": SYSTEM},
                   "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": [verb], "resourceNames": ["a"]},
                             {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"], "resourceNames": [name]},
                             {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "update", "patch"]}]}),
        ]
    };
    let apply = [
        "apply",
        "--server-side",
        "--field-manager=virtshell-controller",
        "-f",
        "-",
    ];
    for object in objects("virtshell-host-made", "virtshell-node", "get") {
        kubectl.ok_with(apply, &object.to_string())?;
        // Applied again, as it does after each start.
        kubectl.ok_with(apply, &object.to_string())?;
    }
    for object in objects("virtshell-gateway-too", "virtshell-node", "get") {
        let outcome = kubectl.run(apply, &object.to_string())?;
        let words = "virtshell-gateway-too: the controller writes those of hosts only";
        assert!(outcome.stderr.contains(words), "{outcome:?}");
    }
    let [_, binding, role] = objects("virtshell-host-more", "cluster-admin", "delete");
    for object in [binding, role] {
        let outcome = kubectl.run(apply, &object.to_string())?;
        assert!(
            outcome
                .stderr
                .contains("attempting to grant RBAC permissions not currently held"),
            "{outcome:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_bootstrap_account_serves_its_own_node() -> anyhow::Result<()> {
    // One of its own: a policy with parameters refuses every token of the namespace until the API server knows their kind.
    let control_plane = &ControlPlane::start()?;
    let kubectl = control_plane.kubectl();
    let bootstrap = virtshell_tests::repository().join("manifests/bootstrap");
    kubectl.ok(["apply", "--server-side", "-k", bootstrap.to_str().unwrap()])?;
    for node in ["node-1", "node-2"] {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        kubectl.ok_with(["create", "-f", "-"], &node.to_string())?;
    }
    let account = "virtshell-node-bootstrap";
    // The API server may take 30 s to find the kind that a policy has as parameter; it refuses until then.
    let limit = std::time::Duration::from_secs(90);
    let first = async || control_plane.account_on_node(SYSTEM, account, "node-1").await;
    let on_node = wait_for("a token", limit, first, |_| true).await?.client;
    for host in ["boot-1", "boot-2"] {
        SimulatedNode::join(control_plane, host, HostSpec::default()).await?;
    }
    let nowhere = control_plane.account(SYSTEM, account).await?.client;
    let host = |name: &str, node: Option<&str>| {
        let spec = HostSpec {
            node_name: node.map(str::to_owned),
            ..HostSpec::default()
        };
        Host::new(name, spec)
    };
    for (rule, client, host, expected) in [
        ("its own node's", &on_node, host("boot-3", Some("node-1")), None),
        (
            "another node's",
            &on_node,
            host("boot-4", Some("node-2")),
            Some("nodeName must be node-1"),
        ),
        (
            "no node's",
            &on_node,
            host("boot-4", None),
            Some("nodeName must be node-1"),
        ),
        (
            "without a node",
            &nowhere,
            host("boot-4", Some("node-1")),
            Some("this token is bound to none"),
        ),
    ] {
        let answer = Api::<Host>::all(client.clone())
            .create(&PostParams::default(), &host)
            .await;
        match expected {
            None => drop(answer.context(rule)?),
            Some(words) => assert_refused(answer, words),
        }
    }

    for (host, node) in [("boot-1", "node-1"), ("boot-2", "node-2")] {
        kubectl.ok([
            "patch",
            "vsh",
            host,
            "--type=merge",
            "-p",
            &format!(r#"{{"spec":{{"nodeName":"{node}"}}}}"#),
        ])?;
    }
    let own = async || token(&on_node, "virtshell-host-boot-1").await;
    wait_for("the token of its own Host", SOON, own, |()| true).await?;
    for (resource, verb) in [
        ("hosts.virtshell.io", "list"),
        ("instances.virtshell.io", "list"),
        ("secrets", "get"),
    ] {
        let user = format!("--as=system:serviceaccount:{SYSTEM}:{account}");
        let outcome = kubectl.run(["auth", "can-i", verb, resource, "-n", SYSTEM, &user], "")?;
        assert_eq!(outcome.stdout.trim(), "no", "{verb} {resource}");
    }
    for (client, account, words) in [
        (
            &on_node,
            "virtshell-host-boot-2",
            "Host boot-2 is served by node node-2, not by node node-1",
        ),
        (
            &on_node,
            "virtshell-controller",
            "may ask for that of an account virtshell-host-<Host name> only",
        ),
        (&nowhere, "virtshell-host-boot-1", "bound to none"),
    ] {
        let said = token(client, account).await.unwrap_err();
        assert!(said.contains(words), "expected {words:?}, was told {said:?}");
    }
    Ok(())
}

#[tokio::test]
async fn each_account_may_do_its_work_and_no_more() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    SimulatedNode::join(control_plane, "rights", HostSpec::default()).await?;
    let admin = control_plane.admin().await?;
    let (controller, gateway, node) = (
        "virtshell-controller",
        "virtshell-gateway",
        "virtshell-host-rights",
    );
    let ours = "virtshell.io";
    for (account, verb, group, resource, namespace, expected) in [
        (controller, "patch", ours, "instances", "any", true),
        (controller, "patch", ours, "instances/status", "any", true),
        (controller, "create", "", "secrets", "any", true),
        (controller, "list", "", "secrets", "any", false),
        (controller, "patch", "", "serviceaccounts", SYSTEM, true),
        // What is launched, and dependencies.
        (controller, "create", ours, "instances", "any", true),
        (controller, "create", ours, "taskassignments", "any", true),
        (controller, "delete", ours, "taskassignments", "any", true),
        (controller, "patch", ours, "taskassignments/status", "any", false),
        (controller, "patch", ours, "images/status", "any", true),
        (controller, "patch", ours, "images", "any", false),
        (controller, "create", ours, "provisioners", "any", false),
        (controller, "watch", "", "nodes", "", true),
        (controller, "patch", "", "nodes", "", false),
        (controller, "create", "", "serviceaccounts", "any", false),
        (controller, "delete", ours, "hosts", "", false),
        (
            controller,
            "delete",
            "rbac.authorization.k8s.io",
            "clusterrolebindings",
            "",
            false,
        ),
        (
            controller,
            "bind",
            "rbac.authorization.k8s.io",
            "clusterroles",
            "",
            false,
        ),
        (
            controller,
            "escalate",
            "rbac.authorization.k8s.io",
            "clusterroles",
            "",
            false,
        ),
        (controller, "create", "", "pods", "any", false),
        (gateway, "create", ours, "instances", "virtshell", true),
        (gateway, "create", ours, "instances", "any", false),
        (gateway, "patch", ours, "instances/status", "virtshell", false),
        (gateway, "patch", ours, "tasks/status", "virtshell", true),
        (gateway, "create", ours, "hosts", "", true),
        (gateway, "patch", ours, "hosts/status", "", false),
        (gateway, "watch", "", "secrets", "virtshell", true),
        (gateway, "get", "", "secrets", SYSTEM, false),
        (gateway, "create", "", "serviceaccounts/token", SYSTEM, false),
        (node, "list", ours, "instances", "any", true),
        (node, "create", ours, "instances", "any", false),
        (node, "delete", ours, "instances", "any", false),
        (node, "patch", ours, "instances/status", "any", true),
        (node, "patch", ours, "hosts", "", false),
        (node, "get", "", "secrets", "any", false),
        (node, "list", "", "secrets", "any", false),
        (node, "get", ours, "images", "any", false),
        (node, "list", ours, "files", "any", true),
        (node, "patch", ours, "files", "any", false),
        (node, "create", "authentication.k8s.io", "tokenreviews", "", true),
    ] {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let review: SubjectAccessReview = from(json!({"spec": {
            "user": format!("system:serviceaccount:{SYSTEM}:{account}"),
            "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{SYSTEM}"), "system:authenticated"],
            "resourceAttributes": {
                "verb": verb, "group": group, "resource": resource, "subresource": subresource, "namespace": namespace,
            },
        }}));
        let answer = Api::all(admin.clone())
            .create(&PostParams::default(), &review)
            .await?;
        let allowed = answer.status.is_some_and(|status| status.allowed);
        assert_eq!(
            allowed, expected,
            "{account} may {verb} {group}/{resource}/{subresource} in {namespace:?}"
        );
    }
    Ok(())
}
