//! The samples of manifests/ on a system as `make up` leaves it: all of them run, and REST makes the same objects.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use virtshell_tests::level;
use virtshell_tests::system::System;

/// Four containers of a few MB on two busy cores, three of which wait for the fourth.
const LIMIT: Duration = Duration::from_mins(3);
/// Instances that the samples lead to: one machine, one container, three websites and their database.
const GUESTS: [&str; 6] = [
    "hello-kubectl",
    "hello-container",
    "website_1",
    "website_2",
    "website_3",
    "database",
];
/// What of the samples REST can make, in this order; the section is there before.
const MADE: [(&str, &str); 4] = [
    ("environment", "development"),
    ("provisioners.virtshell.io", "database"),
    ("provisioners.virtshell.io", "website"),
    ("instance", "website"),
];

fn get(system: &System, what: &str) -> Result<Value> {
    let text = system.sh(&format!("kubectl -n virtshell get {what} -o json"))?;
    Ok(serde_json::from_str(&text)?)
}

/// Waits until an Instance with this wire name runs, provisioned where it is built, and returns it.
fn running(system: &System, name: &str) -> Result<Value> {
    let began = Instant::now();
    loop {
        let all = get(system, "instances")?;
        let found = all["items"].as_array().into_iter().flatten().find(|i| {
            let known = i["spec"]["displayName"].as_str();
            known.or(i["metadata"]["name"].as_str()) == Some(name)
        });
        if let Some(instance) = found {
            let status = &instance["status"];
            let is_built = name.starts_with("hello") || status["provisioned"] == true;
            if status["phase"] == "Running" && is_built {
                return Ok(instance.clone());
            }
            ensure!(status["phase"] != "Failed", "{name}: {status}");
        }
        ensure!(began.elapsed() < LIMIT, "{name} is not Running: {found:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The page that a website serves says where it comes from.
fn serves(system: &System, website: &Value) -> Result<()> {
    let name = website["spec"]["displayName"].as_str().unwrap_or_default();
    let address = website["status"]["addresses"]["ipv4"][0]
        .as_str()
        .unwrap_or_default();
    let page = system.sh(&format!(
        "curl --silent --fail --retry 20 --retry-connrefused --retry-delay 1 http://{address}/"
    ))?;
    let expected = format!("Hello from database.\nThis is {name} of the environment development.");
    ensure!(page == expected, "{name} at {address} serves {page}");
    Ok(())
}

/// Waits until all are there as they should be, and returns what was asked of them.
fn specs(system: &System) -> Result<Vec<Value>> {
    let mut specs = Vec::new();
    for (kind, name) in MADE {
        specs.push(spec(&get(system, &format!("{kind} {name}"))?));
    }
    for name in GUESTS.iter().filter(|name| !name.starts_with("hello")) {
        let guest = running(system, name)?;
        if name.starts_with("website") {
            serves(system, &guest)?;
        }
        specs.push(spec(&guest));
    }
    Ok(specs)
}

/// The spec of an object without what says only through which door it came: REST writes down the name that is the default, and
/// who asked.
fn spec(object: &Value) -> Value {
    let mut spec = object["spec"].clone();
    let fields = spec.as_object_mut().expect("an object has a spec");
    if fields.get("displayName") == Some(&object["metadata"]["name"]) {
        fields.remove("displayName");
    }
    fields.remove("owner");
    spec
}

#[test]
fn the_samples_run_and_rest_makes_the_same_objects() -> Result<()> {
    if !level::end_to_end() {
        return Ok(());
    }
    let system = System::shared()?;
    system.sh("kubectl apply -f manifests/samples/")?;
    for name in GUESTS {
        running(system, name)?;
    }
    let section = spec(&get(system, "section default")?);
    let by_kubectl = specs(system)?;

    // What was built comes up again with its guest, without being built again.
    let patch = json!({"spec": {"restartToken": "again", "restartMode": "Force"}});
    let website = running(system, "website_1")?;
    let name = website["metadata"]["name"].as_str().unwrap_or_default();
    system.sh(&format!(
            "kubectl -n virtshell patch vsi {name} --type=merge -p '{patch}'; \
             kubectl -n virtshell wait vsi {name} --for=jsonpath='{{.status.lastRestartToken}}'=again --timeout=60s"
        ),
    )?;
    serves(system, &running(system, "website_1")?)?;

    for (kind, name) in MADE.iter().rev() {
        let also = if *kind == "instance" { " database" } else { "" };
        system.sh(&format!(
            "kubectl -n virtshell delete {kind} {name}{also} --timeout=120s"
        ))?;
    }
    let build = |name: &str| {
        json!({
            "name": name, "image": "debian-git", "driver": "lxc", "cpus": 1, "memory": "64MB", "hdsize": "64MB",
            "builder": "file:///srv/builder.git", "executor": format!("sh {name}.sh"),
        })
    };
    let mut database = build("database");
    database["description"] = "What the websites show".into();
    database["tag"] = "backend".into();
    let mut website = build("website");
    website["description"] = "A page with a greeting from the database".into();
    website["tag"] = "frontend".into();
    website["depends"] = json!([{"provisioner_name": "database"}]);
    for (path, body) in [
        ("sections", json!({"name": "twin", "description": "This machine"})),
        (
            "enviroments",
            json!({"name": "development", "description": "Where developers try things", "section": "default"}),
        ),
        ("provisioners", database),
        ("provisioners", website),
        (
            "instances",
            json!({
                "name": "website", "description": "Three websites and one database", "enviroment": "development",
                "provisioner": "website", "launch": 3,
            }),
        ),
    ] {
        system.sh(&format!("hack/vscurl POST /virtshell/api/v1/{path} '{body}'"))?;
    }
    ensure!(spec(&get(system, "section twin")?) == section);
    let by_rest = specs(system)?;
    for (kubectl, rest) in by_kubectl.iter().zip(&by_rest) {
        ensure!(kubectl == rest, "by kubectl: {kubectl}\nby REST: {rest}");
    }
    Ok(())
}
