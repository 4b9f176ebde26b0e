//! One handshake, as a visitor's: what it is shown.

use super::judge::Fault;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// From the connect to the end of the handshake (chosen: across the world it takes half a second).
const LOOK: Duration = Duration::from_secs(5);

/// Takes any certificate, of whose key the other side has the private half: what is wrong with it is judged afterwards.
#[derive(Debug)]
struct Whatever(Arc<CryptoProvider>);

impl ServerCertVerifier for Whatever {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What looks.
///
/// # Errors
/// The library has no protocol version.
pub(super) fn looker() -> Result<TlsConnector, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Whatever(provider)));
    let mut config = config.with_no_client_auth();
    // A resumed handshake shows nothing.
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The chain that is shown at `address` to whoever asks for `name`.
///
/// # Errors
/// [`Fault::Unreachable`], [`Fault::Refused`].
pub(super) async fn look(
    looker: &TlsConnector,
    address: SocketAddr,
    name: &ServerName<'static>,
) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let looks = async {
        let stream = TcpStream::connect(address).await.map_err(|_| Fault::Unreachable)?;
        let stream = looker.connect(name.clone(), stream).await.map_err(|_| Fault::Refused)?;
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        Ok(chain.iter().map(|one| one.clone().into_owned()).collect())
    };
    tokio::time::timeout(LOOK, looks).await.unwrap_or(Err(Fault::Unreachable))
}
