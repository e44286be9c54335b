//! A Task for guests from its beginning to its end, while hosts, Instances and the controller do whatever they may do.

use serde_json::json;
use virtshell_crds::task::TaskCounts;

use super::tests::{command, instance};
use super::*;
use crate::controller::testing::Random;

const HOSTS: [&str; 3] = ["h0", "h1", "h2"];
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

/// What a host was given in one attempt, as its `TaskAssignment` says it.
#[derive(Default)]
struct Part {
    targets: Vec<AssignedTarget>,
    results: BTreeMap<String, TargetResult>,
}

/// Everything there is, of which the controller keeps nothing from one look to the next.
struct Story {
    task: Task,
    status: TaskStatus,
    instances: BTreeMap<&'static str, Instance>,
    /// Uids are never given again.
    born: u64,
    busy: BTreeSet<&'static str>,
    hosts: BTreeMap<&'static str, HostState>,
    parts: BTreeMap<&'static str, Part>,
}

impl Story {
    fn begin(random: &mut Random) -> Self {
        // Some are named twice, some are not there, one is no Instance.
        let targets: Vec<&str> = (0..random.below(8)).map(|_| pick(random, &NAMES)).collect();
        let mut task = command(&targets);
        if random.below(8) == 0 && !task.spec.targets.is_empty() {
            task.spec.targets[0].kind = "Host".to_owned();
        }
        let mut story = Self {
            task,
            status: TaskStatus::default(),
            instances: BTreeMap::new(),
            born: 0,
            busy: NAMES.into_iter().filter(|_| random.below(4) == 0).collect(),
            hosts: HOSTS.map(|host| (host, HostState::Alive)).into(),
            parts: BTreeMap::new(),
        };
        for name in NAMES {
            if random.below(5) != 0 {
                story.make(random, name);
            }
        }
        story
    }

    fn make(&mut self, random: &mut Random, name: &'static str) {
        self.born += 1;
        let scheduled = if random.below(5) == 0 { "False" } else { "True" };
        let power = if random.below(4) == 0 {
            "Stopped"
        } else {
            "Running"
        };
        let condition = json!({
            "type": "Scheduled", "status": scheduled, "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let patch = json!({
            "metadata": {"uid": format!("uid-{}", self.born)},
            "status": {"powerState": power, "conditions": [condition]},
        });
        let host = pick(random, &HOSTS);
        self.instances.insert(name, instance(name, host, &patch));
    }

    /// Something happens that the controller does not decide.
    fn live(&mut self, random: &mut Random) {
        let name = pick(random, &NAMES);
        match random.below(8) {
            0 => drop(self.instances.remove(name)),
            1 => self.make(random, name),
            2 => {
                if let Some(status) = self.instances.get_mut(name).and_then(|i| i.status.as_mut()) {
                    status.power_state = Some(PowerState::Running);
                }
            }
            3 => drop(self.busy.remove(name)),
            4 => {
                let states = [HostState::Alive, HostState::Silent, HostState::Gone];
                self.hosts.insert(pick(random, &HOSTS), pick(random, &states));
            }
            _ => {
                let host = pick(random, &HOSTS);
                self.report(random, host);
            }
        }
    }

    /// A host says more about one of its targets; what it has said that has ended stays so.
    fn report(&mut self, random: &mut Random, host: &str) {
        let Some(part) = self.parts.get_mut(host) else {
            return;
        };
        let target = &part.targets[random.below(part.targets.len() as u64) as usize];
        let before = part.results.get(&target.name).map(|r| r.state);
        let state = match before {
            None => TargetState::Started,
            Some(TargetState::Started) if random.below(3) == 0 => TargetState::Failed,
            Some(TargetState::Started) => TargetState::Succeeded,
            Some(settled) => settled,
        };
        let result = json!({"uid": target.uid, "name": target.name, "state": state});
        part.results
            .insert(target.name.clone(), serde_json::from_value(result).unwrap());
    }

    /// The controller looks, and may be killed after any of its writes.
    fn look(&mut self, random: &mut Random, seed: u64) -> Outcome {
        let plan = self.plan();
        assert_eq!(
            plan,
            self.plan(),
            "seed {seed}: the same answer for the same question"
        );
        let outcome = outcome(&plan.standings, false, 60);
        for (host, targets) in plan.parts {
            if random.below(6) == 0 {
                return outcome;
            }
            let host = HOSTS.into_iter().find(|known| *known == host).unwrap();
            for target in &targets {
                let there = &self.instances[target.name.as_str()];
                assert_eq!(there.metadata.uid.as_ref(), Some(&target.uid), "seed {seed}");
                let power = there.status.as_ref().and_then(|s| s.power_state);
                assert_eq!(power, Some(PowerState::Running), "seed {seed}");
                assert_eq!(there.spec.host.as_deref(), Some(host), "seed {seed}");
                assert!(!self.busy.contains(target.name.as_str()), "seed {seed}");
                let refused = self.status.refused.iter().any(|r| r.name == target.name);
                assert!(!refused, "seed {seed}: {} was refused", target.name);
            }
            let part = Part {
                targets,
                ..Part::default()
            };
            let earlier = self.parts.insert(host, part);
            assert!(earlier.is_none(), "seed {seed}: {host} has its part");
            if random.below(6) == 0 {
                return outcome;
            }
            self.status.hosts.push(host.to_owned());
        }
        self.status.refused = plan.refused;
        let given = self.parts.values().flat_map(|part| &part.targets);
        let uids: Vec<&String> = given.map(|t| &t.uid).collect();
        let different: BTreeSet<_> = uids.iter().collect();
        assert_eq!(
            different.len(),
            uids.len(),
            "seed {seed}: one was given twice: {uids:?}"
        );
        outcome
    }

    fn plan(&self) -> Plan {
        let seen: Vec<Seen<'_>> = self
            .task
            .spec
            .targets
            .iter()
            .map(|target| self.seen(target))
            .collect();
        plan(&self.task, &self.status, &seen)
    }

    fn seen<'a>(&'a self, target: &'a TaskTarget) -> Seen<'a> {
        let there = self.instances.get(target.name.as_str());
        let given = self.parts.iter().find_map(|(host, part)| {
            let assigned = part.targets.iter().find(|t| t.name == target.name)?;
            let given = Given {
                host,
                result: part.results.get(&target.name),
            };
            Some((assigned, given))
        });
        // A namesake that was made later is not what the host was given.
        let meant = there.filter(|i| given.is_none_or(|(t, _)| i.metadata.uid.as_ref() == Some(&t.uid)));
        let host = given
            .map(|(_, given)| given.host)
            .or_else(|| meant.and_then(|i| i.spec.host.as_deref()));
        Seen {
            target,
            name: &target.name,
            instance: meant,
            given: given.map(|(_, given)| given),
            host: host.map_or(HostState::Alive, |host| self.hosts[host]),
            is_busy: given.is_none() && self.busy.contains(target.name.as_str()),
        }
    }
}

fn pick<T: Copy>(random: &mut Random, list: &[T]) -> T {
    list[random.below(list.len() as u64) as usize]
}

/// Every target is given at most once and never after it was refused, to the host where it runs, and the Task ends exactly when
/// the last of them has been refused or is done.
#[test]
fn whatever_happens_meanwhile_every_target_is_done_once_or_refused() {
    let mut given_in_all = 0;
    for seed in 0..3000 {
        let random = &mut Random::new(seed);
        let mut story = Story::begin(random);
        for _ in 0..30 {
            if random.below(3) == 0 {
                story.look(random, seed);
            } else {
                story.live(random);
            }
        }
        // Earlier work ends, hosts come back and say how it went, and nobody kills the controller any more.
        story.busy.clear();
        story.hosts = HOSTS.map(|host| (host, HostState::Alive)).into();
        let mut looks = 0;
        let outcome = loop {
            looks += 1;
            assert!(looks < 100, "seed {seed}: it does not end");
            for host in HOSTS {
                (0..20).for_each(|_| story.report(random, host));
            }
            let plan = story.plan();
            let is_settled = |s: &Standing| matches!(s, Standing::Succeeded | Standing::Failed(_));
            let all = plan.standings.iter().all(|(_, standing)| is_settled(standing));
            let outcome = story.look(random, seed);
            let ended = matches!(outcome.state, TaskState::Succeeded | TaskState::Failed);
            assert_eq!(ended, all, "seed {seed}: {outcome:?}");
            if ended {
                break outcome;
            }
        };
        // Everybody is accounted for, and succeeded where a host has said so.
        let succeeded = |name: &str| {
            let mut parts = story.parts.values();
            parts.any(|p| {
                p.results
                    .get(name)
                    .is_some_and(|r| r.state == TargetState::Succeeded)
            })
        };
        let targets = &story.task.spec.targets;
        let is_done = |t: &&TaskTarget| t.kind == "Instance" && succeeded(&t.name);
        let done = targets.iter().filter(is_done).count() as i32;
        let total = targets.len() as i32;
        let counts = TaskCounts {
            targets: total,
            succeeded: done,
            failed: total - done,
        };
        assert_eq!(outcome.counts, counts, "seed {seed}: {}", outcome.log);
        given_in_all += story.parts.values().map(|part| part.targets.len()).sum::<usize>();
    }
    assert!(
        given_in_all > 3000,
        "only {given_in_all} were given: too few to say something"
    );
}
