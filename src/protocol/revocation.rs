//! Revocations: what voids tickets before their end.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Failure, Fault, LONGEST_TICKET, PairId, Ticket, ticket::made};

/// How far ahead of this node's clock another one's may be.
pub const CLOCKS_DIFFER: u64 = 5_000;

/// What is void, as every node keeps it in mind until no such ticket could live any more. Times are milliseconds since
/// 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Revocation {
    /// The ticket of this name.
    Ticket {
        /// Which.
        jti: Uuid,
        /// When it ends by itself.
        ends: u64,
    },
    /// All tickets of this pair that were made up to then.
    Pair {
        /// Whose.
        pair: PairId,
        /// The time in their names.
        made: u64,
    },
}

impl Revocation {
    /// Of one ticket that is at hand.
    #[must_use]
    pub fn of_ticket(ticket: &Ticket) -> Self {
        Self::Ticket { jti: ticket.jti, ends: ticket.exp.saturating_mul(1_000) }
    }

    /// Of one ticket by its name alone.
    ///
    /// # Errors
    /// [`Fault::InvalidParams`] for what can't be a ticket's name at `now`.
    pub fn of_name(jti: Uuid, now: u64) -> Result<Self, Failure> {
        match made(jti) {
            Some(at) if at <= now + LONGEST_TICKET * 1_000 => {
                Ok(Self::Ticket { jti, ends: at + LONGEST_TICKET * 1_000 })
            }
            _ => {
                Err(Failure::new(Fault::InvalidParams, "jti: not the name of a ticket, which is a UUID of version 7"))
            }
        }
    }

    /// From when on there is nothing that it could void.
    #[must_use]
    pub fn past(&self) -> u64 {
        match self {
            Self::Ticket { ends, .. } => *ends,
            Self::Pair { made, .. } => made.saturating_add(LONGEST_TICKET * 1_000),
        }
    }

    /// The bytes that are kept.
    ///
    /// # Errors
    /// When it can't be encoded.
    pub fn encode(&self) -> Result<bytes::Bytes, Failure> {
        let bytes = rmp_serde::to_vec_named(self);
        bytes.map(Into::into).map_err(|e| Failure::new(Fault::Internal, e.to_string()))
    }

    /// Reads what is kept; `None` when another version kept it.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Grants, Side};

    #[test]
    fn what_is_kept_is_what_was_revoked() {
        let ticket = Ticket::new(Side::Client, PairId::fresh(), Grants::default(), 1_000);
        for revocation in [Revocation::of_ticket(&ticket), Revocation::Pair { pair: ticket.pair, made: 7 }] {
            assert_eq!(Revocation::decode(&revocation.encode().unwrap()), Some(revocation));
        }
        assert_eq!(Revocation::of_ticket(&ticket).past(), 1_000_000);
        assert_eq!(Revocation::decode(b"of another version"), None);
    }

    #[test]
    fn only_names_of_tickets_can_be_revoked() {
        let ticket = Ticket::new(Side::Client, PairId::fresh(), Grants::default(), 1_000);
        let now = ticket.made();
        let past = Revocation::of_name(ticket.jti, now).unwrap().past();
        assert_eq!(past, now + 86_400_000, "whatever its end is");
        assert!(Revocation::of_name(Uuid::new_v4(), now).is_err());
        assert!(Revocation::of_name(ticket.jti, 0).is_err(), "of the far future");
    }
}
