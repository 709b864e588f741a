//! The end of a client socket.

use std::sync::Arc;

use serde_json::json;
use tokio::time::Duration;

use super::{Halves, client::Client, farewell};
use crate::{
    hub::Outbox,
    node::{Node, Parted, Parting, ReplyTo, ended_because},
    protocol::{Cause, CloseCode, Closing, Fence, PairId, Reply, Stand},
};

/// How long the last events of a socket may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why the socket ends.
pub(super) enum Ending {
    /// The peer closed it.
    Peer(Closing),
    /// The connection broke.
    Gone,
    /// This side closes it.
    Close {
        /// With what.
        closing: Closing,
        /// `gateway`, `sibling` or `room`.
        by: &'static str,
        /// The command that wanted it.
        cause: Option<Cause>,
        /// Where its reply goes.
        reply: Option<ReplyTo>,
        /// Whether the pair ends too, and why.
        pair_ends: Option<String>,
    },
    /// Another socket wants the place; whoever asked is told when it is free.
    Yield(ReplyTo),
    /// The pair is not this socket's any more: its node was taken for dead.
    Disowned,
}

impl Ending {
    pub(super) fn gateway(code: CloseCode) -> Self {
        Self::because(Closing::new(code))
    }

    pub(super) fn because(closing: Closing) -> Self {
        Self::Close { closing, by: "gateway", cause: None, reply: None, pair_ends: None }
    }
}

impl Client {
    /// Everything that is to happen when a socket ends, in this order: no frame goes in or out any more; the peer is
    /// told; the pair is free for its next socket; siblings hear of it; who wanted it gets its reply.
    pub(super) async fn end(mut self: Box<Self>, ending: Ending, wire: Option<&mut Halves>) {
        self.node.hub.unregister(self.pair, self.fence);
        self.node.hub.exit(&self.room, &self.outbox);
        self.node.return_mail(&mut self.mailbox);
        let disowned = matches!(ending, Ending::Disowned);
        // The answer to the close that a switch has sent already.
        let answered = self.switching.is_some() && matches!(ending, Ending::Peer(_));
        let (closing, by, cause, reply, pair_ends, yielding) = match ending {
            Ending::Peer(closing) => (closing, "client", None, None, None, None),
            Ending::Gone => {
                (Closing { code: 1006, reason: "the connection broke".into() }, "client", None, None, None, None)
            }
            Ending::Close { closing, by, cause, reply, pair_ends } => (closing, by, cause, reply, pair_ends, None),
            Ending::Yield(reply) => (Closing::new(CloseCode::Replaced), "gateway", None, None, None, Some(reply)),
            Ending::Disowned => {
                (why_disowned(&self.node, self.pair, self.fence).await, "gateway", None, None, None, None)
            }
        };
        let mut switching = match self.switching.take() {
            Some(switching) if pair_ends.is_none() && !disowned => Some(switching),
            Some(switching) => {
                self.forget_switch(*switching);
                None
            }
            None => None,
        };
        // However it ends, its peer has been told why.
        let (waiting, mut stand) = switching.as_mut().map_or((Vec::new(), None), |switching| {
            (std::mem::take(&mut switching.waited_for), switching.stand.take())
        });
        let (closing, by, cause) = match &switching {
            Some(switching) => (Closing::new(CloseCode::Switched), "sibling", Some(switching.cause.clone())),
            None => (closing, by, cause),
        };
        // Too slow, or told to leave a jammed pipe: what is queued would only stand before the close frame.
        let outbox = Arc::clone(&self.outbox);
        let queue = (closing.code != CloseCode::TooSlow.number()).then_some(&*outbox);
        let level = self.outbox.level();
        let (mut clean, mut wire) = (false, wire);
        if let Some(Halves { reader, writer }) = wire.as_deref_mut() {
            writer.close(&closing);
            clean = match by {
                _ if closing.code == 1006 => false,
                _ if answered => true,
                "client" => {
                    // It has said its last word: the answer is all that it still wants.
                    drop(tokio::time::timeout(Duration::from_secs(1), writer.flush(None)).await);
                    true
                }
                _ => farewell::say(reader, writer, queue).await,
            };
        }
        let level = queue.map_or(level, Outbox::level);
        self.stop_kept(level.taken_frames, clean, disowned).await;
        let parked = switching.and_then(|switching| self.hand_over(*switching, level.taken_frames, clean));
        self.abandon_jobs().await;
        self.tell_refusals();
        let lost_marks = self.end_marks();
        for room in self.rooms_to_leave(parked.as_ref()) {
            let left = self.node.exit(self.pair, self.fence, &room).await;
            if room == self.facts.room && stand.is_none() {
                stand = left.and_then(|at| Stand::unsaid(room, at, None));
            }
        }
        if let Some(parked) = parked {
            self.node.park(self.pair, parked, self.facts.linger());
        }
        let mut data = json!({
            "epoch": self.fence.epoch, "code": closing.code, "reason": closing.reason, "clean": clean, "by": by,
            "frames_in": self.inflow.frames, "bytes_in": self.inflow.bytes,
            "frames_out": level.taken_frames, "bytes_out": level.taken_bytes,
            "seconds": self.since.elapsed().as_millis() as f64 / 1_000.0,
        });
        if let Some(lost) = lost_marks {
            data["marks_lost"] = json!(lost);
        }
        let whose = (self.pair, self.fence, self.facts);
        let mut parting = Parting::closed(self.story, whose, data, cause.clone(), stand);
        if let Some(reason) = pair_ends.clone() {
            parting = parting
                .and_pair_ended(json!({"reason": ended_because(Some(reason).filter(|r| !r.is_empty()))}), cause);
        }
        // It goes on by itself when the broker is away.
        let parted = tokio::time::timeout(LAST_WORDS, self.node.part(parting)).await;
        for reply in yielding.into_iter().chain(waiting) {
            self.node.reply(reply, Reply::Done(json!({})));
        }
        if let Some(reply) = reply {
            let result = json!({"epoch": self.fence.epoch, "code": closing.code, "clean": clean});
            // A newer socket may have come between: whoever asked is sent there.
            let disowned = matches!(parted, Ok(Ok(Parted::Disowned)));
            self.node.reply(reply, if disowned { Reply::NotHere } else { Reply::Done(result) });
        }
        if let Some(Halves { reader, writer }) = wire {
            let longest = if clean { Duration::from_millis(500) } else { farewell::LONGEST };
            farewell::hang_up(reader, writer, queue.filter(|_| by != "client"), longest).await;
        }
    }
}

/// What the peer of a disowned socket is told: only who was replaced is not to come back.
async fn why_disowned(node: &Node, pair: PairId, fence: Fence) -> Closing {
    match node.find_even_ended(pair).await {
        Ok(found) if found.record.ended => Closing::new(CloseCode::PairEnded),
        Ok(found) if found.record.fence.epoch > fence.epoch => Closing::new(CloseCode::Replaced),
        _ => Closing::because(CloseCode::Restarting, "node was taken for dead: reconnect"),
    }
}
