//! Decides whether an Instance makes sense, and with which values it is created.
//!
//! Pure: [`References`] holds what look-ups found. A refusal says in the REST API's words what is missing; the controller
//! looks again when something appears that could change the answer. Values are frozen the first time an Instance is
//! accepted: later only its own sizes, tags and added disks count.

use std::collections::BTreeMap;
use std::sync::Arc;

use virtshell_crds::condition::{self, ACCEPTED};
use virtshell_crds::instance::{DiskBus, InstanceSpec, Resolved, ResolvedImage};
use virtshell_crds::resolve::{self, DEFAULT_ENVIRONMENT, NamedImage, ResolveError};
use virtshell_crds::{Driver, Environment, Image, Instance, Launch, Provisioner, Section, launch};

use super::cache::Cached;
use super::depends::Flaw;
use super::stored::StoredFiles;

/// Longest wire name, in characters.
const LONGEST_NAME: usize = 255;

/// What an Instance refers to, as found; absent = there is none of that name.
#[derive(Clone, Debug, Default)]
pub struct References {
    /// The Environment.
    pub environment: Option<Arc<Environment>>,
    /// The Section that the Environment names.
    pub section: Option<Arc<Section>>,
    /// The Provisioner.
    pub provisioner: Option<Arc<Provisioner>>,
    /// What is wrong with the provisioner's dependencies.
    pub flaw: Option<Flaw>,
    /// The Image: the Instance's own, else its provisioner's.
    pub image: Option<Arc<Image>>,
    /// Images of additional disks, by disk name.
    pub disk_images: BTreeMap<String, Arc<Image>>,
    /// The launch parent that made it.
    pub parent: Option<Arc<Instance>>,
    /// The Instance that it is to be a clone of.
    pub source: Option<Arc<Instance>>,
    /// The stored files that it and its images name by URL.
    pub stored: StoredFiles,
    /// Every Instance of the same wire name in the namespace, this one among them.
    pub namesakes: Vec<Arc<Instance>>,
}

/// An Instance that makes sense.
#[derive(Clone, Debug, PartialEq)]
pub struct Acceptance {
    /// Its values.
    pub resolved: Resolved,
    /// Its effective tags.
    pub tags: Vec<String>,
}

/// Why an Instance is not acted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One word for the condition.
    pub reason: &'static str,
    /// The REST API's words.
    pub message: String,
}

impl Refusal {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    fn not_found(reason: &'static str, word: &str, name: &str) -> Self {
        Self::new(reason, format!("{word} {name} not found"))
    }
}

impl From<ResolveError> for Refusal {
    fn from(error: ResolveError) -> Self {
        let reason = match &error {
            ResolveError::NoImage => "NoImage",
            ResolveError::UnsupportedDriver(_) => "UnsupportedDriver",
            ResolveError::ImageDoesNotFit { .. } => "ImageDoesNotFit",
            ResolveError::ImageWithoutSource { .. } => "ImageWithoutSource",
        };
        Self::new(reason, error.to_string())
    }
}

impl From<Flaw> for Refusal {
    fn from(flaw: Flaw) -> Self {
        match flaw {
            Flaw::Missing(name) => Self::not_found("ProvisionerNotFound", "provisioner", &name),
            Flaw::Cycle(path) => {
                let name = path.first().map(String::as_str).unwrap_or_default();
                let message = format!("provisioner {name} depends on itself: {}", path.join(" -> "));
                Self::new("DependencyCycle", message)
            }
        }
    }
}

/// The name of the Environment that an Instance asks for.
#[must_use]
pub fn environment_name(spec: &InstanceSpec) -> &str {
    spec.environment.as_deref().unwrap_or(DEFAULT_ENVIRONMENT)
}

/// Whether the Instance makes sense, and its values if it does.
pub fn accept(instance: &Instance, refs: &References) -> Result<Acceptance, Refusal> {
    keeps_its_name(instance, &refs.namesakes)?;
    match frozen(instance) {
        Some(values) => edited(instance, values, refs),
        None => created(instance, refs),
    }
}

/// The values an Instance was created with, once they are frozen.
#[must_use]
pub fn frozen(instance: &Instance) -> Option<&Resolved> {
    instance.status.as_ref().and_then(|s| s.resolved.as_ref())
}

fn created(instance: &Instance, refs: &References) -> Result<Acceptance, Refusal> {
    let spec = &instance.spec;
    if let Some(parent) = &refs.parent
        && let Some(values) = frozen(parent)
    {
        return launched(spec, parent, values);
    }
    let name = environment_name(spec);
    let environment = refs
        .environment
        .as_deref()
        .ok_or_else(|| Refusal::not_found("EnvironmentNotFound", "enviroment", name))?;
    if environment.metadata.deletion_timestamp.is_some() {
        // It goes when its last Instance has gone: another one would keep it.
        let message = format!("enviroment {name} is being deleted");
        return Err(Refusal::new("EnvironmentDeleting", message));
    }
    may_use_section(instance, environment, refs.section.as_deref())?;
    let provisioner = match (&spec.provisioner, refs.provisioner.as_deref()) {
        (Some(name), None) => return Err(Refusal::not_found("ProvisionerNotFound", "provisioner", name)),
        (_, found) => found.map(|p| &p.spec),
    };
    if let Some(flaw) = &refs.flaw {
        return Err(Refusal::from(flaw.clone()));
    }
    let image = match (resolve::image_name(spec, provisioner), refs.image.as_deref()) {
        (Some(name), None) => return Err(Refusal::not_found("ImageNotFound", "image", name)),
        (_, found) => found.map(named),
    };
    let disk_images = disk_images(spec, refs, |_| true)?;
    let mut resolved = resolve::resolve(spec, provisioner, image, &disk_images)?;
    if let (Some(image), Some(of)) = (&mut resolved.image, &refs.image) {
        refs.stored.freeze(image, of.spec.owner.as_deref())?;
    }
    freeze_disks(&mut resolved.disk_images, refs)?;
    if let Some(from) = &spec.clone_from {
        as_its_source(&mut resolved, spec, &from.name, refs.source.as_deref())?;
    }
    environment.wire_name().clone_into(&mut resolved.environment);
    resolved.vars_from = vars_from(spec, &resolved, refs)?;
    supported(spec, &resolved)?;
    room_for_names(instance, &resolved)?;
    Ok(Acceptance {
        resolved,
        tags: resolve::tags(spec, provisioner),
    })
}

/// The stored files that images of disks are taken from.
fn freeze_disks(images: &mut BTreeMap<String, ResolvedImage>, refs: &References) -> Result<(), Refusal> {
    for (disk, image) in images {
        let of = refs.disk_images.get(disk);
        refs.stored
            .freeze(image, of.and_then(|image| image.spec.owner.as_deref()))?;
    }
    Ok(())
}

/// The stored file with the variables for the builder; empty without one.
fn vars_from(spec: &InstanceSpec, resolved: &Resolved, refs: &References) -> Result<String, Refusal> {
    let Some(url) = spec.vars_from.as_deref().filter(|_| !resolved.builder.is_empty()) else {
        return Ok(String::new());
    };
    let file = refs.stored.locate(url, spec.owner.as_deref())?;
    file.map(|file| file.to_string()).ok_or_else(|| {
        let message = format!("Field varsFrom: {url} is not the URL of a file of this gateway");
        Refusal::new("UrlRefused", message)
    })
}

/// The children of a launch have the values of their parent, whatever has become of what it refers to.
fn launched(spec: &InstanceSpec, parent: &Instance, values: &Resolved) -> Result<Acceptance, Refusal> {
    let inherited = Resolved {
        launch: Some(Launch::default()),
        ..values.clone()
    };
    let resolved = resolve::refreeze(&inherited, spec, BTreeMap::new());
    supported(spec, &resolved)?;
    let tags = parent.status.as_ref().map(|s| s.tags.clone());
    Ok(Acceptance {
        resolved,
        tags: tags.unwrap_or_default(),
    })
}

/// The children of a launch have longer names.
fn room_for_names(instance: &Instance, resolved: &Resolved) -> Result<(), Refusal> {
    let Some(launch) = resolved.launch.filter(|launch| launch.max > 1) else {
        return Ok(());
    };
    let longest = launch::child_name(instance.wire_name(), launch.max);
    if longest.chars().count() <= LONGEST_NAME {
        return Ok(());
    }
    let message = format!("Field name: {longest} of the launch has more than {LONGEST_NAME} characters");
    Err(Refusal::new("NameTooLong", message))
}

/// A clone runs as its source does, from what that booted from: its disks fit nothing else.
fn as_its_source(
    resolved: &mut Resolved,
    spec: &InstanceSpec,
    name: &str,
    source: Option<&Instance>,
) -> Result<(), Refusal> {
    let source = source.ok_or_else(|| Refusal::not_found("SourceNotFound", "instance", name))?;
    let Some(values) = frozen(source) else {
        let message = format!("instance {name} has not been accepted itself yet");
        return Err(Refusal::new("SourceNotReady", message));
    };
    if spec.driver.is_some() && resolved.driver != values.driver {
        let theirs = values.driver.map_or("none", Driver::as_str);
        let message = format!("Field driver: instance {name} has driver {theirs}, and so has its clone");
        return Err(Refusal::new("SourceDoesNotFit", message));
    }
    resolved.driver = values.driver;
    if resolved.image.is_none() {
        resolved.image.clone_from(&values.image);
    }
    resolved.disk_mib = resolved.disk_mib.max(values.disk_mib);
    Ok(())
}

fn edited(instance: &Instance, values: &Resolved, refs: &References) -> Result<Acceptance, Refusal> {
    let spec = &instance.spec;
    let driver = values.driver.unwrap_or(Driver::Kvm);
    let mut added = disk_images(spec, refs, |disk| !values.disk_images.contains_key(disk))?
        .into_iter()
        .map(|(disk, image)| Ok((disk, resolve::resolved_image(image, driver)?)))
        .collect::<Result<_, ResolveError>>()?;
    freeze_disks(&mut added, refs)?;
    let mut resolved = resolve::refreeze(values, spec, added);
    // What it was accepted with may have gone since.
    let stays = |url: &str| refs.stored.is_still(url, &values.vars_from);
    match vars_from(spec, values, refs) {
        Ok(file) => resolved.vars_from = file,
        Err(_) if spec.vars_from.as_deref().is_some_and(stays) => {}
        Err(refusal) => return Err(refusal),
    }
    supported(spec, &resolved)?;
    Ok(Acceptance {
        resolved,
        tags: edited_tags(instance, refs),
    })
}

/// Own tags as they are now, and those that came from the provisioner when the Instance was created.
fn edited_tags(instance: &Instance, refs: &References) -> Vec<String> {
    let present = instance
        .status
        .as_ref()
        .map(|s| s.tags.as_slice())
        .unwrap_or_default();
    if is_accepted_now(instance) {
        return present.to_vec();
    }
    let mut tags = resolve::tags(&instance.spec, None);
    for tag in present {
        // Without the provisioner it cannot be told whose tag it was: keep it.
        let inherited = refs
            .provisioner
            .as_ref()
            .is_none_or(|p| p.spec.tags.iter().any(|t| t.0 == *tag));
        if inherited && !tags.contains(tag) {
            tags.push(tag.clone());
        }
    }
    tags
}

fn disk_images<'a>(
    spec: &InstanceSpec,
    refs: &'a References,
    wanted: impl Fn(&str) -> bool,
) -> Result<BTreeMap<String, NamedImage<'a>>, Refusal> {
    let mut images = BTreeMap::new();
    for disk in spec.disks.iter().filter(|d| wanted(&d.name)) {
        let Some(name) = &disk.image else { continue };
        let image = refs
            .disk_images
            .get(&disk.name)
            .ok_or_else(|| Refusal::not_found("ImageNotFound", "image", name))?;
        images.insert(disk.name.clone(), named(image));
    }
    Ok(images)
}

fn named(image: &Image) -> NamedImage<'_> {
    NamedImage {
        name: image.wire_name(),
        spec: &image.spec,
    }
}

fn may_use_section(
    instance: &Instance,
    environment: &Environment,
    section: Option<&Section>,
) -> Result<(), Refusal> {
    let Some(name) = &environment.spec.section else {
        return Ok(());
    };
    let section = section.ok_or_else(|| Refusal::not_found("SectionNotFound", "section", name))?;
    let namespace = instance.metadata.namespace.as_deref().unwrap_or_default();
    let allowed = &section.spec.namespaces;
    if allowed.is_empty() || allowed.iter().any(|n| n == namespace) {
        Ok(())
    } else {
        let message = format!("section {name} is not for namespace {namespace}");
        Err(Refusal::new("SectionNotAllowed", message))
    }
}

/// What the schema accepts and nobody acts on is refused rather than ignored.
fn supported(spec: &InstanceSpec, resolved: &Resolved) -> Result<(), Refusal> {
    if resolved.driver == Some(Driver::Lxc) {
        let disk = spec.disks.iter().find(|d| d.bus != DiskBus::Virtio);
        if let Some(disk) = disk {
            let message = format!(
                "Field disks: driver lxc has no bus {} for disk {}",
                disk.bus.as_str(),
                disk.name
            );
            return Err(Refusal::new("NotSupported", message));
        }
        if spec.consoles.as_ref().is_some_and(|c| c.vnc.is_some()) {
            let message = "Field consoles: driver lxc has no vnc";
            return Err(Refusal::new("NotSupported", message));
        }
    }
    Ok(())
}

/// Of several Instances with one wire name, one keeps it: who was accepted with it, else the oldest, else the first by
/// object name.
fn keeps_its_name(instance: &Instance, namesakes: &[Arc<Instance>]) -> Result<(), Refusal> {
    let claim = |i: &Instance| {
        let order = if is_accepted_now(i) {
            0
        } else if accepted(i).is_some() {
            1
        } else {
            2
        };
        (
            order,
            i.metadata.creation_timestamp.clone(),
            i.metadata.name.clone(),
        )
    };
    let mine = claim(instance);
    let others = namesakes
        .iter()
        .filter(|other| other.metadata.uid != instance.metadata.uid);
    match others
        .filter(|other| claim(other) < mine)
        .min_by_key(|other| claim(other))
    {
        None => Ok(()),
        Some(holder) => Err(Refusal::new(
            "NameConflict",
            format!(
                "instance {} already exists (object {})",
                instance.wire_name(),
                holder.metadata.name.as_deref().unwrap_or_default()
            ),
        )),
    }
}

/// The generation at which the Instance was last found to make sense, if that was the last word.
fn accepted(instance: &Instance) -> Option<i64> {
    let conditions = &instance.status.as_ref()?.conditions;
    let condition = condition::find(conditions, ACCEPTED)?;
    condition::is_true(conditions, ACCEPTED).then_some(condition.observed_generation?)
}

fn is_accepted_now(instance: &Instance) -> bool {
    accepted(instance).is_some_and(|generation| Some(generation) == instance.metadata.generation)
}

#[cfg(test)]
mod frozen_tests;
#[cfg(test)]
mod tests;
