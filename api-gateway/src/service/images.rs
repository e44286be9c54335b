//! What instances boot from.

use std::sync::Arc;

use virtshell_crds::{Image, ImageSpec, ImageType};

use super::objects::{Ownership, checked_permissions, keeps_name, put, set};
use super::{Caller, Field, Service, ServiceError};
use crate::store::Cached;

/// Values of an image; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageChange {
    /// Must be the image's own.
    pub name: Option<String>,
    /// What it is.
    pub image_type: Option<ImageType>,
    /// Where disk, ISO or archive are.
    pub download_url: Option<String>,
    /// Root file system archive.
    pub container_resource: Option<String>,
    /// Answer file for an installer.
    pub preseed_url: Option<String>,
    /// Time zone of guests.
    pub timezone: Option<String>,
    /// Public SSH key for root.
    pub ssh_key: Option<String>,
    /// Free text.
    pub details: Option<String>,
    /// Operating system, for people.
    pub os: Option<String>,
    /// Release, for people.
    pub release: Option<String>,
    /// Version, for people.
    pub version: Option<String>,
    /// Variant, for people.
    pub variant: Option<String>,
    /// Architecture, for people.
    pub arch: Option<String>,
    /// Permission string.
    pub permissions: Option<String>,
    /// Owner and group.
    pub ownership: Ownership,
}

impl ImageChange {
    fn urls(&self) -> impl Iterator<Item = &String> {
        let urls = [&self.download_url, &self.container_resource, &self.preseed_url];
        urls.into_iter().flatten()
    }

    fn apply(self, spec: &mut ImageSpec) {
        put(&mut spec.type_, self.image_type);
        set(&mut spec.download_url, self.download_url);
        set(&mut spec.container_resource, self.container_resource);
        set(&mut spec.preseed_url, self.preseed_url);
        set(&mut spec.timezone, self.timezone);
        set(&mut spec.ssh_key, self.ssh_key);
        set(&mut spec.details, self.details);
        set(&mut spec.os, self.os);
        set(&mut spec.release, self.release);
        set(&mut spec.version, self.version);
        set(&mut spec.variant, self.variant);
        set(&mut spec.arch, self.arch);
        set(
            &mut spec.permissions,
            self.permissions.map(virtshell_crds::instance::Permissions),
        );
        self.ownership.apply(&mut spec.owner, &mut spec.group);
    }
}

impl Service {
    /// Registers an image; hosts fetch its content on first use.
    pub async fn create_image(
        &self,
        caller: &Caller,
        name: &str,
        mut change: ImageChange,
    ) -> Result<Arc<Image>, ServiceError> {
        self.check_new_name::<Image>(name)?;
        let type_ = change.image_type.ok_or(ServiceError::Missing(Field::Type))?;
        checked_permissions(change.permissions.as_ref())?;
        self.permit_urls(caller, change.urls())?;
        let (owner, group) = self.ownership_of_new(caller, &change.ownership)?;
        change.ownership = Ownership { owner, group };
        self.create(caller, name, |metadata| {
            let mut image = Image::new(name, blank(type_));
            image.metadata = metadata;
            image.spec.display_name = Some(name.to_owned());
            change.clone().apply(&mut image.spec);
            image
        })
        .await
    }

    /// Changes an image; instances keep what they were created with.
    pub async fn update_image(
        &self,
        caller: &Caller,
        image: &Arc<Image>,
        mut change: ImageChange,
    ) -> Result<(), ServiceError> {
        keeps_name(change.name.as_ref(), image.wire_name())?;
        checked_permissions(change.permissions.as_ref())?;
        self.permit_urls(caller, change.urls())?;
        change.ownership = self.ownership_of_changed(caller, image.as_ref(), &change.ownership)?;
        self.change(caller, image, |image| {
            change.clone().apply(&mut image.spec);
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// Removes an image; instances keep their copy.
    pub async fn delete_image(&self, image: &Image) -> Result<(), ServiceError> {
        self.remove(image).await
    }
}

fn blank(type_: ImageType) -> ImageSpec {
    ImageSpec {
        display_name: None,
        type_,
        download_url: None,
        container_resource: None,
        sha256: None,
        boot: None,
        preseed_url: None,
        timezone: None,
        ssh_key: None,
        details: None,
        os: None,
        release: None,
        version: None,
        variant: None,
        arch: None,
        permissions: None,
        owner: None,
        group: None,
    }
}
