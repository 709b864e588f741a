//! A client socket that counts every frame it gets.

use std::sync::{Arc, Mutex};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::{Closed, Dial, Gateway, PATIENCE, Pair, Sibling, Ws, closed_of};

/// The agent's end of a pipe. A task of its own reads all the time.
pub struct ClientSocket {
    sink: SplitSink<Ws, Message>,
    heard: Arc<Mutex<Heard>>,
    news: watch::Receiver<()>,
    reader: JoinHandle<()>,
    taken: usize,
}

#[derive(Default)]
struct Heard {
    /// Data frames only: control frames belong to the transport.
    frames: Vec<Message>,
    pings: usize,
    closed: Option<Closed>,
}

impl ClientSocket {
    /// Opens the pair's client socket on `node`.
    pub async fn open(node: &Gateway, pair: &Pair) -> Self {
        Self::over(pair.dial_client(node).open().await)
    }

    /// Opens the pair's client socket and waits until its `client.opened` stands in the history: a
    /// sibling that attaches now does not hear it any more.
    pub async fn open_and_told(node: &Gateway, pair: &Pair) -> Self {
        let mut sibling = Sibling::open(node, pair).await;
        let pipe = Self::open(node, pair).await;
        sibling.event("client.opened").await;
        sibling.sleep().await;
        pipe
    }

    pub fn over(ws: Ws) -> Self {
        let (sink, stream) = ws.split();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (tell, news) = watch::channel(());
        let reader = tokio::spawn(read(stream, Arc::clone(&heard), tell));
        Self { sink, heard, news, reader, taken: 0 }
    }

    pub async fn send(&mut self, frame: Message) {
        let sent = tokio::time::timeout(PATIENCE, self.sink.send(frame)).await;
        sent.expect("the pipe takes a frame in time").expect("an open pipe");
    }

    /// Like [`Self::send`], but a closed pipe is an answer.
    pub async fn try_send(&mut self, frame: Message) -> bool {
        let sent = tokio::time::timeout(PATIENCE, self.sink.send(frame)).await;
        sent.expect("the pipe takes or refuses a frame in time").is_ok()
    }

    /// Sends many frames in as few writes as they fit into.
    pub async fn burst(&mut self, frames: impl IntoIterator<Item = Message>) {
        let sent = tokio::time::timeout(PATIENCE, async {
            for frame in frames {
                self.sink.feed(frame).await?;
            }
            self.sink.flush().await
        });
        sent.await.expect("the pipe takes frames in time").expect("an open pipe");
    }

    pub async fn text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into())).await;
    }

    pub async fn binary(&mut self, bytes: impl Into<Vec<u8>>) {
        self.send(Message::binary(bytes.into())).await;
    }

    /// The next data frame, in order.
    pub async fn next(&mut self) -> Message {
        let at = self.taken;
        self.taken += 1;
        self.wait_for("a frame", |heard| heard.frames.get(at).cloned()).await
    }

    /// The next frame's text.
    pub async fn next_text(&mut self) -> String {
        match self.next().await {
            Message::Text(text) => text.to_string(),
            other => panic!("expected a text frame, got {other:?}"),
        }
    }

    /// Data frames received so far on this socket.
    pub fn received(&self) -> usize {
        self.heard.lock().expect("no panic under the lock").frames.len()
    }

    /// The last data frame received so far.
    pub fn last(&self) -> Option<Message> {
        self.heard.lock().expect("no panic under the lock").frames.last().cloned()
    }

    /// Waits until something more was heard since this or another wait ended.
    pub async fn more(&mut self) {
        let _ = self.news.changed().await;
    }

    /// All data frames received so far.
    pub fn frames(&self) -> Vec<Message> {
        self.heard.lock().expect("no panic under the lock").frames.clone()
    }

    /// All text frames received so far; any other frame is a failure.
    pub fn texts(&self) -> Vec<String> {
        let frames = self.frames().into_iter();
        frames.map(|frame| frame.into_text().expect("a text frame").to_string()).collect()
    }

    pub fn pings(&self) -> usize {
        self.heard.lock().expect("no panic under the lock").pings
    }

    /// Waits until `count` data frames have come in all.
    pub async fn until_received(&mut self, count: usize) {
        let what = format!("{count} frames");
        self.wait_for(&what, |heard| (heard.frames.len() >= count).then_some(())).await;
    }

    /// Whether the socket still is open, as far as this end has heard.
    pub fn is_open(&self) -> bool {
        self.heard.lock().expect("no panic under the lock").closed.is_none()
    }

    /// Waits for the end of the socket.
    pub async fn closed(&mut self) -> Closed {
        self.wait_for("the close of the pipe", |heard| heard.closed.clone()).await
    }

    /// Closes politely.
    pub async fn close(mut self, code: u16, reason: &str) {
        let frame = tokio_tungstenite::tungstenite::protocol::CloseFrame {
            code: code.into(),
            reason: reason.to_owned().into(),
        };
        let _ = self.sink.send(Message::Close(Some(frame))).await;
        self.closed().await;
    }

    /// Ends the connection as a pulled plug would.
    pub async fn vanish(mut self) {
        self.reader.abort();
        let _ = (&mut self.reader).await;
    }

    async fn wait_for<T>(&mut self, what: &str, mut find: impl FnMut(&Heard) -> Option<T>) -> T {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            self.news.mark_unchanged();
            if let Some(found) = find(&self.heard.lock().expect("no panic under the lock")) {
                return found;
            }
            let more = tokio::time::timeout_at(deadline, self.news.changed()).await;
            if !matches!(more, Ok(Ok(()))) {
                let heard = self.heard.lock().expect("no panic under the lock");
                if let Some(found) = find(&heard) {
                    return found;
                }
                let (frames, closed) = (heard.frames.len(), heard.closed.clone());
                // The reader must not find the lock poisoned.
                drop(heard);
                panic!("the pipe never gave {what}: {frames} frames so far, {closed:?}");
            }
        }
    }
}

impl Drop for ClientSocket {
    fn drop(&mut self) {
        // The reader holds the other half, and would keep the connection.
        self.reader.abort();
    }
}

async fn read(mut stream: SplitStream<Ws>, heard: Arc<Mutex<Heard>>, tell: watch::Sender<()>) {
    loop {
        let message = stream.next().await;
        let mut heard = heard.lock().expect("no panic under the lock");
        match message {
            Some(Ok(Message::Close(frame))) => heard.closed = Some(closed_of(frame.as_ref())),
            Some(Ok(Message::Ping(_))) => heard.pings += 1,
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(data)) => heard.frames.push(data),
            Some(Err(_)) | None => {
                heard.closed.get_or_insert(closed_of(None));
                tell.send_replace(());
                return;
            }
        }
        tell.send_replace(());
    }
}
