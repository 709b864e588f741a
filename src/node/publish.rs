//! What is said in a room, to its members here and to other nodes.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bytes::Bytes;

use super::Node;
use crate::{
    hub::{Room, Source},
    protocol::{Envelope, Fence, Mark, NodeId, PairId, RoomSpec, Run, Topic},
};

impl Node {
    /// Flow 1, a frame: to the room's members here at once, to those on other nodes through the broker. A lost or
    /// slow broker never holds a frame back from the members here. A node without its lease says nothing to the others:
    /// its pairs may be somebody else's by now. A client socket that has lost its pair says nothing to anybody.
    ///
    /// In a room with one order for all, the broker's order is that order: frames come back to this node as they come
    /// to the others. False when nobody gets them: the broker did not take them, or the pair is lost.
    pub fn publish(&self, room: &Room, spec: &RoomSpec, run: &Run, sender: Option<(PairId, Fence)>) -> bool {
        if !self.may_speak(sender) {
            return false;
        }
        let except = sender.filter(|_| !spec.echo).map(|(pair, _)| pair);
        let publish = |head: &[u8]| self.publish_abroad(room, sender, run.frames(), head, run.wire().clone());
        if spec.is_ordered() {
            return publish(&Envelope::ordered_head(except));
        }
        room.fan_out_then(run, Source::Here, except, || {
            if self.broker.has_others() {
                publish(&Envelope::frames_head(self.id));
            }
        });
        true
    }

    /// A mark takes the way of the frames, so that it keeps its place among them: behind all that were published before
    /// it, and before all that follow. False as for frames.
    pub fn publish_mark(&self, room: &Room, spec: &RoomSpec, mark: &Arc<Mark>, sender: (PairId, Fence)) -> bool {
        if !self.may_speak(Some(sender)) {
            return false;
        }
        let publish = |from: Option<NodeId>| {
            let bytes = Envelope::mark(from, mark);
            bytes.is_ok_and(|bytes| self.publish_abroad(room, Some(sender), 1, &[], bytes))
        };
        if spec.is_ordered() {
            return publish(None);
        }
        room.fan_out_mark_then(mark, Source::Here, || {
            if self.broker.has_others() {
                publish(Some(self.id));
            }
        });
        true
    }

    /// The lease is asked for first, see [`Node::serves`].
    fn publish_abroad(
        &self,
        room: &Room,
        sender: Option<(PairId, Fence)>,
        count: u64,
        head: &[u8],
        body: Bytes,
    ) -> bool {
        let topic = Topic::Room(room.name().clone());
        if self.leased() && self.may_speak(sender) && self.broker.publish_behind(&topic, head, body).is_ok() {
            return true;
        }
        if self.unpublished.fetch_add(count, Relaxed) == 0 {
            tracing::warn!(room = %room.name(), "frames for other nodes were dropped: the broker is behind");
        }
        false
    }

    /// Whether a client socket still speaks for its pair. An owner of the room, who is `None`, needs no pair.
    fn may_speak(&self, sender: Option<(PairId, Fence)>) -> bool {
        sender.is_none_or(|sender| self.serves(sender))
    }
}
