//! Unix-style permissions: what a string says, whom it lets do what, and who is in a group. Pure.
//!
//! Inside a triplet the letters decide, not their position: `xwr` and `rwx` are the same.

use std::collections::BTreeSet;

use crate::{Group, User, words};

/// What one class of users may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Triplet {
    /// See it and use it.
    pub read: bool,
    /// Change and delete it.
    pub write: bool,
    /// Act on the guest.
    pub execute: bool,
}

/// What a permission string says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions {
    owner: Triplet,
    group: Triplet,
    others: Triplet,
}

/// What an object permits that says nothing: everything to everybody.
const EVERYTHING: Permissions = {
    let all = Triplet {
        read: true,
        write: true,
        execute: true,
    };
    Permissions {
        owner: all,
        group: all,
        others: all,
    }
};

/// An object with permissions, as the decision sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guarded<'a> {
    /// Its permission string; absent or unreadable counts as the default, which is everything for everybody.
    pub permissions: Option<&'a str>,
    /// Name of the user who owns it; objects made with kubectl have none.
    pub owner: Option<&'a str>,
    /// Name of the group it belongs to.
    pub group: Option<&'a str>,
}

/// Who wants to do something with an object.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Name of the user.
    pub name: &'a str,
    /// Passes every check.
    pub is_system: bool,
    /// Names of all groups it is in.
    pub groups: &'a BTreeSet<String>,
}

/// Something an object can permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// `r`
    Read,
    /// `w`
    Write,
    /// `x`, and `r` with it: who acts on a guest sees what it answers.
    Execute,
}

/// Reads a permission string; the error is the reason for a refusal.
pub fn parse(text: &str) -> Result<Permissions, &'static str> {
    // `ls -l` writes the file type in front.
    let letters = if text.len() == 10 {
        text.strip_prefix('-')
    } else {
        Some(text)
    };
    let letters = letters
        .filter(|l| l.len() == 9 && l.is_ascii())
        .ok_or(words::PERMISSIONS)?;
    Ok(Permissions {
        owner: triplet(&letters[..3])?,
        group: triplet(&letters[3..6])?,
        others: triplet(&letters[6..])?,
    })
}

fn triplet(letters: &str) -> Result<Triplet, &'static str> {
    let mut triplet = Triplet::default();
    for letter in letters.chars() {
        let right = match letter {
            'r' => &mut triplet.read,
            'w' => &mut triplet.write,
            'x' => &mut triplet.execute,
            '-' | '_' => continue,
            _ => return Err(words::PERMISSIONS),
        };
        if std::mem::replace(right, true) {
            return Err(words::PERMISSIONS);
        }
    }
    Ok(triplet)
}

/// Whether `subject` may do this with the object: owner, else member of its group, else others; the first that fits.
#[must_use]
pub fn allows(object: &Guarded<'_>, subject: Subject<'_>, right: Right) -> bool {
    if subject.is_system {
        return true;
    }
    let parsed = object.permissions.map(parse);
    let permissions = parsed.and_then(Result::ok).unwrap_or(EVERYTHING);
    let class = if object.owner.is_some_and(|owner| owner == subject.name) {
        permissions.owner
    } else if object.group.is_some_and(|group| subject.groups.contains(group)) {
        permissions.group
    } else {
        permissions.others
    };
    match right {
        Right::Read => class.read,
        Right::Write => class.write,
        Right::Execute => class.execute && class.read,
    }
}

/// Whether a user is in a group: the group names the user, or the user the group.
#[must_use]
pub fn is_member(user: &User, group: &Group) -> bool {
    let named = group.spec.users.iter().any(|name| is_meant(user, name));
    named || user.spec.groups.iter().any(|name| name == name_of_group(group))
}

/// Whether a group means this user by an entry of its users: a name or a uid.
#[must_use]
pub fn is_meant(user: &User, entry: &str) -> bool {
    let name = user
        .spec
        .display_name
        .as_deref()
        .or(user.metadata.name.as_deref());
    name == Some(entry) || user.metadata.uid.as_deref() == Some(entry)
}

/// Names of the groups of a user: those it names, in its order, then those of `groups` that it is in besides.
#[must_use]
pub fn groups_of<'a>(user: &User, groups: impl IntoIterator<Item = &'a Group>) -> Vec<String> {
    let mut names = user.spec.groups.clone();
    for group in groups.into_iter().filter(|group| is_member(user, group)) {
        let name = name_of_group(group);
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

fn name_of_group(group: &Group) -> &str {
    let name = group
        .spec
        .display_name
        .as_deref()
        .or(group.metadata.name.as_deref());
    name.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn user(spec: &Value) -> User {
        serde_json::from_value(json!({
            "apiVersion": crate::API_VERSION, "kind": "User", "metadata": {"name": "ann-x", "uid": "ann-uid"}, "spec": spec,
        }))
        .unwrap()
    }

    fn group(name: &str, users: &[&str]) -> Group {
        serde_json::from_value(json!({
            "apiVersion": crate::API_VERSION, "kind": "Group", "metadata": {"name": format!("{name}-x")},
            "spec": {"displayName": name, "users": users},
        }))
        .unwrap()
    }

    #[test]
    fn either_side_may_name_the_other() {
        let user = user(&json!({"displayName": "ann", "groups": ["own", "unknown"]}));
        for (rule, group, expected) in [
            ("by name", group("g", &["bob", "ann"]), true),
            ("by uid", group("g", &["ann-uid"]), true),
            ("metadata.name is another name", group("g", &["ann-x"]), false),
            ("others", group("g", &["bob"]), false),
            ("the user names it", group("own", &[]), true),
            ("both", group("own", &["ann"]), true),
        ] {
            assert_eq!(is_member(&user, &group), expected, "{rule}");
        }
        let all = [
            group("z", &["ann"]),
            group("own", &["ann"]),
            group("a", &["ann-uid"]),
            group("b", &[]),
        ];
        assert_eq!(groups_of(&user, &all), ["own", "unknown", "z", "a"]);
    }

    #[test]
    fn the_default_string_is_everything() {
        assert_eq!(parse(crate::DEFAULT_PERMISSIONS), Ok(EVERYTHING));
    }

    fn rights(t: Triplet) -> String {
        [(t.read, 'r'), (t.write, 'w'), (t.execute, 'x')]
            .iter()
            .filter(|(has, _)| *has)
            .map(|(_, c)| *c)
            .collect()
    }

    #[test]
    fn letters_decide_and_not_their_position() {
        for (text, expected) in [
            ("xwrxwrxwr", Some("rwx rwx rwx")),
            ("rwxrwxrwx", Some("rwx rwx rwx")),
            ("rwxr-x---", Some("rwx rx ")),
            ("rwx------", Some("rwx  ")),
            ("xwrxwrx__", Some("rwx rwx x")),
            ("-rw-r--r--", Some("rw r r")),
            ("---------", Some("  ")),
            ("w-rr--r--", Some("rw r r")),
            ("rwxrwxrw", None),
            ("rwxrwxrwxr", None),
            ("xrw-r--r--x", None),
            ("rrxrwxrwx", None),
            ("rwxrwxrwa", None),
            ("RWXRWXRWX", None),
            ("rwxrwxrwé", None),
            ("", None),
        ] {
            let parsed = parse(text)
                .ok()
                .map(|p| [p.owner, p.group, p.others].map(rights).join(" "));
            assert_eq!(parsed.as_deref(), expected, "{text}");
        }
    }

    fn subject<'a>(name: &'a str, groups: &'a BTreeSet<String>) -> Subject<'a> {
        Subject {
            name,
            is_system: name == "root",
            groups,
        }
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        let object = |permissions| Guarded {
            permissions: Some(permissions),
            owner: Some("ann"),
            group: Some("web"),
        };
        let (none, web) = (BTreeSet::new(), BTreeSet::from(["web".to_owned()]));
        let (ann, bob, eve) = (subject("ann", &web), subject("bob", &web), subject("eve", &none));
        for (rule, object, who, read, write, execute) in [
            ("owner", object("rwxr-----"), ann, true, true, true),
            ("group", object("rwxr-----"), bob, true, false, false),
            ("others", object("rwxr-----"), eve, false, false, false),
            (
                "an owner in the group stays owner",
                object("---rwxrwx"),
                ann,
                false,
                false,
                false,
            ),
            (
                "a member is not one of the others",
                object("rwx---rwx"),
                bob,
                false,
                false,
                false,
            ),
            (
                "execute needs read",
                object("--x--x--x"),
                eve,
                false,
                false,
                false,
            ),
            ("others may", object("------r-x"), eve, true, false, true),
            (
                "made with kubectl: group or others",
                Guarded {
                    permissions: Some("rwxr-----"),
                    ..Guarded::default()
                },
                ann,
                false,
                false,
                false,
            ),
            ("no string: everything", Guarded::default(), eve, true, true, true),
            (
                "system passes",
                object("---------"),
                subject("root", &none),
                true,
                true,
                true,
            ),
        ] {
            let seen = [Right::Read, Right::Write, Right::Execute].map(|right| allows(&object, who, right));
            assert_eq!(seen, [read, write, execute], "{rule}");
        }
    }
}
