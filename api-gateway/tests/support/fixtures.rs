//! The fixtures of the contract (section 7.1), made through the API server.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use virtshell_crds::names::{file_wire_name, object_name};
use virtshell_crds::{
    API_VERSION, Environment, File, Group, Host, Image, Instance, LABEL_CREDENTIALS, Provisioner, Section,
    Task, User,
};
use virtshell_gateway::store::{Cached, Collection};

use super::{SOON, World};

/// resourceVersion of each fixture after it was made: another one means that a row touched it.
pub type Versions = BTreeMap<(String, String), String>;

/// Instances that run, all in enviroment development.
const INSTANCES: [&str; 28] = [
    "orders_colombia",
    "debian_strech_01",
    "WebServer",
    "WebServer001",
    "WebServer_1",
    "WebServer_2",
    "WebServer_3",
    "WebServerPhp001",
    "WebServerPhp002",
    "Database001",
    "Database002",
    "Database003",
    "database_server_01",
    "database_server_02",
    "database_server_03",
    "transactional_server_co",
    "web_server1",
    "web_server2",
    "grid_server_1",
    "grid_server_2",
    "grid_server_3",
    "grid_server_4",
    "grid_server_5",
    "grid_1",
    "grid_2",
    "grid_3",
    "grid_4",
    "grid_5",
];

/// Access key id of a fixture user.
pub fn key_id(user: &str) -> String {
    format!("KEYOF{}", user.to_uppercase())
}

/// Secret access key of a fixture user.
pub fn secret(user: &str) -> String {
    format!("secret-of-{user}-0123456789")
}

/// Puts everything back as the contract says, and waits until the gateway knows.
pub async fn reset(world: &World) {
    let client = &world.client;
    sync::<Section>(
        world,
        Api::all(client.clone()),
        &world.store.sections,
        &sections(),
    )
    .await;
    sync::<Host>(world, Api::all(client.clone()), &world.store.hosts, &hosts()).await;
    sync::<Environment>(world, world.api(), &world.store.environments, &environments()).await;
    sync::<Image>(world, world.api(), &world.store.images, &images()).await;
    sync::<Provisioner>(world, world.api(), &world.store.provisioners, &provisioners()).await;
    sync::<Instance>(world, world.api(), &world.store.instances, &instances()).await;
    sync::<Task>(world, world.api(), &world.store.tasks, &tasks()).await;
    sync::<File>(world, world.api(), &world.store.files, &files()).await;
    sync::<Group>(world, world.api(), &world.store.groups, &groups()).await;
    sync::<User>(world, world.api(), &world.store.users, &users()).await;
    secrets(world).await;
}

/// Wire names of the fixtures of a collection.
pub fn names(collection: &str) -> Vec<String> {
    let objects = match collection {
        "hosts" => hosts(),
        "sections" => sections(),
        "enviroments" => environments(),
        "images" => images(),
        "provisioners" => provisioners(),
        "instances" => instances(),
        "files" => files(),
        "groups" => groups(),
        "users" => users(),
        other => panic!("{other} have no names"),
    };
    let name = |object: &Value| object["spec"]["displayName"].as_str().unwrap().to_owned();
    objects.iter().map(name).collect()
}

fn sections() -> Vec<Value> {
    ["development_co", "development_mx", "backend_development_04"]
        .iter()
        .map(|name| object("Section", name, &json!({}), &Value::Null))
        .collect()
}

fn object(kind: &str, name: &str, spec: &Value, status: &Value) -> Value {
    let mut spec = spec.clone();
    spec["displayName"] = json!(name);
    let mut object = json!({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": object_name(name)}, "spec": spec});
    if !status.is_null() {
        object["status"] = status.clone();
    }
    object
}

fn hosts() -> Vec<Value> {
    let spec = |type_: &str, section: Option<&str>| {
        let mut spec = json!({"type": type_, "drivers": ["kvm", "qemu", "lxc"], "enabled": true});
        if let Some(section) = section {
            spec["section"] = json!(section);
        }
        spec
    };
    [
        ("fx-gp", "GeneralPurpose", Some("development_co")),
        ("fx-so", "StorageOptimized", Some("development_co")),
        ("host-06-pdn", "GeneralPurpose", None),
        ("host-08-pdn", "GeneralPurpose", None),
        ("host-09-pdn", "GeneralPurpose", None),
    ]
    .iter()
    .map(|(name, type_, section)| object("Host", name, &spec(type_, *section), &Value::Null))
    .collect()
}

fn environments() -> Vec<Value> {
    [
        "default",
        "development_co",
        "development_mx",
        "bigdata_test_01",
        "development",
        "backend_development",
    ]
    .iter()
    .map(|name| {
        object(
            "Environment",
            name,
            &json!({"section": "development_co"}),
            &Value::Null,
        )
    })
    .collect()
}

fn images() -> Vec<Value> {
    let container = |name: &str| json!({"type": "lxc-container", "containerResource": format!("https://images.example.org/{name}.tar.gz")});
    let mut iso = container("ubuntu_server_14.04.2_amd64");
    iso["type"] = json!("iso");
    iso["downloadUrl"] = json!("https://images.example.org/ubuntu.iso");
    vec![
        object("Image", "ubuntu_server_14.04.2_amd64", &iso, &Value::Null),
        object(
            "Image",
            "ubuntu_server_14.04_amd64",
            &container("ubuntu_server_14.04_amd64"),
            &Value::Null,
        ),
        object(
            "Image",
            "centos_server_7_amd64",
            &container("centos_server_7_amd64"),
            &Value::Null,
        ),
    ]
}

fn provisioners() -> Vec<Value> {
    [
        ("all_backend", "ubuntu_server_14.04.2_amd64"),
        ("orders_admin", "ubuntu_server_14.04.2_amd64"),
        ("database_prov_pdn", "ubuntu_server_14.04.2_amd64"),
        ("simple_web_site", "ubuntu_server_14.04_amd64"),
        ("generic_simple_web_site", "ubuntu_server_14.04_amd64"),
        ("generic_web_site_for_centos", "centos_server_7_amd64"),
    ]
    .iter()
    .map(|(name, image)| object("Provisioner", name, &json!({"image": image}), &Value::Null))
    .collect()
}

fn instances() -> Vec<Value> {
    INSTANCES
        .iter()
        .map(|name| {
            let tags = if name.starts_with("WebServerPhp") { json!(["web"]) } else { json!([]) };
            let spec = json!({
                "environment": "development", "provisioner": "all_backend", "driver": "lxc", "host": "fx-gp", "tags": tags,
            });
            let status = json!({"phase": "Running", "powerState": "Running", "host": "fx-gp"});
            object("Instance", name, &spec, &status)
        })
        .collect()
}

fn tasks() -> Vec<Value> {
    [
        ("clone virtual machine database_01", "InProgress"),
        ("create container webserver_09", "Succeeded"),
    ]
    .iter()
    .map(|(description, state)| {
        json!({
            "apiVersion": API_VERSION, "kind": "Task", "metadata": {"name": object_name(description)},
            "spec": {"description": description, "manual": true},
            "status": {"state": state, "log": "fixture", "lastUpdate": "2026-01-01T00:00:00Z"},
        })
    })
    .collect()
}

fn files() -> Vec<Value> {
    [
        ("ubuntu_seeds", "seed_file_ubuntu-14_04.txt"),
        ("mysql_configuration", "my.cnf"),
        ("", "dockerfile_ubuntu_server_14.04"),
    ]
    .iter()
    .map(|(folder, name)| {
        let content = format!("content of {name}\n");
        let spec = json!({
            "folder": folder, "size": content.len(), "sha256": hex::encode(Sha256::digest(&content)),
            "content": {"inline": STANDARD.encode(&content)},
        });
        let mut file = object("File", name, &spec, &Value::Null);
        file["metadata"]["name"] = json!(object_name(&file_wire_name(folder, name)));
        file
    })
    .collect()
}

fn groups() -> Vec<Value> {
    vec![
        object("Group", "web_development_team", &json!({}), &Value::Null),
        object("Group", "production", &json!({}), &Value::Null),
        object(
            "Group",
            "chemical_team",
            &json!({"users": ["nobody_1", "nobody_2"]}),
            &Value::Null,
        ),
    ]
}

fn users() -> Vec<Value> {
    [
        ("tester", "system"),
        ("virtshell", "regular"),
        ("demouser", "regular"),
    ]
    .iter()
    .map(|(name, type_)| object("User", name, &json!({"type": type_}), &Value::Null))
    .collect()
}

async fn secrets(world: &World) {
    let api: Api<Secret> = world.api();
    let wanted: Vec<Value> = ["tester", "virtshell", "demouser"]
        .iter()
        .map(|user| {
            serde_json::to_value(Secret {
                metadata: kube::api::ObjectMeta {
                    name: Some(format!("user-{user}")),
                    labels: Some([(LABEL_CREDENTIALS.to_owned(), "true".to_owned())].into()),
                    ..Default::default()
                },
                data: Some(
                    [
                        ("accessKeyId".to_owned(), ByteString(key_id(user).into_bytes())),
                        (
                            "secretAccessKey".to_owned(),
                            ByteString(secret(user).into_bytes()),
                        ),
                    ]
                    .into(),
                ),
                ..Secret::default()
            })
            .unwrap()
        })
        .collect();
    sync::<Secret>(world, api, &world.store.secrets, &wanted).await;
}

/// Deletes what is not a fixture, or is one that a row touched; makes what is missing; waits for the gateway's cache.
async fn sync<K>(world: &World, api: Api<K>, cache: &Collection<K>, wanted: &[Value])
where
    K: Cached + DeserializeOwned + Serialize + Debug,
{
    let kind = K::kind(&()).into_owned();
    let known = |name: &str| {
        world
            .versions
            .lock()
            .unwrap()
            .get(&(kind.clone(), name.to_owned()))
            .cloned()
    };
    let is_ours = |object: &K| !object.name_any().starts_with("kube-root-ca");
    let live = api.list(&ListParams::default()).await.unwrap();
    let mut kept = Vec::new();
    for object in live.into_iter().filter(is_ours) {
        let name = object.name_any();
        if known(&name).is_some_and(|version| Some(version) == object.resource_version()) {
            kept.push(name);
        } else {
            // The garbage collector may have been there first: a Secret goes with its User.
            match api.delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(answer)) if answer.is_not_found() => {}
                other => drop(other.unwrap()),
            }
        }
    }
    for fixture in wanted {
        let name = fixture["metadata"]["name"].as_str().unwrap().to_owned();
        if kept.contains(&name) {
            continue;
        }
        let object: K = serde_json::from_value(fixture.clone()).unwrap();
        let mut made = api.create(&PostParams::default(), &object).await.unwrap();
        if let Some(status) = fixture.get("status").filter(|_| kind != "Secret") {
            let patch = Patch::Merge(json!({"status": status}));
            made = api
                .patch_status(&name, &PatchParams::default(), &patch)
                .await
                .unwrap();
        }
        let version = made.resource_version().unwrap();
        world
            .versions
            .lock()
            .unwrap()
            .insert((kind.clone(), name), version);
    }
    let deadline = Instant::now() + SOON;
    loop {
        let live = api.list(&ListParams::default()).await.unwrap();
        let mut live: Vec<_> = live
            .iter()
            .filter(|o| is_ours(o))
            .map(|o| (o.uid(), o.resource_version()))
            .collect();
        let mut seen: Vec<_> = cache
            .list()
            .iter()
            .map(|o| (o.uid(), o.resource_version()))
            .collect();
        live.sort();
        seen.sort();
        if live == seen {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{kind}: the cache has {seen:?}, the API server {live:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}
