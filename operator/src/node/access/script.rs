//! The shell text that runs one command in a guest, and how its answer is read.
//!
//! Pure, and the same for every channel: the text goes to the standard input of a `sh` in the guest, so that no argument
//! of it shows in a process list. The guest needs a `sh`, `cat`, `head` and `tail`; busybox has them. The output is bounded
//! there, before it takes room anywhere else, and the exit code follows it in the last line: not every channel carries
//! one.

/// Exit code of a shell that could not tell one.
const NO_CODE: i32 = 255;
/// Bytes that the line with the exit code may take.
const TRAILER: usize = 16;

/// Which part of a long output is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Its beginning.
    #[default]
    Head,
    /// Its end, where installers and builders say what went wrong.
    Tail,
}

/// A command for a guest's login shell, run as root in root's home.
///
/// It ends when all its output is closed: what it leaves in the background must not keep the output open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// What `sh -lc` gets.
    pub text: String,
    /// Environment variables. Names are the caller's word: letters, digits and `_`.
    pub env: Vec<(String, String)>,
    /// Bytes of output that are kept.
    pub limit: usize,
    /// Which part of a longer output is kept.
    pub keep: Keep,
}

/// What a command that ended said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code, 128 and the signal when a signal ended it; absent when it was ended at its deadline.
    pub exit_code: Option<i32>,
    /// Standard output and error together, as they came.
    pub output: Vec<u8>,
    /// Whether there was more.
    pub truncated: bool,
}

impl Command {
    /// The text for the guest's shell.
    #[must_use]
    pub fn script(&self) -> String {
        let mut text = "HOME=~root; [ -d \"$HOME\" ] || HOME=/\n\
            USER=root LOGNAME=root; export HOME USER LOGNAME; cd \"$HOME\"\n"
            .to_owned();
        for (name, value) in &self.env {
            text.extend(["export ", name, "=", &quoted(value), "\n"]);
        }
        // One byte more than is kept tells that there was more.
        let bound = match self.keep {
            Keep::Head => format!("{{ head -c {}; cat >/dev/null; }}", self.limit + 1),
            Keep::Tail => format!("tail -c {}", self.limit + 1),
        };
        // 3 is the way out, 4 carries the exit code past the pipe.
        text.push_str("exec 3>&1\ncode=$({ { /bin/sh -lc ");
        text.push_str(&quoted(&self.text));
        text.push_str(" </dev/null 2>&1 3>&- 4>&-; echo $? >&4; } | ");
        text.push_str(&bound);
        text.push_str(" >&3 3>&- 4>&-; } 4>&1)\nprintf '\\n%s' \"$code\"\n");
        text
    }

    /// Bytes of an answer that can mean something; what comes after them is noise.
    #[must_use]
    pub fn answer_limit(&self) -> usize {
        self.limit + 1 + TRAILER
    }

    /// Reads the shell's whole answer; nothing when it broke off before the exit code.
    #[must_use]
    pub fn read(&self, answer: &[u8]) -> Option<Ended> {
        let end = answer.iter().rposition(|byte| *byte == b'\n')?;
        let code = std::str::from_utf8(&answer[end + 1..]).ok()?;
        let exit_code = match code {
            "" => NO_CODE,
            code => code.parse().ok()?,
        };
        Some(Ended {
            exit_code: Some(exit_code),
            ..self.bounded(&answer[..end])
        })
    }

    /// What is left of a command that was ended at its deadline.
    #[must_use]
    pub fn broken_off(&self, answer: &[u8]) -> Ended {
        self.bounded(answer)
    }

    fn bounded(&self, output: &[u8]) -> Ended {
        let spare = output.len().saturating_sub(self.limit);
        let kept = match self.keep {
            Keep::Head => &output[..output.len() - spare],
            Keep::Tail => &output[spare..],
        };
        Ended {
            exit_code: None,
            output: kept.to_vec(),
            truncated: spare > 0,
        }
    }
}

/// A word for the shell that means exactly this text.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command as Process, Stdio};

    use super::*;

    /// Every shell of this machine that a guest may have.
    const SHELLS: [&[&str]; 3] = [&["sh", "-s"], &["bash", "-s"], &["busybox", "sh", "-s"]];

    fn run_in(shell: &[&str], command: &Command) -> Option<Ended> {
        let mut child = Process::new(shell[0])
            .args(&shell[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{shell:?}: {e}"));
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(command.script().as_bytes()).unwrap();
        drop(pipe);
        command.read(&child.wait_with_output().unwrap().stdout)
    }

    /// What the command says in each shell, which must be the same.
    fn run(text: &str, limit: usize, keep: Keep) -> Ended {
        let command = Command {
            text: text.to_owned(),
            env: vec![("VS_X".to_owned(), "a'b $HOME\n\"c\"".to_owned())],
            limit,
            keep,
        };
        let available = SHELLS.into_iter().filter(|shell| {
            let found = Process::new(shell[0]).arg("--help").output();
            found.is_ok()
        });
        let mut said: Vec<Ended> = available
            .map(|shell| run_in(shell, &command).unwrap_or_else(|| panic!("{text} in {shell:?}: no answer")))
            .collect();
        let first = said.remove(0);
        assert!(
            said.iter().all(|other| *other == first),
            "{text}: {first:?} {said:?}"
        );
        first
    }

    #[test]
    fn a_command_says_all_it_has_to_say() {
        for (rule, text, code, output) in [
            (
                "both streams in order",
                "echo one; echo two >&2; echo three",
                0,
                "one\ntwo\nthree\n",
            ),
            ("nothing said", "true", 0, ""),
            ("its exit code", "exit 42", 42, ""),
            ("no line end", "printf 'a\\n7'", 0, "a\n7"),
            (
                "the environment is exact",
                "printf %s \"$VS_X\"",
                0,
                "a'b $HOME\n\"c\"",
            ),
            (
                "quotes",
                "a='x y'\nprintf \"%s|\" \"$a\" 'it'\"'\"'s'",
                0,
                "x y|it's|",
            ),
            ("nothing to read from", "cat; echo done", 0, "done\n"),
            (
                "root's home",
                "[ \"$PWD\" = \"$HOME\" ] && [ $USER = root ] && echo yes",
                0,
                "yes\n",
            ),
            ("a signal", "sh -c 'kill -9 $$' 2>/dev/null; exit $?", 137, ""),
        ] {
            let ended = run(text, 100, Keep::Head);
            let text = String::from_utf8(ended.output).unwrap();
            assert_eq!(
                (ended.exit_code, text.as_str(), ended.truncated),
                (Some(code), output, false),
                "{rule}"
            );
        }
    }

    #[test]
    fn a_long_output_is_cut_and_its_command_ends_as_it_would() {
        let many = "seq 1 100000; echo end; exit 4";
        for (rule, text, limit, keep, code, output, truncated) in [
            (
                "exactly the limit",
                "printf 12345",
                5,
                Keep::Head,
                0,
                "12345",
                false,
            ),
            ("one byte more", "printf 123456", 5, Keep::Head, 0, "12345", true),
            (
                "one byte more, the end kept",
                "printf 123456",
                5,
                Keep::Tail,
                0,
                "23456",
                true,
            ),
            ("the beginning", many, 6, Keep::Head, 4, "1\n2\n3\n", true),
            ("the end", many, 6, Keep::Tail, 4, "0\nend\n", true),
        ] {
            let ended = run(text, limit, keep);
            let text = String::from_utf8(ended.output).unwrap();
            assert_eq!(
                (ended.exit_code, text.as_str(), ended.truncated),
                (Some(code), output, truncated),
                "{rule}"
            );
        }
    }

    #[test]
    fn an_answer_that_breaks_off_is_none() {
        let command = Command {
            limit: 10,
            ..Command::default()
        };
        for answer in ["", "out", "out\nmore", "\n1x"] {
            assert_eq!(command.read(answer.as_bytes()), None, "{answer:?}");
        }
        let rest = command.broken_off(b"0123456789ab");
        assert_eq!(
            (rest.exit_code, rest.output.len(), rest.truncated),
            (None, 10, true)
        );
    }
}
