//! Client certificates, for sprites that ask their visitors for one: how the handshake asks, and what the sprite is
//! told of it (RFC 9440).
//!
//! A connection is made under the rules of the sprite its ClientHello names. A request on it for a sprite with other rules,
//! or with none, is misdirected (421): a browser then opens a connection of its own for it, and is asked there.

use crate::client::Client;
use crate::error::RequestError;
use crate::resolve;
use crate::target;
use crate::worker::Edge;
use acme::tickets::scope;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use router::client_certificate::{ClientCertificate, ClientMode};
use router::route::Route;
use router::table::Lookup;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use std::sync::Arc;

/// Longest certificate that is handed on, bytes (chosen: with its base64 it fits the heads that servers read).
const LEAF_BYTES_MAX: usize = 8 * 1024;
/// Longest rest of the chain (chosen, likewise); a longer one is left out.
const CHAIN_BYTES_MAX: usize = 8 * 1024;

/// What the sprite a ClientHello names asks for; none for a name that is no sprite's.
#[must_use]
pub fn asked_by(edge: &Edge, server_name: Option<&str>) -> Option<Arc<ClientCertificate>> {
    let (target, _) = target::resolve(server_name?, edge).ok()?;
    match resolve::lookup(edge, &target.name) {
        Lookup::Found(route) => route.client_certificate,
        Lookup::Unknown | Lookup::NotReady => None,
    }
}

/// Whether a request may come on this connection.
///
/// # Errors
/// [`RequestError::Misdirected`]: the connection was made under other rules, or none.
pub fn check(route: &Route, client: &Client) -> Result<(), RequestError> {
    match (&route.client_certificate, &client.asked) {
        (None, None) => Ok(()),
        // The same row most often: then nothing is compared.
        (Some(asks), Some(asked)) if Arc::ptr_eq(asked, asks) || asked == asks => Ok(()),
        // Nor is a sprite told whom another one asked for.
        _ => Err(RequestError::Misdirected),
    }
}

/// Tickets that were made under these rules are good under these alone, since a ticket does not say who verified the
/// certificate in it.
#[must_use]
pub fn ticket_scope(rules: &ClientCertificate) -> [u8; 32] {
    let mode = match rules.mode {
        ClientMode::Require => b"require".as_slice(),
        ClientMode::Request => b"request",
        ClientMode::Pass => b"pass",
    };
    scope(&[b"client-certificate", mode, rules.ca_pem.as_bytes()])
}

/// What rustls asks visitors with.
///
/// # Errors
/// A PEM without a certificate, or with one that is none; in words.
pub fn verifier(
    rules: &ClientCertificate,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    if rules.mode == ClientMode::Pass {
        return Ok(Arc::new(Anybody(provider)));
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(rules.ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("ca_pem: {error}"))?;
        roots.add(certificate).map_err(|error| format!("ca_pem: {error}"))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match rules.mode {
        ClientMode::Require => builder,
        ClientMode::Request | ClientMode::Pass => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| format!("ca_pem: {error}"))
}

/// The header lines that tell a sprite who its visitor is; none without a certificate, or with one that is too long.
#[must_use]
pub fn header_lines(chain: Option<&[CertificateDer<'_>]>) -> Vec<u8> {
    let Some((leaf, rest)) = chain.and_then(<[_]>::split_first).filter(|(leaf, _)| leaf.len() <= LEAF_BYTES_MAX) else {
        return Vec::new();
    };
    // Byte sequences of structured fields (RFC 8941 §3.3.5, RFC 9440 §2).
    let bytes = |certificate: &CertificateDer<'_>| format!(":{}:", STANDARD.encode(certificate));
    let mut lines = format!("client-cert: {}\r\n", bytes(leaf));
    if !rest.is_empty() && rest.iter().map(|one| one.len()).sum::<usize>() <= CHAIN_BYTES_MAX {
        lines += &format!("client-cert-chain: {}\r\n", rest.iter().map(bytes).collect::<Vec<_>>().join(", "));
    }
    lines.into_bytes()
}

/// Takes any certificate whose key the visitor has.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }
    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_becomes_two_lines_and_one_that_is_too_long_none() {
        assert_eq!(header_lines(None), b"");
        let der = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
        assert_eq!(header_lines(Some(&[der(b"leaf")])), b"client-cert: :bGVhZg==:\r\n");
        let lines = header_lines(Some(&[der(b"leaf"), der(b"a"), der(b"b")]));
        assert_eq!(lines, b"client-cert: :bGVhZg==:\r\nclient-cert-chain: :YQ==:, :Yg==:\r\n");
        let long = der(&[0; LEAF_BYTES_MAX + 1]);
        assert_eq!(header_lines(Some(std::slice::from_ref(&long))), b"");
        assert_eq!(header_lines(Some(&[der(b"leaf"), long])), b"client-cert: :bGVhZg==:\r\n");
    }

    #[test]
    fn rules_without_a_certificate_in_them_are_no_rules() {
        let provider = || Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        for ca_pem in ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let rules = ClientCertificate { mode: ClientMode::Require, ca_pem: ca_pem.into() };
            assert!(verifier(&rules, provider()).is_err(), "{ca_pem}");
        }
        assert!(verifier(&ClientCertificate { mode: ClientMode::Pass, ca_pem: String::new() }, provider()).is_ok());
    }
}
