//! What we write against libvirt itself, which rewrites it: nothing of it is lost, and nothing moves when it is written
//! again. Needs libvirtd; defines domains of its own that are never started.

use super::*;
use crate::node::goal::Identity;
use crate::node::libvirt::Link;
use crate::node::metadata::differing;
use crate::node::observed::{DomainState, OurDomain};

/// A machine of one of the cases under a uid of its own, defined until it is dropped.
struct Defined {
    link: Link,
    machine: Machine,
    paths: Paths,
}

impl Defined {
    fn new(case: &Case, uri: &str) -> Self {
        libvirt_ffi::start_event_loop().unwrap();
        let link = Link::open(uri).expect("libvirtd answers; hack/libvirt.sh start brings it up");
        let mut bytes = [0u8; 8];
        getrandom::fill(&mut bytes).unwrap();
        let tail = hex::encode(bytes);
        let uid = format!("{}-0000-4000-8000-0000{}", &tail[..8], &tail[8..]);
        let mut machine = machine(case);
        machine.id = Identity {
            domain_name: format!("virtshell-test-{tail}"),
            uid: uid.clone(),
            ..machine.id
        };
        let moved = |path: &PathBuf| PathBuf::from(path.display().to_string().replace(UID, &uid));
        let paths = Paths {
            root: moved(&case.paths.root),
            seed: case.paths.seed.as_ref().map(moved),
            answers: case.paths.answers.as_ref().map(moved),
            disks: case.paths.disks.iter().map(moved).collect(),
            ..case.paths.clone()
        };
        let defined = Self { link, machine, paths };
        defined.define();
        defined
    }

    fn define(&self) {
        let present = self.link.configuration(&self.machine.id.uid).unwrap();
        let metadata = metadata(&self.machine);
        let xml = domain_xml(&self.machine, &self.paths, &metadata, present.as_ref());
        self.link.define(&self.machine.id.domain_name, &xml).unwrap();
    }

    fn configuration(&self) -> Element {
        self.link.configuration(&self.machine.id.uid).unwrap().unwrap()
    }

    fn observed(&self) -> OurDomain {
        match self.link.observe(&self.machine.id).unwrap() {
            DomainState::Ours(domain) => *domain,
            other @ (DomainState::Absent | DomainState::Foreign { .. }) => panic!("{other:?}"),
        }
    }
}

impl Drop for Defined {
    fn drop(&mut self) {
        drop(self.link.undefine(&self.machine.id.uid));
    }
}

fn real_cases() -> impl Iterator<Item = (Case, &'static str)> {
    cases().into_iter().filter_map(|case| match case.domain_type {
        DomainType::Qemu => Some((case, "qemu:///system")),
        DomainType::Lxc => Some((case, "lxc:///system")),
        // Another machine's KVM is not asked for, and the test driver has no daemon.
        DomainType::Kvm | DomainType::Test => None,
    })
}

#[test]
fn nothing_of_what_we_write_is_lost() {
    for (case, uri) in real_cases() {
        let defined = Defined::new(&case, uri);
        let domain = defined.observed();
        assert_eq!(
            domain.config.metadata,
            metadata(&defined.machine),
            "{}",
            case.name
        );
        assert_eq!(domain.config.carries, defined.machine.applied(), "{}", case.name);
    }
}

/// Addresses and device names by what the device is.
fn places(domain: &Element) -> Vec<(String, String)> {
    let devices = domain.find(&["devices"]).unwrap();
    let mut places: Vec<(String, String)> = devices
        .children
        .iter()
        .filter_map(|device| {
            let places = device
                .children
                .iter()
                .filter(|c| c.name == "address" || (c.name == "target" && device.name == "disk"));
            let place: String = places.map(Element::render).collect();
            Some((places::key(device)? + &device.name, place))
        })
        .collect();
    places.sort();
    places
}

#[test]
fn devices_stay_where_they_are_when_others_come_and_go() {
    let case = named("qemu");
    let mut defined = Defined::new(&case, "qemu:///system");
    let before = places(&defined.configuration());
    assert!(
        before
            .iter()
            .filter(|(_, place)| place.contains("<address"))
            .count()
            > 15,
        "{before:?}"
    );

    // The first of each kind goes.
    let (disk, interface) = (
        defined.machine.disks.remove(0),
        defined.machine.interfaces.remove(0),
    );
    let path = defined.paths.disks.remove(0);
    defined.define();
    let without = places(&defined.configuration());
    let left: Vec<_> = before.iter().filter(|place| without.contains(place)).collect();
    // Its port goes too.
    assert_eq!(left.len(), before.len() - 4, "{before:#?}\n{without:#?}");

    // They come back behind the others, and the others stay again.
    defined.machine.disks.push(disk);
    defined.machine.interfaces.push(interface);
    defined.paths.disks.push(path);
    defined.define();
    let again = places(&defined.configuration());
    assert!(
        without.iter().all(|place| again.contains(place)),
        "{without:#?}\n{again:#?}"
    );
    let mut targets: Vec<String> = defined
        .configuration()
        .find(&["devices"])
        .unwrap()
        .named("disk")
        .filter_map(|disk| disk.find(&["target"])?.attribute("dev").map(str::to_owned))
        .collect();
    targets.sort();
    targets.dedup();
    assert_eq!(targets.len(), 5, "{targets:?}");
}

#[test]
fn an_edit_of_the_definition_shows() {
    let defined = Defined::new(&named("qemu"), "qemu:///system");
    let mut other = defined.machine.clone();
    (other.cpus, other.vnc) = (1, None);
    other.interfaces.pop();
    let record = metadata(&defined.machine);
    let edited = domain_xml(&other, &defined.paths, &record, None);
    defined
        .link
        .define(&defined.machine.id.domain_name, &edited)
        .unwrap();
    let domain = defined.observed();
    assert_eq!(domain.config.metadata, record);
    assert_eq!(domain.config.carries, other.applied());
    let fields = differing(&record.applied, &domain.config.carries);
    assert_eq!(fields, ["consoles", "cpus", "interfaces"]);
}
