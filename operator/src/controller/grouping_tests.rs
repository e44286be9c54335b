#![expect(
    clippy::needless_pass_by_value,
    reason = "JSON literals read better as arguments"
)]

use virtshell_crds::Host;

use super::*;

fn object<K: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: Value) -> K {
    let object = json!({
        "apiVersion": "virtshell.io/v1alpha1", "kind": kind,
        "metadata": {"name": name, "uid": format!("uid-{name}"), "resourceVersion": "1"}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

/// `red` is known as `Red`. `blue` is known as `green`, and `green` as `Green`: the name `green` means `blue`.
fn sections() -> Cache<Section> {
    let sections = Cache::default();
    for (name, wire) in [("red", "Red"), ("blue", "green"), ("green", "Green")] {
        sections.store(object("Section", name, json!({"displayName": wire})));
    }
    sections
}

fn environment(spec: Value) -> Environment {
    object("Environment", "e", spec)
}

fn host(name: &str, wire: &str, section: Option<&str>) -> Host {
    object("Host", name, json!({"displayName": wire, "section": section}))
}

#[test]
fn an_environment_has_the_hosts_of_its_section_and_those_that_it_names() {
    let sections = sections();
    for (rule, spec, of_host, expected) in [
        ("of its section", json!({"section": "Red"}), Some("Red"), true),
        ("of no section", json!({"section": "Red"}), None, false),
        (
            "of another section",
            json!({"section": "Red"}),
            Some("Green"),
            false,
        ),
        (
            "by either name of it",
            json!({"section": "Red"}),
            Some("red"),
            true,
        ),
        (
            "and the other way round",
            json!({"section": "red"}),
            Some("Red"),
            true,
        ),
        (
            "a name that means another",
            json!({"section": "Green"}),
            Some("green"),
            false,
        ),
        (
            "a name that means this one",
            json!({"section": "blue"}),
            Some("green"),
            true,
        ),
        ("of none, like the environment", json!({}), None, false),
        ("of one, unlike the environment", json!({}), Some("Red"), false),
        (
            "of one that is not there, like it",
            json!({"section": "grey"}),
            Some("grey"),
            false,
        ),
        (
            "named as people know it",
            json!({"hosts": ["Machine"]}),
            None,
            true,
        ),
        (
            "named as the cluster knows it",
            json!({"hosts": ["other", "h"]}),
            None,
            true,
        ),
        ("another is named", json!({"hosts": ["machine"]}), None, false),
        (
            "named, and of another section",
            json!({"section": "Red", "hosts": ["h"]}),
            Some("Green"),
            true,
        ),
    ] {
        let environment = environment(spec);
        let offer = Offer::of(&host("h", "Machine", of_host));
        let reach = Territory::of(&sections, Some(&environment)).reach(&offer);
        assert_eq!(reach == Reach::Inside, expected, "{rule}");
    }
    let offer = Offer::of(&host("h", "Machine", Some("Red")));
    assert_eq!(
        Territory::of(&sections, None).reach(&offer),
        Reach::Outside,
        "without an environment"
    );
}

#[test]
fn one_environment_tells_hosts_of_several_sections_apart() {
    let sections = sections();
    let environment = environment(json!({"section": "green", "hosts": ["h4", "nobody"]}));
    let named = [
        Some("green"),
        Some("Red"),
        Some("blue"),
        Some("Green"),
        None,
        Some("green"),
    ];
    // The names people know are in the other order.
    let offers: Vec<Offer> = named
        .iter()
        .enumerate()
        .map(|(n, section)| Offer::of(&host(&format!("h{n}"), &format!("m{}", 9 - n), *section)))
        .collect();
    assert_eq!(
        hosts_of(&sections, &environment, offers.iter()),
        ["m4", "m5", "m7", "m9"]
    );
    assert_eq!(
        hosts_of(&Cache::default(), &environment, offers.iter()),
        ["m5"],
        "no section is there"
    );
}

#[test]
fn a_section_has_those_that_mean_it() {
    let sections = sections();
    let hosts: Vec<Arc<Host>> = [
        ("a", Some("Red")),
        ("b", Some("red")),
        ("c", Some("green")),
        ("d", Some("Green")),
        ("e", None),
        ("f", Some("grey")),
    ]
    .into_iter()
    .rev()
    .map(|(name, section)| Arc::new(host(name, &name.to_uppercase(), section)))
    .collect();
    for (section, expected) in [("red", vec!["A", "B"]), ("blue", vec!["C"]), ("green", vec!["D"])] {
        let section = sections
            .find("", section)
            .filter(|s| s.name_any() == section)
            .unwrap_or_else(|| {
                let mut all = sections.all().into_iter();
                all.find(|s| s.name_any() == section).unwrap()
            });
        assert_eq!(
            members(&sections, &section, &hosts, |host| &host.spec.section),
            expected
        );
    }
}
