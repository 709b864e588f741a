//! Tickets: signed strings that open one side of one pair with stated grants.

use hmac::{Hmac, Mac as _};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use uuid::{NoContext, Timestamp, Uuid};

use super::{Failure, Fault, Grants, PairId};

/// The longest token that is looked at, in bytes.
const LONGEST: usize = 8 * 1024;
/// The longest that a ticket may live, in seconds: a day. What is revoked can be forgotten after that.
pub const LONGEST_TICKET: u64 = 86_400;

/// The side of a pair that a ticket opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The client socket.
    Client,
    /// A sibling socket, and the pair's routes.
    Sibling,
}

impl Side {
    /// The ticket's audience.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Sibling => "sibling",
        }
    }
}

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    iss: String,
    /// The side that it opens.
    pub aud: Side,
    /// The pair that it opens.
    pub pair: PairId,
    /// What its bearer may do.
    pub grants: Grants,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
    /// Its own name, in which is when it was made.
    pub jti: Uuid,
}

/// When a ticket was made, as its name says, in milliseconds since 1970; `None` for what is no ticket's name.
pub(super) fn made(jti: Uuid) -> Option<u64> {
    let (seconds, nanos) = jti.get_timestamp().filter(|_| jti.get_version_num() == 7)?.to_unix();
    Some(seconds * 1_000 + u64::from(nanos) / 1_000_000)
}

impl Ticket {
    /// Who signs tickets, as they say it.
    pub const ISSUER: &str = "sibling-sockets";

    /// A ticket that ends at `exp` (seconds since 1970).
    #[must_use]
    pub fn new(aud: Side, pair: PairId, grants: Grants, exp: u64) -> Self {
        Self { iss: Self::ISSUER.into(), aud, pair, grants, exp, jti: Uuid::now_v7() }
    }

    /// The same, with a name by which it was made after that time (in milliseconds since 1970).
    #[must_use]
    pub fn made_after(self, time: u64) -> Self {
        if self.made() > time {
            return self;
        }
        let next = time + 1;
        let at = Timestamp::from_unix(NoContext, next / 1_000, (next % 1_000) as u32 * 1_000_000);
        Self { jti: Uuid::new_v7(at), ..self }
    }

    /// When it was made, in milliseconds since 1970.
    #[must_use]
    pub fn made(&self) -> u64 {
        Self::made_at(self.jti)
    }

    /// When the ticket of this name was made; 0 for what is no ticket's name.
    #[must_use]
    pub fn made_at(jti: Uuid) -> u64 {
        made(jti).unwrap_or_default()
    }
}

/// The keys that sign and verify tickets: the first signs, all verify, so that keys can be changed without a break.
#[derive(Clone)]
pub struct TicketKeys(Vec<(EncodingKey, DecodingKey)>, Vec<Hmac<Sha256>>);

/// How long a seal is, in bytes.
pub const SEAL: usize = 8;

/// Every event has one in its cursor: so each key is prepared once.
fn seal(bytes: &[u8], key: &Hmac<Sha256>) -> Option<[u8; SEAL]> {
    key.clone().chain_update(bytes).finalize().into_bytes().first_chunk().copied()
}

impl std::fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TicketKeys({})", self.0.len())
    }
}

impl TicketKeys {
    /// Keys from secrets, the signing one first. At least one.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let both =
            |s: &'a [u8]| ((EncodingKey::from_secret(s), DecodingKey::from_secret(s)), Hmac::new_from_slice(s).ok());
        let (keys, seals): (_, Vec<_>) = secrets.into_iter().map(both).unzip();
        Self(keys, seals.into_iter().flatten().collect())
    }

    /// A seal on something that is shown back later, so that nobody can make it up.
    #[must_use]
    pub fn seal(&self, bytes: &[u8]) -> [u8; SEAL] {
        self.1.first().and_then(|key| seal(bytes, key)).unwrap_or_default()
    }

    /// Whether one of these keys has sealed it.
    #[must_use]
    pub fn has_sealed(&self, bytes: &[u8], shown: &[u8]) -> bool {
        // All of it is compared, so that the time tells nothing.
        let same = |own: [u8; SEAL]| own.iter().zip(shown).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0;
        shown.len() == SEAL && self.1.iter().filter_map(|key| seal(bytes, key)).any(same)
    }

    /// The text of a ticket.
    ///
    /// # Errors
    /// [`Fault::Internal`] when there is no key or signing fails.
    pub fn sign(&self, ticket: &Ticket) -> Result<String, Failure> {
        let failed = || Failure::new(Fault::Internal, "the ticket could not be signed");
        let (key, _) = self.0.first().ok_or_else(failed)?;
        encode(&Header::new(Algorithm::HS256), ticket, key).map_err(|_| failed())
    }

    /// Reads a ticket's text: signature, issuer, and that it has not ended at `now` (seconds since 1970).
    ///
    /// # Errors
    /// [`Fault::Unauthorized`] with a sentence that tells which check failed.
    pub fn read(&self, text: &str, now: u64) -> Result<Ticket, Failure> {
        match self.recognise(text)? {
            ticket if ticket.exp <= now => refuse("the ticket has expired: ask for a new one"),
            ticket if ticket.exp.saturating_mul(1_000) > ticket.made() + LONGEST_TICKET * 1_000 => {
                refuse("the ticket lives for longer than a day from the time in its jti: ask for a new one")
            }
            ticket => Ok(ticket),
        }
    }

    /// Reads a ticket's text: signature and issuer. It may have ended.
    ///
    /// # Errors
    /// [`Fault::Unauthorized`].
    pub fn recognise(&self, text: &str) -> Result<Ticket, Failure> {
        if text.len() > LONGEST {
            return refuse("the ticket is too long");
        }
        // One algorithm only: a token can't choose how it is checked. The end is checked elsewhere, where it gets its
        // own sentence; the clock is the caller's.
        let mut rules = Validation::new(Algorithm::HS256);
        rules.validate_exp = false;
        rules.validate_aud = false;
        rules.set_issuer(&[Ticket::ISSUER]);
        rules.set_required_spec_claims(&["iss", "aud", "exp"]);
        match self.0.iter().find_map(|(_, key)| decode::<Ticket>(text, key, &rules).ok()) {
            None => refuse("the ticket is not valid: ask for a new one"),
            Some(ticket) => Ok(ticket.claims),
        }
    }

    /// Reads a ticket's text, and checks that it opens this side of this pair.
    ///
    /// # Errors
    /// [`Fault::Unauthorized`] with a sentence that tells which check failed.
    pub fn verify(&self, text: &str, side: Side, pair: PairId, now: u64) -> Result<Ticket, Failure> {
        match self.read(text, now)? {
            ticket if ticket.aud != side => refuse("the ticket opens the other side of its pair"),
            ticket if ticket.pair != pair => refuse("the ticket belongs to another pair"),
            ticket => Ok(ticket),
        }
    }
}

fn refuse<T>(why: &str) -> Result<T, Failure> {
    Err(Failure::new(Fault::Unauthorized, why))
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as B64};

    use super::*;

    fn keys(secrets: &[&str]) -> TicketKeys {
        TicketKeys::new(secrets.iter().map(|s| s.as_bytes()))
    }

    fn ticket() -> Ticket {
        Ticket::new(Side::Sibling, PairId::fresh(), Grants::of_a_sibling(), 1_000)
    }

    #[test]
    fn a_seal_is_the_beginning_of_a_signature() {
        // As it was from the first one on: cursors outlive the gateway that gave them out.
        let whole = jsonwebtoken::crypto::sign(b"said", &EncodingKey::from_secret(b"one"), Algorithm::HS256).unwrap();
        let keys = keys(&["one", "two"]);
        assert_eq!(keys.seal(b"said")[..], B64.decode(whole).unwrap()[..SEAL]);
        assert!(keys.has_sealed(b"said", &keys.seal(b"said")) && !keys.has_sealed(b"sad", &keys.seal(b"said")));
    }

    #[test]
    fn keys_can_be_rotated() {
        let ticket = ticket();
        let old = keys(&["old"]).sign(&ticket).unwrap();
        let both = keys(&["new", "old"]);
        assert_eq!(both.verify(&old, Side::Sibling, ticket.pair, 999).unwrap(), ticket);
        let new = both.sign(&ticket).unwrap();
        assert!(keys(&["old"]).verify(&new, Side::Sibling, ticket.pair, 999).is_err());
    }

    #[test]
    fn a_name_tells_when_its_ticket_was_made() {
        let ticket = ticket();
        let then = ticket.made();
        assert!(then > 1_700_000_000_000);
        assert_eq!(ticket.clone().made_after(then - 1), ticket);
        assert_eq!(ticket.clone().made_after(then).made(), then + 1);
        assert_eq!(ticket.made_after(then + 5_999).made(), then + 6_000);
    }

    #[test]
    fn nobody_lives_for_longer_than_a_day() {
        let keys = keys(&["k"]);
        let mut ticket = ticket();
        let day = ticket.made() / 1_000 + LONGEST_TICKET;
        for (exp, good) in [(day, true), (day + 1, false)] {
            ticket.exp = exp;
            assert_eq!(keys.read(&keys.sign(&ticket).unwrap(), 0).is_ok(), good);
        }
        ticket.jti = Uuid::new_v4();
        assert!(keys.read(&keys.sign(&ticket).unwrap(), 0).is_err(), "nobody knows when it was made");
        assert!(keys.recognise(&keys.sign(&ticket).unwrap()).is_ok());
    }

    #[test]
    fn everything_else_is_refused() {
        let (keys, ticket) = (keys(&["k"]), ticket());
        let text = keys.sign(&ticket).unwrap();
        assert!(keys.verify(&text, Side::Sibling, ticket.pair, 999).is_ok());
        assert!(keys.verify(&text, Side::Sibling, ticket.pair, 1_000).is_err(), "expired");
        assert!(keys.verify(&text, Side::Client, ticket.pair, 999).is_err(), "the other side");
        assert!(keys.verify(&text, Side::Sibling, PairId::fresh(), 999).is_err(), "another pair");
        assert!(keys.verify(&"x".repeat(1 << 20), Side::Sibling, ticket.pair, 999).is_err(), "huge");
        let claims = text.split('.').nth(1).unwrap();
        let none = format!("{}.{claims}.", B64.encode(br#"{"alg":"none","typ":"JWT"}"#));
        assert!(keys.verify(&none, Side::Sibling, ticket.pair, 999).is_err(), "alg none");
        let mut bent = text.into_bytes();
        *bent.last_mut().unwrap() ^= 4;
        assert!(keys.verify(std::str::from_utf8(&bent).unwrap(), Side::Sibling, ticket.pair, 999).is_err());
    }
}
