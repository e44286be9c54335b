//! Several controllers: whatever happens to the one that leads, everything that was asked for comes to its end, once.
//!
//! They have a control plane of their own, for the shared one has its leader; one test at a time uses it.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use virtshell_crds::{
    Environment, Host, HostSpec, Image, Instance, PowerState, Provisioner, Task, TaskState, launch,
};
use virtshell_tests::identity::SYSTEM;
use virtshell_tests::program::operator;
use virtshell_tests::wait::SOON;
use virtshell_tests::{ControlPlane, Controller, Fleet, Requests, wait_for};

use crate::world::Object;

/// Longer than a successor waits for the Lease to run out, and then needs for the work.
const TAKEOVER: Duration = Duration::from_mins(2);
const HOSTS: usize = 3;
/// What a controller has in flight at most.
const WORKERS: u64 = 16;
/// Room for 17 Instances of 64 MiB on each host, 51 in all.
const HOST_MEMORY_MIB: i64 = 17 * 64;
const SINGLES: usize = 40;
/// One by the provisioner `db`, two that depend on it, and five of a launch.
const PLACED: usize = SINGLES + 3 + 5;

/// A namespace, hosts with agents, and nobody else on the control plane.
struct Stage {
    control_plane: &'static ControlPlane,
    namespace: String,
    admin: Client,
    fleet: Fleet,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    async fn set(stem: &str) -> anyhow::Result<Self> {
        static TURN: Mutex<()> = Mutex::const_new(());
        static CONTROL_PLANE: OnceLock<Result<ControlPlane, String>> = OnceLock::new();
        let turn = TURN.lock().await;
        let control_plane = CONTROL_PLANE
            .get_or_init(|| ControlPlane::start().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("the control plane did not start: {error}"))?;
        let namespace = control_plane.namespace(stem).await?;
        let spec = HostSpec {
            enabled: true,
            ..HostSpec::default()
        };
        let stage = Self {
            control_plane,
            admin: control_plane.admin().await?,
            fleet: Fleet::join(control_plane, &namespace, HOSTS, &spec, HOST_MEMORY_MIB).await?,
            namespace,
            _turn: turn,
        };
        let hosts = &stage.fleet.hosts;
        stage
            .create::<Environment>("default", json!({ "hosts": hosts }))
            .await?;
        stage.forget_leader().await?;
        Ok(stage)
    }

    async fn controller(&self, name: &str) -> anyhow::Result<Controller> {
        Controller::start(self.control_plane, &operator()?, name).await
    }

    /// As time does: nobody holds the Lease any more.
    async fn forget_leader(&self) -> anyhow::Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.admin.clone(), SYSTEM);
        match leases
            .delete("virtshell-controller", &DeleteParams::default())
            .await
        {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    async fn create<K: Object>(&self, name: &str, spec: Value) -> anyhow::Result<()> {
        let object: K = serde_json::from_value(json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec,
        }))?;
        self.api().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// Everything that a controller has to do with Instances: to place them, to make dependencies once, and children.
    async fn ask(&self) -> anyhow::Result<()> {
        let image = json!({"type": "disk", "downloadUrl": "http://127.0.0.1:9/i"});
        self.create::<Image>("i", image).await?;
        let sizes = json!({"image": "i", "memoryMiB": 64, "diskMiB": 64, "builder": "https://x/r", "executor": "sh run"});
        self.create::<Provisioner>("db", sizes.clone()).await?;
        let mut web = sizes;
        web["depends"] = json!([{"provisioner": "db"}]);
        self.create::<Provisioner>("web", web).await?;
        for name in ["one", "two"] {
            self.create::<Instance>(name, json!({"provisioner": "web"}))
                .await?;
        }
        let sizes = json!({"blank": true, "memoryMiB": 64, "diskMiB": 64});
        let mut group = sizes.clone();
        group["launch"] = json!({"min": 1, "max": 5});
        self.create::<Instance>("group", group).await?;
        for n in 0..SINGLES {
            self.create::<Instance>(&format!("single-{n}"), sizes.clone())
                .await?;
        }
        Ok(())
    }

    /// And to carry out Tasks.
    async fn ask_to_stop(&self, targets: &[&str]) -> anyhow::Result<()> {
        let targets: Vec<_> = targets
            .iter()
            .map(|name| json!({"kind": "Instance", "name": name}))
            .collect();
        let spec = json!({"description": "stop", "type": "stop_instance", "targets": targets});
        self.create::<Task>("stop", spec).await
    }

    async fn instances(&self) -> anyhow::Result<Vec<Instance>> {
        Ok(self.api::<Instance>().list(&ListParams::default()).await?.items)
    }

    /// Waits until everything that was asked for is done, and looks whether anything was done twice or too much.
    async fn ensure_all_done_once(&self) -> anyhow::Result<()> {
        self.fleet.until_ready(PLACED, TAKEOVER).await?;
        let tasks = self.api::<Task>();
        let look = async || tasks.get("stop").await;
        let ended = |t: &Task| t.status.as_ref().and_then(|s| s.state) == Some(TaskState::Succeeded);
        wait_for("the task to succeed", SOON, look, ended).await?;
        self.fleet.ensure_nothing_ran_twice()?;

        let there = self.instances().await?;
        assert_eq!(there.len(), PLACED + 1, "with the launch parent");
        let children = there
            .iter()
            .filter(|i| i.labels().contains_key(virtshell_crds::LABEL_LAUNCH_PARENT));
        assert_eq!(children.count(), 5);
        let by = |name: &str| {
            let made = there
                .iter()
                .filter(|i| i.spec.provisioner.as_deref() == Some(name));
            made.count()
        };
        assert_eq!((by("db"), by("web")), (1, 2));
        let stopped = there.iter().filter(|i| i.spec.power_state == PowerState::Stopped);
        assert_eq!(stopped.count(), 2);

        let mut taken: BTreeMap<String, i32> = BTreeMap::new();
        for instance in there.iter().filter(|i| launch::of_parent(i).is_none()) {
            let host = instance.spec.host.clone().context("it is placed")?;
            *taken.entry(host).or_default() += 1;
        }
        assert!(taken.values().all(|count| *count <= 17), "{taken:?}");
        let hosts: Api<Host> = Api::all(self.admin.clone());
        for (host, count) in taken {
            let look = async || hosts.get(&host).await;
            let is_right = |h: &Host| {
                let allocated = h.status.as_ref().and_then(|s| s.allocated.as_ref());
                allocated.is_some_and(|a| a.instances == count && a.memory_mib == i64::from(count) * 64)
            };
            wait_for("the sums of a host", SOON, look, is_right).await?;
        }
        Ok(())
    }

    /// The resource versions of all Instances.
    async fn versions(&self) -> anyhow::Result<BTreeMap<String, Option<String>>> {
        let there = self.instances().await?;
        Ok(there
            .iter()
            .map(|i| (i.name_any(), i.resource_version()))
            .collect())
    }
}

#[tokio::test]
async fn another_goes_on_where_a_killed_leader_was() -> anyhow::Result<()> {
    let stage = Stage::set("killed").await?;
    let first = stage.controller("killed-1").await?;
    first.until_leading(SOON).await?;
    let second = stage.controller("killed-2").await?;
    stage.ask().await?;
    stage.ask_to_stop(&["single-0", "single-1"]).await?;
    stage.fleet.until_ready(PLACED / 4, SOON).await?;
    first.program.signal("KILL")?;
    stage.ensure_all_done_once().await?;
    assert!((second.metrics().await?.sum("leader") - 1.0).abs() < f64::EPSILON);
    Ok(())
}

#[tokio::test]
async fn a_leader_that_was_stopped_for_a_while_writes_nothing_late() -> anyhow::Result<()> {
    let stage = Stage::set("stopped").await?;
    let first = stage.controller("stopped-1").await?;
    first.until_leading(SOON).await?;
    let second = stage.controller("stopped-2").await?;
    // It has all of it in line when it is stopped.
    let asked = async {
        stage.ask().await?;
        stage.ask_to_stop(&["single-0", "single-1"]).await
    };
    let stopped = async {
        stage.fleet.until_ready(1, SOON).await?;
        first.program.signal("STOP")
    };
    tokio::try_join!(asked, stopped)?;
    stage.ensure_all_done_once().await?;
    assert!((second.metrics().await?.sum("leader") - 1.0).abs() < f64::EPSILON);

    // The parent of the launch counts its children a moment later.
    let quiet = Duration::from_secs(2);
    let (mut versions, mut before) = (stage.versions().await?, BTreeMap::new());
    while versions != before {
        tokio::time::sleep(quiet).await;
        before = std::mem::replace(&mut versions, stage.versions().await?);
    }
    let asked = Requests::so_far(stage.control_plane)?;
    first.program.signal("CONT")?;
    let said = "leadership could not be renewed in time";
    let look = async || first.program.log();
    wait_for("it to give up", SOON, look, |log| log.contains(said)).await?;
    tokio::time::sleep(quiet).await;
    assert_eq!(stage.versions().await?, before, "nothing of it was written");
    // What each of its workers had handed to the connection may have been on its way; whatever they begin after that is
    // not even tried.
    let late = Requests::so_far(stage.control_plane)?.since(&asked);
    let tried: u64 = ["instances", "tasks"]
        .map(|kind| late.writes(kind))
        .into_iter()
        .sum();
    assert!(tried <= WORKERS, "{late:?}");
    let log = first.program.log()?;
    assert!(
        log.contains("not sent: this process does not lead any more"),
        "{log}"
    );
    Ok(())
}

#[tokio::test]
async fn a_controller_that_is_killed_again_and_again_repeats_nothing() -> anyhow::Result<()> {
    let stage = Stage::set("restarts").await?;
    let asked = async {
        stage.ask().await?;
        stage.ask_to_stop(&["single-0", "single-1"]).await
    };
    let killed = async {
        for milliseconds in [5, 20, 60, 120, 250, 500] {
            let controller = stage.controller(&format!("restarts-{milliseconds}")).await?;
            controller.until_leading(SOON).await?;
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            controller.program.signal("KILL")?;
            stage.forget_leader().await?;
        }
        Ok(())
    };
    tokio::try_join!(asked, killed)?;
    let last = stage.controller("restarts-last").await?;
    last.until_leading(SOON).await?;
    stage.ensure_all_done_once().await
}
