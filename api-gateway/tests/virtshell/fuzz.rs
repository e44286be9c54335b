//! Whatever clients send, the gateway answers as its document says: no accident, no status or body that is not documented.
//!
//! Schemathesis makes the requests from the document. `VIRTSHELL_SCHEMATHESIS` is its program (`hack/schemathesis.sh` prints one),
//! `VIRTSHELL_FUZZ_SECONDS` how long it may go on (60).

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::fixtures::{key_id, secret};
use crate::support::{TESTER, row};

#[test]
fn what_schemathesis_sends_is_answered_as_documented() {
    let Some(program) = std::env::var_os("VIRTSHELL_SCHEMATHESIS") else {
        eprintln!("NOT RUN: VIRTSHELL_SCHEMATHESIS names no program (hack/schemathesis.sh does)");
        return;
    };
    row(async |w| {
        let folder = tempfile::tempdir().unwrap();
        let hooks = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/schemathesis/hooks.py");
        let seconds = std::env::var("VIRTSHELL_FUZZ_SECONDS").unwrap_or_else(|_| "60".to_owned());
        let base = format!("http://{}/virtshell/api/v1", w.address());
        let output = Command::new(&program)
            .current_dir(folder.path())
            .arg("run")
            .arg(format!("{base}/openapi.json"))
            .args(["--url", &base, "--max-time", &seconds, "--continue-on-failure"])
            .args(["--phases", "examples,coverage,fuzzing,stateful", "--warnings", "off"])
            .args([
                "--checks",
                "no_unexpected_refusal,status_code_conformance,response_schema_conformance,content_type_conformance",
            ])
            .env("SCHEMATHESIS_HOOKS", &hooks)
            .env("VIRTSHELL_ACCESS_KEY_ID", key_id(TESTER))
            .env("VIRTSHELL_SECRET_ACCESS_KEY", secret(TESTER))
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{said}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        // It got past the signature: whoever signs with these keys still may.
        w.get("B1/users/tester").is(200, &json!({"type": "system"}));
        println!("{said}");
    });
}
