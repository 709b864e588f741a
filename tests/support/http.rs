//! The least HTTP/1.1 that the tests need, by hand: they also have to send what no library would.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};

use super::within;

/// A response, whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|fault| panic!("{} is no JSON ({fault}): {:?}", self.status, self.text()))
    }

    /// Checks that this is a problem+json of `status`, and returns its stable code.
    #[track_caller]
    pub fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        let kind = self.header("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/problem+json"), "{kind:?}: {}", self.text());
        let body = self.json();
        assert!(body["trace_id"].is_string(), "a problem has a trace_id: {body}");
        assert_eq!(body["status"], status, "{body}");
        body["code"].as_str().expect("a problem has a stable code").to_owned()
    }
}

/// One request on a connection of its own.
pub async fn send(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Reply {
    let body = body.map(|body| serde_json::to_vec(body).expect("a JSON value"));
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(body) = &body {
        let named = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if !named {
            head += "Content-Type: application/json\r\n";
        }
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    let mut bytes = (head + "\r\n").into_bytes();
    bytes.extend(body.unwrap_or_default());
    exchange(addr, &bytes).await
}

/// The head of a well-formed upgrade request.
pub fn upgrade_head(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> String {
    let mut head = format!(
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head + "\r\n"
}

/// Asks for an upgrade and returns the answer, whatever it is.
pub async fn upgrade(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Reply {
    exchange(addr, upgrade_head(addr, path, headers).as_bytes()).await
}

/// Sends raw bytes and reads one response.
pub async fn exchange(addr: SocketAddr, bytes: &[u8]) -> Reply {
    talk(TcpStream::connect(addr), bytes).await
}

/// The same, from one of the loopback network's addresses.
pub async fn exchange_from(source: IpAddr, addr: SocketAddr, bytes: &[u8]) -> Reply {
    let connecting = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        socket.connect(addr).await
    };
    talk(connecting, bytes).await
}

async fn talk(connecting: impl Future<Output = std::io::Result<TcpStream>>, bytes: &[u8]) -> Reply {
    let talk = async {
        let mut stream = connecting.await?;
        stream.write_all(bytes).await?;
        read_reply(&mut BufReader::new(stream)).await
    };
    match within("an HTTP response", talk).await {
        Ok(reply) => reply,
        // Status 0: no response at all, which is what a probe of a gone node gets.
        Err(fault) => Reply { status: 0, headers: Vec::new(), body: fault.to_string().into_bytes() },
    }
}

/// Reads the status line and the headers.
pub async fn read_head(from: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Reply> {
    let line = read_line(from).await?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let mut reply = Reply {
        status: status.ok_or_else(|| std::io::Error::other(format!("no status line: {line:?}")))?,
        headers: Vec::new(),
        body: Vec::new(),
    };
    loop {
        let line = read_line(from).await?;
        match line.split_once(':') {
            Some((name, value)) => reply.headers.push((name.to_owned(), value.trim().to_owned())),
            None => return Ok(reply),
        }
    }
}

async fn read_reply(from: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Reply> {
    let mut reply = read_head(from).await?;
    if reply.status == 101 || reply.status == 204 {
        return Ok(reply);
    }
    let length = reply.header("content-length").and_then(|n| n.parse::<usize>().ok());
    if let Some(length) = length {
        reply.body = vec![0; length];
        from.read_exact(&mut reply.body).await?;
    } else if reply.header("transfer-encoding") == Some("chunked") {
        while let Some(chunk) = read_chunk(from).await? {
            reply.body.extend(chunk);
        }
    } else {
        from.read_to_end(&mut reply.body).await?;
    }
    Ok(reply)
}

/// Reads one chunk of a chunked body; `None` is its end.
pub async fn read_chunk(from: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let line = read_line(from).await?;
    let size = usize::from_str_radix(line.trim(), 16)
        .map_err(|_| std::io::Error::other(format!("no chunk size: {line:?}")))?;
    let mut chunk = vec![0; size];
    from.read_exact(&mut chunk).await?;
    read_line(from).await?;
    Ok((size > 0).then_some(chunk))
}

async fn read_line(from: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<String> {
    let mut line = String::new();
    if from.read_line(&mut line).await? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}
