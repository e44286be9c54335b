//! The commands that a Markdown document shows, so that a test can run every one of them.
//!
//! A document shows commands in blocks fenced as ` ```console `: a line that begins with `$ ` is a command, a line that begins with
//! `> ` right below continues it, as does the line after a backslash; everything else is output. Fences of other shell languages are
//! refused: a command in them would be shown and never run.

use std::path::{Path, PathBuf};

/// Fence languages in which a command could hide.
const REFUSED: [&str; 6] = ["sh", "bash", "shell", "zsh", "shell-session", "sh-session"];

/// A command that a document shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Line of the document, counted from 1.
    pub line: usize,
    /// What is typed: without prompt; continued lines joined as the shell would read them.
    pub text: String,
}

/// A document whose commands cannot be told.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A fence of a shell language other than console.
    #[error("line {line}: commands belong in a block fenced as ```console, not ```{language}")]
    Language {
        /// Line of the fence.
        line: usize,
        /// Its language.
        language: String,
    },
    /// A fence that is never closed.
    #[error("line {line}: this block is never closed")]
    Open {
        /// Line of the fence.
        line: usize,
    },
    /// A console block that shows no command.
    #[error("line {line}: this console block shows no command: begin it with `$ `")]
    NoCommand {
        /// Line of the fence.
        line: usize,
    },
}

/// The commands in `markdown`, in the order in which a reader meets them.
pub fn commands(markdown: &str) -> Result<Vec<Command>, Error> {
    let mut commands: Vec<Command> = Vec::new();
    let mut open: Option<Block<'_>> = None;
    for (index, line) in markdown.lines().enumerate() {
        let number = index + 1;
        let trimmed = line.trim_start();
        match &mut open {
            None => {
                if let Some(fence) = fence_of(trimmed) {
                    let language = trimmed[fence.len()..]
                        .split_whitespace()
                        .next()
                        .unwrap_or_default();
                    if REFUSED.contains(&language) {
                        return Err(Error::Language {
                            line: number,
                            language: language.to_owned(),
                        });
                    }
                    open = Some(Block {
                        fence,
                        line: number,
                        indent: line.len() - trimmed.len(),
                        console: language == "console",
                        first: commands.len(),
                        last: Last::Output,
                    });
                }
            }
            Some(block)
                if trimmed.starts_with(block.fence) && trimmed.trim_start_matches(block.fence).is_empty() =>
            {
                if block.console && commands.len() == block.first {
                    return Err(Error::NoCommand { line: block.line });
                }
                open = None;
            }
            Some(block) if block.console => block.take(number, line, &mut commands),
            Some(_) => {}
        }
    }
    open.map_or(Ok(commands), |block| Err(Error::Open { line: block.line }))
}

/// Every document of the source tree that shows commands to users: `README.md`, and `docs/` with its folders, in the order of paths.
///
/// # Errors
/// When a folder cannot be read.
pub fn documents(root: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        if !folder.exists() {
            continue;
        }
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found[1..].sort();
    Ok(found)
}

struct Block<'a> {
    fence: &'a str,
    line: usize,
    indent: usize,
    console: bool,
    /// How many commands there were before it.
    first: usize,
    last: Last,
}

/// What the last line of a block was.
#[derive(Clone, Copy, PartialEq)]
enum Last {
    Output,
    Command,
    /// A command whose line ends with a backslash.
    Unfinished,
}

impl Block<'_> {
    fn take(&mut self, number: usize, line: &str, commands: &mut Vec<Command>) {
        let indent = self.indent.min(line.len() - line.trim_start().len());
        let line = line[indent..].trim_end();
        let continued = line.strip_prefix("> ").or((line == ">").then_some(""));
        self.last = match (line.strip_prefix("$ "), self.last, continued) {
            (_, Last::Unfinished, _) => append(continued.unwrap_or(line).trim_start(), "", commands),
            (Some(command), Last::Output | Last::Command, _) => {
                commands.push(Command {
                    line: number,
                    text: String::new(),
                });
                append(command, "", commands)
            }
            // A new line of a quoted text or a here-document.
            (None, Last::Command, Some(more)) => append(more, "\n", commands),
            (None, Last::Output | Last::Command, _) => Last::Output,
        };
    }
}

/// Appends `text` to the last command, after `joint`.
fn append(text: &str, joint: &str, commands: &mut [Command]) -> Last {
    let rest = text.strip_suffix('\\');
    if let Some(command) = commands.last_mut() {
        command.text.extend([joint, rest.unwrap_or(text)]);
    }
    if rest.is_some() {
        Last::Unfinished
    } else {
        Last::Command
    }
}

/// The fence that a line opens a block with: three or more backticks or tildes.
fn fence_of(line: &str) -> Option<&str> {
    let mark = line.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    let length = line.len() - line.trim_start_matches(mark).len();
    (length >= 3).then(|| &line[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(markdown: &str) -> Vec<String> {
        commands(markdown).unwrap().into_iter().map(|c| c.text).collect()
    }

    #[test]
    fn commands_are_told_from_output() {
        for (rule, markdown, expected) in [
            ("no block", "Type `make up`.\n$ not a command\n", vec![]),
            (
                "a command and its output",
                "```console\n$ make up\n==> packages\n> quoted\n```\n",
                vec!["make up"],
            ),
            ("two commands", "```console\n$ a\nout\n$ b\n```", vec!["a", "b"]),
            (
                "a backslash goes on",
                "```console\n$ a \\\n    --b\nout\n```",
                vec!["a --b"],
            ),
            (
                "with the second prompt too",
                "```console\n$ a \\\n> --b\n```",
                vec!["a --b"],
            ),
            (
                "a here-document",
                "```console\n$ kubectl apply -f - <<E\n> kind: Host\n> E\n```",
                vec!["kubectl apply -f - <<E\nkind: Host\nE"],
            ),
            (
                "an indented block",
                "- first\n\n  ```console\n  $ a\n  ```\n",
                vec!["a"],
            ),
            ("tildes", "~~~console\n$ a\n~~~\n", vec!["a"]),
            (
                "a longer fence holds a shorter one",
                "````\n```console\n$ a\n```\n````",
                vec![],
            ),
            ("another language", "```yaml\n$ a\n```", vec![]),
        ] {
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(texts(markdown), expected, "{rule}");
        }
    }

    #[test]
    fn lines_are_those_of_the_document() {
        let found = commands("# Title\n\n```console\n$ a\nout\n$ b\n```\n").unwrap();
        assert_eq!(found.iter().map(|c| c.line).collect::<Vec<_>>(), [4, 6]);
    }

    #[test]
    fn what_could_hide_a_command_is_refused() {
        let language = |language: &str| Error::Language {
            line: 1,
            language: language.to_owned(),
        };
        for (markdown, error) in [
            ("```sh\nmake up\n```", language("sh")),
            ("```bash\nmake up\n```", language("bash")),
            ("```console\nmake up\n```", Error::NoCommand { line: 1 }),
            ("text\n```console\n$ make up\n", Error::Open { line: 2 }),
        ] {
            assert_eq!(commands(markdown), Err(error), "{markdown}");
        }
    }
}
