//! What holds for one pipe: by its room's specification, by what was chosen for its pair, and by its node's settings;
//! and what becomes of the client when its room changes.

use serde_json::json;

use super::{client::Client, ending::Ending, jobs::JobDone, pace::Pace};
use crate::{
    node::{Facts, NodeSettings, RoomState, Ruling},
    protocol::{Cause, CloseCode, Closing, EventKind, LeaveParams, RoomName, RoomSpec, Settings, Violations},
};

/// What holds for one pipe.
pub(super) struct Terms {
    /// In its room.
    pub(super) ruling: Ruling,
    /// The bound of what waits for it, either way, in bytes.
    pub(super) queue_bytes: usize,
    /// Seconds between pings.
    pub(super) ping: u64,
    /// The largest frame that its client may send, in bytes.
    pub(super) largest: usize,
    /// What happens to it when it sends what it may not.
    pub(super) violations: Violations,
    /// Whether it may send at all.
    pub(super) may_publish: bool,
}

impl Terms {
    /// With the settings that they come from.
    pub(super) fn new(node: &NodeSettings, facts: &Facts, ruling: Ruling) -> (Self, Settings) {
        let spec = &ruling.spec;
        let settings = node.pipe.with(spec, facts.chosen.as_deref());
        let terms = Self {
            queue_bytes: settings.queue_bytes,
            ping: settings.ping,
            largest: spec.max_message_bytes.unwrap_or(node.max_message_bytes).min(node.max_message_bytes),
            violations: spec.violations.unwrap_or(node.violations),
            may_publish: ruling.lets_publish(&facts.authority),
            ruling,
        };
        (terms, settings)
    }
}

impl Client {
    /// For its queue, its rate and its pings.
    pub(super) fn settings(&self) -> Settings {
        self.node.settings.pipe.with(&self.terms.ruling.spec, self.facts.chosen.as_deref())
    }

    /// From now on this holds in the client's room.
    pub(super) fn live_under(&mut self, ruling: Ruling) {
        let (terms, settings) = Terms::new(&self.node.settings, &self.facts, ruling);
        let before = std::mem::replace(&mut self.terms, terms);
        let Settings { queue_bytes, slow, rate, ping } = settings;
        self.outbox.set(queue_bytes, slow);
        if ping != before.ping {
            self.heart.set(ping);
        }
        if rate.unwrap_or_default() != self.pace.rate() {
            self.pace = Pace::new(rate);
        }
    }

    /// Something else holds in a room.
    pub(super) fn room_changed(&mut self, state: RoomState, cause: Option<Cause>) -> Option<Ending> {
        let speaks = state.speaks.unwrap_or(self.facts.format);
        let (here, version) = (state.name == *self.room.name(), self.terms.ruling.version);
        if !here || state.ruling.version == version && speaks == self.facts.format {
            return None;
        }
        if state.ruling.version != 0 || version == 0 {
            return self.live_in(state, cause);
        }
        // Taken back, or lost by the broker.
        let (node, socket, facts) = (self.node.clone(), (self.pair, self.fence), self.facts.clone());
        let ruling = self.terms.ruling.clone();
        self.jobs.push_back(Box::pin(async move {
            let gone = node.is_gone(socket, &facts, &ruling).await.unwrap_or(false);
            JobDone::Doubted { state, cause, gone }
        }));
        None
    }

    /// The siblings are told what holds in the room now, and a client that does not fit any more is closed: so that it
    /// comes back, if it can speak what is spoken.
    pub(super) fn live_in(&mut self, state: RoomState, cause: Option<Cause>) -> Option<Ending> {
        let told = state.told();
        let RoomState { name, ruling, speaks, .. } = state;
        if name != *self.room.name() {
            return None;
        }
        let speaks = ruling.spec.speaks_after(speaks.unwrap_or(self.facts.format));
        let barred = ruling.admits(&self.facts.authority, &name).err();
        // What a room is that it may not be in any more is none of its business.
        let told = if barred.is_none() { told } else { json!({"room": name}) };
        let closing = if let Some(failure) = barred {
            Some(Closing::because(CloseCode::Forbidden, &failure.message))
        } else if speaks != self.facts.format {
            let code = if speaks.suits(&self.facts.offers) { CloseCode::Switched } else { CloseCode::NoCommonFormat };
            Some(Closing::because(code, &format!("the room speaks {speaks} now")))
        } else if travels_otherwise(&self.terms.ruling.spec, &ruling.spec) {
            // Frames on their way through the broker would be overtaken by those that do not take it.
            Some(Closing::because(CloseCode::Switched, "the room has another order now"))
        } else {
            None
        };
        let data = json!({"specification": told, "fits": closing.is_none()});
        self.story.raise(EventKind::RoomChanged, data, cause.clone());
        if let (Some(kept), Some(history)) = (self.kept.as_deref_mut(), ruling.spec.keeps()) {
            kept.sending.keep(history);
        }
        self.live_under(ruling);
        closing.map(|closing| by_the_room(closing, cause))
    }

    /// A room was closed.
    pub(super) fn room_closed(&mut self, room: &RoomName, reason: &str, cause: Option<Cause>) -> Option<Ending> {
        if room != self.room.name() {
            return None;
        }
        self.story.raise(EventKind::RoomClosed, json!({"room": room, "reason": reason}), cause.clone());
        let reason = if reason.is_empty() { CloseCode::RoomClosed.phrase() } else { reason };
        Some(by_the_room(Closing::because(CloseCode::RoomClosed, reason), cause))
    }
}

/// Whether frames go another way from now on, on which they could overtake others.
fn travels_otherwise(before: &RoomSpec, now: &RoomSpec) -> bool {
    before.keeps().is_some() != now.keeps().is_some() || before.is_ordered() && !now.is_ordered()
}

/// How a client is closed that its room's owner sends away.
pub(super) fn sent_away(params: LeaveParams) -> Closing {
    let reason = params.reason.as_deref().unwrap_or("sent away by the room's owner");
    match params.code {
        None => Closing::because(CloseCode::Forbidden, reason),
        Some(1000) => Closing::because(CloseCode::Normal, reason),
        Some(code) => Closing::application(code, reason),
    }
}

fn by_the_room(closing: Closing, cause: Option<Cause>) -> Ending {
    Ending::Close { closing, by: "room", cause, reply: None, pair_ends: None }
}
