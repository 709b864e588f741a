//! A peer below the WebSocket libraries: it breaks rules, and it need not read.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::{Gateway, upgrade_head, within};

/// An upgraded connection whose frames are written byte by byte.
pub struct RawSocket {
    stream: TcpStream,
}

impl RawSocket {
    /// Upgrades with a ticket, a subprotocol if one is wanted, and a small receive buffer.
    pub async fn upgrade(node: &Gateway, path: &str, ticket: &str, protocol: Option<&str>) -> Self {
        let bearer = format!("Bearer {ticket}");
        let mut headers = vec![("Authorization", bearer.as_str())];
        headers.extend(protocol.map(|name| ("Sec-WebSocket-Protocol", name)));
        let head = upgrade_head(node.addr, path, &headers);
        let open = async {
            let socket = TcpSocket::new_v4()?;
            socket.set_recv_buffer_size(4096)?;
            socket.set_zero_linger()?;
            let mut stream = socket.connect(node.addr).await?;
            stream.write_all(head.as_bytes()).await?;
            // Byte by byte, so that nothing behind the head is swallowed.
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                seen.push(stream.read_u8().await?);
            }
            assert!(seen.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&seen));
            Ok::<_, std::io::Error>(stream)
        };
        let stream = within("a raw upgrade", open).await.expect("a raw upgrade");
        Self { stream }
    }

    /// Writes bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("an open connection");
    }

    /// Writes as long as the peer takes bytes; returns how many it took within `limit`, a stall
    /// of `stall` ending it early.
    pub async fn pour(&mut self, bytes: &[u8], limit: Duration, stall: Duration) -> u64 {
        let started = std::time::Instant::now();
        let mut taken = 0;
        while started.elapsed() < limit {
            let whole = tokio::time::timeout(stall, self.stream.write_all(bytes));
            match whole.await {
                Ok(Ok(())) => taken += bytes.len() as u64,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        taken
    }

    /// Reads frames until a close frame comes, and returns its code. An end without one is `None`.
    pub async fn close_code(&mut self) -> Option<u16> {
        within("a close frame or the end", async {
            loop {
                let (opcode, payload) = self.frame().await?;
                if opcode == 8 {
                    let code = payload.first_chunk::<2>().copied();
                    return code.map(u16::from_be_bytes);
                }
            }
        })
        .await
    }

    /// The next frame that the gateway sent: opcode and payload.
    pub async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = self.stream.read_u8().await.ok()?;
        let second = self.stream.read_u8().await.ok()?;
        assert_eq!(second & 0x80, 0, "a server never masks");
        let length = match second {
            126 => u64::from(self.stream.read_u16().await.ok()?),
            127 => self.stream.read_u64().await.ok()?,
            short => u64::from(short),
        };
        let mut payload = vec![0; usize::try_from(length).ok()?];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some((first & 0x0f, payload))
    }

    /// A masked frame of a client; the mask is zero, so the payload stays legible.
    pub fn masked(first_byte: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first_byte];
        match payload.len() {
            short @ 0..126 => frame.push(0x80 | u8::try_from(short).expect("below 126")),
            medium @ 126..65536 => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(medium).expect("below 65536").to_be_bytes());
            }
            long => {
                frame.push(0x80 | 127);
                frame.extend((long as u64).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    }
}
