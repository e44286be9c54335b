//! The commands of `make`, from the first to the last: up, up again, a killed agent, down, clean; and their refusals.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use virtshell_tests::system::System;
use virtshell_tests::{level, repository};

fn process_id(system: &System, role: &str) -> Result<String> {
    let record = std::fs::read_to_string(system.state().join("run").join(role))?;
    Ok(record.split_whitespace().next().context("a pid")?.to_owned())
}

const GUESTS: &str = "kubectl -n virtshell get vsi -o \
    'jsonpath={range .items[*]}{.metadata.name} {.metadata.generation} {.status.startedAt} {.status.domain.uuid}{\"\\n\"}{end}'";

/// One story in order, for each step stands on the one before.
#[test]
fn up_again_a_killed_agent_down_up_and_clean() -> Result<()> {
    if !level::end_to_end() {
        return Ok(());
    }
    let system = System::start()?;
    let guests = system.sh(GUESTS)?;
    ensure!(guests.lines().count() == 2, "{guests}");

    // Up again: nothing is made again, nothing restarts.
    let processes = ["controller", "node", "gateway"].map(|role| process_id(&system, role).ok());
    let again = system.script("up.sh")?;
    ensure!(again.success, "{}", again.stderr);
    ensure!(system.sh(GUESTS)? == guests);
    ensure!(["controller", "node", "gateway"].map(|role| process_id(&system, role).ok()) == processes);

    // An agent killed in the middle of a creation: the next one finishes it, and the other guests do not notice.
    system.sh("sed 's/hello-kubectl/half-made/' manifests/samples/hello.yaml | kubectl apply -f -")?;
    system.sh(&format!("kill -9 {}", process_id(&system, "node")?))?;
    let up = system.script("up.sh")?;
    ensure!(up.success, "{}", up.stderr);
    system.sh("kubectl -n virtshell wait vsi half-made --for=condition=Ready --timeout=120s")?;
    system.sh("kubectl -n virtshell delete vsi half-made --timeout=60s")?;
    ensure!(system.sh(GUESTS)? == guests);

    // Down: the guests run on.
    let domains = system.sh("kubectl -n virtshell get vsi -o 'jsonpath={.items[*].status.domain.uuid}'")?;
    let qemu = || {
        let found = Command::new("pgrep")
            .args(["-fc", &domains.replace(' ', "|")])
            .output();
        found.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
    };
    ensure!(qemu()? == "2", "two guests run");
    let down = system.script("down.sh")?;
    ensure!(down.success, "{}", down.stderr);
    ensure!(qemu()? == "2", "guests outlive make down");
    ensure!(!system.shell("hack/vscurl GET /virtshell/api/v1/hosts")?.success);

    let up = system.script("up.sh")?;
    ensure!(up.success, "{}", up.stderr);
    ensure!(
        system.sh(GUESTS)? == guests,
        "guests are found again as they were"
    );

    // Clean: nothing is left.
    let clean = system.script("clean.sh")?;
    ensure!(clean.success, "{}", clean.stderr);
    let started = Instant::now();
    while qemu()? != "0" && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(200));
    }
    ensure!(qemu()? == "0", "make clean removes the guests");
    ensure!(!system.data().exists(), "make clean removes what it made");
    Ok(())
}

/// Runs `hack/up.sh` with settings that it must refuse, and returns what it said.
fn refused(settings: &[(&str, &str)], as_user: Option<&str>) -> Result<String> {
    let mut script = repository().join("hack/up.sh");
    let folder = tempfile::Builder::new().prefix("virtshell-refused-").tempdir()?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
    if as_user.is_some() {
        // Root's clone may be where nobody else may read, such as /root.
        let mut copy = Command::new("cp");
        copy.arg("-r").arg(repository().join("hack")).arg(folder.path());
        ensure!(copy.status()?.success(), "hack/ cannot be copied");
        script = folder.path().join("hack/up.sh");
    }
    let mut command = match as_user {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid", user, "--regid", "nogroup", "--clear-groups", "bash"])
                .arg(script);
            command
        }
        None => Command::new(script),
    };
    let output = virtshell_tests::system::without_cargo(&mut command)
        .current_dir(folder.path())
        .env_remove("KUBECONFIG")
        .env("VIRTSHELL_STATE_DIR", folder.path().join("state"))
        .env("VIRTSHELL_DATA_DIR", folder.path().join("data"))
        .env("VIRTSHELL_HOST_NAME", "refused")
        .envs(settings.iter().copied())
        .stdin(std::process::Stdio::null())
        .output()?;
    ensure!(!output.status.success(), "hack/up.sh went on with {settings:?}");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn refusals_name_the_thing_and_the_cure() -> Result<()> {
    if !level::end_to_end() {
        return Ok(());
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = listener.local_addr()?.port().to_string();
    let nowhere = tempfile::NamedTempFile::new()?;
    std::fs::write(
        nowhere.path(),
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\n\
         users: [{name: c, user: {}}]\ncontexts: [{name: c, context: {cluster: c, user: c}}]\n",
    )?;
    let nowhere = nowhere.path().display().to_string();
    let taken_port = format!("port {taken} is taken");
    for (rule, settings, user, what, cure) in [
        ("no root", vec![], Some("nobody"), "only root may", "sudo make up"),
        (
            "a port that is taken",
            vec![("VIRTSHELL_GATEWAY_PORT", taken.as_str())],
            None,
            taken_port.as_str(),
            "set VIRTSHELL_GATEWAY_PORT",
        ),
        (
            "a cluster that does not answer",
            vec![("KUBECONFIG", nowhere.as_str())],
            None,
            "does not answer",
            "correct KUBECONFIG",
        ),
    ] {
        let said = refused(&settings, user)?;
        ensure!(said.contains(what) && said.contains(cure), "{rule}: {said}");
    }
    Ok(())
}
