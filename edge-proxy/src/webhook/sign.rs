//! The signature of the Standard Webhooks scheme: HMAC-SHA256 of `id.timestamp.body`.

use aws_lc_rs::hmac;
use backhaul::SecretFileError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::path::{Path, PathBuf};

/// What a secret begins with, for people who find one somewhere.
const PREFIX: &str = "whsec_";
/// Random bytes of a secret (the scheme's rule).
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Signs with one secret. Shows it nowhere.
pub struct Signer(hmac::Key);

/// The secret cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read, or others could have.
    #[error("webhook.secret_file")]
    File(#[from] SecretFileError),
    /// It holds something else.
    #[error("webhook.secret_file {}: must hold whsec_ and the base64 of 24 to 64 random bytes", path.display())]
    Form {
        /// The file.
        path: PathBuf,
    },
}

impl Signer {
    /// Reads the secret.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let text = backhaul::secret_file::read(path)?;
        let text = std::str::from_utf8(&text).ok().and_then(|text| text.trim().strip_prefix(PREFIX));
        let bytes = text.and_then(|text| STANDARD.decode(text).ok()).filter(|bytes| BYTES.contains(&bytes.len()));
        let bytes = bytes.ok_or_else(|| SecretError::Form { path: path.to_owned() })?;
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// The value of `webhook-signature`.
    #[must_use]
    pub fn sign(&self, id: &str, timestamp: u64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        context.update(format!("{id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn signer(secret: &str, mode: u32) -> Result<Signer, SecretError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, secret).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        Signer::load(&path)
    }

    #[test]
    fn it_signs_as_the_scheme_s_own_example() {
        // The example of the Standard Webhooks specification.
        let signer = signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n", 0o600).unwrap();
        let signature = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_that_is_short_open_or_none_is_refused() {
        for (secret, mode) in [("whsec_c2hvcnQ=", 0o600), ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 0o600), ("", 0o600)] {
            assert!(matches!(signer(secret, mode), Err(SecretError::Form { .. })), "{secret:?}");
        }
        assert!(matches!(signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", 0o644), Err(SecretError::File(_))));
    }
}
