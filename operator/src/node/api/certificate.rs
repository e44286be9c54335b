//! The certificate that the agent makes for itself.
//!
//! Nobody signs it: the agent publishes it in its own `Host.status.endpoint`, which only it may write, so the API server
//! vouches for it. Key and certificate are in one file below the data directory, so that callers that know the
//! certificate go on across restarts. It is made anew when it nears its end, or when the machine has a name or an address
//! that it does not say.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jiff::{Timestamp, ToSpan, Zoned, tz::TimeZone};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The file below the data directory.
const FILE: &str = "node-api.pem";
/// How long a new certificate is valid. One year: callers learn of the next one from the Host, so it may be short, and
/// a clock that is days wrong must not matter.
const DAYS: i32 = 365;
/// It is made anew this long before its end.
const MARGIN: Duration = Duration::from_hours(30 * 24);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The file cannot be read or written.
    #[error("{0} cannot be read or written")]
    File(PathBuf, #[source] std::io::Error),
    /// No certificate can be made of these names.
    #[error("no certificate can be made")]
    Make(#[source] rcgen::Error),
    /// What was just made does not serve.
    #[error("the certificate that was made is not one a client accepts")]
    Useless,
}

/// The certificate in use. It may be replaced while connections are served.
#[derive(Debug)]
pub struct Certificate {
    file: PathBuf,
    provider: Arc<CryptoProvider>,
    now: RwLock<InUse>,
}

#[derive(Clone, Debug)]
struct InUse {
    key: Arc<CertifiedKey>,
    pem: String,
}

impl Certificate {
    /// The one in `data_dir`, or a new one for `names` (host names and IP addresses) when it does not serve them for long
    /// enough from `now` on. Reads and writes files.
    pub fn open(
        data_dir: &Path,
        provider: Arc<CryptoProvider>,
        names: &BTreeSet<String>,
        now: Timestamp,
    ) -> Result<Self, CertificateError> {
        let file = data_dir.join(FILE);
        let in_use = match read(&file, &provider, names, now)? {
            Some(in_use) => in_use,
            None => make(&file, &provider, names, now)?,
        };
        Ok(Self {
            file,
            provider,
            now: RwLock::new(in_use),
        })
    }

    /// Makes a new one if the one in use does not serve `names` for long enough; returns whether it did.
    pub fn renew(&self, names: &BTreeSet<String>, now: Timestamp) -> Result<bool, CertificateError> {
        if self.in_use().serves(&self.provider, names, now) {
            return Ok(false);
        }
        let new = make(&self.file, &self.provider, names, now)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(true)
    }

    /// The certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.in_use().pem
    }

    fn in_use(&self) -> InUse {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.in_use().key)
    }
}

impl InUse {
    /// From a file's text; absent when it cannot be used, for then it is made anew.
    fn parse(text: &str, provider: &CryptoProvider) -> Option<Self> {
        let certificate = CertificateDer::from_pem_slice(text.as_bytes()).ok()?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes()).ok()?;
        let key = CertifiedKey::from_der(vec![certificate], key, provider).ok()?;
        // The key stays in the file.
        let begin = text.find("-----BEGIN CERTIFICATE-----")?;
        Some(Self {
            key: Arc::new(key),
            pem: text[begin..].to_owned(),
        })
    }

    /// Whether a client that trusts it alone accepts it for each of the names, now and until the margin is over.
    fn serves(&self, provider: &Arc<CryptoProvider>, names: &BTreeSet<String>, now: Timestamp) -> bool {
        let Some(certificate) = self.key.cert.first() else {
            return false;
        };
        let mut roots = RootCertStore::empty();
        if roots.add(certificate.clone()).is_err() {
            return false;
        }
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider)).build();
        let Ok(verifier) = verifier else { return false };
        let now = Duration::from_secs(now.as_second().unsigned_abs());
        names.iter().filter_map(|name| server_name(name)).all(|name| {
            [now, now + MARGIN].into_iter().all(|at| {
                let at = UnixTime::since_unix_epoch(at);
                verifier
                    .verify_server_cert(certificate, &[], &name, &[], at)
                    .is_ok()
            })
        })
    }
}

/// A name as clients ask for it; absent for what can be none, such as a host name with a space.
fn server_name(name: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(name.to_owned()).ok()
}

fn read(
    file: &Path,
    provider: &Arc<CryptoProvider>,
    names: &BTreeSet<String>,
    now: Timestamp,
) -> Result<Option<InUse>, CertificateError> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(InUse::parse(&text, provider).filter(|found| found.serves(provider, names, now))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CertificateError::File(file.to_owned(), error)),
    }
}

fn make(
    file: &Path,
    provider: &Arc<CryptoProvider>,
    names: &BTreeSet<String>,
    now: Timestamp,
) -> Result<InUse, CertificateError> {
    let text = sign(names, now).map_err(CertificateError::Make)?;
    let made = InUse::parse(&text, provider)
        .filter(|made| made.serves(provider, names, now))
        .ok_or(CertificateError::Useless)?;
    write(file, &text).map_err(|error| CertificateError::File(file.to_owned(), error))?;
    Ok(made)
}

/// A new key, and a certificate by it for the names: both as PEM, the key first.
fn sign(names: &BTreeSet<String>, now: Timestamp) -> Result<String, rcgen::Error> {
    let usable = names.iter().filter(|name| server_name(name).is_some());
    let mut params = CertificateParams::new(usable.cloned().collect::<Vec<_>>())?;
    params
        .distinguished_name
        .push(DnType::CommonName, "VirtShell node agent");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let midnight = |day: &Zoned| {
        date_time_ymd(
            i32::from(day.year()),
            day.month().unsigned_abs(),
            day.day().unsigned_abs(),
        )
    };
    let today = now.to_zoned(TimeZone::UTC);
    // From yesterday, for clocks differ.
    params.not_before = midnight(&today.saturating_sub(1.day()));
    params.not_after = midnight(&today.saturating_add(DAYS.days()));
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(format!("{}{}", key.serialize_pem(), certificate.pem()))
}

/// Replaces the file in one step, readable by its owner alone.
fn write(file: &Path, text: &str) -> std::io::Result<()> {
    let temp = file.with_extension("new");
    let mut open = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temp)?;
    open.write_all(text.as_bytes())?;
    open.sync_all()?;
    std::fs::rename(&temp, file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn open(folder: &Path, list: &[&str], now: Timestamp) -> Certificate {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        Certificate::open(folder, provider, &names(list), now).unwrap()
    }

    #[test]
    fn it_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let list = ["host-1", "localhost", "127.0.0.1", "::1", "not a name"];
        let first = open(folder.path(), &list, now);
        let file = folder.path().join(FILE);
        assert_eq!(
            std::fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(!first.pem().contains("PRIVATE KEY") && first.pem().starts_with("-----BEGIN CERTIFICATE"));
        assert_eq!(open(folder.path(), &list, now).pem(), first.pem());
        // Fewer names are served as well.
        assert_eq!(open(folder.path(), &["localhost"], now).pem(), first.pem());
    }

    #[test]
    fn it_is_made_anew_near_its_end_for_a_new_name_and_when_it_is_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let later = |days: i64| {
            now.checked_add(jiff::SignedDuration::from_hours(24 * days))
                .unwrap()
        };
        let first = open(folder.path(), &["localhost"], now);
        assert!(!first.renew(&names(&["localhost"]), later(300)).unwrap());
        assert!(first.renew(&names(&["localhost"]), later(340)).unwrap());
        assert!(
            first
                .renew(&names(&["localhost", "10.1.2.3"]), later(340))
                .unwrap()
        );
        let second = first.pem();
        assert_eq!(open(folder.path(), &["10.1.2.3"], later(340)).pem(), second);

        std::fs::write(folder.path().join(FILE), "nonsense").unwrap();
        assert_ne!(open(folder.path(), &["10.1.2.3"], later(340)).pem(), second);
    }
}
