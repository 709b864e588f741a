//! What is revoked, as a node remembers it. Pure: it is told what was said and what time it is (in milliseconds since
//! 1970).
//!
//! Revocations only add up, so their order does not matter and hearing one twice does no harm. What could void nothing
//! any more is forgotten: so a day's worth is all that there is, and nobody may add to it without bound.

use std::collections::{BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use crate::protocol::{PairId, Revocation, Ticket};

/// How many revocations may be in force. Each takes some 200 bytes of every node.
pub(super) const MOST: usize = 100_000;

/// What a revocation is about. Of several about the same, the furthest reaching one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum About {
    Ticket(Uuid),
    Pair(PairId),
}

/// The revocations that are in force.
#[derive(Default)]
pub(super) struct Revoked {
    all: HashMap<About, Revocation>,
    /// From when on each could void nothing.
    past: BTreeSet<(u64, About)>,
    /// Those that are not known to stand in the cluster's history.
    untold: HashSet<About>,
}

impl Revoked {
    /// Whether a ticket is void.
    pub(super) fn voids(&self, ticket: &Ticket) -> bool {
        self.all.contains_key(&About::Ticket(ticket.jti))
            || self.pair(ticket.pair).is_some_and(|made| ticket.made() <= made)
    }

    /// The time up to which a pair's tickets are void, by when they were made.
    pub(super) fn pair(&self, pair: PairId) -> Option<u64> {
        match self.all.get(&About::Pair(pair)) {
            Some(Revocation::Pair { made, .. }) => Some(*made),
            _ => None,
        }
    }

    /// Takes a revocation that was made here; it is yet to be heard of from the history.
    pub(super) fn add(&mut self, revocation: Revocation, now: u64) {
        let about = about(&revocation);
        if self.has(&revocation) || revocation.past() <= now {
            return;
        }
        if let Some(before) = self.all.insert(about, revocation) {
            self.past.remove(&(before.past(), about));
        }
        self.past.insert((revocation.past(), about));
        self.untold.insert(about);
    }

    /// Takes a revocation that stands in the history.
    pub(super) fn hear(&mut self, revocation: Revocation, now: u64) {
        self.add(revocation, now);
        let about = about(&revocation);
        if self.all.get(&about).is_some_and(|known| known.past() <= revocation.past()) {
            self.untold.remove(&about);
        }
    }

    /// Whether a revocation, or one that goes further, is in force.
    fn has(&self, revocation: &Revocation) -> bool {
        self.all.get(&about(revocation)).is_some_and(|known| known.past() >= revocation.past())
    }

    /// Whether it also stands in the history, as far as is known: there is nothing to do.
    pub(super) fn stands(&self, revocation: &Revocation) -> bool {
        self.has(revocation) && !self.untold.contains(&about(revocation))
    }

    /// The history is another than was heard: any of it may be missing there.
    pub(super) fn doubt_all(&mut self) {
        self.untold = self.all.keys().copied().collect();
    }

    /// What is not known to stand in the history, the oldest first.
    pub(super) fn untold(&self) -> Vec<Revocation> {
        let mut untold: Vec<_> = self.untold.iter().filter_map(|about| self.all.get(about)).copied().collect();
        untold.sort_unstable_by_key(Revocation::past);
        untold
    }

    /// Whether there is any of that.
    pub(super) fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Forgets what could void nothing any more, a portion at a time, since whoever opens a socket waits for it.
    pub(super) fn forget(&mut self, now: u64) {
        for _ in 0..1_000 {
            let Some((_, about)) = self.past.first().copied().filter(|(past, _)| *past <= now) else { return };
            self.past.pop_first();
            self.all.remove(&about);
            self.untold.remove(&about);
        }
    }

    /// How many are in force.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

fn about(revocation: &Revocation) -> About {
    match revocation {
        Revocation::Ticket { jti, .. } => About::Ticket(*jti),
        Revocation::Pair { pair, .. } => About::Pair(*pair),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Grants, Side};

    fn ticket(pair: PairId) -> Ticket {
        Ticket::new(Side::Sibling, pair, Grants::all(), 4_000_000_000)
    }

    fn of_pair(pair: PairId, made: u64) -> Revocation {
        Revocation::Pair { pair, made }
    }

    #[test]
    fn a_ticket_is_void_by_its_name() {
        let mut revoked = Revoked::default();
        let (one, other) = (ticket(PairId::fresh()), ticket(PairId::fresh()));
        revoked.hear(Revocation::of_ticket(&one), 0);
        assert!(revoked.voids(&one) && !revoked.voids(&other));
    }

    #[test]
    fn a_pairs_tickets_are_void_by_when_they_were_made() {
        let mut revoked = Revoked::default();
        let pair = PairId::fresh();
        let (old, other) = (ticket(pair), ticket(PairId::fresh()));
        let then = old.made();
        let new = ticket(pair).made_after(then);
        for made in [then, then - 1] {
            revoked.hear(of_pair(pair, made), then);
            assert!(revoked.voids(&old) && !revoked.voids(&new) && !revoked.voids(&other));
            assert_eq!((revoked.pair(pair), revoked.len()), (Some(then), 1), "the furthest reaching one counts");
        }
        revoked.hear(of_pair(pair, new.made()), then);
        assert!(revoked.voids(&new));
        assert_eq!((revoked.len(), revoked.past.len()), (1, 1));
    }

    #[test]
    fn what_is_past_is_forgotten() {
        let mut revoked = Revoked::default();
        let pair = PairId::fresh();
        let day = 86_400_000;
        revoked.hear(Revocation::Ticket { jti: Uuid::nil(), ends: 5_000 }, 4_999);
        revoked.add(of_pair(pair, 5_000), 5_000);
        revoked.forget(4_999);
        assert_eq!(revoked.len(), 2);
        revoked.forget(5_000);
        assert_eq!(revoked.len(), 1);
        revoked.forget(day + 4_999);
        assert!(revoked.len() == 1 && revoked.has_untold());
        revoked.forget(day + 5_000);
        assert!(revoked.len() == 0 && !revoked.has_untold() && revoked.past.is_empty());
        // From an old history.
        revoked.hear(of_pair(pair, 5_000), day + 5_000);
        assert_eq!(revoked.len(), 0);
    }

    #[test]
    fn what_a_history_has_not_is_known() {
        let mut revoked = Revoked::default();
        let pair = PairId::fresh();
        let (here, there) = (of_pair(PairId::fresh(), 1_000), of_pair(pair, 2_000));
        revoked.add(here, 0);
        revoked.hear(there, 0);
        assert_eq!(revoked.untold(), [here]);
        assert!(!revoked.stands(&here) && revoked.stands(&there) && revoked.stands(&of_pair(pair, 1_999)));
        revoked.hear(here, 0);
        assert!(!revoked.has_untold() && revoked.stands(&here));
        revoked.doubt_all();
        assert_eq!(revoked.untold(), [here, there]);
        // What stands there goes less far than what is known here.
        revoked.hear(of_pair(pair, 1_999), 0);
        assert_eq!(revoked.untold(), [here, there]);
        revoked.hear(there, 0);
        assert_eq!(revoked.untold(), [here]);
    }
}
