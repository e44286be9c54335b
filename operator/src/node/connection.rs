//! The connections to one libvirt, kept alive, and the bounded way to call it.
//!
//! A call that waits for a guest must not delay one for another. libvirtd serves five requests of one client connection at
//! a time; and its client library wakes the thread that waits on a connection's socket in a way that can get lost, so that
//! calls made beside a long one may not even be sent until that one is over. Hence no connection has two calls in flight.
//! Connections are kept, in lines for every kind of call ([`Lane`]), with four places each. A call past its deadline keeps
//! its thread and its place until libvirt answers; its domain takes no further call meanwhile that would wait behind it,
//! and a line whose calls do not come back is replaced.
//!
//! All connections share the workers of libvirtd, and a call that a guest holds up keeps one of them, whether or not
//! anybody waits for it still. So calls that need a guest's answer take turns, some workers fewer than there are: however
//! many guests hang, what libvirt does by itself (reading, defining, starting) finds one.
//!
//! ```text
//! connecting --opened, subscribed--> up --closed, or a call found it dead--> connecting (after a pause)
//! ```

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use libvirt_ffi::{Notice, Subscription};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::hypervisor::{HypervisorError, chain};
use super::libvirt::{Facts, Link};
use super::metrics::Metrics;

/// Calls in flight on one line.
const PLACES: usize = 4;
/// Workers of libvirtd that no guest's answer is waited for on.
const SPARE_WORKERS: usize = 6;
/// Calls of one lane that may be given up before its lines are replaced no more: then it is libvirt that hangs, and more
/// connections to it would only cost threads.
const MOST_LOST: usize = 16;
/// How long a call waits for a place while no other call of its line comes back, until it gets a fresh line.
const HELD_UP: Duration = Duration::from_secs(1);
/// How long opening a connection may take.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// How long libvirt may take to describe its emulators, each of which it starts once.
const DESCRIBE_DEADLINE: Duration = Duration::from_mins(3);
/// The first and the longest pause before another try to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// How often a connection that says nothing is asked whether it is there.
const VERIFY: Duration = Duration::from_secs(15);

/// Which line a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Questions that libvirt answers by itself.
    Read,
    /// Changes that libvirt makes by itself: definitions, what is kept with them, and starts.
    Define,
    /// Changes that a running guest's QEMU or container must carry out.
    Act,
    /// Power off, which frees the calls that a guest holds up: it must not wait behind them.
    Kill,
    /// What the guest must answer.
    Agent,
    /// Whether the guest's QEMU responds.
    Probe,
    /// What somebody wants to know at this moment: however often and of whichever guest, it must not delay the rest.
    Live,
}

impl Lane {
    /// Whether a guest that hangs holds such a call up, and with it a worker of libvirtd.
    const fn needs_guest(self) -> bool {
        match self {
            Self::Act | Self::Agent | Self::Probe | Self::Live => true,
            // libvirt has workers of their own for power off.
            Self::Read | Self::Define | Self::Kill => false,
        }
    }

    /// The calls for the same domain behind which such a call would wait: libvirt makes one change of a domain at a time.
    ///
    /// A silent guest agent says nothing about the hypervisor, and a change that hangs nothing about what libvirt knows by
    /// itself. What people ask for must not keep the reconciler from a change.
    const fn waits_behind(self) -> &'static [Self] {
        match self {
            Self::Read => &[Self::Read],
            Self::Kill => &[Self::Kill],
            Self::Agent => &[Self::Agent],
            Self::Define | Self::Act => &[Self::Define, Self::Act, Self::Probe],
            Self::Probe | Self::Live => &[Self::Define, Self::Act, Self::Probe, Self::Live],
        }
    }
}

/// The lines of a connection.
const LINES: [Lane; 9] = [
    Lane::Read,
    Lane::Define,
    Lane::Define,
    Lane::Act,
    Lane::Act,
    Lane::Kill,
    Lane::Agent,
    Lane::Probe,
    Lane::Live,
];

/// What the holder of a connection hears.
#[derive(Clone, Debug)]
pub enum Signal {
    /// It is up, for the first time or again: whatever happened in between was not heard.
    Up,
    /// More is known of the host behind it.
    Described,
    /// It is down.
    Down,
    /// libvirt told something.
    Notice(Notice),
    /// A call that was given up has come back: this domain can be asked again.
    Unstuck(String),
}

/// One libvirt.
pub struct Connection {
    uri: String,
    up: RwLock<Option<Up>>,
    /// Calls that were given up and have not come back, by lane and domain.
    stuck: Mutex<HashSet<Key>>,
    /// Turns of the calls that need a guest's answer.
    turns: Arc<Semaphore>,
    most_turns: usize,
    broken: Notify,
    metrics: Metrics,
    signals: Box<dyn Fn(Signal) + Send + Sync>,
}

struct Up {
    facts: Facts,
    lines: Vec<(Lane, Arc<Line>)>,
    /// The connection that brings events, and nothing else.
    events: Link,
    _subscription: Subscription,
}

/// Places for calls, each with a connection of its own while it lasts.
struct Line {
    uri: String,
    /// Connections that nobody uses now.
    idle: Mutex<Vec<Link>>,
    /// The one for all, where connections need not be kept apart.
    common: Option<Link>,
    places: Arc<Semaphore>,
    /// Calls that were given up.
    lost: AtomicUsize,
    /// Calls that came back.
    returned: AtomicUsize,
}

impl Line {
    fn new(uri: &str, common: Option<Link>) -> Arc<Self> {
        Arc::new(Self {
            uri: uri.to_owned(),
            idle: Mutex::default(),
            common,
            places: Arc::new(Semaphore::new(PLACES)),
            lost: AtomicUsize::new(0),
            returned: AtomicUsize::new(0),
        })
    }

    /// Makes a call, on a connection that has none in flight. Blocks.
    fn call<T>(&self, call: impl FnOnce(&Link) -> Result<T, HypervisorError>) -> Result<T, HypervisorError> {
        let answer = match &self.common {
            Some(common) => call(common),
            None => self.call_alone(call),
        };
        self.returned.fetch_add(1, Ordering::Release);
        answer
    }

    fn call_alone<T>(
        &self,
        call: impl FnOnce(&Link) -> Result<T, HypervisorError>,
    ) -> Result<T, HypervisorError> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let link = match kept {
            Some(link) => link,
            None => Link::open(&self.uri)?,
        };
        let answer = call(&link);
        if !matches!(answer, Err(HypervisorError::Disconnected { .. })) {
            idle().push(link);
        }
        answer
    }
}

impl Connection {
    /// A connection that is not up yet; [`Connection::run`] brings it up and keeps it so. Behind it are so many `workers`.
    /// `signals` must not block.
    pub fn new(
        uri: &str,
        workers: usize,
        metrics: Metrics,
        signals: impl Fn(Signal) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let most_turns = workers.saturating_sub(SPARE_WORKERS).max(1);
        Arc::new(Self {
            uri: uri.to_owned(),
            up: RwLock::new(None),
            stuck: Mutex::default(),
            turns: Arc::new(Semaphore::new(most_turns)),
            most_turns,
            broken: Notify::new(),
            metrics,
            signals: Box::new(signals),
        })
    }

    /// Its URI.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// What libvirt said of itself when the connection came up; absent while it is down.
    #[must_use]
    pub fn facts(&self) -> Option<Facts> {
        self.read_up().as_ref().map(|up| up.facts.clone())
    }

    fn read_up(&self) -> std::sync::RwLockReadGuard<'_, Option<Up>> {
        self.up.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, and connects again whenever the connection is lost. Never ends.
    pub async fn run(self: Arc<Self>) {
        let mut pause = BACKOFF.0;
        loop {
            match self.open().await {
                Ok(up) => {
                    tracing::info!(uri = %self.uri, libvirt = %up.facts.libvirt_version, "connected to libvirt");
                    pause = BACKOFF.0;
                    self.set(Some(up));
                    (self.signals)(Signal::Up);
                    tokio::spawn(Arc::clone(&self).describe());
                    self.until_broken().await;
                    self.set(None);
                    (self.signals)(Signal::Down);
                    tracing::warn!(uri = %self.uri, "lost the connection to libvirt");
                }
                Err(error) => {
                    tracing::debug!(uri = %self.uri, error = chain(&error), "cannot connect to libvirt");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(BACKOFF.1);
                }
            }
        }
    }

    async fn describe(self: Arc<Self>) {
        let described = self
            .call(
                Lane::Read,
                "the host",
                "describe",
                DESCRIBE_DEADLINE,
                Link::details,
            )
            .await;
        if let (Ok(details), Some(up)) = (
            described,
            self.up.write().unwrap_or_else(PoisonError::into_inner).as_mut(),
        ) {
            up.facts.details = details;
        }
        (self.signals)(Signal::Described);
    }

    fn set(&self, up: Option<Up>) {
        let old = std::mem::replace(&mut *self.up.write().unwrap_or_else(PoisonError::into_inner), up);
        // Closing a connection talks to the daemon.
        tokio::task::spawn_blocking(move || drop(old));
    }

    async fn open(self: &Arc<Self>) -> Result<Up, HypervisorError> {
        let this = Arc::clone(self);
        let opening = tokio::task::spawn_blocking(move || this.open_all());
        match tokio::time::timeout(OPEN_DEADLINE, opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(_)) | Err(_) => Err(self.disconnected()),
        }
    }

    fn open_all(self: &Arc<Self>) -> Result<Up, HypervisorError> {
        let events = Link::open(&self.uri)?;
        // An in-process driver has nobody to overload, and some of its worlds belong to one connection.
        let common = self.uri.starts_with("test:").then(|| events.clone());
        let lines = LINES
            .map(|lane| (lane, Line::new(&self.uri, common.clone())))
            .into();
        let weak = Arc::downgrade(self);
        let subscription = events.subscribe(move |notice| {
            let Some(this) = weak.upgrade() else { return };
            if notice == Notice::Closed {
                this.broken.notify_one();
            } else {
                this.metrics.heard(&this.uri);
            }
            (this.signals)(Signal::Notice(notice));
        })?;
        Ok(Up {
            facts: events.facts()?,
            lines,
            events,
            _subscription: subscription,
        })
    }

    /// Waits until the connection that brings events is really gone: a call that failed may only have met a closing
    /// socket. Silence is no sign of life, so it is asked now and then.
    async fn until_broken(&self) {
        loop {
            let link = self.read_up().as_ref().map(|up| up.events.clone());
            let Some(link) = link else { return };
            let asked = tokio::task::spawn_blocking(move || link.is_alive());
            if !matches!(tokio::time::timeout(OPEN_DEADLINE, asked).await, Ok(Ok(true))) {
                return;
            }
            self.metrics.heard(&self.uri);
            let _ = tokio::time::timeout(VERIFY, self.broken.notified()).await;
        }
    }

    fn disconnected(&self) -> HypervisorError {
        HypervisorError::Disconnected {
            uri: self.uri.clone(),
            source: None,
        }
    }

    fn line(&self, lane: Lane, domain: &str) -> Result<Arc<Line>, HypervisorError> {
        let up = self.read_up();
        let up = up.as_ref().ok_or_else(|| self.disconnected())?;
        let lines: Vec<_> = up.lines.iter().filter(|(of, _)| *of == lane).collect();
        let spread = usize::from(domain.bytes().fold(0u8, u8::wrapping_add));
        let (_, line) = lines[spread % lines.len()];
        Ok(Arc::clone(line))
    }

    /// Whether a call for this domain that its QEMU must answer has not come back.
    #[must_use]
    pub fn is_stuck(&self, domain: &str) -> bool {
        self.waits(Lane::Act, domain)
    }

    /// Whether a call would wait behind one that has not come back.
    fn waits(&self, lane: Lane, domain: &str) -> bool {
        let stuck = lock(&self.stuck);
        let mut behind = lane.waits_behind().iter();
        behind.any(|lane| stuck.contains(&(*lane, domain.to_owned())))
    }

    /// A turn for a call that needs a guest's answer. It ends when the call has come back.
    async fn turn(
        &self,
        lane: Lane,
        deadline: Duration,
    ) -> Result<Option<OwnedSemaphorePermit>, HypervisorError> {
        if !lane.needs_guest() {
            return Ok(None);
        }
        let crowded = || HypervisorError::Crowded {
            uri: self.uri.clone(),
            held: self.lost(Lane::needs_guest),
        };
        if self.lost(Lane::needs_guest) >= self.most_turns {
            return Err(crowded());
        }
        match tokio::time::timeout(deadline, Arc::clone(&self.turns).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(Some(turn)),
            Ok(Err(_)) | Err(_) => Err(crowded()),
        }
    }

    /// How many calls of some lanes were given up and have not come back.
    fn lost(&self, of: impl Fn(Lane) -> bool) -> usize {
        lock(&self.stuck).iter().filter(|(lane, _)| of(*lane)).count()
    }

    /// Makes one call for one domain.
    ///
    /// # Errors
    /// What the call says; [`HypervisorError::TimedOut`] when it does not come back in time, and from then on
    /// [`HypervisorError::Stuck`] for that domain until it does; [`HypervisorError::Crowded`] when too many have not.
    pub async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        lane: Lane,
        domain: &str,
        what: &'static str,
        deadline: Duration,
        call: impl FnOnce(&Link) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        if self.waits(lane, domain) {
            return Err(HypervisorError::Stuck {
                domain: domain.to_owned(),
            });
        }
        let timed_out = || HypervisorError::TimedOut {
            what,
            domain: domain.to_owned(),
            after: deadline,
        };
        let waiting = Instant::now();
        let turn = self.turn(lane, deadline).await?;
        let mut line = self.line(lane, domain)?;
        let place = loop {
            let returned = line.returned.load(Ordering::Acquire);
            let place = Arc::clone(&line.places).acquire_owned();
            if let Ok(Ok(place)) = tokio::time::timeout(HELD_UP, place).await {
                break place;
            }
            if waiting.elapsed() >= deadline {
                return Err(timed_out());
            }
            if line.returned.load(Ordering::Acquire) == returned {
                self.renew(lane, &line);
                line = self.line(lane, domain)?;
            }
        };
        let came_back = Arc::new(AtomicBool::new(false));
        let ending = Ending {
            connection: Arc::clone(self),
            key: (lane, domain.to_owned()),
            came_back: Arc::clone(&came_back),
        };
        let started = Instant::now();
        let on_line = Arc::clone(&line);
        let running = tokio::task::spawn_blocking(move || {
            let _held = (turn, place);
            let _ending = ending;
            on_line.call(call)
        });
        let answer = tokio::time::timeout(deadline, running).await;
        self.metrics.libvirt_call(what, started.elapsed());
        match answer {
            Ok(Ok(answer)) => {
                if let Err(HypervisorError::Disconnected { .. }) = &answer {
                    self.broken.notify_one();
                }
                answer
            }
            // The call panicked: libvirt's answer is unknown.
            Ok(Err(_)) => Err(self.disconnected()),
            Err(_) => {
                let mut stuck = lock(&self.stuck);
                if !came_back.load(Ordering::Acquire) {
                    stuck.insert((lane, domain.to_owned()));
                    drop(stuck);
                    if line.lost.fetch_add(1, Ordering::Relaxed) + 1 >= PLACES / 2 {
                        self.renew(lane, &line);
                    }
                }
                Err(timed_out())
            }
        }
    }

    /// Puts a fresh line in the place of one whose calls do not come back, unless that is done.
    fn renew(&self, lane: Lane, old: &Arc<Line>) {
        // An in-process driver never waits for a guest.
        if old.common.is_some() {
            return;
        }
        if !lane.needs_guest() && self.lost(|of| of == lane) >= MOST_LOST {
            return;
        }
        let mut up = self.up.write().unwrap_or_else(PoisonError::into_inner);
        let mut lines = up.iter_mut().flat_map(|up| &mut up.lines);
        if let Some((_, line)) = lines.find(|(_, line)| Arc::ptr_eq(line, old)) {
            tracing::warn!(uri = %self.uri, ?lane, "calls do not come back; others get places of their own");
            *line = Line::new(&self.uri, None);
        }
    }
}

/// Runs when a call has come back, even by a panic.
struct Ending {
    connection: Arc<Connection>,
    key: Key,
    came_back: Arc<AtomicBool>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let was_stuck = {
            let mut stuck = lock(&self.connection.stuck);
            self.came_back.store(true, Ordering::Release);
            stuck.remove(&self.key)
        };
        if was_stuck {
            (self.connection.signals)(Signal::Unstuck(self.key.1.clone()));
        }
    }
}

/// Which kind of call, for which domain.
type Key = (Lane, String);

fn lock(set: &Mutex<HashSet<Key>>) -> std::sync::MutexGuard<'_, HashSet<Key>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}
