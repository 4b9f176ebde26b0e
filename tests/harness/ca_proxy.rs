//! What stands between an edge and its CA: a proxy that knows ACME, and is as unkind to it as a test asks.
//!
//! It ends TLS with a certificate of its own and keeps `Host`, so the CA's URLs lead back to it and the URLs that are
//! signed are the ones that are asked for. What Debian's Pebble does not have (renewal information, profiles) it adds;
//! what it is told to spoil it spoils ([`Fault`]); and it remembers every request.

mod fault;
mod reply;
mod request;

use crate::pebble::Pebble;
use crate::store_gate::Closed;
pub use fault::{At, Fault, Held, When};
use fault::{Plans, Then};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
pub use reply::{Echo, Extras, Told};
use reply::{Known, Reply};
pub use request::{Endpoint, Seen};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The proxy. Dropping it ends it.
pub struct CaProxy {
    address: SocketAddr,
    folder: TempDir,
    inner: Arc<Inner>,
    accepts: JoinHandle<()>,
}

struct Inner {
    ca: SocketAddr,
    connector: TlsConnector,
    extras: Extras,
    seen: Mutex<Vec<Seen>>,
    plans: Plans,
    closed: Mutex<HashSet<String>>,
    known: Mutex<Known>,
}

/// The connection is closed, and nobody hears why.
#[derive(Debug)]
struct Lost;

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("lost on purpose")
    }
}

impl std::error::Error for Lost {}

impl CaProxy {
    /// Starts one before `pebble`.
    ///
    /// # Panics
    /// Without a socket or a certificate.
    pub async fn start(pebble: &Pebble, extras: Extras) -> Self {
        let folder = tempfile::Builder::new().prefix("edge-ca-proxy-").tempdir().unwrap();
        let address = crate::cluster::addresses(1)[0];
        let listener = TcpListener::bind(address).await.unwrap();
        let (certificate, key) = crate::cluster::certificate(folder.path(), address.ip());
        let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
        let key = PrivateKeyDer::from_pem_file(key).unwrap();
        let server = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pebble.ca_file()).unwrap()).unwrap();
        let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let inner = Arc::new(Inner {
            ca: pebble.address(),
            connector: TlsConnector::from(Arc::new(client)),
            extras,
            seen: Mutex::default(),
            plans: Plans::default(),
            closed: Mutex::default(),
            known: Mutex::default(),
        });
        let (acceptor, serving) = (TlsAcceptor::from(Arc::new(server)), Arc::clone(&inner));
        let accepts = tokio::spawn(async move {
            while let Ok((stream, from)) = listener.accept().await {
                let (acceptor, inner) = (acceptor.clone(), Arc::clone(&serving));
                tokio::spawn(async move {
                    // Whoever hangs up has its reasons.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let handle = service_fn(|request| inner.handle(from, request));
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), handle).await;
                });
            }
        });
        Self { address, folder, inner, accepts }
    }

    /// The directory to configure.
    #[must_use]
    pub fn directory(&self) -> String {
        format!("https://{}/dir", self.address)
    }

    /// Whom to trust to speak to it.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("certificate.pem")
    }

    /// What happens to the next requests there, one fault for each.
    pub fn plan(&self, at: At, faults: impl IntoIterator<Item = Fault>) {
        self.inner.plans.add(at, faults.into_iter().map(Then::from));
    }

    /// Holds a request there, after `passes` that go through.
    #[must_use]
    pub fn hold(&self, at: At, passes: usize, when: When) -> Held {
        self.inner.plans.hold(at, passes, when)
    }

    /// What closes the way to the CA for a name, until [`Self::open`].
    #[must_use]
    pub fn closer(&self) -> Closed {
        let inner = Arc::clone(&self.inner);
        Box::new(move |name| {
            locked(&inner.closed).insert(name.to_owned());
        })
    }

    /// Opens every way that is closed.
    pub fn open(&self) {
        locked(&self.inner.closed).clear();
    }

    /// All requests so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.inner.seen).clone()
    }

    /// Requests to one endpoint for one name, so far.
    #[must_use]
    pub fn seen_of(&self, endpoint: Endpoint, name: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|seen| seen.endpoint == endpoint && seen.is_for(name)).collect()
    }
}

impl Drop for CaProxy {
    fn drop(&mut self) {
        self.accepts.abort();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    async fn handle(
        self: &Arc<Self>,
        from: SocketAddr,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Full<Bytes>>, Lost> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Lost)?.to_bytes();
        let seen = Seen::new(from, parts.uri.path(), &body, &locked(&self.known));
        if locked(&self.closed).iter().any(|name| seen.is_for(name)) {
            return Err(Lost);
        }
        locked(&self.seen).push(seen.clone());
        let then = self.plans.next(&seen);
        let then = match then {
            Then::Refuse(refusal) => return Ok(refusal.into()),
            Then::Hold(When::Before, hold) => {
                hold.wait(&seen).await?;
                Then::Pass
            }
            then => then,
        };
        let reply = match seen.endpoint {
            Endpoint::RenewalInfo => locked(&self.known).window(&self.extras, &seen),
            // The reply is learnt from also when the client is gone meanwhile.
            _ => {
                let (inner, seen) = (Arc::clone(self), seen.clone());
                tokio::spawn(async move {
                    let mut reply = inner.forward(parts, body).await?;
                    locked(&inner.known).learn(&inner.extras, &seen, &mut reply);
                    Ok(reply)
                })
                .await
                .map_err(|_| Lost)??
            }
        };
        match then {
            Then::Lose => return Err(Lost),
            Then::Slow(wait) => tokio::time::sleep(wait).await,
            Then::Hold(_, hold) => hold.wait(&seen).await?,
            Then::Pass | Then::Refuse(_) => {}
        }
        Ok(reply.into())
    }

    async fn forward(&self, parts: http::request::Parts, body: Bytes) -> Result<Reply, Lost> {
        let stream = TcpStream::connect(self.ca).await.map_err(|_| Lost)?;
        let name = ServerName::from(self.ca.ip());
        let stream = self.connector.connect(name, stream).await.map_err(|_| Lost)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| Lost)?;
        // It ends with the reply.
        tokio::spawn(async move { connection.await.is_ok() });
        let request = http::Request::from_parts(parts, Full::new(body));
        let (parts, body) = sender.send_request(request).await.map_err(|_| Lost)?.into_parts();
        let body = body.collect().await.map_err(|_| Lost)?.to_bytes();
        Ok(Reply { parts, body })
    }
}
