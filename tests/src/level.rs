//! Levels that need more than a compiler. Green means that a level ran.

/// Environment variable that allows a level to be left out.
pub const ALLOW_SKIP: &str = "VIRTSHELL_ALLOW_SKIP";

/// Whether the end-to-end level can run here: guests need root, and what is missing is installed from Debian.
///
/// Returns false only where skipping is allowed; the line `SKIPPED LEVEL: ...` is printed then.
///
/// # Panics
/// When the level cannot run and [`ALLOW_SKIP`] is not `1`.
#[must_use]
pub fn end_to_end() -> bool {
    runs("end-to-end", obstacle().as_deref())
}

fn obstacle() -> Option<String> {
    let uid = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("Uid:"))?;
            line.split_whitespace().nth(2).map(str::to_owned)
        });
    match uid.as_deref() {
        Some("0") => {}
        other => {
            return Some(format!(
                "it starts libvirt and guests, which needs root; this is uid {}",
                other.unwrap_or("unknown")
            ));
        }
    }
    let found = |program: &str| {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|folder| std::path::Path::new(folder).join(program).exists())
    };
    (!found("libvirtd") && !found("apt-get"))
        .then(|| "there is no libvirtd, and no apt-get to install it with".to_owned())
}

fn runs(level: &str, obstacle: Option<&str>) -> bool {
    let Some(obstacle) = obstacle else { return true };
    // To the real standard error: the test runner captures eprintln! of a test that passes.
    let line = format!("SKIPPED LEVEL: {level}: {obstacle}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
    assert!(
        std::env::var(ALLOW_SKIP).is_ok_and(|value| value == "1"),
        "level {level} cannot run here: {obstacle}; set {ALLOW_SKIP}=1 to go on without it"
    );
    false
}

#[cfg(test)]
mod tests {
    #[test]
    fn without_an_obstacle_a_level_runs() {
        assert!(super::runs("any", None));
    }

    #[test]
    fn an_obstacle_is_a_failure_unless_skipping_is_allowed() {
        let allowed = std::env::var(super::ALLOW_SKIP).is_ok_and(|value| value == "1");
        let ran = std::panic::catch_unwind(|| super::runs("any", Some("no libvirt")));
        assert_eq!(ran.ok(), allowed.then_some(false));
    }
}
