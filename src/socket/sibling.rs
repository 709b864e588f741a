//! The actor of a sibling socket.
//!
//! Its `select!` waits on: its feed (the pair's events, while its own queue has room), the commands in flight, the
//! peer's messages (while not too many commands are in flight, nor came too fast), the socket's readiness to take more,
//! the end of its ticket, one alarm, and the node's drain. A slow command holds up nothing but its own answer.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::{
    Halves, Upgraded,
    calls::{Caller, Calls, trace_id},
    farewell,
    heartbeat::{Beat, Heartbeat},
    pace::Pace,
    read::Incoming,
    write::{Disconnected, Flushed, Writer},
};
use crate::{
    hub::Outbox,
    node::{Feed, FeedItem, Node, Pass, Term, now},
    protocol::{
        Answer, CloseCode, Closing, Codec, Event, EventKind, Failure, Message, PairId, Rate, Run, Said, SiblingId,
        Slow, write_cursor,
    },
};

/// The largest message that a sibling may send, in bytes.
const LARGEST: usize = 64 << 10;
/// The bound of the queue towards a sibling, in bytes. Events wait in the history when it is half full.
const QUEUE: usize = 1 << 20;
/// The most messages that are worked on at once; more are left unread. More than the marks that may wait for frames at a
/// time, so that these do not keep other commands from being heard.
const IN_FLIGHT: usize = 96;
/// The most events that are told in one go: some 40 KiB.
const TOLD_TOGETHER: usize = 128;
/// In a drain, how often a sibling that leaves looks whether its last commands are answered.
const LAST_REPLIES: Duration = Duration::from_millis(20);
/// In a drain, how long after its client socket a sibling is closed.
const LAST_LOOK: Duration = Duration::from_millis(100);

/// A sibling that may be served: it listens to its pair already.
pub struct SiblingSocket {
    /// Its name.
    pub id: SiblingId,
    /// Whose.
    pub caller: Caller,
    /// For how long.
    pub pass: Pass,
    /// How it writes.
    pub codec: Codec,
    /// What it hears.
    pub feed: Feed,
    /// How the pair stood when it came.
    pub state: Value,
}

/// The commands that are being carried out.
type Calling = FuturesUnordered<BoxFuture<'static, Option<Value>>>;

struct Sibling {
    node: Arc<Node>,
    id: SiblingId,
    pair: PairId,
    codec: Codec,
    feed: Feed,
    outbox: Outbox,
    heart: Heartbeat,
    pass: Pass,
    /// How fast its commands are read.
    pace: Pace,
    calls: Calls,
    in_flight: Option<Box<Calling>>,
    /// Whether the client socket is on this node, as far as the sibling has been told.
    client_here: bool,
    leave_at: Option<Instant>,
    /// In a drain, when it leaves even if commands are in flight.
    leave_by: Option<Instant>,
    /// It leaves: nothing more is read.
    leaving: bool,
}

/// Serves a sibling socket until it ends: `upgrade` completes when the handshake has been answered. Its task is no larger
/// than what [`Sibling::run`] needs, as for client sockets.
pub fn serve_sibling(
    node: Arc<Node>,
    socket: SiblingSocket,
    ping: Option<u64>,
    upgrade: impl Future<Output = Option<Upgraded>> + Send,
) -> impl Future<Output = ()> + Send {
    let beginning = Box::pin(begin(node, socket, ping, upgrade));
    async move {
        let Some((mut sibling, mut wire)) = beginning.await else { return };
        let closing = sibling.run(&mut wire).await;
        Box::pin(sibling.end(closing, wire)).await;
    }
}

async fn begin(
    node: Arc<Node>,
    socket: SiblingSocket,
    ping: Option<u64>,
    upgrade: impl Future<Output = Option<Upgraded>>,
) -> Option<(Box<Sibling>, Halves)> {
    let SiblingSocket { id, caller, pass, codec, feed, state } = socket;
    let pair = caller.pair;
    let upgraded = upgrade.await?;
    if let Err(failure) = node.count_in(pair, id).await {
        tracing::debug!(%pair, %failure, "a sibling is not counted");
    }
    let wire = upgraded.split(LARGEST);
    let mut sibling = Box::new(Sibling {
        heart: Heartbeat::new(ping.unwrap_or(node.settings.pipe.ping)),
        pace: Pace::new(
            node.settings
                .commands_per_second
                .map(|limit| Rate { messages_per_second: Some(f64::from(limit.get())), bytes_per_second: None }),
        ),
        id,
        pair,
        pass,
        codec,
        feed,
        outbox: Outbox::new(QUEUE, Slow::Close),
        in_flight: None,
        client_here: state["node"] == json!(node.id),
        leave_at: None,
        leave_by: None,
        leaving: false,
        node: Arc::clone(&node),
        calls: Calls::new(&node, caller.clone()),
    });
    sibling.greet(&caller, state);
    Some((sibling, wire))
}

impl Sibling {
    fn greet(&mut self, caller: &Caller, state: Value) {
        let place = self.feed.place();
        let data = json!({
            "pair": self.pair, "sibling": self.id, "node": self.node.id, "cursor": write_cursor(self.pair, &place, &self.node.settings.ticket_keys),
            "grants": caller.grants, "state": state, "protocol": 1,
        });
        let ready = Event::new(EventKind::Ready, now(), &Said { data, cause: None }, None);
        self.tell((Arc::new(ready), place));
    }

    /// Runs until the socket is to be closed: with what, or `None` when the peer is gone.
    #[allow(clippy::manual_async_fn, reason = "its future would hold what it was given twice")]
    fn run(&mut self, wire: &mut Halves) -> impl Future<Output = Option<Closing>> {
        async move {
            let mut alarm = std::pin::pin!(sleep_until(self.alarm_at()));
            let mut draining = Box::pin(self.node.draining.clone().cancelled_owned());
            let (mut writing, mut blocked) = (true, false);
            loop {
                if writing && !blocked {
                    match wire.writer.try_flush(Some(&self.outbox)) {
                        Ok(Flushed::All) => writing = false,
                        Ok(Flushed::Blocked) => blocked = true,
                        Ok(Flushed::Turn) => {}
                        Err(Disconnected) => return None,
                    }
                }
                if alarm.deadline() != self.alarm_at() {
                    alarm.as_mut().reset(self.alarm_at());
                }
                let level = self.outbox.level();
                if level.overflowed {
                    return Some(Closing::new(CloseCode::TooSlow));
                }
                let room = !level.lagging;
                tokio::select! {
                    item = self.feed.next(), if room => {
                        writing = true;
                        self.tell(item);
                        // What else is there already goes out with it, in one write.
                        for _ in 1..TOLD_TOGETHER {
                            let Some(item) = self.feed.next().now_or_never() else { break };
                            self.tell(item);
                        }
                    }
                    answer = next_answer(&mut self.in_flight), if self.in_flight.is_some() => {
                        writing = true;
                        if let Some(answer) = answer {
                            self.say(&answer);
                        }
                    }
                    incoming = wire.reader.next(), if room && self.may_read() => {
                        writing = true;
                        match self.hear(incoming, &mut wire.writer) {
                            Ok(()) => {}
                            Err(closing) => return closing,
                        }
                    }
                    writable = wire.writer.writable(), if blocked => {
                        blocked = false;
                        if writable.is_err() {
                            return None;
                        }
                    }
                    () = tokio::task::yield_now(), if writing && !blocked => {}
                    closing = self.pass.revoked() => return Some(closing),
                    () = alarm.as_mut() => {
                        let now = Instant::now();
                        if self.leave_at.is_some_and(|at| at <= now) {
                            self.leaving = true;
                            if self.in_flight.is_none() || self.leave_by.is_some_and(|by| by <= now) {
                                return Some(Closing::new(CloseCode::Restarting));
                            }
                            self.leave_at = Some(now + LAST_REPLIES);
                            continue;
                        }
                        match self.pass.ring(now) {
                            Some(Term::Expiring(data)) => self.feed.say(EventKind::TicketExpiring, data),
                            Some(Term::Over(closing)) => return Some(closing),
                            None => {}
                        }
                        if self.heart.next() <= now {
                            match self.heart.beat(self.pace.wait().is_some(), self.node.settings.pong) {
                                Beat::Ping(payload) => wire.writer.ping(&payload),
                                Beat::Dead => return Some(Closing::new(CloseCode::NoAnswer)),
                            }
                            writing = true;
                        }
                    }
                    () = &mut draining, if self.leave_at.is_none() => {
                        let plan = self.node.drain_plan();
                        // A client socket that goes with this node is heard of first.
                        let now = Instant::now();
                        self.leave_at = Some(now + if self.client_here { plan.last } else { plan.siblings });
                        self.leave_by = Some(now + plan.replies);
                    }
                }
            }
        }
    }

    /// The end, which is `None` where the peer is gone.
    async fn end(self: Box<Self>, closing: Option<Closing>, wire: Halves) {
        let Halves { mut reader, mut writer } = wire;
        let Self { node, id, pair, feed, outbox, .. } = *self;
        drop(feed);
        // Side by side: neither a slow broker nor a slow peer keeps the other waiting.
        let parting = async {
            if let Some(closing) = closing {
                writer.close(&closing);
                let queue = (closing.code != CloseCode::TooSlow.number()).then_some(&outbox);
                farewell::part(&mut reader, &mut writer, queue, farewell::LONGEST).await;
            }
        };
        tokio::join!(node.count_out(pair, id), parting);
    }

    fn alarm_at(&self) -> Instant {
        let times = [self.leave_at, self.pace.wait(), self.pass.due()];
        times.into_iter().flatten().fold(self.heart.next(), Instant::min)
    }

    /// Whether it is read now. What is not read waits in the kernel, and then at the sender.
    fn may_read(&self) -> bool {
        !self.leaving
            && self.in_flight.as_ref().is_none_or(|calls| calls.len() <= IN_FLIGHT)
            && self.pace.wait().is_none()
    }

    /// What the peer said; an error is the end of the socket.
    fn hear(&mut self, incoming: Incoming, writer: &mut Writer) -> Result<(), Option<Closing>> {
        if !self.heart.bears(&incoming) {
            return Err(Some(Closing::new(CloseCode::RateLimited)));
        }
        self.heart.heard();
        match incoming {
            Incoming::Frame(kind, bytes) if kind == self.codec.frame() => self.take(&bytes),
            Incoming::Frame(..) => return Err(Some(Closing::new(CloseCode::WrongKind))),
            Incoming::Ping(payload) => writer.pong(&payload),
            Incoming::Pong(payload) => self.heart.ponged(&payload),
            Incoming::Close(closing) => return Err(Some(closing)),
            Incoming::Broken(code) => return Err(Some(Closing::new(code))),
            Incoming::Gone => return Err(None),
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) {
        match self.codec.decode(bytes) {
            Ok(value) => {
                let (calls, message) = (self.calls.clone(), Message::from_value(value));
                self.pace.spend(message.count() as u64, 0);
                let call = Box::pin(async move { calls.answer(message).await });
                self.in_flight.get_or_insert_with(|| Box::new(never_all_asked())).push(call);
            }
            Err(failure) => {
                self.pace.spend(1, 0);
                if let Ok(answer) = serde_json::to_value(Answer::new(Value::Null, Err(failure), trace_id)) {
                    self.say(&answer);
                }
            }
        }
    }

    fn tell(&mut self, (event, place): FeedItem) {
        match event.kind {
            EventKind::ClientOpened => self.client_here = event.data()["node"] == json!(self.node.id),
            EventKind::ClientClosed => {
                self.client_here = false;
                self.leave_at = self.leave_at.map(|at| at.min(Instant::now() + LAST_LOOK));
            }
            _ => {}
        }
        let cursor = write_cursor(self.pair, &place, &self.node.settings.ticket_keys);
        self.put(self.codec.encode_event(&event, &cursor));
    }

    fn say(&mut self, message: &impl serde::Serialize) {
        self.put(self.codec.encode(message));
    }

    fn put(&mut self, message: Result<Vec<u8>, Failure>) {
        match message {
            // No postman comes here.
            Ok(bytes) => _ = self.outbox.push(&Run::of(self.codec.frame(), &bytes)),
            Err(failure) => tracing::error!(pair = %self.pair, %failure, "a message could not be encoded"),
        }
    }
}

/// An empty set of commands, but for one seat that never gets an answer. When each future of such a set has been asked once,
/// it takes this for a busy loop and has its task run again for nothing, which wakes another thread: with a single command
/// in flight that is each time. One that is never woken keeps it from that, once it has been asked itself.
fn never_all_asked() -> Calling {
    let mut calls: Calling = std::iter::once(std::future::pending().boxed()).collect();
    _ = calls.next().now_or_never();
    calls
}

/// The next answer; nothing is kept of them when none is awaited.
fn next_answer(calling: &mut Option<Box<Calling>>) -> impl Future<Output = Option<Value>> {
    poll_fn(|cx| {
        let Some(calls) = calling else { return Poll::Pending };
        let answer = ready!(calls.poll_next_unpin(cx)).flatten();
        if calls.len() <= 1 {
            *calling = None;
        }
        Poll::Ready(answer)
    })
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use super::*;

    fn task<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// As with client sockets: each of many thousand idle ones costs as much.
    #[test]
    fn an_idle_sibling_is_small() {
        let never = || -> Ready<Option<Upgraded>> { ready(None) };
        let sizes = (task(|node, socket, ping| serve_sibling(node, socket, ping, never())), size_of::<Sibling>());
        // With what the runtime adds, 512 and 1 024 bytes of memory.
        assert!(sizes.0 <= 384 && sizes.1 <= 1_024, "{sizes:?}");
    }
}
