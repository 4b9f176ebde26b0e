//! The plain listener: sends every name of ours to HTTPS, wakes nothing.

use super::{ACCEPT_PAUSE, is_about_one_connection, prepare};
use crate::acme_challenge;
use crate::body::EdgeBody;
use crate::error::RequestError;
use crate::request_id::RequestId;
use crate::respond::{self, Reader};
use crate::target;
use crate::worker::{Edge, Worker};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::rc::Rc;
use tokio::net::TcpListener;

/// Accepts until the edge drains; answers each request with a redirect to HTTPS on `https_port`.
pub async fn accept_loop(worker: Rc<Worker>, listener: TcpListener, https_port: u16) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = worker.edge.draining() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let Some(permit) = worker.edge.admit_connection() else { continue };
                if prepare(&stream).is_err() {
                    continue;
                }
                let worker = Rc::clone(&worker);
                tokio::task::spawn_local(async move {
                    let edge = &*worker.edge;
                    let service =
                        service_fn(
                            |request| async move { Ok::<_, Infallible>(answer(&request, edge, https_port).await) },
                        );
                    let served = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(worker.edge.limits().header_read_timeout)
                        .serve_connection(TokioIo::new(stream), service);
                    drop(served.await);
                    drop(permit);
                });
            }
            Err(error) if is_about_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed; pausing");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(request: &Request<Incoming>, edge: &Edge, https_port: u16) -> Response<EdgeBody> {
    match acme_challenge::token(request.uri().path()) {
        Some(token) => acme_challenge::answer(token, edge.challenged()).await,
        None => redirect(request, edge, https_port),
    }
}

/// 308 keeps the method, so a webhook configured with `http://` still arrives as a POST.
fn redirect(request: &Request<Incoming>, edge: &Edge, https_port: u16) -> Response<EdgeBody> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    // A host that names nothing is no secret here: nothing but our own names is redirected.
    if let Err(error) = target::resolve(host, edge) {
        let error = if matches!(error, RequestError::Unauthorized) { RequestError::NoSuchSprite } else { error };
        let reader = Reader::of(request.method(), request.headers());
        return respond::failure(&error, reader, RequestId::next().as_str(), None);
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let location =
        if https_port == 443 { format!("https://{name}{path}") } else { format!("https://{name}:{https_port}{path}") };
    let mut response = Response::new(EdgeBody::empty());
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
