//! A small XML tree: written for libvirt, and read back.
//!
//! Names are local names: libvirt gives a prefix to elements of another namespace, and what is read here is asked for
//! by namespace already. Text between elements is dropped, text in leaves kept.

use quick_xml::Reader;
use quick_xml::escape::{escape, unescape};
use quick_xml::events::{BytesStart, Event};

/// An element with attributes, and either text or children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Local name.
    pub name: String,
    attributes: Vec<(String, String)>,
    text: String,
    /// Children, in order.
    pub children: Vec<Element>,
}

/// Why a document could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the XML that was expected: {0}")]
pub struct XmlError(pub String);

/// An element without attributes and content.
#[must_use]
pub fn element(name: &str) -> Element {
    Element {
        name: name.to_owned(),
        ..Element::default()
    }
}

impl Element {
    /// With one more attribute.
    #[must_use]
    pub fn attr(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.attributes.push((name.to_owned(), value.to_string()));
        self
    }

    /// With text as its content.
    #[must_use]
    pub fn with_text(mut self, text: impl std::fmt::Display) -> Self {
        self.text = text.to_string();
        self
    }

    /// With one more child.
    #[must_use]
    pub fn child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    /// With more children.
    #[must_use]
    pub fn with_children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    /// The value of an attribute.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether it declares this namespace.
    #[must_use]
    pub fn declares(&self, namespace: &str) -> bool {
        self.attributes.iter().any(|(_, value)| value == namespace)
    }

    /// With an attribute set, added when it is not there.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.attributes.retain(|(n, _)| n != name);
        self.attr(name, value)
    }

    /// The text of a leaf.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first descendant along a path of names.
    #[must_use]
    pub fn find<'a>(&'a self, path: &[&str]) -> Option<&'a Element> {
        match path {
            [] => Some(self),
            [first, rest @ ..] => {
                let mut named = self.children.iter().filter(|child| child.name == *first);
                named.find_map(|child| child.find(rest))
            }
        }
    }

    /// Children of that name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Element> {
        self.children.iter().filter(move |child| child.name == name)
    }

    /// As a document, two spaces for each level.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        self.render_at(0, &mut out);
        out
    }

    fn render_at(&self, depth: usize, out: &mut String) {
        let indent = "  ".repeat(depth);
        out.push_str(&indent);
        out.push('<');
        out.push_str(&self.name);
        for (name, value) in &self.attributes {
            out.extend([" ", name, "='", &escape(value.as_str()), "'"]);
        }
        if self.children.is_empty() && self.text.is_empty() {
            out.push_str("/>\n");
        } else if self.children.is_empty() {
            out.extend([">", &escape(self.text.as_str()), "</", &self.name, ">\n"]);
        } else {
            out.push_str(">\n");
            for child in &self.children {
                child.render_at(depth + 1, out);
            }
            out.extend([&indent, "</", &self.name, ">\n"]);
        }
    }
}

/// Reads a document.
pub fn parse(text: &str) -> Result<Element, XmlError> {
    let wrong = |what: &dyn std::fmt::Display| XmlError(what.to_string());
    let mut reader = Reader::from_str(text);
    let mut open: Vec<Element> = vec![Element::default()];
    loop {
        match reader.read_event().map_err(|e| wrong(&e))? {
            Event::Start(start) => open.push(read_start(&start)?),
            Event::Empty(start) => {
                let leaf = read_start(&start)?;
                top(&mut open)?.children.push(leaf);
            }
            Event::End(_) => {
                let mut done = open.pop().ok_or_else(|| wrong(&"an end without a start"))?;
                if !done.children.is_empty() {
                    done.text.clear();
                }
                top(&mut open)?.children.push(done);
            }
            Event::Text(bytes) => {
                top(&mut open)?.text.push_str(&bytes);
            }
            Event::GeneralRef(reference) => {
                let plain = unescape(&format!("&{};", &*reference))
                    .map_err(|e| wrong(&e))?
                    .into_owned();
                top(&mut open)?.text.push_str(&plain);
            }
            Event::CData(bytes) => {
                top(&mut open)?.text.push_str(&bytes);
            }
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
            Event::Eof => break,
        }
    }
    match open.as_mut_slice() {
        [document] if document.children.len() == 1 => Ok(document.children.remove(0)),
        _ => Err(wrong(&"not one closed element")),
    }
}

fn top(open: &mut [Element]) -> Result<&mut Element, XmlError> {
    open.last_mut()
        .ok_or_else(|| XmlError("an end without a start".to_owned()))
}

fn read_start(start: &BytesStart<'_>) -> Result<Element, XmlError> {
    let wrong = |e: &dyn std::fmt::Display| XmlError(e.to_string());
    let mut read = element(start.local_name().as_ref());
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|e| wrong(&e))?;
        let value = unescape(&attribute.value).map_err(|e| wrong(&e))?.into_owned();
        let name = attribute.key.local_name().as_ref().to_owned();
        read.attributes.push((name, value));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let document = element("domain")
            .attr("type", "kvm")
            .child(element("name").with_text("a<b & 'c' \"d\""))
            .child(element("empty").attr("path", "x'y\"<&>"))
            .child(
                element("devices")
                    .child(element("disk"))
                    .child(element("disk").attr("n", 2)),
            );
        assert_eq!(parse(&document.render()).unwrap(), document);
        assert_eq!(document.find(&["devices", "disk"]).unwrap().attribute("n"), None);
        assert_eq!(
            parse("<a:b xmlns:a='u'><a:c>1</a:c></a:b>")
                .unwrap()
                .find(&["c"])
                .unwrap()
                .text(),
            "1"
        );
        for broken in ["", "text", "<a>", "<a></b>", "<a/><b/>"] {
            assert!(parse(broken).is_err(), "{broken}");
        }
    }
}
