//! What VirtShell keeps in a domain's metadata: whose it is, and what has been done to it.
//!
//! A domain is ours only by this element. libvirt keeps it once for the configuration and once for the running domain;
//! defining over a running domain changes the former alone, so `applied` of the two tells what waits for a restart.

use std::collections::BTreeMap;

use virtshell_crds::DOMAIN_METADATA_NAMESPACE;

use super::xml::{Element, XmlError, element, parse};

/// Prefix of our namespace in domain XML.
pub const PREFIX: &str = "virtshell";

/// The values of the spec that a definition carries, by the field's name in the spec.
pub type Applied = BTreeMap<String, String>;

/// Our metadata element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// uid of the Instance: the identity.
    pub uid: String,
    /// Its namespace, for people.
    pub namespace: String,
    /// Its name, for people.
    pub name: String,
    /// The restart that was done last.
    pub restart_token: String,
    /// Whether the builder has run to its end.
    pub provisioned: bool,
    /// What the definition carries.
    pub applied: Applied,
}

impl Metadata {
    /// As the element that stands in `<metadata>`.
    #[must_use]
    pub fn to_element(&self) -> Element {
        self.tree(&format!("{PREFIX}:"))
            .attr(&format!("xmlns:{PREFIX}"), DOMAIN_METADATA_NAMESPACE)
    }

    /// As text for libvirt's metadata call, which adds prefix and namespace itself.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.tree("").render()
    }

    fn tree(&self, prefix: &str) -> Element {
        let named = |name: &str| element(&format!("{prefix}{name}"));
        named("instance")
            .attr("uid", &self.uid)
            .attr("namespace", &self.namespace)
            .attr("name", &self.name)
            .attr("provisioned", self.provisioned)
            .attr("restartToken", &self.restart_token)
            .with_children(
                self.applied
                    .iter()
                    .map(|(field, value)| named("applied").attr("field", field).attr("value", value)),
            )
    }

    /// Reads the element, as libvirt's metadata call returns it.
    pub fn parse(text: &str) -> Result<Self, XmlError> {
        Self::read(&parse(text)?)
    }

    /// Reads it from a domain's XML; `None` without one of ours.
    #[must_use]
    pub fn of_domain(domain: &Element) -> Option<Self> {
        // The prefix is ours to choose, and another's to take: the namespace decides.
        let ours = |element: &&Element| element.declares(DOMAIN_METADATA_NAMESPACE);
        let element = domain.find(&["metadata"])?.children.iter().find(ours)?;
        Self::read(element).ok()
    }

    fn read(read: &Element) -> Result<Self, XmlError> {
        let word = |name: &str| read.attribute(name).unwrap_or_default().to_owned();
        let uid = word("uid");
        if read.name != "instance" || uid.is_empty() {
            return Err(XmlError("metadata without an instance's uid".to_owned()));
        }
        Ok(Self {
            uid,
            namespace: word("namespace"),
            name: word("name"),
            restart_token: word("restartToken"),
            provisioned: word("provisioned") == "true",
            applied: read
                .named("applied")
                .filter_map(|a| Some((a.attribute("field")?.to_owned(), a.attribute("value")?.to_owned())))
                .collect(),
        })
    }
}

/// The fields in which `have` differs from `want`, in order.
#[must_use]
pub fn differing(have: &Applied, want: &Applied) -> Vec<String> {
    let mut fields: Vec<String> = want
        .iter()
        .filter(|(field, value)| have.get(*field) != Some(value))
        .map(|(field, _)| field.clone())
        .chain(have.keys().filter(|field| !want.contains_key(*field)).cloned())
        .collect();
    fields.sort();
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let metadata = Metadata {
            uid: "8f0c21d4-1111-2222-3333-444444444444".into(),
            namespace: "virtshell".into(),
            name: "web".into(),
            restart_token: "<now> & 'then'".into(),
            provisioned: true,
            applied: [
                ("cpus".to_owned(), "2".to_owned()),
                ("disks".to_owned(), "a=1'".to_owned()),
            ]
            .into(),
        };
        assert_eq!(Metadata::parse(&metadata.to_text()).unwrap(), metadata);
        assert_eq!(
            Metadata::parse(&metadata.to_element().render()).unwrap(),
            metadata
        );
        assert!(Metadata::parse("<instance name='x'/>").is_err());
        assert!(Metadata::parse("<other uid='x'/>").is_err());
    }

    #[test]
    fn differences_name_fields_on_either_side() {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let have: Applied = map(&[("cpus", "1"), ("memoryMiB", "64"), ("vnc", "x")]);
        let want: Applied = map(&[("cpus", "2"), ("memoryMiB", "64"), ("disks", "d")]);
        assert_eq!(differing(&have, &want), ["cpus", "disks", "vnc"]);
        assert!(differing(&want, &want).is_empty());
    }
}
