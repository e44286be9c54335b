//! What every reconcile shares: caches, the queue, the ledger, and who is told of which change.
//!
//! Nothing here decides. A change of one object puts every object in line whose answer it could alter; the reconcile
//! then looks at everything anew.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::{Client, ResourceExt};
use tokio::time::Instant;
use virtshell_crds::{
    Environment, File, Group, Host, Image, Instance, Provisioner, Section, Task, TaskAssignment, User,
    launch, resolve,
};

use super::accept::{References, environment_name, frozen};
use super::cache::{Cache, Cached, Change, ObjectKey};
use super::depends;
use super::desk::{self, Desk};
use super::events::Events;
use super::index::Index;
use super::launch::group::parent_of;
use super::ledger;
use super::metrics::Metrics;
use super::pulse::Pulse;
use super::queue::Queue;
use super::room;
use super::roster::{Listed, Offer, Roster};
use super::stored::{self, Gateways};
use super::task;

/// Sums over many Instances (a host's `allocated`, an environment's count) are written at most this often.
pub const SUM_PERIOD: Duration = Duration::from_secs(5);

/// What can be in line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// An Instance.
    Instance(ObjectKey),
    /// A Host.
    Host(ObjectKey),
    /// A Section.
    Section(ObjectKey),
    /// An Environment.
    Environment(ObjectKey),
    /// An Image.
    Image(ObjectKey),
    /// A Provisioner.
    Provisioner(ObjectKey),
    /// A User.
    User(ObjectKey),
    /// A Group.
    Group(ObjectKey),
    /// A Task.
    Task(ObjectKey),
    /// A File.
    File(ObjectKey),
    /// The room on a Host, for those who wait for it.
    Room(ObjectKey),
}

impl Key {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Instance(_) => "Instance",
            Self::Host(_) => "Host",
            Self::Section(_) => "Section",
            Self::Environment(_) => "Environment",
            Self::Image(_) => "Image",
            Self::Provisioner(_) => "Provisioner",
            Self::User(_) => "User",
            Self::Group(_) => "Group",
            Self::Task(_) => "Task",
            Self::File(_) => "File",
            Self::Room(_) => "Room",
        }
    }

    /// Where the object is.
    #[must_use]
    pub const fn object(&self) -> &ObjectKey {
        match self {
            Self::Instance(key)
            | Self::Host(key)
            | Self::Section(key)
            | Self::Environment(key)
            | Self::Image(key)
            | Self::Provisioner(key)
            | Self::User(key)
            | Self::Group(key)
            | Self::Task(key)
            | Self::File(key)
            | Self::Room(key) => key,
        }
    }
}

/// What every reconcile shares.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// The operator's own namespace.
    pub namespace: String,
    /// What is to be looked at.
    pub queue: Queue<Key>,
    /// Metrics.
    pub metrics: Metrics,
    /// Events for people.
    pub events: Events,
    /// Instances, without user data.
    pub instances: Cache<Instance>,
    /// Hosts.
    pub hosts: Cache<Host>,
    /// Leases in the operator's namespace.
    pub leases: Cache<Lease>,
    /// Sections.
    pub sections: Cache<Section>,
    /// Environments.
    pub environments: Cache<Environment>,
    /// Images.
    pub images: Cache<Image>,
    /// Provisioners.
    pub provisioners: Cache<Provisioner>,
    /// Users.
    pub users: Cache<User>,
    /// Groups.
    pub groups: Cache<Group>,
    /// Kubernetes nodes, with their addresses alone.
    pub nodes: Cache<Node>,
    /// Files, without content.
    pub files: Cache<File>,
    /// Tasks.
    pub tasks: Cache<Task>,
    /// The parts of Tasks that hosts do, without output.
    pub assignments: Cache<TaskAssignment>,
    /// How long finished Tasks are kept.
    pub task_retention: Duration,
    /// Where clients reach the gateway.
    pub gateways: Arc<Gateways>,
    /// What hosts offer.
    pub roster: Roster,
    desk: Arc<Mutex<Desk>>,
    task_index: Arc<Mutex<task::index::Index>>,
    parts: Arc<Mutex<task::assign::Index>>,
    /// Instances (uid) whose announced Task is known to be there.
    announced: Mutex<HashSet<String>>,
    pulse: Mutex<Pulse>,
    /// When sums were last written, by object.
    summed: Mutex<BTreeMap<String, Instant>>,
    /// What identities were last made to be; see [`super::identity`](mod@super::identity).
    pub identities: super::identity::Identities,
}

impl Context {
    /// With empty caches.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: String,
        metrics: Metrics,
        events: Events,
        task_retention: Duration,
        gateways: Arc<Gateways>,
    ) -> Self {
        let desk = Arc::new(Mutex::new(Desk::default()));
        let follow = desk.clone();
        let task_index = Arc::new(Mutex::new(task::index::Index::default()));
        let index = task_index.clone();
        let parts = Arc::new(Mutex::new(task::assign::Index::default()));
        let assigned = parts.clone();
        Self {
            client,
            namespace,
            queue: Queue::default(),
            metrics,
            events,
            instances: Cache::tracked(move |change| lock(&follow).observe(change)),
            hosts: Cache::default(),
            leases: Cache::default(),
            sections: Cache::default(),
            environments: Cache::default(),
            images: Cache::default(),
            provisioners: Cache::default(),
            users: Cache::default(),
            groups: Cache::default(),
            nodes: Cache::default(),
            files: Cache::default(),
            tasks: Cache::tracked(move |change| lock(&index).observe(change)),
            assignments: Cache::tracked(move |change| lock(&assigned).observe(change)),
            task_retention,
            gateways,
            roster: Roster::default(),
            desk,
            task_index,
            parts,
            announced: Mutex::default(),
            pulse: Mutex::new(Pulse::default()),
            summed: Mutex::default(),
            identities: super::identity::Identities::default(),
        }
    }

    /// The ledger and who waits. Nothing that reads the Instance cache may run under it.
    pub fn desk(&self) -> MutexGuard<'_, Desk> {
        lock(&self.desk)
    }

    /// Unfinished work by Instance.
    pub fn task_index(&self) -> MutexGuard<'_, task::index::Index> {
        lock(&self.task_index)
    }

    /// Assignments by the Task they belong to.
    pub fn parts(&self) -> MutexGuard<'_, task::assign::Index> {
        lock(&self.parts)
    }

    /// Whether the Task that this Instance announces is known to be, or to have been, there.
    pub fn is_announced(&self, uid: &str) -> bool {
        lock(&self.announced).contains(uid)
    }

    /// It is.
    pub fn set_announced(&self, uid: &str) {
        lock(&self.announced).insert(uid.to_owned());
    }

    /// Which hosts live.
    pub fn pulse(&self) -> MutexGuard<'_, Pulse> {
        lock(&self.pulse)
    }

    /// All hosts, with what placement needs to know of them. Neither desk nor pulse may be held.
    pub fn listed_hosts(&self) -> Arc<[Listed]> {
        let now = Instant::now();
        self.roster.of(
            &self.hosts,
            now,
            |host| self.pulse().until_silent(host, now),
            |host| self.desk().ledger.slot(host),
        )
    }

    /// Takes in the answer to a write of ours.
    pub fn stored_instance(&self, instance: Instance) {
        if let Some(change) = self.instances.store(instance) {
            self.instance_changed(&change);
        }
    }

    /// Takes in the answer to a write of ours.
    pub fn stored_host(&self, host: Host) {
        if let Some(change) = self.hosts.store(host) {
            self.host_changed(&change);
        }
    }

    /// Takes in the answer to a write of ours.
    pub fn stored_task(&self, task: Task) {
        if let Some(change) = self.tasks.store(task) {
            self.task_changed(&change);
        }
    }

    /// Takes in the answer to a write of ours.
    pub fn stored_assignment(&self, part: TaskAssignment) {
        if let Some(change) = self.assignments.store(part) {
            self.assignment_changed(&change);
        }
    }

    /// Everything that an Instance refers to.
    pub fn references(&self, instance: &Instance) -> References {
        let spec = &instance.spec;
        let namespace = instance.metadata.namespace.as_deref().unwrap_or_default();
        let environment = self.environments.find(namespace, environment_name(spec));
        let section = environment.as_ref().and_then(|e| e.spec.section.as_deref());
        let provisioner = spec
            .provisioner
            .as_deref()
            .and_then(|name| self.provisioners.find(namespace, name));
        let image = resolve::image_name(spec, provisioner.as_deref().map(|p| &p.spec));
        let disks = spec.disks.iter().filter_map(|disk| {
            let image = self.images.find(namespace, disk.image.as_deref()?)?;
            Some((disk.name.clone(), image))
        });
        let image = image.and_then(|name| self.images.find(namespace, name));
        let disk_images: BTreeMap<_, _> = disks.collect();
        let stored = stored::look_up(self, instance, image.iter().chain(disk_images.values()));
        let find = |name: &str| self.provisioners.find(namespace, name);
        let flaw = match (&provisioner, frozen(instance)) {
            (Some(provisioner), None) => depends::walk(provisioner, &find).err(),
            // Frozen values do not change with the provisioners.
            (Some(_) | None, _) => None,
        };
        References {
            flaw,
            section: section.and_then(|name| self.sections.find("", name)),
            image,
            disk_images,
            stored,
            parent: self.launch_parent(instance),
            source: self.clone_source(instance),
            namesakes: self.instances.namesakes(namespace, instance.wire_name()),
            environment,
            provisioner,
        }
    }

    /// The launch parent that made an Instance.
    pub fn launch_parent(&self, instance: &Instance) -> Option<Arc<Instance>> {
        let owner = parent_of(instance)?;
        let parent = self.instances.get(&ObjectKey {
            namespace: instance.namespace().unwrap_or_default(),
            name: owner.name.clone(),
        })?;
        (parent.metadata.uid.as_ref() == Some(&owner.uid)).then_some(parent)
    }

    /// The Instance whose disks this one starts with.
    pub fn clone_source(&self, instance: &Instance) -> Option<Arc<Instance>> {
        let from = instance.spec.clone_from.as_ref()?;
        let namespace = instance.metadata.namespace.clone().unwrap_or_default();
        let key = ObjectKey {
            namespace,
            name: from.name.clone(),
        };
        let same = |found: &Arc<Instance>| {
            found.metadata.uid != instance.metadata.uid
                && from
                    .uid
                    .as_ref()
                    .is_none_or(|uid| found.metadata.uid.as_ref() == Some(uid))
        };
        self.instances
            .get(&key)
            .filter(same)
            .or_else(|| self.instances.find(&key.namespace, &key.name).filter(same))
    }

    /// The Environment an Instance is in, by its frozen values or its spec.
    pub fn environment_of(&self, instance: &Instance) -> Option<Arc<Environment>> {
        let ObjectKey { namespace, name } = desk::environment(instance);
        self.environments.find(&namespace, &name)
    }

    /// The Instances that use what `index` has, under any of the names it goes by. The desk must not be held.
    pub fn naming<K: Cached>(
        &self,
        cache: &Cache<K>,
        object: &K,
        index: impl Fn(&Desk) -> &Index<ObjectKey>,
    ) -> Vec<ObjectKey> {
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        let uid = object.uid();
        // A name may mean another object, which has it as its wire name.
        let names: BTreeSet<String> = [object.wire_name().to_owned(), object.name_any()]
            .into_iter()
            .filter(|name| {
                cache
                    .find(&namespace, name)
                    .is_some_and(|found| found.uid() == uid)
            })
            .collect();
        let desk = self.desk();
        let names = names.into_iter().map(|name| ObjectKey {
            namespace: namespace.clone(),
            name,
        });
        names
            .flat_map(|name| index(&desk).of(&name).cloned().collect::<Vec<_>>())
            .collect()
    }

    /// `None` = write the sum now (and it counts as written); else how long to wait.
    pub fn sum_due(&self, what: &str) -> Option<Duration> {
        let mut summed = lock(&self.summed);
        let now = Instant::now();
        match summed.get(what).map(|last| *last + SUM_PERIOD) {
            Some(due) if due > now => Some(due - now),
            Some(_) | None => {
                summed.insert(what.to_owned(), now);
                None
            }
        }
    }

    /// An Instance changed.
    pub fn instance_changed(&self, change: &Change<Instance>) {
        let Some(any) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        let key = ObjectKey::of(&**any);
        // Who has no host yet does not wait for those who have one: a new leader begins with all of them in line.
        if change.new.as_deref().is_some_and(desk::waits_for_host) {
            self.queue.add_urgent(Key::Instance(key.clone()));
        } else {
            self.queue.add(Key::Instance(key.clone()));
        }
        // The name it had is free: another may want it.
        if let Some(old) = &change.old
            && change
                .new
                .as_ref()
                .is_none_or(|new| new.wire_name() != old.wire_name())
        {
            let name = old.wire_name();
            // A launch may want it for its child.
            for name in [Some(name), launch::parent_name(name)].into_iter().flatten() {
                for other in self.instances.namesakes(&key.namespace, name) {
                    self.queue.add(Key::Instance(ObjectKey::of(&*other)));
                }
            }
        }
        let sides = [change.old.as_ref(), change.new.as_ref()];
        let moved =
            |f: fn(&Instance) -> Option<&str>| sides[0].and_then(|i| f(i)) != sides[1].and_then(|i| f(i));
        let sums = sides[0].map(|i| (ledger::bound_host(i), ledger::demand(i)))
            != sides[1].map(|i| (ledger::bound_host(i), ledger::demand(i)));
        if sums {
            for host in sides.iter().flatten().filter_map(|i| i.spec.host.clone()) {
                self.queue
                    .add_after(Key::Host(cluster_key(&host)), Duration::from_millis(200));
            }
        }
        if change.old.is_none()
            || change.new.is_none()
            || moved(|i| frozen(i).map(|r| r.environment.as_str()))
        {
            for environment in sides.iter().flatten().filter_map(|i| self.environment_of(i)) {
                self.queue.add_after(
                    Key::Environment(ObjectKey::of(&*environment)),
                    Duration::from_millis(200),
                );
            }
        }
        if moved(|i| i.spec.host.as_deref()) || moved(|i| frozen(i).map(|r| r.environment.as_str())) {
            self.wake_clones_of(any);
        }
        self.wake_tasks_on(&key);
        if let Some(provisioner) = &any.spec.provisioner
            && change.old.as_deref().map(depends::view) != change.new.as_deref().map(depends::view)
        {
            self.wake_dependents_on(&key.namespace, provisioner);
        }
        if let Some(owner) = parent_of(any) {
            let parent = ObjectKey {
                namespace: key.namespace.clone(),
                name: owner.name.clone(),
            };
            self.wake_tasks_on(&parent);
            // Children change together: one look at their parent is enough for many.
            self.queue
                .add_after(Key::Instance(parent), Duration::from_millis(200));
        }
        if change.new.is_none() {
            lock(&self.announced).remove(&any.uid().unwrap_or_default());
        }
        self.tell_of_room();
    }

    /// Those that are to have copies of its disks look again: they go where it is.
    fn wake_clones_of(&self, source: &Instance) {
        let desk = self.desk();
        for name in [source.name_any().as_str(), source.wire_name()] {
            for key in desk.clones.of(&desk::beside(source, name)) {
                self.queue.add(Key::Instance(key.clone()));
            }
        }
    }

    /// Those that depend on an Instance by this provisioner look again.
    fn wake_dependents_on(&self, namespace: &str, provisioner: &str) {
        let found = self.provisioners.find(namespace, provisioner);
        let names = found
            .iter()
            .flat_map(|p| [p.wire_name().to_owned(), p.name_any()]);
        let names: BTreeSet<String> = names.chain([provisioner.to_owned()]).collect();
        let desk = self.desk();
        for name in names {
            let namespace = namespace.to_owned();
            for key in desk.depending_on.of(&ObjectKey { namespace, name }) {
                self.queue.add(Key::Instance(key.clone()));
            }
        }
    }

    /// Hosts that got more room are offered to those who wait for it; see [`super::room`].
    pub fn tell_of_room(&self) {
        for host in self.desk().take_freed() {
            self.queue
                .add_after(Key::Room(cluster_key(&host)), room::GATHERING);
        }
    }

    /// The binding of an Instance was not written: its room is free again.
    pub fn forget_assumed(&self, uid: &str) {
        self.desk().ledger.forget(uid);
        self.tell_of_room();
    }

    /// Puts an object in line, and those whose name it had or took.
    fn named_changed<K: Cached>(&self, cache: &Cache<K>, change: &Change<K>, key: fn(ObjectKey) -> Key) {
        let sides = [change.old.as_deref(), change.new.as_deref()];
        if let Some(new) = sides[1] {
            self.queue.add(key(ObjectKey::of(new)));
        }
        if sides[0].map(Cached::full_name) == sides[1].map(Cached::full_name) {
            return;
        }
        for object in sides.into_iter().flatten() {
            let namespace = object.meta().namespace.as_deref().unwrap_or_default();
            for other in cache.namesakes(namespace, &object.full_name()) {
                self.queue.add(key(ObjectKey::of(&*other)));
            }
        }
    }

    /// An Image changed.
    pub fn image_changed(&self, change: &Change<Image>) {
        self.named_changed(&self.images, change, Key::Image);
        self.reference_changed(change);
    }

    /// A Provisioner changed.
    pub fn provisioner_changed(&self, change: &Change<Provisioner>) {
        self.named_changed(&self.provisioners, change, Key::Provisioner);
        self.reference_changed(change);
        // Others may be what Instances depend on now.
        if change.alters_spec() {
            for provisioner in [&change.old, &change.new].into_iter().flatten() {
                let namespace = provisioner.namespace().unwrap_or_default();
                self.wake_dependents_on(&namespace, provisioner.wire_name());
                self.wake_dependents_on(&namespace, &provisioner.name_any());
            }
            self.wake_provisioners_beside(change);
        }
    }

    /// Provisioners that depend on others look again: whether they wait for themselves may have changed with any of them.
    fn wake_provisioners_beside(&self, change: &Change<Provisioner>) {
        let sides = [change.old.as_deref(), change.new.as_deref()];
        let says = |p: Option<&Provisioner>| p.map(|p| (p.wire_name().to_owned(), p.spec.depends.clone()));
        let Some(any) = sides.into_iter().flatten().next() else {
            return;
        };
        if says(sides[0]) == says(sides[1]) {
            return;
        }
        for other in self.provisioners.all() {
            if other.metadata.namespace == any.metadata.namespace && !other.spec.depends.is_empty() {
                self.queue.add(Key::Provisioner(ObjectKey::of(&*other)));
            }
        }
    }

    /// A File changed.
    pub fn file_changed(&self, change: &Change<File>) {
        self.named_changed(&self.files, change, Key::File);
        self.reference_changed(change);
    }

    /// A Group changed.
    pub fn group_changed(&self, change: &Change<Group>) {
        self.named_changed(&self.groups, change, Key::Group);
        self.reference_changed(change);
    }

    /// A Kubernetes node changed: a Host may be on it.
    pub fn node_changed(&self, change: &Change<Node>) {
        let addresses = |node: &Option<Arc<Node>>| node.as_ref().and_then(|n| n.status.clone()?.addresses);
        if change.old.is_none() || addresses(&change.old) != addresses(&change.new) {
            for host in self.hosts.all() {
                if host.spec.node_name.is_none() {
                    self.queue.add(Key::Host(ObjectKey::of(&*host)));
                }
            }
        }
    }

    /// Something changed that Instances refer to, or that decides whether they may.
    fn reference_changed<K: Cached>(&self, change: &Change<K>) {
        if change.alters_spec() {
            self.wake(&self.desk().unaccepted);
        }
    }

    /// A Host changed.
    pub fn host_changed(&self, change: &Change<Host>) {
        let Some(any) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        let key = ObjectKey::of(&**any);
        if change.new.is_some() {
            self.pulse().meet(&key.name, Instant::now());
        } else {
            self.pulse().forget(&key.name);
        }
        let gone = |host: &Option<Arc<Host>>| host.as_deref().is_some_and(super::host::is_confirmed_gone);
        self.pulse().confirm(&key.name, gone(&change.new));
        if gone(&change.new) && !gone(&change.old) {
            self.wake_instances_of(&key.name);
        }
        self.queue.add(Key::Host(key));
        self.named_changed(&self.hosts, change, Key::Host);
        if change.old.as_deref().map(Offer::of) != change.new.as_deref().map(Offer::of) {
            self.roster.forget();
            self.wake(&self.desk().unscheduled);
        }
        if change.old.as_deref().map(|h| (&h.spec.section, h.wire_name()))
            != change.new.as_deref().map(|h| (&h.spec.section, h.wire_name()))
        {
            self.all_groupings();
        }
    }

    /// A Lease changed.
    pub fn lease_changed(&self, change: &Change<Lease>) {
        let Some(lease) = &change.new else { return };
        let Some(host) = lease
            .metadata
            .name
            .as_deref()
            .and_then(|n| n.strip_prefix("virtshell-host-"))
        else {
            return;
        };
        let renewed = lease.spec.as_ref().and_then(|s| s.renew_time.as_ref());
        let (is_back, contradicts) = {
            let mut pulse = self.pulse();
            (pulse.beat(host, renewed, Instant::now()), pulse.contradicts(host))
        };
        if is_back || contradicts {
            self.queue.add(Key::Host(cluster_key(host)));
        }
        if is_back {
            self.roster.forget();
            self.wake(&self.desk().unscheduled);
        }
    }

    /// A Section changed.
    pub fn section_changed(&self, change: &Change<Section>) {
        self.named_changed(&self.sections, change, Key::Section);
        if change.alters_spec() {
            self.roster.forget();
            self.all_groupings();
            // It may be the one that they name.
            for host in self.hosts.keys() {
                self.queue.add(Key::Host(host));
            }
            self.wake(&self.desk().unaccepted);
            self.wake(&self.desk().unscheduled);
        }
    }

    /// An Environment changed.
    pub fn environment_changed(&self, change: &Change<Environment>) {
        self.named_changed(&self.environments, change, Key::Environment);
        if change.alters_spec() {
            self.roster.forget();
            // It holds the section it names, or lets it go.
            for key in self.sections.keys() {
                self.queue.add(Key::Section(key));
            }
            self.wake(&self.desk().unaccepted);
            self.wake(&self.desk().unscheduled);
        }
    }

    /// A User changed.
    pub fn user_changed(&self, change: &Change<User>) {
        let Some(any) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        let key = ObjectKey::of(&**any);
        for group in self
            .groups
            .keys()
            .into_iter()
            .filter(|g| g.namespace == key.namespace)
        {
            self.queue.add(Key::Group(group));
        }
        self.named_changed(&self.users, change, Key::User);
        self.reference_changed(change);
    }

    /// A Task changed.
    pub fn task_changed(&self, change: &Change<Task>) {
        let Some(any) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        self.queue.add(Key::Task(ObjectKey::of(&**any)));
        // Whatever was behind it on the same Instances may go on.
        let namespace = any.namespace().unwrap_or_default();
        for target in &any.spec.targets {
            let instance = ObjectKey {
                namespace: namespace.clone(),
                name: target.name.clone(),
            };
            self.wake_tasks_on(&instance);
        }
    }

    /// A `TaskAssignment` changed.
    pub fn assignment_changed(&self, change: &Change<TaskAssignment>) {
        let Some(any) = change.new.as_ref().or(change.old.as_ref()) else {
            return;
        };
        let at = |name: &str| ObjectKey {
            namespace: any.namespace().unwrap_or_default(),
            name: name.to_owned(),
        };
        self.queue.add(Key::Task(at(&any.spec.task.name)));
        for target in &any.spec.targets {
            self.wake_tasks_on(&at(&target.name));
        }
    }

    /// The Instances that name a host (metadata.name) in their spec.
    pub fn instances_on(&self, host: &str) -> Vec<ObjectKey> {
        self.desk().on_host.of(&host.to_owned()).cloned().collect()
    }

    /// Puts every Instance of a host, and the unfinished work on it, in line.
    pub fn wake_instances_of(&self, host: &str) {
        for key in self.instances_on(host) {
            self.wake_tasks_on(&key);
            self.queue.add(Key::Instance(key));
        }
    }

    fn wake_tasks_on(&self, instance: &ObjectKey) {
        for task in self.task_index().of(instance) {
            self.queue.add(Key::Task(task));
        }
    }

    fn all_groupings(&self) {
        for key in self.sections.keys() {
            self.queue.add(Key::Section(key));
        }
        for key in self.environments.keys() {
            self.queue.add(Key::Environment(key));
        }
    }

    fn wake(&self, waiting: &HashSet<ObjectKey>) {
        for key in waiting {
            self.queue.add(Key::Instance(key.clone()));
        }
    }
}

/// The key of a cluster-scoped object.
#[must_use]
pub fn cluster_key(name: &str) -> ObjectKey {
    ObjectKey {
        namespace: String::new(),
        name: name.to_owned(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Bookkeeping is consistent after each of its own calls; a panic elsewhere under the lock leaves it usable.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
