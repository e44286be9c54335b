//! The domain that VirtShell made, made by hand.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use virt::connect::Connect;
use virt::domain::Domain;

/// What libvirt alone takes.
pub struct Raw {
    /// All of it.
    pub all: Duration,
    /// The start.
    pub start: Duration,
}

/// The same domain by hand: overlay and seed, then define and start, and what follows. The clock runs for these alone.
pub fn create(
    libvirt: &Connect,
    xml: &str,
    image: &Path,
    then: impl Fn(&Domain) -> Result<()>,
) -> Result<Raw> {
    let folder = tempfile::Builder::new()
        .prefix("virtshell-bench-")
        .tempdir_in("/var/tmp")?;
    // QEMU runs as its own user and must get in.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    let (root, seed) = (folder.path().join("root.qcow2"), folder.path().join("seed.iso"));
    let xml = same_xml(xml, &root, &seed);
    std::fs::write(
        folder.path().join("meta-data"),
        "instance-id: raw\nlocal-hostname: raw\n",
    )?;
    std::fs::write(folder.path().join("user-data"), "#cloud-config\n{}\n")?;

    let started = Instant::now();
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(image)
        .arg(&root)
        .arg("1G"))?;
    run(Command::new("genisoimage")
        .args(["-quiet", "-V", "cidata", "-J", "-r", "-o"])
        .arg(&seed)
        .args([folder.path().join("meta-data"), folder.path().join("user-data")]))?;
    let domain = libvirt
        .define_domain_xml(&xml)
        .with_context(|| format!("raw domain refused: {xml}"))?;
    let starting = Instant::now();
    let outcome = domain.create();
    let start = starting.elapsed();
    let outcome = outcome.map_err(Into::into).and_then(|()| then(&domain));
    let all = started.elapsed();

    let _ = domain.destroy();
    domain.undefine()?;
    outcome?;
    Ok(Raw { all, start })
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The image below the root overlay of a domain that VirtShell made.
pub fn backing_image(xml: &str) -> Result<PathBuf> {
    let overlay = disk_files(xml)
        .into_iter()
        .next()
        .context("the domain has no disk")?;
    // -U: the guest that runs on it holds its lock.
    let output = Command::new("qemu-img")
        .args(["info", "-U", "--output=json", &overlay])
        .output()?;
    let info: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let image = info["full-backing-filename"]
        .as_str()
        .with_context(|| format!("{overlay} has no backing image"))?;
    Ok(image.into())
}

/// Values of `<source file='...'/>`, in document order.
fn disk_files(xml: &str) -> Vec<String> {
    xml.split("<source file='")
        .skip(1)
        .filter_map(|rest| rest.split('\'').next().map(str::to_owned))
        .collect()
}

/// The same domain under another name and identity, on other files, without our mark.
fn same_xml(xml: &str, root: &Path, seed: &Path) -> String {
    let mut out = xml.to_owned();
    for (file, own) in disk_files(xml).iter().zip([root, seed]) {
        out = out.replace(file, &own.display().to_string());
    }
    for (open, close, value) in [
        ("<name>", "</name>", "virtshell-bench-raw"),
        ("<uuid>", "</uuid>", "00000000-0000-4000-8000-00000000be9c"),
    ] {
        if let Some((before, rest)) = out.split_once(open)
            && let Some((_, after)) = rest.split_once(close)
        {
            out = format!("{before}{open}{value}{close}{after}");
        }
    }
    if let Some((before, rest)) = out.split_once("<metadata>")
        && let Some((_, after)) = rest.split_once("</metadata>")
    {
        out = format!("{before}{after}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_raw_domain_is_the_same_but_for_identity_files_and_mark() {
        let xml = "<domain><name>a</name><uuid>u</uuid><metadata><m/></metadata><disk><source file='/d/1'/></disk>\
                   <disk><source file='/d/2'/></disk></domain>";
        assert_eq!(
            same_xml(xml, Path::new("/r"), Path::new("/s")),
            "<domain><name>virtshell-bench-raw</name><uuid>00000000-0000-4000-8000-00000000be9c</uuid>\
             <disk><source file='/r'/></disk><disk><source file='/s'/></disk></domain>"
        );
    }
}
