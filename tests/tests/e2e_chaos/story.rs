//! What stories share: the farm, and words to tell them with.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use virtshell_crds::{Host, Instance, Task, TaskAssignment};
use virtshell_tests::farm::{Farm, NAMESPACE, PrivateHost};
use virtshell_tests::guests::Seen;
pub use virtshell_tests::guests::{blank, domain, guest, is_ready, said, with};
use virtshell_tests::{Requests, level, wait_for};

/// The host that stories play on.
pub const HOST: &str = "alpha";
/// Emulated guests on two busy cores boot in 4 to 15 s; what takes longer than this is broken, not slow.
pub const LIMIT: Duration = Duration::from_mins(1);

/// One story: the farm for itself.
pub struct Story {
    pub farm: MutexGuard<'static, Farm>,
    pub client: Client,
    pub instances: Api<Instance>,
}

/// Begins a story, with everything up and no Instance; None where this level is allowed to be left out.
pub async fn begin() -> Result<Option<Story>> {
    static FARM: OnceCell<Mutex<Farm>> = OnceCell::const_new();
    if !level::end_to_end() {
        return Ok(None);
    }
    let farm = FARM.get_or_try_init(async || Farm::start(&[HOST]).await.map(Mutex::new));
    let farm = farm.await?.lock().await;
    // An earlier story may have failed half way.
    farm.control_plane().start_api_server()?;
    farm.host(HOST).power_on()?;
    farm.host(HOST).start_agent()?;
    let client = farm.control_plane().admin().await?;
    let story = Story {
        instances: Api::namespaced(client.clone(), NAMESPACE),
        client,
        farm,
    };
    story.clear().await?;
    Ok(Some(story))
}

impl Story {
    pub fn host(&self) -> &PrivateHost {
        self.farm.host(HOST)
    }

    /// Ends the story: every Instance is deleted, and goes.
    pub async fn end(self) -> Result<()> {
        self.clear().await
    }

    pub async fn clear(&self) -> Result<()> {
        let everything = ListParams::default();
        self.instances
            .delete_collection(&DeleteParams::default(), &everything)
            .await?;
        wait_for(
            "all Instances to be gone",
            LIMIT,
            async || self.instances.list(&everything).await.map(names),
            Vec::is_empty,
        )
        .await
        .map(drop)
    }

    /// Creates an Instance with a spec, on the stories' host unless the spec names another.
    pub async fn create(&self, name: &str, spec: Value) -> Result<()> {
        let spec = with(json!({ "host": HOST }), spec);
        let instance = json!({
            "apiVersion": virtshell_crds::API_VERSION, "kind": "Instance",
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
        });
        let instance = serde_json::from_value(instance)?;
        self.instances.create(&PostParams::default(), &instance).await?;
        Ok(())
    }

    /// Merges into the spec of an Instance.
    pub async fn edit(&self, name: &str, spec: Value) -> Result<()> {
        let patch = Patch::Merge(json!({ "spec": spec }));
        self.instances
            .patch(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    pub async fn all(&self) -> Result<Vec<Instance>> {
        Ok(self.instances.list(&ListParams::default()).await?.items)
    }

    pub async fn get(&self, name: &str) -> Result<Instance> {
        Ok(self.instances.get(name).await?)
    }

    /// Deletes an Instance and waits until it is gone.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.instances.delete(name, &DeleteParams::default()).await?;
        wait_for(
            &format!("{name} to be gone"),
            LIMIT,
            async || self.instances.get_opt(name).await,
            Option::is_none,
        )
        .await
        .map(drop)
    }

    /// Waits until an Instance is `enough`; returns it, and how long that took.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        enough: impl Fn(&Instance) -> bool,
    ) -> Result<(Instance, Duration)> {
        let began = Instant::now();
        let seen = wait_for(
            &format!("{name} to be {what}"),
            LIMIT,
            async || self.instances.get(name).await.map(Seen),
            |seen| enough(&seen.0),
        )
        .await?;
        Ok((seen.0, began.elapsed()))
    }

    /// Waits until Ready is True for the newest generation.
    pub async fn ready(&self, name: &str) -> Result<Instance> {
        let (instance, _) = self.until(name, "ready", is_ready).await?;
        Ok(instance)
    }

    /// Waits until the guest's agent answers.
    pub async fn booted(&self, name: &str) -> Result<()> {
        self.until(name, "booted", |i| said(i, "AgentConnected").starts_with("True"))
            .await
            .map(drop)
    }

    /// What a command prints that a Task runs in an Instance, when it has ended well.
    pub async fn by_task(&self, name: &str, command: &str, limit: Duration) -> Result<String> {
        let task: Task = serde_json::from_value(json!({
            "apiVersion": virtshell_crds::API_VERSION, "kind": "Task",
            "metadata": {"generateName": "asks-", "namespace": NAMESPACE},
            "spec": {"description": "ask", "type": "execute_command", "params": {"command": command}, "timeoutSeconds": limit.as_secs(),
                     "targets": [{"kind": "Instance", "name": name}]},
        }))?;
        let tasks: Api<Task> = Api::namespaced(self.client.clone(), NAMESPACE);
        let task = tasks.create(&PostParams::default(), &task).await?;
        let parts: Api<TaskAssignment> = Api::namespaced(self.client.clone(), NAMESPACE);
        let result = wait_for(
            &format!("`{command}` to end in {name}"),
            limit,
            async || -> Result<_> {
                let all = parts.list(&ListParams::default()).await?;
                let part = all
                    .into_iter()
                    .find(|part| Some(&part.spec.task.uid) == task.metadata.uid.as_ref());
                let results = part.and_then(|part| part.status).map(|status| status.results);
                Ok(results.and_then(|all| all.into_iter().next()))
            },
            |result| result.as_ref().is_some_and(|r| r.exit_code.is_some()),
        )
        .await?
        .context("it has a result")?;
        ensure!(result.exit_code == Some(0), "{result:?}");
        Ok(result.output.trim_end().to_owned())
    }

    /// The Events of an Instance: reason and message.
    pub async fn events(&self, name: &str) -> Result<Vec<(String, String)>> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), NAMESPACE);
        let uid = self.get(name).await?.uid().context("an Instance has a uid")?;
        let about = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
        let list = events.list(&about).await?;
        Ok(list
            .into_iter()
            .map(|event| {
                (
                    event.reason.unwrap_or_default(),
                    event.message.unwrap_or_default(),
                )
            })
            .collect())
    }

    /// Waits for an Event with this reason; returns its message.
    pub async fn event(&self, name: &str, reason: &str) -> Result<String> {
        let events = wait_for(
            &format!("an Event {reason} of {name}"),
            LIMIT,
            async || self.events(name).await,
            |events| events.iter().any(|(r, _)| r == reason),
        )
        .await?;
        Ok(events
            .into_iter()
            .find(|(r, _)| r == reason)
            .map(|(_, message)| message)
            .unwrap_or_default())
    }

    /// Waits until the Host is `enough`.
    pub async fn host_until(&self, name: &str, what: &str, enough: impl Fn(&Host) -> bool) -> Result<Host> {
        let hosts: Api<Host> = Api::all(self.client.clone());
        wait_for(
            &format!("the host {name} to be {what}"),
            LIMIT,
            async || hosts.get(name).await,
            enough,
        )
        .await
    }

    /// How many requests of these verbs for a resource the API server has had since it started.
    pub fn requests(&self, resource: &str, verbs: &[&str]) -> Result<u64> {
        Ok(Requests::so_far(self.farm.control_plane())?.with(verbs, resource))
    }

    /// virsh on the host, with the qemu driver.
    pub fn virsh(&self, arguments: &str) -> Result<String> {
        self.host().sh(&format!("virsh -q -c qemu:///system {arguments}"))
    }

    /// Waits until virsh prints what is `enough`.
    pub async fn until_virsh(&self, arguments: &str, enough: impl Fn(&str) -> bool) -> Result<String> {
        wait_for(
            &format!("virsh {arguments}"),
            LIMIT,
            async || self.virsh(arguments),
            |seen: &String| enough(seen),
        )
        .await
    }

    /// The pid, on the host, of the QEMU that runs an Instance.
    pub async fn qemu(&self, name: &str) -> Result<String> {
        let domain = domain(&self.get(name).await?)?;
        self.host().sh(&format!("cat /run/libvirt/qemu/{domain}.pid"))
    }

    /// The pids of all QEMUs on the host.
    pub fn all_qemus(&self) -> Result<Vec<String>> {
        let found = self
            .host()
            .sh("ps -C qemu-system-x86_64,qemu-system-x86 -o pid= || true")?;
        let mut pids: Vec<String> = found.split_whitespace().map(str::to_owned).collect();
        pids.sort();
        Ok(pids)
    }

    /// The names of all domains on the host, sorted.
    pub fn domains(&self) -> Result<Vec<String>> {
        let listed = self.virsh("list --all --name")?;
        let mut names: Vec<String> = listed.split_whitespace().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// The domain names of all Instances, sorted.
    pub async fn domains_asked_for(&self) -> Result<Vec<String>> {
        let instances = self.all().await?;
        let mut names = instances.iter().map(domain).collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }
}

fn names(list: impl IntoIterator<Item = Instance>) -> Vec<String> {
    list.into_iter().map(|instance| instance.name_any()).collect()
}
