//! The shell text that works on packages with whatever manager the guest has. Pure.

use crate::node::access::quoted;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Install them; those that are there stay as they are.
    Install,
    /// Bring them to the newest version; none = everything that is installed.
    Upgrade,
    /// Remove them, and keep their configuration where the manager does so.
    Remove,
}

/// A package manager: its program, and what it is called with.
struct Manager {
    program: &'static str,
    /// Before anything else: refreshes what it knows.
    refresh: &'static str,
    install: &'static str,
    upgrade: &'static str,
    upgrade_all: &'static str,
    remove: &'static str,
    /// Exit codes besides 0 that mean done, as a pattern.
    done: &'static str,
}

/// Keeps configuration files that were changed by hand, and waits for another apt as long as that takes.
const APT: &str = "apt-get -y -q -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold";

/// In the order in which they are looked for: yum is often a name of dnf.
const MANAGERS: [Manager; 6] = [
    Manager {
        program: "apt-get",
        refresh: "$apt update",
        install: "$apt install",
        upgrade: "$apt install --only-upgrade",
        upgrade_all: "$apt dist-upgrade",
        remove: "$apt remove",
        done: "",
    },
    Manager {
        program: "dnf",
        refresh: "",
        install: "dnf -y install",
        upgrade: "dnf -y upgrade",
        upgrade_all: "dnf -y upgrade",
        remove: "dnf -y remove",
        done: "",
    },
    Manager {
        program: "yum",
        refresh: "",
        install: "yum -y install",
        upgrade: "yum -y update",
        upgrade_all: "yum -y update",
        remove: "yum -y remove",
        done: "",
    },
    Manager {
        program: "zypper",
        refresh: "zypper --non-interactive refresh",
        install: "zypper --non-interactive install --auto-agree-with-licenses",
        upgrade: "zypper --non-interactive update --auto-agree-with-licenses",
        upgrade_all: "zypper --non-interactive update --auto-agree-with-licenses",
        remove: "zypper --non-interactive remove",
        // A reboot, or a restart of zypper itself, is recommended.
        done: "102|103",
    },
    Manager {
        program: "pacman",
        // Installing against a list that is newer than the system breaks it: the system goes along.
        refresh: "",
        install: "pacman -Syu --noconfirm --needed",
        upgrade: "pacman -Syu --noconfirm --needed",
        upgrade_all: "pacman -Syu --noconfirm",
        remove: "pacman -R --noconfirm",
        done: "",
    },
    Manager {
        program: "apk",
        refresh: "apk update",
        install: "apk add",
        upgrade: "apk add --upgrade",
        upgrade_all: "apk upgrade",
        remove: "apk del",
        done: "",
    },
];

/// The command. Package words are quoted; none of them begins with a dash, by the schema.
#[must_use]
pub fn command(change: Change, packages: &[String]) -> String {
    let words: Vec<String> = packages.iter().map(|word| quoted(word)).collect();
    let words = words.join(" ");
    let branch = |manager: &Manager| {
        let Manager { program, done, .. } = manager;
        let act = manager.act(change, packages.is_empty());
        let refresh = match (change, manager.refresh) {
            (Change::Remove, _) | (_, "") => String::new(),
            (Change::Install | Change::Upgrade, refresh) => format!("{refresh} && "),
        };
        let or_done = match *done {
            "" => String::new(),
            codes => format!(" || case $? in {codes}) ;; *) exit $? ;; esac"),
        };
        format!("if command -v {program} >/dev/null; then {refresh}{act} {words}{or_done}\n")
    };
    let branches: Vec<String> = MANAGERS.iter().map(branch).collect();
    let names: Vec<&str> = MANAGERS.iter().map(|m| m.program).collect();
    format!(
        "export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a LC_ALL=C; apt={}\n{}\
         else echo 'no package manager in the guest: looked for {}'; exit 127; fi\n",
        quoted(APT),
        branches.join("el"),
        names.join(", ")
    )
}

impl Manager {
    const fn act(&self, change: Change, everything: bool) -> &'static str {
        match change {
            Change::Install => self.install,
            Change::Upgrade if everything => self.upgrade_all,
            Change::Upgrade => self.upgrade,
            Change::Remove => self.remove,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    /// What a guest that has only this manager runs, line by line, and the exit code.
    fn calls(manager: &str, change: Change, packages: &[&str], code: i32) -> (String, i32) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        if !manager.is_empty() {
            // Stands for the guest's own: says what it was called with.
            let program = folder.path().join(manager);
            let text = format!(
                "#!/bin/sh\n[ \"$DEBIAN_FRONTEND\" = noninteractive ] || exit 9\necho \"{manager} $*\" >>{}\nexit {code}\n",
                log.display()
            );
            std::fs::write(&program, text).unwrap();
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let packages: Vec<String> = packages.iter().map(|p| (*p).to_owned()).collect();
        let done = Command::new("/bin/sh")
            .args(["-c", &command(change, &packages)])
            .env("PATH", folder.path())
            .output()
            .unwrap();
        let said = std::fs::read_to_string(&log).unwrap_or_else(|_| String::from_utf8(done.stdout).unwrap());
        let said = said.replace(&APT["apt-get ".len()..], "APT");
        (said, done.status.code().unwrap())
    }

    #[test]
    fn the_guests_own_manager_does_it_unattended() {
        use Change::{Install, Remove, Upgrade};
        let two: &[&str] = &["nginx", "php8.2-fpm"];
        for (manager, change, packages, expected) in [
            (
                "apt-get",
                Install,
                two,
                "apt-get APT update\napt-get APT install nginx php8.2-fpm\n",
            ),
            (
                "apt-get",
                Upgrade,
                two,
                "apt-get APT update\napt-get APT install --only-upgrade nginx php8.2-fpm\n",
            ),
            (
                "apt-get",
                Upgrade,
                &[],
                "apt-get APT update\napt-get APT dist-upgrade\n",
            ),
            ("apt-get", Remove, two, "apt-get APT remove nginx php8.2-fpm\n"),
            ("dnf", Install, two, "dnf -y install nginx php8.2-fpm\n"),
            ("dnf", Upgrade, &[], "dnf -y upgrade\n"),
            ("yum", Remove, two, "yum -y remove nginx php8.2-fpm\n"),
            (
                "zypper",
                Install,
                &["vim"],
                "zypper --non-interactive refresh\nzypper --non-interactive install --auto-agree-with-licenses vim\n",
            ),
            ("pacman", Upgrade, &[], "pacman -Syu --noconfirm\n"),
            ("pacman", Remove, &["vim"], "pacman -R --noconfirm vim\n"),
            ("apk", Install, &["vim"], "apk update\napk add vim\n"),
            ("apk", Upgrade, &["vim"], "apk update\napk add --upgrade vim\n"),
            ("apk", Remove, &["vim"], "apk del vim\n"),
        ] {
            assert_eq!(
                calls(manager, change, packages, 0),
                (expected.to_owned(), 0),
                "{manager} {change:?}"
            );
        }
    }

    #[test]
    fn failures_are_told() {
        assert_eq!(
            calls("apk", Change::Install, &["x"], 1),
            ("apk update\n".to_owned(), 1)
        );
        for (code, expected) in [(102, 0), (4, 4)] {
            assert_eq!(calls("zypper", Change::Remove, &["x"], code).1, expected);
        }
        let (said, code) = calls("", Change::Install, &["x"], 0);
        assert!(
            said.contains("apt-get, dnf, yum, zypper, pacman, apk") && code == 127,
            "{said}"
        );
    }
}
