//! Copies the disks of one Instance for another: a clone's first step.
//!
//! Of a virtual machine that runs, each disk is copied by QEMU while the guest goes on; when all copies follow their
//! disks, the guest is suspended for the moment in which all of them end. A container has no such thing: it is suspended
//! while its root is copied. What does not run is copied as files.
//!
//! Nothing of this outlives the agent: a half-made copy is removed, its job ended ([`sweep`]), and a source that was left
//! suspended is resumed like any guest that somebody else suspended, because its Instance says that it runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use virtshell_crds::Instance;
use virtshell_crds::instance::Driver;

use super::connection::{Connection, Lane};
use super::context::Context;
use super::goal::{CloneSource, Machine};
use super::hypervisor::HypervisorError;
use super::libvirt::{Copyable, Link};
use super::perform::PerformError;
use super::storage::{DiskCopy, DiskFormat, Seed};

/// How long libvirt may take for one call of a copy.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often a copy is looked at.
const PERIOD: Duration = Duration::from_millis(250);
/// How long a copy may stand still before it is given up.
const STANDSTILL: Duration = Duration::from_mins(2);

/// The sources that are being copied from, so that nobody else ends their copies or wakes them.
#[derive(Debug, Default)]
pub struct Clones(Mutex<HashMap<String, Use>>);

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    copies: usize,
    holds: usize,
}

impl Clones {
    /// Whether this Instance must be left as it is for a moment.
    #[must_use]
    pub fn holds(&self, uid: &str) -> bool {
        self.lock().get(uid).is_some_and(|found| found.holds > 0)
    }

    /// Whether somebody copies from it.
    #[must_use]
    pub fn is_source(&self, uid: &str) -> bool {
        self.lock().contains_key(uid)
    }

    fn copying(self: &Arc<Self>, uid: &str) -> InUse {
        self.take(uid, false)
    }

    fn hold(self: &Arc<Self>, uid: &str) -> InUse {
        self.take(uid, true)
    }

    fn take(self: &Arc<Self>, uid: &str, hold: bool) -> InUse {
        let mut map = self.lock();
        let found = map.entry(uid.to_owned()).or_default();
        found.copies += 1;
        found.holds += usize::from(hold);
        InUse {
            clones: Arc::clone(self),
            uid: uid.to_owned(),
            hold,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Use>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends with its use.
struct InUse {
    clones: Arc<Clones>,
    uid: String,
    hold: bool,
}

impl Drop for InUse {
    fn drop(&mut self) {
        let mut map = self.clones.lock();
        if let Some(found) = map.get_mut(&self.uid) {
            found.copies -= 1;
            found.holds -= usize::from(self.hold);
            if found.copies == 0 {
                map.remove(&self.uid);
            }
        }
    }
}

/// Copies the disks of `source` for `machine`; the root of a container gets the clone's seed. They appear complete, or
/// not at all.
pub async fn copy_disks(
    context: &Arc<Context>,
    connection: &Arc<Connection>,
    machine: &Machine,
    source: &CloneSource,
    seed: &Seed,
) -> Result<(), PerformError> {
    let uid = find(context, machine, source)?;
    let names = machine.disks.iter().map(|disk| disk.name.as_str());
    let copies = context.storage.copies(&uid, &machine.id.uid, names).await?;
    let missing = |why: &str| PerformError::CloneSource {
        source_name: source.name.clone(),
        why: why.to_owned(),
    };
    let container = machine.driver == Driver::Lxc;
    if copies
        .iter()
        .any(|copy| (copy.format == DiskFormat::Raw) != container)
    {
        return Err(missing(
            "it is of another driver, whose disks this one cannot use",
        ));
    }
    let _using = context.clones.copying(&uid);
    let copying = Copying {
        context,
        connection,
        uid: &uid,
        copies: &copies,
    };
    let copied = async {
        copying.run(&missing).await?;
        if container {
            context
                .storage
                .seed_copies(&machine.id.uid, &copies, seed)
                .await?;
        }
        Ok(())
    };
    if let Err(error) = copied.await {
        context.storage.discard_copies(&copies);
        return Err(error);
    }
    context.storage.publish_copies(copies).await?;
    Ok(())
}

/// The uid of the source, which must be on this host.
fn find(context: &Context, machine: &Machine, source: &CloneSource) -> Result<String, PerformError> {
    let namespace = machine.id.namespace.as_str();
    let found = match &source.uid {
        Some(uid) => context.instances.get(uid),
        None => context.instances.named(namespace, &source.name).or_else(|| {
            let same = |i: &Arc<Instance>| {
                i.wire_name() == source.name && i.metadata.namespace.as_deref() == Some(namespace)
            };
            context.instances.all().into_iter().find(same)
        }),
    };
    found
        .and_then(|instance| instance.metadata.uid.clone())
        .ok_or_else(|| PerformError::CloneSource {
            source_name: source.name.clone(),
            why: "it is not on this host (any more)".to_owned(),
        })
}

struct Copying<'a> {
    context: &'a Arc<Context>,
    connection: &'a Arc<Connection>,
    uid: &'a str,
    copies: &'a [DiskCopy],
}

impl Copying<'_> {
    async fn run(&self, missing: &impl Fn(&str) -> PerformError) -> Result<(), PerformError> {
        let names: Vec<String> = self.copies.iter().map(|copy| copy.name.clone()).collect();
        let how = self
            .call(Lane::Read, "look at", move |link, uid| link.copyable(uid, &names))
            .await?;
        match how {
            Copyable::Still => self.still().await,
            Copyable::Container(controller) => self.container(controller).await,
            Copyable::Open(targets) => {
                let copied = self.open(&targets).await;
                if copied.is_err() {
                    let ended: Vec<String> = targets.into_values().collect();
                    let ended = self.call(Lane::Act, "end the copies of", move |link, uid| {
                        link.abandon_copies(uid, &ended)
                    });
                    if let Err(error) = ended.await {
                        tracing::info!(instance.uid = self.uid, %error, "copies are ended when libvirt can be asked");
                    }
                }
                copied
            }
            Copyable::Failed => Err(missing("it is suspended because its storage failed")),
        }
    }

    /// Nobody writes, and for now nobody begins to.
    async fn still(&self) -> Result<(), PerformError> {
        let _hold = self.context.clones.hold(self.uid);
        self.take(self.copies.iter()).await?;
        // Started by somebody else meanwhile: a file that was written to was seen, one that was read was not changed.
        Ok(())
    }

    async fn container(&self, controller: u32) -> Result<(), PerformError> {
        let _hold = self.context.clones.hold(self.uid);
        let runs = self.call(Lane::Act, "suspend", Link::suspend_running).await?;
        let taken = async {
            // What it has written is in its file system's memory as yet.
            self.context.storage.sync_container(controller).await?;
            self.take(self.copies.iter()).await
        };
        let taken = taken.await;
        if runs {
            self.call(Lane::Act, "resume", Link::resume).await?;
        }
        taken
    }

    async fn open(&self, targets: &BTreeMap<String, String>) -> Result<(), PerformError> {
        let is_open = |copy: &&DiskCopy| targets.contains_key(&copy.name);
        // A disk that is not attached is nobody's to write to.
        self.take(self.copies.iter().filter(|copy| !is_open(copy)))
            .await?;
        for copy in self.copies.iter().filter(is_open) {
            self.context.storage.prepare_copy(copy).await?;
            let (target, into) = (targets[&copy.name].clone(), copy.to.clone());
            self.call(Lane::Act, "copy a disk of", move |link, uid| {
                link.begin_copy(uid, &target, &into)
            })
            .await?;
        }
        let targets: Vec<String> = targets.values().cloned().collect();
        self.until_ready(&targets).await?;
        // It is resumed within the call, also when nobody waits for that any more.
        let hold = self.context.clones.hold(self.uid);
        self.call(Lane::Act, "end the copies of", move |link, uid| {
            let _hold = hold;
            link.end_copies(uid, &targets)
        })
        .await?;
        Ok(())
    }

    async fn until_ready(&self, targets: &[String]) -> Result<(), PerformError> {
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            let asked = targets.to_vec();
            let seen = self
                .call(Lane::Read, "look at the copies of", move |link, uid| {
                    link.copy_progress(uid, &asked)
                })
                .await?;
            if seen.ready {
                return Ok(());
            }
            if seen.done != last {
                (last, moved) = (seen.done, Instant::now());
            } else if moved.elapsed() > STANDSTILL {
                return Err(PerformError::CloneStandstill { after: STANDSTILL });
            }
            tokio::time::sleep(PERIOD).await;
        }
    }

    async fn take(&self, copies: impl Iterator<Item = &DiskCopy>) -> Result<(), PerformError> {
        for copy in copies {
            self.context.storage.take_copy(copy).await?;
        }
        Ok(())
    }

    async fn call<T: Send + 'static>(
        &self,
        lane: Lane,
        what: &'static str,
        call: impl FnOnce(&Link, &str) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let uid = self.uid.to_owned();
        self.connection
            .call(lane, self.uid, what, DEADLINE, move |link| call(link, &uid))
            .await
    }
}

/// Ends copies that an agent before this one began, or this one on a connection that was lost.
pub async fn sweep(context: Arc<Context>, uri: String) {
    let Some(connection) = context.connections.values().find(|c| c.uri() == uri) else {
        return;
    };
    let clones = Arc::clone(&context.clones);
    let ended = connection
        .call(
            Lane::Act,
            "all domains",
            "end old copies of",
            DEADLINE,
            move |link| link.end_stale_copies(|uuid| clones.is_source(uuid)),
        )
        .await;
    match ended {
        Ok(0) => {}
        Ok(count) => tracing::info!(uri, count, "ended copies that were left behind"),
        Err(error) => {
            tracing::info!(uri, %error, "copies that were left behind stay until the next connection");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_held_as_long_as_somebody_holds_it() {
        let clones = Arc::new(Clones::default());
        let copying = clones.copying("a");
        assert!(clones.is_source("a") && !clones.holds("a"));
        let (first, second) = (clones.hold("a"), clones.hold("a"));
        drop(first);
        assert!(clones.holds("a") && !clones.holds("b"));
        drop(second);
        assert!(!clones.holds("a") && clones.is_source("a"));
        drop(copying);
        assert!(!clones.is_source("a"));
    }
}
