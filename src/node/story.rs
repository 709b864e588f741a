//! Flow 3, an event: raised by whoever saw it, appended in order, and only then is its cause answered.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::{Node, ReplyTo, now, pause};
use crate::{
    broker::{Appended, BrokerError, DRAFTS, Draft, Under},
    protocol::{Cause, Event, EventKind, Fence, PairId, Position, Reply, Said, Topic, Unsaid},
};

/// How many events may wait for the broker. Beyond, the oldest that no attempt carries are given up, and a gap with
/// their number is kept in their place.
const MOST_WAITING: usize = 256;
/// How long between two attempts to append the same events.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// An event that waits to be appended, or a number of them that were given up.
struct Chapter {
    /// The same for every attempt, so that an attempt whose answer was lost adds nothing twice.
    draft: Draft,
    /// How many events were given up here; 0 for one that was not.
    lost: u64,
    /// Sent when the event stands in the history, or when the broker is away: the effect has happened anyhow.
    reply: Option<(ReplyTo, Reply)>,
}

/// What an attempt to append showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// All is well, or will be.
    Well,
    /// Another has the pair: nothing that this one says counts any more.
    Disowned,
    /// The broker has no record of the pair: it has lost its data.
    Forgotten,
}

/// The events of one client socket that its actor raises, in order. The actor polls it beside everything else, so that
/// a slow broker delays no frame.
pub struct Story {
    node: Arc<Node>,
    pair: PairId,
    fence: Fence,
    waiting: VecDeque<Chapter>,
    /// How many of the first are in an attempt, or were in one that may have worked.
    carried: usize,
    /// The last attempt failed.
    away: bool,
    /// The last few that stand, as far as this node knows: what a fail-over may take back.
    stands: VecDeque<(Position, Draft)>,
    /// The end of the history is to be looked at.
    doubted: bool,
    appending: Option<Appending>,
}

type Appending = BoxFuture<'static, Result<Appended, BrokerError>>;

impl Story {
    /// The story of the client socket under `fence`; nothing is told yet.
    #[must_use]
    pub fn new(node: &Arc<Node>, pair: PairId, fence: Fence) -> Self {
        Self {
            node: Arc::clone(node),
            pair,
            fence,
            waiting: VecDeque::new(),
            carried: 0,
            away: false,
            stands: VecDeque::new(),
            doubted: false,
            appending: None,
        }
    }

    /// Raises an event.
    pub fn raise(&mut self, kind: EventKind, data: Value, cause: Option<Cause>) {
        self.push(draft(kind, data, cause), None);
    }

    /// Raises an event that tells where the pair stands in its room's talk.
    pub fn raise_standing(&mut self, kind: EventKind, data: Value, stand: Option<Box<Unsaid>>) {
        self.push(draft_with(kind, data, None, stand), None);
    }

    /// Raises the event that is the effect of a command, and replies to the command once it stands.
    pub fn raise_and_reply(&mut self, kind: EventKind, data: Value, cause: Cause, reply: ReplyTo, outcome: Reply) {
        self.push(draft(kind, data, Some(cause)), Some((reply, outcome)));
    }

    /// How many events may come at once without that any has to be given up, and with room for others: no bound while the
    /// broker is away, so that nothing waits for it but events.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.away { usize::MAX } else { (MOST_WAITING / 2).saturating_sub(self.waiting.len()) }
    }

    /// Raises the event that the pair has moved, and replies to the command with the same once it stands.
    pub fn raise_moved(&mut self, data: Value, stand: Option<Box<Unsaid>>, cause: Cause, reply: ReplyTo) {
        let outcome = Reply::Done(data.clone());
        self.push(draft_with(EventKind::ClientMoved, data, Some(cause), stand), Some((reply, outcome)));
    }

    fn push(&mut self, draft: Draft, reply: Option<(ReplyTo, Reply)>) {
        if self.waiting.len() >= MOST_WAITING {
            self.give_one_up();
        }
        let reply = match (self.away, reply) {
            (true, Some((to, outcome))) => {
                self.node.reply(to, outcome);
                None
            }
            (_, reply) => reply,
        };
        self.waiting.push_back(Chapter { draft, lost: 0, reply });
    }

    /// Makes room: one more event is only counted, in the gap that stands for those before it.
    fn give_one_up(&mut self) {
        let at = self.carried;
        self.answer(at + 2, None);
        if self.waiting[at].lost == 0 {
            tracing::warn!(pair = %self.pair, "events are given up: the broker is away for too long");
            self.waiting[at].lost = 1;
        }
        self.waiting.remove(at + 1);
        let gap = &mut self.waiting[at];
        gap.lost += 1;
        gap.draft = lost_draft(Some(gap.lost));
    }

    /// Whether there is something to do: when not, [`Story::proceed`] would wait for ever.
    #[must_use]
    pub fn pending(&self) -> bool {
        !self.waiting.is_empty() || self.doubted || self.appending.is_some()
    }

    /// Has the end of the history looked at: a broker that changed its primary may have lost it.
    pub fn look_again(&mut self) {
        self.doubted = true;
    }

    /// Appends what waits, or a part of it. May be dropped while it waits; nothing is lost or doubled by that.
    pub fn proceed(&mut self) -> impl Future<Output = Told> + '_ {
        poll_fn(|cx| self.poll_proceed(cx))
    }

    fn poll_proceed(&mut self, cx: &mut Context<'_>) -> Poll<Told> {
        if self.appending.is_none() && self.pending() {
            self.doubted = false;
            self.carried = self.waiting.len().min(DRAFTS);
            self.appending = Some(self.attempt(Duration::ZERO));
        }
        let Some(appending) = &mut self.appending else { return Poll::Pending };
        let outcome = ready!(appending.as_mut().poll(cx));
        self.appending = None;
        Poll::Ready(self.appended(outcome))
    }

    fn appended(&mut self, outcome: Result<Appended, BrokerError>) -> Told {
        match outcome {
            Ok(Appended::At(last, _)) => {
                self.away = false;
                self.answer(self.carried, None);
                // Most sockets have told little.
                if self.stands.is_empty() {
                    self.stands.reserve_exact(self.carried);
                }
                let carried = std::mem::take(&mut self.carried) as u64;
                for (chapter, behind) in self.waiting.drain(..carried as usize).zip((0..carried).rev()) {
                    let at = Position { offset: last.offset.saturating_sub(behind), nonce: chapter.draft.nonce };
                    self.stands.push_back((at, chapter.draft));
                }
                if self.waiting.is_empty() {
                    self.waiting = VecDeque::new();
                }
                self.stands.drain(..self.stands.len().saturating_sub(DRAFTS));
                Told::Well
            }
            Ok(Appended::Behind(head)) => {
                self.tell_again(head);
                Told::Well
            }
            Ok(Appended::Refused) => {
                // Whoever asked is to ask the one that has the pair.
                self.answer(self.waiting.len(), Some(&Reply::NotHere));
                Told::Disowned
            }
            missed => {
                self.away = true;
                self.answer(self.waiting.len(), None);
                self.appending = Some(self.attempt(RETRY));
                if matches!(missed, Ok(Appended::Missing)) { Told::Forgotten } else { Told::Well }
            }
        }
    }

    fn attempt(&self, after: Duration) -> Appending {
        let (node, topic) = (Arc::clone(&self.node), Topic::Pair(self.pair));
        let under = Under { fence: self.fence, after: self.stands.back().map(|(at, _)| *at) };
        let drafts: Vec<_> = self.waiting.iter().take(self.carried).map(|chapter| chapter.draft.clone()).collect();
        Box::pin(async move {
            pause(after).await;
            node.broker.append(&topic, Some(under), &drafts, &node.settings.keep).await
        })
    }

    /// The history ends at `head`, before what stood already: a fail-over has lost its tail. What is remembered of it is
    /// appended again, in its order and with its nonces: behind the same entry it gets the same places, and nobody who
    /// has heard it hears it again. If the history ends before all that is remembered, a gap says so.
    fn tell_again(&mut self, head: Position) {
        self.carried = 0;
        let known = self.stands.iter().position(|(at, _)| *at == head);
        let lost = std::mem::take(&mut self.stands);
        let drafts: Vec<_> = match known {
            Some(at) => lost.into_iter().skip(at + 1).map(|(_, draft)| draft).collect(),
            None if lost.is_empty() => return,
            None => vec![lost_draft(None)],
        };
        tracing::warn!(pair = %self.pair, events = drafts.len(), exact = known.is_some(), "the broker lost events");
        for draft in drafts.into_iter().rev() {
            self.waiting.push_front(Chapter { draft, lost: 0, reply: None });
        }
    }

    /// The pair's history has begun anew, and says so itself.
    pub fn begin_anew(&mut self) {
        self.stands.clear();
    }

    /// The end of the socket: what was not appended is handed on, in order. Who waits for a reply gets it now.
    pub(super) fn into_rest(mut self) -> Vec<Draft> {
        self.answer(self.waiting.len(), None);
        self.waiting.into_iter().map(|chapter| chapter.draft).collect()
    }

    /// Answers who waits for the first `count` events; with `instead`, that they had no effect.
    fn answer(&mut self, count: usize, instead: Option<&Reply>) {
        for chapter in self.waiting.iter_mut().take(count) {
            if let Some((to, outcome)) = chapter.reply.take() {
                self.node.reply(to, instead.cloned().unwrap_or(outcome));
            }
        }
    }
}

/// An event that is to be kept.
pub(super) fn draft(kind: EventKind, data: Value, cause: Option<Cause>) -> Draft {
    draft_with(kind, data, cause, None)
}

/// One that says something to the nodes as well.
pub(super) fn draft_with(kind: EventKind, data: Value, cause: Option<Cause>, unsaid: Option<Box<Unsaid>>) -> Draft {
    let payload = Event::new(kind, now(), &Said { data, cause }, unsaid).encode();
    // What can't be encoded can't be told: that it is missing can.
    let payload = payload.unwrap_or_else(|failure| {
        tracing::error!(?kind, %failure, "an event could not be encoded");
        Box::default()
    });
    Draft { nonce: rand::random(), payload: payload.into() }
}

/// What is kept in the place of events that could not be: a gap with their number, where it is known.
pub(super) fn lost_draft(lost: Option<u64>) -> Draft {
    draft(EventKind::Gap, json!({ "lost": lost }), None)
}
