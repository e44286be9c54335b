//! Executes the steps of a plan, one after the other.
//!
//! No step decides anything: what it needs is in the machine, the files' paths and the step itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use libvirt_ffi::Lifecycle;
use virtshell_crds::instance::{Driver, ResolvedImage};

use super::clone;
use super::connection::{Connection, Lane};
use super::context::{Context, Record};
use super::domain_xml::{Paths, domain_xml};
use super::goal::{CloneSource, Identity, Machine};
use super::hypervisor::{HypervisorError, chain};
use super::libvirt::Link;
use super::observed::Asked;
use super::plan::{Action, Change, STABLE};
use super::storage::{Answers, CachedImage, Seed, StorageError};

/// How long libvirt may take for a change; a start probes QEMU first where its capabilities are not cached (4 s).
const CHANGE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a power off may take: libvirt waits up to 15 s for a QEMU that does not react to SIGTERM.
const DESTROY_DEADLINE: Duration = Duration::from_secs(45);
/// How long a guest agent may take to accept a shutdown request.
const ASK_DEADLINE: Duration = Duration::from_secs(10);

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum PerformError {
    /// libvirt.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// Files.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The Secret with the user data.
    #[error("Field cloudInit: secret {secret} cannot be read")]
    Secret {
        /// Name of the Secret.
        secret: String,
        /// What the API server said.
        #[source]
        source: kube::Error,
    },
    /// The Instance to copy from cannot be copied from.
    #[error("Field cloneFrom: instance {source_name}: {why}")]
    CloneSource {
        /// Its name.
        source_name: String,
        /// What is wrong.
        why: String,
    },
    /// The copy of a disk does not come on.
    #[error("Field cloneFrom: the copy of the disks stands still for {} s", after.as_secs())]
    CloneStandstill {
        /// For how long.
        after: Duration,
    },
    /// The Secret has no such key, or no text in it.
    #[error("Field cloudInit: secret {secret} has no text under the key {key}")]
    SecretKey {
        /// Name of the Secret.
        secret: String,
        /// The key.
        key: String,
    },
}

impl PerformError {
    /// One word for condition, Event and metric label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Hypervisor(error) => error.reason(),
            Self::Storage(error) => error.reason(),
            Self::Secret { .. } | Self::SecretKey { .. } => "UserDataUnavailable",
            Self::CloneSource { .. } => "CloneSourceUnavailable",
            Self::CloneStandstill { .. } => "CloneFailed",
        }
    }

    /// The message with its causes.
    #[must_use]
    pub fn explain(&self) -> String {
        match self {
            Self::Hypervisor(error) => chain(error),
            Self::Storage(error) => error.explain(),
            Self::Secret { .. }
            | Self::SecretKey { .. }
            | Self::CloneSource { .. }
            | Self::CloneStandstill { .. } => chain(self),
        }
    }

    /// Whether nothing may be said about the domain.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::Hypervisor(error) => error.is_unknown(),
            Self::Storage(_)
            | Self::Secret { .. }
            | Self::SecretKey { .. }
            | Self::CloneSource { .. }
            | Self::CloneStandstill { .. } => false,
        }
    }

    /// Whether a later try may succeed without anybody's edit.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Hypervisor(error) => error.reason() != "DomainRejected",
            Self::Storage(error) => error.is_transient(),
            Self::Secret { .. }
            | Self::SecretKey { .. }
            | Self::CloneSource { .. }
            | Self::CloneStandstill { .. } => true,
        }
    }
}

/// One Instance's way to libvirt and to its files.
pub struct Performer<'a> {
    /// What every part shares.
    pub context: &'a Arc<Context>,
    /// Its libvirt.
    pub connection: &'a Arc<Connection>,
    /// Whose domain.
    pub id: &'a Identity,
    /// What it should be; absent when it should be gone.
    pub machine: Option<&'a Machine>,
    /// UUID of the domain.
    pub uuid: String,
}

impl Performer<'_> {
    /// Executes one step and notes in `record` what later looks need to know of it.
    pub async fn perform(&self, action: &Action, record: &mut Record) -> Result<(), PerformError> {
        tracing::debug!(
            instance.uid = self.id.uid,
            domain = self.id.domain_name,
            ?action,
            "step"
        );
        let began = Instant::now();
        match action {
            Action::MakeRoot
            | Action::MakeDisk(_)
            | Action::MakeSeed
            | Action::GrowDisk(..)
            | Action::RemoveFiles { .. } => self.files(action, record).await?,
            Action::Define(metadata) => {
                if let Some(machine) = self.machine {
                    let (machine, metadata) = (machine.clone(), metadata.clone());
                    let paths = self.paths(&machine, record).await?;
                    let defining =
                        self.call_on(Lane::Define, "define", CHANGE_DEADLINE, move |link, uuid| {
                            let present = link.configuration(uuid)?;
                            let xml = domain_xml(&machine, &paths, &metadata, present.as_ref());
                            link.define(&machine.id.domain_name, &xml)
                        });
                    self.echoed(&[Lifecycle::Defined], defining).await?;
                }
            }
            Action::SetAutostart(on) => {
                self.on_domain(Lane::Define, "set autostart of", *on, Link::set_autostart)
                    .await?;
            }
            Action::Start { paused } => {
                if self.machine.is_some_and(|m| m.driver == Driver::Lxc) {
                    self.context.storage.container_root(&self.id.uid).await?;
                }
                let told: &[_] = if *paused {
                    &[Lifecycle::Started]
                } else {
                    &[Lifecycle::Started, Lifecycle::Resumed]
                };
                self.echoed(told, self.on_domain(Lane::Define, "start", *paused, Link::start))
                    .await?;
                note_start(record, self.machine, self.context.now());
                record.timings.start_ms = millis(began);
                return Ok(());
            }
            Action::Suspend => {
                self.on_domain(Lane::Act, "suspend", (), |link, uuid, ()| link.suspend(uuid))
                    .await?;
            }
            Action::Resume => {
                self.on_domain(Lane::Act, "resume", (), |link, uuid, ()| link.resume(uuid))
                    .await?;
                record.memory.resumed = Some(self.context.now());
            }
            Action::Ask { agent } => self.ask(*agent, record).await?,
            Action::Destroy => {
                record.expected_off = true;
                self.call_on(Lane::Kill, "power off", DESTROY_DEADLINE, Link::destroy)
                    .await?;
            }
            Action::Undefine => {
                self.call_on(Lane::Define, "undefine", CHANGE_DEADLINE, Link::undefine)
                    .await?;
            }
            Action::Change(change) => self.change(change, record).await?,
            Action::SetLiveMetadata(metadata) => {
                self.on_domain(
                    Lane::Define,
                    "write the metadata of",
                    metadata.clone(),
                    |link, uuid, m| link.set_live_metadata(uuid, &m),
                )
                .await?;
            }
        }
        record.timings.define_ms += millis(began);
        Ok(())
    }

    // --- libvirt ----------------------------------------------------------------------------------------------------

    async fn call_on(
        &self,
        lane: Lane,
        what: &'static str,
        deadline: Duration,
        call: impl FnOnce(&Link, &str) -> Result<(), HypervisorError> + Send + 'static,
    ) -> Result<(), HypervisorError> {
        let uuid = self.uuid.clone();
        self.connection
            .call(lane, &self.id.uid, what, deadline, move |link| call(link, &uuid))
            .await
    }

    /// A call of which libvirt will tell.
    async fn echoed(
        &self,
        events: &[Lifecycle],
        call: impl Future<Output = Result<(), HypervisorError>>,
    ) -> Result<(), HypervisorError> {
        let echoes = &self.context.echoes;
        echoes.expect(&self.uuid, events, self.context.now());
        let answer = call.await;
        if answer.is_err() {
            echoes.forget(&self.uuid);
        }
        answer
    }

    async fn on_domain<T: Send + 'static>(
        &self,
        lane: Lane,
        what: &'static str,
        value: T,
        call: impl FnOnce(&Link, &str, T) -> Result<(), HypervisorError> + Send + 'static,
    ) -> Result<(), HypervisorError> {
        self.call_on(lane, what, CHANGE_DEADLINE, move |link, uuid| {
            call(link, uuid, value)
        })
        .await
    }

    /// A guest that cannot be asked now is asked again: a refusal is no failure.
    async fn ask(&self, agent: bool, record: &mut Record) -> Result<(), HypervisorError> {
        record.expected_off = true;
        let now = self.context.now();
        let asked = record.memory.asked.get_or_insert(Asked {
            since: now,
            last: now,
            times: 0,
        });
        (asked.last, asked.times) = (now, asked.times + 1);
        let lane = if agent { Lane::Agent } else { Lane::Act };
        let uuid = self.uuid.clone();
        let ask = move |link: &Link| link.ask_shutdown(&uuid, agent);
        match self
            .connection
            .call(lane, &self.id.uid, "shut down", ASK_DEADLINE, ask)
            .await
        {
            Err(HypervisorError::Disconnected { uri, source }) => {
                Err(HypervisorError::Disconnected { uri, source })
            }
            Err(error) => {
                tracing::info!(
                    instance.uid = self.id.uid,
                    agent,
                    error = chain(&error),
                    "the guest cannot be asked now"
                );
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// A live change. One that is refused waits for the next restart; it is no failure.
    async fn change(&self, change: &Change, record: &mut Record) -> Result<(), HypervisorError> {
        let ordered = change.clone();
        let done = self
            .call_on(
                Lane::Act,
                "change",
                CHANGE_DEADLINE,
                move |link, uuid| match &ordered {
                    Change::Vcpus(cpus) => link.set_vcpus(uuid, *cpus),
                    Change::Memory(mib) => link.set_memory(uuid, *mib),
                    Change::Attach(device) => link.attach(uuid, device),
                    Change::Detach(device) => link.detach(uuid, device),
                    Change::Update(device) => link.update(uuid, device),
                    Change::Grow(disk, mib) => link.grow(uuid, disk, *mib),
                },
            )
            .await;
        let now = self.context.now();
        match (done, change) {
            (Err(HypervisorError::Refused { source, .. }), _) => {
                tracing::info!(instance.uid = self.id.uid, ?change, %source, "a live change was refused");
                record.memory.refused.push(change.clone());
            }
            (Err(error), _) => return Err(error),
            (Ok(()), Change::Memory(mib)) => record.memory.balloon = Some((*mib, now)),
            (Ok(()), Change::Detach(device)) => {
                record.memory.detaching.insert(device.clone(), now);
            }
            (Ok(()), _) => {}
        }
        Ok(())
    }

    // --- Files ------------------------------------------------------------------------------------------------------

    async fn files(&self, action: &Action, record: &Record) -> Result<(), PerformError> {
        let (storage, uid) = (&self.context.storage, self.id.uid.as_str());
        match (action, self.machine) {
            (Action::RemoveFiles { retain_disks }, _) => storage.remove(uid, *retain_disks).await?,
            (Action::GrowDisk(name, mib), _) => drop(storage.grow_disk(uid, name, *mib).await?),
            (Action::MakeRoot, Some(machine)) => {
                let image = machine.image.as_ref().and_then(|i| cached(record, i));
                if machine.driver == Driver::Lxc {
                    let seed = self.seed(machine).await?;
                    storage
                        .create_root_with_seed(uid, image, machine.disk_mib, &seed)
                        .await?;
                } else {
                    storage
                        .create_root_disk(uid, image, machine.driver, machine.disk_mib)
                        .await?;
                }
            }
            (Action::MakeSeed, Some(machine)) => {
                let seed = self.seed(machine).await?;
                match machine.driver {
                    Driver::Lxc => storage.write_root_seed(uid, &seed).await?,
                    Driver::Kvm | Driver::Qemu => {
                        // Before the seed, by which both count as made.
                        if let Some(image) = &machine.image {
                            storage.create_answers(uid, image, &answers(machine)).await?;
                        }
                        storage.create_seed(uid, &seed).await?;
                    }
                }
            }
            (Action::MakeDisk(name), Some(machine)) => {
                if let Some(disk) = machine.disks.iter().find(|d| d.name == *name) {
                    let image = disk.image.as_ref().and_then(|i| cached(record, i));
                    storage.create_disk(uid, name, image, disk.size_mib).await?;
                }
            }
            // Making files is planned only for a machine; the other steps are not for files.
            _ => {}
        }
        Ok(())
    }

    /// Copies the disks of the Instance that this one is a clone of.
    pub async fn clone_disks(&self, machine: &Machine, source: &CloneSource) -> Result<(), PerformError> {
        let seed = self.seed(machine).await?;
        clone::copy_disks(self.context, self.connection, machine, source, &seed).await
    }

    async fn seed(&self, machine: &Machine) -> Result<Seed, PerformError> {
        let goal = &machine.seed;
        let user_data = match &goal.user_data_from {
            Some(from) => Some(self.secret(&from.secret, &from.key).await?),
            None => goal.user_data.clone(),
        };
        Ok(Seed {
            hostname: goal.hostname.clone(),
            ssh_key: self.ssh_keys(machine),
            timezone: goal.timezone.clone(),
            user_data,
            network_data: goal.network_data.clone(),
        })
    }

    /// The image's keys, and this agent's for guests that SSH may be the only way into.
    fn ssh_keys(&self, machine: &Machine) -> String {
        let mut keys = machine.seed.ssh_key.clone();
        if let Some(key) = self.context.ssh_key.as_ref().filter(|_| machine.has_agent()) {
            keys.extend(["\n", key.public()]);
        }
        keys
    }

    async fn secret(&self, name: &str, key: &str) -> Result<String, PerformError> {
        let api: Api<Secret> = Api::namespaced(self.context.client.clone(), &self.id.namespace);
        let secret = api.get(name).await.map_err(|source| PerformError::Secret {
            secret: name.to_owned(),
            source,
        })?;
        let bytes = secret.data.and_then(|mut data| data.remove(key));
        bytes
            .and_then(|bytes| String::from_utf8(bytes.0).ok())
            .ok_or_else(|| PerformError::SecretKey {
                secret: name.to_owned(),
                key: key.to_owned(),
            })
    }

    async fn paths(&self, machine: &Machine, record: &Record) -> Result<Paths, StorageError> {
        let files = self.context.storage.files(&self.id.uid);
        let iso: Option<PathBuf> = machine
            .image
            .as_ref()
            .filter(|_| machine.installs())
            .and_then(|image| cached(record, image))
            .map(|image| image.path.clone());
        let root = match machine.driver {
            Driver::Lxc => self.context.storage.container_root(&self.id.uid).await?,
            Driver::Kvm | Driver::Qemu => files.root_qcow2.clone(),
        };
        Ok(Paths {
            disks: machine.disks.iter().map(|d| files.disk(&d.name)).collect(),
            root,
            seed: (machine.driver != Driver::Lxc).then_some(files.seed),
            answers: machine.has_answers().then_some(files.answers),
            iso,
            kernel: record
                .boot
                .as_ref()
                .map(|boot| (boot.kernel.clone(), boot.initrd.clone())),
        })
    }
}

fn answers(machine: &Machine) -> Answers {
    let seed = &machine.seed;
    Answers {
        hostname: seed.hostname.clone(),
        timezone: seed.timezone.clone(),
        username: seed.username.clone(),
        pwhash: seed.password_hash.clone(),
    }
}

/// The cached content of an image.
fn cached<'a>(record: &'a Record, image: &ResolvedImage) -> Option<&'a CachedImage> {
    let key = image_key(image);
    record
        .images
        .iter()
        .find(|(k, _)| *k == key)
        .map(|(_, cached)| cached)
}

/// What tells two images apart.
#[must_use]
pub fn image_key(image: &ResolvedImage) -> String {
    format!("{} {} {}", image.url, image.sha256, image.type_.as_str())
}

fn note_start(record: &mut Record, machine: Option<&Machine>, now: Duration) {
    let starts = &mut record.memory.starts;
    let soon = starts.last.is_some_and(|last| now.saturating_sub(last) < STABLE);
    starts.quick = if soon && !record.expected_off {
        starts.quick + 1
    } else {
        0
    };
    starts.last = Some(now);
    record.expected_off = false;
    record.memory.asked = None;
    record.memory.refused.clear();
    record.memory.detaching.clear();
    // The guest's driver brings the balloon to its size while it boots.
    let ballooned = machine.filter(|m| m.memory_mib < m.max_memory_mib);
    record.memory.balloon = ballooned.map(|m| (m.memory_mib, now));
    record.started_at = Some(Timestamp::now());
    record.timings.agent_ms = None;
}

fn millis(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX)
}
