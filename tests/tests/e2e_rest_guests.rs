//! Rows of the VirtShell v1 contract that act on guests, on real ones: what is asked for over HTTP, with signed requests, is looked
//! for in the guest itself, by another way than the gateway's.
//!
//! The guests are a virtual machine (`hello-rest`), two containers with a small Debian and its apt (`web_1`, `web_2`, made by
//! one request), and small containers of each story's own. The gateway's own suite has every row with every spelling, and its
//! answers; here is what the answers promise.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use virtshell_crds::names::object_name;
use virtshell_tests::level;
use virtshell_tests::system::{System, quoted};

/// Emulated guests on two busy cores boot in 4 to 15 s; what takes longer than this is broken, not slow.
const LIMIT: Duration = Duration::from_mins(2);
/// The virtual machine that `hack/up.sh` makes with a REST call.
const MACHINE: &str = "hello-rest";
/// Containers with a package manager.
const DEBIANS: [&str; 2] = ["web_1", "web_2"];

/// The shared system with all guests that the stories share, or None where this level is allowed to be left out.
fn system() -> Option<&'static System> {
    static GUESTS: std::sync::Once = std::sync::Once::new();
    let system = level::end_to_end().then(|| System::shared().expect("hack/up.sh brings the system up"))?;
    GUESTS.call_once(|| debians(system).expect("two containers with Debian run"));
    Some(system)
}

/// Makes the two containers with Debian, by one request.
fn debians(system: &System) -> Result<()> {
    let root = system.sh("hack/lxc-root.sh --debian")?;
    let image =
        json!({"name": "debian-apt", "type": "lxc-container", "download_url": format!("file://{root}")});
    ask(system, "POST", "/images", &image)?;
    let launch = json!({
        "name": "web", "launch": "2", "image": "debian-apt", "driver": "lxc", "cpus": 1, "memory": 256, "hdsize": "1GB", "tag": "web",
    });
    succeeds(system, "POST", "/instances", &launch).map(drop)
}

/// The answer to a signed request.
fn ask(system: &System, method: &str, path: &str, body: &Value) -> Result<Value> {
    let body = if body.is_null() {
        String::new()
    } else {
        quoted(&body.to_string())
    };
    let answer = system.sh(&format!("hack/vscurl {method} /virtshell/api/v1{path} {body}"))?;
    serde_json::from_str(&answer).with_context(|| format!("{method} {path}: {answer}"))
}

fn get(system: &System, path: &str) -> Result<Value> {
    ask(system, "GET", path, &Value::Null)
}

/// Asks for work, and returns its task when that has ended.
fn done(system: &System, method: &str, path: &str, body: &Value) -> Result<Value> {
    let answer = ask(system, method, path, body)?;
    let uuid = answer["task"]
        .as_str()
        .with_context(|| format!("{path}: {answer}"))?;
    let began = Instant::now();
    loop {
        let task = get(system, &format!("/tasks/{uuid}"))?;
        if task["status"] == "sucess" || task["status"] == "failed" {
            return Ok(task);
        }
        ensure!(began.elapsed() < LIMIT, "{path}: after {LIMIT:?} still {task}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Asks for work that must end well.
fn succeeds(system: &System, method: &str, path: &str, body: &Value) -> Result<Value> {
    let task = done(system, method, path, body)?;
    ensure!(task["status"] == "sucess", "{method} {path} {body}: {task}");
    Ok(task)
}

/// A member of an answer.
fn text(answer: &Value, member: &str) -> String {
    answer[member].as_str().unwrap_or_default().to_owned()
}

/// Makes a small container. Its disk costs nothing, and it starts in no time.
fn container(system: &System, name: &str) -> Result<()> {
    let body = json!({"name": name, "image": "debian-root", "driver": "lxc", "cpus": 1, "memory": 64, "hdsize": "64MB"});
    succeeds(system, "POST", "/instances", &body).map(drop)
}

fn delete(system: &System, name: &str) -> Result<Value> {
    succeeds(system, "DELETE", &format!("/instances/{name}"), &Value::Null)
}

/// An Instance as Kubernetes has it.
fn object(system: &System, name: &str) -> Result<Value> {
    let line = format!("kubectl -n virtshell get vsi {} -o json", object_name(name));
    Ok(serde_json::from_str(&system.sh(&line)?)?)
}

/// What a command in a guest prints, by another way than the gateway's.
fn inside(system: &System, name: &str, command: &str) -> Result<String> {
    let line = format!("hack/guest-exec {} {}", object_name(name), quoted(command));
    system.sh(&line)
}

/// What virsh says of a container's domain: its state, and its id, which is another one after each start.
fn domain(system: &System, name: &str) -> Result<String> {
    let uuid = get(system, &format!("/instances/{name}"))?["uuid"].clone();
    let uuid = uuid.as_str().context("a uuid")?;
    system.sh(&format!(
        "echo $(virsh -q -c lxc:///system domstate {uuid}) $(virsh -q -c lxc:///system domid {uuid})"
    ))
}

/// Stores a file in a folder, or, with an uuid, another content of it; returns its metadata.
fn upload(system: &System, folder: &str, path: &Path, uuid: Option<&str>) -> Result<Value> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = |head: &str| format!("--cut-here\r\nContent-Disposition: form-data; {head}\r\n\r\n");
    let mut form = Vec::new();
    if uuid.is_none() {
        form.extend(format!("{}{folder}\r\n", part("name=\"folder_name\"")).into_bytes());
    }
    form.extend(part(&format!("name=\"file_data\"; filename=\"{name}\"")).into_bytes());
    form.extend(std::fs::read(path)?);
    form.extend(b"\r\n--cut-here--\r\n");
    let body = tempfile::NamedTempFile::new()?;
    std::fs::write(body.path(), form)?;
    let request = uuid.map_or_else(
        || "POST /virtshell/api/v1/files".to_owned(),
        |uuid| format!("PUT /virtshell/api/v1/files/{uuid}"),
    );
    let line = format!(
        "CONTENT_TYPE='multipart/form-data; boundary=cut-here' hack/vscurl {request} @{}",
        body.path().display()
    );
    Ok(serde_json::from_str(&system.sh(&line)?)?)
}

// --- Made and removed -------------------------------------------------------------------------------------------------

#[test]
fn v_099_v_103_v_106_v_114_what_was_asked_for_runs() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let parent = get(system, "/instances/web")?;
    ensure!(
        parent["launched"] == json!(DEBIANS) && parent["status"] == "running",
        "{parent}"
    );
    for name in DEBIANS {
        let seen = get(system, &format!("/instances/{name}"))?;
        ensure!(
            seen["status"] == "running" && seen["driver"] == "lxc" && seen["host"] == system.host(),
            "{seen}"
        );
        ensure!(domain(system, name)?.starts_with("running "), "{name}");
        let hostname = inside(system, name, "hostname; . /etc/os-release; echo $ID")?;
        ensure!(hostname == format!("{}\ndebian", object_name(name)), "{hostname}");
        let size = inside(system, name, "df -k --output=size / | tail -n 1")?;
        let mib = size.trim().parse::<i64>()? / 1024;
        // What the file system takes for itself is its own.
        ensure!((900..=1024).contains(&mib), "{name}: a root of {mib} MiB");
        let kib = system.sh(&format!(
            "virsh -q -c lxc:///system dominfo {} | awk '/^Max memory/ {{print $3}}'",
            seen["uuid"]
        ))?;
        ensure!(kib == "262144", "{name}: {kib} KiB");
    }
    Ok(())
}

#[test]
fn v_102_v_105_v_112_v_115_what_is_deleted_is_gone_with_its_disk() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    for (name, by_uuid) in [("v102", false), ("v105", true)] {
        container(system, name)?;
        let made = object(system, name)?;
        let uuid = made["metadata"]["uid"].as_str().context("a uid")?;
        let disk = made["status"]["disks"][0]["path"]
            .as_str()
            .context("a disk")?
            .to_owned();
        ensure!(Path::new(&disk).exists(), "{disk}");
        let task = delete(system, if by_uuid { uuid } else { name })?;
        ensure!(
            task["type"] == "delete_instance" && task["object_uuid"] == uuid,
            "{task}"
        );
        let domains = system.sh("virsh -q -c lxc:///system list --all --uuid")?;
        ensure!(!domains.contains(uuid), "{name} still has a domain");
        ensure!(!Path::new(&disk).exists(), "{disk} is still there");
        let gone = system.shell(&format!("hack/vscurl GET /virtshell/api/v1/instances/{name}"))?;
        ensure!(
            !gone.success && gone.stdout.contains("not found"),
            "{}",
            gone.stdout
        );
    }
    Ok(())
}

// --- Power ------------------------------------------------------------------------------------------------------------

#[test]
fn v_017_v_018_v_019_v_171_v_173_power() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let names = ["grid_1", "grid_2"];
    for name in names {
        container(system, name)?;
    }
    let uuid = get(system, "/instances/grid_1")?["uuid"].clone();
    let uuid = uuid.as_str().context("a uuid")?;
    let by_body = json!({"name": "grid_1"});
    let by_path = |verb: &str| format!("/instances/{verb}_instance/grid_1");
    let by_uuid = |verb: &str| format!("/instances/{verb}_instance/{uuid}");
    let call = |verb: &str| format!("/instances/{verb}_instance");
    for (row, method, stop, start, body) in [
        ("V-018, V-017", "POST", call("stop"), call("start"), &by_body),
        ("V-171", "PUT", by_path("stop"), by_path("start"), &Value::Null),
        ("V-173", "POST", by_uuid("stop"), by_uuid("start"), &Value::Null),
    ] {
        let before = domain(system, "grid_1")?;
        succeeds(system, method, &stop, body)?;
        ensure!(domain(system, "grid_1")? == "shut off -", "{row}: stopped");
        ensure!(get(system, "/instances/grid_1")?["status"] == "stopped", "{row}");
        succeeds(system, method, &start, body)?;
        let after = domain(system, "grid_1")?;
        ensure!(
            after.starts_with("running ") && after != before,
            "{row}: {before}, {after}"
        );
        ensure!(get(system, "/instances/grid_1")?["status"] == "running", "{row}");
    }
    let all = json!({"instances": [{"name": "grid_[1:5]"}]});
    for (row, method, path, body, restarted) in [
        ("V-019", "POST", call("restart"), &all, &names[..]),
        ("V-171", "PUT", by_path("restart"), &Value::Null, &names[..1]),
        ("V-173", "POST", by_uuid("restart"), &Value::Null, &names[..1]),
    ] {
        let before: Vec<String> = names.iter().map(|n| domain(system, n)).collect::<Result<_>>()?;
        let task = succeeds(system, method, &path, body)?;
        let objects = task["objects"].as_array().map_or(1, Vec::len);
        ensure!(objects == restarted.len(), "{row}: {task}");
        for (name, before) in names.iter().zip(before) {
            let after = domain(system, name)?;
            ensure!(
                after.starts_with("running ") && (after != before) == restarted.contains(name),
                "{row}: {name}: {before}, {after}"
            );
        }
    }
    names.iter().try_for_each(|name| delete(system, name).map(drop))
}

// --- Clones -----------------------------------------------------------------------------------------------------------

#[test]
fn v_020_v_172_v_173_a_clone_has_the_content_of_its_source_and_a_life_of_its_own() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    container(system, "source")?;
    inside(system, "source", "echo from the source >/root/mark; sync")?;
    let source = get(system, "/instances/source")?;
    let uuid = source["uuid"].as_str().context("a uuid")?;
    let clones = [
        (
            "V-020",
            "copy",
            "POST",
            String::new(),
            json!({"name": "source", "new_name": "copy"}),
        ),
        ("V-172", "source_clone", "PUT", "/source".to_owned(), Value::Null),
        ("V-173", "source_clone_2", "POST", format!("/{uuid}"), Value::Null),
    ];
    for (row, name, method, path, body) in &clones {
        let task = succeeds(system, method, &format!("/instances/clone_instance{path}"), body)?;
        let clone = get(system, &format!("/instances/{name}"))?;
        ensure!(task["object_uuid"] == clone["uuid"], "{row}: {task}");
        ensure!(
            clone["status"] == "running"
                && clone["uuid"] != source["uuid"]
                && clone["host"] == source["host"],
            "{row}: {clone}"
        );
        ensure!(
            inside(system, name, "cat /root/mark; hostname")?
                == format!("from the source\n{}", object_name(name)),
            "{row}"
        );
        inside(system, name, "echo changed >/root/mark")?;
    }
    ensure!(inside(system, "source", "cat /root/mark")? == "from the source");
    ensure!(get(system, "/instances/source")?["status"] == "running");
    for (_, name, ..) in &clones {
        delete(system, name)?;
    }
    delete(system, "source").map(drop)
}

// --- Work inside ------------------------------------------------------------------------------------------------------

#[test]
fn v_021_v_174_a_command_runs_in_every_guest_that_is_meant() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let [one, two] = DEBIANS;
    for (selectors, meant) in [
        (
            json!([{"name": MACHINE}, {"pattern": "web_[1:5]"}]),
            &[MACHINE, one, two][..],
        ),
        (json!([{"name": MACHINE}]), &[MACHINE]),
        (json!([{"tag": "web"}]), &[one, two]),
        (json!([{"name": "web_*"}]), &[one, two]),
    ] {
        let body = json!({"instances": selectors, "command": "hostname | tee -a /root/v021"});
        let task = succeeds(system, "POST", "/instances/execute_command", &body)?;
        let results = task["results"].as_array().context("results")?;
        let said: Vec<_> = results
            .iter()
            .map(|r| (text(r, "name"), text(r, "output")))
            .collect();
        let expected: Vec<_> = meant
            .iter()
            .map(|name| ((*name).to_owned(), object_name(name) + "\n"))
            .collect();
        ensure!(said == expected, "{selectors}: {task}");
    }
    for (name, times) in [(MACHINE, 2), (one, 3), (two, 3)] {
        let seen = inside(system, name, "cat /root/v021")?;
        ensure!(seen.lines().eq(vec![object_name(name); times]), "{name}: {seen}");
    }
    // One that fails: the others are done all the same.
    let command = format!(
        "touch /root/v174; [ $(hostname) != {} ] || exit 7",
        object_name(one)
    );
    let body = json!({"instances": [MACHINE, one], "command": command});
    let task = done(system, "POST", "/instances/execute_command/", &body)?;
    ensure!(
        task["status"] == "failed"
            && text(&task, "log").contains("1 of 2 targets succeeded")
            && task["results"][1]["exit_code"] == 7,
        "{task}"
    );
    inside(system, MACHINE, "rm /root/v174").map(drop)
}

#[test]
fn v_022_v_175_v_176_v_177_v_178_stored_files_arrive_in_the_guests() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let content = "[mysqld]\nport = 3306";
    let path = folder.path().join("my.cnf");
    std::fs::write(&path, content)?;
    let file = upload(system, "v022", &path, None)?;
    // Too large for the API server: the node asks the gateway for it.
    let large = folder.path().join("large.bin");
    std::fs::write(
        &large,
        (0..300_000_u32).map(|n| (n % 251) as u8).collect::<Vec<_>>(),
    )?;
    upload(system, "v022", &large, None)?;
    let sum = system.sh(&format!("sha256sum <{}", large.display()))?;
    let all = json!([{"name": MACHINE}, {"name": "web_[1:5]"}]);
    let every = [MACHINE, DEBIANS[0], DEBIANS[1]];
    for (row, call, source, destination, targets, reached) in [
        (
            "V-022",
            "copy_file",
            ("uuid_file", &file["uuid"]),
            "$HOME/v022/my.cnf",
            &all,
            &every[..],
        ),
        (
            "V-175",
            "copy_files",
            ("uuid_file", &file["uuid"]),
            "/tmp/v175/",
            &all,
            &every,
        ),
        (
            "V-176",
            "copy_files",
            ("uuid_file", &file["uuid"]),
            "/tmp/v176",
            &json!([{"name": "web_1"}]),
            &every[1..2],
        ),
        (
            "V-177",
            "copy_files",
            ("folder_name", &json!("v022")),
            "/tmp/v177",
            &all,
            &every,
        ),
        (
            "V-178",
            "copy_files",
            ("path", &file["uri"]),
            "/tmp/v178/",
            &json!([{"tag": "web"}]),
            &every[1..],
        ),
    ] {
        let body =
            json!({source.0: source.1, "destination": destination, "instances": targets, "mode": "0640"});
        let task = succeeds(system, "POST", &format!("/instances/{call}"), &body)?;
        ensure!(task["type"] == "copy_files", "{row}: {task}");
        let at = match row {
            "V-022" => "/root/v022/my.cnf".to_owned(),
            "V-176" => destination.to_owned(),
            _ => format!("{}/my.cnf", destination.trim_end_matches('/')),
        };
        for name in every {
            let seen = inside(system, name, &format!("stat -c %a {at} && cat {at} || true"))?;
            let expected = if reached.contains(&name) {
                format!("640\n{content}")
            } else {
                String::new()
            };
            ensure!(seen == expected, "{row}: {name}: {seen}");
        }
    }
    for name in every {
        let seen = inside(system, name, "sha256sum </tmp/v177/large.bin")?;
        ensure!(seen == sum, "V-177: {name}: {seen}");
    }
    Ok(())
}

// --- Live values ------------------------------------------------------------------------------------------------------

#[test]
fn v_129_v_130_v_131_values_are_those_of_the_guests() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let words = [
        "memory",
        "total_memory",
        "cpu",
        "cpus",
        "swap",
        "process",
        "gateway",
        "mask",
        "ip",
    ];
    let swap = "dd if=/dev/zero of=/data/swap bs=1M count=16 2>/dev/null; mkswap /data/swap >/dev/null; swapon /data/swap";
    inside(system, MACHINE, swap)?;
    let one = |name: &str| get_with(system, &json!({"properties": words, "hosts": [{"name": name}]}));

    let seen = one(MACHINE)?;
    let uuid = &seen["id"];
    let kib = |field: &str| -> Result<i64> {
        let line =
            format!("virsh -q -c qemu:///system dominfo {uuid} | awk '/^{field} memory/ {{print $3}}'");
        Ok(system.sh(&line)?.parse()?)
    };
    ensure!(
        seen["memory"] == kib("Used")? / 1024 && seen["total_memory"] == kib("Max")? / 1024,
        "{seen}"
    );
    let cpus: i64 = inside(system, MACHINE, "nproc")?.parse()?;
    ensure!(seen["cpus"] == cpus && seen["cpu"].is_number(), "{seen}");
    let swap = inside(
        system,
        MACHINE,
        "awk 'NR > 1 {s += $3} END {print int(s / 1024)}' /proc/swaps",
    )?;
    ensure!(
        swap != "0" && seen["swap"] == swap.parse::<i64>()?,
        "{swap}: {seen}"
    );
    let gateway = inside(system, MACHINE, "ip -4 route show default | cut -d ' ' -f 3")?;
    ensure!(seen["gateway"] == gateway.as_str(), "{gateway}: {seen}");
    let address = inside(system, MACHINE, "ip -4 -o addr show dev eth0 | awk '{print $4}'")?;
    let (address, prefix) = address.split_once('/').context("an address")?;
    ensure!(
        seen["ip"]["ipv4"] == json!([address]) && prefix == "24" && seen["mask"] == "255.255.255.0",
        "{seen}"
    );
    let threads: i64 = inside(system, MACHINE, "ls -d /proc/[0-9]*/task/[0-9]* | wc -l")?.parse()?;
    let process = &seen["process"];
    let known = process["threads"].as_i64().unwrap_or_default();
    // What asks is itself among them, and kernel threads come and go.
    ensure!((known - threads).abs() <= 8, "{threads}: {seen}");
    ensure!(process["running"].as_i64() >= Some(1), "{seen}");

    let seen = one(DEBIANS[0])?;
    ensure!(
        seen["memory"].as_i64() > Some(0) && seen["total_memory"] == 256 && seen["cpu"].is_number(),
        "{seen}"
    );

    for (row, which) in [
        ("V-130", json!({"tag": [{"name": "web"}]})),
        ("V-131", json!({"hosts": [{"name": "web_", "range": "[1-3]"}]})),
    ] {
        let mut body = which;
        body["properties"] = json!(["memory", "cpu"]);
        let seen = get_with(system, &body)?;
        let rows = seen["properties"].as_array().context("a list")?;
        let names: Vec<&str> = rows.iter().filter_map(|r| r["name"].as_str()).collect();
        ensure!(names == DEBIANS, "{row}: {seen}");
        ensure!(
            rows.iter()
                .all(|r| r["memory"].as_i64() > Some(0) && r["cpu"].is_number()),
            "{row}: {seen}"
        );
    }
    Ok(())
}

fn get_with(system: &System, body: &Value) -> Result<Value> {
    ask(system, "GET", "/properties", body)
}

// --- Packages ---------------------------------------------------------------------------------------------------------

#[test]
fn v_133_v_134_v_135_v_136_v_137_packages_come_are_upgraded_and_go() -> Result<()> {
    let Some(system) = system() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let both = json!([{"name": "web_", "range": "[1-2]"}]);
    let with = |packages: &[&str]| json!({"packages": packages, "instances": both});

    // A repository of two packages, which reaches the guests as stored files do.
    let index = folder.path().join("Packages");
    for (name, version) in [("vs-hello", "1.0"), ("vs-other", "1.0")] {
        upload(
            system,
            "apt",
            &package(system, folder.path(), name, version)?,
            None,
        )?;
    }
    let stored = upload(system, "apt", &index, None)?;
    let copy = json!({"folder_name": "apt", "destination": "/srv/apt", "instances": both});
    succeeds(system, "POST", "/instances/copy_files", &copy)?;
    let sources =
        "rm -rf /etc/apt/sources.list.d/*; echo 'deb [trusted=yes] file:/srv/apt ./' >/etc/apt/sources.list";
    let body = json!({"instances": both, "command": sources});
    succeeds(system, "POST", "/instances/execute_command", &body)?;
    installed(system, "at first", "")?;

    succeeds(system, "POST", "/install_packages", &with(&["vs-hello"]))?;
    installed(system, "V-133", "vs-hello 1.0")?;
    let mut beyond = with(&["vs-other"]);
    beyond["instances"][0]["range"] = json!("[1-9]");
    succeeds(system, "POST", "/packages", &beyond)?;
    installed(system, "V-134", "vs-hello 1.0\nvs-other 1.0")?;

    for name in ["vs-hello", "vs-other"] {
        upload(system, "apt", &package(system, folder.path(), name, "2.0")?, None)?;
    }
    upload(system, "apt", &index, stored["uuid"].as_str())?;
    succeeds(system, "POST", "/instances/copy_files", &copy)?;
    succeeds(system, "PUT", "/upgrade_packages", &with(&["vs-hello"]))?;
    installed(system, "V-135", "vs-hello 2.0\nvs-other 1.0")?;
    succeeds(system, "PUT", "/packages", &with(&[]))?;
    installed(system, "V-135, everything", "vs-hello 2.0\nvs-other 2.0")?;

    succeeds(system, "DELETE", "/packages", &with(&["vs-hello"]))?;
    installed(system, "V-136", "vs-other 2.0")?;
    let older = json!({"packages": ["vs-other"], "hosts": both});
    succeeds(system, "PUT", "/remove_packages", &older)?;
    installed(system, "V-137", "")?;

    // A package that nobody has, and a guest without a package manager.
    for (guest, package, code) in [(DEBIANS[0], "vs-nothing", 100), (MACHINE, "vs-hello", 127)] {
        let body = json!({"packages": [package], "instances": [guest]});
        let task = done(system, "POST", "/packages", &body)?;
        ensure!(
            task["status"] == "failed" && task["results"][0]["exit_code"] == code,
            "{guest}: {task}"
        );
    }
    Ok(())
}

/// Builds a package and adds it to the folder's index; returns its path.
fn package(system: &System, folder: &Path, name: &str, version: &str) -> Result<PathBuf> {
    let tree = folder.join(format!("{name}-{version}"));
    let content = tree.join("usr/share").join(name);
    std::fs::create_dir_all(&content)?;
    std::fs::write(content.join("version"), version)?;
    std::fs::create_dir(tree.join("DEBIAN"))?;
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: VirtShell <virtshell@example.org>\n\
         Description: one of VirtShell's tests\n"
    );
    std::fs::write(tree.join("DEBIAN/control"), control)?;
    let deb = format!("{name}_{version}_all.deb");
    let line = format!(
        "cd {}; dpkg-deb --root-owner-group --build {} {deb} >/dev/null; \
         {{ dpkg-deb --field {deb}; echo Filename: ./{deb}; echo Size: $(stat -c %s {deb}); \
         echo SHA256: $(sha256sum <{deb} | cut -c 1-64); echo; }} >>Packages",
        folder.display(),
        tree.display()
    );
    system.sh(&line)?;
    Ok(folder.join(deb))
}

/// Which of our packages both guests must have, as dpkg says, and as their files show.
fn installed(system: &System, row: &str, expected: &str) -> Result<()> {
    for name in DEBIANS {
        let command = "dpkg-query -W -f '${db:Status-Status} ${Package} ${Version}\\n' 'vs-*' 2>/dev/null | sed -n 's/^installed //p'";
        let said = inside(system, name, command)?;
        let files = "for f in /usr/share/vs-*/version; do [ ! -e $f ] || echo $(basename $(dirname $f)) $(cat $f); done";
        let files = inside(system, name, files)?;
        ensure!(
            said == expected && files == expected,
            "{row}: {name}: dpkg: {said}; files: {files}"
        );
    }
    Ok(())
}
