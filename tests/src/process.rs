//! What a process takes, by what the kernel counts.

use anyhow::Context;

/// Resident memory now, in KiB.
///
/// # Errors
/// When there is no such process.
pub fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    status(pid, "VmRSS:")
}

/// The most resident memory it ever had, in KiB.
///
/// # Errors
/// When there is no such process.
pub fn peak_kib(pid: u32) -> anyhow::Result<u64> {
    status(pid, "VmHWM:")
}

fn status(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    Ok(number
        .with_context(|| format!("process {pid} has no {field}"))?
        .parse()?)
}

/// User and system time so far, in seconds. The kernel counts it in ticks of 10 ms.
///
/// # Errors
/// When there is no such process.
pub fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().context("a process has a name")?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_takes_something() {
        let me = std::process::id();
        let before = cpu_seconds(me).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while cpu_seconds(me).unwrap() <= before {
            assert!(std::time::Instant::now() < deadline, "work takes time");
        }
        let now = resident_kib(me).unwrap();
        assert!(now > 100 && peak_kib(me).unwrap() >= now);
        assert!(resident_kib(u32::MAX).is_err());
    }
}
