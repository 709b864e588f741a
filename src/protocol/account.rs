//! Accounts: on whose behalf something is done, and how far that goes.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use serde::{Deserialize, Serialize};

use super::{BadName, Format, Grants, RoomName};

/// The grant to publish in rooms where not everyone may.
pub const PUBLISH: &str = "room.publish";

/// On whose behalf.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Account {
    /// Nobody said.
    Anonymous,
    /// The bearer of the admin key.
    Admin,
    /// An application's, by the `sub` of its token.
    Named(String),
}

/// A name of rooms, in which each `*` stands for any characters or none.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

impl Pattern {
    /// Every room.
    #[must_use]
    pub fn all() -> Self {
        Self("*".into())
    }

    /// Whether a room is meant.
    #[must_use]
    pub fn covers(&self, room: &RoomName) -> bool {
        let (mut parts, mut rest) = (self.0.split('*'), room.as_str());
        let Some(tail) = parts.next().and_then(|head| rest.strip_prefix(head)) else { return false };
        let Some(last) = parts.next_back() else { return tail.is_empty() };
        rest = tail;
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.len() >= last.len() && rest.ends_with(last)
    }

    /// How exactly it says what it means: of several that cover a room, the greatest counts.
    #[must_use]
    pub fn weight(&self) -> (bool, usize) {
        (!self.0.contains('*'), self.0.len())
    }
}

impl FromStr for Pattern {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let fits = |c: u8| c.is_ascii_alphanumeric() || b"._~-/*".contains(&c);
        if (1..=128).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text.into()))
        } else {
            Err(BadName { what: "a pattern of rooms", expected: "1 to 128 characters of A-Z a-z 0-9 . _ ~ - / *" })
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What may be done on somebody's behalf. A pair keeps that of its maker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// Whose it is.
    pub account: Account,
    /// The rooms that it goes for; public rooms are for all.
    pub rooms: Vec<Pattern>,
    /// The formats that its clients may speak; none said is all.
    pub formats: Vec<Format>,
    /// What it may do.
    pub grants: Grants,
    /// When the token that says so expires, in seconds since 1970. What was made with it has tickets of its own, so that a
    /// pair does not keep this.
    #[serde(skip)]
    pub until: Option<u64>,
}

impl Authority {
    /// Of the bearer of the admin key: everything.
    #[must_use]
    pub fn admin() -> Self {
        let (account, rooms, grants) = (Account::Admin, vec![Pattern::all()], Grants::all());
        Self { account, rooms, formats: Vec::new(), grants, until: None }
    }

    /// Of those without a token: public rooms.
    #[must_use]
    pub fn anonymous() -> Self {
        let (account, grants) = (Account::Anonymous, Grants::of_a_sibling());
        Self { account, rooms: Vec::new(), formats: Vec::new(), grants, until: None }
    }

    /// The same, which all pairs share that were made by nobody.
    #[must_use]
    pub fn of_nobody() -> Arc<Self> {
        static NOBODYS: LazyLock<Arc<Authority>> = LazyLock::new(|| Arc::new(Authority::anonymous()));
        Arc::clone(&NOBODYS)
    }

    /// Whether it is that one.
    #[must_use]
    pub fn is_of_nobody(&self) -> bool {
        *self == *Self::of_nobody()
    }

    /// To be kept with a pair.
    #[must_use]
    pub fn shared(self) -> Arc<Self> {
        if self.is_of_nobody() { Self::of_nobody() } else { Arc::new(self) }
    }

    /// Whether it goes for a room that is not public.
    #[must_use]
    pub fn covers(&self, room: &RoomName) -> bool {
        self.rooms.iter().any(|pattern| pattern.covers(room))
    }

    /// Whether its clients may publish where not everyone may.
    #[must_use]
    pub fn may_publish(&self) -> bool {
        self.grants.cover(PUBLISH)
    }

    /// What of `offers` its clients may speak. `None` when nothing is left.
    #[must_use]
    pub fn limit(&self, offers: &[Format]) -> Option<Vec<Format>> {
        if self.formats.is_empty() || self.formats.contains(&Format::Any) {
            return Some(offers.to_vec());
        }
        if offers.is_empty() || offers.contains(&Format::Any) {
            return Some(self.formats.clone());
        }
        let left: Vec<_> = offers.iter().copied().filter(|format| self.formats.contains(format)).collect();
        if left.is_empty() { None } else { Some(left) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_what_they_say() {
        for (pattern, covered, not) in [
            ("*", vec!["a", "a/b"], vec![]),
            ("cams/*", vec!["cams/1", "cams/1/2", "cams/"], vec!["cams", "xcams/1"]),
            ("a*c", vec!["ac", "abc", "abcc"], vec!["a", "abcd", "bac"]),
            ("*b*", vec!["b", "abc", "bb"], vec!["a"]),
            ("a*a", vec!["aa", "aba"], vec!["a"]),
            ("a", vec!["a"], vec!["aa", "b"]),
            ("a*b*c", vec!["abc", "axbyc", "abbc"], vec!["acb", "ac"]),
        ] {
            let read: Pattern = pattern.parse().unwrap();
            for room in covered {
                assert!(read.covers(&room.parse().unwrap()), "{pattern} {room}");
            }
            for room in not {
                assert!(!read.covers(&room.parse().unwrap()), "{pattern} {room}");
            }
        }
        assert!("a b".parse::<Pattern>().is_err() && "".parse::<Pattern>().is_err());
    }

    #[test]
    fn formats_are_limited() {
        use Format::{Any, Binary, Json, Text};
        let of = |formats: &[Format]| Authority { formats: formats.to_vec(), ..Authority::anonymous() };
        assert_eq!(of(&[]).limit(&[Text]), Some(vec![Text]));
        assert_eq!(of(&[Binary, Json]).limit(&[]), Some(vec![Binary, Json]));
        assert_eq!(of(&[Binary, Json]).limit(&[Any]), Some(vec![Binary, Json]));
        assert_eq!(of(&[Binary, Json]).limit(&[Text, Json]), Some(vec![Json]));
        assert_eq!(of(&[Binary]).limit(&[Text]), None);
    }
}
