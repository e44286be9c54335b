//! What guests say of themselves: whether their agent answers, and which addresses they have.
//!
//! One watcher per running domain asks in the background, often while the guest boots and seldom afterwards, so that no
//! reconcile ever waits for a guest. A changed answer asks for a look; [`super::report`] writes it down.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::connection::{Connection, Lane};
use super::hypervisor::{HypervisorError, chain};
use super::libvirt::{AddressSource, GuestInterface, Link};
use super::observed::Moment;
use super::queue::Requests;

/// How often a guest is asked while it boots: its agent comes up within seconds.
const WHILE_BOOTING: Duration = Duration::from_millis(300);
/// How long a guest counts as booting.
const BOOT: Duration = Duration::from_mins(2);
/// How often a guest is asked that has not said everything by then.
const WHILE_SILENT: Duration = Duration::from_secs(10);
/// How often a guest is asked that has said everything, and its QEMU for a sign of life.
const WHEN_SETTLED: Duration = Duration::from_secs(30);
/// How often an address is asked for that is known: it may change without an event, but seldom does.
const ADDRESSES: Duration = Duration::from_mins(1);
/// How long the agent may take to answer.
const AGENT_DEADLINE: Duration = Duration::from_secs(5);
/// How long libvirt may take to answer for itself.
const READ_DEADLINE: Duration = Duration::from_secs(5);

/// What one guest said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestView {
    /// Whether its agent answers; absent before it did for the first time.
    pub agent: Option<bool>,
    /// When its agent first answered, on this agent's clock.
    pub answered_at: Option<Moment>,
    /// Since when it is watched in this run, on this agent's clock.
    pub since: Option<Moment>,
    /// Its interfaces.
    pub interfaces: Vec<GuestInterface>,
    /// Whether its agent said so; else libvirt's leases do.
    pub said_by_agent: bool,
}

/// The watchers, by uid.
#[derive(Default)]
pub struct Guests(Mutex<HashMap<String, Watched>>);

struct Watched {
    /// Tells one run of a domain from the next.
    run: String,
    view: GuestView,
    poke: Arc<Notify>,
    task: AbortHandle,
}

/// Whom to watch, and how.
#[derive(Clone)]
pub struct Watch {
    /// uid of the Instance.
    pub uid: String,
    /// UUID of the domain.
    pub uuid: String,
    /// Tells one run of the domain from the next.
    pub run: String,
    /// Whether the domain has a guest agent channel.
    pub has_agent: bool,
}

impl Guests {
    /// What a guest said last; nothing while it is not watched.
    #[must_use]
    pub fn view(&self, uid: &str) -> GuestView {
        self.lock()
            .get(uid)
            .map(|watched| watched.view.clone())
            .unwrap_or_default()
    }

    /// Watches this run of the domain, unless it is watched already.
    pub fn watch(
        self: &Arc<Self>,
        watch: Watch,
        connection: &Arc<Connection>,
        requests: &Requests,
        clock: impl Fn() -> Moment + Send + Sync + 'static,
    ) {
        let mut map = self.lock();
        if map
            .get(&watch.uid)
            .is_some_and(|watched| watched.run == watch.run)
        {
            return;
        }
        let poke = Arc::new(Notify::new());
        let watcher = Watcher {
            guests: Arc::clone(self),
            connection: Arc::clone(connection),
            requests: requests.clone(),
            poke: Arc::clone(&poke),
            watch: watch.clone(),
        };
        let task = tokio::spawn(watcher.run(clock)).abort_handle();
        let new = Watched {
            run: watch.run,
            view: GuestView::default(),
            poke,
            task,
        };
        if let Some(old) = map.insert(watch.uid, new) {
            old.task.abort();
        }
    }

    /// Asks now: the agent's channel opened or closed.
    pub fn poke(&self, uid: &str) {
        if let Some(watched) = self.lock().get(uid) {
            watched.poke.notify_one();
        }
    }

    /// Forgets a guest that does not run any more.
    pub fn stop(&self, uid: &str) {
        if let Some(watched) = self.lock().remove(uid) {
            watched.task.abort();
        }
    }

    /// Takes over what this run said; returns whether that is news.
    fn put(&self, watch: &Watch, view: &GuestView) -> bool {
        let mut map = self.lock();
        let Some(watched) = map.get_mut(&watch.uid).filter(|w| w.run == watch.run) else {
            return false;
        };
        let news = watched.view != *view;
        watched.view = view.clone();
        news
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Watched>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Watcher {
    guests: Arc<Guests>,
    connection: Arc<Connection>,
    requests: Requests,
    poke: Arc<Notify>,
    watch: Watch,
}

impl Watcher {
    async fn run(self, clock: impl Fn() -> Moment) {
        let began = clock();
        let mut view = GuestView {
            since: Some(began),
            ..GuestView::default()
        };
        let (mut probed, mut asked, mut complete) = (began, began, false);
        loop {
            let now = clock();
            if now >= probed + WHEN_SETTLED {
                probed = now;
                self.probe().await;
            }
            if self.watch.has_agent {
                view = self.ask_agent(view, &clock).await;
            }
            let silent = view.said_by_agent && view.agent != Some(true);
            if !complete || silent || now >= asked + ADDRESSES {
                asked = now;
                view = self.ask_addresses(view).await;
            }
            if self.guests.put(&self.watch, &view) {
                self.requests.news(&self.watch.uid);
            }
            let addressed = view.interfaces.iter().any(|i| !i.ipv4.is_empty());
            complete = addressed && (view.agent == Some(true) || !self.watch.has_agent);
            let pause = match clock().saturating_sub(began) {
                _ if complete => WHEN_SETTLED,
                age if age < BOOT => WHILE_BOOTING,
                _ => WHILE_SILENT,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.poke.notified() => complete = false,
            }
        }
    }

    /// Asks QEMU itself, which a guest that hangs does not hinder. A silent one is known as stuck to its connection.
    async fn probe(&self) {
        let answer = self
            .call(Lane::Probe, "get a sign of life from", READ_DEADLINE, Link::probe)
            .await;
        if matches!(answer, Err(HypervisorError::TimedOut { .. })) {
            self.requests.now(&self.watch.uid);
        }
    }

    /// Whether the agent answers. Whoever cannot be asked now keeps what was said last.
    async fn ask_agent(&self, mut view: GuestView, clock: &impl Fn() -> Moment) -> GuestView {
        // Calling an agent whose channel is closed is an error in libvirtd's log, and takes its deadline.
        let open = self.read("look at", Link::agent_is_open).await.unwrap_or(false);
        let answers = open
            && self
                .agent("ping", |link, uuid| link.ping_agent(uuid, AGENT_DEADLINE))
                .await
                .is_ok();
        // Before its first answer a guest boots: that is no news.
        if answers || view.agent.is_some() {
            view.agent = Some(answers);
        }
        if answers && view.answered_at.is_none() {
            view.answered_at = Some(clock());
        }
        view
    }

    async fn ask_addresses(&self, mut view: GuestView) -> GuestView {
        let found = if view.agent == Some(true) {
            self.agent("read the addresses of", |link, uuid| {
                link.addresses(uuid, AddressSource::Agent)
            })
            .await
        } else {
            self.read("read the leases of", |link, uuid| {
                link.addresses(uuid, AddressSource::Lease)
            })
            .await
        };
        match found {
            Ok(mut interfaces) => {
                let by_agent = view.agent == Some(true);
                // Without a lease, what the agent said last is still the best that is known for people.
                if by_agent || !interfaces.is_empty() || !view.said_by_agent {
                    interfaces.sort_by(|a, b| a.mac.cmp(&b.mac));
                    (view.interfaces, view.said_by_agent) = (interfaces, by_agent);
                }
            }
            Err(error) => tracing::debug!(
                instance.uid = self.watch.uid,
                error = chain(&error),
                "no addresses"
            ),
        }
        view
    }

    async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        question: Question<T>,
    ) -> Result<T, HypervisorError> {
        self.call(Lane::Read, what, READ_DEADLINE, question).await
    }

    async fn agent<T: Send + 'static>(
        &self,
        what: &'static str,
        question: Question<T>,
    ) -> Result<T, HypervisorError> {
        self.call(Lane::Agent, what, AGENT_DEADLINE * 2, question).await
    }

    async fn call<T: Send + 'static>(
        &self,
        lane: Lane,
        what: &'static str,
        deadline: Duration,
        question: Question<T>,
    ) -> Result<T, HypervisorError> {
        let uuid = self.watch.uuid.clone();
        self.connection
            .call(lane, &self.watch.uid, what, deadline, move |link| {
                question(link, &uuid)
            })
            .await
    }
}

type Question<T> = fn(&Link, &str) -> Result<T, HypervisorError>;
