//! Results of targets, in the size that the API server takes. Pure.

use virtshell_crds::task::{AssignedTarget, TargetResult, TargetState};

use crate::node::access::{Ended, Keep};

/// Bytes of output that one target can have at most.
const ONE: usize = 64 << 10;
/// Bytes of output that all targets of an assignment have together: etcd takes objects of 1.5 MiB.
const ALL: usize = 512 << 10;

/// Bytes of output for each of so many targets.
#[must_use]
pub fn share(targets: usize) -> usize {
    ONE.min(ALL / targets.max(1))
}

/// A target that failed without a command's end: a word, and what it means.
#[must_use]
pub fn failed(target: &AssignedTarget, reason: &str, why: &str) -> TargetResult {
    TargetResult {
        uid: target.uid.clone(),
        name: target.name.clone(),
        state: TargetState::Failed,
        reason: reason.to_owned(),
        exit_code: None,
        output: cut(why, share(1000), Keep::Head).to_owned(),
        truncated: false,
    }
}

/// A target whose command has started.
#[must_use]
pub fn started(target: &AssignedTarget) -> TargetResult {
    TargetResult {
        uid: target.uid.clone(),
        name: target.name.clone(),
        state: TargetState::Started,
        reason: String::new(),
        exit_code: None,
        output: String::new(),
        truncated: false,
    }
}

/// A target whose command ended, with at most `share` bytes of what it said.
#[must_use]
pub fn ended(target: &AssignedTarget, ended: &Ended, share: usize, keep: Keep) -> TargetResult {
    let text = readable(&ended.output);
    let output = cut(&text, share, keep);
    let (state, reason) = match ended.exit_code {
        Some(0) => (TargetState::Succeeded, ""),
        Some(_) => (TargetState::Failed, "CommandFailed"),
        None => (TargetState::Failed, "TimedOut"),
    };
    TargetResult {
        state,
        reason: reason.to_owned(),
        exit_code: ended.exit_code,
        output: output.to_owned(),
        truncated: ended.truncated || output.len() < text.len(),
        ..started(target)
    }
}

/// Text for a JSON document: what is no text, and control characters that would take six bytes each, is replaced.
#[must_use]
pub fn readable(bytes: &[u8]) -> String {
    let control = |c: char| c.is_control() && !matches!(c, '\n' | '\t' | '\r');
    String::from_utf8_lossy(bytes).replace(control, "\u{fffd}")
}

/// At most `limit` bytes, in whole characters.
#[must_use]
pub fn cut(text: &str, limit: usize, keep: Keep) -> &str {
    match keep {
        Keep::Head => &text[..text.floor_char_boundary(limit)],
        Keep::Tail => &text[text.ceil_char_boundary(text.len().saturating_sub(limit))..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_fit_into_one_object() {
        for (targets, expected) in [(0, ONE), (1, ONE), (8, ONE), (9, 58_254), (1000, 524)] {
            assert_eq!(share(targets), expected, "{targets}");
            assert!(share(targets) * targets <= ALL);
        }
    }

    #[test]
    fn what_a_command_said_becomes_a_result() {
        let target = AssignedTarget {
            name: "a".into(),
            uid: "u".into(),
        };
        let done = TargetState::Succeeded;
        let failed = TargetState::Failed;
        let (head, tail) = (Keep::Head, Keep::Tail);
        for (rule, (exit_code, output, cut), keep, expected) in [
            (
                "success",
                (Some(0), &b"ok\n"[..], false),
                head,
                (done, "", "ok\n", false),
            ),
            (
                "failure",
                (Some(3), b"", false),
                head,
                (failed, "CommandFailed", "", false),
            ),
            (
                "deadline",
                (None, b"so far", false),
                head,
                (failed, "TimedOut", "so far", false),
            ),
            (
                "cut in the guest",
                (Some(0), b"12345678", true),
                head,
                (done, "", "12345678", true),
            ),
            (
                "cut here",
                (Some(0), b"123456789", false),
                head,
                (done, "", "12345678", true),
            ),
            (
                "the end kept",
                (Some(0), b"123456789", false),
                tail,
                (done, "", "23456789", true),
            ),
            (
                "whole characters",
                (Some(0), "1234567é".as_bytes(), false),
                head,
                (done, "", "1234567", true),
            ),
            (
                "whole ones at the end",
                (Some(0), "é1234567".as_bytes(), false),
                tail,
                (done, "", "1234567", true),
            ),
            (
                "no text",
                (Some(0), b"\xff\t", false),
                head,
                (done, "", "\u{fffd}\t", false),
            ),
            (
                "control characters",
                (Some(0), b"\0\x1b", false),
                head,
                (done, "", "\u{fffd}\u{fffd}", false),
            ),
        ] {
            let command = Ended {
                exit_code,
                output: output.to_vec(),
                truncated: cut,
            };
            let result = ended(&target, &command, 8, keep);
            let seen = (
                result.state,
                result.reason.as_str(),
                result.output.as_str(),
                result.truncated,
            );
            assert_eq!(seen, expected, "{rule}");
            assert_eq!((result.uid.as_str(), result.name.as_str()), ("u", "a"), "{rule}");
        }
    }
}
