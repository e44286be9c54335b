//! What is assigned to a host runs in its guests: in a real virtual machine through its agent, and in a real container.
//!
//! All tests share one system. The one that kills the agent waits until no other is in the middle of its story.

use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use virtshell_tests::level;
use virtshell_tests::system::{System, quoted};

/// Emulated guests on two busy cores boot in 4 to 15 s; what takes longer than this is broken, not slow.
const LIMIT: Duration = Duration::from_mins(2);

/// The virtual machine that `hack/up.sh` leaves, and the container of the samples.
const MACHINE: &str = "hello-kubectl";
const CONTAINER: &str = "hello-container";

/// Held while a story needs its agent to live on.
static AGENT: RwLock<()> = RwLock::new(());

/// The shared system with both guests running, or None where this level is allowed to be left out.
fn system() -> Option<&'static System> {
    static GUESTS: std::sync::Once = std::sync::Once::new();
    let system = level::end_to_end().then(|| System::shared().expect("hack/up.sh brings the system up"))?;
    GUESTS.call_once(|| {
        let line = "kubectl apply -f manifests/samples/container.yaml; \
            kubectl -n virtshell wait vsi hello-kubectl hello-container --for=condition=Ready --timeout=120s";
        system.sh(line).expect("two guests run");
    });
    Some(system)
}

/// The targets of an assignment: these Instances, with the uids they have.
fn targets(system: &System, names: &[&str]) -> Result<Vec<Value>> {
    let target = |name: &&str| {
        let line = format!("kubectl -n virtshell get vsi {name} -o 'jsonpath={{.metadata.uid}}'");
        Ok(json!({"name": name, "uid": system.sh(&line)?}))
    };
    names.iter().map(target).collect()
}

/// Work for the system's host, as the controller hands it out.
struct Work<'a> {
    name: &'a str,
    kind: &'a str,
    params: Value,
    targets: Vec<Value>,
    seconds: u32,
}

impl<'a> Work<'a> {
    fn command(name: &'a str, command: &str, targets: Vec<Value>) -> Self {
        Self {
            name,
            kind: "execute_command",
            params: json!({"command": command}),
            targets,
            seconds: 100,
        }
    }

    fn assign(&self, system: &System) -> Result<()> {
        system.apply(&json!({
                "apiVersion": "virtshell.io/v1alpha1", "kind": "TaskAssignment",
                "metadata": {"name": self.name, "namespace": "virtshell"},
                "spec": {
                    "task": {"name": self.name, "uid": self.name}, "host": system.host(), "attempt": 0,
                    "type": self.kind, "params": self.params, "timeoutSeconds": self.seconds, "targets": self.targets,
                },
            }),
        )
    }

    /// Assigns it and returns its results when all are there, in the order of the targets.
    fn done(&self, system: &System) -> Result<Vec<Value>> {
        self.assign(system)?;
        results(system, self.name, |all| {
            all.len() == self.targets.len() && all.iter().all(|r| matches!(state(r), "Succeeded" | "Failed"))
        })
    }
}

/// The results of an assignment when `enough` of them are there.
fn results(system: &System, name: &str, enough: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
    let started = Instant::now();
    loop {
        let seen = system.sh(&format!("kubectl -n virtshell get vsta {name} -o json"))?;
        let seen: Value = serde_json::from_str(&seen)?;
        let all = seen["status"]["results"].as_array().cloned().unwrap_or_default();
        if enough(&all) {
            return Ok(all);
        }
        ensure!(started.elapsed() < LIMIT, "{name}: after {LIMIT:?} still {all:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn state(result: &Value) -> &str {
    result["state"].as_str().unwrap_or_default()
}

fn output(result: &Value) -> &str {
    result["output"].as_str().unwrap_or_default()
}

/// Stores a file through the REST API; returns its URL there.
fn upload(system: &System, folder: &str, name: &str, path: &str) -> Result<String> {
    let part = |head: &str| format!("--cut-here\\r\\nContent-Disposition: form-data; {head}\\r\\n\\r\\n");
    let line = format!(
        "body=$(mktemp); {{ printf -- '{}{folder}\\r\\n{}'; cat {path}; printf '\\r\\n--cut-here--\\r\\n'; }} >$body; \
         CONTENT_TYPE='multipart/form-data; boundary=cut-here' hack/vscurl POST /virtshell/api/v1/files @$body; rm $body",
        part("name=\"folder_name\""),
        part(&format!("name=\"file_data\"; filename=\"{name}\""))
    );
    let answer: Value = serde_json::from_str(&system.sh(&line)?)?;
    let uri = answer["uri"].as_str().context("an uri")?;
    Ok(uri.to_owned())
}

/// What a command in a guest prints, by another way than the agent's.
fn in_guest(system: &System, name: &str, command: &str) -> Result<String> {
    system.sh(&format!("hack/guest-exec {name} {}", quoted(command)))
}

#[test]
fn a_command_answers_with_output_and_exit_code() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let _agent = AGENT.read().unwrap_or_else(PoisonError::into_inner);
    let both = targets(system, &[MACHINE, CONTAINER])?;
    let text = "hostname; echo \"it's $HOME\" >&2; [ $(hostname) = hello-container ] || exit 7";
    let results = Work::command("answers", text, both).done(system)?;
    let expected = [
        (MACHINE, "Failed", "CommandFailed", 7),
        (CONTAINER, "Succeeded", "", 0),
    ];
    for (result, (name, state, reason, code)) in results.iter().zip(expected) {
        ensure!(
            result["name"] == name && result["state"] == state && result["exitCode"] == code,
            "{result}"
        );
        ensure!(
            result["reason"].as_str().unwrap_or_default() == reason,
            "{result}"
        );
        ensure!(output(result) == format!("{name}\nit's /root\n"), "{result}");
        ensure!(result["truncated"] == false, "{result}");
    }
    Ok(())
}

#[test]
fn a_task_reaches_its_guests_and_says_how_it_went() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let _agent = AGENT.read().unwrap_or_else(PoisonError::into_inner);
    system.apply(&json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Task", "metadata": {"name": "names", "namespace": "virtshell"},
            "spec": {
                "description": "Ask for names", "type": "execute_command", "params": {"command": "hostname"},
                "targets": [{"kind": "Instance", "name": MACHINE}, {"kind": "Instance", "name": CONTAINER}],
            },
        }),
    )?;
    let wait = "kubectl -n virtshell wait tasks.virtshell.io names --for=jsonpath='{.status.state}'=Succeeded --timeout=60s; \
        kubectl -n virtshell get tasks.virtshell.io names -o 'jsonpath={.status.counts}'";
    let counts = system.sh(wait)?;
    ensure!(
        counts.ends_with(r#"{"failed":0,"succeeded":2,"targets":2}"#),
        "{counts}"
    );
    Ok(())
}

#[test]
fn a_long_output_is_cut_and_says_so() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let _agent = AGENT.read().unwrap_or_else(PoisonError::into_inner);
    let both = targets(system, &[MACHINE, CONTAINER])?;
    for result in Work::command("long", "seq 1 100000", both).done(system)? {
        ensure!(
            result["state"] == "Succeeded" && result["truncated"] == true,
            "{}",
            result["state"]
        );
        ensure!(output(&result).len() == 64 << 10 && output(&result).starts_with("1\n2\n3\n"));
    }
    Ok(())
}

#[test]
fn a_command_past_its_time_is_ended_with_all_it_started() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let _agent = AGENT.read().unwrap_or_else(PoisonError::into_inner);
    let work = Work {
        seconds: 5,
        ..Work::command(
            "late",
            "sleep 4321; echo over",
            targets(system, &[MACHINE, CONTAINER])?,
        )
    };
    for result in work.done(system)? {
        ensure!(
            result["state"] == "Failed" && result["reason"] == "TimedOut",
            "{result}"
        );
    }
    for guest in [MACHINE, CONTAINER] {
        let left = in_guest(
            system,
            guest,
            "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 432[1]' || true",
        )?;
        ensure!(left == "0", "{guest}: {left} are left");
    }
    Ok(())
}

#[test]
fn work_on_one_instance_is_done_in_order() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let _agent = AGENT.read().unwrap_or_else(PoisonError::into_inner);
    let machine = targets(system, &[MACHINE])?;
    let first = Work::command("order-1", "sleep 2; echo 1 >>/tmp/order", machine.clone());
    first.assign(system)?;
    // Creation times have whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    let second = Work::command("order-2", "echo 2 >>/tmp/order; cat /tmp/order", machine);
    let results = second.done(system)?;
    ensure!(output(&results[0]) == "1\n2\n", "{results:?}");
    Ok(())
}

#[test]
fn files_are_copied_and_read_back() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let _agent = AGENT.read().unwrap_or_else(PoisonError::into_inner);
    let file = |name: &str, spec: Value| {
        system.apply(&json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "File",
            "metadata": {"name": name, "namespace": "virtshell"}, "spec": spec,
        }))
    };
    // More than one chunk of the guest agent, and every byte.
    let bytes: Vec<u8> = (0..60_000u32)
        .map(|n| (n % 251) as u8 ^ (n / 251) as u8)
        .collect();
    let path = system.state().join("big.bin");
    std::fs::write(&path, &bytes)?;
    let base64 = system.sh(&format!("base64 -w 0 {}", path.display()))?;
    let sum = system.sh(&format!("sha256sum <{}", path.display()))?;
    let six = format!(
        "for n in 1 2 3 4 5 6; do cat {}; done | sha256sum",
        path.display()
    );
    let six = system.sh(&six)?;
    file(
        "big",
        json!({"displayName": "big file.bin", "folder": "conf", "size": 60_000, "content": {"inline": base64}}),
    )?;
    file(
        "small",
        json!({"displayName": "my.cnf", "folder": "conf", "size": 3, "content": {"inline": "aGkK"}}),
    )?;
    file("other", json!({"folder": "elsewhere", "content": {"inline": ""}}))?;
    file("blob", json!({"content": {"blob": "0".repeat(64)}}))?;
    // Too large for the API server: with the gateway.
    let large = system.state().join("large.bin");
    std::fs::write(&large, bytes.repeat(5))?;
    upload(system, "conf", "large.bin", &large.to_string_lossy())?;

    let both = targets(system, &[MACHINE, CONTAINER])?;
    let copy = |name: &'static str, params: Value| Work {
        name,
        kind: "copy_files",
        params,
        targets: both.clone(),
        seconds: 100,
    };
    let params =
        json!({"file": "big", "destination": "$HOME/a dir/", "mode": "640", "owner": "1", "group": "1"});
    for result in copy("copy-file", params).done(system)? {
        ensure!(result["state"] == "Succeeded", "{result}");
        ensure!(output(&result) == "/root/a dir/big file.bin", "{result}");
    }
    let folder = copy(
        "copy-folder",
        json!({"folder": "conf", "destination": "/tmp/conf"}),
    );
    for result in folder.done(system)? {
        ensure!(result["state"] == "Succeeded", "{result}");
    }
    for guest in [MACHINE, CONTAINER] {
        let seen = in_guest(
            system,
            guest,
            "stat -c '%a %u %g' '/root/a dir/big file.bin'; sha256sum <'/root/a dir/big file.bin'",
        )?;
        ensure!(seen == format!("640 1 1\n{sum}"), "{guest}: {seen}");
        let seen = in_guest(
            system,
            guest,
            "ls -A1 /tmp/conf; cat /tmp/conf/my.cnf; cat '/tmp/conf/big file.bin' /tmp/conf/large.bin | sha256sum",
        )?;
        ensure!(
            seen == format!("big file.bin\nlarge.bin\nmy.cnf\nhi\n{six}"),
            "{guest}: {seen}"
        );
    }
    for (name, params, reason) in [
        (
            "copy-blob",
            json!({"file": "blob", "destination": "/tmp/x"}),
            "FileUnreadable",
        ),
        (
            "copy-none",
            json!({"file": "no-such-file", "destination": "/tmp/x"}),
            "FileNotFound",
        ),
        (
            "copy-onto",
            json!({"file": "small", "destination": "/proc/version"}),
            "WriteFailed",
        ),
    ] {
        for result in copy(name, params).done(system)? {
            ensure!(
                result["state"] == "Failed" && result["reason"] == reason,
                "{name}: {result}"
            );
        }
    }
    Ok(())
}

#[test]
fn what_cannot_be_done_says_why() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let _agent = AGENT.read().unwrap_or_else(PoisonError::into_inner);
    system.apply(&json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": "off", "namespace": "virtshell"},
            "spec": {"image": "debian-guest", "memoryMiB": 192, "diskMiB": 1024, "powerState": "Stopped"},
        }),
    )?;
    system.sh("kubectl -n virtshell wait vsi off --for=condition=Ready --timeout=60s")?;
    let mut all = targets(system, &["off"])?;
    // Nobody's uid, and the uid of a guest under a name that is not its own.
    all.push(json!({"name": "nobody", "uid": "11111111-2222-3333-4444-555555555555"}));
    all.push(json!({"name": "not-its-name", "uid": targets(system, &[MACHINE])?[0]["uid"]}));
    let results = Work::command("cannot", "touch /root/cannot", all).done(system)?;
    let reasons: Vec<&Value> = results.iter().map(|r| &r["reason"]).collect();
    ensure!(reasons == ["NotRunning", "NotFound", "NotFound"], "{results:?}");

    let install = Work {
        name: "packages",
        kind: "install_packages",
        params: json!({"packages": ["nginx"]}),
        targets: targets(system, &[CONTAINER])?,
        seconds: 100,
    };
    let results = install.done(system)?;
    ensure!(
        results[0]["exitCode"] == 127 && output(&results[0]).contains("no package manager"),
        "{results:?}"
    );
    system
        .sh("kubectl -n virtshell delete vsi off --timeout=60s")
        .map(drop)
}

#[test]
fn a_command_whose_agent_was_killed_is_not_run_twice() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let _agent = AGENT.write().unwrap_or_else(PoisonError::into_inner);
    let both = targets(system, &[MACHINE, CONTAINER])?;
    let work = Work::command("once", "echo run >>/root/once; sleep 6", both.clone());
    work.assign(system)?;
    results(system, "once", |all| {
        all.len() == 2 && all.iter().all(|r| state(r) == "Started")
    })?;
    for guest in [MACHINE, CONTAINER] {
        let started = Instant::now();
        while in_guest(system, guest, "cat /root/once 2>/dev/null || true")?.is_empty() {
            ensure!(started.elapsed() < LIMIT, "{guest}: the command does not start");
        }
    }
    let record = std::fs::read_to_string(system.state().join("run/node"))?;
    let process = record.split_whitespace().next().context("a pid")?;
    system.sh(&format!("kill -9 {process}"))?;
    // Asked for while nobody listens.
    let next = Work::command("once-more", "cat /root/once", both);
    next.assign(system)?;
    let up = system.script("up.sh")?;
    ensure!(up.success, "{}", up.stderr);

    for result in work.done(system)? {
        ensure!(
            result["state"] == "Failed" && result["reason"] == "Interrupted",
            "{result}"
        );
    }
    for result in next.done(system)? {
        ensure!(
            result["state"] == "Succeeded" && output(&result) == "run\n",
            "the command ran once: {result}"
        );
    }
    Ok(())
}

/// Makes a Git repository with this `run.sh` the builder in the container: what a server of the user's own would be.
fn publish(system: &System, domain: &str, run: &str) -> Result<()> {
    let script = system.state().join("run.sh");
    std::fs::write(&script, run)?;
    let line = format!(
        "folder=$(mktemp -d); cd $folder; git init -q work; cp {} work/run.sh; git -C work add run.sh; \
         git -C work -c user.name=t -c user.email=t@example.org commit -q -m run; mkdir srv; \
         git clone -q --bare work srv/builder.git; \
         tar -c srv | virsh -q -c lxc:///system lxc-enter-namespace --noseclabel {domain} -- /bin/tar -x -C /; rm -rf $folder",
        script.display()
    );
    system.sh(&line).map(drop)
}

/// Gives the container this machine's Git, with the libraries it links to.
fn install_git(system: &System, domain: &str) -> Result<()> {
    let line = format!(
        "git=$(command -v git); libraries=$(ldd $git | grep -o '/[^ ]*'); \
         tar -P -ch $git $(command -v git-upload-pack) $libraries | \
         virsh -q -c lxc:///system lxc-enter-namespace --noseclabel {domain} -- /bin/tar -x -C /"
    );
    system.sh(&line).map(drop)
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story, in order")]
fn a_builder_runs_once_and_again_only_when_asked() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let _agent = AGENT.write().unwrap_or_else(PoisonError::into_inner);
    let object = |kind: &str, name: &str, spec: Value| {
        system.apply(&json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": "virtshell"}, "spec": spec,
        }))
    };
    let field = |path: &str| {
        system.sh(&format!(
            "kubectl -n virtshell get vsi built -o 'jsonpath={{{path}}}'"
        ))
    };
    let ready = |reason: &str| -> Result<String> {
        let started = Instant::now();
        loop {
            let seen = field(".status.conditions[?(@.type==\"Ready\")].reason")?;
            if seen == reason {
                return field(".status.message");
            }
            ensure!(
                started.elapsed() < LIMIT,
                "Ready is still {seen}, not {reason}: {}",
                field(".status")?
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    let again = |token: &str| {
        let patch = json!({"spec": {"restartToken": token, "restartMode": "Force"}});
        system.sh(&format!(
            "kubectl -n virtshell patch vsi built --type=merge -p '{patch}'"
        ))
    };

    // Image and variables are stored files: the one a blob of the gateway, the other in the API server.
    let root = system
        .sh("kubectl -n virtshell get images.virtshell.io debian-root -o 'jsonpath={.spec.downloadUrl}'")?;
    let root = upload(
        system,
        "roots",
        "debian root.tar.gz",
        root.trim_start_matches("file://"),
    )?;
    let vars = system.state().join("vars.yaml");
    std::fs::write(&vars, "# for the builder\ngreeting: it's me\n")?;
    let vars = upload(system, "", "vars.yaml", &vars.to_string_lossy())?;
    object(
        "Image",
        "stored-root",
        json!({"type": "lxc-container", "downloadUrl": root}),
    )?;
    object(
        "Provisioner",
        "builds",
        json!({"image": "stored-root", "driver": "lxc", "memoryMiB": 64, "diskMiB": 64, "builder": "file:///srv/builder.git", "executor": "sh run.sh"}),
    )?;
    object(
        "Instance",
        "built",
        json!({"provisioner": "builds", "varsFrom": vars}),
    )?;

    // No Git in the guest: said with what the guest said.
    let message = ready("CloneFailed")?;
    ensure!(
        message.contains("exit code 127") && message.contains("git: not found"),
        "{message}"
    );
    ensure!(field(".status.phase")? == "Failed" && field(".status.provisioned")? == "false");
    let domain = field(".status.domain.name")?;
    install_git(system, &domain)?;

    // The executor fails: its last words are in the message.
    publish(system, &domain, "echo working; echo no such package >&2; exit 3")?;
    again("second")?;
    let message = ready("ExecutorFailed")?;
    ensure!(
        message.ends_with("exit code 3: working\nno such package"),
        "{message}"
    );

    // The agent is killed while it runs: it is not run again.
    publish(system, &domain, "echo run >>/root/runs; sleep 4")?;
    again("third")?;
    let started = Instant::now();
    while in_guest(system, "built", "cat /root/runs 2>/dev/null || true")
        .unwrap_or_default()
        .is_empty()
    {
        ensure!(started.elapsed() < LIMIT, "the executor does not start");
    }
    ensure!(field(".status.phase")? == "Provisioning");
    let record = std::fs::read_to_string(system.state().join("run/node"))?;
    system.sh(&format!(
        "kill -9 {}",
        record.split_whitespace().next().context("a pid")?
    ))?;
    let up = system.script("up.sh")?;
    ensure!(up.success, "{}", up.stderr);
    ready("Interrupted")?;
    ensure!(
        in_guest(system, "built", "cat /root/runs")? == "run",
        "it ran once"
    );

    // Asked for again, it runs to its end, and restarts do not repeat it.
    let run = "echo \"$VS_INSTANCE_NAME|$VS_ENVIROMENT|$VS_GREETING|$VS_DEPENDS|$PWD\" >>/root/told";
    publish(system, &domain, run)?;
    again("fourth")?;
    ready("Running")?;
    ensure!(field(".status.phase")? == "Running" && field(".status.provisioned")? == "true");
    again("fifth")?;
    let started = Instant::now();
    while field(".status.lastRestartToken")? != "fifth" {
        ensure!(started.elapsed() < LIMIT, "it is not restarted");
    }
    ready("Running")?;
    let told = in_guest(system, "built", "cat /root/told")?;
    ensure!(told == "built|default|it's me|[]|/root/builder", "{told}");
    let metadata =
        format!("virsh -c lxc:///system metadata {domain} https://virtshell.io/domain/v1 --config");
    ensure!(
        system.sh(&metadata)?.contains("provisioned=\"true\"")
            || system.sh(&metadata)?.contains("provisioned='true'")
    );
    system.sh("kubectl -n virtshell delete vsi built --timeout=60s; kubectl -n virtshell delete provisioners.virtshell.io/builds images.virtshell.io/stored-root").map(drop)
}
