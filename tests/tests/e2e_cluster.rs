//! A cluster of several real hosts on this machine, with two controllers: whatever dies, what was asked for is there once.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use virtshell_crds::{ANNOTATION_CONFIRM_GONE, Host, Instance};
use virtshell_tests::farm::{Farm, NAMESPACE, PrivateHost};
use virtshell_tests::guests::{Seen, domain, guest, is_ready, said, with};
use virtshell_tests::wait::SOON;
use virtshell_tests::{level, wait_for};

const HOSTS: [&str; 3] = ["east", "north", "west"];
/// The guests of the launch group `web`, two for each host.
const GUESTS: usize = 6;
/// More than the 40 s for which a host may be silent, or the 15 s of a Lease, and six guests that boot emulated on two cores.
const LIMIT: Duration = Duration::from_mins(2);
/// Long enough for a controller or an agent that does something it should not.
const QUIET: Duration = Duration::from_secs(3);

struct Cluster {
    farm: Farm,
    instances: Api<Instance>,
    hosts: Api<Host>,
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_when_a_leader_and_a_host_die() -> Result<()> {
    if !level::end_to_end() {
        return Ok(());
    }
    let cluster = Cluster::start().await?;
    cluster.leader_dies_in_the_middle_of_its_work().await?;
    let dead = cluster.host_dies().await?;
    cluster.host_is_given_up_and_returns(&dead).await
}

impl Cluster {
    async fn start() -> Result<Self> {
        let mut farm = Farm::start(&HOSTS).await?;
        farm.controllers()[0].until_leading(SOON).await?;
        farm.add_controller().await?;
        let client = farm.control_plane().admin().await?;
        Ok(Self {
            farm,
            instances: Api::namespaced(client.clone(), NAMESPACE),
            hosts: Api::all(client),
        })
    }

    /// Guards: work that a leader leaves half done is finished by the next one, once; Instances are spread over the hosts.
    async fn leader_dies_in_the_middle_of_its_work(&self) -> Result<()> {
        let group = with(guest(), json!({"launch": {"min": GUESTS, "max": GUESTS}}));
        self.create("web", group).await?;
        let placed = |all: &Vec<Instance>| all.iter().any(|i| i.spec.host.is_some());
        self.all_until("placed, the first of them", placed).await?;
        self.farm.controllers()[0].program.signal("KILL")?;
        let all_ready = |all: &Vec<Instance>| all.len() == GUESTS && all.iter().all(is_ready);
        let all = self.all_until("ready", all_ready).await?;
        self.farm.controllers()[1].until_leading(SOON).await?;

        let domains = self.domains()?;
        let each: Vec<usize> = domains.values().map(Vec::len).collect();
        ensure!(each == [GUESTS / HOSTS.len(); HOSTS.len()], "{domains:?}");
        for instance in &all {
            let host = instance.spec.host.as_deref().context("it is placed")?;
            ensure!(domains[host].contains(&domain(instance)?), "{domains:?}");
        }
        Ok(())
    }

    /// Guards: a host that is not heard of keeps its Instances: they are not started elsewhere and not forgotten, and run again
    /// when it is back, each with its disk. Returns the host and the Instances on it; it is still dead.
    async fn host_dies(&self) -> Result<Dead> {
        let name = HOSTS[1];
        let on_it = self.on(name).await?;
        for instance in &on_it {
            self.until(&instance.name_any(), "booted", |i| {
                said(i, "AgentConnected").starts_with("True")
            })
            .await?;
            let mark = "until grep -q /data /proc/mounts; do sleep 0.2; done; echo kept >/data/mark; sync";
            self.farm.host(name).in_guest(&domain(instance)?, mark)?;
        }
        let elsewhere = self.domains()?;
        self.farm.host(name).cut_power()?;
        self.host_until(name, "silent", |ready| ready == "Unknown")
            .await?;
        for instance in &on_it {
            self.until(&instance.name_any(), "unknown", |i| {
                said(i, "Ready").starts_with("Unknown HostSilent")
            })
            .await?;
        }
        tokio::time::sleep(QUIET).await;
        for host in HOSTS.into_iter().filter(|host| *host != name) {
            ensure!(
                self.domains_of(host)? == elsewhere[host],
                "nothing was started there"
            );
        }
        let now = self.on(name).await?;
        ensure!(
            names(&now) == names(&on_it) && now.iter().all(|i| said(i, "Scheduled").starts_with("True")),
            "{now:?}"
        );
        let [gone, back] = <[Instance; 2]>::try_from(on_it)
            .map_err(|on_it| anyhow::anyhow!("two Instances are on a host, not {on_it:?}"))?;
        Ok(Dead { name, gone, back })
    }

    /// Guards: only what an administrator says lets an Instance go without its host; and a host that was given up and returns
    /// lists the domain and leaves it alone, while what was made anew runs on.
    async fn host_is_given_up_and_returns(&self, dead: &Dead) -> Result<()> {
        let gone = dead.gone.name_any();
        self.instances.delete(&gone, &DeleteParams::default()).await?;
        tokio::time::sleep(QUIET).await;
        ensure!(
            self.instances.get_opt(&gone).await?.is_some(),
            "it waits for its host"
        );
        let uid = self.hosts.get(dead.name).await?.uid();
        let confirm = json!({"metadata": {"annotations": {ANNOTATION_CONFIRM_GONE: uid}}});
        self.hosts
            .patch(dead.name, &PatchParams::default(), &Patch::Merge(confirm))
            .await?;
        let look = async || self.instances.get_opt(&gone).await;
        wait_for("the Instance to be gone", LIMIT, look, Option::is_none).await?;
        self.create(&gone, guest()).await?;
        let anew = self.until(&gone, "ready elsewhere", is_ready).await?;
        ensure!(anew.spec.host.as_deref() != Some(dead.name));

        let host = self.farm.host(dead.name);
        host.power_on()?;
        let orphan = domain(&dead.gone)?;
        let before = state(host, &orphan)?;
        host.start_agent()?;
        self.host_until(dead.name, "back", |ready| ready == "True")
            .await?;
        let back = self
            .until(&dead.back.name_any(), "running again", is_ready)
            .await?;
        ensure!(back.uid() == dead.back.uid() && domain(&back)? == domain(&dead.back)?);
        let look = async || self.hosts.get(dead.name).await;
        let listed = |host: &Host| {
            let orphans: Vec<&str> = host
                .status
                .iter()
                .flat_map(|s| &s.orphan_domains)
                .map(|o| o.name.as_str())
                .collect();
            orphans == [orphan.as_str()]
        };
        wait_for("the orphan to be listed", LIMIT, look, listed).await?;
        self.until(&back.name_any(), "booted", |i| {
            said(i, "AgentConnected").starts_with("True")
        })
        .await?;
        let kept = host.in_guest(
            &domain(&back)?,
            "until grep -q /data /proc/mounts; do sleep 0.2; done; cat /data/mark",
        )?;
        ensure!(kept.trim() == "kept", "it has its disk: {kept}");
        tokio::time::sleep(QUIET).await;
        ensure!(
            state(host, &orphan)? == before,
            "the orphan is as libvirt left it"
        );
        let still = self.instances.get(&gone).await?;
        ensure!(
            is_ready(&still) && still.uid() == anew.uid() && domain(&still)? == domain(&anew)?,
            "what was made anew runs on: {still:?}"
        );
        Ok(())
    }

    async fn create(&self, name: &str, spec: Value) -> Result<()> {
        let instance = json!({
            "apiVersion": virtshell_crds::API_VERSION, "kind": "Instance", "metadata": {"name": name}, "spec": spec,
        });
        let instance = serde_json::from_value(instance)?;
        self.instances.create(&PostParams::default(), &instance).await?;
        Ok(())
    }

    /// All that run on hosts: not the launch parent.
    async fn all(&self) -> kube::Result<Vec<Instance>> {
        let all = self.instances.list(&ListParams::default()).await?;
        Ok(all.into_iter().filter(|i| i.name_any() != "web").collect())
    }

    async fn all_until(&self, what: &str, enough: impl Fn(&Vec<Instance>) -> bool) -> Result<Vec<Instance>> {
        let look = async || self.all().await.map(|all| all.into_iter().map(Seen).collect());
        let shown = |all: &Vec<Seen>| enough(&all.iter().map(|seen| seen.0.clone()).collect());
        let all = wait_for(&format!("the guests to be {what}"), LIMIT, look, shown).await?;
        Ok(all.into_iter().map(|seen| seen.0).collect())
    }

    async fn on(&self, host: &str) -> Result<Vec<Instance>> {
        let all = self.all().await?;
        Ok(all
            .into_iter()
            .filter(|i| i.spec.host.as_deref() == Some(host))
            .collect())
    }

    async fn until(&self, name: &str, what: &str, enough: impl Fn(&Instance) -> bool) -> Result<Instance> {
        let look = async || self.instances.get(name).await.map(Seen);
        let seen = wait_for(&format!("{name} to be {what}"), LIMIT, look, |seen| {
            enough(&seen.0)
        })
        .await?;
        Ok(seen.0)
    }

    /// Waits until the status of a host's condition Ready is `enough`.
    async fn host_until(&self, name: &str, what: &str, enough: impl Fn(&str) -> bool) -> Result<()> {
        let look = async || {
            let host = self.hosts.get(name).await?;
            let conditions = host.status.into_iter().flat_map(|s| s.conditions);
            let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
            kube::Result::<String>::Ok(ready.map_or_else(String::new, |c| c.status))
        };
        wait_for(
            &format!("host {name} to be {what}"),
            LIMIT,
            look,
            |ready: &String| enough(ready),
        )
        .await
        .map(drop)
    }

    /// The names of the domains that run on each host.
    fn domains(&self) -> Result<BTreeMap<&'static str, Vec<String>>> {
        HOSTS
            .into_iter()
            .map(|host| Ok((host, self.domains_of(host)?)))
            .collect()
    }

    fn domains_of(&self, host: &str) -> Result<Vec<String>> {
        let listed = self
            .farm
            .host(host)
            .sh("virsh -q -c qemu:///system list --name")?;
        let mut names: Vec<String> = listed.split_whitespace().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }
}

/// A host whose power is cut, with one Instance that is to be given up and one that waits for its return.
struct Dead {
    name: &'static str,
    gone: Instance,
    back: Instance,
}

/// The state of a domain, and which run of it that is.
fn state(host: &PrivateHost, domain: &str) -> Result<String> {
    host.sh(&format!(
        "virsh -q -c qemu:///system domstate {domain}; virsh -q -c qemu:///system domid {domain}"
    ))
}

fn names(instances: &[Instance]) -> Vec<String> {
    instances.iter().map(ResourceExt::name_any).collect()
}
