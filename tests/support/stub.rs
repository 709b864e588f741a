//! A server elsewhere that a gateway asks, in the test's hand.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with a request.
#[derive(Clone)]
pub enum Says {
    /// Answers with a status and a body.
    Body(u16, String),
    /// Takes the request and says nothing.
    Nothing,
    /// Breaks the connection.
    HangsUp,
}

type Rule = Box<dyn Fn(&str) -> Says + Send>;

/// A small HTTP server that remembers the bodies it was sent.
pub struct Stub {
    pub addr: SocketAddr,
    rule: Arc<Mutex<Rule>>,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    /// Starts a server that answers each body by a rule.
    pub async fn start(rule: impl Fn(&str) -> Says + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(rule)));
        let heard = Arc::default();
        let (rules, ears) = (Arc::clone(&rule), Arc::clone(&heard));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&rules), Arc::clone(&ears)));
            }
        });
        Self { addr, rule, heard }
    }

    pub fn url(&self) -> String {
        format!("http://{}/somewhere", self.addr)
    }

    /// Answers by another rule from now on.
    pub fn change(&self, rule: impl Fn(&str) -> Says + Send + 'static) {
        *self.rule.lock().expect("no panic under the lock") = Box::new(rule);
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.heard().len()
    }

    /// The bodies that it was sent.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().expect("no panic under the lock").clone()
    }
}

impl Says {
    pub fn json(value: &Value) -> Self {
        Self::Body(200, value.to_string())
    }
}

async fn serve(stream: TcpStream, rule: Arc<Mutex<Rule>>, heard: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            let (name, value) = line.trim_end().split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().ok()?;
            }
            if line.trim_end().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let body = String::from_utf8(body).ok()?;
        let says = rule.lock().expect("no panic under the lock")(&body);
        heard.lock().expect("no panic under the lock").push(body);
        match says {
            Says::Body(status, body) => {
                let head = format!("HTTP/1.1 {status} So\r\nContent-Length: {}\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).await.ok()?;
            }
            Says::Nothing => std::future::pending::<()>().await,
            Says::HangsUp => return None,
        }
    }
}
