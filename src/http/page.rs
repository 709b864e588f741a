//! What a browser sees: a page that moves, and the description of the commands. Embedded, so that the binary is all.

use axum::{Json, response::IntoResponse};
use http::{HeaderName, StatusCode, header};

/// Nothing from elsewhere, and sockets to wherever the gateway says that it is.
const POLICY: &str = "default-src 'self'; connect-src 'self' ws: wss:; base-uri 'none'; frame-ancestors 'none'";

fn asset(kind: &'static str, body: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, body)
}

pub(super) async fn index() -> impl IntoResponse {
    asset("text/html; charset=utf-8", include_str!("../web/index.html"))
}

pub(super) async fn script() -> impl IntoResponse {
    asset("text/javascript; charset=utf-8", include_str!("../web/page.js"))
}

pub(super) async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", include_str!("../web/page.css"))
}

pub(super) async fn no_icon() -> StatusCode {
    StatusCode::NO_CONTENT
}

pub(super) async fn open_rpc() -> impl IntoResponse {
    Json(crate::socket::open_rpc())
}
