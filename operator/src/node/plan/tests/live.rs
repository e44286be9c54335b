//! Changes of running domains: asked for, or to put back what somebody else changed.

use super::*;

#[test]
#[rustfmt::skip]
fn devices_come_and_go_while_it_runs() {
    let nic = |name: &str, network: &str, model: &str| json!({"name": name, "network": network, "model": model});
    let with_nics = |nics: Vec<Value>| machine(json!({"interfaces": nics}));
    let vm = machine(json!({}));
    let data = machine(json!({"disks": [{"name": "data", "sizeMiB": 1024}]}));
    let scsi = machine(json!({"disks": [{"name": "data", "sizeMiB": 1024, "bus": "scsi"}]}));
    let two = with_nics(vec![nic("eth0", "default", "virtio"), nic("eth1", "isolated", "virtio")]);
    let moved = with_nics(vec![nic("eth0", "isolated", "virtio")]);
    let model = with_nics(vec![nic("eth0", "default", "e1000e")]);
    let mut none = vm.clone();
    none.interfaces.clear();
    let (eth0, eth1) = (vm.interfaces[0].mac.clone(), two.interfaces[1].mac.clone());
    let define = |m: &Machine| Define(metadata(m, false));
    let running = |m: &Machine| at(m, Power::Running);
    let disk = || Device::Disk("data".into());
    let interface = |mac: &str| Device::Interface(mac.into());
    let detaching = |seen: Observed, device: Device, seconds| {
        with(seen, |_, _, m| m.detaching.extend([(device, ago(seconds))]))
    };
    // The configuration is the new one already, and so is the file of a disk.
    let after = |old: &Machine, new: &Machine| {
        with(at(old, Power::Running), |d, f, _| {
            d.config = defined(metadata(new, false));
            f.disks.extend(files(new).disks);
        })
    };
    check(vec![
        ("a new disk is made, defined and attached", present(&data), running(&vm),
            vec![MakeDisk("data".into()), define(&data), Change(C::Attach(disk()))], Next::Again),
        ("one that is left out is detached", present(&vm), running(&data), vec![define(&vm), Change(C::Detach(disk()))],
            Next::Again),
        ("which is asked once", present(&vm), detaching(after(&data, &vm), disk(), 5), vec![], Next::Settled),
        ("whatever the guest does", present(&vm), detaching(after(&data, &vm), disk(), 500), vec![], Next::Settled),
        ("a disk on another bus waits", present(&scsi), running(&data), vec![define(&scsi)], Next::Settled),
        ("a new interface", present(&two), running(&vm), vec![define(&two), Change(C::Attach(interface(&eth1)))], Next::Again),
        ("one that is left out", present(&vm), running(&two), vec![define(&vm), Change(C::Detach(interface(&eth1)))],
            Next::Again),
        ("all of them", present(&none), running(&vm), vec![define(&none), Change(C::Detach(interface(&eth0)))], Next::Again),
        ("another network", present(&moved), running(&vm), vec![define(&moved), Change(C::Update(interface(&eth0)))],
            Next::Again),
        ("another model: away with the old card", present(&model), running(&vm),
            vec![define(&model), Change(C::Detach(interface(&eth0)))], Next::Again),
        ("then the new one", present(&model), after(&none, &model), vec![Change(C::Attach(interface(&eth0)))], Next::Again),
        ("no port is free: it waits", present(&two), with(after(&vm, &two), |_, _, m| {
            m.refused = vec![C::Attach(interface(&eth1))];
        }), vec![], Next::Settled),
    ]);
}

#[test]
#[rustfmt::skip]
fn what_was_edited_behind_our_back_is_put_back() {
    let vm = machine(json!({"disks": [{"name": "data", "sizeMiB": 1024}]}));
    let define = || Define(metadata(&vm, false));
    let mac = vm.interfaces[0].mac.clone();
    let edit = |power, field: &str, value: &str| {
        with(at(&vm, power), |d, _, _| {
            drop(d.config.carries.insert(field.to_owned(), value.to_owned()));
        })
    };
    let change = |field: &str, value: &str| {
        with(at(&vm, Power::Running), |d, _, _| {
            drop(d.live.as_mut().unwrap().carries.insert(field.to_owned(), value.to_owned()));
        })
    };
    check(vec![
        ("the definition of a running domain", present(&vm), edit(Power::Running, "memoryMiB", "64"), vec![define()],
            Next::Settled),
        ("that of one that is off", present(&vm), edit(Power::Off, "interfaces", ""), vec![define(), RUN],
            Next::Settled),
        ("its CPUs", present(&vm), change("cpus", "1"), vec![Change(C::Vcpus(2))], Next::Again),
        ("its memory", present(&vm), change("memoryMiB", "512"), vec![Change(C::Memory(1024))], Next::Again),
        ("a disk taken away", present(&vm), change("disks", "root:virtio"),
            vec![Change(C::Attach(Device::Disk("data".into())))], Next::Again),
        ("an interface taken away", present(&vm), change("interfaces", ""), vec![Change(C::Attach(Device::Interface(mac)))],
            Next::Again),
    ]);
}

#[test]
fn a_balloon_takes_its_time() {
    let vm = machine(json!({"memoryMiB": 512}));
    let seen = |carried: &str, balloon: Option<(i64, Moment)>| {
        with(at(&vm, Power::Running), |d, _, m| {
            let carries = &mut d.live.as_mut().unwrap().carries;
            carries.insert("memoryMiB".to_owned(), carried.to_owned());
            m.balloon = balloon;
        })
    };
    for (rule, seen, actions, fields) in [
        ("reached", seen("512", None), vec![], vec![]),
        ("on its way", seen("700", Some((512, ago(5)))), vec![], vec![]),
        (
            "the guest stopped half-way: said, and not asked again",
            seen("700", Some((512, ago(100)))),
            vec![],
            vec!["memoryMiB"],
        ),
        (
            "somebody else's doing",
            seen("700", None),
            vec![Change(C::Memory(512))],
            vec!["memoryMiB"],
        ),
        (
            "asked for another size before",
            seen("700", Some((700, ago(5)))),
            vec![Change(C::Memory(512))],
            vec!["memoryMiB"],
        ),
        (
            "no driver in the guest: it has what it was started with, and a restart changes nothing",
            seen("2048", Some((512, ago(100)))),
            vec![],
            vec![],
        ),
        (
            "it was started with all of it, and shall have less",
            with(seen("2048", Some((2048, ago(5)))), |d, _, _| {
                let record = &mut d.live.as_mut().unwrap().metadata.applied;
                record.insert("memoryMiB".to_owned(), "2048".to_owned());
            }),
            vec![Change(C::Memory(512))],
            vec!["memoryMiB"],
        ),
    ] {
        assert_eq!(plan(&present(&vm), &seen, NOW).actions, actions, "{rule}");
        let DomainState::Ours(domain) = &seen.domain else {
            panic!()
        };
        let named = outstanding(&vm, domain, &seen.files, &seen.memory, NOW);
        assert_eq!(named.fields, fields, "{rule}");
    }
}
