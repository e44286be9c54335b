//! Where an Instance gets its values: its own, its provisioner's, its image's, or the default.
//!
//! Pure. The controller freezes the result in `status.resolved`; the gateway shows it until that is there. Looking up
//! the objects that the Instance refers to is the caller's.

use std::collections::BTreeMap;

use crate::image::{ImageSpec, ImageType};
use crate::instance::{Driver, InstanceSpec, Resolved, ResolvedImage};
use crate::provisioner::ProvisionerSpec;

/// Memory of an Instance that names none, in MiB.
pub const DEFAULT_MEMORY_MIB: i64 = 1024;
/// Virtual CPUs of an Instance that names none.
pub const DEFAULT_CPUS: i32 = 1;
/// Root disk of an Instance that names none, in MiB; the node enlarges it to the image's virtual size.
pub const DEFAULT_DISK_MIB: i64 = 10_240;
/// Name of the Environment of an Instance that names none.
pub const DEFAULT_ENVIRONMENT: &str = "default";
/// The drivers that hosts run, as a message lists them.
pub const SUPPORTED_DRIVERS: &str = "kvm, qemu, lxc";

/// Why values cannot be resolved; the texts are those of the REST API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Neither the Instance nor its provisioner names an image.
    #[error("image field was not provided")]
    NoImage,
    /// The provisioner's driver, or the image's type, is one that no host runs.
    #[error("driver {0} is not supported; supported drivers: {SUPPORTED_DRIVERS}")]
    UnsupportedDriver(String),
    /// The image does not fit the driver.
    #[error("Field image: {image} is of type {type_}, which driver {driver} cannot use")]
    ImageDoesNotFit {
        /// Name of the image.
        image: String,
        /// Its type.
        type_: &'static str,
        /// The driver.
        driver: Driver,
    },
    /// The image has no content to fetch for the driver.
    #[error("Field image: {image} has no {field}, which driver {driver} needs")]
    ImageWithoutSource {
        /// Name of the image.
        image: String,
        /// The REST field that is missing.
        field: &'static str,
        /// The driver.
        driver: Driver,
    },
}

/// An Image that was looked up, with the name it is shown under.
#[derive(Clone, Copy, Debug)]
pub struct NamedImage<'a> {
    /// Wire name.
    pub name: &'a str,
    /// Spec.
    pub spec: &'a ImageSpec,
}

/// The name of the image that an Instance boots from; `None` for blank ones and clones.
#[must_use]
pub fn image_name<'a>(spec: &'a InstanceSpec, provisioner: Option<&'a ProvisionerSpec>) -> Option<&'a str> {
    spec.image
        .as_deref()
        .or(provisioner.and_then(|p| p.image.as_deref()))
}

/// The values of an Instance: the first present of its own, its provisioner's, its image's, the default.
///
/// `image` is what [`image_name`] names; `disk_images` are the images of additional disks by disk name. A clone keeps
/// the values of its source, which the writer of its spec has copied; it needs no image.
pub fn resolve(
    spec: &InstanceSpec,
    provisioner: Option<&ProvisionerSpec>,
    image: Option<NamedImage<'_>>,
    disk_images: &BTreeMap<String, NamedImage<'_>>,
) -> Result<Resolved, ResolveError> {
    let driver = driver(spec, provisioner, image)?;
    let needs_image = spec.blank != Some(true) && spec.clone_from.is_none();
    let image = match image {
        Some(image) => Some(resolved_image(image, driver)?),
        None if needs_image => return Err(ResolveError::NoImage),
        None => None,
    };
    let disk_images = disk_images
        .iter()
        .map(|(disk, image)| Ok((disk.clone(), resolved_image(*image, driver)?)))
        .collect::<Result<_, ResolveError>>()?;
    let from = provisioner;
    Ok(Resolved {
        environment: spec
            .environment
            .clone()
            .unwrap_or_else(|| DEFAULT_ENVIRONMENT.to_owned()),
        driver: Some(driver),
        host_type: Some(spec.host_type.unwrap_or_default()),
        cpus: spec.cpus.or(from.and_then(|p| p.cpus)).or(Some(DEFAULT_CPUS)),
        memory_mib: spec
            .memory_mib
            .or(from.and_then(|p| p.memory_mib))
            .or(Some(DEFAULT_MEMORY_MIB)),
        disk_mib: spec
            .disk_mib
            .or(from.and_then(|p| p.disk_mib))
            .or(Some(DEFAULT_DISK_MIB)),
        launch: Some(spec.launch.or(from.and_then(|p| p.launch)).unwrap_or_default()),
        // A clone is not provisioned again.
        builder: from
            .filter(|_| needs_image)
            .and_then(|p| p.builder.clone())
            .unwrap_or_default(),
        executor: from
            .filter(|_| needs_image)
            .and_then(|p| p.executor.clone())
            .unwrap_or_default(),
        depends: from
            .filter(|_| needs_image)
            .map(|p| p.depends.clone())
            .unwrap_or_default(),
        dependencies: Vec::new(),
        image,
        disk_images,
        vars_from: String::new(),
    })
}

/// Values that a later edit of the Instance's own sizes replaces; everything else stays frozen.
///
/// `added` are the resolved images of disks that the frozen values do not know.
#[must_use]
pub fn refreeze(frozen: &Resolved, spec: &InstanceSpec, added: BTreeMap<String, ResolvedImage>) -> Resolved {
    let mut disk_images = added;
    disk_images.extend(frozen.disk_images.clone());
    disk_images.retain(|name, _| spec.disks.iter().any(|d| d.name == *name && d.image.is_some()));
    Resolved {
        cpus: spec.cpus.or(frozen.cpus),
        memory_mib: spec.memory_mib.or(frozen.memory_mib),
        disk_mib: spec.disk_mib.or(frozen.disk_mib),
        disk_images,
        ..frozen.clone()
    }
}

/// Effective tags: the Instance's, then those of its provisioner that it does not name itself.
#[must_use]
pub fn tags(spec: &InstanceSpec, provisioner: Option<&ProvisionerSpec>) -> Vec<String> {
    let mut tags: Vec<String> = Vec::new();
    for tag in spec.tags.iter().chain(provisioner.iter().flat_map(|p| &p.tags)) {
        if !tags.contains(&tag.0) {
            tags.push(tag.0.clone());
        }
    }
    tags
}

fn driver(
    spec: &InstanceSpec,
    provisioner: Option<&ProvisionerSpec>,
    image: Option<NamedImage<'_>>,
) -> Result<Driver, ResolveError> {
    if let Some(driver) = spec.driver {
        return Ok(driver);
    }
    if let Some(word) = provisioner.and_then(|p| p.driver) {
        return word
            .supported()
            .ok_or_else(|| ResolveError::UnsupportedDriver(word.as_str().to_owned()));
    }
    match image.map(|i| i.spec.type_) {
        Some(ImageType::LxcContainer) => Ok(Driver::Lxc),
        Some(ImageType::DockerContainer) => Err(ResolveError::UnsupportedDriver("docker".to_owned())),
        Some(ImageType::Disk | ImageType::Iso) | None => Ok(Driver::Kvm),
    }
}

/// The image for a driver: which of its URLs counts, and whether it fits at all.
pub fn resolved_image(image: NamedImage<'_>, driver: Driver) -> Result<ResolvedImage, ResolveError> {
    let spec = image.spec;
    let without = |field| ResolveError::ImageWithoutSource {
        image: image.name.to_owned(),
        field,
        driver,
    };
    let unfit = || ResolveError::ImageDoesNotFit {
        image: image.name.to_owned(),
        type_: spec.type_.as_str(),
        driver,
    };
    let url = match (driver, spec.type_) {
        (_, ImageType::DockerContainer) => return Err(ResolveError::UnsupportedDriver("docker".to_owned())),
        (Driver::Lxc, ImageType::LxcContainer) => spec
            .container_resource
            .clone()
            .or_else(|| spec.download_url.clone())
            .ok_or_else(|| without("container_resource"))?,
        (Driver::Lxc, ImageType::Disk | ImageType::Iso) => spec
            .container_resource
            .clone()
            .ok_or_else(|| without("container_resource"))?,
        (Driver::Kvm | Driver::Qemu, ImageType::LxcContainer) => return Err(unfit()),
        (Driver::Kvm | Driver::Qemu, ImageType::Disk | ImageType::Iso) => match &spec.download_url {
            Some(url) => url.clone(),
            None if spec.boot.is_some() => String::new(),
            None => return Err(without("download_url")),
        },
    };
    Ok(ResolvedImage {
        name: image.name.to_owned(),
        type_: spec.type_,
        url: without_fragment(&url).to_owned(),
        sha256: spec.sha256.clone().unwrap_or_default(),
        boot: spec.boot.clone(),
        timezone: spec.timezone.clone().unwrap_or_else(|| "UTC".to_owned()),
        ssh_key: spec.ssh_key.clone().unwrap_or_default(),
        preseed_url: spec.preseed_url.clone().unwrap_or_default(),
    })
}

fn without_fragment(url: &str) -> &str {
    url.split_once('#').map_or(url, |(before, _)| before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::{CloneFrom, Launch, Tag};
    use crate::provisioner::ProvisionerDriver;

    fn image(type_: ImageType, download: Option<&str>, container: Option<&str>) -> ImageSpec {
        let mut spec: ImageSpec = serde_json::from_value(serde_json::json!({ "type": type_ })).unwrap();
        spec.download_url = download.map(str::to_owned);
        spec.container_resource = container.map(str::to_owned);
        spec
    }

    fn resolve_one(
        spec: &InstanceSpec,
        provisioner: Option<&ProvisionerSpec>,
        image: Option<&ImageSpec>,
    ) -> Result<Resolved, ResolveError> {
        resolve(
            spec,
            provisioner,
            image.map(|spec| NamedImage { name: "i", spec }),
            &BTreeMap::new(),
        )
    }

    #[test]
    fn own_values_then_the_provisioners_then_defaults() {
        let disk = image(ImageType::Disk, Some("https://x/i.qcow2#v1"), None);
        let provisioner = ProvisionerSpec {
            cpus: Some(4),
            memory_mib: Some(4096),
            launch: Some(Launch { min: 2, max: 3 }),
            builder: Some("https://x/r.git".into()),
            executor: Some("sh run.sh".into()),
            tags: vec![Tag("a".into()), Tag("b".into())],
            ..Default::default()
        };
        let spec = InstanceSpec {
            cpus: Some(2),
            tags: vec![Tag("b".into())],
            ..Default::default()
        };
        let r = resolve_one(&spec, Some(&provisioner), Some(&disk)).unwrap();
        assert_eq!(
            (r.cpus, r.memory_mib, r.disk_mib),
            (Some(2), Some(4096), Some(DEFAULT_DISK_MIB))
        );
        assert_eq!(
            (r.driver, r.launch),
            (Some(Driver::Kvm), Some(Launch { min: 2, max: 3 }))
        );
        assert_eq!(
            (r.environment.as_str(), r.executor.as_str()),
            ("default", "sh run.sh")
        );
        assert_eq!(r.image.unwrap().url, "https://x/i.qcow2");
        assert_eq!(tags(&spec, Some(&provisioner)), ["b", "a"]);
    }

    #[test]
    fn the_driver_follows_instance_provisioner_image() {
        let lxc = image(ImageType::LxcContainer, Some("u"), None);
        let disk = image(ImageType::Disk, Some("u"), Some("root"));
        let docker = image(ImageType::DockerContainer, Some("u"), None);
        let plain = InstanceSpec::default();
        let qemu = InstanceSpec {
            driver: Some(Driver::Qemu),
            ..Default::default()
        };
        let by = |driver| ProvisionerSpec {
            driver: Some(driver),
            ..Default::default()
        };
        let driver = |spec: &InstanceSpec, provisioner: Option<&ProvisionerSpec>, image: &ImageSpec| {
            resolve_one(spec, provisioner, Some(image)).map(|r| r.driver.unwrap())
        };
        assert_eq!(driver(&plain, None, &lxc), Ok(Driver::Lxc));
        assert_eq!(driver(&plain, None, &disk), Ok(Driver::Kvm));
        assert_eq!(
            driver(&plain, Some(&by(ProvisionerDriver::Lxc)), &disk),
            Ok(Driver::Lxc)
        );
        assert_eq!(
            driver(&qemu, Some(&by(ProvisionerDriver::Docker)), &disk),
            Ok(Driver::Qemu)
        );
        assert!(matches!(
            driver(&plain, Some(&by(ProvisionerDriver::Docker)), &disk),
            Err(ResolveError::UnsupportedDriver(w)) if w == "docker"
        ));
        assert!(matches!(
            driver(&plain, None, &docker),
            Err(ResolveError::UnsupportedDriver(_))
        ));
        assert!(matches!(
            driver(&qemu, None, &lxc),
            Err(ResolveError::ImageDoesNotFit { .. })
        ));
    }

    #[test]
    fn an_image_needs_content_for_its_driver() {
        let lxc = InstanceSpec {
            driver: Some(Driver::Lxc),
            ..Default::default()
        };
        let kvm = InstanceSpec::default();
        let mut empty = image(ImageType::Disk, None, None);
        assert!(
            resolve_one(&kvm, None, Some(&empty))
                .unwrap_err()
                .to_string()
                .contains("download_url")
        );
        assert!(
            resolve_one(&lxc, None, Some(&empty))
                .unwrap_err()
                .to_string()
                .contains("container_resource")
        );
        empty.boot = Some(crate::image::Boot {
            kernel_url: "k".into(),
            ..Default::default()
        });
        assert_eq!(
            resolve_one(&kvm, None, Some(&empty)).unwrap().image.unwrap().url,
            ""
        );
        assert_eq!(resolve_one(&kvm, None, None), Err(ResolveError::NoImage));
        let blank = InstanceSpec {
            blank: Some(true),
            ..Default::default()
        };
        assert_eq!(resolve_one(&blank, None, None).unwrap().image, None);
        let clone = InstanceSpec {
            clone_from: Some(CloneFrom::default()),
            ..Default::default()
        };
        assert_eq!(resolve_one(&clone, None, None).unwrap().image, None);
    }

    #[test]
    fn refreezing_takes_only_own_sizes() {
        let disk = image(ImageType::Disk, Some("u"), None);
        let frozen = resolve_one(&InstanceSpec::default(), None, Some(&disk)).unwrap();
        let edited = InstanceSpec {
            memory_mib: Some(2048),
            environment: Some("other".into()),
            image: Some("other".into()),
            ..Default::default()
        };
        let again = refreeze(&frozen, &edited, BTreeMap::new());
        assert_eq!(again.memory_mib, Some(2048));
        assert_eq!(
            Resolved {
                memory_mib: frozen.memory_mib,
                ..again
            },
            frozen
        );
    }
}
