//! The images of this host, by the SHA-256 of their content.
//!
//! An image is found by its URL and what that gave before; otherwise it is fetched, once however many wait. A checksum
//! alone opens nothing: checksums are no secret (every reader of a Host sees them), and content may be. Who names the URL
//! that content came by could have it without this cache; whoever else wants it must get it once from where they say that
//! it is, and then it is stored once. What is cached is believed: it was hashed when it came. A `file://` image without a
//! checksum is fetched again when the file has changed. An image that is handed out carries a [`Lease`]; its last use is
//! the time of its description's file, so that a restart does not forget it.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::TempPath;
use virtshell_crds::file_ref::FileUrl;
use virtshell_crds::image::ImageType;
use virtshell_crds::instance::ResolvedImage;

use super::error::StorageError;
use super::fetch::{Fetched, Fetcher, blocking};
use super::flight::{Flights, Meter, Progress};
use super::format::{self, HEAD_BYTES, ImageFormat, ImageInfo, Qcow2Header};
use super::layout::{TEMP_PREFIX, is_sha256};
use super::lease::{Lease, Leases};
use super::room::RoomGuard;
use super::root_fs;
use super::source::{Location, Source, url_key};
use super::tool::{Limits, QEMU_IMG, Run};

/// The largest answer file, in bytes: they are written by hand.
const LARGEST_ANSWERS: u64 = 1 << 20;
const MIB: u64 = 1 << 20;
/// qemu-img on bytes of strangers: the bounds that `OpenStack` uses, 1 GiB and 30 s.
const INFO_LIMITS: Limits = Limits {
    memory: 1 << 30,
    cpu: 30,
};

/// An image in the cache of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedImage {
    /// Name of the Image.
    pub name: String,
    /// What the Image says that it is.
    pub type_: ImageType,
    /// SHA-256 of the content, lower-case hexadecimal.
    pub sha256: String,
    /// The content: the disk, the ISO, the archive.
    pub path: PathBuf,
    /// What the content is.
    pub format: ImageFormat,
    /// Size of the content in bytes.
    pub size_bytes: u64,
    /// Least size of a disk made from it in bytes: its virtual size, for an archive that of the root made of it.
    pub virtual_bytes: u64,
    /// The root file system made of an archive.
    pub root_template: Option<PathBuf>,
    /// Keeps these files in the cache.
    pub lease: Lease,
}

impl CachedImage {
    /// [`Self::virtual_bytes`] in MiB, rounded up.
    #[must_use]
    pub const fn virtual_mib(&self) -> i64 {
        self.virtual_bytes.div_ceil(MIB) as i64
    }

    /// Whether it is attached as a CD-ROM beside an empty root disk.
    #[must_use]
    pub fn is_medium(&self) -> bool {
        self.type_ == ImageType::Iso
    }

    /// The format that an overlay names; archives have none.
    pub(super) fn backing_format(&self) -> Result<&'static str, StorageError> {
        match self.format {
            ImageFormat::Qcow2 => Ok("qcow2"),
            ImageFormat::Raw | ImageFormat::Iso => Ok("raw"),
            ImageFormat::Tar | ImageFormat::Gzip | ImageFormat::Xz | ImageFormat::Zstd => {
                Err(StorageError::ImageFormatRefused {
                    image: self.name.clone(),
                    why: format!(
                        "it is {}; a virtual machine needs a qcow2 or raw disk",
                        self.format.describe()
                    ),
                })
            }
        }
    }
}

/// Kernel and initial RAM disk of a direct kernel boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootFiles {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Keep these files in the cache.
    pub leases: Vec<Lease>,
}

/// What `images/<sha256>.json` holds.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    pub name: String,
    #[serde(rename = "type")]
    pub type_: ImageType,
    pub sha256: String,
    size_bytes: u64,
    virtual_bytes: u64,
    format: ImageFormat,
}

/// What `urls/<key>.json` holds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct UrlEntry {
    url: String,
    /// What it gave last.
    pub sha256: String,
    /// What it gave before, as far as that is still here: an Image may declare an older release.
    #[serde(default)]
    earlier: Vec<String>,
    /// Of a `file://` URL.
    stamp: Option<Stamp>,
}

impl UrlEntry {
    /// All that it gave.
    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.sha256).chain(&self.earlier)
    }

    /// Which content it is of what the URL has given: the declared one, else the last.
    fn gave(&self, source: &Source) -> Option<&String> {
        match &source.sha256 {
            Some(declared) => self.all().find(|sha256| *sha256 == declared),
            None => (!changed(self, &source.location)).then_some(&self.sha256),
        }
    }
}

/// Tells that a file was changed.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified_ns: i128,
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
        })
    }
}

#[derive(Default)]
pub(super) struct Index {
    pub by_sha256: BTreeMap<String, Entry>,
    pub by_url: HashMap<String, UrlEntry>,
}

/// Directories of the cache.
#[derive(Clone, Debug)]
pub(super) struct CacheDirs {
    pub images: PathBuf,
    pub urls: PathBuf,
    pub roots: PathBuf,
    pub parts: PathBuf,
}

/// An entry that stays where it is.
#[derive(Clone)]
struct Leased {
    entry: Entry,
    lease: Lease,
}

pub(super) struct Cache {
    pub dirs: CacheDirs,
    pub leases: Arc<Leases>,
    fetcher: Fetcher,
    room: RoomGuard,
    allow_files: bool,
    max_virtual_bytes: u64,
    index: Mutex<Index>,
    contents: Flights<Leased>,
    templates: Flights<u64>,
}

impl Cache {
    /// Reads the index. Entries that cannot be read, or whose content is gone, are left out: fetched again when needed.
    pub(super) fn open(
        dirs: CacheDirs,
        fetcher: Fetcher,
        room: RoomGuard,
        allow_files: bool,
        max_virtual_bytes: u64,
    ) -> Result<Self, StorageError> {
        let mut index = Index::default();
        for entry in read_all::<Entry>(&dirs.images)? {
            if is_sha256(&entry.sha256) {
                index.by_sha256.insert(entry.sha256.clone(), entry);
            }
        }
        for entry in read_all::<UrlEntry>(&dirs.urls)? {
            index.by_url.insert(entry.url.clone(), entry);
        }
        Ok(Self {
            dirs,
            leases: Arc::default(),
            fetcher,
            room,
            allow_files,
            max_virtual_bytes,
            index: Mutex::new(index),
            contents: Flights::default(),
            templates: Flights::default(),
        })
    }

    /// The images, in the order of their checksums.
    pub(super) fn list(&self) -> Vec<CachedImage> {
        let entries: Vec<Entry> = self.index().by_sha256.values().cloned().collect();
        entries
            .iter()
            .filter(|entry| self.is_there(entry))
            .map(|entry| self.image(entry, &entry.name, entry.type_, None))
            .collect()
    }

    pub(super) fn progress(&self, image: &ResolvedImage) -> Option<Progress> {
        let urls = image
            .boot
            .iter()
            .flat_map(|boot| [&boot.kernel_url, &boot.initrd_url]);
        let main = self.source(image).ok();
        let boot = urls.filter_map(|url| Source::new(&image.name, url, "", self.allow_files).ok());
        main.into_iter()
            .chain(boot)
            .find_map(|source| self.contents.progress(&source.key()))
    }

    fn source(&self, image: &ResolvedImage) -> Result<Source, StorageError> {
        Source::new(&image.name, &image.url, &image.sha256, self.allow_files)
    }

    /// The image, from the cache or fetched, and for an archive the root file system made of it.
    pub(super) async fn ensure(self: &Arc<Self>, image: &ResolvedImage) -> Result<CachedImage, StorageError> {
        let Leased { entry, lease } = self.content(self.source(image)?, image.type_).await?;
        let refused = |why: String| StorageError::ImageFormatRefused {
            image: image.name.clone(),
            why,
        };
        let format = fit(image.type_, entry.format).map_err(refused)?;
        let template = if format.is_archive() {
            let made = self.template(&entry, &lease, format, &image.name).await;
            Some(made.map_err(|error| explain_compressed(error, image.type_, format))?)
        } else {
            None
        };
        Ok(CachedImage {
            lease,
            ..self.image(&entry, &image.name, image.type_, template)
        })
    }

    /// Kernel and RAM disk of an image with direct kernel boot.
    pub(super) async fn ensure_boot(
        self: &Arc<Self>,
        image: &ResolvedImage,
    ) -> Result<Option<BootFiles>, StorageError> {
        let Some(boot) = &image.boot else {
            return Ok(None);
        };
        let fetch = async |url: &str| {
            let source = Source::new(&image.name, url, "", self.allow_files)?;
            let Leased { entry, lease } = self.content(source, image.type_).await?;
            Ok((self.content_path(&entry.sha256), lease))
        };
        let (kernel, lease) = fetch(&boot.kernel_url).await?;
        let mut leases = vec![lease];
        let initrd = match boot.initrd_url.as_str() {
            "" => None,
            url => {
                let (initrd, lease) = fetch(url).await?;
                leases.push(lease);
                Some(initrd)
            }
        };
        Ok(Some(BootFiles {
            kernel,
            initrd,
            leases,
        }))
    }

    /// The answer file of an image to install from, as it was written: its placeholders are not filled in.
    pub(super) async fn answers(
        self: &Arc<Self>,
        image: &ResolvedImage,
    ) -> Result<Option<String>, StorageError> {
        if image.type_ != ImageType::Iso || image.preseed_url.is_empty() {
            return Ok(None);
        }
        let url = image.preseed_url.as_str();
        let source = Source::new(&image.name, url, "", self.allow_files)?;
        let Leased { entry, lease } = self.content(source, image.type_).await?;
        let refused = |why: String| StorageError::UrlRefused {
            url: url.to_owned(),
            why,
        };
        if entry.size_bytes > LARGEST_ANSWERS {
            let why = format!(
                "an answer file of {} bytes; at most {LARGEST_ANSWERS} are read",
                entry.size_bytes
            );
            return Err(refused(why));
        }
        let path = self.content_path(&entry.sha256);
        let bytes = tokio::fs::read(&path).await;
        drop(lease);
        let text = String::from_utf8(bytes.map_err(StorageError::disk("reading", &path))?);
        text.map(Some)
            .map_err(|_| refused("an answer file that is no text".to_owned()))
    }

    /// A stored file, in a file that does not stay.
    pub(super) async fn fetch_aside(&self, at: &FileUrl) -> Result<TempPath, StorageError> {
        let source = Source {
            name: at.name.clone(),
            url: at.to_string(),
            location: Location::Stored(at.clone()),
            sha256: Some(at.sha256.clone()),
            aside: true,
        };
        let fetched = self.fetcher.fetch(&source, &Arc::new(Meter::new())).await?;
        Ok(fetched.file.into_temp_path())
    }

    /// Without a lease.
    pub(super) fn image(
        &self,
        entry: &Entry,
        name: &str,
        type_: ImageType,
        template: Option<u64>,
    ) -> CachedImage {
        let root = self.template_path(&entry.sha256);
        CachedImage {
            name: name.to_owned(),
            type_,
            sha256: entry.sha256.clone(),
            path: self.content_path(&entry.sha256),
            format: entry.format,
            size_bytes: entry.size_bytes,
            virtual_bytes: template.unwrap_or(entry.virtual_bytes),
            root_template: template.map(|_| root),
            lease: Lease::default(),
        }
    }

    async fn content(self: &Arc<Self>, source: Source, type_: ImageType) -> Result<Leased, StorageError> {
        if let Some(leased) = self.lookup(&source) {
            return Ok(leased);
        }
        let key = source.key();
        let (asking, fetching) = (source.clone(), Arc::clone(self));
        self.contents
            .join(
                &key,
                || self.lookup(&asking),
                |meter| async move { fetching.bring(source, type_, meter).await },
            )
            .await
    }

    fn lookup(&self, source: &Source) -> Option<Leased> {
        let index = self.index();
        let sha256 = index.by_url.get(&source.url)?.gave(source)?;
        let entry = index.by_sha256.get(sha256)?.clone();
        if !self.is_there(&entry) {
            return None;
        }
        // Before the index is let go: an eviction holds it too.
        let lease = self.lease(&entry.sha256);
        Some(Leased { entry, lease })
    }

    fn lease(&self, sha256: &str) -> Lease {
        self.touch(sha256);
        self.leases.take(sha256)
    }

    /// Notes a use. A failure costs at worst a fetch, later.
    pub(super) fn touch(&self, sha256: &str) {
        let path = self.description_path(sha256);
        let touched = std::fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(path = %path.display(), %error, "the use of an image cannot be noted");
        }
    }

    fn is_there(&self, entry: &Entry) -> bool {
        let path = self.content_path(&entry.sha256);
        std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == entry.size_bytes)
    }

    /// Fetches, inspects and stores. Whatever fails leaves nothing behind.
    async fn bring(
        &self,
        source: Source,
        type_: ImageType,
        meter: Arc<Meter>,
    ) -> Result<Leased, StorageError> {
        let stamp = match &source.location {
            Location::File(path) => Stamp::of(path),
            Location::Http(_) | Location::Stored(_) => None,
        };
        let fetched = self.fetcher.fetch(&source, &meter).await?;
        let (format, virtual_bytes) = self.inspect(&source.name, &fetched).await?;
        let entry = Entry {
            name: source.name.clone(),
            type_,
            sha256: fetched.sha256.clone(),
            size_bytes: fetched.size,
            virtual_bytes,
            format,
        };
        let known = UrlEntry {
            url: source.url.clone(),
            sha256: fetched.sha256.clone(),
            earlier: self.earlier(&source.url, &fetched.sha256),
            stamp,
        };
        let (dirs, stored, url) = (self.dirs.clone(), entry.clone(), known.clone());
        blocking(move || store(&dirs, fetched, &stored, &url)).await?;
        tracing::info!(image = %entry.name, sha256 = %entry.sha256, bytes = entry.size_bytes, "image cached");
        let mut index = self.index();
        let lease = self.lease(&entry.sha256);
        index.by_url.insert(known.url.clone(), known);
        index.by_sha256.insert(entry.sha256.clone(), entry.clone());
        Ok(Leased { entry, lease })
    }

    /// What a URL that gives `now` has given before, as far as it is here.
    fn earlier(&self, url: &str, now: &str) -> Vec<String> {
        let index = self.index();
        let known = index.by_url.get(url).into_iter();
        known
            .flat_map(UrlEntry::all)
            .filter(|sha256| *sha256 != now && index.by_sha256.contains_key(*sha256))
            .cloned()
            .collect()
    }

    /// Format and virtual size in bytes, or why the content is refused.
    async fn inspect(&self, name: &str, fetched: &Fetched) -> Result<(ImageFormat, u64), StorageError> {
        let refused = |why: String| StorageError::ImageFormatRefused {
            image: name.to_owned(),
            why,
        };
        let path = fetched.file.path().to_owned();
        let head = blocking(move || read_head(&path)).await?;
        let format = format::detect(&head).map_err(refused)?;
        let virtual_bytes = match format {
            ImageFormat::Qcow2 => {
                let header = Qcow2Header::parse(&head)
                    .ok_or_else(|| refused("its qcow2 header is damaged".to_owned()))?;
                if let Some(why) = header.refusal(fetched.size) {
                    return Err(refused(why.to_owned()));
                }
                qemu_img_info(name, fetched.file.path())
                    .await?
                    .accept()
                    .map_err(refused)?
            }
            ImageFormat::Raw | ImageFormat::Iso => fetched.size,
            ImageFormat::Tar | ImageFormat::Gzip | ImageFormat::Xz | ImageFormat::Zstd => 0,
        };
        if virtual_bytes > self.max_virtual_bytes {
            let why = format!(
                "its disk has {} MiB, this agent takes up to {} MiB",
                virtual_bytes.div_ceil(MIB),
                self.max_virtual_bytes / MIB
            );
            return Err(refused(why));
        }
        Ok((format, virtual_bytes))
    }

    pub(super) fn content_path(&self, sha256: &str) -> PathBuf {
        self.dirs.images.join(sha256)
    }

    pub(super) fn description_path(&self, sha256: &str) -> PathBuf {
        self.dirs.images.join(format!("{sha256}.json"))
    }

    pub(super) fn url_path(&self, url: &str) -> PathBuf {
        self.dirs.urls.join(format!("{}.json", url_key(url)))
    }

    pub(super) fn template_path(&self, sha256: &str) -> PathBuf {
        self.dirs.roots.join(format!("{sha256}.img"))
    }

    /// The root file system made of an archive; its size in bytes.
    async fn template(
        self: &Arc<Self>,
        entry: &Entry,
        lease: &Lease,
        format: ImageFormat,
        image: &str,
    ) -> Result<u64, StorageError> {
        let path = self.template_path(&entry.sha256);
        let size = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.len());
        if let Some(size) = size(&path) {
            return Ok(size);
        }
        let (cache, image) = (Arc::clone(self), image.to_owned());
        let (content, target) = (self.content_path(&entry.sha256), path.clone());
        // The work goes on when the caller gives up, and needs the content until it ends.
        let lease = lease.clone();
        let make = |_| async move {
            let _lease = lease;
            let archive = root_fs::Archive {
                image: &image,
                path: &content,
                format,
                max_bytes: cache.max_virtual_bytes,
            };
            root_fs::make_template(&archive, &target, &cache.room).await?;
            size(&target).ok_or_else(|| {
                StorageError::disk("reading", &target)(std::io::Error::from(std::io::ErrorKind::NotFound))
            })
        };
        self.templates.join(&entry.sha256, || size(&path), make).await
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether content of this format serves an Image of this type; the driver is checked when a disk is made.
fn fit(type_: ImageType, format: ImageFormat) -> Result<ImageFormat, String> {
    let is = format.describe();
    match type_ {
        // Archives too: a disk or ISO image may name a root file system for lxc.
        ImageType::Disk => Ok(format),
        ImageType::Iso if format == ImageFormat::Iso || format.is_archive() => Ok(format),
        ImageType::Iso => Err(format!(
            "it is of type iso, but its content is {is}; give an ISO 9660 file, or type disk"
        )),
        ImageType::LxcContainer if format.is_archive() => Ok(format),
        ImageType::LxcContainer => Err(format!(
            "it is of type lxc-container, but its content is {is}; give a root file system as tar, tar.gz, tar.xz or tar.zst"
        )),
        ImageType::DockerContainer => Err("no driver here runs docker-container images".to_owned()),
    }
}

/// A compressed disk looks like an archive until it is opened.
fn explain_compressed(error: StorageError, type_: ImageType, format: ImageFormat) -> StorageError {
    if let StorageError::ImageFormatRefused { image, why } = &error
        && type_ != ImageType::LxcContainer
    {
        let is = format.describe();
        return StorageError::ImageFormatRefused {
            image: image.clone(),
            why: format!("its content is {is}, which only archives may be; decompress the disk ({why})"),
        };
    }
    error
}

fn changed(known: &UrlEntry, location: &Location) -> bool {
    match location {
        Location::Http(_) | Location::Stored(_) => false,
        // A file that is gone is still in the cache.
        Location::File(path) => Stamp::of(path).is_some_and(|now| known.stamp != Some(now)),
    }
}

async fn qemu_img_info(name: &str, path: &Path) -> Result<ImageInfo, StorageError> {
    let refused = |why: String| StorageError::ImageFormatRefused {
        image: name.to_owned(),
        why,
    };
    let output = Run::new(QEMU_IMG)
        .args(&["info", "--output=json", "-f", "qcow2"])
        .arg(path)
        .limits(INFO_LIMITS)
        .deadline(Duration::from_mins(1))
        .output("inspecting the image")
        .await;
    match output {
        Ok(output) => {
            serde_json::from_slice(&output.stdout).map_err(|error| refused(format!("qemu-img: {error}")))
        }
        // Its path says nothing to the reader.
        Err(StorageError::ToolFailed { why, .. }) => {
            Err(refused(why.replace(&*path.to_string_lossy(), "the image")))
        }
        Err(error) => Err(error),
    }
}

fn read_head(path: &Path) -> Result<Vec<u8>, StorageError> {
    let mut head = Vec::with_capacity(HEAD_BYTES);
    std::fs::File::open(path)
        .and_then(|file| file.take(HEAD_BYTES as u64).read_to_end(&mut head))
        .map_err(StorageError::disk("reading", path))?;
    Ok(head)
}

/// Description first, then content, then the URL: content that is there is always described.
fn store(dirs: &CacheDirs, fetched: Fetched, entry: &Entry, url: &UrlEntry) -> Result<(), StorageError> {
    write_json(&dirs.images, &format!("{}.json", entry.sha256), entry)?;
    let target = dirs.images.join(&entry.sha256);
    // Read by QEMU's user.
    fetched
        .file
        .as_file()
        .set_permissions(std::fs::Permissions::from_mode(0o644))
        .map_err(StorageError::disk("opening to QEMU", &target))?;
    fetched
        .file
        .persist(&target)
        .map_err(|error| StorageError::disk("naming", &target)(error.error))?;
    write_json(&dirs.urls, &format!("{}.json", url_key(&url.url)), url)
}

fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> Result<(), StorageError> {
    let target = dir.join(name);
    let write = || -> std::io::Result<()> {
        let file = tempfile::Builder::new().prefix(TEMP_PREFIX).tempfile_in(dir)?;
        serde_json::to_writer_pretty(file.as_file(), value)?;
        file.as_file().sync_all()?;
        file.persist(&target).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(StorageError::disk("writing", &target))
}

/// Every readable `*.json` in a directory.
fn read_all<T: DeserializeOwned>(dir: &Path) -> Result<Vec<T>, StorageError> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(StorageError::disk("reading", dir))? {
        let path = entry.map_err(StorageError::disk("reading", dir))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read(&path).map_err(StorageError::disk("reading", &path))?;
        match serde_json::from_slice(&text) {
            Ok(value) => all.push(value),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cache entry cannot be read; fetched again when needed");
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_formats() {
        use ImageFormat::{Gzip, Iso, Qcow2, Raw, Tar};
        for (type_, format, expected) in [
            (ImageType::Disk, Qcow2, true),
            (ImageType::Disk, Raw, true),
            (ImageType::Disk, Iso, true),
            (ImageType::Disk, Gzip, true),
            (ImageType::Iso, Iso, true),
            (ImageType::Iso, Raw, false),
            (ImageType::Iso, Qcow2, false),
            (ImageType::LxcContainer, Tar, true),
            (ImageType::LxcContainer, Qcow2, false),
            (ImageType::DockerContainer, Tar, false),
        ] {
            assert_eq!(fit(type_, format).is_ok(), expected, "{type_:?} {format:?}");
        }
    }
}
