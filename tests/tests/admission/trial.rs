//! Tries every rule, by client-side apply and by server-side apply, as `kubectl` does them.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use virtshell_tests::kubectl::Outcome;
use virtshell_tests::{ControlPlane, Kubectl};

use crate::kinds::{least_of, merge};
use crate::rules::{Row, rows};

/// A way to apply, with the options that make it.
const WAYS: [(&str, &[&str]); 2] = [
    ("client", &[]),
    ("server", &["--server-side", "--field-manager=user"]),
];

#[tokio::test]
async fn every_rule_admits_and_refuses_by_both_ways_to_apply() -> anyhow::Result<()> {
    let control_plane = ControlPlane::shared()?;
    let mut wrong = Vec::new();
    for (way, options) in WAYS {
        let namespace = control_plane.namespace(way).await?;
        let batch = Batch {
            kubectl: control_plane.kubectl(),
            namespace: &namespace,
            options,
        };
        wrong.extend(
            batch
                .run(&rows())?
                .into_iter()
                .map(|line| format!("{way}: {line}")),
        );
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

struct Batch<'a> {
    kubectl: &'a Kubectl,
    namespace: &'a str,
    options: &'a [&'a str],
}

impl Batch<'_> {
    /// Tries every row; returns what went wrong. One `kubectl` for all objects of a step: it goes on after a refusal.
    fn run(&self, rows: &[Row]) -> anyhow::Result<Vec<String>> {
        let (mut before, mut statuses, mut after) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        for (index, row) in rows.iter().enumerate() {
            for (suffix, part) in [("yes", &row.admitted), ("no", &row.refused)] {
                let name = format!("{}-{index:03}-{suffix}", self.namespace);
                if let Some(was) = &row.before {
                    before.insert(name.clone(), object(row.kind, &name, was));
                    if let Some(status) = was.get("status") {
                        statuses.push((name.clone(), status.clone()));
                    }
                }
                after.insert(name.clone(), object(row.kind, &name, part));
            }
        }
        let outcome = self.apply(&before)?;
        anyhow::ensure!(
            outcome.success,
            "objects to change are not admitted:\n{}",
            outcome.stderr
        );
        for (name, status) in statuses {
            let patch = json!({ "status": status }).to_string();
            let arguments = [
                "patch",
                "vsi",
                &name,
                "-n",
                self.namespace,
                "--subresource=status",
                "--type=merge",
                "-p",
            ];
            self.kubectl.ok(arguments.into_iter().chain([patch.as_str()]))?;
        }
        let outcome = self.apply(&after)?;
        Ok(rows
            .iter()
            .enumerate()
            .flat_map(|(index, row)| self.judge(index, row, &outcome))
            .collect())
    }

    fn apply(&self, objects: &BTreeMap<String, Value>) -> anyhow::Result<Outcome> {
        let folder = tempfile::tempdir()?;
        for (name, object) in objects {
            write(folder.path(), name, object)?;
        }
        let folder = folder.path().to_str().context("temporary paths are UTF-8")?;
        let arguments = ["apply", "-n", self.namespace, "-f", folder];
        self.kubectl.run(arguments.iter().chain(self.options), "")
    }

    fn judge(&self, index: usize, row: &Row, outcome: &Outcome) -> Vec<String> {
        let stem = format!("{}-{index:03}", self.namespace);
        let (yes, no) = (format!("{stem}-yes"), format!("{stem}-no"));
        let mut wrong = Vec::new();
        let complaint = complaint(&outcome.stderr, &no);
        if !complaint.contains(row.message) {
            wrong.push(format!(
                "{}: expected {:?}, was told {complaint:?}",
                row.name, row.message
            ));
        }
        if !outcome.stdout.contains(&yes) {
            wrong.push(format!(
                "{}: not admitted: {}",
                row.name,
                self::complaint(&outcome.stderr, &yes)
            ));
        }
        wrong
    }
}

/// A whole object: the part, on the least of its kind. A number as name asks for a name of that length.
fn object(kind: &str, name: &str, part: &Value) -> Value {
    let mut object = json!({"apiVersion": virtshell_crds::API_VERSION, "kind": kind, "metadata": {}, "spec": least_of(kind)});
    merge(&mut object, part);
    object.as_object_mut().unwrap().remove("status");
    let length = object["metadata"]["name"].as_u64().unwrap_or_default();
    let length = usize::try_from(length).unwrap();
    object["metadata"]["name"] = json!(format!("{name:x<length$}"));
    object
}

fn write(folder: &Path, name: &str, object: &Value) -> std::io::Result<()> {
    // JSON is YAML; null members are gone after the merge, as a user would leave them out.
    std::fs::write(folder.join(format!("{name}.yaml")), object.to_string())
}

/// What `kubectl` said of one object: its errors begin with "Error from server" or "The <Kind>", and name it.
fn complaint(stderr: &str, name: &str) -> String {
    let mut blocks: Vec<String> = Vec::new();
    for line in stderr.lines() {
        if line.starts_with("Error from server") || line.starts_with("The ") || blocks.is_empty() {
            blocks.push(String::new());
        }
        if let Some(block) = blocks.last_mut() {
            block.push_str(line);
            block.push('\n');
        }
    }
    blocks.retain(|block| block.contains(name));
    blocks.concat()
}
