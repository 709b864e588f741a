//! A reader of Server-Sent Events.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::http::{read_chunk, read_head};
use super::{Gateway, Reply, within};

/// One event stream, read as it comes.
pub struct Sse {
    from: BufReader<TcpStream>,
    pub head: Reply,
    waiting: String,
}

/// One message: its `id:` and its `data:`.
#[derive(Debug, PartialEq)]
pub struct Told {
    pub id: String,
    pub data: Value,
}

impl Sse {
    /// Opens a stream; `head` tells whether it was taken.
    pub async fn open(node: &Gateway, path: &str, headers: &[(&str, &str)]) -> Self {
        let mut head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: text/event-stream\r\n", node.addr);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        within("an event stream", async {
            let mut stream = TcpStream::connect(node.addr).await.expect("a connection");
            stream.write_all((head + "\r\n").as_bytes()).await.expect("a written request");
            let mut from = BufReader::new(stream);
            let head = read_head(&mut from).await.expect("a response");
            Self { from, head, waiting: String::new() }
        })
        .await
    }

    /// The next message; comments (keep-alives) and bare fields are passed over.
    pub async fn next(&mut self) -> Told {
        self.next_or_end().await.expect("a stream that has not ended")
    }

    /// The refusal that came in the place of a stream.
    pub async fn refusal(mut self) -> Reply {
        let length = self.head.header("content-length").and_then(|n| n.parse().ok());
        self.head.body = vec![0; length.expect("a refusal has a length")];
        within("a refusal", self.from.read_exact(&mut self.head.body)).await.expect("a whole refusal");
        self.head
    }

    /// Everything until the stream ends as it should.
    pub async fn rest(&mut self) -> Vec<Told> {
        let mut all = Vec::new();
        while let Some(told) = self.next_or_end().await {
            all.push(told);
        }
        all
    }

    async fn next_or_end(&mut self) -> Option<Told> {
        within("a Server-Sent Event, or the end of them", async {
            loop {
                while let Some((block, rest)) = self.waiting.split_once("\n\n") {
                    let told = parse(block);
                    self.waiting = rest.to_owned();
                    if told.is_some() {
                        return told;
                    }
                }
                let chunk = read_chunk(&mut self.from).await.expect("an open stream")?;
                self.waiting += std::str::from_utf8(&chunk).expect("UTF-8");
            }
        })
        .await
    }
}

fn parse(block: &str) -> Option<Told> {
    let field = |name: &str| {
        let mut lines = block.lines().filter_map(|line| line.strip_prefix(name));
        lines.next().map(|value| value.strip_prefix(' ').unwrap_or(value).to_owned())
    };
    assert_eq!(field("event:"), None, "no event: field, so that onmessage sees all: {block}");
    let data = field("data:")?;
    Some(Told {
        id: field("id:").unwrap_or_default(),
        data: serde_json::from_str(&data).expect("data is the params object"),
    })
}
