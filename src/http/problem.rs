//! Refusals as RFC 9457 `application/problem+json`.

use std::time::Duration;

use axum::{
    extract::{FromRequestParts, Path, Request},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header, request::Parts};
use http_body::Body as _;
use serde_json::json;

use crate::{
    protocol::{Failure, Fault},
    socket::trace_id,
};

/// The largest body of a request, in bytes.
const LARGEST_BODY: usize = 64 << 10;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);

/// A refusal on its way out.
#[derive(Debug)]
pub(super) struct Problem(pub(super) Failure);

impl Problem {
    pub(super) fn new(fault: Fault, message: impl Into<String>) -> Self {
        Self(Failure::new(fault, message))
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Failure { fault, message, .. } = &self.0;
        let status = status_of(&self.0);
        body_of(status, fault.code(), message, self.0.retry_after_ms())
    }
}

/// A refusal for somebody who was not heard, as it goes onto the wire.
pub(super) fn unheard(failure: &Failure) -> String {
    let status = status_of(failure);
    let body = told(status, failure.fault.code(), &failure.message);
    let (title, status) = (status.canonical_reason().unwrap_or_default(), status.as_u16());
    format!(
        "HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn status_of(failure: &Failure) -> StatusCode {
    StatusCode::from_u16(failure.fault.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The body of a refusal.
fn told(status: StatusCode, code: &str, detail: &str) -> String {
    let body = json!({
        "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(),
        "code": code, "detail": detail, "trace_id": trace_id(),
    });
    body.to_string()
}

fn body_of(status: StatusCode, code: &str, detail: &str, retry_after_ms: Option<u64>) -> Response {
    let body = told(status, code, detail);
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    match status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // Whoever speaks so is not heard further on this connection.
        StatusCode::BAD_REQUEST | StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE => {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        StatusCode::UPGRADE_REQUIRED => {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            let seconds = retry_after_ms.unwrap_or(1_000).div_ceil(1_000).max(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        _ => {}
    }
    response
}

/// The name in a path. One that is not even text names nothing.
pub(super) struct Named(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_) => Err(Problem::new(Fault::NotFound, "the name in the path is not UTF-8")),
        }
    }
}

/// Refuses requests whose host is in doubt: proxies disagree on which of two counts.
pub(super) async fn one_host(request: Request, next: Next) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts != 1 || request.uri().authority().is_some() {
        return Problem::new(Fault::InvalidRequest, "one Host header and a path, please").into_response();
    }
    let headers = request.headers();
    if headers.contains_key(header::UPGRADE) && headers.contains_key(header::TRANSFER_ENCODING) {
        return Problem::new(Fault::InvalidRequest, "a handshake has no body").into_response();
    }
    next.run(request).await
}

/// Reads a request's body before anything else happens: all of it, in time, and no more than is allowed.
pub(super) async fn whole_body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    match tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, LARGEST_BODY)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, bytes.into())).await,
        Ok(Err(_)) => {
            let message = format!("the body has at most {LARGEST_BODY} bytes, and must be whole");
            Problem::new(Fault::TooLarge, message).into_response()
        }
        Err(_) => body_of(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body took too long", None),
    }
}

/// A path that is there, by a method that is not.
pub(super) async fn method_not_allowed() -> Response {
    body_of(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the path does not take this method", None)
}

/// A socket's path, without the handshake of a socket.
pub(super) fn upgrade_required(detail: &str) -> Response {
    body_of(StatusCode::UPGRADE_REQUIRED, "upgrade_required", detail, None)
}
