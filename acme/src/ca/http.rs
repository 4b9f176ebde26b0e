//! HTTP to a CA: one request per connection, bounded in time and size, and what the library throws away kept.
//!
//! `instant-acme` has no timeout, forgets Retry-After with a refusal, and loses an order's URL when it dislikes the
//! reply's content. [`noting`] gives them back.

use super::{Class, Problem};
use bytes::Bytes;
use http::response::Parts;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls_pki_types::ServerName;
use std::cell::RefCell;
use std::pin::Pin;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// From the connect to the end of the reply (chosen: a CA that is slow answers within seconds).
const CALL: Duration = Duration::from_secs(30);
/// Longest reply, bytes (chosen: a chain of certificates is some KiB).
const BYTES_MAX: usize = 1 << 20;
/// Longest Retry-After that is believed (chosen: Let's Encrypt's longest is 36 h).
const RETRY_AFTER_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// What the reply to the last request of a call said in its head; nothing (status 0) when none came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Noted {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) location: Option<String>,
}

tokio::task_local! {
    static NOTED: RefCell<Noted>;
}

/// Makes a call of the library, and notes what the last reply in it said.
pub(super) async fn noting<T>(call: impl Future<Output = T>) -> (T, Noted) {
    let scope = async {
        let result = call.await;
        (result, NOTED.with(|noted| noted.borrow().clone()))
    };
    NOTED.scope(RefCell::default(), scope).await
}

/// The client.
#[derive(Clone)]
pub struct Http {
    connector: TlsConnector,
}

impl Http {
    /// One that trusts as `connector` does.
    #[must_use]
    pub const fn new(connector: TlsConnector) -> Self {
        Self { connector }
    }
}

/// Where a CA says the next nonce (RFC 8555 §6.5.1).
const NONCE: &str = "replay-nonce";

/// What the library has no call for.
impl Http {
    async fn raw(&self, method: Method, url: &str, body: Vec<u8>) -> Result<(Parts, Bytes), Problem> {
        let away = |error: String| Problem::new(Class::Unavailable, error);
        let request = Request::builder().method(method).uri(url).header(header::CONTENT_TYPE, "application/jose+json");
        let request = request.header(header::USER_AGENT, concat!("edge-proxy/", env!("CARGO_PKG_VERSION")));
        let request = request.body(BodyWrapper::from(body)).map_err(|error| away(error.to_string()))?;
        let mut response = self.request(request).await.map_err(|error| away(error.to_string()))?;
        let body = response.body.into_bytes().await.map_err(|error| away(error.to_string()))?;
        Ok((response.parts, body))
    }

    /// A JSON document that everybody may read.
    ///
    /// # Errors
    /// [`Problem`].
    pub(super) async fn get(&self, url: &str) -> Result<serde_json::Value, Problem> {
        let (parts, body) = self.raw(Method::GET, url, Vec::new()).await?;
        if !parts.status.is_success() {
            return Err(refusal(&parts, &body));
        }
        serde_json::from_slice(&body).map_err(|error| Problem::new(Class::Other, error.to_string()))
    }

    /// A nonce.
    ///
    /// # Errors
    /// [`Problem`].
    pub(super) async fn nonce(&self, url: &str) -> Result<String, Problem> {
        let (parts, body) = self.raw(Method::HEAD, url, Vec::new()).await?;
        fresh(&parts).ok_or_else(|| refusal(&parts, &body))
    }

    /// Hands a signed request in.
    ///
    /// # Errors
    /// The refusal, with the nonce that came with it.
    pub(super) async fn post(&self, url: &str, body: &serde_json::Value) -> Result<(), (Problem, Option<String>)> {
        let (parts, body) =
            self.raw(Method::POST, url, body.to_string().into_bytes()).await.map_err(|problem| (problem, None))?;
        if parts.status.is_success() { Ok(()) } else { Err((refusal(&parts, &body), fresh(&parts))) }
    }
}

fn fresh(parts: &Parts) -> Option<String> {
    parts.headers.get(NONCE)?.to_str().ok().map(str::to_owned)
}

/// A reply that is a refusal (RFC 8555 §6.7).
fn refusal(parts: &Parts, body: &[u8]) -> Problem {
    let said: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let detail = said["detail"].as_str().map_or_else(|| format!("status {}", parts.status), str::to_owned);
    let problem = Problem::of_type(said["type"].as_str().unwrap_or_default(), parts.status.as_u16(), detail);
    let retry_after = note(parts, SystemTime::now()).retry_after.filter(|wait| *wait > Duration::ZERO);
    Problem { retry_after, ..problem }
}

impl HttpClient for Http {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let connector = self.connector.clone();
        Box::pin(async move {
            // What an earlier reply of the call said is not said of this one, which may never come.
            let _ = NOTED.try_with(|noted| *noted.borrow_mut() = Noted::default());
            let whole = tokio::time::timeout(CALL, exchange(&connector, request)).await;
            let response = whole.unwrap_or_else(|_| Err(format!("no reply within {} s", CALL.as_secs()).into()));
            let mut response = response.map_err(Error::Other)?;
            let said = note(&response.parts, SystemTime::now());
            bound(&mut response.parts, &said);
            // A call that nobody notes is none of ours.
            let _ = NOTED.try_with(|noted| *noted.borrow_mut() = said);
            Ok(response)
        })
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn exchange(
    connector: &TlsConnector,
    mut request: Request<BodyWrapper<Bytes>>,
) -> Result<BytesResponse, Failure> {
    let uri = request.uri().clone();
    let host = uri.host().ok_or("a URL without a host")?.trim_matches(['[', ']']).to_owned();
    if uri.scheme_str() != Some("https") {
        return Err(format!("{uri}: a CA is asked by https alone").into());
    }
    let stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    let stream = connector.connect(ServerName::try_from(host)?, stream).await?;
    let authority = uri.authority().ok_or("a URL without a host")?.as_str();
    request.headers_mut().insert(header::HOST, authority.parse()?);
    *request.uri_mut() = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).parse()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answers = async {
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, BYTES_MAX).collect().await?.to_bytes();
        Ok::<_, Failure>(BytesResponse { parts, body: Box::new(body) })
    };
    // The connection ends when the reply is read, or with an error; then the reply has it too.
    let mut connection = std::pin::pin!(connection);
    let mut answers = std::pin::pin!(answers);
    tokio::select! {
        answered = &mut answers => answered,
        ended = &mut connection => {
            ended?;
            answers.await
        }
    }
}

fn note(parts: &Parts, now: SystemTime) -> Noted {
    let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let retry_after = text(header::RETRY_AFTER).and_then(|text| match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        // Up to a whole second: rows have no parts of one, and nobody comes before the date.
        Err(_) => {
            let wait = httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?;
            Some(Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)))
        }
    });
    Noted {
        status: parts.status.as_u16(),
        retry_after: retry_after.map(|wait| wait.min(RETRY_AFTER_MAX)),
        location: text(header::LOCATION).map(str::to_owned),
    }
}

/// Puts the Retry-After that is believed in the place of what was said: the library adds any number of seconds to the time
/// of now, and panics when there is no such time.
fn bound(parts: &mut Parts, said: &Noted) {
    if let Some(wait) = said.retry_after {
        parts.headers.insert(header::RETRY_AFTER, wait.as_secs().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_after_is_seconds_or_a_date_and_is_bounded() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let noted = |value: &str| {
            let response = http::Response::builder().status(429).header("retry-after", value);
            note(&response.header("location", "https://ca/order/1").body(()).unwrap().into_parts().0, now)
        };
        assert_eq!(noted("129600").retry_after, Some(Duration::from_secs(129_600)));
        let date = httpdate::fmt_http_date(now + Duration::from_secs(90));
        assert_eq!(noted(&date).retry_after, Some(Duration::from_secs(90)));
        let early = http::Response::builder().header("retry-after", &date).body(()).unwrap().into_parts().0;
        let wait = note(&early, now + Duration::from_millis(1)).retry_after;
        assert_eq!(wait, Some(Duration::from_secs(90)), "not a second before");
        assert_eq!(noted("99999999999").retry_after, Some(RETRY_AFTER_MAX));
        let endless = http::Response::builder().header("retry-after", u64::MAX.to_string()).body(()).unwrap();
        let mut parts = endless.into_parts().0;
        let said = note(&parts, now);
        bound(&mut parts, &said);
        assert_eq!(parts.headers["retry-after"], RETRY_AFTER_MAX.as_secs().to_string().as_str());
        for nonsense in ["", "soon", "-5", "Thu, 01 Jan 1970 00:00:00 GMT"] {
            assert_eq!(noted(nonsense).retry_after, None, "{nonsense}");
        }
        assert_eq!((noted("1").status, noted("1").location.as_deref()), (429, Some("https://ca/order/1")));
    }
}
