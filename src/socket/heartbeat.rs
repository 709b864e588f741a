//! Heartbeats: pings at an interval, what the absence of their answers means, and how many the peer may send itself.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    pace::{Bucket, Flow},
    read::Incoming,
};

/// Pings, and pongs that answer nothing, cost the peer nothing, and this side a wake-up each. So many a second are
/// borne, and so many at once: more than any client needs that is not after mischief.
const IDLE_TALK: Flow = Flow { per_second: 50.0, burst: 200.0 };

/// When to ping and when to give up on one socket. How much patience there is with one that does not answer is the same
/// for all, and their node's to know.
pub(super) struct Heartbeat {
    /// In seconds.
    every: u32,
    next: Instant,
    /// The last ping, if nothing was heard since.
    asked: Option<Instant>,
    /// The round trip that the last answered ping took.
    pub(super) rtt: Option<Duration>,
    sent: u64,
    idle_talk: Bucket,
}

/// What a heartbeat asks of its socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// Send a ping with these bytes.
    Ping([u8; 8]),
    /// The peer is dead.
    Dead,
}

impl Heartbeat {
    /// One that pings when nothing was heard for so many seconds.
    pub(super) fn new(every: u64) -> Self {
        let every = u32::try_from(every).unwrap_or(u32::MAX);
        let next = Instant::now() + Duration::from_secs(every.into());
        Self { every, next, asked: None, rtt: None, sent: 0, idle_talk: Bucket::full(IDLE_TALK) }
    }

    /// Changes the interval.
    pub(super) fn set(&mut self, every: u64) {
        self.every = u32::try_from(every).unwrap_or(u32::MAX);
        self.next = self.next.min(self.later(Instant::now()));
    }

    /// The next time, when all was well at this one.
    fn later(&self, now: Instant) -> Instant {
        now + Duration::from_secs(self.every.into())
    }

    /// When it is time for [`Heartbeat::beat`].
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// What to do now that it is time. A peer that is not read (`deaf`) can't be heard, so it can't be taken for
    /// dead.
    pub(super) fn beat(&mut self, deaf: bool, patience: Duration) -> Beat {
        let now = Instant::now();
        if !deaf && self.asked.is_some_and(|asked| now >= asked + patience) {
            return Beat::Dead;
        }
        Beat::Ping(self.ping_at(now, patience))
    }

    /// A ping out of turn.
    pub(super) fn ping(&mut self, patience: Duration) -> [u8; 8] {
        self.ping_at(Instant::now(), patience)
    }

    fn ping_at(&mut self, now: Instant, patience: Duration) -> [u8; 8] {
        self.sent += 1;
        // Its pong is none that was not asked for.
        self.idle_talk.give(1.0, IDLE_TALK);
        let asked = *self.asked.get_or_insert(now);
        // The next look is for an answer, if that is due before the next ping.
        let (next, answer_by) = (self.later(now), asked + patience);
        self.next = if now < answer_by { answer_by.min(next) } else { next };
        self.sent.to_be_bytes()
    }

    /// Counts what the peer says; false when it floods this side with control frames.
    pub(super) fn bears(&mut self, incoming: &Incoming) -> bool {
        if matches!(incoming, Incoming::Ping(_) | Incoming::Pong(_)) {
            self.idle_talk.spend(1.0, IDLE_TALK);
        }
        self.idle_talk.debt_until(IDLE_TALK).is_none()
    }

    /// Anything was heard from the peer: it lives.
    pub(super) fn heard(&mut self) {
        if self.asked.take().is_some() {
            self.next = self.later(Instant::now());
        }
    }

    /// A pong was heard; one that answers the last ping tells the round trip.
    pub(super) fn ponged(&mut self, payload: &[u8]) {
        if payload == self.sent.to_be_bytes()
            && let Some(asked) = self.asked
        {
            self.rtt = Some(asked.elapsed());
        }
        self.heard();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_death_and_any_sound_is_life() {
        let (every, patience) = (Duration::from_secs(25), Duration::from_secs(10));
        let mut beat = Heartbeat::new(25);
        for _ in 0..3 {
            advance(every).await;
            assert!(matches!(beat.beat(false, patience), Beat::Ping(_)));
            advance(Duration::from_secs(9)).await;
            beat.heard();
        }
        advance(every).await;
        assert!(matches!(beat.beat(false, patience), Beat::Ping(_)));
        advance(patience).await;
        assert!(matches!(beat.beat(true, patience), Beat::Ping(_)), "who is not read can't be dead");
        advance(patience).await;
        assert_eq!(beat.beat(false, patience), Beat::Dead);
    }

    #[tokio::test(start_paused = true)]
    async fn control_frames_are_borne_up_to_a_rate() {
        let mut heart = Heartbeat::new(25);
        let (ping, pong) = (Incoming::Ping(bytes::Bytes::new()), Incoming::Pong(bytes::Bytes::new()));
        for n in 0..1_000 {
            assert!(heart.bears(&ping), "the {n}th at 50 a second");
            advance(Duration::from_millis(20)).await;
        }
        for n in 0..1_000 {
            heart.ping(Duration::from_secs(10));
            assert!(heart.bears(&pong), "the {n}th answer");
        }
        for n in 0..200 {
            assert!(heart.bears(if n % 2 == 0 { &ping } else { &pong }), "the {n}th at once");
        }
        assert!(heart.bears(&Incoming::Frame(crate::protocol::FrameKind::Text, bytes::Bytes::new())));
        assert!(!heart.bears(&pong));
    }

    #[tokio::test(start_paused = true)]
    async fn the_round_trip_is_the_last_ping_s() {
        let (mut beat, patience) = (Heartbeat::new(25), Duration::from_secs(10));
        let payload = beat.ping(patience);
        advance(Duration::from_millis(30)).await;
        beat.ponged(b"other");
        assert_eq!(beat.rtt, None);
        let again = beat.ping(patience);
        assert_ne!(payload, again);
        advance(Duration::from_millis(30)).await;
        beat.ponged(&again);
        assert_eq!(beat.rtt, Some(Duration::from_millis(30)));
    }
}
