//! Copies of a guest that never stops writing. Needs libvirtd.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use virtshell_crds::image::ImageType;
use virtshell_crds::instance::{Driver, ResolvedImage};

use super::super::super::files::Files;
use super::super::super::hypervisor::LibvirtErrorKind;
use super::super::super::storage::{DiskCopy, Options, Storage, Web};
use super::super::super::xml::parse;
use super::*;

/// A boot sector that writes itself to the first and then to the second disk, one sector after the other for ever. In
/// each is its own number, at [`NUMBER_AT`].
fn writer() -> Vec<u8> {
    let mut code = vec![
        0x31, 0xC0, // xor ax,ax
        0x8E, 0xD8, // mov ds,ax
        0x8E, 0xC0, // mov es,ax
        0x8E, 0xD0, // mov ss,ax
        0xBC, 0x00, 0x7C, // mov sp,0x7c00
        0xB2, 0x80, // again: mov dl,0x80, the first disk
        0xE8, 0x0C, 0x00, // call write
        0xB2, 0x81, // mov dl,0x81, the second
        0xE8, 0x07, 0x00, // call write
        0x66, 0xFF, 0x06, 0x30, 0x7C, // inc dword [packet's sector]
        0xEB, 0xEF, // jmp again
        0xBE, 0x28, 0x7C, // write: mov si,packet
        0xB8, 0x00, 0x43, // mov ax,0x4300
        0xCD, 0x13, // int 0x13
        0xC3, // ret
    ];
    assert_eq!(code.len(), 0x25, "the addresses above rest on it");
    code.resize(0x28, 0);
    // One sector from 0x7c00, to sector 1 at first.
    code.extend([0x10, 0, 1, 0, 0x00, 0x7C, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    code.resize(510, 0);
    code.extend([0x55, 0xAA]);
    code
}

const NUMBER_AT: usize = 0x30;

/// How many sectors in a row a disk has, from the first on; nothing else may follow.
fn written(disk: &[u8]) -> u32 {
    let number = |at: usize| u32::from_le_bytes(disk[at + NUMBER_AT..][..4].try_into().unwrap());
    let sectors = disk.len() / 512;
    let count = (1..sectors).take_while(|n| number(n * 512) == *n as u32).count();
    let rest = &disk[(count + 1) * 512..];
    assert!(rest.iter().all(|byte| *byte == 0), "sectors after the sequence");
    count as u32
}

/// A running guest with two disks, gone when it is dropped.
struct Guest {
    link: Link,
    storage: Storage,
    uid: String,
    dir: TempDir,
}

const CLONE: &str = "00000000-0000-4000-8000-00000000c107";

fn shell(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program)
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

impl Guest {
    async fn start() -> Self {
        libvirt_ffi::start_event_loop().unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let link =
            Link::open("qemu:///system").expect("libvirtd answers; hack/libvirt.sh start brings it up");
        let dir = tempfile::tempdir().unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let options = Options {
            allow_file_images: true,
            min_free_mib: 1,
            ..Options::default()
        };
        let data = dir.path().join("data");
        let storage = Storage::open(
            &data,
            options,
            Web::new(vec![]).unwrap(),
            Arc::new(Files::nowhere()),
        )
        .unwrap();
        let image = dir.path().join("writer.raw");
        let mut content = writer();
        content.resize(1 << 20, 0);
        std::fs::write(&image, content).unwrap();
        let image = ResolvedImage {
            name: "writer".into(),
            type_: ImageType::Disk,
            url: format!("file://{}", image.display()),
            sha256: String::new(),
            boot: None,
            timezone: String::new(),
            ssh_key: String::new(),
            preseed_url: String::new(),
        };
        let image = storage.ensure_image(&image).await.unwrap();
        let mut bytes = [0u8; 6];
        getrandom::fill(&mut bytes).unwrap();
        let uid = format!("7e570000-0000-4000-8000-{}", hex::encode(bytes));
        let root = storage
            .create_root_disk(&uid, Some(&image), Driver::Qemu, 64)
            .await
            .unwrap();
        let data = storage.create_disk(&uid, "data", None, Some(64)).await.unwrap();
        let metadata = Metadata {
            uid: uid.clone(),
            ..Metadata::default()
        };
        // The firmware leaves out disks that it is not told to boot from.
        let disk = |path: &Path, target: &str, order: u8| {
            format!(
                "<disk type='file'><driver name='qemu' type='qcow2' cache='unsafe'/><source file='{}'/>
                   <target dev='{target}' bus='virtio'/><boot order='{order}'/></disk>",
                path.display()
            )
        };
        let name = format!("virtshell-test-{}", hex::encode(bytes));
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><uuid>{uid}</uuid><memory unit='MiB'>32</memory>
               <metadata>{}</metadata><os><type arch='x86_64'>hvm</type></os><features><acpi/></features>
               <devices>{}{}</devices></domain>",
            metadata.to_element().render(),
            disk(&root.path, "vda", 1),
            disk(&data.path, "vdb", 2)
        );
        link.define(&name, &xml).unwrap();
        let guest = Self {
            link,
            storage,
            uid,
            dir,
        };
        guest.link.start(&guest.uid, false).unwrap();
        wait(|| guest.writes() > 0, "the guest writes");
        guest
    }

    /// How many sectors went to the second disk.
    fn writes(&self) -> i64 {
        let domain = self.link.domain(&self.uid).unwrap();
        domain.block_stats("vdb").unwrap().wr_req
    }

    fn power(&self) -> Power {
        power(&self.link.domain(&self.uid).unwrap()).unwrap()
    }

    async fn begin(&self) -> (Vec<DiskCopy>, Vec<String>) {
        let copies = self
            .storage
            .copies(&self.uid, CLONE, ["data", "absent"])
            .await
            .unwrap();
        let names: Vec<String> = copies.iter().map(|copy| copy.name.clone()).collect();
        assert_eq!(names, ["data", "root"], "the root is last");
        let Copyable::Open(targets) = self.link.copyable(&self.uid, &names).unwrap() else {
            panic!("it runs");
        };
        for copy in &copies {
            self.storage.prepare_copy(copy).await.unwrap();
            self.link
                .begin_copy(&self.uid, &targets[&copy.name], &copy.to)
                .unwrap();
        }
        (copies, targets.into_values().collect())
    }

    fn until_ready(&self, targets: &[String]) {
        wait(
            || self.link.copy_progress(&self.uid, targets).unwrap().ready,
            "the copies are ready",
        );
    }

    /// What a guest would read from a disk.
    fn read(&self, disk: &Path) -> Vec<u8> {
        let raw = self.dir.path().join("read.raw");
        let (disk, to) = (disk.to_str().unwrap(), raw.to_str().unwrap());
        shell("qemu-img", &["convert", "-q", "-U", "-O", "raw", disk, to]);
        std::fs::read(raw).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.link.destroy(&self.uid));
        drop(self.link.undefine(&self.uid));
    }
}

fn wait(mut until: impl FnMut() -> bool, what: &str) {
    let began = Instant::now();
    while !until() {
        assert!(began.elapsed() < Duration::from_mins(1), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_disks_are_copied_at_one_instant_and_the_guest_goes_on() {
    let guest = Guest::start().await;
    let (copies, targets) = guest.begin().await;
    guest.until_ready(&targets);
    let before = guest.writes();
    wait(|| guest.writes() > before + 100, "the guest writes on");
    guest.link.end_copies(&guest.uid, &targets).unwrap();
    assert_eq!(guest.power(), Power::Running);
    let base = shell("qemu-img", &["info", copies[1].to.to_str().unwrap()]);
    assert!(
        base.contains("backing file: "),
        "rests on the cached image: {base}"
    );
    guest.storage.publish_copies(copies).await.unwrap();
    let clone = guest.storage.observe(CLONE).await.unwrap();
    let (root, data) = (clone.root.unwrap(), &clone.disks["data"]);
    assert_eq!((root.virtual_mib, data.virtual_mib), (64, 64));
    let (first, second) = (written(&guest.read(&root.path)), written(&guest.read(&data.path)));
    // The first disk is written to before the second.
    assert!(
        first > 100 && (first == second || first == second + 1),
        "not one instant: {first} and {second}"
    );
    let after = guest.writes();
    wait(|| guest.writes() > after, "the source writes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_source_stays_suspended() {
    let guest = Guest::start().await;
    guest.link.suspend(&guest.uid).unwrap();
    let (_, targets) = guest.begin().await;
    guest.until_ready(&targets);
    guest.link.end_copies(&guest.uid, &targets).unwrap();
    assert_eq!(guest.power(), Power::Paused(PausedBy::Request));
    assert!(!guest.link.suspend_running(&guest.uid).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_end_leaves_the_guest_running() {
    let guest = Guest::start().await;
    let (_, targets) = guest.begin().await;
    guest.until_ready(&targets);
    // Another ends one of the copies: what is in it is not of the same instant.
    guest.link.abandon_copies(&guest.uid, &targets[..1]).unwrap();
    let refused = guest.link.end_copies(&guest.uid, &targets).unwrap_err();
    assert!(refused.to_string().contains("copy"), "{refused}");
    assert_eq!(guest.power(), Power::Running);
    assert!(guest.link.copy_progress(&guest.uid, &targets).is_err());
    guest.link.abandon_copies(&guest.uid, &targets).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_an_agent_left_behind_are_ended() {
    let guest = Guest::start().await;
    let (_, targets) = guest.begin().await;
    let others = |uuid: &str| uuid != guest.uid;
    assert_eq!(
        guest.link.end_stale_copies(|_| true).unwrap(),
        0,
        "somebody works on it"
    );
    assert_eq!(guest.link.end_stale_copies(others).unwrap(), 2);
    assert!(guest.link.copy_progress(&guest.uid, &targets).is_err());
    assert_eq!(guest.link.end_stale_copies(others).unwrap(), 0);
    assert_eq!(guest.power(), Power::Running);
    // And the next copy of the same disks can begin.
    let (_, targets) = guest.begin().await;
    guest.until_ready(&targets);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_run_is_still() {
    let guest = Guest::start().await;
    guest.link.destroy(&guest.uid).unwrap();
    assert_eq!(guest.link.copyable(&guest.uid, &[]).unwrap(), Copyable::Still);
    let nobody = guest.link.copyable(CLONE, &[]).unwrap();
    assert_eq!(nobody, Copyable::Still, "no domain, no writer");
    let missing = guest.link.begin_copy(CLONE, "vda", Path::new("/x")).unwrap_err();
    assert!(
        matches!(&missing, HypervisorError::Refused { source, .. } if source.kind == LibvirtErrorKind::NoDomain)
    );
}

#[test]
fn only_copies_into_half_made_files_of_ours_are_stale() {
    let live = parse(
        "<domain><devices>
           <disk><mirror type='file' job='copy' ready='yes'><source file='/d/vm/u/.tmp-copy-root.qcow2'/></mirror>
             <target dev='vda'/></disk>
           <disk><mirror type='file' job='copy'><source file='/backup/data.qcow2'/></mirror><target dev='vdb'/></disk>
           <disk><source file='/d/vm/u/.tmp-copy-x'/><target dev='vdc'/></disk>
         </devices></domain>",
    )
    .unwrap();
    assert_eq!(stale(&live), ["vda"]);
    assert!(mirror(&live, "vda").is_some_and(|m| m.attribute("ready") == Some("yes")));
    assert!(mirror(&live, "vdc").is_none());
}
