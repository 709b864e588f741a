//! Opening a WebSocket with everything about the handshake in the test's hand.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, HeaderValue, Response};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Gateway, within};

pub type Ws = WebSocketStream<TcpStream>;

/// How a socket ended. No code means that the connection just went away.
#[derive(Clone, Debug, PartialEq)]
pub struct Closed {
    pub code: Option<u16>,
    pub reason: String,
}

/// Reads a close frame; a frame without a body has no code either.
pub fn closed_of(frame: Option<&CloseFrame>) -> Closed {
    Closed {
        code: frame.map(|frame| frame.code.into()),
        reason: frame.map(|frame| frame.reason.to_string()).unwrap_or_default(),
    }
}

/// A WebSocket handshake to be made.
#[derive(Clone)]
pub struct Dial {
    addr: SocketAddr,
    path: String,
    headers: Vec<(String, String)>,
    receive_buffer: Option<u32>,
    source: Option<IpAddr>,
}

impl Dial {
    pub fn to(node: &Gateway, path: impl Into<String>) -> Self {
        Self { addr: node.addr, path: path.into(), headers: Vec::new(), receive_buffer: None, source: None }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn bearer(self, ticket: &str) -> Self {
        self.header("Authorization", &format!("Bearer {ticket}"))
    }

    /// Offers subprotocols, comma-separated.
    pub fn offer(self, protocols: &str) -> Self {
        self.header("Sec-WebSocket-Protocol", protocols)
    }

    /// Pretends to be a page of this gateway's own origin.
    pub fn in_a_browser(self) -> Self {
        let origin = format!("http://{}", self.addr);
        self.header("Origin", &origin)
    }

    /// Adds to the query string.
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.path.push(if self.path.contains('?') { '&' } else { '?' });
        self.path += &format!("{name}={value}");
        self
    }

    /// Adds all of `a=1&b=2` to it.
    pub fn queries(self, text: &str) -> Self {
        let pairs = text.split('&').filter_map(|part| part.split_once('='));
        pairs.fold(self, |dial, (name, value)| dial.query(name, value))
    }

    /// A small kernel buffer, so that a peer that does not read is soon full.
    pub fn receive_buffer(mut self, bytes: u32) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    /// Comes from one of the loopback network's addresses.
    pub fn from(mut self, source: IpAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// Connects; the error says what the server answered instead.
    pub async fn connect(self) -> Result<(Ws, Response<Option<Vec<u8>>>), Error> {
        within("a WebSocket handshake", self.handshake()).await
    }

    /// Connects, or panics with the refusal.
    pub async fn open(self) -> Ws {
        let path = self.path.clone();
        match self.connect().await {
            Ok((ws, _)) => ws,
            Err(Error::Http(refusal)) => {
                let body = refusal.body().as_deref().map(String::from_utf8_lossy);
                panic!("GET {path} was refused: {} {body:?}", refusal.status())
            }
            Err(fault) => panic!("GET {path} failed: {fault}"),
        }
    }

    /// Connects and waits for the close that is expected at once.
    pub async fn closed(self) -> Closed {
        use futures_util::StreamExt;
        let mut ws = self.open().await;
        within("the close that refuses this socket", async {
            loop {
                match ws.next().await {
                    Some(Ok(Message::Close(frame))) => return closed_of(frame.as_ref()),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return closed_of(None),
                }
            }
        })
        .await
    }

    async fn handshake(self) -> Result<(Ws, Response<Option<Vec<u8>>>), Error> {
        let mut request = format!("ws://{}{}", self.addr, self.path).into_client_request()?;
        for (name, value) in &self.headers {
            let name: HeaderName = name.parse().expect("a header name");
            let value = HeaderValue::from_str(value).expect("a header value");
            request.headers_mut().append(name, value);
        }
        let socket = TcpSocket::new_v4()?;
        if let Some(bytes) = self.receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(source) = self.source {
            socket.bind((source, 0).into())?;
        }
        // A dropped socket then resets its connection: that is how peers vanish. A polite close
        // has done its handshake before the drop, so it is not hurt by this.
        socket.set_zero_linger()?;
        let stream = socket.connect(self.addr).await?;
        stream.set_nodelay(true)?;
        tokio_tungstenite::client_async(request, stream).await
    }
}
