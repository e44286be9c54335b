//! Every command that README.md and docs/ show is run, in the order in which a reader meets them: typed, on a running
//! system, into a shell that has sourced its `env`. See [`virtshell_tests::console`] for how documents show commands.

use virtshell_tests::console::{commands, documents};
use virtshell_tests::system::System;
use virtshell_tests::{level, repository};

/// Commands that are run by something else, which the second word names.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "make up",
        "System::start runs hack/up.sh, which is all that make up does",
    ),
    ("make test", "whoever runs this"),
    (
        "make tour",
        "its stops: the documents show some, tests/e2e_chaos tells all",
    ),
    (". .virtshell/env", "every shell of this test begins with it"),
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

#[test]
fn the_documents_begin_with_the_two_commands() -> anyhow::Result<()> {
    let shown: Vec<String> = shown()?.into_iter().map(|(_, command)| command).collect();
    assert_eq!(shown[..2], ["make up", "make test"]);
    for (command, by) in ELSEWHERE {
        assert!(
            shown.iter().any(|c| c == command),
            "no document shows {command} ({by})"
        );
    }
    Ok(())
}

#[test]
fn commands_of_the_documents_do_what_they_say() -> anyhow::Result<()> {
    if !level::end_to_end() {
        return Ok(());
    }
    let system = System::start()?;
    for (place, command) in shown()? {
        if ELSEWHERE.iter().any(|(known, _)| *known == command) {
            continue;
        }
        let outcome = system.shell(&command)?;
        assert!(
            outcome.success,
            "{place}: {command}\n{}{}",
            outcome.stdout, outcome.stderr
        );
    }
    Ok(())
}
