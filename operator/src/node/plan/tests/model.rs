//! The plans against a model of libvirt, its guest and the files: from any state, whatever the guest does and wherever
//! the agent is killed, the goal is reached in a bounded number of looks, and what is not ours is not touched.

use super::*;

/// Looks from any state to the end, when nobody kills the agent.
const ROUNDS: usize = 12;
/// A kill forgets a grace period, which begins again.
const ROUNDS_AFTER_KILL: usize = 8;
const CASES: u64 = 10_000;

/// `SplitMix64`: the same cases in every run, so that a failure can be looked at again by its number.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.roll(choices.len())].clone()
    }
}

/// How a guest answers the request to shut down.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manners {
    Obeys,
    OnlyAgent,
    OnlyAcpi,
    ThirdTime,
    Deaf,
}

#[derive(Debug)]
struct World {
    seen: Observed,
    now: Moment,
    manners: Manners,
    /// So many starts end soon.
    crashes: u32,
    /// It takes no change while it runs.
    rigid: bool,
    /// The agent ended the guest itself.
    expected_off: bool,
    starts: u32,
    stops: u32,
}

impl World {
    fn ours(&mut self) -> &mut OurDomain {
        match &mut self.seen.domain {
            DomainState::Ours(domain) => domain,
            DomainState::Absent | DomainState::Foreign { .. } => {
                panic!("a step on a domain that is not ours")
            }
        }
    }

    fn power(&self) -> Option<Power> {
        match &self.seen.domain {
            DomainState::Ours(domain) => Some(domain.power),
            DomainState::Absent | DomainState::Foreign { .. } => None,
        }
    }

    fn off(&mut self) {
        let domain = self.ours();
        (domain.power, domain.live, domain.agent_open) = (Power::Off, None, false);
        if !domain.persistent {
            self.seen.domain = DomainState::Absent;
        }
    }

    /// What libvirt, the guest or the storage makes of a step; panics on one that they would refuse.
    fn apply(&mut self, action: &Action, goal: &Goal) {
        let wanted = match goal {
            Goal::Present(machine) => Some(&**machine),
            Goal::Gone(_) => None,
        };
        match action {
            MakeRoot | MakeDisk(_) | MakeSeed | GrowDisk(..) => {
                self.make(action, wanted.expect("made for a machine"));
            }
            RemoveFiles { retain_disks } => {
                assert!(self.power().is_none(), "files of a domain that is there");
                let files = &mut self.seen.files;
                files.seed = false;
                if !retain_disks {
                    *files = Files::default();
                }
                files.any = files.root.is_some() || !files.disks.is_empty();
            }
            Define(metadata) => self.define(metadata, wanted.expect("defined for a machine")),
            SetAutostart(on) => {
                assert!(self.ours().persistent, "autostart of a transient domain");
                self.ours().autostart = *on;
            }
            Start { paused } => self.start(*paused, wanted.expect("started for a machine")),
            Suspend => {
                assert_eq!(self.power(), Some(Power::Running));
                self.ours().power = PAUSED;
            }
            Resume => {
                assert!(matches!(self.power(), Some(Power::Paused(_))));
                self.ours().power = Power::Running;
            }
            Ask { agent } => self.ask(*agent),
            Destroy => {
                assert_ne!(self.ours().power, Power::Off, "a power off of what is off");
                (self.expected_off, self.stops) = (true, self.stops + 1);
                self.off();
            }
            Undefine => {
                assert_eq!(self.ours().power, Power::Off);
                self.seen.domain = DomainState::Absent;
            }
            Change(change) => self.change(change, wanted.expect("changed for a machine")),
            SetLiveMetadata(metadata) => {
                self.ours().live.as_mut().expect("of a running domain").metadata = metadata.clone();
            }
        }
    }

    fn make(&mut self, action: &Action, machine: &Machine) {
        let (cached, power) = (self.seen.memory.images_cached, self.power());
        let files = &mut self.seen.files;
        match action {
            MakeRoot => {
                assert!(files.root.is_none() && (cached || machine.image.is_none()));
                files.root = Some(machine.disk_mib);
            }
            MakeDisk(name) => {
                let disk = machine
                    .disks
                    .iter()
                    .find(|d| d.name == *name)
                    .expect("a disk in the spec");
                assert!(cached || disk.image.is_none());
                let before = files.disks.insert(name.clone(), disk.size_mib.unwrap_or(2048));
                assert!(before.is_none(), "made over a disk that is there");
            }
            GrowDisk(name, mib) => {
                assert!(matches!(power, None | Some(Power::Off)), "a disk in use");
                let size = if name == "root" {
                    files.root.as_mut()
                } else {
                    files.disks.get_mut(name)
                };
                let size = size.expect("a disk that is there");
                assert!(*size < *mib, "disks only grow");
                *size = *mib;
            }
            // A container's is in its root.
            MakeSeed if machine.driver == Driver::Lxc => assert!(files.root.is_some()),
            MakeSeed => files.seed = true,
            Define(_)
            | SetAutostart(_)
            | Start { .. }
            | Suspend
            | Resume
            | Ask { .. }
            | Destroy
            | Undefine
            | RemoveFiles { .. }
            | Change(_)
            | SetLiveMetadata(_) => panic!("makes no file"),
        }
        files.any = true;
    }

    fn define(&mut self, metadata: &Metadata, machine: &Machine) {
        let files = &self.seen.files;
        let complete = machine.disks.iter().all(|d| files.disks.contains_key(&d.name));
        assert!(complete && (files.root.is_some() || self.power().is_some_and(|p| p != Power::Off)));
        match &mut self.seen.domain {
            DomainState::Foreign { .. } => panic!("defined over a foreign domain"),
            DomainState::Absent => {
                let mut made = domain(machine, Power::Off);
                (made.config, made.autostart) = (defined(metadata.clone()), false);
                self.seen.domain = DomainState::Ours(Box::new(made));
            }
            DomainState::Ours(domain) => {
                (domain.config, domain.persistent) = (defined(metadata.clone()), true);
            }
        }
    }

    fn start(&mut self, paused: bool, machine: &Machine) {
        assert!(self.seen.files.root.is_some(), "started without a root");
        assert!(
            !(paused && machine.driver == Driver::Lxc),
            "a container cannot start suspended"
        );
        let now = self.now;
        let domain = self.ours();
        assert_eq!(domain.power, Power::Off, "started twice");
        domain.power = if paused { PAUSED } else { Power::Running };
        domain.live = Some(domain.config.clone());
        let memory = &mut self.seen.memory;
        let soon = memory
            .starts
            .last
            .is_some_and(|last| now.saturating_sub(last) < STABLE);
        memory.starts.quick = if soon && !self.expected_off {
            memory.starts.quick + 1
        } else {
            0
        };
        memory.starts.last = Some(now);
        memory.asked = None;
        memory.refused.clear();
        memory.detaching.clear();
        memory.balloon = None;
        self.expected_off = false;
        self.starts += 1;
    }

    fn ask(&mut self, agent: bool) {
        let domain = self.ours();
        assert_eq!(domain.power, Power::Running, "only who runs can answer");
        assert!(!agent || domain.agent_open);
        let now = self.now;
        let asked = self.seen.memory.asked.get_or_insert(Asked {
            since: now,
            last: now,
            times: 0,
        });
        (asked.last, asked.times) = (now, asked.times + 1);
        self.expected_off = true;
        let ends = match self.manners {
            Manners::Obeys => true,
            Manners::OnlyAgent => agent,
            Manners::OnlyAcpi => !agent,
            Manners::ThirdTime => asked.times >= 3,
            Manners::Deaf => false,
        };
        if ends {
            self.stops += 1;
            self.off();
        }
    }

    /// Changes the running domain, as far as QEMU and the guest let it.
    fn change(&mut self, change: &live::Change, machine: &Machine) {
        assert_eq!(self.power(), Some(Power::Running));
        if self.rigid {
            if let C::Detach(device) = change {
                let now = self.now;
                self.seen.memory.detaching.insert(device.clone(), now);
            } else {
                self.seen.memory.refused.push(change.clone());
            }
            return;
        }
        let container = machine.driver == Driver::Lxc;
        let config = self.ours().config.carries.clone();
        let carries = &mut self.ours().live.as_mut().unwrap().carries;
        match change {
            C::Vcpus(cpus) => {
                let most: i32 = carries["maxCpus"].parse().unwrap();
                assert!(container || *cpus <= most, "CPUs beyond the maximum");
                carries.insert("cpus".to_owned(), cpus.to_string());
            }
            C::Memory(mib) => {
                assert!(
                    *mib <= carries["maxMemoryMiB"].parse().unwrap(),
                    "memory beyond the maximum"
                );
                carries.insert("memoryMiB".to_owned(), mib.to_string());
            }
            C::Attach(device) | C::Update(device) | C::Detach(device) => {
                let has = |word: &&str| match device {
                    Device::Disk(name) => DiskWord::parse(word).is_some_and(|w| w.name == name),
                    Device::Interface(mac) => word.ends_with(mac.as_str()),
                };
                let field = device.field();
                let mut left: Vec<&str> = words(carries, field).filter(|word| !has(word)).collect();
                let had = words(carries, field).any(|word| has(&word));
                assert_eq!(had, !matches!(change, C::Attach(_)), "{change:?} of {carries:?}");
                if !matches!(change, C::Detach(_)) {
                    left.push(
                        words(&config, field)
                            .find(has)
                            .expect("a device of the configuration"),
                    );
                }
                left.sort_unstable();
                let joined = left.join(" ");
                carries.insert(field.to_owned(), joined);
            }
            C::Grow(name, mib) => {
                assert!(!container, "a container's disk is in use");
                let files = &mut self.seen.files;
                let size = match name.as_str() {
                    "root" => files.root.as_mut(),
                    name => files.disks.get_mut(name),
                };
                *size.expect("a disk that is there") = *mib;
            }
        }
    }

    /// The agent is killed and started again.
    fn forget(&mut self) {
        self.seen.memory = Memory::default();
        self.expected_off = false;
    }
}

// --- Where it begins ------------------------------------------------------------------------------------------------

fn some_goal(dice: &mut Dice) -> Goal {
    let common = json!({
        "stopMode": dice.of(&["Graceful", "Force", "AskOnly"]),
        "shutdownGraceSeconds": dice.of(&[0, 7, 20]),
        "deletionPolicy": dice.of(&["Delete", "RetainDisks"]),
    });
    if dice.one_in(4) {
        return Goal::Gone(removal(common));
    }
    let mut spec = common;
    let fields = json!({
        "powerState": dice.of(&["Running", "Running", "Stopped", "Paused"]),
        "restartToken": dice.of(&["", "t1"]),
        "restartMode": dice.of(&["Graceful", "Force"]),
        "autostart": dice.one_in(2),
        "cpus": dice.of(&[1, 2, 4]),
        "memoryMiB": dice.of(&[512, 1024, 2048]),
        "diskMiB": dice.of(&[10240, 20480]),
    });
    spec.as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    if dice.one_in(4) {
        return present(&container(spec));
    }
    if dice.one_in(3) {
        spec["disks"] = json!([{"name": "data", "sizeMiB": dice.of(&[1024, 2048])}]);
    }
    let mut machine = machine(spec);
    if dice.one_in(3) {
        let image = machine.image.clone();
        machine
            .disks
            .iter_mut()
            .for_each(|disk| disk.image.clone_from(&image));
    }
    present(&machine)
}

/// A definition that was right for this machine, or for what it was asked to be before.
fn some_metadata(dice: &mut Dice, machine: &Machine) -> Metadata {
    let mut metadata = metadata(machine, dice.one_in(2));
    metadata.restart_token = dice.of(&["", "t1"]).to_owned();
    for (field, values) in [
        ("cpus", ["1", "2"]),
        ("memoryMiB", ["512", "2048"]),
        ("consoles", ["other", "else"]),
    ] {
        if dice.one_in(3) {
            metadata
                .applied
                .insert(field.to_owned(), dice.of(&values).to_owned());
        }
    }
    if dice.one_in(5) {
        metadata.applied.insert("maxCpus".to_owned(), "2".to_owned());
        metadata.applied.insert("cpus".to_owned(), "2".to_owned());
    }
    if dice.one_in(8) {
        metadata
            .applied
            .insert("disks".to_owned(), "old:virtio root:virtio".to_owned());
    }
    if dice.one_in(6) {
        let other = "eth7:network=default:virtio:52:54:00:00:00:77";
        metadata.applied.insert("interfaces".to_owned(), other.to_owned());
    }
    metadata
}

/// A copy of it, now and then edited behind our back.
fn some_definition(dice: &mut Dice, machine: &Machine) -> Definition {
    let mut definition = defined(some_metadata(dice, machine));
    for (field, value) in [
        ("cpus", "3"),
        ("memoryMiB", "700"),
        ("interfaces", ""),
        ("disks", "root:virtio"),
    ] {
        if dice.one_in(12) {
            definition.carries.insert(field.to_owned(), value.to_owned());
        }
    }
    definition
}

fn some_world(dice: &mut Dice, goal: &Goal) -> World {
    let machine = match goal {
        Goal::Present(machine) => (**machine).clone(),
        Goal::Gone(_) => machine(json!({})),
    };
    let mut files = Files {
        root: dice.of(&[None, Some(10_240), Some(20_480)]),
        seed: dice.one_in(2),
        disks: dice
            .of(&[
                vec![],
                vec![("data".to_owned(), 1024)],
                vec![("old".to_owned(), 64)],
            ])
            .into_iter()
            .collect(),
        any: false,
    };
    if machine.driver == Driver::Lxc {
        files.seed = false;
        files.disks.clear();
    }
    files.any = files.root.is_some() || files.seed || !files.disks.is_empty();
    let domain = match dice.roll(8) {
        0 => DomainState::Absent,
        1 => DomainState::Foreign {
            name: "web-8f0c21d4".to_owned(),
            uuid: UID.to_owned(),
        },
        _ => {
            let power = dice.of(&[Power::Running, Power::Running, Power::Off, PAUSED, IO_ERROR]);
            let mut ours = domain(&machine, power);
            ours.config = some_definition(dice, &machine);
            ours.live = (power != Power::Off).then(|| some_definition(dice, &machine));
            ours.autostart = dice.one_in(2);
            ours.agent_open = power == Power::Running && dice.one_in(2);
            if let Some(live) = ours.live.as_ref().filter(|_| dice.one_in(5)) {
                (ours.config, ours.persistent, ours.autostart) = (live.clone(), false, false);
            }
            DomainState::Ours(Box::new(ours))
        }
    };
    let last = dice.of(&[None, Some(ago(3)), Some(ago(3600))]);
    let quick = if last.is_some() {
        u32::try_from(dice.roll(12)).unwrap()
    } else {
        0
    };
    let memory = Memory {
        starts: Starts { last, quick },
        images_cached: dice.one_in(2),
        ..Memory::default()
    };
    World {
        seen: Observed {
            domain,
            files,
            room: dice.one_in(2),
            no_space: dice.one_in(2),
            memory,
        },
        now: NOW,
        manners: dice.of(&[
            Manners::Obeys,
            Manners::OnlyAgent,
            Manners::OnlyAcpi,
            Manners::ThirdTime,
            Manners::Deaf,
        ]),
        crashes: u32::try_from(dice.roll(6).saturating_sub(3)).unwrap(),
        rigid: dice.one_in(4),
        expected_off: false,
        starts: 0,
        stops: 0,
    }
}

// --- How it goes ----------------------------------------------------------------------------------------------------

/// Plans and acts until nothing is left to do; the last plan, which has no steps (or only the removal of files that are
/// kept in part).
fn run(dice: &mut Dice, world: &mut World, goal: &Goal, kills: usize) -> Plan {
    let mut left = kills;
    for _ in 0..ROUNDS + kills * ROUNDS_AFTER_KILL {
        let plan = plan(goal, &world.seen, world.now);
        if matches!(world.seen.domain, DomainState::Foreign { .. }) {
            let files_only = plan.actions.iter().all(|a| matches!(a, RemoveFiles { .. }));
            assert!(
                files_only
                    && matches!(
                        (goal, &plan.then),
                        (Goal::Gone(_), Next::Removed) | (_, Next::Blocked(_))
                    )
            );
        }
        let killed_at = (left > 0 && dice.one_in(2)).then(|| dice.roll(plan.actions.len() + 1));
        let before = (world.seen.domain.clone(), world.starts);
        for action in plan.actions.iter().take(killed_at.unwrap_or(usize::MAX)) {
            world.apply(action, goal);
        }
        if matches!(before.0, DomainState::Foreign { .. }) {
            assert_eq!(world.seen.domain, before.0, "a foreign domain was touched");
        }
        if world.starts > before.1 && world.crashes > 0 {
            world.crashes -= 1;
            world.off();
            continue;
        }
        if killed_at.is_some() {
            left -= 1;
            world.forget();
            continue;
        }
        match plan.then {
            Next::Settled | Next::Removed | Next::Blocked(_) if plan.actions.is_empty() => return plan,
            Next::Removed
                if retains(goal) && matches!(before.0, DomainState::Absent | DomainState::Foreign { .. }) =>
            {
                return plan;
            }
            Next::Settled | Next::Removed | Next::Blocked(_) | Next::Again => {}
            Next::Wait(_, Waiting::Image) => {
                assert!(!world.seen.memory.images_cached, "waits for what is there");
                world.seen.memory.images_cached = true;
            }
            Next::Wait(_, Waiting::Copy) => {
                assert!(world.seen.files.root.is_none(), "copies over what is there");
                world.seen.files.root = Some(10_240);
                world.seen.files.any = true;
            }
            Next::Wait(until, Waiting::Shutdown | Waiting::CrashLoop) => {
                assert!(until >= world.now, "a wait for the past");
                world.now = until;
            }
        }
    }
    panic!("does not come to an end");
}

fn retains(goal: &Goal) -> bool {
    matches!(goal, Goal::Gone(removal) if removal.retain_disks)
}

/// The end, checked against the goal itself and not against the plan.
fn check_end(goal: &Goal, world: &World, end: &Plan) {
    match (&end.then, goal, &world.seen.domain) {
        (Next::Settled, Goal::Present(machine), DomainState::Ours(domain)) => {
            let power = match domain.power {
                Power::Running => PowerState::Running,
                Power::Paused(_) => PowerState::Paused,
                Power::Off => PowerState::Stopped,
            };
            assert_eq!(power, machine.power);
            let config = &domain.config;
            let mut wanted = metadata(machine, config.metadata.provisioned);
            if domain.power != Power::Off {
                // Told by the seed, at the next start.
                for field in ["hostname", "cloudInit"] {
                    wanted
                        .applied
                        .insert(field.to_owned(), config.metadata.applied[field].clone());
                }
            }
            assert_eq!(config.metadata, wanted);
            assert_eq!(config.carries, wanted.applied);
            assert!(domain.persistent);
            assert_eq!(domain.autostart, machine.autostart);
            if domain.power == Power::Off {
                assert!(missing_files(machine, &world.seen).is_empty());
            }
            let named = outstanding(machine, domain, &world.seen.files, &world.seen.memory, world.now).fields;
            for field in domain
                .live
                .iter()
                .flat_map(|live| differing(&live.carries, &machine.applied()))
            {
                assert!(named.contains(&field), "{field} differs, and nobody says so");
                let carries = &domain.live.as_ref().unwrap().carries;
                let hot = match field.as_str() {
                    "cpus" => i64::from(machine.cpus) <= carries["maxCpus"].parse().unwrap(),
                    "memoryMiB" => machine.memory_mib <= carries["maxMemoryMiB"].parse().unwrap(),
                    "interfaces" => true,
                    "disks" => machine.driver != Driver::Lxc,
                    _ => false,
                };
                let excused = world.rigid || domain.power != Power::Running;
                assert!(!hot || excused, "{field} could have been changed");
            }
        }
        // One of ours that lost its mark may have its files open: they stay.
        (Next::Removed, Goal::Gone(removal), DomainState::Foreign { uuid, .. })
            if *uuid == removal.id.uid => {}
        (Next::Removed, Goal::Gone(removal), DomainState::Absent | DomainState::Foreign { .. }) => {
            let files = &world.seen.files;
            assert!(!files.seed);
            assert!(removal.retain_disks || *files == Files::default());
        }
        (Next::Blocked(Blocked::NameTaken { .. }), Goal::Present(_), DomainState::Foreign { .. }) => {}
        (Next::Blocked(Blocked::ShutdownIgnored), Goal::Present(machine), DomainState::Ours(domain)) => {
            assert_eq!(
                (machine.stop.mode, domain.power),
                (StopMode::AskOnly, Power::Running)
            );
            assert_ne!(world.manners, Manners::Obeys);
        }
        (
            Next::Blocked(Blocked::DiskMissing { name, running }),
            Goal::Present(_),
            DomainState::Ours(domain),
        ) => {
            let files = &world.seen.files;
            let there = if name == "root" {
                files.root.is_some()
            } else {
                files.disks.contains_key(name)
            };
            assert!(!there);
            assert_eq!(*running, domain.power != Power::Off);
        }
        (Next::Blocked(Blocked::StorageFull), Goal::Present(machine), DomainState::Ours(domain)) => {
            assert_eq!((machine.power, domain.power), (PowerState::Running, IO_ERROR));
            assert!(!world.seen.room && world.seen.no_space);
        }
        other => panic!("an end that is none: {other:?}"),
    }
}

#[test]
fn every_plan_comes_to_its_end() {
    let mut ends = std::collections::BTreeMap::<String, u32>::new();
    for case in 0..CASES {
        let mut dice = Dice(case);
        let goal = some_goal(&mut dice);
        let mut world = some_world(&mut dice, &goal);
        let kills = dice.roll(3);
        let beginning = format!("case {case}: {goal:?}\n{world:?}");
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let end = run(&mut dice, &mut world, &goal, kills);
            check_end(&goal, &world, &end);
            end
        }));
        let Ok(end) = outcome else {
            panic!(
                "{beginning}
ended as {world:?}"
            );
        };
        let kind = format!("{:?}", end.then);
        let kind = kind.split([' ', '{']).next().unwrap_or_default().to_owned();
        *ends.entry(kind).or_default() += 1;
    }
    assert_eq!(
        ends.len(),
        6,
        "settled, removed and the four that block were all met: {ends:?}"
    );
}

#[test]
fn a_guest_is_disturbed_only_when_that_is_asked_for() {
    let (mut calm, mut restarted) = (0, 0);
    for case in 0..CASES {
        let mut dice = Dice(case);
        let goal = some_goal(&mut dice);
        let mut world = some_world(&mut dice, &goal);
        let (kills, running) = (dice.roll(3), world.power() == Some(Power::Running));
        world.crashes = 0;
        let Goal::Present(machine) = &goal else { continue };
        let DomainState::Ours(domain) = &world.seen.domain else {
            continue;
        };
        let lost = lost_disk(machine, domain, &world.seen).is_some();
        if !running || machine.power == PowerState::Stopped || lost {
            continue;
        }
        let asked = domain.config.metadata.restart_token != machine.restart_token;
        let transient = !domain.persistent;
        run(&mut dice, &mut world, &goal, kills);
        let times = u32::from(asked);
        assert_eq!(
            (world.stops, world.starts),
            (times, times),
            "case {case}, transient {transient}: {goal:?}"
        );
        if asked { restarted += 1 } else { calm += 1 }
    }
    assert!(calm > 300 && restarted > 300, "{calm} {restarted}");
}
