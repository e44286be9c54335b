//! Start, stop and restart: one task for all targets, which the controller performs.

use std::sync::Arc;

use virtshell_crds::task::TaskParams;
use virtshell_crds::{PowerState, Task};

use super::selection::Selector;
use super::tasks::{Work, new_task_name};
use super::{Caller, Service, ServiceError, Verb};

/// A change of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// Run.
    Start,
    /// Ask the guest to shut down, then power off.
    Stop,
    /// Stop and start.
    Restart,
}

impl Power {
    /// Type of the task.
    #[must_use]
    pub const fn task_type(self) -> &'static str {
        match self {
            Self::Start => "start_instance",
            Self::Stop => "stop_instance",
            Self::Restart => "restart_instance",
        }
    }

    const fn verb(self) -> &'static str {
        match self {
            Self::Start => "Start",
            Self::Stop => "Stop",
            Self::Restart => "Restart",
        }
    }

    const fn state(self) -> PowerState {
        match self {
            Self::Start | Self::Restart => PowerState::Running,
            Self::Stop => PowerState::Stopped,
        }
    }
}

impl Service {
    /// Asks for a change of power of everything selected.
    pub async fn change_power(
        &self,
        caller: &Caller,
        power: Power,
        selectors: &[Selector],
    ) -> Result<Arc<Task>, ServiceError> {
        let targets = self.select(caller, Verb::Execute, selectors)?;
        let description = match targets.as_slice() {
            [one] => format!("{} instance {}", power.verb(), one.wire_name()),
            many => format!("{} {} instances", power.verb(), many.len()),
        };
        let work = Work {
            type_: power.task_type(),
            description,
            targets: &targets,
            params: Some(TaskParams {
                power: Some(power.state()),
                ..TaskParams::default()
            }),
        };
        self.start_work(caller, &new_task_name(), work).await
    }
}
