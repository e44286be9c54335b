//! What a file is, by its content: never by its name, and never by what a user says.

use serde::{Deserialize, Serialize};

/// Bytes at the start of a file that [`detect`] wants to see: enough for ISO 9660's descriptor.
pub(super) const HEAD_BYTES: usize = 0x8800;

/// What content is.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// QEMU's copy-on-write format.
    Qcow2,
    /// The bytes of a disk; also a kernel or anything else that has no marks.
    Raw,
    /// An ISO 9660 or UDF medium.
    Iso,
    /// A tar archive, not compressed.
    Tar,
    /// Compressed by gzip; a tar archive inside is what we hope for.
    Gzip,
    /// Compressed by xz.
    Xz,
    /// Compressed by zstd.
    Zstd,
}

impl ImageFormat {
    /// Whether it is, or may hold, a root file system archive.
    #[must_use]
    pub const fn is_archive(self) -> bool {
        match self {
            Self::Tar | Self::Gzip | Self::Xz | Self::Zstd => true,
            Self::Qcow2 | Self::Raw | Self::Iso => false,
        }
    }

    /// Words for a message.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Qcow2 => "a qcow2 disk",
            Self::Raw => "a raw disk",
            Self::Iso => "an ISO medium",
            Self::Tar => "a tar archive",
            Self::Gzip => "gzip-compressed",
            Self::Xz => "xz-compressed",
            Self::Zstd => "zstd-compressed",
        }
    }
}

/// What the first [`HEAD_BYTES`] of a file (fewer when it is shorter) say, or why it is refused.
pub(super) fn detect(head: &[u8]) -> Result<ImageFormat, String> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    if head.is_empty() {
        return Err("it is empty".to_owned());
    }
    for (magic, name) in [
        (&b"KDMV"[..], "VMDK"),
        (b"# Disk DescriptorFile", "VMDK"),
        (b"vhdxfile", "VHDX"),
        (b"conectix", "VHD"),
        (b"<<< Oracle VM VirtualBox Disk Image", "VDI"),
        (b"<<< QEMU VM Virtual Disk Image", "VDI"),
        (b"QED\0", "QED"),
    ] {
        if at(0, magic) {
            return Err(format!(
                "it is a {name} disk; convert it with: qemu-img convert -O qcow2"
            ));
        }
    }
    for (magic, name) in [
        (&b"BZh"[..], "bzip2"),
        (b"PK\x03\x04", "zip"),
        (b"7z\xbc\xaf", "7-Zip"),
    ] {
        if at(0, magic) {
            return Err(format!(
                "it is compressed by {name}; use gzip, xz or zstd for archives, nothing for disks"
            ));
        }
    }
    let start = String::from_utf8_lossy(&head[..head.len().min(64)])
        .trim_start()
        .to_ascii_lowercase();
    if start.starts_with("<!doctype") || start.starts_with("<html") {
        return Err("it is a web page; the URL leads to a page about the image, not to the image".to_owned());
    }
    Ok(if at(0, b"QFI\xfb") {
        ImageFormat::Qcow2
    } else if at(0, b"\x1f\x8b") {
        ImageFormat::Gzip
    } else if at(0, b"\xfd7zXZ\0") {
        ImageFormat::Xz
    } else if at(0, b"\x28\xb5\x2f\xfd") {
        ImageFormat::Zstd
    } else if at(257, b"ustar") {
        ImageFormat::Tar
    } else if at(0x8001, b"CD001") || at(0x8001, b"BEA01") {
        ImageFormat::Iso
    } else {
        ImageFormat::Raw
    })
}

/// What of a qcow2 header matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Qcow2Header {
    /// Bytes that a guest sees.
    pub virtual_bytes: u64,
    has_backing: bool,
    has_data_file: bool,
    encrypted: bool,
    /// First byte behind the tables that every image needs.
    tables_end: u64,
}

/// Bytes of a header that are read.
pub(super) const QCOW2_HEADER_BYTES: usize = 80;
/// Incompatible feature bit 2: data live in another file.
const EXTERNAL_DATA: u64 = 1 << 2;

impl Qcow2Header {
    /// Reads the fields; `None` when it is not a qcow2 header of version 2 or 3.
    pub(super) fn parse(head: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_be_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_be_bytes(head.get(at..at + 8)?.try_into().ok()?));
        if head.get(..4)? != b"QFI\xfb" {
            return None;
        }
        let version = u32_at(4)?;
        let incompatible = match version {
            2 => 0,
            3 => u64_at(72)?,
            _ => return None,
        };
        Some(Self {
            virtual_bytes: u64_at(24)?,
            has_backing: u64_at(8)? != 0,
            has_data_file: incompatible & EXTERNAL_DATA != 0,
            encrypted: u32_at(32)? != 0,
            tables_end: u64_at(40)?
                .saturating_add(u64::from(u32_at(36)?) * 8)
                .max(u64_at(48)?.saturating_add(8)),
        })
    }

    /// Why an image with this header from outside is not used.
    ///
    /// Asked before any program opens the file: such names make QEMU open other files of the host.
    pub(super) fn refusal(&self, file_bytes: u64) -> Option<&'static str> {
        if self.tables_end > file_bytes {
            Some("its qcow2 tables are missing: the file is cut short, or damaged")
        } else if self.has_backing {
            Some("its qcow2 header names a backing file; flatten it with: qemu-img convert -O qcow2")
        } else if self.has_data_file {
            Some("its qcow2 header names an external data file; flatten it with: qemu-img convert -O qcow2")
        } else if self.encrypted {
            Some("it is encrypted; decrypt it with qemu-img convert")
        } else {
            None
        }
    }
}

/// Where in a qcow2 file the name of its backing file is, and how long, by its header; `None` without one.
pub(super) fn backing_file(head: &[u8]) -> Option<(u64, usize)> {
    Qcow2Header::parse(head).filter(|header| header.has_backing)?;
    let offset = u64::from_be_bytes(head.get(8..16)?.try_into().ok()?);
    let length = u32::from_be_bytes(head.get(16..20)?.try_into().ok()?);
    Some((offset, length as usize))
}

/// The fields of `qemu-img info --output=json` that matter.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ImageInfo {
    format: String,
    virtual_size: u64,
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    format_specific: serde_json::Value,
}

impl ImageInfo {
    /// The virtual size in bytes, or why the image is refused.
    pub(super) fn accept(&self) -> Result<u64, String> {
        let data_file = self.format_specific.pointer("/data/data-file");
        if self.format != "qcow2" {
            return Err(format!("qemu-img reads it as {}", self.format));
        }
        if let Some(name) = &self.backing_filename {
            return Err(format!(
                "it has the backing file {name}; flatten it with: qemu-img convert -O qcow2"
            ));
        }
        if data_file.is_some_and(|name| !name.is_null()) {
            return Err(
                "it has an external data file; flatten it with: qemu-img convert -O qcow2".to_owned(),
            );
        }
        if self.encrypted {
            return Err("it is encrypted; decrypt it with qemu-img convert".to_owned());
        }
        Ok(self.virtual_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD_BYTES];
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
        bytes
    }

    #[test]
    fn content_decides() {
        for (bytes, expected) in [
            (head(0, b"QFI\xfb"), ImageFormat::Qcow2),
            (head(0, b"\x1f\x8b\x08"), ImageFormat::Gzip),
            (head(0, b"\xfd7zXZ\0"), ImageFormat::Xz),
            (head(0, b"\x28\xb5\x2f\xfd"), ImageFormat::Zstd),
            (head(257, b"ustar\0"), ImageFormat::Tar),
            (head(257, b"ustar  "), ImageFormat::Tar),
            (head(0x8001, b"CD001"), ImageFormat::Iso),
            (head(0x8001, b"BEA01"), ImageFormat::Iso),
            (head(510, b"\x55\xaa"), ImageFormat::Raw),
            (vec![7; 3], ImageFormat::Raw),
        ] {
            assert_eq!(detect(&bytes), Ok(expected));
        }
    }

    #[test]
    fn what_is_refused_and_its_cure() {
        for (bytes, cure) in [
            (head(0, b"KDMV"), "qemu-img convert"),
            (head(0, b"vhdxfile"), "qemu-img convert"),
            (head(0, b"BZh9"), "gzip, xz or zstd"),
            (head(0, b"\n <!DOCTYPE html>"), "web page"),
            (head(0, b"<HTML>"), "web page"),
            (Vec::new(), "empty"),
        ] {
            let why = detect(&bytes).expect_err("refused");
            assert!(why.contains(cure), "{why}");
        }
    }

    fn qcow2(version: u32, backing: u64, encryption: u32, incompatible: u64) -> Vec<u8> {
        let mut bytes = head(0, b"QFI\xfb");
        bytes[4..8].copy_from_slice(&version.to_be_bytes());
        bytes[8..16].copy_from_slice(&backing.to_be_bytes());
        bytes[24..32].copy_from_slice(&(10_u64 << 30).to_be_bytes());
        bytes[32..36].copy_from_slice(&encryption.to_be_bytes());
        bytes[72..80].copy_from_slice(&incompatible.to_be_bytes());
        bytes
    }

    fn with_table_at(offset: u64) -> Vec<u8> {
        let mut bytes = qcow2(3, 0, 0, 0);
        bytes[40..48].copy_from_slice(&offset.to_be_bytes());
        bytes
    }

    #[test]
    fn qcow2_headers() {
        for (rule, bytes, refused) in [
            ("version 3", qcow2(3, 0, 0, 0), None),
            ("version 2 has no features", qcow2(2, 0, 0, EXTERNAL_DATA), None),
            ("dirty is QEMU's matter", qcow2(3, 0, 0, 1), None),
            ("backing file", qcow2(3, 512, 0, 0), Some("backing file")),
            (
                "backing file, version 2",
                qcow2(2, 512, 0, 0),
                Some("backing file"),
            ),
            (
                "external data",
                qcow2(3, 0, 0, EXTERNAL_DATA),
                Some("external data file"),
            ),
            ("encrypted", qcow2(3, 0, 2, 0), Some("encrypted")),
            ("cut", with_table_at(2 << 20), Some("cut short")),
            ("absurd", with_table_at(u64::MAX), Some("cut short")),
        ] {
            let header = Qcow2Header::parse(&bytes).expect(rule);
            assert_eq!(header.virtual_bytes, 10 << 30, "{rule}");
            match refused {
                None => assert_eq!(header.refusal(1 << 20), None, "{rule}"),
                Some(word) => assert!(
                    header.refusal(1 << 20).is_some_and(|r| r.contains(word)),
                    "{rule}"
                ),
            }
        }
        assert_eq!(Qcow2Header::parse(&qcow2(4, 0, 0, 0)), None);
        assert_eq!(Qcow2Header::parse(b"QFI\xfb"), None);
        assert_eq!(Qcow2Header::parse(&head(0, b"raw")), None);
    }

    #[test]
    fn qemu_img_answers() {
        let accept = |text: &str| serde_json::from_str::<ImageInfo>(text).unwrap().accept();
        assert_eq!(
            accept(r#"{"format":"qcow2","virtual-size":1024,"format-specific":{"type":"qcow2","data":{}}}"#),
            Ok(1024)
        );
        for refused in [
            r#"{"format":"raw","virtual-size":1024}"#,
            r#"{"format":"qcow2","virtual-size":1024,"backing-filename":"/etc/shadow"}"#,
            r#"{"format":"qcow2","virtual-size":1024,"format-specific":{"data":{"data-file":"/etc/shadow"}}}"#,
            r#"{"format":"qcow2","virtual-size":1024,"encrypted":true}"#,
        ] {
            accept(refused).expect_err(refused);
        }
    }
}
