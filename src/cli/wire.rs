//! What the tools share: opening a WebSocket to a gateway and saying why it did not open.

use http::HeaderMap;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, client::IntoClientRequest as _},
};

/// A socket to the gateway.
pub(super) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// Why a socket did not open.
pub(super) struct Refused {
    /// In words.
    pub(super) why: String,
    /// Whether trying again may help.
    pub(super) again: bool,
}

/// Opens a socket; the headers are those of the answer.
pub(super) async fn open(base: &str, path: &str, ticket: Option<&str>) -> Result<(Socket, HeaderMap), Refused> {
    let base = base.trim_end_matches('/');
    let base = match base.split_once("://") {
        Some(("http", rest)) => format!("ws://{rest}"),
        Some(("https", rest)) => format!("wss://{rest}"),
        Some(_) => base.to_owned(),
        None => format!("ws://{base}"),
    };
    let wrong = |why: String| Refused { why, again: false };
    let mut request = format!("{base}{path}").into_client_request().map_err(|error| wrong(error.to_string()))?;
    if let Some(ticket) = ticket {
        let value = format!("Bearer {ticket}").parse().map_err(|_| wrong("the ticket has odd characters".into()))?;
        request.headers_mut().insert(http::header::AUTHORIZATION, value);
    }
    match connect_async(request).await {
        Ok((socket, response)) => Ok((socket, response.headers().clone())),
        Err(Error::Http(response)) => {
            let body: serde_json::Value =
                response.body().as_deref().and_then(|b| serde_json::from_slice(b).ok()).unwrap_or_default();
            let why = body["detail"].as_str().map_or_else(|| response.status().to_string(), Into::into);
            Err(Refused { why, again: response.status().is_server_error() })
        }
        Err(error) => Err(Refused { why: format!("{base}: {error}"), again: true }),
    }
}

/// One path segment.
pub(super) fn segment(text: &str) -> String {
    text.replace('/', "%2F")
}
