//! The NoCloud seed: what a guest learns at its first boot.
//!
//! Pure. User data reach the guest exactly as the user wrote them, in whatever format; what VirtShell adds stands beside
//! them, where cloud-init looks for it: host name and SSH key in `meta-data`, the rest in `vendor-data`, which
//! cloud-init merges *under* the user data, so the user's word wins. A MIME archive of both would change the format
//! for guests that run user data as a script, and cloud-init would prefer the first of two equal keys.

use super::iso9660::{self, IsoFile};

/// Volume label that makes a disk a NoCloud seed.
const LABEL: &str = "cidata";
/// Where a container keeps the same files.
pub(super) const LXC_SEED_DIR: &str = "/var/lib/cloud/seed/nocloud";
/// User data that ask for nothing; the file must be there for cloud-init to take the seed.
const NO_USER_DATA: &str = "#cloud-config\n{}\n";

/// What goes into a seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// Host name inside the guest.
    pub hostname: String,
    /// Public SSH keys for root, one per line; lines that are no key have no effect. Empty = none.
    pub ssh_key: String,
    /// Time zone; empty = the image's.
    pub timezone: String,
    /// User data, verbatim.
    pub user_data: Option<String>,
    /// Network configuration (version 1 or 2), verbatim. Default: DHCP, which is cloud-init's own.
    pub network_data: Option<String>,
}

/// The files of a seed, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedFiles {
    /// Name and content of each file.
    pub files: Vec<(&'static str, String)>,
}

impl Seed {
    /// The texts, for the Instance with this uid (a new uid is a new first boot).
    #[must_use]
    pub fn render(&self, uid: &str) -> SeedFiles {
        let keys: Vec<&str> = ssh_keys(&self.ssh_key).collect();
        let mut files = vec![
            ("meta-data", meta_data(uid, &self.hostname, &keys)),
            (
                "user-data",
                self.user_data.clone().unwrap_or_else(|| NO_USER_DATA.to_owned()),
            ),
        ];
        files.extend(vendor_data(&self.timezone, !keys.is_empty()).map(|text| ("vendor-data", text)));
        files.extend(self.network_data.clone().map(|text| ("network-config", text)));
        SeedFiles { files }
    }
}

impl SeedFiles {
    /// The seed as a disk: an ISO 9660 image with the label `cidata`.
    #[must_use]
    pub fn iso(&self) -> Vec<u8> {
        let files: Vec<IsoFile<'_>> = self
            .files
            .iter()
            .map(|(name, text)| IsoFile {
                name,
                content: text.as_bytes(),
            })
            .collect();
        iso9660::image(LABEL, &files)
    }
}

fn meta_data(uid: &str, hostname: &str, keys: &[&str]) -> String {
    let mut text = format!(
        "instance-id: {}\nlocal-hostname: {}\n",
        quoted(uid),
        quoted(hostname)
    );
    if !keys.is_empty() {
        text.push_str("public-keys:\n");
        for key in keys {
            text.extend(["  - ", &quoted(key), "\n"]);
        }
    }
    text
}

fn vendor_data(timezone: &str, has_keys: bool) -> Option<String> {
    if timezone.is_empty() && !has_keys {
        return None;
    }
    let mut text = "#cloud-config\n".to_owned();
    if !timezone.is_empty() {
        text.extend(["timezone: ", &quoted(timezone), "\n"]);
    }
    if has_keys {
        // Else root's key only prints which user to log in as.
        text.push_str("disable_root: false\n");
    }
    Some(text)
}

/// A YAML double-quoted scalar: JSON's strings are that. Unquoted, a host called `1e3` or `on` would not be text.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Lines that are public keys as OpenSSH writes them.
fn ssh_keys(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| is_ssh_key(line))
}

fn is_ssh_key(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let (Some(kind), Some(blob)) = (words.next(), words.next()) else {
        return false;
    };
    let known = kind.starts_with("ssh-") || kind.starts_with("ecdsa-sha2-") || kind.starts_with("sk-");
    // Every key starts with its type's length, whose first bytes are zero: AAAA in base64.
    known
        && blob.starts_with("AAAA")
        && blob
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0 me@here";

    fn text<'a>(files: &'a SeedFiles, name: &str) -> Option<&'a str> {
        files
            .files
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, t)| t.as_str())
    }

    #[test]
    fn rendered_texts() {
        let seed = |f: fn(&mut Seed)| {
            let mut seed = Seed {
                hostname: "web".into(),
                ..Seed::default()
            };
            f(&mut seed);
            seed.render("u-1")
        };
        let plain = "instance-id: \"u-1\"\nlocal-hostname: \"web\"\n";
        for (rule, files, meta, user, vendor) in [
            ("nothing asked", seed(|_| ()), plain, NO_USER_DATA, None),
            (
                "user data are verbatim",
                seed(|s| s.user_data = Some("#!/bin/sh\nid\n".into())),
                plain,
                "#!/bin/sh\nid\n",
                None,
            ),
            (
                "time zone goes under the user data",
                seed(|s| s.timezone = "America/Bogota".into()),
                plain,
                NO_USER_DATA,
                Some("#cloud-config\ntimezone: \"America/Bogota\"\n"),
            ),
            (
                "text that is no key has no effect",
                seed(|s| s.ssh_key = "/root/.ssh/id.pub".into()),
                plain,
                NO_USER_DATA,
                None,
            ),
            (
                "a key is root's",
                seed(|s| s.ssh_key = KEY.into()),
                "instance-id: \"u-1\"\nlocal-hostname: \"web\"\npublic-keys:\n  - \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0 me@here\"\n",
                NO_USER_DATA,
                Some("#cloud-config\ndisable_root: false\n"),
            ),
        ] {
            assert_eq!(text(&files, "meta-data"), Some(meta), "{rule}");
            assert_eq!(text(&files, "user-data"), Some(user), "{rule}");
            assert_eq!(text(&files, "vendor-data"), vendor, "{rule}");
            assert_eq!(text(&files, "network-config"), None, "{rule}");
        }
        let network = seed(|s| s.network_data = Some("version: 2\n".into()));
        assert_eq!(text(&network, "network-config"), Some("version: 2\n"));
    }

    #[test]
    fn text_cannot_leave_its_quotes() {
        let seed = Seed {
            hostname: "a\"\nroot: x".into(),
            timezone: "UTC\nruncmd: [x]".into(),
            ..Seed::default()
        };
        let files = seed.render("u");
        assert_eq!(text(&files, "meta-data").unwrap().lines().count(), 2);
        assert_eq!(text(&files, "vendor-data").unwrap().lines().count(), 2);
    }

    #[test]
    fn keys() {
        for (line, expected) in [
            (KEY, true),
            ("ecdsa-sha2-nistp256 AAAAE2VjZHNh", true),
            ("sk-ssh-ed25519@openssh.com AAAAGnNr", true),
            ("ssh-rsa", false),
            ("ssh-rsa /etc/passwd", false),
            ("/path/to/id_rsa.pub", false),
            ("", false),
        ] {
            assert_eq!(is_ssh_key(line), expected, "{line}");
        }
        assert_eq!(ssh_keys(&format!("# mine\n{KEY}\n\n{KEY}\n")).count(), 2);
    }
}
