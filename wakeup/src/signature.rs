//! Signatures of the requests we send to somebody else's program, as Standard Webhooks has
//! them: HMAC-SHA256 over `ID.TIMESTAMP.BODY`, told in `webhook-id`, `webhook-timestamp` and
//! `webhook-signature: v1,BASE64`.
//!
//! Who receives one computes the same and compares, refuses a timestamp that is minutes
//! away from its clock, and takes one id for one event however often it comes. Only the
//! symmetric kind is here, and nothing that sends.

use aws_lc_rs::hmac;
use backhaul::SecretFileError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Beginning of a secret's text (Standard Webhooks, "Signature scheme").
const PREFIX: &str = "whsec_";
/// Shortest and longest key, bytes (the same).
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// A key shared with whoever receives our requests. Not shown by `Debug`.
#[derive(Clone)]
pub struct Secret(hmac::Key);

/// No usable secret; never shows what it read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read, or others could have read or replaced it.
    #[error("secret_file {0}")]
    File(#[from] SecretFileError),
    /// What it holds is no secret.
    #[error("secret_file {path}: must hold whsec_ and the base64 of 24 to 64 random bytes", path = path.display())]
    Wrong {
        /// Which.
        path: PathBuf,
    },
}

/// The three headers of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// `webhook-id`: the same for each try.
    pub id: String,
    /// `webhook-timestamp`: seconds since 1970, of this try.
    pub timestamp: u64,
    /// `webhook-signature`.
    pub signature: String,
}

impl Secret {
    /// Reads it from a file that is its owner's alone.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let text = backhaul::secret_file::read(path)?;
        let text = std::str::from_utf8(&text).ok().and_then(Self::parse);
        text.ok_or_else(|| SecretError::Wrong { path: path.into() })
    }

    /// Reads its text; nothing when it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let key = STANDARD.decode(text.trim().strip_prefix(PREFIX)?).ok()?;
        KEY_BYTES.contains(&key.len()).then(|| Self(hmac::Key::new(hmac::HMAC_SHA256, &key)))
    }

    /// Signs `body` for the request `id`, which must have no '.', at this moment.
    #[must_use]
    pub fn sign(&self, id: &str, body: &[u8]) -> Signed {
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.sign_at(id, timestamp, body)
    }

    /// [`Secret::sign`] at another moment, seconds since 1970: what a receiver computes.
    #[must_use]
    pub fn sign_at(&self, id: &str, timestamp: u64, body: &[u8]) -> Signed {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        let signature = format!("v1,{}", STANDARD.encode(context.sign()));
        Signed { id: id.into(), timestamp, signature }
    }
}

impl Signed {
    /// As headers.
    #[must_use]
    pub fn headers(&self) -> [(&'static str, String); 3] {
        [
            ("webhook-id", self.id.clone()),
            ("webhook-timestamp", self.timestamp.to_string()),
            ("webhook-signature", self.signature.clone()),
        ]
    }
}

/// An id for one event: 128 random bits.
#[must_use]
pub fn event_id() -> String {
    format!("msg_{:032x}", rand::random::<u128>())
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// The key is the bytes 0 to 31.
    const SECRET: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn it_signs_what_python_signs() {
        // hmac.new(bytes(range(32)), b"msg_1.1700000000." + body, "sha256"), in base64.
        let signed = Secret::parse(SECRET).unwrap().sign_at("msg_1", 1_700_000_000, br#"{"sprite":"a"}"#);
        assert_eq!(signed.signature, "v1,kCDtma4LNK3dB5ZKIaDwBry+UToTHSKwRH4w0MdWnmQ=");
        let [id, timestamp, signature] = signed.headers();
        assert_eq!((id.1.as_str(), timestamp.1.as_str()), ("msg_1", "1700000000"));
        assert_eq!((signature.0, &signature.1), ("webhook-signature", &signed.signature));
        assert_ne!(event_id(), event_id());
    }

    #[test]
    fn it_signs_as_the_scheme_s_own_example() {
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signed = secret.sign_at("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signed.signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_is_read_from_its_file_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, format!("{SECRET}\n")).unwrap();
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(&path, open).unwrap();
        assert!(matches!(Secret::load(&path), Err(SecretError::File(_))), "others could have read it");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let secret = Secret::load(&path).unwrap();
        assert_eq!(format!("{secret:?}"), "Secret");
        for wrong in ["", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=", "whsec_!", "whsec_AAEC"] {
            std::fs::write(&path, wrong).unwrap();
            let error = Secret::load(&path).unwrap_err().to_string();
            assert!(error.contains("whsec_") && !error.contains("AAEC"), "{error}");
        }
        assert!(Secret::load(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
