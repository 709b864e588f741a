//! Passes: the authority that a socket was opened with, and its end.
//!
//! A ticket's authority ends when it expires, which its socket's own alarm tells, or when it is revoked, which is told
//! to exactly the sockets that were opened with it: they are found by ticket and by pair, and no other one wakes up.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use uuid::Uuid;

use super::{Node, clock::now_millis, time_text};
use crate::{
    hub::Bell,
    protocol::{CloseCode, Closing, Failure, Fault, PairId, Revocation, Side, Ticket},
};

/// How long before a ticket expires siblings are told of it; a tenth of its life, if that is less.
const WARNING: Duration = Duration::from_secs(30);

/// The authority of one socket. The default one, of those who need no ticket, never ends.
#[derive(Default)]
pub struct Pass(Option<Box<Held>>);

struct Held {
    node: Arc<Node>,
    holder: Arc<Holder>,
    /// It was told that it is about to end.
    warned: bool,
}

/// Who holds a ticket: found by it, by its pair, and by its own number.
struct Holder {
    jti: Uuid,
    pair: PairId,
    number: u64,
    side: Side,
    /// When it ends, in seconds since 1970; and as the clock stood when it came.
    expires_at: u64,
    until: Instant,
    /// How long before that it is told so.
    ahead: Duration,
    revoked: Bell,
}

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
        self.0.as_ref().map(|held| if held.warned { held.holder.until } else { held.holder.warn_at() })
    }

    /// What is due, if anything.
    pub fn ring(&mut self, now: Instant) -> Option<Term> {
        let Held { holder, warned, .. } = self.0.as_deref_mut()?;
        if !*warned && holder.warn_at() <= now {
            *warned = true;
            let left = holder.until.saturating_duration_since(now).as_millis() as f64 / 1_000.0;
            let expires_at = time_text(SystemTime::UNIX_EPOCH + Duration::from_secs(holder.expires_at));
            return Some(Term::Expiring(json!({"side": holder.side, "expires_at": expires_at, "seconds": left})));
        }
        (holder.until <= now).then(|| Term::Over(Closing::because(CloseCode::Unauthorized, "ticket expired")))
    }

    /// Completes when the ticket is revoked, with what its socket is closed with. May be dropped while it waits.
    pub fn revoked(&self) -> impl Future<Output = Closing> + '_ {
        poll_fn(|cx| match &self.0 {
            Some(held) => held.holder.revoked.poll_heard(cx).map(|()| was_revoked_while_open()),
            None => Poll::Pending,
        })
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
        self.node.chronicle.lock().holders.remove(&self.holder);
    }
}

impl Holder {
    fn warn_at(&self) -> Instant {
        self.until.checked_sub(self.ahead).unwrap_or(self.until)
    }
}

/// Who on this node holds tickets.
#[derive(Default)]
pub(super) struct Holders {
    by_ticket: BTreeMap<(Uuid, u64), Arc<Holder>>,
    by_pair: BTreeMap<(PairId, u64), Arc<Holder>>,
}

impl Holders {
    fn add(&mut self, holder: &Arc<Holder>) {
        self.by_ticket.insert((holder.jti, holder.number), Arc::clone(holder));
        self.by_pair.insert((holder.pair, holder.number), Arc::clone(holder));
    }

    fn remove(&mut self, holder: &Holder) {
        self.by_ticket.remove(&(holder.jti, holder.number));
        self.by_pair.remove(&(holder.pair, holder.number));
    }

    /// Tells those whose tickets a revocation voids.
    pub(super) fn tell(&mut self, revocation: &Revocation) {
        let holders: Vec<Arc<Holder>> = match revocation {
            Revocation::Ticket { jti, .. } => {
                self.by_ticket.range((*jti, 0)..=(*jti, u64::MAX)).map(|(_, holder)| Arc::clone(holder)).collect()
            }
            Revocation::Pair { pair, made } => {
                let all = self.by_pair.range((*pair, 0)..=(*pair, u64::MAX)).map(|(_, holder)| holder);
                all.filter(|holder| Ticket::made_at(holder.jti) <= *made).map(Arc::clone).collect()
            }
        };
        for holder in holders {
            self.remove(&holder);
            holder.revoked.ring();
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
        let (ends, life) = (ticket.exp * 1_000, (ticket.exp * 1_000).saturating_sub(ticket.made()));
        let holder = Arc::new(Holder {
            jti: ticket.jti,
            pair: ticket.pair,
            number: self.numbers.fetch_add(1, Relaxed),
            side: ticket.aud,
            expires_at: ticket.exp,
            // From here on it does not matter how the clock is set.
            until: Instant::now() + Duration::from_millis(ends.saturating_sub(now_millis())),
            ahead: WARNING.min(Duration::from_millis(life / 10)),
            revoked: Bell::default(),
        });
        // In one step: a revocation comes either before it or finds its holder.
        let mut inside = self.chronicle.lock();
        if inside.revoked.voids(ticket) {
            return Err(was_revoked());
        }
        inside.holders.add(&holder);
        drop(inside);
        Ok(Pass(Some(Box::new(Held { node: Arc::clone(self), holder, warned: false }))))
    }
}

fn was_revoked_while_open() -> Closing {
    Closing::because(CloseCode::Unauthorized, "ticket revoked")
}

fn was_revoked() -> Failure {
    Failure::new(Fault::Unauthorized, "the ticket was revoked")
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

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
        let mut holder = |ticket: &Ticket| {
            number += 1;
            let (expires_at, until, ahead) = (ticket.exp, Instant::now(), WARNING);
            let Ticket { jti, pair, aud: side, .. } = *ticket;
            let holder =
                Arc::new(Holder { jti, pair, number, side, expires_at, until, ahead, revoked: Bell::default() });
            holders.add(&holder);
            holder
        };
        let held = [holder(&one), holder(&one), holder(&two), holder(&new), holder(&stranger)];
        let heard = |holders: &mut Holders, revocation| {
            holders.tell(&revocation);
            [0, 1, 2, 3, 4].map(|i: usize| held[i].revoked.heard().now_or_never().is_some())
        };
        let by_name = Revocation::of_ticket(&one);
        assert_eq!(heard(&mut holders, by_name), [true, true, false, false, false]);
        assert_eq!(heard(&mut holders, by_name), [false; 5]);
        let by_pair = Revocation::Pair { pair, made: two.made() };
        assert_eq!(heard(&mut holders, by_pair), [false, false, true, false, false]);
        assert_eq!((holders.by_ticket.len(), holders.by_pair.len()), (2, 2));
        holders.remove(&held[3]);
        holders.remove(&held[4]);
        assert!(holders.by_ticket.is_empty() && holders.by_pair.is_empty());
    }
}
