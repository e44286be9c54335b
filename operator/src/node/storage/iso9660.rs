//! Writes a small ISO 9660 file system: a few files in the root directory, with Rock Ridge and Joliet names.
//!
//! Pure, and the same input gives the same bytes, so an unchanged seed is recognised by comparing. ECMA-119 is the
//! format; RRIP and the Joliet specification add names such as `user-data`, which plain ISO 9660 cannot say.
//!
//! ```text
//! sector 16 primary volume descriptor   19, 20 its path table (LE, BE)   23 its root directory
//!        17 Joliet volume descriptor    21, 22 its path table (LE, BE)   24 its root directory
//!        18 terminator                                                   25.. file contents
//! ```

const SECTOR: usize = 2048;
const PATH_TABLE_BYTES: u32 = 10;
const FIRST_CONTENT_SECTOR: u32 = 25;
/// Zeros at the end, as mkisofs has them: busybox's findfs gives up on a device that ends before the places where other
/// file systems have their superblocks (64 KiB and more).
const PADDING_SECTORS: u32 = 150;
/// 2000-01-01: the time of files says nothing here, and must not vary.
const RECORD_DATE: [u8; 7] = [100, 1, 1, 0, 0, 0, 0];
const VOLUME_DATE: &[u8; 17] = b"2000010100000000\0";

/// A file of the image.
#[derive(Clone, Copy, Debug)]
pub(super) struct IsoFile<'a> {
    /// Letters, digits and `-`, at most 30.
    pub name: &'a str,
    pub content: &'a [u8],
}

/// One of the two views of the same files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    RockRidge,
    Joliet,
}

impl View {
    const fn path_table_sector(self) -> u32 {
        match self {
            Self::RockRidge => 19,
            Self::Joliet => 21,
        }
    }

    const fn root_sector(self) -> u32 {
        match self {
            Self::RockRidge => 23,
            Self::Joliet => 24,
        }
    }

    /// Text as this view stores it in a descriptor field of `width` bytes.
    fn field(self, text: &str, width: usize) -> Vec<u8> {
        match self {
            Self::RockRidge => {
                let mut bytes = text.as_bytes().to_vec();
                bytes.resize(width, b' ');
                bytes
            }
            Self::Joliet => {
                let mut bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
                while bytes.len() + 1 < width {
                    bytes.extend([0, b' ']);
                }
                bytes.resize(width, 0);
                bytes
            }
        }
    }

    fn file_identifier(self, name: &str) -> Vec<u8> {
        match self {
            Self::RockRidge => {
                let plain: String = name
                    .chars()
                    .map(|c| if c == '-' { '_' } else { c.to_ascii_uppercase() })
                    .collect();
                format!("{plain}.;1").into_bytes()
            }
            Self::Joliet => name.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        }
    }
}

/// The image: volume label `label`, `files` in its root.
pub(super) fn image(label: &str, files: &[IsoFile<'_>]) -> Vec<u8> {
    let mut files: Vec<IsoFile<'_>> = files.to_vec();
    files.sort_by_key(|file| file.name);
    let mut next = FIRST_CONTENT_SECTOR;
    let placed: Vec<(IsoFile<'_>, u32)> = files
        .into_iter()
        .map(|file| {
            let at = next;
            next += sectors(file.content.len());
            (file, at)
        })
        .collect();

    next += PADDING_SECTORS;
    let mut image = vec![0; next as usize * SECTOR];
    for (view, at) in [(View::RockRidge, 16), (View::Joliet, 17)] {
        put(&mut image, at, &volume_descriptor(view, label, next));
        put(
            &mut image,
            view.path_table_sector(),
            &path_table(view.root_sector().to_le_bytes(), 1_u16.to_le_bytes()),
        );
        put(
            &mut image,
            view.path_table_sector() + 1,
            &path_table(view.root_sector().to_be_bytes(), 1_u16.to_be_bytes()),
        );
        put(&mut image, view.root_sector(), &root_directory(view, &placed));
    }
    put(&mut image, 18, b"\xffCD001\x01");
    for (file, at) in placed {
        put(&mut image, at, file.content);
    }
    image
}

fn sectors(bytes: usize) -> u32 {
    bytes.div_ceil(SECTOR) as u32
}

fn put(image: &mut [u8], sector: u32, bytes: &[u8]) {
    let start = sector as usize * SECTOR;
    image[start..start + bytes.len()].copy_from_slice(bytes);
}

/// A number in both byte orders, as most fields want it.
fn both32(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    bytes
}

fn both16(value: u16) -> [u8; 4] {
    let [a, b] = value.to_le_bytes();
    [a, b, b, a]
}

fn volume_descriptor(view: View, label: &str, sectors: u32) -> Vec<u8> {
    let mut d = Vec::with_capacity(SECTOR);
    d.push(if view == View::RockRidge { 1 } else { 2 });
    d.extend(b"CD001\x01\0");
    d.extend(view.field("LINUX", 32));
    d.extend(view.field(label, 32));
    d.extend([0; 8]);
    d.extend(both32(sectors));
    // UCS-2 level 3 is what tells a Joliet descriptor.
    let mut escapes = [0; 32];
    if view == View::Joliet {
        escapes[..3].copy_from_slice(b"%/E");
    }
    d.extend(escapes);
    d.extend(both16(1));
    d.extend(both16(1));
    d.extend(both16(SECTOR as u16));
    d.extend(both32(PATH_TABLE_BYTES));
    d.extend(view.path_table_sector().to_le_bytes());
    d.extend([0; 4]);
    d.extend((view.path_table_sector() + 1).to_be_bytes());
    d.extend([0; 4]);
    d.extend(record(&[0], view.root_sector(), SECTOR as u32, true, &[]));
    for width in [128, 128, 128, 128, 37, 37, 37] {
        d.extend(view.field("", width));
    }
    for _ in 0..4 {
        d.extend(VOLUME_DATE);
    }
    d.push(1);
    d
}

fn path_table(root_sector: [u8; 4], parent: [u8; 2]) -> Vec<u8> {
    let mut table = vec![1, 0];
    table.extend(root_sector);
    table.extend(parent);
    table.extend([0, 0]);
    table
}

fn root_directory(view: View, files: &[(IsoFile<'_>, u32)]) -> Vec<u8> {
    let at = view.root_sector();
    let size = SECTOR as u32;
    let rock = |extensions: Vec<u8>| {
        if view == View::RockRidge {
            extensions
        } else {
            Vec::new()
        }
    };
    // SP starts the extensions, ER names them: both only in the root's own record.
    let mut own = b"SP\x07\x01\xbe\xef\x00".to_vec();
    own.extend(posix(0o040_555, 2));
    own.extend(b"ER\x12\x01\x0a\x00\x00\x01RRIP_1991A");
    let mut directory = record(&[0], at, size, true, &rock(own));
    directory.extend(record(&[1], at, size, true, &rock(posix(0o040_555, 2))));
    for (file, content_at) in files {
        let mut extensions = posix(0o100_444, 1);
        extensions.extend([b'N', b'M', 5 + file.name.len() as u8, 1, 0]);
        extensions.extend(file.name.as_bytes());
        let identifier = view.file_identifier(file.name);
        directory.extend(record(
            &identifier,
            *content_at,
            file.content.len() as u32,
            false,
            &rock(extensions),
        ));
    }
    directory
}

/// Rock Ridge `PX`: mode, links, owner and group root.
fn posix(mode: u32, links: u32) -> Vec<u8> {
    let mut entry = b"PX\x24\x01".to_vec();
    for value in [mode, links, 0, 0] {
        entry.extend(both32(value));
    }
    entry
}

fn record(identifier: &[u8], at: u32, size: u32, directory: bool, extensions: &[u8]) -> Vec<u8> {
    let mut r = vec![0, 0];
    r.extend(both32(at));
    r.extend(both32(size));
    r.extend(RECORD_DATE);
    r.push(if directory { 2 } else { 0 });
    r.extend([0, 0]);
    r.extend(both16(1));
    r.push(identifier.len() as u8);
    r.extend(identifier);
    if r.len() % 2 == 1 {
        r.push(0);
    }
    r.extend(extensions);
    if r.len() % 2 == 1 {
        r.push(0);
    }
    r[0] = r.len() as u8;
    r
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let long = vec![b'x'; 5000];
        image(
            "cidata",
            &[
                IsoFile {
                    name: "user-data",
                    content: b"#!/bin/sh\necho hi\n",
                },
                IsoFile {
                    name: "meta-data",
                    content: b"instance-id: i\n",
                },
                IsoFile {
                    name: "network-config",
                    content: &long,
                },
                IsoFile {
                    name: "vendor-data",
                    content: b"",
                },
            ],
        )
    }

    #[test]
    fn fields_are_where_the_standard_wants_them() {
        let iso = sample();
        assert_eq!(iso.len() % SECTOR, 0);
        assert!(iso.len() > 128 << 10, "{}", iso.len());
        let primary = &iso[16 * SECTOR..17 * SECTOR];
        assert_eq!(&primary[..6], b"\x01CD001");
        assert_eq!(&primary[40..46], b"cidata");
        assert_eq!(
            u32::from_le_bytes(primary[80..84].try_into().unwrap()) as usize * SECTOR,
            iso.len()
        );
        assert_eq!(&primary[140..144], &19_u32.to_le_bytes());
        assert_eq!(&primary[148..152], &20_u32.to_be_bytes());
        assert_eq!(primary[156], 34, "the root record");
        assert_eq!(&primary[813..829], b"2000010100000000");
        assert_eq!(primary[881], 1, "file structure version");
        let joliet = &iso[17 * SECTOR..18 * SECTOR];
        assert_eq!(&joliet[..6], b"\x02CD001");
        assert_eq!(&joliet[88..91], b"%/E");
        assert_eq!(&joliet[40..44], &[0, b'c', 0, b'i']);
        assert_eq!(joliet[881], 1);
    }

    #[test]
    fn records_fit_one_sector_and_are_even() {
        let iso = sample();
        for sector in [23, 24] {
            let mut rest = &iso[sector * SECTOR..(sector + 1) * SECTOR];
            let mut records = 0;
            while rest[0] != 0 {
                assert_eq!(rest[0] % 2, 0);
                rest = &rest[rest[0] as usize..];
                records += 1;
            }
            assert_eq!(records, 6);
        }
    }

    /// `isoinfo` comes with genisoimage; it reads both views.
    #[test]
    fn another_reader_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.iso");
        std::fs::write(&path, sample()).unwrap();
        for view in ["-R", "-J"] {
            let run = |arguments: &[&str]| {
                let out = std::process::Command::new("isoinfo")
                    .arg("-i")
                    .arg(&path)
                    .arg(view)
                    .args(arguments)
                    .output();
                String::from_utf8(out.expect("isoinfo (package genisoimage) is installed").stdout).unwrap()
            };
            let mut names: Vec<String> = run(&["-f"]).lines().map(str::to_owned).collect();
            names.sort();
            assert_eq!(
                names,
                ["/meta-data", "/network-config", "/user-data", "/vendor-data"],
                "{view}"
            );
            assert_eq!(run(&["-x", "/user-data"]), "#!/bin/sh\necho hi\n");
            assert_eq!(run(&["-x", "/network-config"]).len(), 5000);
        }
    }
}
