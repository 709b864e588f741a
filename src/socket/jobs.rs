//! What an actor of a client socket has to do with the registry: one job after the other, beside everything else. A move
//! to another room is one of them, and happens when it is done, between two frames.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Poll, ready},
};

use futures_util::future::BoxFuture;
use serde_json::json;

use super::{client::Client, ending::Ending, orders::MOST_WAITING, switch};
use crate::{
    hub::Hearing,
    node::{Entrant, Entry, Facts, Node, Past, ReplyTo, RoomState, Trace, Wish},
    protocol::{Cause, Failure, Fault, Fence, Format, MoveParams, PairId, Position, Reply, RoomName, Stand},
};

/// What came of a job.
pub(super) enum JobDone {
    /// The facts are written.
    Saved,
    /// The room that was moved away from is left.
    Left,
    /// The registry knows this socket again, or knows another; or could not be told.
    Restored(Option<bool>),
    /// It is known whether the rule of the room is gone, or was only lost.
    Doubted {
        /// What the room is without it.
        state: RoomState,
        /// Who wanted it.
        cause: Option<Cause>,
        /// Whether it is.
        gone: bool,
    },
    /// Another room may be entered, or not.
    Entered(Entered),
    /// The pipe may be handed over to another socket, or not.
    Switched(switch::Entered),
}

/// The outcome of entering another room, for the cluster.
pub(super) struct Entered {
    entry: Result<Moving, Failure>,
    cause: Cause,
    reply: ReplyTo,
}

/// A room that was entered, for the cluster; and where its history begins for this client, if it has one.
pub(super) struct Moving {
    pub(super) entry: Entry,
    pub(super) past: Option<(Past, Option<Box<Trace>>)>,
    /// Where the talk of the room that it leaves was then.
    pub(super) left: Option<(RoomName, Position)>,
}

/// Enters a room, for the cluster, and finds where its history begins.
pub(super) async fn enter_there(
    node: &Arc<Node>,
    (pair, fence): (PairId, Fence),
    room: &RoomName,
    offers: &[Format],
    facts: &Facts,
) -> Result<Moving, Failure> {
    let enter = async {
        let entrant = Entrant { authority: &facts.authority, offers };
        let state = node.room(room).await?;
        node.enter((pair, fence), room, &entrant, state.ruling).await
    };
    let (entry, left) = tokio::join!(enter, node.talk_head(&facts.room));
    let left = left.map(|at| (facts.room.clone(), at));
    begin_there(node, (pair, fence), entry?, left, facts).await
}

async fn begin_there(
    node: &Arc<Node>,
    (pair, fence): (PairId, Fence),
    entry: Entry,
    left: Option<(RoomName, Position)>,
    facts: &Facts,
) -> Result<Moving, Failure> {
    let history = entry.ruling.spec.keeps().filter(|_| entry.room != facts.room);
    let Some(history) = history else { return Ok(Moving { entry, past: None, left }) };
    let mut there = Facts { room: entry.room.clone(), trace: None, ..facts.clone() };
    match node.begin_past((pair, fence.epoch), &mut there, history, Wish::default()).await {
        Ok(past) => Ok(Moving { entry, past: Some((past, there.trace)), left }),
        Err(failure) => {
            _ = node.exit(pair, fence, &entry.room).await;
            Err(failure)
        }
    }
}

/// What comes of the first job, if there is one.
pub(super) fn next_job(jobs: &mut VecDeque<BoxFuture<'static, JobDone>>) -> impl Future<Output = JobDone> {
    poll_fn(|cx| {
        let Some(job) = jobs.front_mut() else { return Poll::Pending };
        let done = ready!(job.as_mut().poll(cx));
        jobs.pop_front();
        if jobs.is_empty() {
            *jobs = VecDeque::new();
        }
        Poll::Ready(done)
    })
}

impl Client {
    pub(super) fn begin_move(&mut self, params: MoveParams, cause: Cause, reply: ReplyTo) -> Option<Ending> {
        let reply = self.place_for_a_job(reply)?;
        let (node, pair, fence, facts) = (self.node.clone(), self.pair, self.fence, self.facts.clone());
        self.jobs.push_back(Box::pin(async move {
            let entry = enter_there(&node, (pair, fence), &params.room, &facts.speaks(), &facts).await;
            JobDone::Entered(Entered { entry, cause, reply })
        }));
        None
    }

    /// Gives the reply back if there is a place for one more job that a command wants; else it is refused.
    pub(super) fn place_for_a_job(&self, reply: ReplyTo) -> Option<ReplyTo> {
        if self.jobs.len() < MOST_WAITING {
            return Some(reply);
        }
        self.node.reply(reply, Reply::Failed(Failure::new(Fault::RateLimited, "too many moves at once")));
        None
    }

    /// A job is done.
    pub(super) fn job_done(&mut self, done: JobDone) -> Option<Ending> {
        let done = match done {
            JobDone::Entered(_) | JobDone::Switched(_) if self.switching.is_some() => {
                self.come_too_late(done);
                return None;
            }
            done => done,
        };
        let Entered { entry, cause, reply } = match done {
            JobDone::Entered(entered) => entered,
            JobDone::Switched(entered) => {
                self.switch(entered);
                return None;
            }
            JobDone::Left => return None,
            JobDone::Doubted { state, cause, gone } => {
                return if gone { self.live_in(state, cause) } else { None };
            }
            JobDone::Restored(known) => {
                self.restoring = false;
                if known == Some(true) {
                    self.story.begin_anew();
                }
                return (known == Some(false)).then_some(Ending::Disowned);
            }
            JobDone::Saved => {
                self.saving = false;
                if std::mem::take(&mut self.unsaved) {
                    self.save_facts();
                }
                return None;
            }
        };
        match entry {
            Ok(moving) => self.change_rooms(moving, cause, reply),
            Err(failure) => self.node.reply(reply, Reply::Failed(failure)),
        }
        None
    }

    /// The move itself.
    fn change_rooms(&mut self, Moving { entry, past, left }: Moving, cause: Cause, reply: ReplyTo) {
        let from = self.room.name().clone();
        let same = from == entry.room;
        if !same {
            self.node.hub.exit(&self.room, &self.outbox);
        }
        let position = self.outbox.position();
        match same {
            // Who moves to where it is misses no frame.
            true => self.node.keep_seat(&entry),
            false => {
                self.leave_kept();
                self.outbox.hear(if past.is_some() { Hearing::Nothing } else { Hearing::All });
                self.room = self.node.take_seat(self.pair, &entry, &self.outbox);
                self.facts.trace = None;
            }
        }
        let (room, talk) = (entry.room, entry.talk);
        (self.facts.room, self.facts.format) = (room.clone(), entry.format);
        if let Some((past, trace)) = past {
            self.facts.trace = trace.map(|trace| Box::new(trace.from_count(position)));
            self.begin_kept(past);
        }
        if from != room {
            self.facts.since = Some(talk);
        }
        let stand = Stand::unsaid(room.clone(), talk, left.filter(|(left, _)| *left == from && from != room));
        self.live_under(entry.ruling);
        // A move to where it is already added one member too many to this node's count of listeners, not to the room.
        self.save_facts();
        self.leave_later(from.clone());
        let result = json!({"from": from, "to": room, "position": position});
        self.story.raise_moved(result, stand, cause, reply);
    }

    /// Another room was entered for nothing.
    fn come_too_late(&mut self, done: JobDone) {
        let (entry, reply) = match done {
            JobDone::Entered(Entered { entry, reply, .. }) => (entry, reply),
            JobDone::Switched(entered) => entered.split(),
            _ => return,
        };
        if let Ok(Moving { entry, .. }) = entry {
            self.leave_later(entry.room);
        }
        self.node.reply(reply, Reply::NotHere);
    }

    /// Leaves a room that was entered, for the cluster. One where the client is was entered once too often: then this
    /// node has one listener to it less, and the room as many members as before.
    pub(super) fn leave_later(&mut self, room: RoomName) {
        let (node, pair, fence, here) = (self.node.clone(), self.pair, self.fence, self.facts.room == room);
        self.jobs.push_back(Box::pin(async move {
            if here {
                node.lose_interest(&room).await;
            } else {
                _ = node.exit(pair, fence, &room).await;
            }
            JobDone::Left
        }));
    }

    /// Has the registry told what it lost of this socket.
    pub(super) fn restore(&mut self) {
        if std::mem::replace(&mut self.restoring, true) {
            return;
        }
        let (node, pair, fence, facts) = (self.node.clone(), self.pair, self.fence, self.facts.clone());
        let ruling = self.terms.ruling.clone();
        // What fails now is tried again when the next event finds the record missing, or the next lease is lost.
        self.jobs.push_back(Box::pin(async move {
            JobDone::Restored(node.restore(pair, fence, &facts, Some(&ruling)).await.ok())
        }));
    }

    /// Has the changed facts written. Changes that come while that is under way are written together after it.
    pub(super) fn save_facts(&mut self) {
        if std::mem::replace(&mut self.saving, true) {
            self.unsaved = true;
            return;
        }
        let (node, pair, fence, facts) = (self.node.clone(), self.pair, self.fence, self.facts.clone());
        self.jobs.push_back(Box::pin(async move {
            node.revise(pair, fence, &facts).await;
            JobDone::Saved
        }));
    }

    /// The socket ends: jobs that would only change it are told so, those that clean up are done.
    pub(super) async fn abandon_jobs(&mut self) {
        if std::mem::take(&mut self.unsaved) {
            self.saving = false;
            self.save_facts();
        }
        while let Some(job) = self.jobs.pop_front() {
            let done = job.await;
            self.come_too_late(done);
        }
        for (.., reply) in self.pings.drain(..) {
            self.node.reply(reply, Reply::NotHere);
        }
    }
}
