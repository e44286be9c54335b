//! The answer file of an unattended installation, on a medium of its own.
//!
//! Pure. A volume with the label `OEMDRV` is where Anaconda looks for `ks.cfg` and Debian's installer for `preseed.cfg`,
//! without a word on the kernel's command line; the text stands there under both names, for an Image does not say which
//! installer it has. Ubuntu's reads the NoCloud seed, which is the user's cloudInit.

use super::iso9660::{self, IsoFile};

/// Volume label by which installers find it.
const LABEL: &str = "OEMDRV";
/// The names under which installers look.
const NAMES: [&str; 2] = ["ks.cfg", "preseed.cfg"];

/// What the placeholders of an answer file stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// `{{hostname}}`.
    pub hostname: String,
    /// `{{timezone}}`; empty = UTC.
    pub timezone: String,
    /// `{{username}}`.
    pub username: String,
    /// `{{pwhash}}`, as in /etc/shadow.
    pub pwhash: String,
}

impl Answers {
    /// The text with its placeholders filled in; others than these four stay as they are.
    #[must_use]
    pub fn fill(&self, text: &str) -> String {
        let timezone = match self.timezone.as_str() {
            "" => "UTC",
            zone => zone,
        };
        [
            ("{{hostname}}", self.hostname.as_str()),
            ("{{timezone}}", timezone),
            ("{{username}}", &self.username),
            ("{{pwhash}}", &self.pwhash),
        ]
        .into_iter()
        .fold(text.to_owned(), |text, (placeholder, value)| {
            text.replace(placeholder, value)
        })
    }
}

/// The medium, as an ISO 9660 image.
#[must_use]
pub(super) fn medium(text: &str) -> Vec<u8> {
    let files: Vec<IsoFile<'_>> = NAMES
        .iter()
        .map(|name| IsoFile {
            name,
            content: text.as_bytes(),
        })
        .collect();
    iso9660::image(LABEL, &files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_in_and_the_rest_stays() {
        let answers = Answers {
            hostname: "web".into(),
            username: "operator".into(),
            pwhash: "$6$salt$hash".into(),
            ..Answers::default()
        };
        let text = "d-i netcfg/get_hostname string {{hostname}}\nd-i time/zone string {{timezone}}\n\
                    d-i passwd/username string {{username}}\nd-i passwd/user-password-crypted password {{pwhash}}\n\
                    {{unknown}} {hostname}\n";
        assert_eq!(
            answers.fill(text),
            "d-i netcfg/get_hostname string web\nd-i time/zone string UTC\nd-i passwd/username string operator\n\
             d-i passwd/user-password-crypted password $6$salt$hash\n{{unknown}} {hostname}\n"
        );
    }

    #[test]
    fn installers_find_it_by_its_label_under_both_names() {
        let image = medium("answer = 42\n");
        let text = String::from_utf8_lossy(&image);
        assert!(text.contains("OEMDRV") && text.matches("answer = 42").count() >= 1);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("answers.iso");
        std::fs::write(&file, &image).unwrap();
        for name in NAMES {
            let read = std::process::Command::new("isoinfo")
                .args(["-R", "-x", &format!("/{name}"), "-i"])
                .arg(&file)
                .output()
                .expect("isoinfo is on the PATH; Debian's package genisoimage");
            assert_eq!(String::from_utf8_lossy(&read.stdout), "answer = 42\n", "{name}");
        }
    }
}
