//! Feeds: a pair's story for one listener, from a cursor on and then live.
//!
//! Two histories make it: the pair's own, and the talk of the room where it is at that place of its story. Each is told
//! in its own order; between them, what happened first is told first. Where the story itself says how the two stand to
//! each other (the pair came to a room, left it, or moved) that counts, so that all listeners are told the same.
//!
//! One thing can't be: of what is told of the room and of the pair at about the same time, who hears it live hears first
//! what comes first. So much and no more may a cursor depend on its listener: it names what was told before ([`named`]).

mod merge;
mod named;
mod open;
#[cfg(test)]
mod orders;
mod signs;

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use futures_util::future::BoxFuture;
use serde_json::Value;

use self::{
    merge::{Merge, Outlook, Step},
    signs::{insist, look_up},
};
use super::{Facts, Node, follow::Follower};
use crate::{
    hub::Ear,
    protocol::{Event, EventKind, Place, Topic},
};

/// One thing to tell, and the place in the story that it is told at.
pub type FeedItem = (Arc<Event>, Place);

/// A listener's place in a pair's story. Dropping it ends the listening.
pub struct Feed {
    node: Arc<Node>,
    ear: Arc<Ear>,
    story: Follower,
    /// Of the room where the pair is.
    talk: Option<Follower>,
    merge: Merge,
    work: Option<BoxFuture<'static, Worked>>,
}

/// What came of that which must be done before the story can go on.
enum Worked {
    Looked(Option<Facts>),
    Opened(Follower),
}

impl Feed {
    fn new(node: &Arc<Node>, ear: Arc<Ear>, story: Follower, talk: Option<Follower>, merge: Merge) -> Self {
        Self { node: Arc::clone(node), merge, ear, story, talk, work: None }
    }

    /// Where the listener stands: everything after it will be told.
    #[must_use]
    pub fn place(&self) -> Place {
        self.merge.place()
    }

    /// The next thing to tell. May be dropped while it waits; nothing is lost by that.
    ///
    /// That the node drains is told as well, and wakes nobody here: whoever has a feed waits for that itself, and asks again.
    pub async fn next(&mut self) -> FeedItem {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<FeedItem> {
        loop {
            if let Some(item) = self.merge.pop() {
                return Poll::Ready(item);
            }
            if let Some(notice) = self.node.drain_notice.get().filter(|_| !self.merge.drain_told) {
                self.merge.drain_told = true;
                return Poll::Ready(self.merge.aside(EventKind::NodeDraining, notice.clone()));
            }
            self.look_ahead();
            if self.advance() {
                continue;
            }
            if let Some(work) = &mut self.work
                && let Poll::Ready(worked) = work.as_mut().poll(cx)
            {
                self.work = None;
                self.take(worked);
                continue;
            }
            let story = self.merge.story.is_none() && self.story.poll_proceed(cx).is_ready();
            let talk = self.talk.as_mut().filter(|_| self.merge.talk.is_none());
            let talk = talk.is_some_and(|talk| talk.poll_proceed(cx).is_ready());
            if !story && !talk {
                return Poll::Pending;
            }
        }
    }

    /// What comes next in each. What arrived in the one history before it arrived in the other is seen in both.
    fn look_ahead(&mut self) {
        for _ in 0..2 {
            if self.merge.talk.is_none() {
                self.merge.talk = self.talk.as_mut().and_then(Follower::next_here);
            }
            if self.merge.story.is_none() {
                self.merge.story = self.story.next_here();
            }
        }
    }

    /// Takes the next step; false when there is something to wait for before it.
    fn advance(&mut self) -> bool {
        if self.merge.pass_asides() {
            return true;
        }
        if self.work.is_some() {
            return false;
        }
        let step = self.merge.advance(outlook(&self.story), self.talk.as_ref().map(outlook));
        self.carry_out(step)
    }

    fn carry_out(&mut self, step: Step) -> bool {
        let (node, pair) = (Arc::clone(&self.node), self.ear.pair);
        match step {
            Step::Wait => return false,
            Step::On if !self.merge.is_somewhere() => self.talk = None,
            Step::On => {}
            Step::Look => self.talk.iter_mut().for_each(Follower::read),
            Step::Inform => {
                self.work = Some(Box::pin(async move { Worked::Looked(insist(|| look_up(&node, pair)).await) }));
            }
            Step::GoTo(room, at) => {
                self.talk = None;
                let (topic, ear) = (Topic::Talk(room), Arc::clone(&self.ear));
                self.work = Some(Box::pin(async move {
                    let open = || Follower::open_as(&node, topic.clone(), Some(at), Some(Arc::clone(&ear)));
                    Worked::Opened(insist(open).await)
                }));
            }
        }
        true
    }

    fn take(&mut self, worked: Worked) {
        match worked {
            Worked::Opened(talk) => self.talk = Some(talk),
            Worked::Looked(None) => {}
            Worked::Looked(Some(facts)) => {
                let step = self.merge.look_at(facts);
                self.carry_out(step);
            }
        }
    }

    /// Says something about the connection, behind what is to be told already.
    pub fn say(&mut self, kind: EventKind, data: Value) {
        self.merge.say(kind, data);
    }
}

/// What is known of a history, beside what comes next in it.
fn outlook(of: &Follower) -> Outlook<'_> {
    Outlook { comes: !of.rests(), late: of.is_late(), behind: of.behind() }
}
