//! Passes: the authority that a socket was opened with, and its end.
//!
//! A ticket's authority ends when it expires, which its socket's own alarm tells, or when it is revoked, which is told
//! to exactly the sockets that were opened with it: they are found by ticket and by pair, and no other one wakes up.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use uuid::Uuid;

use super::{Node, clock::now_millis, time_text};
use crate::protocol::{CloseCode, Closing, Failure, Fault, PairId, Revocation, Side, Ticket};

/// How long before a ticket expires siblings are told of it; a tenth of its life, if that is less.
const WARNING: Duration = Duration::from_secs(30);

/// The authority of one socket. The default one, of those who need no ticket, never ends.
#[derive(Default)]
pub struct Pass(Option<Box<Held>>);

struct Held {
    node: Arc<Node>,
    seat: Seat,
    side: Side,
    expires_at: SystemTime,
    warn: Option<Instant>,
    until: Instant,
    revoked: Option<oneshot::Receiver<()>>,
}

/// By what a holder is found: its ticket, its pair, and its own number.
type Seat = (Uuid, PairId, u64);

/// What becomes of a socket's authority.
#[derive(Debug)]
pub enum Term {
    /// It is about to end: the data of the event that tells it.
    Expiring(Value),
    /// It has ended.
    Over(Closing),
}

impl Pass {
    /// When [`Pass::ring`] has something to tell.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.0.as_ref().map(|held| held.warn.unwrap_or(held.until))
    }

    /// What is due, if anything.
    pub fn ring(&mut self, now: Instant) -> Option<Term> {
        let held = self.0.as_mut()?;
        if held.warn.is_some_and(|at| at <= now) {
            held.warn = None;
            let left = held.until.saturating_duration_since(now).as_millis() as f64 / 1_000.0;
            let expires_at = time_text(held.expires_at);
            return Some(Term::Expiring(json!({"side": held.side, "expires_at": expires_at, "seconds": left})));
        }
        (held.until <= now).then(|| Term::Over(Closing::because(CloseCode::Unauthorized, "ticket expired")))
    }

    /// Completes when the ticket is revoked, with what its socket is closed with. May be dropped while it waits.
    pub fn revoked(&mut self) -> impl Future<Output = Closing> + '_ {
        poll_fn(|cx| self.poll_revoked(cx))
    }

    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<Closing> {
        let Some(held) = &mut self.0 else { return Poll::Pending };
        let Some(told) = &mut held.revoked else { return Poll::Pending };
        let outcome = ready!(told.poll_unpin(cx));
        held.revoked = None;
        match outcome {
            Ok(()) => Poll::Ready(Closing::because(CloseCode::Unauthorized, "ticket revoked")),
            Err(_) => Poll::Pending,
        }
    }

    /// The next thing that becomes of it. May be dropped while it waits.
    pub async fn next(&mut self) -> Term {
        loop {
            let due = self.due();
            let alarm = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                closing = self.revoked() => return Term::Over(closing),
                () = alarm => {}
            }
            if let Some(term) = self.ring(Instant::now()) {
                return term;
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.node.chronicle.lock().holders.remove(self.seat);
    }
}

/// Who on this node holds tickets.
#[derive(Default)]
pub(super) struct Holders {
    by_ticket: BTreeMap<(Uuid, u64), (PairId, oneshot::Sender<()>)>,
    by_pair: BTreeSet<(PairId, Uuid, u64)>,
}

impl Holders {
    fn add(&mut self, (jti, pair, number): Seat) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        self.by_ticket.insert((jti, number), (pair, tell));
        self.by_pair.insert((pair, jti, number));
        told
    }

    fn remove(&mut self, (jti, pair, number): Seat) -> Option<oneshot::Sender<()>> {
        self.by_pair.remove(&(pair, jti, number));
        self.by_ticket.remove(&(jti, number)).map(|(_, tell)| tell)
    }

    /// Tells those whose tickets a revocation voids.
    pub(super) fn tell(&mut self, revocation: &Revocation) {
        let seats: Vec<Seat> = match revocation {
            Revocation::Ticket { jti, .. } => {
                let range = self.by_ticket.range((*jti, 0)..=(*jti, u64::MAX));
                range.map(|((jti, number), (pair, _))| (*jti, *pair, *number)).collect()
            }
            Revocation::Pair { pair, made } => {
                let all = (*pair, Uuid::nil(), 0)..=(*pair, Uuid::max(), u64::MAX);
                let range = self.by_pair.range(all).filter(|(_, jti, _)| Ticket::made_at(*jti) <= *made);
                range.map(|(pair, jti, number)| (*jti, *pair, *number)).collect()
            }
        };
        for seat in seats {
            if let Some(tell) = self.remove(seat) {
                // Who is gone needs not know.
                let _ = tell.send(());
            }
        }
    }
}

impl Node {
    /// That a ticket was not revoked, as far as this node has heard: no round trip.
    ///
    /// # Errors
    /// [`Fault::Unauthorized`].
    pub fn check_revoked(&self, ticket: &Ticket) -> Result<(), Failure> {
        if self.chronicle.lock().revoked.voids(ticket) { Err(was_revoked()) } else { Ok(()) }
    }

    /// The pass of whoever opens something with a ticket.
    ///
    /// # Errors
    /// [`Fault::Unauthorized`] when the ticket was revoked.
    pub fn admit(self: &Arc<Self>, ticket: &Ticket) -> Result<Pass, Failure> {
        let seat = (ticket.jti, ticket.pair, self.numbers.fetch_add(1, Relaxed));
        // In one step: a revocation comes either before it or finds its holder.
        let told = {
            let mut inside = self.chronicle.lock();
            if inside.revoked.voids(ticket) {
                return Err(was_revoked());
            }
            inside.holders.add(seat)
        };
        let (ends, life) = (ticket.exp * 1_000, (ticket.exp * 1_000).saturating_sub(ticket.made()));
        // From here on it does not matter how the clock is set.
        let until = Instant::now() + Duration::from_millis(ends.saturating_sub(now_millis()));
        let ahead = WARNING.min(Duration::from_millis(life / 10));
        Ok(Pass(Some(Box::new(Held {
            node: Arc::clone(self),
            seat,
            side: ticket.aud,
            expires_at: SystemTime::UNIX_EPOCH + Duration::from_secs(ticket.exp),
            warn: Some(until.checked_sub(ahead).unwrap_or(until)),
            until,
            revoked: Some(told),
        }))))
    }
}

fn was_revoked() -> Failure {
    Failure::new(Fault::Unauthorized, "the ticket was revoked")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Grants;

    #[test]
    fn only_who_holds_a_void_ticket_is_told() {
        let mut holders = Holders::default();
        let pair = PairId::fresh();
        let ticket = |pair| Ticket::new(Side::Sibling, pair, Grants::all(), 4_000_000_000);
        let (one, stranger) = (ticket(pair), ticket(PairId::fresh()));
        let (two, new) = (one.clone().made_after(one.made()), one.clone().made_after(one.made() + 99));
        let mut number = 0;
        let mut seat = |ticket: &Ticket| {
            number += 1;
            holders.add((ticket.jti, ticket.pair, number))
        };
        let mut told = [seat(&one), seat(&one), seat(&two), seat(&new), seat(&stranger)];
        let mut heard = |holders: &mut Holders, revocation| {
            holders.tell(&revocation);
            [0, 1, 2, 3, 4].map(|i: usize| told[i].try_recv().is_ok())
        };
        let by_name = Revocation::of_ticket(&one);
        assert_eq!(heard(&mut holders, by_name), [true, true, false, false, false]);
        assert_eq!(heard(&mut holders, by_name), [false; 5]);
        let by_pair = Revocation::Pair { pair, made: two.made() };
        assert_eq!(heard(&mut holders, by_pair), [false, false, true, false, false]);
        assert_eq!((holders.by_ticket.len(), holders.by_pair.len()), (2, 2));
        assert!(holders.remove((new.jti, pair, 4)).is_some());
        assert!(holders.remove((stranger.jti, stranger.pair, 5)).is_some());
        assert!(holders.by_ticket.is_empty() && holders.by_pair.is_empty());
    }
}
