//! What a room and its clients agree on, and the settings of a pipe.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Failure, Fault, RoomSpec};

/// The bounds of the bound of a queue towards a client, in bytes.
pub const QUEUE_BYTES: std::ops::RangeInclusive<usize> = 1_024..=64 << 20;

/// What a pipe speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text frames.
    Text,
    /// Text frames that their senders call JSON. The payload is never parsed.
    Json,
    /// Binary frames.
    Binary,
    /// Text and binary frames.
    Any,
}

impl Format {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Binary => "binary",
            Self::Any => "any",
        }
    }

    /// The subprotocol by which a client offers the format; `any` has none.
    #[must_use]
    pub const fn subprotocol(self) -> Option<&'static str> {
        match self {
            Self::Text => Some("siblings.text"),
            Self::Json => Some("siblings.json"),
            Self::Binary => Some("siblings.binary"),
            Self::Any => None,
        }
    }

    /// The format that a name stands for.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Text, Self::Json, Self::Binary, Self::Any].into_iter().find(|f| f.as_str() == name)
    }

    /// The format that a subprotocol stands for.
    #[must_use]
    pub fn from_subprotocol(name: &str) -> Option<Self> {
        Self::from_name(name.strip_prefix("siblings.")?).filter(|f| f.subprotocol().is_some())
    }

    /// Whether frames of this kind may travel.
    #[must_use]
    pub const fn carries(self, kind: FrameKind) -> bool {
        match self {
            Self::Text | Self::Json => matches!(kind, FrameKind::Text),
            Self::Binary => matches!(kind, FrameKind::Binary),
            Self::Any => true,
        }
    }

    /// Whether a client with these preferences can take part where this is spoken. One without any takes what the
    /// room speaks, and one that can do `any` can do all.
    #[must_use]
    pub fn suits(self, offers: &[Self]) -> bool {
        offers.is_empty() || offers.contains(&self) || offers.contains(&Self::Any)
    }

    /// What a room begins to speak when its first member has these preferences.
    #[must_use]
    pub fn first_choice(offers: &[Self]) -> Self {
        offers.first().copied().unwrap_or(Self::Any)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The two kinds of data frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FrameKind {
    /// Opcode 1, valid UTF-8.
    Text,
    /// Opcode 2.
    Binary,
}

/// What happens to a receiver whose queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Slow {
    /// Its socket is closed with 3413.
    #[default]
    Close,
    /// The oldest queued frames make room.
    DropOldest,
    /// New frames are not queued.
    DropNewest,
}

/// What happens when a client sends a frame that it may not: of the wrong kind, over the limit, or any where not
/// everyone may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Violations {
    /// Its socket is closed with 1003, 1009 or 3503.
    #[default]
    Close,
    /// The frame is dropped and counted.
    Drop,
}

/// How much a client may send; a client that sends more is read more slowly.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Frames per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_second: Option<f64>,
    /// Payload bytes per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
}

impl Rate {
    /// Checks that it can be kept.
    ///
    /// # Errors
    /// [`Fault::InvalidParams`].
    pub fn check(&self) -> Result<(), Failure> {
        let limits = [self.messages_per_second, self.bytes_per_second];
        match limits.into_iter().flatten().any(|limit| !(0.1..=1e12).contains(&limit)) {
            true => Err(Failure::new(Fault::InvalidParams, "rate: 0.1 or more per second")),
            false => Ok(()),
        }
    }

    /// The stricter of both, in each of its parts.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        let least = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (limit, None) | (None, limit) => limit,
        };
        Self {
            messages_per_second: least(self.messages_per_second, other.messages_per_second),
            bytes_per_second: least(self.bytes_per_second, other.bytes_per_second),
        }
    }
}

/// The settings of one pipe that hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The bound of the queue towards the client, in bytes.
    pub queue_bytes: usize,
    /// What happens when it is full.
    pub slow: Slow,
    /// What the client may send; `None` is unlimited.
    pub rate: Option<Rate>,
    /// Seconds between pings.
    pub ping: u64,
}

/// The settings of one pipe that `client.set` chose for it. They stay with the pair.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Chosen {
    /// The bound of the queue towards the client, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_bytes: Option<usize>,
    /// What happens when it is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow: Option<Slow>,
    /// What the client may send.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Seconds between pings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ping: Option<u64>,
}

impl Settings {
    /// What holds for a pipe: what was chosen for it, else what its room says, else these. A room's rate can't be
    /// chosen away.
    #[must_use]
    pub fn with(&self, spec: &RoomSpec, chosen: Option<&Chosen>) -> Self {
        let rates = [chosen.and_then(|chosen| chosen.rate), spec.rate, self.rate];
        let queue_bytes = chosen.and_then(|chosen| chosen.queue_bytes).or(spec.queue_bytes);
        let slow = chosen.and_then(|chosen| chosen.slow).or(spec.slow);
        Self {
            queue_bytes: queue_bytes.unwrap_or(self.queue_bytes),
            slow: slow.unwrap_or(self.slow),
            rate: rates.into_iter().flatten().reduce(Rate::stricter),
            ping: chosen.and_then(|chosen| chosen.ping).unwrap_or(self.ping),
        }
    }
}

/// What a pair's siblings are told of what happens in its room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watching {
    /// Who comes and goes.
    pub joins: bool,
    /// Marks in the pipe.
    pub marks: bool,
    /// What other agents signal to the whole room; what they signal to this pair alone is told in any case.
    pub signals: bool,
}

impl Default for Watching {
    fn default() -> Self {
        Self { joins: false, marks: false, signals: true }
    }
}
