//! Devices stay where they are when a domain is defined again.
//!
//! libvirt gives addresses and the definition disk names by order, so leaving one device out would move the others: a
//! guest would find its network cards and disks under other names after its next start.

use crate::node::xml::Element;

/// The definition, with the address of every device that `present` has too; disks keep their device names as well.
#[must_use]
pub fn keep_places(mut domain: Element, present: &Element) -> Element {
    let Some(old) = present.find(&["devices"]) else {
        return domain;
    };
    for devices in domain.children.iter_mut().filter(|child| child.name == "devices") {
        let before = std::mem::take(&mut devices.children);
        let kept: Vec<(Element, bool)> = before.into_iter().map(|device| keep(device, old)).collect();
        let mut taken: Vec<String> = kept
            .iter()
            .filter(|(_, stays)| *stays)
            .filter_map(|(device, _)| target(device).map(str::to_owned))
            .collect();
        devices.children = kept
            .into_iter()
            .map(|(device, stays)| if stays { device } else { free(device, &mut taken) })
            .collect();
    }
    domain
}

/// The device at its old place, and whether it had one.
fn keep(device: Element, old: &Element) -> (Element, bool) {
    let Some(key) = key(&device) else {
        return (device, false);
    };
    let same = |other: &&Element| other.name == device.name && self::key(other).as_deref() == Some(&key);
    let Some(other) = old.children.iter().find(same) else {
        return (device, false);
    };
    let kept = ["address", "target"];
    let places: Vec<Element> = other
        .children
        .iter()
        .filter(|child| child.name == "address" || (child.name == "target" && device.name == "disk"))
        .cloned()
        .collect();
    let mut device = device;
    device
        .children
        .retain(|child| !kept.contains(&child.name.as_str()) || !places.iter().any(|p| p.name == child.name));
    (device.with_children(places), true)
}

/// What makes it the same device. Serial ports and consoles have no address.
pub(super) fn key(device: &Element) -> Option<String> {
    let of = |path: &[&str], attribute: &str| device.find(path)?.attribute(attribute).map(str::to_owned);
    let own = |attribute: &str| device.attribute(attribute).unwrap_or_default();
    match device.name.as_str() {
        // On another bus it is another device.
        "disk" => Some(format!(
            "{} {}",
            of(&["source"], "file")?,
            of(&["target"], "bus")?
        )),
        "interface" => Some(format!(
            "{} {}",
            of(&["mac"], "address")?,
            of(&["model"], "type").unwrap_or_default()
        )),
        "controller" => Some(format!("{} {}", own("type"), own("index"))),
        "channel" => of(&["target"], "name"),
        "memballoon" | "rng" | "video" => Some(String::new()),
        _ => None,
    }
}

fn target(device: &Element) -> Option<&str> {
    device.find(&["target"])?.attribute("dev")
}

/// A new disk under the first device name that no other has.
fn free(mut device: Element, taken: &mut Vec<String>) -> Element {
    if device.name != "disk" {
        return device;
    }
    for child in device.children.iter_mut().filter(|child| child.name == "target") {
        let Some(name) = child.attribute("dev").map(str::to_owned) else {
            continue;
        };
        let prefix = name.get(..2).unwrap_or_default();
        let unused = ('a'..='z').map(|letter| format!("{prefix}{letter}"));
        let chosen = std::iter::once(name.clone())
            .chain(unused)
            .find(|candidate| !taken.contains(candidate))
            .unwrap_or(name);
        *child = std::mem::take(child).set("dev", &chosen);
        taken.push(chosen);
    }
    device
}
