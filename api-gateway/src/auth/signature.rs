//! The signature of a request: HMAC-SHA1 over six lines. Pure.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

/// Base64 whose missing `=` are forgiven.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is signed: header values as received and trimmed, empty when absent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Signed<'a> {
    /// In upper case.
    pub method: &'a str,
    /// With the port, if the client sent one.
    pub host: &'a str,
    /// Of the body.
    pub content_md5: &'a str,
    /// Of the body.
    pub content_type: &'a str,
    /// When it was signed.
    pub date: &'a str,
    /// The request target up to `?`, as on the wire.
    pub resource: &'a str,
}

impl Signed<'_> {
    /// The six lines; no line feed at the end.
    fn lines(&self) -> String {
        [
            self.method,
            self.host,
            self.content_md5,
            self.content_type,
            self.date,
            self.resource,
        ]
        .join("\n")
    }

    fn mac(&self, secret: &str) -> Option<Hmac<Sha1>> {
        let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).ok()?;
        mac.update(self.lines().as_bytes());
        Some(mac)
    }

    /// The signature that the holder of `secret` sends.
    #[must_use]
    pub fn sign(&self, secret: &str) -> String {
        let mac = self.mac(secret).map(|mac| mac.finalize().into_bytes());
        mac.map(|mac| LENIENT.encode(mac)).unwrap_or_default()
    }

    /// Whether `signature` is that of the holder of `secret`, in constant time.
    #[must_use]
    pub fn is_signed_with(&self, secret: &str, signature: &str) -> bool {
        let Ok(signature) = LENIENT.decode(signature) else {
            return false;
        };
        self.mac(secret)
            .is_some_and(|mac| mac.verify_slice(&signature).is_ok())
    }
}

/// Whether a `Content-MD5` value is that of the body.
#[must_use]
pub fn is_md5_of(value: &str, body: &[u8]) -> bool {
    use md5::{Digest, Md5};
    is_md5(value, Md5::digest(body).as_slice())
}

/// Whether a `Content-MD5` value says this sum.
#[must_use]
pub fn is_md5(value: &str, sum: &[u8]) -> bool {
    LENIENT.decode(value).is_ok_and(|announced| announced == sum)
}

/// User id and signature of an authorization header: split at the first colon, spaces around trimmed.
#[must_use]
pub fn split(header: &str) -> Option<(&str, &str)> {
    let (user, signature) = header.split_once(':')?;
    let (user, signature) = (user.trim(), signature.trim());
    (!user.is_empty() && !signature.is_empty()).then_some((user, signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "virtshell-test-secret-0001";

    #[test]
    fn v_025_the_vectors_of_the_contract() {
        for (lines, signature) in [
            (
                [
                    "GET",
                    "host1.example.org",
                    "",
                    "",
                    "Fri, 01 Jul 2011 19:37:58 +0000",
                    "/virtshell/api/v1/provisioners/database_prov_pdn",
                ],
                "j0wBAVgpae9zs16fiDBcp2BiD1o=",
            ),
            (
                [
                    "POST",
                    "localhost:8080",
                    "cD9d4LdUk5w5SgIFAI9+oQ==",
                    "application/json",
                    "Tue, 27 Mar 2012 19:36:42 GMT",
                    "/api/virtshell/v1/sections",
                ],
                "Cjf4YJnXfp/WlNe/Lj6NcBkDHuE=",
            ),
            (
                [
                    "PUT",
                    "localhost:8080",
                    "",
                    "text/plain",
                    "Tue, 27 Mar 2012 19:36:42 GMT",
                    "/virtshell/api/v1/instances/start_instance/debian_strech_01",
                ],
                "i+c3ap9MNWhIfST++59CoaM0x4w=",
            ),
            (
                [
                    "GET",
                    "localhost:8080",
                    "",
                    "",
                    "Tue, 27 Mar 2012 19:36:42 GMT",
                    "/api/virtsh/v1/images/centos%3Acentos6/",
                ],
                "nF2zKutUnlClJ5UO7nTdZ3iqH08=",
            ),
        ] {
            let [method, host, content_md5, content_type, date, resource] = lines;
            let signed = Signed {
                method,
                host,
                content_md5,
                content_type,
                date,
                resource,
            };
            assert_eq!(signed.sign(SECRET), signature, "{lines:?}");
            assert!(signed.is_signed_with(SECRET, signature), "{lines:?}");
            assert!(
                signed.is_signed_with(SECRET, signature.trim_end_matches('=')),
                "padding may be missing"
            );
            assert!(!signed.is_signed_with("another", signature), "{lines:?}");
            assert!(
                !Signed {
                    resource: "/other",
                    ..signed
                }
                .is_signed_with(SECRET, signature),
                "{lines:?}"
            );
            for wrong in [
                "",
                "=",
                "nonsense",
                &signature[..20],
                "AAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            ] {
                assert!(!signed.is_signed_with(SECRET, wrong), "{wrong}");
            }
        }
    }

    #[test]
    fn the_sum_of_the_body() {
        let body = br#"{"name": "development_co"}"#;
        assert!(is_md5_of("cD9d4LdUk5w5SgIFAI9+oQ==", body));
        assert!(!is_md5_of("cD9d4LdUk5w5SgIFAI9+oQ==", b"{}"));
        assert!(!is_md5_of("not base64!", body));
    }

    #[test]
    fn the_header_splits_at_the_first_colon() {
        for (header, expected) in [
            ("AK:sig", Some(("AK", "sig"))),
            (" AK : si:g= ", Some(("AK", "si:g="))),
            ("UserId:Signature", Some(("UserId", "Signature"))),
            ("AK", None),
            (":sig", None),
            ("AK:", None),
            ("", None),
        ] {
            assert_eq!(split(header), expected, "{header}");
        }
    }
}
