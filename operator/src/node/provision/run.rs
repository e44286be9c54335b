//! The work itself: clone, executor, and what they are told.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::json;
use virtshell_crds::Instance;
use virtshell_crds::instance::{MetDependency, Resolved};

use super::{Cause, vars};
use crate::node::access::{AccessError, Channel, Command, Ended, Guest, Keep, quoted};
use crate::node::context::Context;
use crate::node::hypervisor::chain;

/// How long clone and executor may take together.
const LIMIT: Duration = Duration::from_hours(1);
/// How long the file with the variables may take to come.
const PATIENCE: Duration = Duration::from_mins(1);
/// Bytes of the end of their output that a failure shows.
const TAIL: usize = 2 << 10;

/// Builds. The guest is left as it is when that fails.
pub async fn build(context: &Context, instance: &Instance, channel: Channel) -> Result<(), (Cause, String)> {
    let end = Instant::now() + LIMIT;
    let resolved = instance
        .status
        .as_ref()
        .and_then(|s| s.resolved.clone())
        .unwrap_or_default();
    let vars = match resolved.vars_from.as_str() {
        "" => instance.spec.vars.clone(),
        url => tokio::time::timeout(PATIENCE, vars::read(&context.files, url))
            .await
            .unwrap_or_else(|_| Err(format!("{url} did not come in {} s", PATIENCE.as_secs())))
            .map_err(|why| (Cause::VarsUnreadable, why))?,
    };
    let env = environment(instance, &resolved, &vars);
    let directory = directory(&resolved.builder).ok_or_else(|| {
        let why = format!(
            "builder {}: its last segment is no name for a directory",
            resolved.builder
        );
        (Cause::CloneFailed, why)
    })?;
    let guest = Guest::open(context, instance, channel)
        .await
        .map_err(|error| lost(&error))?;
    for (what, cause, text) in [
        (
            "git clone",
            Cause::CloneFailed,
            clone(&resolved.builder, directory),
        ),
        (
            "the executor",
            Cause::ExecutorFailed,
            execute(&resolved.executor, directory),
        ),
    ] {
        let command = Command {
            text,
            env: env.clone(),
            limit: TAIL,
            keep: Keep::Tail,
        };
        let left = end.saturating_duration_since(Instant::now());
        let ended = guest.run(&command, left).await.map_err(|error| lost(&error))?;
        judge(what, cause, &ended)?;
    }
    Ok(())
}

fn lost(error: &AccessError) -> (Cause, String) {
    (Cause::GuestLost, chain(error))
}

fn judge(what: &str, cause: Cause, ended: &Ended) -> Result<(), (Cause, String)> {
    let tail = String::from_utf8_lossy(&ended.output);
    match ended.exit_code {
        Some(0) => Ok(()),
        Some(code) => Err((
            cause,
            format!("{what} ended with exit code {code}: {}", tail.trim()),
        )),
        None => Err((
            Cause::TimedOut,
            format!(
                "{what} was ended: clone and executor together may take {} minutes",
                LIMIT.as_secs() / 60
            ),
        )),
    }
}

/// Directory of the clone: the last segment of the URL without `.git`.
fn directory(builder: &str) -> Option<&str> {
    let last = builder.trim_end_matches('/').rsplit(['/', ':']).next()?;
    let name = last.strip_suffix(".git").unwrap_or(last);
    (!matches!(name, "" | "." | "..") && !name.starts_with('-')).then_some(name)
}

/// Clones, or brings an existing clone to where the repository is.
fn clone(builder: &str, directory: &str) -> String {
    let (url, directory) = (quoted(builder), quoted(directory));
    format!(
        "export GIT_TERMINAL_PROMPT=0; cd \"$HOME\" || exit\n\
         if [ -d {directory}/.git ]; then\n\
         cd {directory} && git remote set-url origin {url} && git fetch -q origin HEAD && git reset -q --hard FETCH_HEAD\n\
         else git clone -q -- {url} {directory}; fi\n"
    )
}

fn execute(executor: &str, directory: &str) -> String {
    format!("cd \"$HOME\"/{} || exit\n{executor}\n", quoted(directory))
}

/// What a builder is told. A dependency without an address has an empty one.
fn environment(
    instance: &Instance,
    resolved: &Resolved,
    vars: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let told =
        |met: &MetDependency| json!({"provisioner": met.provisioner, "name": met.name, "ipv4": met.ipv4});
    let depends: Vec<_> = resolved.dependencies.iter().map(told).collect();
    let mut env = vec![
        ("VS_INSTANCE_NAME".to_owned(), instance.wire_name().to_owned()),
        ("VS_ENVIROMENT".to_owned(), resolved.environment.clone()),
        ("VS_DEPENDS".to_owned(), json!(depends).to_string()),
    ];
    env.extend(vars.iter().map(|(key, value)| (variable(key), value.clone())));
    env
}

/// `VS_` and the key in upper case, with `_` for what a shell's variable cannot have.
fn variable(key: &str) -> String {
    let character = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    format!("VS_{}", key.chars().map(character).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clone_is_named_after_its_url() {
        for (builder, expected) in [
            ("https://example.org/team/repo.git", Some("repo")),
            ("https://example.org/team/repo/", Some("repo")),
            ("git@example.org:repo.git", Some("repo")),
            ("file:///srv/a.b", Some("a.b")),
            ("https://example.org/..", None),
            ("https://example.org/.git", None),
            ("https://example.org/-x", None),
        ] {
            assert_eq!(directory(builder), expected, "{builder}");
        }
    }

    #[test]
    fn what_the_executor_is_told() {
        let me: Instance = serde_json::from_value(json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "Instance", "metadata": {"name": "web"},
            "spec": {"displayName": "web 1", "vars": {"db.user-name": "it's", "N": "1"}},
        }))
        .unwrap();
        let met = |provisioner: &str, name: &str, ipv4: &str| MetDependency {
            provisioner: provisioner.to_owned(),
            name: name.to_owned(),
            ipv4: ipv4.to_owned(),
        };
        let resolved = Resolved {
            environment: "dev".to_owned(),
            dependencies: vec![met("db", "db 1", "10.0.0.7"), met("mq", "mq", "")],
            ..Resolved::default()
        };
        let env = environment(&me, &resolved, &me.spec.vars);
        let expected = [
            ("VS_INSTANCE_NAME", "web 1"),
            ("VS_ENVIROMENT", "dev"),
            (
                "VS_DEPENDS",
                r#"[{"ipv4":"10.0.0.7","name":"db 1","provisioner":"db"},{"ipv4":"","name":"mq","provisioner":"mq"}]"#,
            ),
            ("VS_N", "1"),
            ("VS_DB_USER_NAME", "it's"),
        ];
        assert_eq!(env, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn a_failure_shows_the_end_of_what_was_said() {
        let ended = |exit_code| Ended {
            exit_code,
            output: b"...\nno such package\n".to_vec(),
            truncated: true,
        };
        assert_eq!(judge("git clone", Cause::CloneFailed, &ended(Some(0))), Ok(()));
        let (cause, why) = judge("the executor", Cause::ExecutorFailed, &ended(Some(3))).unwrap_err();
        assert_eq!(cause, Cause::ExecutorFailed);
        assert_eq!(why, "the executor ended with exit code 3: ...\nno such package");
        assert_eq!(
            judge("x", Cause::ExecutorFailed, &ended(None)).unwrap_err().0,
            Cause::TimedOut
        );
    }
}
