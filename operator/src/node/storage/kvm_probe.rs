//! Whether hardware virtualization really runs guests on this machine.
//!
//! A device node proves nothing, and neither does one probe alone: some machines have a `/dev/kvm` that runs only
//! specially built kernels, and yet a few instructions of ours. So on x86 three things are asked: the CPU's own flag, the
//! device, and a vCPU that executed a small ROM to its end.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

/// How long the ROM may take. It needs 0.1 s; a vCPU that does not run never ends.
const DEADLINE: Duration = Duration::from_secs(5);
const ROM_BYTES: usize = 64 << 10;
/// `mov dx, 0xf4; mov al, 0x10; out dx, al; hlt`, at the reset vector: 16 bytes below the end.
const RESET_CODE: [u8; 7] = [0xba, 0xf4, 0x00, 0xb0, 0x10, 0xee, 0xf4];
/// isa-debug-exit ends QEMU with (value << 1) | 1.
const ROM_STATUS: i32 = 0x10 << 1 | 1;

/// Whether guests can run on the hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvmSupport {
    /// A vCPU ran.
    Usable,
    /// It cannot be relied on.
    Unusable {
        /// What is missing, for a condition's message.
        reason: String,
    },
}

/// What the machine shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Evidence {
    /// `None` where the CPU has no such flag to show.
    cpu_flag: Option<bool>,
    /// Why `/dev/kvm` cannot be opened.
    device_error: Option<String>,
    /// Asked only when the others agree.
    vcpu: Option<VcpuRun>,
}

/// How the ROM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum VcpuRun {
    Ended(Option<i32>),
    TimedOut,
    NoQemu(String),
}

/// Asks the CPU, the device and a vCPU; at most 5 s.
pub async fn probe() -> KvmSupport {
    let cpuinfo = tokio::fs::read_to_string("/proc/cpuinfo")
        .await
        .unwrap_or_default();
    let device = tokio::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .await;
    let mut evidence = Evidence {
        cpu_flag: cfg!(any(target_arch = "x86", target_arch = "x86_64"))
            .then(|| has_virtualization_flag(&cpuinfo)),
        device_error: device.err().map(|error| error.to_string()),
        vcpu: None,
    };
    if evidence.cpu_flag == Some(true) && evidence.device_error.is_none() {
        evidence.vcpu = Some(run_rom().await);
    }
    judge(&evidence)
}

fn judge(evidence: &Evidence) -> KvmSupport {
    let unusable = |reason: &str| KvmSupport::Unusable {
        reason: reason.to_owned(),
    };
    if evidence.cpu_flag == Some(false) {
        return unusable(
            "the CPU shows neither vmx nor svm: hardware virtualization is absent, switched off, or not passed on by the hypervisor above",
        );
    }
    if let Some(error) = &evidence.device_error {
        return unusable(&format!("/dev/kvm cannot be opened: {error}"));
    }
    match &evidence.vcpu {
        Some(VcpuRun::Ended(Some(ROM_STATUS))) => KvmSupport::Usable,
        // Other architectures have no such flag that lies; the device is the answer.
        None if evidence.cpu_flag.is_none() => KvmSupport::Usable,
        None => unusable("no vCPU was tried"),
        Some(VcpuRun::Ended(status)) => unusable(&format!(
            "a trial vCPU did not run its program (QEMU ended with {status:?})"
        )),
        Some(VcpuRun::TimedOut) => {
            unusable("a trial vCPU did not run: its program of three instructions was not done after 5 s")
        }
        Some(VcpuRun::NoQemu(error)) => unusable(&format!(
            "qemu-system-x86_64 cannot be run for a trial: {error}; install qemu-system-x86"
        )),
    }
}

/// Whether a `flags` line of /proc/cpuinfo has `vmx` (Intel) or `svm` (AMD).
fn has_virtualization_flag(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .any(|(_, flags)| {
            flags
                .split_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        })
}

fn rom() -> Vec<u8> {
    let mut rom = vec![0xf4; ROM_BYTES];
    let at = ROM_BYTES - 16;
    rom[at..at + RESET_CODE.len()].copy_from_slice(&RESET_CODE);
    rom
}

async fn run_rom() -> VcpuRun {
    run_rom_with("kvm").await
}

async fn run_rom_with(accelerator: &str) -> VcpuRun {
    let written = tempfile::NamedTempFile::new().and_then(|mut file| {
        file.write_all(&rom())?;
        Ok(file.into_temp_path())
    });
    match written {
        Ok(rom) => run_qemu(&rom, accelerator).await,
        Err(error) => VcpuRun::NoQemu(format!("its program cannot be written: {error}")),
    }
}

async fn run_qemu(rom: &Path, accelerator: &str) -> VcpuRun {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            "pc",
            "-m",
            "16",
            "-accel",
        ])
        .arg(accelerator)
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"])
        .arg(rom)
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true);
    match tokio::time::timeout(DEADLINE, command.status()).await {
        Ok(Ok(status)) => VcpuRun::Ended(status.code()),
        Ok(Err(error)) => VcpuRun::NoQemu(error.to_string()),
        Err(_) => VcpuRun::TimedOut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags() {
        for (text, expected) in [
            ("flags\t\t: fpu vmx sse", true),
            ("flags\t\t: fpu svm", true),
            ("flags\t\t: fpu vmx_like svm_lock", false),
            ("vmx flags\t: vnmi preemption_timer", false),
            ("model name\t: vmx", false),
            ("", false),
        ] {
            assert_eq!(has_virtualization_flag(text), expected, "{text}");
        }
    }

    #[test]
    fn all_three_must_agree() {
        let good = Evidence {
            cpu_flag: Some(true),
            device_error: None,
            vcpu: Some(VcpuRun::Ended(Some(33))),
        };
        let but = |change: fn(&mut Evidence)| {
            let mut evidence = good.clone();
            change(&mut evidence);
            judge(&evidence)
        };
        assert_eq!(judge(&good), KvmSupport::Usable);
        for (word, verdict) in [
            ("vmx", but(|e| e.cpu_flag = Some(false))),
            (
                "No such file",
                but(|e| e.device_error = Some("No such file".into())),
            ),
            ("not done", but(|e| e.vcpu = Some(VcpuRun::TimedOut))),
            ("Some(1)", but(|e| e.vcpu = Some(VcpuRun::Ended(Some(1))))),
            ("None", but(|e| e.vcpu = Some(VcpuRun::Ended(None)))),
            (
                "qemu-system-x86",
                but(|e| e.vcpu = Some(VcpuRun::NoQemu("x".into()))),
            ),
            ("no vCPU", but(|e| e.vcpu = None)),
        ] {
            match verdict {
                KvmSupport::Unusable { reason } => assert!(reason.contains(word), "{reason}"),
                KvmSupport::Usable => panic!("{word}"),
            }
        }
    }

    /// The ROM is right: an emulated CPU runs it on any machine.
    #[tokio::test]
    async fn an_emulated_cpu_runs_the_rom() {
        assert_eq!(run_rom_with("tcg").await, VcpuRun::Ended(Some(ROM_STATUS)));
    }

    #[tokio::test]
    async fn the_probe_agrees_with_the_cpu() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if probe().await == KvmSupport::Usable {
            assert!(has_virtualization_flag(&cpuinfo) || !cfg!(target_arch = "x86_64"));
        }
    }
}
