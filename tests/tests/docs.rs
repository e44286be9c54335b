//! Every command that README.md and docs/ show is run, in the order in which a reader meets them.
//!
//! A command that is not in [`SHOWN`] fails, and so does an entry of it that no document shows: see
//! [`virtshell_tests::console`] for how documents show commands.

use std::collections::BTreeSet;

use virtshell_tests::console::{commands, documents};
use virtshell_tests::system::System;
use virtshell_tests::{level, repository};

/// How a command is covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Covered {
    /// Typed, on a running system, into a shell that has sourced its `env`; must end with status 0.
    Typed,
    /// By something else, which this names.
    By(&'static str),
}
use Covered::{By, Typed};

/// Every command the documents show.
const SHOWN: &[(&str, Covered)] = &[
    (
        "sudo make up",
        By("System::start runs hack/up.sh, which is all that make up does"),
    ),
    (
        "make up",
        By("System::start runs hack/up.sh, which is all that make up does"),
    ),
    ("make test", By("whoever runs this")),
    ("make down", By("hack/down.sh, in the end-to-end suite")),
    (
        "make clean",
        By("hack/clean.sh, when the system of this test goes"),
    ),
    (". .virtshell/env", By("every shell of this test begins with it")),
    ("kubectl get vsi", Typed),
    ("kubectl get vsi -n virtshell", Typed),
    ("kubectl -n virtshell get vsi", Typed),
    ("kubectl -n virtshell describe vsi hello-kubectl", Typed),
    ("kubectl explain instance.spec", Typed),
    ("kubectl explain instance.spec.memoryMiB", Typed),
    ("hack/vscurl GET /virtshell/api/v1/instances", Typed),
    ("hack/guest-exec hello-kubectl uname -a", Typed),
    ("hack/guest-exec hello-rest uname -a", Typed),
];

/// The commands of all documents, each with the place where it stands.
fn shown() -> anyhow::Result<Vec<(String, String)>> {
    let root = repository();
    let mut shown = Vec::new();
    for path in documents(&root)? {
        let place = path.strip_prefix(&root)?.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|error| anyhow::anyhow!("{place}: {error}"))?;
        let found = commands(&text).map_err(|error| anyhow::anyhow!("{place}: {error}"))?;
        shown.extend(
            found
                .into_iter()
                .map(|command| (format!("{place}:{}", command.line), command.text)),
        );
    }
    Ok(shown)
}

fn covered(command: &str) -> Option<Covered> {
    SHOWN
        .iter()
        .find(|(known, _)| *known == command)
        .map(|(_, covered)| *covered)
}

#[test]
fn every_command_of_the_documents_is_known_and_every_known_one_shown() -> anyhow::Result<()> {
    let shown = shown()?;
    let unknown: Vec<_> = shown
        .iter()
        .filter(|(_, command)| covered(command).is_none())
        .collect();
    assert!(unknown.is_empty(), "shown and not in SHOWN: {unknown:#?}");
    let texts: BTreeSet<_> = shown.iter().map(|(_, command)| command.as_str()).collect();
    let stale: Vec<_> = SHOWN.iter().filter(|(known, _)| !texts.contains(known)).collect();
    assert!(stale.is_empty(), "in SHOWN and in no document: {stale:#?}");
    Ok(())
}

#[test]
fn commands_of_the_documents_do_what_they_say() -> anyhow::Result<()> {
    if !level::end_to_end() {
        return Ok(());
    }
    let system = System::start()?;
    for (place, command) in shown()? {
        if covered(&command) == Some(Typed) {
            let outcome = system.shell(&command)?;
            assert!(
                outcome.success,
                "{place}: {command}\n{}{}",
                outcome.stdout, outcome.stderr
            );
        }
    }
    Ok(())
}
