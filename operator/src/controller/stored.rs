//! Stored files that Images and vars name by URL.
//!
//! Whoever reaches the gateway sees a file under a URL of it, and writes that URL into an Image. No node fetches it from
//! there as everybody could: the controller finds the File that is meant, asks whether the owner of what names it may read
//! it, and freezes a [`FileUrl`], which nodes fetch as themselves. Pure, but for [`look_up`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::ResourceExt;
use reqwest::Url;
use virtshell_crds::file_ref::{FileUrl, file_of};
use virtshell_crds::instance::ResolvedImage;
use virtshell_crds::names::{is_uuid, object_name};
use virtshell_crds::permissions::{Guarded, Right, Subject, allows, groups_of};
use virtshell_crds::{File, Image, Instance, UserType};

use super::accept::Refusal;
use super::cache::Cached;
use super::context::Context;

/// What the REST API's documentation writes for the gateway's address; some clients send it as it is.
const PLACEHOLDER: &str = "<host>:<port>";

/// The addresses under which clients reach the gateway.
#[derive(Clone, Debug, Default)]
pub struct Gateways(BTreeSet<(String, u16)>);

impl Gateways {
    /// Those of these URLs.
    #[must_use]
    pub fn new(urls: &[Url]) -> Self {
        Self(urls.iter().filter_map(address).collect())
    }

    /// What a URL names of the gateway's files, as its API reads it: `folder/name`, a name or a uuid.
    ///
    /// Base path, query and fragment do not count.
    #[must_use]
    pub fn file_of(&self, url: &str) -> Option<String> {
        let (scheme, rest) = url.trim().split_once("://")?;
        let authority = rest.split('/').next()?;
        let is_ours = authority == PLACEHOLDER
            || Url::parse(&format!("{scheme}://{authority}/"))
                .ok()
                .and_then(|url| address(&url))
                .is_some_and(|address| self.0.contains(&address));
        file_of(url).filter(|_| is_ours)
    }
}

fn address(url: &Url) -> Option<(String, u16)> {
    Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
}

/// Who owns what names a file.
#[derive(Clone, Debug, Default)]
struct Reader {
    is_system: bool,
    groups: BTreeSet<String>,
}

/// The files that an Instance and its Images name by URL, as found.
#[derive(Clone, Debug, Default)]
pub struct StoredFiles {
    gateways: Arc<Gateways>,
    /// By what URLs name; several when a bare name is in several folders.
    found: BTreeMap<String, Vec<Arc<File>>>,
    /// Owners, by name.
    readers: BTreeMap<String, Reader>,
}

impl StoredFiles {
    /// Puts the Files in the place of an image's URLs that lead to them, if `owner` of the Image may read them. What nobody
    /// owns was made with kubectl, where the API server decides who may do what.
    pub fn freeze(&self, image: &mut ResolvedImage, owner: Option<&str>) -> Result<(), Refusal> {
        let boot = image.boot.iter_mut();
        let urls = boot.flat_map(|boot| [&mut boot.kernel_url, &mut boot.initrd_url]);
        for url in urls.chain([&mut image.url, &mut image.preseed_url]) {
            if let Some(file) = self.locate(url, owner)? {
                *url = file.to_string();
            }
        }
        Ok(())
    }

    /// The File that a URL leads to; `None` for a URL that leads elsewhere.
    pub fn locate(&self, url: &str, owner: Option<&str>) -> Result<Option<FileUrl>, Refusal> {
        if url.trim_start().starts_with(FileUrl::SCHEME) {
            let message =
                format!("{url} is no URL to be given; give the URL that the gateway shows for the file");
            return Err(Refusal::new("UrlRefused", message));
        }
        let Some(name) = self.gateways.file_of(url) else {
            return Ok(None);
        };
        let file = match self.found.get(&name).map(Vec::as_slice).unwrap_or_default() {
            [] => return Err(Refusal::new("FileNotFound", format!("file {name} not found"))),
            [file] => file,
            several => {
                let mut names: Vec<_> = several.iter().map(|file| file.full_name().into_owned()).collect();
                names.sort();
                let message = format!(
                    "file {name} is in several folders: say one of {}",
                    names.join(", ")
                );
                return Err(Refusal::new("FileAmbiguous", message));
            }
        };
        if !owner.is_none_or(|owner| self.may_read(owner, file)) {
            let message = format!("{} may not read file {name}", owner.unwrap_or_default());
            return Err(Refusal::new("FileForbidden", message));
        }
        let Some(sha256) = file.spec.sha256.clone() else {
            let message = format!("file {name} has no content that can be read");
            return Err(Refusal::new("FileUnreadable", message));
        };
        Ok(Some(FileUrl {
            namespace: file.namespace().unwrap_or_default(),
            name: file.name_any(),
            sha256,
        }))
    }

    /// Whether a URL names the file that is frozen, by the name that REST gives its object: it may be gone since.
    #[must_use]
    pub fn is_still(&self, url: &str, frozen: &str) -> bool {
        let name = self.gateways.file_of(url);
        let frozen = FileUrl::parse(frozen);
        name.zip(frozen)
            .is_some_and(|(name, frozen)| object_name(&name) == frozen.name)
    }

    fn may_read(&self, owner: &str, file: &File) -> bool {
        let nobody = Reader::default();
        let reader = self.readers.get(owner).unwrap_or(&nobody);
        let subject = Subject {
            name: owner,
            is_system: reader.is_system,
            groups: &reader.groups,
        };
        let object = Guarded {
            permissions: file.spec.permissions.as_ref().map(|p| p.0.as_str()),
            owner: file.spec.owner.as_deref(),
            group: file.spec.group.as_deref(),
        };
        allows(&object, subject, Right::Read)
    }
}

/// Finds the files that an Instance and its images name by URL, and what is known of those who own these.
///
/// As the REST API does: a uuid, `folder/name`, or a name that only one folder has.
pub fn look_up<'a>(
    ctx: &Context,
    instance: &'a Instance,
    images: impl Iterator<Item = &'a Arc<Image>>,
) -> StoredFiles {
    let namespace = instance.metadata.namespace.as_deref().unwrap_or_default();
    let mut stored = StoredFiles {
        gateways: ctx.gateways.clone(),
        ..StoredFiles::default()
    };
    let mut owners = BTreeSet::new();
    let mut names = BTreeSet::new();
    let vars = (instance.spec.owner.as_deref(), instance.spec.vars_from.as_deref());
    let of_images = images.flat_map(|image| {
        let owner = image.spec.owner.as_deref();
        urls(image).map(move |url| (owner, Some(url)))
    });
    for (owner, url) in of_images.chain([vars]) {
        if let Some(name) = url.and_then(|url| ctx.gateways.file_of(url)) {
            names.insert(name);
            owners.extend(owner);
        }
    }
    for name in names {
        let mut found = ctx.files.namesakes(namespace, &name);
        // A uuid means the file that has it, whatever another is called.
        let uuid = is_uuid(&name);
        if found.is_empty() || uuid {
            found = ctx.files.all();
            found.retain(|file| {
                let of = &file.metadata;
                let is_meant = if uuid {
                    of.uid.as_deref() == Some(&name)
                } else {
                    file.wire_name() == name
                };
                is_meant && of.namespace.as_deref() == Some(namespace)
            });
        } else {
            // Of doubles, which kubectl can make, the one that keeps the name.
            found.sort_by_key(|file| (file.creation_timestamp(), file.name_any()));
            found.truncate(1);
        }
        stored.found.insert(name, found);
    }
    for owner in owners {
        let Some(user) = ctx.users.find(namespace, owner) else {
            continue;
        };
        let mut groups = ctx.groups.all();
        groups.retain(|group| group.namespace().as_deref() == Some(namespace));
        let groups = groups_of(&user, groups.iter().map(AsRef::as_ref))
            .into_iter()
            .collect();
        let is_system = user.spec.type_ == UserType::System;
        stored
            .readers
            .insert(owner.to_owned(), Reader { is_system, groups });
    }
    stored
}

fn urls(image: &Image) -> impl Iterator<Item = &str> {
    let spec = &image.spec;
    let boot = spec
        .boot
        .iter()
        .flat_map(|boot| [&boot.kernel_url, &boot.initrd_url]);
    let others = [&spec.download_url, &spec.container_resource, &spec.preseed_url];
    boot.chain(others.into_iter().flatten()).map(String::as_str)
}

#[cfg(test)]
impl StoredFiles {
    /// These files, by what URLs name, of a gateway at `http://gw`.
    pub(super) fn of(files: impl IntoIterator<Item = (&'static str, Arc<File>)>) -> Self {
        let gateway = Url::parse("http://gw").unwrap();
        let found = files
            .into_iter()
            .map(|(name, file)| (name.to_owned(), vec![file]));
        Self {
            gateways: Arc::new(Gateways::new(&[gateway])),
            found: found.collect(),
            readers: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use virtshell_crds::ImageType;

    use super::*;

    fn gateways() -> Gateways {
        let urls = [
            "http://gw:8080/",
            "https://virtshell.example.org",
            "http://[fd00::1]:80",
        ];
        Gateways::new(&urls.map(|url| Url::parse(url).unwrap()))
    }

    #[test]
    fn urls_that_lead_to_files() {
        for (url, expected) in [
            (
                "http://gw:8080/api/virtshell/v1/files/seeds/a.txt",
                Some("seeds/a.txt"),
            ),
            ("http://GW:8080/files/a", Some("a")),
            (
                "https://virtshell.example.org/virtshell/api/v1/files/a%20b#part",
                Some("a b"),
            ),
            ("https://virtshell.example.org:443/file/a?x=1", Some("a")),
            ("http://[fd00::1]/static/files/a", Some("a")),
            ("https://<host>:<port>/api/virtshell/v1/files/a/b", Some("a/b")),
            (" http://gw:8080/files/a ", Some("a")),
            ("http://gw:8080/files/", None),
            ("http://gw:8080/images/a", None),
            ("http://gw/files/a", None),
            ("https://gw:8080.example.org/files/a", None),
            ("https://gw:8080@example.org/files/a", None),
            ("https://example.org/?x=http://gw:8080/files/a", None),
            ("https://example.org/files/a", None),
            ("ftp://gw:8080/files/a", None),
            ("/files/a", None),
            ("", None),
        ] {
            assert_eq!(gateways().file_of(url).as_deref(), expected, "{url}");
        }
    }

    fn file(name: &str, folder: &str, more: &Value) -> Arc<File> {
        let mut file = json!({
            "apiVersion": "virtshell.io/v1alpha1", "kind": "File",
            "metadata": {"name": name, "namespace": "ns"},
            "spec": {"displayName": name, "folder": folder, "sha256": "e3b0c4", "content": {"inline": ""}},
        });
        for (field, value) in more.as_object().unwrap() {
            file["spec"][field] = value.clone();
        }
        Arc::new(serde_json::from_value(file).unwrap())
    }

    fn stored() -> StoredFiles {
        let private = json!({"permissions": "rw-r-----", "owner": "ann", "group": "web"});
        let reader = |is_system, groups: &[&str]| Reader {
            is_system,
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        };
        StoredFiles {
            gateways: Arc::new(gateways()),
            found: [
                ("a".to_owned(), vec![file("a", "", &json!({}))]),
                ("private".to_owned(), vec![file("private", "", &private)]),
                (
                    "b".to_owned(),
                    vec![file("b", "two", &json!({})), file("b", "one", &json!({}))],
                ),
                ("none".to_owned(), vec![]),
            ]
            .into(),
            readers: [
                ("ann".to_owned(), reader(false, &[])),
                ("bob".to_owned(), reader(false, &["web"])),
                ("eve".to_owned(), reader(false, &[])),
                ("root".to_owned(), reader(true, &[])),
            ]
            .into(),
        }
    }

    #[test]
    fn who_may_read_a_file_may_name_it() {
        for (url, owner, expected) in [
            (
                "http://gw:8080/files/a",
                Some("eve"),
                Ok(Some("virtshell://ns/files/a?sha256=e3b0c4")),
            ),
            (
                "http://gw:8080/files/private",
                Some("ann"),
                Ok(Some("virtshell://ns/files/private?sha256=e3b0c4")),
            ),
            (
                "http://gw:8080/files/private",
                Some("bob"),
                Ok(Some("virtshell://ns/files/private?sha256=e3b0c4")),
            ),
            (
                "http://gw:8080/files/private",
                Some("root"),
                Ok(Some("virtshell://ns/files/private?sha256=e3b0c4")),
            ),
            (
                "http://gw:8080/files/private",
                None,
                Ok(Some("virtshell://ns/files/private?sha256=e3b0c4")),
            ),
            (
                "http://gw:8080/files/private",
                Some("eve"),
                Err("eve may not read file private"),
            ),
            (
                "http://gw:8080/files/private",
                Some("nobody"),
                Err("nobody may not read file private"),
            ),
            ("http://gw:8080/files/none", None, Err("file none not found")),
            (
                "http://gw:8080/files/b",
                None,
                Err("file b is in several folders: say one of one/b, two/b"),
            ),
            ("https://example.org/files/a", Some("eve"), Ok(None)),
            (
                "virtshell://ns/files/private",
                Some("eve"),
                Err(
                    "virtshell://ns/files/private is no URL to be given; give the URL that the gateway shows for the file",
                ),
            ),
        ] {
            let located = stored().locate(url, owner);
            let located = located.map(|file| file.map(|file| file.to_string()));
            let seen = located
                .as_ref()
                .map(|file| file.as_deref())
                .map_err(|refusal| refusal.message.as_str());
            assert_eq!(seen, expected, "{url} for {owner:?}");
        }
    }

    #[test]
    fn every_url_of_an_image_may_lead_to_a_file() {
        let mut image: ResolvedImage = serde_json::from_value(json!({
            "name": "i", "type": ImageType::Disk, "url": "http://gw:8080/files/a",
            "preseedUrl": "http://gw:8080/files/a",
            "boot": {"kernelUrl": "http://gw:8080/files/a", "initrdUrl": "http://example.org/initrd"},
        }))
        .unwrap();
        stored().freeze(&mut image, None).unwrap();
        let file = "virtshell://ns/files/a?sha256=e3b0c4";
        let boot = image.boot.unwrap();
        assert_eq!([&image.url, &image.preseed_url, &boot.kernel_url], [file; 3]);
        assert_eq!(boot.initrd_url, "http://example.org/initrd");
    }
}
