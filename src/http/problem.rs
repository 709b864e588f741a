//! Refusals as RFC 9457 `application/problem+json`.

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::{
    protocol::{Failure, Fault},
    socket::trace_id,
};

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
        let Failure { fault, message } = &self.0;
        let status = StatusCode::from_u16(fault.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        body(status, fault.code(), message, self.0.retry_after_ms())
    }
}

fn body(status: StatusCode, code: &str, detail: &str, retry_after_ms: Option<u64>) -> Response {
    let body = json!({
        "type": "about:blank", "title": status.canonical_reason(), "status": status.as_u16(),
        "code": code, "detail": detail, "trace_id": trace_id(),
    });
    let mut response = (status, body.to_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    match status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
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

/// Refuses requests whose host is in doubt: proxies disagree on which of two counts.
pub(super) async fn one_host(request: Request, next: Next) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts != 1 || request.uri().authority().is_some() {
        return Problem::new(Fault::InvalidRequest, "one Host header and a path, please").into_response();
    }
    next.run(request).await
}

/// A path that is there, by a method that is not.
pub(super) async fn method_not_allowed() -> Response {
    body(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the path does not take this method", None)
}

/// A socket's path, without the handshake of a socket.
pub(super) fn upgrade_required(detail: &str) -> Response {
    body(StatusCode::UPGRADE_REQUIRED, "upgrade_required", detail, None)
}
