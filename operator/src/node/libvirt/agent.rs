//! The protocol of the QEMU guest agent, one command at a time.
//!
//! Each call is short: what takes long in the guest is started by one and asked after by others, so that no libvirt call is
//! in flight while it runs.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::hypervisor::{HypervisorError, LibvirtError, LibvirtErrorKind};
use super::{Answer, Link};

impl Link {
    /// Makes one command of the agent's protocol and returns its `return`. `deadline` is the agent's alone, in whole
    /// seconds, at least one.
    pub fn agent(&self, uuid: &str, command: &str, arguments: &Value, deadline: Duration) -> Answer<Value> {
        const WHAT: &str = "ask the agent of";
        let seconds = i32::try_from(deadline.as_secs().max(1)).unwrap_or(i32::MAX);
        let request = json!({"execute": command, "arguments": arguments}).to_string();
        let answer = self
            .domain(uuid)?
            .qemu_agent_command(&request, seconds, 0)
            .map_err(|e| self.failed(WHAT, uuid, &e))?;
        let mut answer: Value = serde_json::from_str(&answer).map_err(|error| HypervisorError::Refused {
            what: WHAT,
            domain: uuid.to_owned(),
            source: LibvirtError {
                kind: LibvirtErrorKind::Other,
                message: format!("its answer to {command} is not JSON: {error}"),
            },
        })?;
        Ok(answer["return"].take())
    }
}
