//! A sibling socket that keeps everything it hears, in the order of arrival.

use std::sync::{Arc, Mutex};

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;

use super::{Closed, Dial, Fault, Gateway, PATIENCE, Pair, Ws, closed_of};

/// The ids of commands begin here, far from those that tests write by hand.
const FIRST_ID: u64 = 1_000_000;

/// How a sibling socket writes its messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Codec {
    Json,
    MessagePack,
}

impl Codec {
    pub fn subprotocol(self) -> &'static str {
        match self {
            Self::Json => "siblings.v1.json",
            Self::MessagePack => "siblings.v1.msgpack",
        }
    }

    pub fn encode(self, value: &Value) -> Message {
        match self {
            Self::Json => Message::text(value.to_string()),
            Self::MessagePack => Message::binary(rmp_serde::to_vec_named(value).expect("a value to encode")),
        }
    }

    fn decode(self, message: &Message) -> Option<Value> {
        match (self, message) {
            (Self::Json, Message::Text(text)) => serde_json::from_str(text).ok(),
            (Self::MessagePack, Message::Binary(bytes)) => rmp_serde::from_slice(bytes).ok(),
            _ => None,
        }
    }
}

/// One message, as it came.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrival {
    /// An event's params object.
    Event(Value),
    /// A JSON-RPC response, or a batch of them.
    Reply(Value),
}

impl Arrival {
    pub fn event(&self) -> Option<&Value> {
        match self {
            Self::Event(params) => Some(params),
            Self::Reply(_) => None,
        }
    }
}

/// The type of an event.
pub fn kind_of(params: &Value) -> &str {
    params["type"].as_str().unwrap_or_default()
}

/// Whether an event belongs to the pair's history, or only to the connection that said it.
pub fn is_kept(params: &Value) -> bool {
    let kind = kind_of(params);
    if kind == "ticket.expiring" {
        return params["data"]["side"] == "client";
    }
    kind != "ready" && kind != "gap" && !kind.starts_with("broker.") && !kind.starts_with("node.")
}

/// The commanding end of a pair. A task of its own reads all the time.
pub struct Sibling {
    sink: SplitSink<Ws, Message>,
    codec: Codec,
    heard: Arc<Mutex<Heard>>,
    news: watch::Receiver<()>,
    reader: JoinHandle<()>,
    next_id: u64,
    /// How many arrivals [`Self::event`] has passed.
    passed: usize,
}

#[derive(Default)]
struct Heard {
    arrivals: Vec<Arrival>,
    closed: Option<Closed>,
}

impl Sibling {
    /// Attaches from now on.
    pub async fn open(node: &Gateway, pair: &Pair) -> Self {
        Self::open_in(Codec::Json, node, pair).await
    }

    pub async fn open_in(codec: Codec, node: &Gateway, pair: &Pair) -> Self {
        Self::over(codec, pair.dial_sibling(node)).await
    }

    /// Attaches where `cursor` left off.
    pub async fn wake(node: &Gateway, pair: &Pair, cursor: &str) -> Self {
        Self::over(Codec::Json, pair.dial_sibling(node).query("cursor", cursor)).await
    }

    /// Attaches by a prepared handshake, and waits for `ready`.
    pub async fn over(codec: Codec, dial: Dial) -> Self {
        let ws = dial.offer(codec.subprotocol()).open().await;
        let mut sibling = Self::on(codec, ws);
        let first = sibling.wait_for("its first frame", |all| all.first().cloned()).await;
        match first {
            Arrival::Event(params) if kind_of(&params) == "ready" => sibling,
            other => panic!("the first frame of a sibling is `ready`, not {other:?}"),
        }
    }

    fn on(codec: Codec, ws: Ws) -> Self {
        let (sink, stream) = ws.split();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let (tell, news) = watch::channel(());
        let reader = tokio::spawn(read(stream, codec, Arc::clone(&heard), tell));
        Self { sink, codec, heard, news, reader, next_id: FIRST_ID, passed: 0 }
    }

    /// The params of the `ready` that opened this socket.
    pub fn ready(&self) -> Value {
        let heard = self.heard.lock().expect("no panic under the lock");
        heard.arrivals[0].event().cloned().expect("checked when it came")
    }

    /// Sends a message as it is.
    pub async fn send(&mut self, message: Message) {
        let sent = tokio::time::timeout(PATIENCE, self.sink.send(message)).await;
        sent.expect("the sibling socket takes a message in time").expect("an open sibling socket");
    }

    /// Sends a value where the socket may already be closed: whether it was taken.
    pub async fn try_send_value(&mut self, value: &Value) -> bool {
        let sent = tokio::time::timeout(PATIENCE, self.sink.send(self.codec.encode(value))).await;
        sent.expect("the sibling socket takes or refuses a message in time").is_ok()
    }

    /// Sends a value in this socket's codec.
    pub async fn send_value(&mut self, value: &Value) {
        self.send(self.codec.encode(value)).await;
    }

    /// Sends a command and does not wait; returns its id.
    pub async fn ask(&mut self, method: &str, params: Value) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let call = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send_value(&call).await;
        id
    }

    /// Waits for the reply to one id, of any type.
    pub async fn reply(&mut self, id: impl Into<Value>) -> Result<Value, Fault> {
        let id = id.into();
        let what = format!("the reply to {id}");
        let response = self
            .wait_for(&what, |all| {
                all.iter().find_map(|arrival| match arrival {
                    Arrival::Reply(response) if response.get("id") == Some(&id) => Some(response.clone()),
                    _ => None,
                })
            })
            .await;
        Fault::split(&response)
    }

    /// Sends a command and waits for its reply.
    pub async fn call(&mut self, method: &str, params: Value) -> Result<Value, Fault> {
        let id = self.ask(method, params).await;
        self.reply(id).await
    }

    /// [`Self::call`] for a command that must work.
    pub async fn must(&mut self, method: &str, params: Value) -> Value {
        match self.call(method, params.clone()).await {
            Ok(result) => result,
            Err(fault) => panic!("{method} {params} failed: {fault:?}"),
        }
    }

    /// Sends `count` commands, many in flight but no queue without end, and waits for all replies,
    /// which must be good ones.
    pub async fn pour(&mut self, count: u64, command: impl Fn(u64) -> (&'static str, Value)) {
        let first = self.next_id;
        let answered = |all: &[Arrival]| {
            let ours = all.iter().filter(|arrival| match arrival {
                Arrival::Reply(reply) if reply["id"].as_u64().is_some_and(|id| id >= first) => {
                    assert!(reply.get("result").is_some(), "a command failed: {reply}");
                    true
                }
                _ => false,
            });
            ours.count() as u64
        };
        for n in 0..count {
            let (method, params) = command(n);
            self.ask(method, params).await;
            if n % 32 == 31 {
                self.until("most replies", |all| answered(all) + 48 > n).await;
            }
        }
        self.until("all replies", |all| answered(all) == count).await;
    }

    /// The next message that no earlier call of this or of [`Self::event`] has passed.
    pub async fn next(&mut self) -> Arrival {
        let at = self.passed;
        self.passed += 1;
        self.wait_for("one more message", |all| all.get(at).cloned()).await
    }

    /// The next event of this type after those already asked for; what lies between is passed over.
    pub async fn event(&mut self, kind: &str) -> Value {
        self.event_where(kind, |_| true).await
    }

    /// Like [`Self::event`], with a condition on the params.
    pub async fn event_where(&mut self, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let from = self.passed;
        let what = format!("the event {kind}");
        let (at, params) = self
            .wait_for(&what, |all| {
                all.iter().enumerate().skip(from).find_map(|(at, arrival)| {
                    let params = arrival.event()?;
                    (kind_of(params) == kind && fits(params)).then(|| (at, params.clone()))
                })
            })
            .await;
        self.passed = at + 1;
        params
    }

    /// Waits until `holds` of all that arrived.
    pub async fn until(&mut self, what: &str, holds: impl Fn(&[Arrival]) -> bool) {
        self.wait_for(what, |all| holds(all).then_some(())).await;
    }

    /// Like [`Self::until`], but a closed socket ends the wait, too: `false`.
    pub async fn until_or_closed(&mut self, holds: impl Fn(&[Arrival]) -> bool) -> bool {
        let find = |heard: &Heard| match holds(&heard.arrivals) {
            true => Some(true),
            false => heard.closed.as_ref().map(|_| false),
        };
        self.wait_in("news or its close", find).await
    }

    /// Everything that arrived, replies and events, in order.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.heard.lock().expect("no panic under the lock").arrivals.clone()
    }

    /// Every event that arrived, in order, as params objects.
    pub fn events(&self) -> Vec<Value> {
        let heard = self.heard.lock().expect("no panic under the lock");
        heard.arrivals.iter().filter_map(Arrival::event).cloned().collect()
    }

    /// The events that belong to the pair's history.
    pub fn story(&self) -> Vec<Value> {
        self.events().into_iter().filter(is_kept).collect()
    }

    /// The cursor to wake with: that of the last event heard.
    pub fn cursor(&self) -> String {
        let heard = self.heard.lock().expect("no panic under the lock");
        let last = heard.arrivals.iter().rev().find_map(Arrival::event);
        let cursor = last.and_then(|params| params["cursor"].as_str());
        cursor.expect("every event has a cursor").to_owned()
    }

    pub fn is_open(&self) -> bool {
        self.heard.lock().expect("no panic under the lock").closed.is_none()
    }

    /// Waits for the end of the socket.
    pub async fn closed(&mut self) -> Closed {
        let what = "the close of the sibling socket";
        self.wait_in(what, |heard| heard.closed.clone()).await
    }

    /// Goes to sleep: closes politely, and returns the cursor to wake with. What arrives while
    /// the close is under way counts as heard.
    pub async fn sleep(mut self) -> String {
        let _ = self.sink.send(Message::Close(None)).await;
        self.closed().await;
        self.cursor()
    }

    /// Like [`Self::sleep`], and returns all that was heard.
    pub async fn sleep_and_tell(mut self) -> Vec<Value> {
        let _ = self.sink.send(Message::Close(None)).await;
        self.closed().await;
        self.events()
    }

    /// Ends the connection as a pulled plug would.
    pub async fn vanish(mut self) {
        self.reader.abort();
        let _ = (&mut self.reader).await;
    }

    async fn wait_for<T>(&mut self, what: &str, mut find: impl FnMut(&[Arrival]) -> Option<T>) -> T {
        self.wait_in(what, |heard| find(&heard.arrivals)).await
    }

    async fn wait_in<T>(&mut self, what: &str, mut find: impl FnMut(&Heard) -> Option<T>) -> T {
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
                let last = heard.arrivals[heard.arrivals.len().saturating_sub(5)..].to_vec();
                let closed = heard.closed.clone();
                // The reader must not find the lock poisoned.
                drop(heard);
                panic!("the sibling never got {what}: {closed:?}, last {last:#?}");
            }
        }
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        // The reader holds the other half, and would keep the connection.
        self.reader.abort();
    }
}

async fn read(mut stream: SplitStream<Ws>, codec: Codec, heard: Arc<Mutex<Heard>>, tell: watch::Sender<()>) {
    loop {
        let message = stream.next().await;
        let mut heard = heard.lock().expect("no panic under the lock");
        match message {
            Some(Ok(Message::Close(frame))) => heard.closed = Some(closed_of(frame.as_ref())),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(data)) => {
                let value = codec.decode(&data).unwrap_or_else(|| json!({"unreadable": data.len()}));
                heard.arrivals.push(if value["method"] == "event" {
                    Arrival::Event(value["params"].clone())
                } else {
                    Arrival::Reply(value)
                });
            }
            Some(Err(_)) | None => {
                heard.closed.get_or_insert(closed_of(None));
                tell.send_replace(());
                return;
            }
        }
        tell.send_replace(());
    }
}
