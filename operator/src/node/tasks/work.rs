//! Does one target's part of an assignment. I/O only: what is done was decided.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use tokio::sync::OnceCell;
use virtshell_crds::TaskAssignment;
use virtshell_crds::task::{AssignedTarget, TargetResult, TaskParams};

use super::Kind;
use super::copy::{self, NoSource, Source};
use super::packages;
use super::result::{ended, failed, share};
use crate::node::access::{AccessError, Channel, Command, Ended, Guest, Keep};
use crate::node::context::Context;
use crate::node::hypervisor::chain;

/// Files that an assignment copies, read once for all its targets.
pub type Files = Arc<OnceCell<Result<Source, NoSource>>>;

/// One target's part.
pub struct Part {
    /// Of which assignment.
    pub assignment: Arc<TaskAssignment>,
    /// Which target.
    pub target: AssignedTarget,
    /// The way into it.
    pub channel: Channel,
    /// How long it may take.
    pub deadline: Duration,
    /// What a copy copies.
    pub files: Files,
}

impl Part {
    /// Does it.
    pub async fn perform(self, context: &Context) -> TargetResult {
        let end = Instant::now() + self.deadline;
        let left = || end.saturating_duration_since(Instant::now());
        let refused = |error: &AccessError| failed(&self.target, error.reason(), &chain(error));
        let Some(instance) = context.instances.get(&self.target.uid) else {
            return refused(&AccessError::NoDomain);
        };
        let guest = match Guest::open(context, &instance, self.channel.clone()).await {
            Ok(guest) => guest,
            Err(error) => return refused(&error),
        };
        let params = self.assignment.spec.params.clone().unwrap_or_default();
        let (text, keep) = match Kind::of(&self.assignment.spec.type_) {
            Some(Kind::Command) => match params.command {
                Some(text) => (text, Keep::Head),
                None => return failed(&self.target, "Invalid", "command is missing"),
            },
            Some(Kind::Packages(change)) => (packages::command(change, &params.packages), Keep::Tail),
            Some(Kind::Copy) => return self.copy(context, &guest, &params, left).await,
            None => return failed(&self.target, "Unsupported", "nothing that a host does"),
        };
        let command = Command {
            text,
            env: vec![],
            limit: self.share(),
            keep,
        };
        match guest.run(&command, left()).await {
            Ok(done) => ended(&self.target, &done, self.share(), keep),
            Err(error) => refused(&error),
        }
    }

    async fn copy(
        &self,
        context: &Context,
        guest: &Guest,
        params: &TaskParams,
        left: impl Fn() -> Duration,
    ) -> TargetResult {
        let namespace = self.assignment.namespace().unwrap_or_default();
        let read = self.files.get_or_init(|| copy::read(context, &namespace, params));
        let deadline = left();
        let source = match tokio::time::timeout(deadline, read).await {
            Ok(Ok(source)) => source,
            Ok(Err(NoSource(reason, why))) => return failed(&self.target, reason, why),
            Err(_) => {
                let late = AccessError::TimedOut(deadline);
                return failed(&self.target, late.reason(), &chain(&late));
            }
        };
        match copy::copy(guest, source, params, left).await {
            Ok(paths) => {
                let done = Ended {
                    exit_code: Some(0),
                    output: paths.join("\n").into_bytes(),
                    truncated: false,
                };
                ended(&self.target, &done, self.share(), Keep::Head)
            }
            Err(error) => failed(&self.target, error.reason(), &chain(&error)),
        }
    }

    fn share(&self) -> usize {
        share(self.assignment.spec.targets.len())
    }
}
