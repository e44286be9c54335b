//! What users see of the API besides refusals: explanations, columns, categories, selectors, defaults, samples, installations.

use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use virtshell_crds::{HostSpec, Instance};
use virtshell_tests::identity::SimulatedNode;
use virtshell_tests::{ControlPlane, repository};

use crate::kinds::least;
use crate::limits::{api, definition};

#[test]
fn kubectl_explains_every_kind_and_its_fields() -> anyhow::Result<()> {
    let kubectl = ControlPlane::shared()?.kubectl();
    for (what, words) in [
        (
            "instance.spec.memoryMiB",
            "Memory in MiB. Default: the provisioner's, else 1024.",
        ),
        ("instance.spec.disks.name", "Name of the disk"),
        ("instance.status.conditions", "Accepted, Scheduled (controller)"),
        ("host.spec.section", "The Section it belongs to"),
    ] {
        let text = kubectl.ok(["explain", what])?;
        // kubectl breaks lines where it likes.
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(words), "{what}: {text}");
    }
    for (kind, _) in least() {
        let text = kubectl.ok(["explain", &format!("{}.spec", kind.to_lowercase())])?;
        assert!(
            text.contains("DESCRIPTION") && !text.contains("<empty>"),
            "{kind}: {text}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn columns_short_names_and_the_category_work() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let namespace = control_plane.namespace("columns").await?;
    let kubectl = control_plane.kubectl();
    let node = SimulatedNode::join(control_plane, "columns", HostSpec::default()).await?;
    let object = json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": "shown", "namespace": namespace},
        "spec": {"image": "debian-12", "host": "columns"},
    });
    kubectl.ok_with(["apply", "-f", "-"], &object.to_string())?;
    let status = json!({
        "phase": "Running", "addresses": {"ipv4": ["192.0.2.7"], "ipv6": []},
        "resolved": {"environment": "lab", "driver": "kvm", "cpus": 2, "memoryMiB": 1024, "image": {"name": "debian-12", "type": "disk"}},
        "conditions": [{"type": "Ready", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    });
    node.report_instance(&namespace, "shown", status).await?;

    let table = |options: &[&str]| -> anyhow::Result<(Vec<String>, Vec<String>)> {
        let text = kubectl.ok(["get", "vsi", "-n", &namespace].iter().chain(options))?;
        let mut lines = text
            .lines()
            .map(|line| line.split_whitespace().map(str::to_owned).collect());
        Ok((lines.next().unwrap_or_default(), lines.next().unwrap_or_default()))
    };
    let (head, row) = table(&[])?;
    assert_eq!(
        head,
        ["NAME", "PHASE", "HOST", "DRIVER", "CPUS", "MEMORY", "IP", "AGE"]
    );
    assert_eq!(
        row[..7],
        ["shown", "Running", "columns", "kvm", "2", "1024", "192.0.2.7"]
    );
    let (head, row) = table(&["-o", "wide"])?;
    assert_eq!(head[8..], ["IMAGE", "ENVIRONMENT", "READY"]);
    assert_eq!(row[8..], ["debian-12", "lab", "True"]);

    let all = kubectl.ok(["get", "virtshell", "-n", &namespace, "-o", "name"])?;
    assert!(
        all.contains("instance.virtshell.io/shown") && all.contains("host.virtshell.io/columns"),
        "{all}"
    );
    for (kind, _) in least() {
        for name in definition(kind)
            .spec
            .names
            .short_names
            .as_deref()
            .unwrap_or_default()
        {
            kubectl.ok(["get", name, "-n", &namespace])?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn instances_and_assignments_are_selected_by_host() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let namespace = control_plane.namespace("selected").await?;
    let admin = control_plane.admin().await?;
    let instances: Api<Instance> = Api::namespaced(admin.clone(), &namespace);
    for (name, host) in [
        ("here", Some("select-1")),
        ("there", Some("select-2")),
        ("nowhere", None),
    ] {
        let object = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": name}, "spec": {"blank": true, "host": host},
        }))?;
        instances.create(&PostParams::default(), &object).await?;
    }
    let selected = instances
        .list(&ListParams::default().fields("spec.host=select-1"))
        .await?;
    let names: Vec<_> = selected
        .iter()
        .filter_map(|i| i.metadata.name.as_deref())
        .collect();
    assert_eq!(names, ["here"]);
    let assignments = api(&admin, "TaskAssignment", &namespace);
    assignments
        .list(&ListParams::default().fields("spec.host=select-1"))
        .await?;
    Ok(())
}

#[tokio::test]
async fn what_is_left_out_gets_its_default() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let namespace = control_plane.namespace("defaults").await?;
    let admin = control_plane.admin().await?;
    let whole = |kind: &str| match kind {
        "Instance" => json!({
            "powerState": "Running", "stopMode": "Graceful", "restartMode": "Graceful", "shutdownGraceSeconds": 60,
            "autostart": true, "deletionPolicy": "Delete",
            "disks": [{"name": "a", "sizeMiB": 1, "bus": "virtio"}],
            "interfaces": [{"name": "a", "network": "n", "model": "virtio"}],
            "consoles": {"serial": true, "vnc": {"listen": "127.0.0.1"}},
        }),
        "Host" => json!({"type": "GeneralPurpose", "enabled": true}),
        "User" => json!({"type": "regular"}),
        "Task" => json!({"manual": false, "timeoutSeconds": 3600, "retry": 0}),
        "File" => json!({"size": 0}),
        _ => json!({}),
    };
    for (kind, mut spec) in least() {
        let mut expected = whole(kind);
        if kind == "Instance" {
            spec["disks"] = json!([{"name": "a", "sizeMiB": 1}]);
            spec["interfaces"] = json!([{"name": "a", "network": "n"}]);
            spec["consoles"] = json!({"vnc": {}});
        }
        for (key, value) in spec.as_object().unwrap() {
            let given = expected.get(key).is_none();
            if given {
                expected[key] = value.clone();
            }
        }
        let object = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": kind, "metadata": {"name": "least"}, "spec": spec,
        }))?;
        let params = PostParams {
            dry_run: true,
            field_manager: None,
        };
        let created = api(&admin, kind, &namespace).create(&params, &object).await?;
        assert_eq!(created.data["spec"], expected, "{kind}");
    }
    Ok(())
}

#[tokio::test]
async fn unknown_fields_and_double_conditions_are_refused() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let namespace = control_plane.namespace("unknown").await?;
    let kubectl = control_plane.kubectl();
    let object = |spec: Value| {
        json!({"apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
               "metadata": {"name": "a", "namespace": namespace}, "spec": spec})
        .to_string()
    };
    let outcome = kubectl.run(
        ["apply", "-f", "-"],
        &object(json!({"blank": true, "memory": 512})),
    )?;
    assert!(
        outcome.stderr.contains("unknown field \"spec.memory\""),
        "{outcome:?}"
    );
    let outcome = kubectl.run(
        ["apply", "--server-side", "-f", "-"],
        &object(json!({"blank": true, "memory": 512})),
    )?;
    assert!(
        outcome
            .stderr
            .contains(".spec.memory: field not declared in schema"),
        "{outcome:?}"
    );

    kubectl.ok_with(["apply", "-f", "-"], &object(json!({"blank": true})))?;
    let ready = json!({"type": "Ready", "status": "True", "reason": "A", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let patch = json!({"status": {"conditions": [ready.clone(), ready]}}).to_string();
    let outcome = kubectl.run(
        [
            "patch",
            "vsi",
            "a",
            "-n",
            &namespace,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ],
        "",
    )?;
    assert!(
        outcome.stderr.contains("status.conditions[1]: Duplicate value"),
        "{outcome:?}"
    );
    Ok(())
}

#[test]
fn every_sample_is_admitted() -> anyhow::Result<()> {
    let kubectl = ControlPlane::shared()?.kubectl();
    let folder = repository().join("manifests/samples");
    let mut samples = 0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let path = path.to_str().unwrap();
        for options in [&["--dry-run=server"][..], &["--server-side", "--dry-run=server"]] {
            let said = kubectl.ok(["apply", "-f", path].iter().chain(options))?;
            assert!(said.contains("virtshell.io/"), "{path}: {said}");
        }
        samples += 1;
    }
    assert!(samples >= 5, "only {samples} samples");
    Ok(())
}

#[test]
fn the_installation_for_a_cluster_is_admitted() -> anyhow::Result<()> {
    let kubectl = ControlPlane::shared()?.kubectl();
    let rendered = kubectl.ok(["kustomize", repository().join("manifests").to_str().unwrap()])?;
    // This control plane runs no pods and was not told to allow privileged ones, which kubeadm and every distribution do.
    let privileged = "privileged: true";
    assert_eq!(
        rendered.matches(privileged).count(),
        1,
        "the DaemonSet's container"
    );
    let outcome = kubectl.run(
        ["apply", "--server-side", "--dry-run=server", "-f", "-"],
        &rendered.replace(privileged, "privileged: false"),
    )?;
    assert!(outcome.success, "{}", outcome.stderr);
    for object in [
        "deployment.apps/virtshell-controller",
        "daemonset.apps/virtshell-node",
        "service/virtshell",
    ] {
        assert!(
            outcome.stdout.contains(object),
            "{object} is missing:\n{}",
            outcome.stdout
        );
    }
    Ok(())
}

#[test]
fn policies_have_no_type_errors() -> anyhow::Result<()> {
    let kubectl = ControlPlane::shared()?.kubectl();
    let deadline = std::time::Instant::now() + virtshell_tests::wait::SOON;
    loop {
        let list: Value =
            serde_json::from_str(&kubectl.ok(["get", "validatingadmissionpolicies", "-o", "json"])?)?;
        let policies = list["items"].as_array().unwrap();
        assert!(policies.len() >= 8, "{} policies", policies.len());
        // A controller checks them after they were made; it says so by the generation.
        let checked =
            |policy: &&Value| policy["status"]["observedGeneration"] == policy["metadata"]["generation"];
        if policies.iter().filter(checked).count() == policies.len() {
            for policy in policies {
                let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
                assert!(warnings.is_null(), "{}: {warnings}", policy["metadata"]["name"]);
            }
            return Ok(());
        }
        assert!(std::time::Instant::now() < deadline, "not checked: {list}");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
