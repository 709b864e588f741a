//! WebSocket handshakes: what was asked for, what is answered, and how a refusal reaches its reader.

use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{
    Gateway,
    problem::{Problem, upgrade_required},
    server::Permit,
};
use crate::{
    protocol::{CloseCode, Closing, Failure, Fault},
    socket::Upgraded,
};

/// The most subprotocols that are looked at.
const MOST_PROTOCOLS: usize = 32;

/// The subprotocols that a request offers, in order.
pub(super) fn offered(headers: &HeaderMap) -> Vec<&str> {
    let lists = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(str::trim).filter(|p| !p.is_empty()).take(MOST_PROTOCOLS).collect()
}

/// A handshake that was asked for in good form and is not answered yet.
pub(super) struct Handshake {
    /// The request's headers.
    pub(super) headers: HeaderMap,
    /// The request's path and query.
    pub(super) uri: Uri,
    accept: String,
    /// What was offered, tokens left out.
    pub(super) protocols: Vec<String>,
    from_page: bool,
    on_upgrade: OnUpgrade,
    permit: Option<Permit>,
}

/// Routes take it as an argument: a request that is no handshake is answered without them.
impl<S: Send + Sync> FromRequestParts<S> for Handshake {
    type Rejection = Response;

    async fn from_request_parts(request: &mut Parts, _: &S) -> Result<Self, Response> {
        let headers = &request.headers;
        let has = |name, token: &str| {
            headers
                .get_all(name)
                .iter()
                .filter_map(|v: &HeaderValue| v.to_str().ok())
                .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
        };
        if !has(header::UPGRADE, "websocket") || !has(header::CONNECTION, "upgrade") {
            return Err(upgrade_required("this path is for WebSockets"));
        }
        if request.method != Method::GET {
            return Err(Problem::new(Fault::InvalidRequest, "a WebSocket is opened by GET").into_response());
        }
        if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
            return Err(upgrade_required("Sec-WebSocket-Version: must be 13"));
        }
        let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter().map(HeaderValue::as_bytes);
        let (Some(key), None) = (keys.next().filter(|key| is_key(key)), keys.next()) else {
            let message = "Sec-WebSocket-Key: must be 16 bytes in base64, once";
            return Err(Problem::new(Fault::InvalidRequest, message).into_response());
        };
        let accept = derive_accept_key(key);
        let protocols = offered(headers).into_iter().filter(|p| !p.starts_with("bearer.")).map(Into::into).collect();
        let from_page = headers.contains_key(header::ORIGIN);
        let extensions = &mut request.extensions;
        let permit = extensions.get::<Permit>().cloned();
        let Some(on_upgrade) = extensions.remove::<OnUpgrade>() else {
            return Err(upgrade_required("this connection can't be upgraded"));
        };
        let (headers, uri) = (request.headers.clone(), request.uri.clone());
        Ok(Self { headers, uri, accept, protocols, from_page, on_upgrade, permit })
    }
}

impl Handshake {
    /// Accepts: the response, and the future of the connection that it makes.
    pub(super) fn accept(
        self,
        protocol: Option<&str>,
    ) -> (Response, impl Future<Output = Option<Upgraded>> + Send + use<>) {
        let mut response = StatusCode::SWITCHING_PROTOCOLS.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(protocol) = protocol.and_then(|p| HeaderValue::from_str(p).ok()) {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        let (on_upgrade, permit) = (self.on_upgrade, self.permit);
        let upgraded = async move {
            let parts = on_upgrade.await.ok()?.downcast::<TokioIo<TcpStream>>().ok()?;
            Some(Upgraded { tcp: parts.io.into_inner(), leftover: parts.read_buf, permit: Box::new(permit) })
        };
        (response, upgraded)
    }

    /// Refuses: a page can't see an HTTP status, so it is let in and told by a close code; everyone else is told by
    /// the status.
    pub(super) fn refuse(self, gateway: &Arc<Gateway>, failure: Failure) -> Response {
        // A socket that was replaced while it opened is told so as if it had been a moment later.
        if !self.from_page && failure.fault != Fault::Conflict {
            return Problem(failure).into_response();
        }
        let code = CloseCode::from(failure.fault);
        let closing =
            if code == CloseCode::Replaced { Closing::new(code) } else { Closing::because(code, &failure.message) };
        let echo = self.protocols.first().cloned();
        let (response, upgraded) = self.accept(echo.as_deref());
        gateway.node.spawn_socket("refusal", async move {
            if let Some(upgraded) = upgraded.await {
                upgraded.refuse(&closing).await;
            }
        });
        response
    }
}

fn is_key(key: &[u8]) -> bool {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}
