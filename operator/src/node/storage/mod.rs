//! Images, disks and seeds on this host.
//!
//! [`Storage`] fetches images into a cache by content, makes the disks and the seed of an Instance from them, says which
//! of these files are finished, and removes them. It guarantees that a file under its final name is complete (made under
//! a temporary name, synced, renamed), that every step may be repeated, and that nothing it did not make is deleted. It
//! does not know libvirt: which disk a domain has open is for its caller to ask. See [`layout`](self) for where files
//! are, `cache` for images, `disks` and `root_fs` for disks, `seed` for what a guest is told; [`kvm_probe`] finds out
//! whether the machine can run guests on its hardware.

mod answers;
mod archive;
mod cache;
mod copy;
mod disks;
mod error;
mod evict;
mod fetch;
mod flight;
mod format;
mod iso9660;
pub mod kvm_probe;
mod layout;
mod lease;
mod part;
mod pattern;
mod room;
mod root_fs;
mod seed;
mod sink;
mod source;
#[cfg(test)]
mod tests;
mod tool;
mod web;

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempPath;
use virtshell_crds::file_ref::FileUrl;
use virtshell_crds::instance::{Driver, ResolvedImage};

pub use answers::Answers;
pub use cache::{BootFiles, CachedImage};
pub use copy::DiskCopy;
pub use disks::{DiskFormat, DiskInfo, ObservedFiles};
pub use error::StorageError;
pub use evict::CacheLimits;
pub use fetch::Retry;
pub use flight::Progress;
pub use format::ImageFormat;
pub(in crate::node) use layout::COPY_PREFIX;
pub use layout::{InstanceFiles, disk_file_name};
pub use lease::Lease;
pub use room::Room;
pub use seed::{Seed, SeedFiles};
pub use web::Web;

use cache::{Cache, CacheDirs};
use fetch::{Fetcher, blocking};
use layout::{TEMP_PREFIX, is_disk_name, is_uid};
use pattern::Patterns;
use room::RoomGuard;
use root_fs::RootSeed;

use super::files::Files;

const MIB: u64 = 1 << 20;

/// What the administrator allows.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Images by `file://` from this host's own disk.
    pub allow_file_images: bool,
    /// MiB that fetching leaves free on the file system, for guests to write into.
    pub min_free_mib: u64,
    /// Largest content that is fetched, in MiB.
    pub max_image_mib: u64,
    /// Largest virtual size of an image's disk, and of an unpacked archive, in MiB.
    pub max_virtual_mib: u64,
    /// What the cache keeps that nothing uses.
    pub cache: CacheLimits,
    /// How persistent downloads are.
    pub retry: Retry,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            allow_file_images: false,
            min_free_mib: 512,
            max_image_mib: 256 << 10,
            max_virtual_mib: 4 << 20,
            cache: CacheLimits::default(),
            retry: Retry {
                failures: 5,
                delay: Duration::from_millis(500),
            },
        }
    }
}

/// The storage of this host. Cheap to clone.
#[derive(Clone)]
pub struct Storage {
    inner: Arc<Inner>,
}

struct Inner {
    data_dir: PathBuf,
    room: RoomGuard,
    limits: CacheLimits,
    cache: Arc<Cache>,
    patterns: Patterns,
    /// Held while this agent runs.
    _lock: Flock<File>,
}

impl Storage {
    /// Opens the data directory, made if need be, and removes what an interrupted run left half-made. `web` is the way to
    /// images by URL, `files` that to images that are stored files.
    ///
    /// # Errors
    /// [`StorageError::InUse`] when another agent has it open, [`StorageError::Disk`] when it cannot be written.
    pub fn open(
        data_dir: &Path,
        options: Options,
        web: Web,
        files: Arc<Files>,
    ) -> Result<Self, StorageError> {
        make_dir(data_dir)?;
        let data_dir = data_dir
            .canonicalize()
            .map_err(StorageError::disk("finding", data_dir))?;
        let lock = lock(&data_dir)?;
        let dirs = CacheDirs {
            images: data_dir.join("images"),
            urls: data_dir.join("urls"),
            roots: data_dir.join("roots"),
            parts: data_dir.join("parts"),
        };
        let instances = data_dir.join("vm");
        for dir in [&dirs.images, &dirs.urls, &dirs.roots, &dirs.parts, &instances] {
            make_dir(dir)?;
            remove_leftovers(dir)?;
        }
        part::tidy(&dirs.parts, SystemTime::now(), true)?;
        for dir in subdirectories(&instances)? {
            remove_leftovers(&dir)?;
        }
        let room = RoomGuard {
            path: data_dir.clone(),
            keep_mib: options.min_free_mib,
        };
        let fetcher = Fetcher {
            web,
            files,
            dir: dirs.parts.clone(),
            room: room.clone(),
            max_bytes: options.max_image_mib * MIB,
            retry: options.retry,
        };
        let max_virtual = options.max_virtual_mib * MIB;
        let cache = Cache::open(
            dirs,
            fetcher,
            room.clone(),
            options.allow_file_images,
            max_virtual,
        )?;
        Ok(Self {
            inner: Arc::new(Inner {
                data_dir,
                room,
                limits: options.cache,
                cache: Arc::new(cache),
                patterns: Patterns::default(),
                _lock: lock,
            }),
        })
    }

    /// The paths of an Instance's files, whether they exist or not.
    #[must_use]
    pub fn files(&self, uid: &str) -> InstanceFiles {
        InstanceFiles::new(&self.inner.data_dir, uid)
    }

    /// Which finished files an Instance has.
    ///
    /// # Errors
    /// When it cannot be found out; that is not the same as "none".
    pub async fn observe(&self, uid: &str) -> Result<ObservedFiles, StorageError> {
        let files = self.checked_files(uid)?;
        blocking(move || disks::observe(&files)).await
    }

    /// The image from the cache, fetched first if it is not there; for an archive, with the root file system made of it.
    ///
    /// One download serves all who wait, and goes on when a caller gives up. An image without a URL (direct kernel
    /// boot without a disk) has nothing to ensure here: see [`Self::ensure_boot`].
    ///
    /// # Errors
    /// [`StorageError::is_transient`] tells whether to try again.
    pub async fn ensure_image(&self, image: &ResolvedImage) -> Result<CachedImage, StorageError> {
        self.inner.cache.ensure(image).await
    }

    /// Kernel and initial RAM disk of an image with direct kernel boot, else `None`.
    ///
    /// # Errors
    /// As [`Self::ensure_image`].
    pub async fn ensure_boot(&self, image: &ResolvedImage) -> Result<Option<BootFiles>, StorageError> {
        self.inner.cache.ensure_boot(image).await
    }

    /// How far the fetch of an image is; `None` when none runs.
    #[must_use]
    pub fn image_progress(&self, image: &ResolvedImage) -> Option<Progress> {
        self.inner.cache.progress(image)
    }

    /// The images in the cache.
    #[must_use]
    pub fn cached_images(&self) -> Vec<CachedImage> {
        self.inner.cache.list()
    }

    /// Removes images that nothing uses, by the limits; where the file system is nearly full, more of them. Returns those
    /// that went.
    ///
    /// `files` are all that domains of this host name, whoever's they are, read from libvirt after `asked`. The files of
    /// Instances are looked at in any case, and so is what each of them rests on.
    ///
    /// # Errors
    /// When it cannot be found out what refers to an image: then none goes.
    pub async fn evict_images(
        &self,
        files: Vec<PathBuf>,
        asked: Instant,
    ) -> Result<Vec<CachedImage>, StorageError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let mut files = files;
            for dir in subdirectories(&inner.data_dir.join("vm"))? {
                for entry in std::fs::read_dir(&dir).map_err(StorageError::disk("reading", &dir))? {
                    files.push(entry.map_err(StorageError::disk("reading", &dir))?.path());
                }
            }
            let referenced = evict::referenced(files)?;
            part::tidy(&inner.data_dir.join("parts"), SystemTime::now(), false)?;
            let short = inner.room.now()?.shortage_mib() * MIB;
            inner.cache.evict(&referenced, asked, inner.limits, short)
        })
        .await
    }

    /// The content of a stored file in a temporary file of this host, which goes with the last who holds it.
    ///
    /// # Errors
    /// As [`Self::ensure_image`].
    pub async fn fetch_file(&self, at: &FileUrl) -> Result<TempPath, StorageError> {
        self.inner.cache.fetch_aside(at).await
    }

    /// Room on the file system.
    ///
    /// # Errors
    /// When the file system does not say.
    pub async fn room(&self) -> Result<Room, StorageError> {
        let room = self.inner.room.clone();
        blocking(move || room.now()).await
    }

    /// Makes the root disk, or returns the one that is there.
    ///
    /// Virtual machines get qcow2: an overlay on a disk image, empty for an ISO or without an image. Containers get an ext4
    /// image. The size is at least `disk_mib` and at least the image's.
    ///
    /// # Errors
    /// [`StorageError::ImageFormatRefused`] when the image does not suit the driver.
    pub async fn create_root_disk(
        &self,
        uid: &str,
        image: Option<&CachedImage>,
        driver: Driver,
        disk_mib: i64,
    ) -> Result<DiskInfo, StorageError> {
        match driver {
            Driver::Lxc => self.create_root_fs(uid, image, disk_mib, None).await,
            Driver::Kvm | Driver::Qemu => {
                let files = self.prepared(uid)?;
                if let Some(info) = disks::existing("root", &files.root_qcow2).await? {
                    return Ok(info);
                }
                let base = image.filter(|image| !image.is_medium());
                disks::make_qcow2("root", &files.root_qcow2, base, disk_mib, &self.inner.patterns).await
            }
        }
    }

    /// Makes the root file system of a container with its seed in it, or returns the one that is there.
    ///
    /// The seed is written once: a guest reads it at its first boot.
    ///
    /// # Errors
    /// As [`Self::create_root_disk`].
    pub async fn create_root_with_seed(
        &self,
        uid: &str,
        image: Option<&CachedImage>,
        disk_mib: i64,
        seed: &Seed,
    ) -> Result<DiskInfo, StorageError> {
        let seed = RootSeed {
            hostname: seed.hostname.clone(),
            files: seed.render(uid),
        };
        self.create_root_fs(uid, image, disk_mib, Some(&seed)).await
    }

    async fn create_root_fs(
        &self,
        uid: &str,
        image: Option<&CachedImage>,
        disk_mib: i64,
        seed: Option<&RootSeed>,
    ) -> Result<DiskInfo, StorageError> {
        let files = self.prepared(uid)?;
        let target = &files.root_image;
        if let Some(info) = disks::existing("root", target).await? {
            return Ok(info);
        }
        let size_mib = u64::try_from(disk_mib).unwrap_or(0);
        match image {
            None => root_fs::make_empty(target, size_mib).await?,
            Some(image) => {
                let template =
                    image
                        .root_template
                        .as_ref()
                        .ok_or_else(|| StorageError::ImageFormatRefused {
                            image: image.name.clone(),
                            why: format!(
                                "it is {}; driver lxc needs a root file system archive (container_resource)",
                                image.format.describe()
                            ),
                        })?;
                root_fs::make_root(template, target, size_mib, seed, &self.inner.room).await?;
            }
        }
        disks::existing("root", target).await?.ok_or_else(|| {
            StorageError::disk("reading", target)(std::io::Error::from(std::io::ErrorKind::NotFound))
        })
    }

    /// Makes an additional disk, empty or an overlay on an image, or returns the one that is there.
    ///
    /// # Errors
    /// [`StorageError::DiskRefused`] without a size and an image, or when the name is none.
    pub async fn create_disk(
        &self,
        uid: &str,
        name: &str,
        image: Option<&CachedImage>,
        size_mib: Option<i64>,
    ) -> Result<DiskInfo, StorageError> {
        check_disk_name(name)?;
        let path = self.prepared(uid)?.disk(name);
        match disks::existing(name, &path).await? {
            Some(info) => Ok(info),
            None => disks::make_qcow2(name, &path, image, size_mib.unwrap_or(0), &self.inner.patterns).await,
        }
    }

    // --- Copies of another Instance's disks -------------------------------------------------------------------------

    /// The root, and those of the named disks that the source has, to be copied for the Instance `uid`.
    ///
    /// # Errors
    /// [`StorageError::DiskRefused`] when the source has no root disk here.
    pub async fn copies(
        &self,
        source: &str,
        uid: &str,
        names: impl IntoIterator<Item = &str>,
    ) -> Result<Vec<DiskCopy>, StorageError> {
        let found = self.observe(source).await?;
        let files = self.prepared(uid)?;
        let root = found.root.as_ref().ok_or_else(|| StorageError::DiskRefused {
            name: "root".to_owned(),
            why: "the instance to copy has none on this host yet".to_owned(),
        })?;
        let mut copies: Vec<DiskCopy> = names
            .into_iter()
            .filter_map(|name| Some(DiskCopy::new(name, found.disks.get(name)?, &files)))
            .collect();
        // Last: where the root is, all are.
        copies.push(DiskCopy::new("root", root, &files));
        for copy in &copies {
            copy.discard();
        }
        Ok(copies)
    }

    /// Makes an empty file like the source's, resting on the same image, for libvirt to copy into.
    ///
    /// # Errors
    /// When it cannot be made.
    pub async fn prepare_copy(&self, copy: &DiskCopy) -> Result<(), StorageError> {
        copy.prepare().await
    }

    /// Copies a disk that nobody writes to, by sharing its blocks where the file system can.
    ///
    /// # Errors
    /// When it cannot be copied, or was written to meanwhile.
    pub async fn take_copy(&self, copy: &DiskCopy) -> Result<(), StorageError> {
        copy.take(&self.inner.room).await
    }

    /// Writes what the root of a container has in memory. `controller` is the process that libvirt names: the parent of the
    /// container's init.
    ///
    /// # Errors
    /// When the container is gone, or its root cannot be written.
    pub async fn sync_container(&self, controller: u32) -> Result<(), StorageError> {
        blocking(move || copy::sync_children(controller)).await
    }

    /// Writes the seed of the Instance `uid` into the copies of a container's root.
    ///
    /// # Errors
    /// As [`Self::write_root_seed`].
    pub async fn seed_copies(&self, uid: &str, copies: &[DiskCopy], seed: &Seed) -> Result<(), StorageError> {
        let files = self.checked_files(uid)?;
        let seed = RootSeed {
            hostname: seed.hostname.clone(),
            files: seed.render(uid),
        };
        for copy in copies {
            root_fs::replace_seed(&copy.to, &seed, &files.dir).await?;
        }
        Ok(())
    }

    /// Gives complete copies their names, the root last.
    ///
    /// # Errors
    /// When one cannot be named; those before it have been.
    pub async fn publish_copies(&self, copies: Vec<DiskCopy>) -> Result<(), StorageError> {
        for copy in copies {
            copy.publish().await?;
        }
        Ok(())
    }

    /// Removes copies that will not be complete.
    pub fn discard_copies(&self, copies: &[DiskCopy]) {
        copies.iter().for_each(DiskCopy::discard);
    }

    /// Writes the seed disk of a virtual machine; one that says the same already is left alone.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn create_seed(&self, uid: &str, seed: &Seed) -> Result<(), StorageError> {
        let files = self.prepared(uid)?;
        write_medium(files.seed, seed.render(uid).iso()).await
    }

    /// Writes the medium with the answer file of an image to install from; nothing when the image has none.
    ///
    /// # Errors
    /// When it cannot be fetched or written.
    pub async fn create_answers(
        &self,
        uid: &str,
        image: &ResolvedImage,
        answers: &Answers,
    ) -> Result<(), StorageError> {
        let Some(text) = self.inner.cache.answers(image).await? else {
            return Ok(());
        };
        let files = self.prepared(uid)?;
        write_medium(files.answers, answers::medium(&answers.fill(&text))).await
    }

    /// Writes the seed of a container that does not run anew.
    ///
    /// # Errors
    /// When its root cannot be written.
    pub async fn write_root_seed(&self, uid: &str, seed: &Seed) -> Result<(), StorageError> {
        let files = self.checked_files(uid)?;
        let seed = RootSeed {
            hostname: seed.hostname.clone(),
            files: seed.render(uid),
        };
        root_fs::replace_seed(&files.root_image, &seed, &files.dir).await
    }

    /// Enlarges a disk ("root", or an additional one) of an Instance that does not run; a size that it has is no work.
    ///
    /// # Errors
    /// [`StorageError::DiskRefused`] for a smaller size, or a disk that is not there.
    pub async fn grow_disk(&self, uid: &str, name: &str, size_mib: i64) -> Result<DiskInfo, StorageError> {
        let refused = |why: String| StorageError::DiskRefused {
            name: name.to_owned(),
            why,
        };
        let observed = self.observe(uid).await?;
        let disk = if name == "root" {
            observed.root
        } else {
            observed.disks.get(name).cloned()
        };
        let disk = disk.ok_or_else(|| refused("there is no such disk on this host".to_owned()))?;
        if size_mib < disk.virtual_mib {
            return Err(refused(format!(
                "it has {} MiB and cannot shrink to {size_mib}; a disk may only grow",
                disk.virtual_mib
            )));
        }
        if size_mib > disk.virtual_mib {
            match disk.format {
                DiskFormat::Qcow2 => disks::grow_qcow2(name, &disk.path, size_mib).await?,
                DiskFormat::Raw => root_fs::grow(&disk.path, size_mib as u64).await?,
            }
        }
        Ok(DiskInfo {
            virtual_mib: size_mib,
            ..disk
        })
    }

    /// Removes an Instance's files; with `retain_disks`, all but its disks. Files that are not ours stay, absent is success.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub async fn remove(&self, uid: &str, retain_disks: bool) -> Result<(), StorageError> {
        let files = self.checked_files(uid)?;
        let link = layout::short_link(uid);
        blocking(move || {
            if std::fs::read_link(&link).is_ok_and(|target| target == files.root_image) {
                std::fs::remove_file(&link).map_err(StorageError::disk("removing", &link))?;
            }
            disks::remove(&files, retain_disks)
        })
        .await
    }

    /// The path by which libvirt can open a container's root: the file itself, or a link to it where the data directory's
    /// own path is too long for a loop device.
    ///
    /// The link is made anew when it is missing: `/run` is empty after a reboot.
    ///
    /// # Errors
    /// When the link cannot be made.
    pub async fn container_root(&self, uid: &str) -> Result<PathBuf, StorageError> {
        let file = self.checked_files(uid)?.root_image;
        if file.as_os_str().len() <= layout::LOOP_PATH {
            return Ok(file);
        }
        let link = layout::short_link(uid);
        blocking(move || {
            if std::fs::read_link(&link).is_ok_and(|target| target == file) {
                return Ok(link);
            }
            let failed = StorageError::disk("linking", &link);
            make_dir(Path::new(layout::LINKS))?;
            let made = match std::fs::remove_file(&link) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => std::os::unix::fs::symlink(&file, &link),
            };
            made.map_err(failed)?;
            Ok(link)
        })
        .await
    }

    fn checked_files(&self, uid: &str) -> Result<InstanceFiles, StorageError> {
        if is_uid(uid) {
            return Ok(self.files(uid));
        }
        Err(StorageError::DiskRefused {
            name: "root".to_owned(),
            why: format!("{uid:?} is not the uid of an Instance"),
        })
    }

    /// The paths, with their directory made.
    fn prepared(&self, uid: &str) -> Result<InstanceFiles, StorageError> {
        let files = self.checked_files(uid)?;
        make_dir(&files.dir)?;
        Ok(files)
    }
}

/// Writes a small medium; appears when complete, and one that says the same already is left alone.
async fn write_medium(target: PathBuf, content: Vec<u8>) -> Result<(), StorageError> {
    blocking(move || {
        if std::fs::read(&target).is_ok_and(|present| present == content) {
            return Ok(());
        }
        let temp = root_fs::temp_in(target.parent().unwrap_or(&target))?;
        std::fs::write(&temp, &content)
            .and_then(|()| File::open(&temp)?.sync_all())
            .map_err(StorageError::disk("writing", &target))?;
        temp.persist(&target)
            .map_err(|error| StorageError::disk("naming", &target)(error.error))
    })
    .await
}

fn check_disk_name(name: &str) -> Result<(), StorageError> {
    if is_disk_name(name) && name != "root" && name != "seed" {
        return Ok(());
    }
    Err(StorageError::DiskRefused {
        name: name.to_owned(),
        why: "its name must be 1 to 32 lower-case letters, digits or `-`, and not root or seed".to_owned(),
    })
}

fn lock(data_dir: &Path) -> Result<Flock<File>, StorageError> {
    let path = data_dir.join("lock");
    let file = File::create(&path).map_err(StorageError::disk("opening", &path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        if error == nix::errno::Errno::EWOULDBLOCK {
            return StorageError::InUse {
                path: data_dir.to_owned(),
            };
        }
        StorageError::disk("locking", &path)(error.into())
    })
}

/// Makes a directory that QEMU's user can pass through but not list, whatever the umask. One that is there stays as is.
fn make_dir(dir: &Path) -> Result<(), StorageError> {
    if dir.is_dir() {
        return Ok(());
    }
    let mode = std::fs::Permissions::from_mode(0o711);
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::set_permissions(dir, mode))
        .map_err(StorageError::disk("making", dir))
}

fn remove_leftovers(dir: &Path) -> Result<(), StorageError> {
    for entry in std::fs::read_dir(dir).map_err(StorageError::disk("reading", dir))? {
        let entry = entry.map_err(StorageError::disk("reading", dir))?;
        if !entry.file_name().to_string_lossy().starts_with(TEMP_PREFIX) {
            continue;
        }
        let path = entry.path();
        tracing::info!(path = %path.display(), "removing what an interrupted run left");
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(StorageError::disk("removing", &path))?;
    }
    Ok(())
}

fn subdirectories(dir: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(StorageError::disk("reading", dir))? {
        let entry = entry.map_err(StorageError::disk("reading", dir))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}
