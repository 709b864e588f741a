//! What a room and its clients agree on, and the settings of a pipe.

use std::fmt;

use serde::{Deserialize, Serialize};

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

/// What happens when a client sends a frame of the wrong kind or over the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Violations {
    /// Its socket is closed with 1003 or 1009.
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

/// The settings of one pipe that `client.set` can change while it is open. They stay with the pair.
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
