//! Stored files: what they are called, who may have them, where their content is.

use std::sync::Arc;

use virtshell_crds::File;

use super::{Field, Kind, Service, ServiceError, is_uuid};
use crate::store::{Cached, by};

impl Service {
    /// The file that a URI names, by uuid, `folder/name` or a name that only one folder has.
    pub fn find_file(&self, id: &str) -> Result<Arc<File>, ServiceError> {
        let found = self.look_up_file(id)?;
        found.ok_or_else(|| ServiceError::NotFound {
            kind: Kind::File,
            name: id.to_owned(),
        })
    }

    /// The file that a value of the input names, in the same ways.
    pub(super) fn referenced_file(&self, id: &str) -> Result<Arc<File>, ServiceError> {
        let found = self.look_up_file(id)?;
        found.ok_or_else(|| ServiceError::UnknownReference {
            kind: Kind::File,
            name: id.to_owned(),
        })
    }

    fn look_up_file(&self, id: &str) -> Result<Option<Arc<File>>, ServiceError> {
        let files = &self.store().files;
        if is_uuid(id) {
            return Ok(files.by_uid(id));
        }
        if let Some(file) = files.by_wire_name(id) {
            return Ok(Some(file));
        }
        match files.by_key(by::FILE_NAME, id).as_slice() {
            [] => Ok(None),
            [file] => Ok(Some(file.clone())),
            several => {
                let mut names: Vec<String> = several.iter().map(|f| f.full_name().into_owned()).collect();
                names.sort();
                Err(ServiceError::invalid(
                    Field::Name,
                    format!("{id} is in several folders: say one of {}", names.join(", ")),
                ))
            }
        }
    }
}
