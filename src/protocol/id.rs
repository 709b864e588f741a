//! Names of things: pairs, nodes, siblings, rooms; and places in a history.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Text that is not the name it should be. The message says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {expected}")]
pub struct BadName {
    /// What was being read: "a pair id", "a room name".
    pub what: &'static str,
    /// What it must look like.
    pub expected: &'static str,
}

/// Crockford's base 32 in lower case, as TypeIDs write it: 128 bits in 26 characters, sortable by time.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

fn write_base32(id: Uuid, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let bits = id.as_u128();
    let mut text = [0u8; 26];
    for (i, slot) in text.iter_mut().enumerate() {
        *slot = ALPHABET[(bits >> (5 * (25 - i)) & 31) as usize];
    }
    f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
}

fn read_base32(text: &str) -> Option<Uuid> {
    // 26 characters hold 130 bits: the first may not use its top two.
    if text.len() != 26 || text.as_bytes()[0] > b'7' {
        return None;
    }
    text.bytes()
        .try_fold(0u128, |bits, c| Some(bits << 5 | ALPHABET.iter().position(|a| *a == c)? as u128))
        .map(Uuid::from_u128)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// A name that nothing has had before; ids made later sort later.
            #[must_use]
            pub fn fresh() -> Self {
                Self(Uuid::now_v7())
            }

            /// The 128 bits behind the text.
            #[must_use]
            pub fn uuid(self) -> Uuid {
                self.0
            }

            /// The id of these 128 bits.
            #[must_use]
            pub fn from_uuid(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_base32(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                text.strip_prefix($prefix).and_then(read_base32).map(Self).ok_or(BadName {
                    what: $what,
                    expected: concat!("\"", $prefix, "\" and 26 characters of 0-9 a-z without i, l, o, u"),
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id!(
    /// The identity that joins a client socket and its siblings.
    PairId, "pair_", "a pair id"
);
id!(
    /// One gateway process.
    NodeId, "node_", "a node id"
);
id!(
    /// One attached sibling (a socket, an event stream or an HTTP request).
    SiblingId, "sib_", "a sibling id"
);

id!(
    /// Something that one agent told others.
    SignalId, "signal_", "a signal id"
);

/// Where client sockets meet. 1 to 128 of `A-Z a-z 0-9 . _ ~ - /`, compared byte for byte.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RoomName(std::sync::Arc<str>);

impl RoomName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for RoomName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for RoomName {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let fits = |c: u8| c.is_ascii_alphanumeric() || b"._~-/".contains(&c);
        if (1..=128).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text.into()))
        } else {
            Err(BadName { what: "a room name", expected: "1 to 128 characters of A-Z a-z 0-9 . _ ~ - /" })
        }
    }
}

impl fmt::Display for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RoomName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RoomName {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Which client socket of a pair: the first has epoch 1. The nonce tells apart two claims that were given the same
/// epoch by a broker that lost one of them in a fail-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Fence {
    /// Counts the client sockets that the pair has had: 1, 2, …; 0 before the first.
    pub epoch: u64,
    /// Chosen at random by whoever claims.
    pub nonce: u64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.nonce)
    }
}

impl FromStr for Fence {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let (epoch, nonce) = two_numbers(text, "a fence")?;
        Ok(Self { epoch, nonce })
    }
}

/// A place in a history: the entry with this offset and nonce. Offsets count 1, 2, 3, … without holes; the nonce
/// makes an offset that a fail-over gave away twice recognisable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Position {
    /// How many entries the history has had up to and including this one.
    pub offset: u64,
    /// Chosen at random by whoever appended the entry.
    pub nonce: u64,
}

impl Position {
    /// Before the first entry.
    pub const START: Self = Self { offset: 0, nonce: 0 };
}

// Each event and each pair's record has some: without the names.

impl From<(u64, u64)> for Position {
    fn from((offset, nonce): (u64, u64)) -> Self {
        Self { offset, nonce }
    }
}

impl From<Position> for (u64, u64) {
    fn from(Position { offset, nonce }: Position) -> Self {
        (offset, nonce)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.offset, self.nonce)
    }
}

impl FromStr for Position {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let (offset, nonce) = two_numbers(text, "a position")?;
        Ok(Self { offset, nonce })
    }
}

fn two_numbers(text: &str, what: &'static str) -> Result<(u64, u64), BadName> {
    let parse = || {
        let (a, b) = text.split_once('-')?;
        Some((a.parse().ok()?, b.parse().ok()?))
    };
    parse().ok_or(BadName { what, expected: "two numbers joined by a dash" })
}
