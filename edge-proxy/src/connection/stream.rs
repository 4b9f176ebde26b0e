//! One HTTP/2 stream: its request answered, interim answers and the body sent as the
//! client's windows allow.

use crate::body::EdgeBody;
use crate::client::Client;
use crate::client_body::{ClientBody, Http2Body};
use crate::date;
use crate::interim::{Http2Interim, InterimWay};
use crate::request;
use crate::upstream::UpstreamError;
use crate::worker::Worker;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderValue, Method, Request, Response, header};
use http_body::{Body, Frame};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

/// A first piece of a body up to this size is handed over without asking the windows: it
/// fits one frame (RFC 9113 §4.2), and `h2` keeps it until they open.
const AT_ONCE_BYTES: usize = 16 * 1024;

/// Serves one stream to its end.
pub(super) async fn serve(
    worker: Rc<Worker>,
    client: Rc<Client>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let is_head = request.method() == Method::HEAD;
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    let request = request.map(|stream| ClientBody::Http2(Http2Body::new(stream, length)));
    if let Some(response) = answer(&worker, &client, request, &mut respond).await
        && let Err(error) = send(response, is_head, respond).await
    {
        tracing::debug!(peer = %client.peer, %error, "stream ended");
    }
}

/// The answer; none when the client reset the stream meanwhile, which ends the work on it.
async fn answer(
    worker: &Rc<Worker>,
    client: &Rc<Client>,
    request: Request<ClientBody>,
    respond: &mut SendResponse<Bytes>,
) -> Option<Response<EdgeBody>> {
    let interim = Http2Interim::default();
    let mut handled = pin!(request::handle(worker, client, request, InterimWay::Http2(&interim)));
    poll_fn(|cx| {
        let polled = handled.as_mut().poll(cx);
        for head in interim.take() {
            // Too late or unwelcome, it is advisory (RFC 9110 §15.2).
            let _ = respond.send_informational(head);
        }
        match polled {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => respond.poll_reset(cx).map(|_| None),
        }
    })
    .await
}

/// Why an answer was not sent to its end.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("reset by the client: {0}")]
    Reset(Reason),
    #[error("{0}")]
    Connection(#[from] h2::Error),
    #[error("{0}")]
    Body(#[from] UpstreamError),
}

async fn send(response: Response<EdgeBody>, is_head: bool, mut respond: SendResponse<Bytes>) -> Result<(), SendError> {
    let (mut parts, body) = response.into_parts();
    parts.headers.entry(header::DATE).or_insert_with(date::now);
    if let (false, Some(length)) = (body.is_end_stream(), body.size_hint().exact()) {
        parts.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    let ends = is_head || body.is_end_stream();
    let to = respond.send_response(Response::from_parts(parts, ()), ends)?;
    if ends { Ok(()) } else { send_body(body, to).await }
}

async fn send_body(mut body: EdgeBody, mut to: SendStream<Bytes>) -> Result<(), SendError> {
    let mut first = true;
    loop {
        let frame = match poll_fn(|cx| poll_frame(&mut body, &mut to, cx)).await {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(to.send_data(Bytes::new(), true)?),
            Err(error) => {
                // The client must not take a part for the whole.
                to.send_reset(Reason::INTERNAL_ERROR);
                return Err(error);
            }
        };
        match frame.into_data() {
            Ok(data) => {
                if !(data.is_empty() || (first && data.len() <= AT_ONCE_BYTES)) {
                    wait_for_room(&mut to).await?;
                }
                first = false;
                let ends = body.is_end_stream();
                to.send_data(data, ends)?;
                if ends {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    return Ok(to.send_trailers(trailers)?);
                }
            }
        }
    }
}

/// The next frame of the body, unless the client resets the stream first.
fn poll_frame(
    body: &mut EdgeBody,
    to: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<Frame<Bytes>>, SendError>> {
    match Pin::new(body).poll_frame(cx) {
        Poll::Ready(frame) => Poll::Ready(frame.transpose().map_err(SendError::Body)),
        Poll::Pending => to.poll_reset(cx).map(|reset| Err(reset.map_or_else(SendError::Connection, SendError::Reset))),
    }
}

/// Waits until the windows have room for a byte and what was handed over before is nearly
/// gone. One byte is asked for and a whole piece is sent: `h2` keeps what does not fit,
/// which is bounded by one read, and streams that wait do not hoard the connection's window.
async fn wait_for_room(to: &mut SendStream<Bytes>) -> Result<(), SendError> {
    to.reserve_capacity(1);
    while to.capacity() == 0 {
        match poll_fn(|cx| to.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
            None => return Err(SendError::Reset(Reason::CANCEL)),
        }
    }
    Ok(())
}
