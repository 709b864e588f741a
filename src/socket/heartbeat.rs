//! Heartbeats: pings at an interval, what the absence of their answers means, and how many the peer may send itself.

use std::time::Duration;

use tokio::time::Instant;

use super::{pace::Bucket, read::Incoming};

/// Pings, and pongs that answer nothing, cost the peer nothing, and this side a wake-up each. So many a second are
/// borne, and so many at once: more than any client needs that is not after mischief.
const IDLE_TALK: (f64, f64) = (50.0, 200.0);

/// When to ping and when to give up on one socket.
pub(super) struct Heartbeat {
    every: Duration,
    patience: Duration,
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
    pub(super) fn new(every: Duration, patience: Duration) -> Self {
        let idle_talk = Bucket::new(IDLE_TALK.0, IDLE_TALK.1);
        Self { every, patience, next: Instant::now() + every, asked: None, rtt: None, sent: 0, idle_talk }
    }

    /// Changes the interval.
    pub(super) fn set(&mut self, every: Duration) {
        self.every = every;
        self.next = self.next.min(Instant::now() + every);
    }

    /// When it is time for [`Heartbeat::beat`].
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// What to do now that it is time. A peer that is not read (`deaf`) can't be heard, so it can't be taken for
    /// dead.
    pub(super) fn beat(&mut self, deaf: bool) -> Beat {
        let now = Instant::now();
        if !deaf && self.asked.is_some_and(|asked| now >= asked + self.patience) {
            return Beat::Dead;
        }
        Beat::Ping(self.ping_at(now))
    }

    /// A ping out of turn.
    pub(super) fn ping(&mut self) -> [u8; 8] {
        self.ping_at(Instant::now())
    }

    fn ping_at(&mut self, now: Instant) -> [u8; 8] {
        self.sent += 1;
        // Its pong is none that was not asked for.
        self.idle_talk.give(1.0);
        let asked = *self.asked.get_or_insert(now);
        // The next look is for an answer, if that is due before the next ping.
        self.next = if now < asked + self.patience {
            (asked + self.patience).min(now + self.every)
        } else {
            now + self.every
        };
        self.sent.to_be_bytes()
    }

    /// Counts what the peer says; false when it floods this side with control frames.
    pub(super) fn bears(&mut self, incoming: &Incoming) -> bool {
        if matches!(incoming, Incoming::Ping(_) | Incoming::Pong(_)) {
            self.idle_talk.spend(1.0);
        }
        self.idle_talk.debt_until().is_none()
    }

    /// Anything was heard from the peer: it lives.
    pub(super) fn heard(&mut self) {
        if self.asked.take().is_some() {
            self.next = Instant::now() + self.every;
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
        let mut beat = Heartbeat::new(every, patience);
        for _ in 0..3 {
            advance(every).await;
            assert!(matches!(beat.beat(false), Beat::Ping(_)));
            advance(Duration::from_secs(9)).await;
            beat.heard();
        }
        advance(every).await;
        assert!(matches!(beat.beat(false), Beat::Ping(_)));
        advance(patience).await;
        assert!(matches!(beat.beat(true), Beat::Ping(_)), "who is not read can't be dead");
        advance(patience).await;
        assert_eq!(beat.beat(false), Beat::Dead);
    }

    #[tokio::test(start_paused = true)]
    async fn control_frames_are_borne_up_to_a_rate() {
        let mut heart = Heartbeat::new(Duration::from_secs(25), Duration::from_secs(10));
        let (ping, pong) = (Incoming::Ping(bytes::Bytes::new()), Incoming::Pong(bytes::Bytes::new()));
        for n in 0..1_000 {
            assert!(heart.bears(&ping), "the {n}th at 50 a second");
            advance(Duration::from_millis(20)).await;
        }
        for n in 0..1_000 {
            heart.ping();
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
        let mut beat = Heartbeat::new(Duration::from_secs(25), Duration::from_secs(10));
        let payload = beat.ping();
        advance(Duration::from_millis(30)).await;
        beat.ponged(b"other");
        assert_eq!(beat.rtt, None);
        let again = beat.ping();
        assert_ne!(payload, again);
        advance(Duration::from_millis(30)).await;
        beat.ponged(&again);
        assert_eq!(beat.rtt, Some(Duration::from_millis(30)));
    }
}
