//! Flow 2, a command: from whoever asks to the actor that has the client socket, and back.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use futures_util::poll;
use serde_json::Value;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};

use super::{ClientMail, Node, ReplyTo};
use crate::protocol::{Cause, Command, Failure, Fault, Mail, NodeId, PairId, Reply};

/// How often a client socket that is just opening or moving house is looked for.
const LOOKS: u32 = 4;
/// How long between two looks.
pub(super) const BETWEEN_LOOKS: Duration = Duration::from_millis(40);

/// How long a node waits for a reply before it sends mail again: doubled each time. Mail may be lost, and so may its
/// reply; who gets the same mail again does nothing twice (see `once`).
const RESEND: Duration = Duration::from_millis(600);

/// Where a pair's client socket is.
enum Home {
    Here,
    There(NodeId),
}

/// The order of one asker's commands: they arrive in the order in which they were given.
#[derive(Default)]
pub struct Line(tokio::sync::Mutex<()>);

impl Node {
    /// Has the pair's client socket do something, on whichever node it is, and returns the result after the effect.
    ///
    /// # Errors
    /// What the actor answers; [`Fault::ClientDetached`] while there is no client socket, [`Fault::Gone`] after the
    /// pair's end, [`Fault::NotFound`] for an unknown pair, [`Fault::Timeout`] when no reply came.
    pub async fn ask(
        self: &Arc<Self>,
        pair: PairId,
        command: Command,
        cause: Cause,
        line: &Line,
    ) -> Result<Value, Failure> {
        let (key, name, wait) = (cause.key.clone(), command.name(), command.wait());
        let outcome = self.ask_unless_known(pair, command, cause, line).await;
        let absent = |failure: &Failure| matches!(failure.fault, Fault::ClientDetached | Fault::Gone);
        match (outcome, key) {
            // It may have been this very command that closed the client socket or ended the pair.
            (Err(failure), Some(key)) if absent(&failure) => {
                let deadline = Instant::now() + self.settings.command_timeout + wait;
                loop {
                    match self.recall(pair, &key, name).await? {
                        Some(Reply::Done(result)) => return Ok(result),
                        Some(Reply::Failed(first)) => return Err(first),
                        Some(Reply::Again) if Instant::now() < deadline => sleep(BETWEEN_LOOKS).await,
                        Some(Reply::Again) => return Err(timed_out()),
                        Some(Reply::NotHere) | None => return Err(failure),
                    }
                }
            }
            (outcome, _) => outcome,
        }
    }

    async fn ask_unless_known(
        self: &Arc<Self>,
        pair: PairId,
        command: Command,
        cause: Cause,
        line: &Line,
    ) -> Result<Value, Failure> {
        let deadline = Instant::now() + self.settings.command_timeout + command.wait();
        let mut looks = 0;
        while looks < LOOKS {
            if looks > 0 {
                sleep(BETWEEN_LOOKS).await;
            }
            // In line until it is on its way: whoever asks next is behind it, even if this has to look the home up.
            let turn = line.0.lock().await;
            let home = match self.likely_home(pair) {
                Some(home) => home,
                None => self.look_home(pair).await?,
            };
            let reply = match home {
                Home::Here => {
                    let (reply, waiting) = oneshot::channel();
                    let mail = ClientMail::Command {
                        command: command.clone(),
                        cause: cause.clone(),
                        reply: ReplyTo::Here(reply),
                    };
                    self.deliver(pair, mail);
                    drop(turn);
                    // An actor that ended with the mail unread drops it.
                    let reply = timeout_at(deadline, waiting).await.map_err(|_| timed_out())?;
                    reply.unwrap_or(Reply::NotHere)
                }
                Home::There(node) => {
                    let (number, reply) = self.expect_reply();
                    let ask =
                        Mail::Ask { number, from: self.id, pair, command: command.clone(), cause: cause.clone() };
                    let mut waiting = pin!(self.post_until_answered(node, &ask, number, reply, deadline));
                    // The first look at it posts it.
                    let answered = poll!(waiting.as_mut());
                    drop(turn);
                    let answered = match answered {
                        Poll::Ready(reply) => reply,
                        Poll::Pending => waiting.await,
                    };
                    // Whoever asks next looks whether it is still there.
                    answered.inspect_err(|_| self.hub.set_home(pair, None))?
                }
            };
            match reply {
                Reply::Done(result) => return Ok(result),
                Reply::Failed(failure) => return Err(failure),
                Reply::NotHere => {
                    self.hub.set_home(pair, None);
                    looks += 1;
                }
                Reply::Again if Instant::now() >= deadline => return Err(timed_out()),
                Reply::Again => sleep(BETWEEN_LOOKS).await,
            }
        }
        Err(detached())
    }

    /// Gives a reply that arrived to whoever waits for it.
    pub(super) fn complete(&self, number: u64, outcome: Reply) {
        if let Some((_, waiting)) = self.pending.remove(&number) {
            drop(waiting.send(outcome));
        }
    }

    fn likely_home(&self, pair: PairId) -> Option<Home> {
        if self.hub.has(pair) {
            return Some(Home::Here);
        }
        self.hub.home(pair).filter(|node| *node != self.id).map(Home::There)
    }

    async fn look_home(&self, pair: PairId) -> Result<Home, Failure> {
        let record = self.registry.look_up(pair).await?.ok_or_else(|| self.unknown(pair))?;
        if record.ended {
            return Err(gone());
        }
        self.hub.set_home(pair, record.holder);
        match record.holder {
            Some(node) if node == self.id => Ok(Home::Here),
            Some(node) => Ok(Home::There(node)),
            None => Err(detached()),
        }
    }

    pub(super) fn expect_reply(&self) -> (u64, oneshot::Receiver<Reply>) {
        let number = self.numbers.fetch_add(1, Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.pending.insert(number, sender);
        (number, receiver)
    }

    /// Posts mail, again and again while there is no reply.
    pub(super) async fn post_until_answered(
        &self,
        node: NodeId,
        mail: &Mail,
        number: u64,
        mut reply: oneshot::Receiver<Reply>,
        deadline: Instant,
    ) -> Result<Reply, Failure> {
        // However the wait ends (an asker may be dropped in the middle), nothing stays behind.
        struct Forget<'a>(&'a Node, u64);
        impl Drop for Forget<'_> {
            fn drop(&mut self) {
                self.0.pending.remove(&self.1);
            }
        }
        let _forget = Forget(self, number);
        let mut patience = RESEND;
        while Instant::now() < deadline {
            self.post(node, mail);
            let until = deadline.min(Instant::now() + patience);
            if let Ok(reply) = timeout_at(until, &mut reply).await {
                return reply.map_err(|_| timed_out());
            }
            patience *= 2;
        }
        Err(timed_out())
    }
}

pub(super) fn not_found(pair: PairId) -> Failure {
    Failure::new(Fault::NotFound, format!("there is no pair {pair}"))
}

pub(super) fn gone() -> Failure {
    Failure::new(Fault::Gone, "the pair has ended: make a new one")
}

pub(super) fn detached() -> Failure {
    Failure::new(Fault::ClientDetached, "the pair has no live client socket: wait for client.opened")
}

/// The client's actor has more mail than it can take.
pub(super) fn busy() -> Failure {
    Failure::new(Fault::RateLimited, "too many commands at once for this pair: wait for replies")
}

pub(super) fn timed_out() -> Failure {
    Failure::new(
        Fault::Timeout,
        "no reply in time: whether the command took effect is unknown; sent again with its key it does not take effect twice",
    )
}
