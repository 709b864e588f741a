//! An agent's client socket: it sends numbered frames, keeps what comes, and comes back when it is closed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::{SinkExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::field::{Field, Refused, back_off, dial};
use super::record::{Page, Pipe, Promises, now, read_frame, write_frame};
use crate::support::{Closed, Pair, Ws, closed_of};

/// How the load is shaped.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Between two frames of a client.
    pub frames_every: Duration,
    /// Between the answer to a command and the next command, at most.
    pub orders_every: Duration,
    /// Bytes in each frame beside its number.
    pub filling: usize,
    /// Every other agent opens another client socket when the one that it has falls silent.
    pub impatient: bool,
    /// Every fourth agent comes back only after this when its client socket breaks.
    pub tardy: Option<Duration>,
}

/// Silence after which an impatient agent opens another socket.
const IMPATIENCE: Duration = Duration::from_secs(4);
/// How often it asks for a sign of life.
const PING: Duration = Duration::from_secs(1);

/// What all agents do now.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub enum Phase {
    Load,
    /// No new commands: those that are open are finished, and one last one is given.
    Finish,
    /// No new frames either.
    Quiet,
    /// Whatever ends now may end.
    Over,
}

/// What a test wants of an agent.
#[derive(Clone, Copy, Debug)]
pub enum Wish {
    /// Open so many more client sockets at once, at random nodes.
    Storm(usize),
    /// Drop the connections of all client sockets.
    Vanish,
}

/// A pair and who stands behind it.
pub struct Agent {
    pub number: usize,
    pub pair: Pair,
    pub page: Mutex<Page>,
    pub field: Arc<Field>,
    pub style: Style,
    pub promises: Promises,
    pub phase: watch::Receiver<Phase>,
    /// Whether the last command was answered and its event was heard.
    pub done: AtomicBool,
    pub next_frame: AtomicU64,
    pub home: Mutex<Option<SocketAddr>>,
    pub cuts: Mutex<Vec<CancellationToken>>,
}

/// News of a client socket.
enum News {
    Ended,
    Silent,
}

impl Agent {
    pub fn page(&self) -> MutexGuard<'_, Page> {
        self.page.lock().expect("no panic under the lock")
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Something that must not be, seen on the spot.
    pub fn odd(&self, what: String) {
        let mut page = self.page();
        if page.odd.len() < 20 {
            page.odd.push(what);
        }
    }

    pub fn home(&self) -> Option<SocketAddr> {
        *self.home.lock().expect("no panic under the lock")
    }

    /// Has one client socket open at all times, and does what is wished.
    pub async fn keep_open(self: Arc<Self>, mut wishes: mpsc::UnboundedReceiver<Wish>) {
        let (tell, mut news) = mpsc::unbounded_channel();
        let (mut open, mut failures) = (0_usize, 0_u32);
        loop {
            if open == 0 && self.phase() < Phase::Over {
                if self.open(&tell).await {
                    (open, failures) = (1, 0);
                } else {
                    failures += 1;
                    // Two hundred come back at once.
                    sleep(back_off(failures)).await;
                }
                continue;
            }
            tokio::select! {
                told = news.recv() => match told {
                    Some(News::Ended) => {
                        open -= 1;
                        if let (0, Some(late)) = (open, self.style.tardy.filter(|_| self.number % 4 == 3)) {
                            // Not a wait: what a pair without a client socket goes through is part of the load.
                            sleep(late).await;
                        }
                    }
                    Some(News::Silent) => open += usize::from(self.open(&tell).await),
                    None => return,
                },
                wish = wishes.recv() => match wish {
                    Some(Wish::Storm(count)) => {
                        let opened = join_all((0..count).map(|_| self.open(&tell))).await;
                        open += opened.into_iter().filter(|opened| *opened).count();
                    }
                    Some(Wish::Vanish) => {
                        for cut in self.cuts.lock().expect("no panic under the lock").drain(..) {
                            cut.cancel();
                        }
                    }
                    None => return,
                },
            }
        }
    }

    async fn open(self: &Arc<Self>, tell: &mpsc::UnboundedSender<News>) -> bool {
        let Some(node) = self.field.pick(None) else { return false };
        match dial(node, &self.pair.path("/client"), &self.pair.client_ticket, None).await {
            Ok(ws) => {
                let at = {
                    let mut page = self.page();
                    page.pipes.push(Pipe { node, opened: now(), ended: None, sent: Vec::new(), got: Vec::new() });
                    page.pipes.len() - 1
                };
                *self.home.lock().expect("no panic under the lock") = Some(node);
                let cut = CancellationToken::new();
                self.cuts.lock().expect("no panic under the lock").push(cut.clone());
                tokio::spawn(Arc::clone(self).hold(ws, at, cut, tell.clone()));
                true
            }
            Err(Refused::With(status, body)) => {
                // The pair lives, and its ticket is good: only "not now" is an answer, unless all was forgotten.
                let not_now = matches!(status, 409 | 429 | 500 | 503 | 504);
                if !not_now && self.promises.histories && self.phase() < Phase::Over {
                    self.odd(format!("a client socket was refused for good: {status} {body}"));
                }
                false
            }
            Err(Refused::Unreachable) => false,
        }
    }

    /// Holds one client socket until it ends.
    async fn hold(self: Arc<Self>, ws: Ws, at: usize, cut: CancellationToken, tell: mpsc::UnboundedSender<News>) {
        let (mut sink, mut stream) = ws.split();
        let first = Instant::now() + self.style.frames_every.mul_f64(rand::random());
        let mut frames = interval_at(first, self.style.frames_every);
        frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pings = interval_at(Instant::now() + PING, PING);
        let impatient = self.style.impatient && self.number.is_multiple_of(2);
        let (mut heard, mut silent) = (Instant::now(), false);
        let mut closed: Option<Closed> = None;
        let wanted = loop {
            tokio::select! {
                () = cut.cancelled() => break true,
                message = stream.next() => {
                    heard = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => {
                            let frame = read_frame(&text);
                            self.page().pipes[at].got.push(frame);
                        }
                        Some(Ok(Message::Close(frame))) => closed = Some(closed_of(frame.as_ref())),
                        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                        Some(Ok(other)) => self.odd(format!("a frame of another kind came out of the pipe: {other:?}")),
                        Some(Err(_)) | None => break false,
                    }
                }
                _ = frames.tick(), if closed.is_none() && self.phase() < Phase::Quiet => {
                    let number = self.next_frame.fetch_add(1, Relaxed);
                    self.page().pipes[at].sent.push(number);
                    let text = write_frame(self.number, at, number, self.style.filling);
                    // A pipe that takes nothing is closed by the other side in the end; a break is found by reading.
                    drop(timeout(Duration::from_secs(30), sink.send(Message::text(text))).await);
                }
                _ = pings.tick(), if impatient && closed.is_none() => {
                    drop(timeout(PING, sink.send(Message::Ping(Vec::new().into()))).await);
                    if heard.elapsed() > IMPATIENCE && !silent {
                        silent = true;
                        drop(tell.send(News::Silent));
                    }
                }
            }
        };
        self.page().pipes[at].ended = Some((now(), closed.unwrap_or(closed_of(None)), wanted));
        drop(tell.send(News::Ended));
    }
}
