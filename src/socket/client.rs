//! The actor of a client socket: the pure pipe.
//!
//! Its `select!` waits on: its mail (commands, the call to yield, news of its room), the event being appended, the job
//! being done with the registry (entering a room, writing facts), the peer's frames (unless held back), the socket's readiness to
//! take more (when something is queued), news from the outbox, the end of its ticket, one alarm for all that has a time
//! (heartbeat, pace, lag, the ticket's, drain). The node's drain rings at its outbox. Frames wait for none of the others.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::time::{Duration, Instant, Sleep, sleep_until};

use super::{
    Halves, Upgraded,
    ending::Ending,
    heartbeat::{Beat, Heartbeat},
    inflow::Inflow,
    jobs::{JobDone, next_job},
    kept::{self, Kept},
    marks::Marks,
    pace::Pace,
    pipe::{LagWatch, Refusals, TOO_BIG},
    switch::Switching,
    terms::Terms,
    write::{Disconnected, Flushed, Writer},
};
use crate::{
    hub::{Mailbox, Outbox, Room, Seldom},
    node::{ClientMail, Facts, Node, Opened, Pass, ReplyTo, Story, Term, Told, Unserved},
    protocol::{CloseCode, EventKind, Fence, PairId, Reply, Stand},
};

/// How long the answer to a handshake may take to be on its way.
const UPGRADE: Duration = Duration::from_secs(5);

/// The state of one client socket. `pipe` holds what concerns frames, `orders` what concerns commands, `jobs` what is
/// done with the registry, `kept` and `switch` how a pipe goes on over several sockets, and `ending` its end.
pub(super) struct Client {
    pub(super) node: Arc<Node>,
    pub(super) mailbox: Mailbox<ClientMail>,
    pub(super) pair: PairId,
    pub(super) fence: Fence,
    pub(super) facts: Facts,
    pub(super) terms: Terms,
    pub(super) room: Arc<Room>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) story: Story,
    /// The authority that it was opened with.
    pass: Pass,
    pub(super) heart: Heartbeat,
    pub(super) pace: Pace,
    pub(super) inflow: Inflow,
    /// In a room that keeps its frames.
    pub(super) kept: Option<Box<Kept>>,
    /// Its peer has been told to come back with another socket.
    pub(super) switching: Option<Box<Switching>>,
    pub(super) marks: Marks,
    pub(super) lag: Seldom<LagWatch>,
    pub(super) refusals: Seldom<Refusals>,
    /// Things to do with the registry, one after the other, beside everything else.
    pub(super) jobs: VecDeque<BoxFuture<'static, JobDone>>,
    /// One of them writes the facts, and whether they have changed since.
    pub(super) saving: bool,
    pub(super) unsaved: bool,
    /// One of them has the registry told what it lost.
    pub(super) restoring: bool,
    /// Who waits for a pong, and for which.
    pub(super) pings: Vec<(u64, Instant, ReplyTo)>,
    pub(super) since: Instant,
    /// Something may wait to be written.
    pub(super) writing: bool,
    /// The last run was as long as they get.
    pub(super) sent_much: bool,
    leave_at: Option<Instant>,
}

/// How a client socket is to be served.
#[derive(Default)]
pub struct Service {
    /// The subprotocol that it was answered with.
    pub subprotocol: Option<String>,
    /// The authority that it was opened with.
    pub pass: Pass,
    /// Seconds between pings, where its own settings are not to say it.
    pub ping: Option<u64>,
}

/// Serves a client socket until it ends: `upgrade` completes when the handshake has been answered.
///
/// A task is as large as the largest thing that it ever waits for, for all of its life. So the beginning and the end are
/// in boxes of their own, and what an idle socket costs is what [`Client::run`] needs.
pub fn serve_client(
    node: Arc<Node>,
    opened: Unserved,
    service: Service,
    upgrade: impl Future<Output = Option<Upgraded>> + Send,
) -> impl Future<Output = ()> + Send {
    let beginning = Box::pin(begin(node, opened, service, upgrade));
    async move {
        let (mut client, mut wire) = beginning.await;
        // By reference: moved, it would be there twice.
        match &mut wire {
            Some(wire) => {
                client.outbox.attach(wire.writer.wire());
                let ending = client.run(wire).await;
                client.outbox.detach();
                Box::pin(client.end(ending, Some(wire))).await;
            }
            None => Box::pin(client.end(Ending::Gone, None)).await,
        }
    }
}

/// The actor and its connection, if that has come to pass.
type Begun = (Box<Client>, Option<Halves>);

async fn begin(
    node: Arc<Node>,
    opened: Unserved,
    service: Service,
    upgrade: impl Future<Output = Option<Upgraded>>,
) -> Begun {
    let Opened { pair, fence, facts, outbox, room, ruling, past, resumed, talk, mailbox } = opened.serve();
    let Service { subprotocol, pass, ping } = service;
    let (terms, settings) = Terms::new(&node.settings, &facts, ruling);
    let mut client = Box::new(Client {
        story: Story::new(&node, pair, fence),
        heart: Heartbeat::new(ping.unwrap_or(terms.ping)),
        pace: Pace::new(settings.rate),
        inflow: Inflow::default(),
        kept: None,
        switching: None,
        marks: Marks::default(),
        lag: Seldom::default(),
        refusals: Seldom::default(),
        jobs: VecDeque::new(),
        saving: false,
        unsaved: false,
        restoring: false,
        pings: Vec::new(),
        since: Instant::now(),
        writing: true,
        sent_much: false,
        leave_at: None,
        node,
        mailbox,
        pair,
        fence,
        facts,
        terms,
        room,
        outbox,
        pass,
    });
    let opened = json!({
        "epoch": fence.epoch, "node": client.node.id, "room": client.facts.room, "format": client.facts.format,
        "subprotocol": subprotocol,
    });
    let stand = Stand::unsaid(client.facts.room.clone(), talk, None);
    client.story.raise_standing(EventKind::ClientOpened, opened, stand);
    if let Some(past) = past {
        client.begin_kept(past);
    }
    if let Some(resumed) = resumed {
        client.tell_resumed(resumed);
    }
    // One that does not come to pass must not keep the pair, nor the mail that comes for it.
    let upgraded = tokio::time::timeout(UPGRADE, upgrade).await.ok().flatten();
    let wire = upgraded.map(|upgraded| upgraded.split(client.node.settings.max_message_bytes));
    (client, wire)
}

impl Client {
    #[allow(clippy::manual_async_fn, reason = "its future would hold what it was given twice")]
    fn run(&mut self, wire: &mut Halves) -> impl Future<Output = Ending> {
        async move {
            let mut alarm = std::pin::pin!(sleep_until(self.alarm_at()));
            let mut blocked = false;
            loop {
                if std::mem::take(&mut self.sent_much) {
                    // The receivers get a chance to write before more comes.
                    tokio::task::yield_now().await;
                }
                self.tell_of_switch(&mut wire.writer);
                // Written at once where the kernel takes it: only what it does not take can make a client slow.
                if self.writing && !blocked {
                    match wire.writer.try_flush(Some(&self.outbox)) {
                        Ok(Flushed::All) => self.writing = false,
                        Ok(Flushed::Blocked) => blocked = true,
                        Ok(Flushed::Turn) => {}
                        Err(Disconnected) => return Ending::Gone,
                    }
                }
                if self.outbox.take_news() {
                    self.marks.reached = true;
                    if let Some(ending) = self.check_lag() {
                        return ending;
                    }
                }
                if self.marks.reached {
                    self.tell_marks();
                }
                self.catch_up();
                if self.leave_at.is_none() && self.node.drains() {
                    let within = self.node.drain_plan().clients;
                    self.leave_at = Some(Instant::now() + within.mul_f64(rand::random()));
                }
                self.set_alarm(alarm.as_mut());
                let turn = tokio::select! {
                    mail = self.mailbox.read() => match mail {
                        Some(ClientMail::Command { command, cause, reply }) => {
                            self.obey(command, cause, reply, &mut wire.writer)
                        }
                        Some(ClientMail::Yield { held, reply }) => self.asked_to_yield(held, reply),
                        Some(ClientMail::RoomChanged { state, cause }) => self.room_changed(state, cause),
                        Some(ClientMail::RoomClosed { room, reason, cause }) => self.room_closed(&room, &reason, cause),
                        Some(ClientMail::Restore) => {
                            self.restore();
                            None
                        }
                        Some(ClientMail::LookAgain) => {
                            self.story.look_again();
                            None
                        }
                        Some(ClientMail::Missed { room, lost, from }) => {
                            self.missed(&room, lost, from);
                            None
                        }
                        // The hub has it no more: others took the pair.
                        None => Some(Ending::Disowned),
                    },
                    told = self.story.proceed(), if self.story.pending() => match told {
                        Told::Well => None,
                        Told::Disowned => Some(Ending::Disowned),
                        Told::Forgotten => {
                            self.restore();
                            None
                        }
                    },
                    news = kept::news_of(&mut self.kept), if self.kept.as_deref().is_some_and(Kept::is_pending) => {
                        self.heard_of_kept(news);
                        None
                    }
                    done = next_job(&mut self.jobs), if !self.jobs.is_empty() => self.job_done(done),
                    incoming = wire.reader.next(), if self.may_read() => self.hear(incoming, wire),
                    writable = wire.writer.writable(), if blocked => {
                        blocked = false;
                        writable.err().map(|Disconnected| Ending::Gone)
                    }
                    () = tokio::task::yield_now(), if self.writing && !blocked => None,
                    () = self.outbox.changed() => {
                        self.writing = true;
                        None
                    }
                    closing = self.pass.revoked() => Some(Ending::because(closing)),
                    () = alarm.as_mut() => self.ring(&mut wire.writer),
                };
                if let Some(ending) = turn {
                    return ending;
                }
            }
        }
    }

    /// The peer broke the rules.
    pub(super) fn broken(&mut self, code: CloseCode) -> Ending {
        if code == CloseCode::TooBig {
            self.refuse(TOO_BIG);
        }
        Ending::gateway(code)
    }

    fn asked_to_yield(&mut self, held: Fence, reply: ReplyTo) -> Option<Ending> {
        if held == self.fence {
            return match &mut self.switching {
                Some(switching) => {
                    // It is for this that it closes; what its peer has sent before is taken first.
                    switching.is_waited_for(&self.node, reply);
                    None
                }
                None => Some(Ending::Yield(reply)),
            };
        }
        self.node.reply(reply, Reply::NotHere);
        None
    }

    /// The earliest thing that has a time.
    fn alarm_at(&self) -> Instant {
        let switch_by = self.switching.as_ref().map(|switching| switching.until);
        let times = [
            self.pace.wait(),
            self.lag.quiet_until(),
            self.refusals.due(),
            self.pass.due(),
            self.leave_at,
            self.marks.due(),
            switch_by,
        ];
        times.into_iter().flatten().fold(self.heart.next(), Instant::min)
    }

    fn set_alarm(&self, alarm: Pin<&mut Sleep>) {
        let at = self.alarm_at();
        if alarm.deadline() != at {
            alarm.reset(at);
        }
    }

    fn ring(&mut self, writer: &mut Writer) -> Option<Ending> {
        let now = Instant::now();
        if self.leave_at.is_some_and(|at| at <= now) {
            return Some(Ending::gateway(CloseCode::Restarting));
        }
        if self.switching.as_ref().is_some_and(|switching| switching.until <= now) {
            return Some(Ending::Gone);
        }
        match self.pass.ring(now) {
            Some(Term::Expiring(data)) => self.story.raise(EventKind::TicketExpiring, data, None),
            Some(Term::Over(closing)) => return Some(Ending::because(closing)),
            None => {}
        }
        if self.heart.next() <= now {
            match self.heart.beat(!self.may_read(), self.node.settings.pong) {
                Beat::Ping(payload) => {
                    writer.ping(&payload);
                    self.writing = true;
                }
                Beat::Dead => return Some(Ending::gateway(CloseCode::NoAnswer)),
            }
        }
        if self.refusals.due().is_some_and(|at| at <= now) {
            self.tell_refusals();
        }
        self.give_late_marks_up(now);
        self.check_lag()
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use super::*;

    fn task<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// Each of many thousand idle sockets costs as much. Who makes it more is to know it.
    #[test]
    fn an_idle_socket_is_small() {
        let never = || -> Ready<Option<Upgraded>> { ready(None) };
        let sizes = (task(|node, opened, service| serve_client(node, opened, service, never())), size_of::<Client>());
        // With what the runtime adds, 512 and 768 bytes of memory.
        assert!(sizes.0 <= 384 && sizes.1 <= 768, "{sizes:?}");
    }
}
