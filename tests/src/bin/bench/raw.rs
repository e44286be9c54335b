//! The domain that VirtShell made, made by hand.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use virt::connect::Connect;
use virt::domain::Domain;

/// The driver that is measured.
pub const URI: &str = "qemu:///system";

/// What a domain by hand is made after.
pub struct Model {
    xml: String,
    image: PathBuf,
}

impl Model {
    /// Reads a domain of VirtShell, while its disks are there.
    pub fn of(domain: &Domain) -> Result<Self> {
        let xml = domain.xml_desc(virt::sys::VIR_DOMAIN_XML_INACTIVE)?;
        Ok(Self {
            image: backing_image(&xml)?,
            xml,
        })
    }
}

/// A domain made by hand, and what that took. It goes when this is dropped.
pub struct ByHand {
    /// It runs.
    pub domain: Domain,
    /// When the making began.
    pub began: Instant,
    /// Overlay and seed, definition and start.
    pub all: Duration,
    /// The start alone.
    pub start: Duration,
    _folder: tempfile::TempDir,
}

impl Drop for ByHand {
    fn drop(&mut self) {
        // A guest that has ended by itself cannot be destroyed.
        let _ = self.domain.destroy();
        if let Err(error) = self.domain.undefine() {
            eprintln!("a domain of the benchmark is left behind: {error}");
        }
    }
}

/// The same domain as its model, `number` among those by hand: overlay and seed, then define and start. The clock runs
/// for these alone.
pub fn create(libvirt: &Connect, number: usize, model: &Model) -> Result<ByHand> {
    let folder = tempfile::Builder::new()
        .prefix("virtshell-bench-")
        .tempdir_in("/var/tmp")?;
    // QEMU runs as its own user and must get in.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
    let (root, seed) = (folder.path().join("root.qcow2"), folder.path().join("seed.iso"));
    let xml = same_xml(&model.xml, number, &root, &seed);
    std::fs::write(
        folder.path().join("meta-data"),
        "instance-id: raw\nlocal-hostname: raw\n",
    )?;
    std::fs::write(folder.path().join("user-data"), "#cloud-config\n{}\n")?;

    let began = Instant::now();
    run(Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .arg(&model.image)
        .arg(&root)
        .arg("1G"))?;
    run(Command::new("genisoimage")
        .args(["-quiet", "-V", "cidata", "-J", "-r", "-o"])
        .arg(&seed)
        .args([folder.path().join("meta-data"), folder.path().join("user-data")]))?;
    let domain = libvirt
        .define_domain_xml(&xml)
        .with_context(|| format!("raw domain refused: {xml}"))?;
    let mut made = ByHand {
        domain,
        began,
        all: Duration::ZERO,
        start: Duration::ZERO,
        _folder: folder,
    };
    let starting = Instant::now();
    made.domain.create()?;
    (made.start, made.all) = (starting.elapsed(), began.elapsed());
    Ok(made)
}

/// The same domains as these models, made by `threads` threads with a connection each: how long until all run.
pub fn create_all(models: &[Model], threads: usize) -> Result<Duration> {
    let next = AtomicUsize::new(0);
    let made: Mutex<Vec<ByHand>> = Mutex::default();
    let work = || -> Result<()> {
        let libvirt = Connect::open(Some(URI))?;
        while let number = next.fetch_add(1, Ordering::Relaxed)
            && let Some(model) = models.get(number)
        {
            let one = create(&libvirt, number, model)?;
            made.lock().unwrap_or_else(PoisonError::into_inner).push(one);
        }
        Ok(())
    };
    let began = Instant::now();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter()
            .try_for_each(|one| one.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })?;
    Ok(began.elapsed())
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
fn backing_image(xml: &str) -> Result<PathBuf> {
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
fn same_xml(xml: &str, number: usize, root: &Path, seed: &Path) -> String {
    let mut out = xml.to_owned();
    for (file, own) in disk_files(xml).iter().zip([root, seed]) {
        out = out.replace(file, &own.display().to_string());
    }
    for (open, close, value) in [
        ("<name>", "</name>", format!("virtshell-bench-raw-{number}")),
        (
            "<uuid>",
            "</uuid>",
            format!("00000000-0000-4000-8000-be9c{number:08x}"),
        ),
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
            same_xml(xml, 26, Path::new("/r"), Path::new("/s")),
            "<domain><name>virtshell-bench-raw-26</name><uuid>00000000-0000-4000-8000-be9c0000001a</uuid>\
             <disk><source file='/r'/></disk><disk><source file='/s'/></disk></domain>"
        );
    }
}
