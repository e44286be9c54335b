//! One machine, as a newcomer meets it: `hack/up.sh`, then real guests through kubectl, REST and virsh.
//!
//! All tests share one system and use Instances of their own, so they run beside each other.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use virtshell_tests::level;
use virtshell_tests::system::System;

/// Emulated guests on two busy cores boot in 4 to 15 s; what takes longer than this is broken, not slow.
const LIMIT: Duration = Duration::from_mins(3);

/// The shared system, or None where this level is allowed to be left out.
fn system() -> Option<&'static System> {
    level::end_to_end().then(|| System::shared().expect("hack/up.sh brings the system up"))
}

/// Runs a line until what it prints satisfies `enough`.
fn until(system: &System, line: &str, enough: impl Fn(&str) -> bool) -> Result<String> {
    let started = Instant::now();
    loop {
        let seen = system.shell(line)?;
        if seen.success && enough(seen.stdout.trim_end()) {
            return Ok(seen.stdout.trim_end().to_owned());
        }
        ensure!(
            started.elapsed() < LIMIT,
            "{line}: after {LIMIT:?} still {}{}",
            seen.stdout,
            seen.stderr
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// An Instance of the guest image with what `more` adds to its spec.
fn instance(name: &str, more: Value) -> Value {
    let mut spec =
        json!({"image": "debian-guest", "memoryMiB": 192, "diskMiB": 1024, "shutdownGraceSeconds": 20});
    if let (Value::Object(spec), Value::Object(more)) = (&mut spec, more) {
        spec.extend(more);
    }
    json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance",
        "metadata": {"name": name, "namespace": "virtshell"}, "spec": spec,
    })
}

fn field(system: &System, name: &str, path: &str) -> Result<String> {
    system.sh(&get(name, path))
}

/// The command that prints a field of an Instance.
fn get(name: &str, path: &str) -> String {
    format!("kubectl -n virtshell get vsi {name} -o 'jsonpath={{{path}}}'")
}

fn condition(name: &str, type_: &str) -> String {
    let field = |field: &str| format!(".status.conditions[?(@.type==\"{type_}\")].{field}");
    get(
        name,
        &format!(
            "{}}} {{{}}} {{{}",
            field("status"),
            field("reason"),
            field("message")
        ),
    )
}

fn wait_ready(system: &System, name: &str) -> Result<()> {
    until(system, &condition(name, "Ready"), |seen| seen.starts_with("True")).map(drop)
}

fn remove(system: &System, name: &str) -> Result<()> {
    system
        .sh(&format!("kubectl -n virtshell delete vsi {name} --timeout=60s"))
        .map(drop)
}

#[test]
fn a_newcomer_sees_two_running_guests() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let list = system.sh("kubectl -n virtshell get vsi")?;
    let rest: Value = serde_json::from_str(&system.sh("hack/vscurl GET /virtshell/api/v1/instances")?)?;
    for name in ["hello-kubectl", "hello-rest"] {
        ensure!(
            list.lines().any(|l| l.starts_with(name) && l.contains("Running")),
            "{list}"
        );
        let seen = rest["instances"]
            .as_array()
            .context("a list")?
            .iter()
            .find(|i| i["name"] == name);
        let seen = seen.with_context(|| format!("{name} is not in {rest}"))?;
        ensure!(
            seen["status"] == "running" && seen["host"] == system.host(),
            "{seen}"
        );
        ensure!(
            system
                .sh(&format!("hack/guest-exec {name} uname -a"))?
                .starts_with("Linux ")
        );
        ensure!(
            system.sh(&format!("hack/guest-exec {name} hostname"))? == name,
            "the seed gives the host name"
        );
    }
    Ok(())
}

#[test]
fn no_role_is_an_administrator() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    for role in ["controller", "node", "gateway"] {
        let kubectl = system
            .kubectl()?
            .with(&system.state().join(format!("{role}.kubeconfig")));
        for (verb, resource) in [
            ("create", "customresourcedefinitions"),
            ("delete", "namespaces"),
            ("list", "secrets"),
        ] {
            let answer = kubectl.run(["auth", "can-i", verb, resource, "--all-namespaces"], "")?;
            // The gateway and the controller read users' keys in their namespaces; nobody lists all Secrets.
            ensure!(
                answer.stdout.trim() == "no",
                "{role} may {verb} {resource}: {}",
                answer.stdout
            );
        }
        ensure!(
            kubectl
                .ok(["auth", "whoami"])?
                .contains("system:serviceaccount:virtshell-system:")
        );
    }
    Ok(())
}

#[test]
fn a_destroyed_domain_comes_back_and_says_so() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    system.apply(&instance("drift", json!({})))?;
    wait_ready(system, "drift")?;
    let domain = field(system, "drift", ".status.domain.name")?;
    let started = field(system, "drift", ".status.startedAt")?;
    // startedAt has whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    system.sh(&format!("virsh -c qemu:///system destroy {domain}"))?;
    until(system, &get("drift", ".status.startedAt"), |seen| {
        !seen.is_empty() && seen != started
    })?;
    wait_ready(system, "drift")?;
    ensure!(
        system
            .sh(&format!("virsh -c qemu:///system domstate {domain}"))?
            .starts_with("running")
    );
    let events = "kubectl -n virtshell get events --field-selector involvedObject.name=drift -o jsonpath='{.items[*].reason}'";
    until(system, events, |reasons| reasons.split_whitespace().count() >= 2)?;
    remove(system, "drift")
}

#[test]
fn a_deleted_instance_leaves_no_domain_and_no_disk() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    system.apply(&instance(
        "gone",
        json!({"disks": [{"name": "data", "sizeMiB": 16}]}),
    ))?;
    wait_ready(system, "gone")?;
    let domain = field(system, "gone", ".status.domain.name")?;
    let paths = field(system, "gone", ".status.disks[*].path")?;
    let paths: Vec<&str> = paths.split_whitespace().collect();
    ensure!(
        paths.len() == 2 && paths.iter().all(|p| std::path::Path::new(p).exists()),
        "{paths:?}"
    );
    remove(system, "gone")?;
    ensure!(
        !system
            .sh("virsh -c qemu:///system list --all --name")?
            .contains(&domain)
    );
    ensure!(
        paths.iter().all(|p| !std::path::Path::new(p).exists()),
        "{paths:?}"
    );
    Ok(())
}

#[test]
fn power_through_rest_ends_in_tasks_that_succeed() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let post = r#"hack/vscurl POST /virtshell/api/v1/instances '{"name": "Power_1", "image": "debian-guest", "memory": 192, "hdsize": "1GB"}'"#;
    let task = |answer: &str| -> Result<String> {
        let answer: Value = serde_json::from_str(answer)?;
        Ok(answer["task"]
            .as_str()
            .context("the answer names a task")?
            .to_owned())
    };
    let succeeded = |uuid: &str| {
        until(
            system,
            &format!("hack/vscurl GET /api/virtshell/v1/tasks/{uuid}"),
            |t| t.contains(r#""status":"sucess""#),
        )
    };
    succeeded(&task(&system.sh(post)?)?)?;
    let refused = system.shell(post)?;
    ensure!(
        !refused.success && refused.stdout.contains("instance Power_1 already exists"),
        "{}",
        refused.stdout
    );

    let state = "hack/vscurl GET /virtshell/api/v1/instances/Power_1";
    let uuid = {
        let seen: Value = serde_json::from_str(&system.sh(state)?)?;
        seen["uuid"]
            .as_str()
            .context("an instance has a uuid")?
            .to_owned()
    };
    for (verb, status) in [("stop", "stopped"), ("start", "running")] {
        let call = format!("hack/vscurl PUT /virtshell/api/v1/instances/{verb}_instance/Power_1");
        succeeded(&task(&system.sh(&call)?)?)?;
        until(system, state, |seen| {
            seen.contains(&format!(r#""status":"{status}""#))
        })?;
    }
    let id = format!("virsh -c qemu:///system domid {uuid}");
    let before = system.sh(&id)?;
    succeeded(&task(&system.sh(
        "hack/vscurl PUT /virtshell/api/v1/instances/restart_instance/Power_1",
    )?)?)?;
    ensure!(system.sh(&id)? != before, "a restart is a new domain process");
    succeeded(&task(
        &system.sh("hack/vscurl DELETE /virtshell/api/v1/instances/Power_1")?,
    )?)?;
    let gone = system.shell(state)?;
    ensure!(
        !gone.success && gone.stdout.contains("not found"),
        "{}",
        gone.stdout
    );
    Ok(())
}

#[test]
fn a_container_runs_beside_the_machines() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    system.sh("kubectl apply -f manifests/samples/container.yaml")?;
    wait_ready(system, "hello-container")?;
    ensure!(field(system, "hello-container", ".status.domain.type")? == "lxc");
    ensure!(system.sh("hack/guest-exec hello-container uname -s")? == "Linux");
    ensure!(system.sh("hack/guest-exec hello-container hostname")? == "hello-container");
    remove(system, "hello-container")?;
    ensure!(
        !system
            .sh("virsh -c lxc:///system list --all --name")?
            .contains("hello-container")
    );
    Ok(())
}

#[test]
fn a_paused_guest_stands_still_and_resumes() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    system.apply(&instance("pause", json!({})))?;
    wait_ready(system, "pause")?;
    let domain = field(system, "pause", ".status.domain.name")?;
    let state = format!("virsh -c qemu:///system domstate {domain}");
    for (wanted, seen) in [("Paused", "paused"), ("Running", "running")] {
        let patch = json!({"spec": {"powerState": wanted}}).to_string();
        system.sh(&format!(
            "kubectl -n virtshell patch vsi pause --type=merge -p '{patch}'"
        ))?;
        until(system, &get("pause", ".status.powerState"), |s| s == wanted)?;
        ensure!(system.sh(&state)?.trim() == seen);
    }
    remove(system, "pause")
}

#[test]
fn a_bad_image_is_named_with_its_cure_and_nothing_is_left() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let image = |name: &str, spec: Value| json!({"apiVersion": "virtshell.io/v1alpha1", "kind": "Image", "metadata": {"name": name, "namespace": "virtshell"}, "spec": spec});
    let url = system.sh("printf %s $VIRTSHELL_URL")?;
    let guest = system.sh("kubectl -n virtshell get image debian-guest -o 'jsonpath={.spec.downloadUrl}'")?;
    system.apply(&image(
        "bad-404",
        json!({"type": "disk", "downloadUrl": format!("{url}/no-such-image.qcow2")}),
    ))?;
    system.apply(&image(
        "bad-sum",
        json!({"type": "disk", "downloadUrl": guest, "sha256": "0".repeat(64)}),
    ))?;
    for (name, image, type_, words) in [
        ("bad-404", "bad-404", "ImageReady", "no-such-image.qcow2"),
        ("bad-sum", "bad-sum", "ImageReady", "sha256"),
        (
            "bad-none",
            "no-such-image",
            "Accepted",
            "image no-such-image not found",
        ),
    ] {
        system.apply(&instance(name, json!({"image": image})))?;
        until(system, &condition(name, type_), |seen| {
            seen.starts_with("False") && seen.to_lowercase().contains(words)
        })
        .with_context(|| name.to_owned())?;
    }
    // It heals by itself when the reference appears.
    system.apply(&image(
        "no-such-image",
        json!({"type": "disk", "downloadUrl": guest}),
    ))?;
    wait_ready(system, "bad-none")?;
    for name in ["bad-404", "bad-sum", "bad-none"] {
        remove(system, name)?;
    }
    system
        .sh("kubectl -n virtshell delete image bad-404 bad-sum no-such-image")
        .map(drop)
}

#[test]
fn a_foreign_domain_of_the_same_name_is_never_touched() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    system.apply(&instance("taken", json!({"powerState": "Stopped"})))?;
    wait_ready(system, "taken")?;
    let domain = field(system, "taken", ".status.domain.name")?;
    let foreign = format!(
        "<domain type='qemu'><name>{domain}</name><memory>65536</memory><os><type>hvm</type></os></domain>"
    );
    let file = system.state().join("foreign.xml");
    std::fs::write(&file, foreign)?;
    // The agent repairs within milliseconds, so it must not look while the domains change places.
    let virsh = "virsh -q -c qemu:///system";
    system.sh(&format!(
            "agent=$(cut -d ' ' -f 1 $VIRTSHELL_STATE_DIR/run/node); kill -STOP $agent; trap 'kill -CONT $agent' EXIT; \
             {virsh} undefine {domain}; {virsh} define {}",
            file.display()
        ),
    )?;
    let uuid = system.sh(&format!("virsh -c qemu:///system domuuid {domain}"))?;
    let blocked = until(system, &condition("taken", "Ready"), |seen| {
        seen.starts_with("False")
    })?;
    ensure!(
        blocked.contains(&domain),
        "the condition names the domain: {blocked}"
    );
    until(
        system,
        &format!(
            "kubectl get vsh {} -o 'jsonpath={{.status.foreignDomains[*].name}}'",
            system.host()
        ),
        |names| names.contains(&domain),
    )?;
    remove(system, "taken")?;
    ensure!(
        system.sh(&format!("virsh -c qemu:///system domuuid {domain}"))? == uuid,
        "the foreign domain is still there"
    );
    system
        .sh(&format!("virsh -c qemu:///system undefine {domain}"))
        .map(drop)
}

#[test]
fn a_user_the_gateway_does_not_know_is_refused() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let refused =
        system.shell("VIRTSHELL_SECRET_ACCESS_KEY=wrong hack/vscurl GET /virtshell/api/v1/instances")?;
    ensure!(
        !refused.success && refused.stdout.contains("User not authenticated"),
        "{}",
        refused.stdout
    );
    let root = system.sh("VIRTSHELL_URL=$VIRTSHELL_ROOT_URL hack/vscurl GET /hosts/")?;
    ensure!(
        root.contains(system.host()),
        "the bare root has its own listener: {root}"
    );
    Ok(())
}
