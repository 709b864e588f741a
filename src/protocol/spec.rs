//! Room specifications: what a room is to be, for everyone who enters it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Failure, Fault, Format, Rate, Slow, Violations, check_meta};

/// The most subprotocols that a specification lists.
const MOST_SUBPROTOCOLS: usize = 32;

/// Who may publish in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Publish {
    /// Every member.
    #[default]
    All,
    /// Members whose maker has the grant [`super::PUBLISH`].
    Granted,
}

/// In which order a room's frames arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Those of one sender in the order in which it sent them.
    #[default]
    Sender,
    /// All of them in one order, the same for every receiver on every node.
    Room,
}

/// How many frames a room keeps for those who come back: the last of them that are not too old. With 0 it keeps none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct History {
    /// How many.
    pub messages: u64,
    /// For how long, in seconds.
    pub seconds: u64,
}

/// The most that a room keeps.
const LONGEST_HISTORY: History = History { messages: 1_000_000, seconds: 24 * 3_600 };

impl Default for History {
    /// Enough for a reconnect of some minutes in a room that is not too busy.
    fn default() -> Self {
        Self { messages: 1_000, seconds: 300 }
    }
}

/// What a room is to be. What is left out is as the node's settings say.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoomSpec {
    /// What it speaks: one format, or several in order of preference, of which its first member's decides. Without, the
    /// first member chooses.
    #[serde(with = "one_or_many")]
    #[schemars(with = "Option<OneOrMany>")]
    pub format: Vec<Format>,
    /// Whether those without an account may enter.
    pub public: bool,
    /// Who may publish.
    pub publish: Publish,
    /// Whether a sender gets its own frames too.
    pub echo: bool,
    /// In which order frames arrive.
    pub order: Order,
    /// The frames that it keeps.
    pub history: Option<History>,
    /// The most members.
    pub capacity: Option<u64>,
    /// The largest frame, in bytes.
    pub max_message_bytes: Option<usize>,
    /// How much each member may send.
    pub rate: Option<Rate>,
    /// The bound of the queue towards each member, in bytes.
    pub queue_bytes: Option<usize>,
    /// What happens when that is full.
    pub slow: Option<Slow>,
    /// What happens to a member that sends a frame which it may not.
    pub violations: Option<Violations>,
    /// Subprotocols of its clients' own that are answered when they offer them.
    pub subprotocols: Vec<String>,
    /// Its owner's own data.
    pub meta: Map<String, Value>,
}

impl RoomSpec {
    /// Checks what the types can't; `largest` is the largest frame that the node takes, in bytes.
    ///
    /// # Errors
    /// [`Fault::InvalidParams`] with the field and what would be right.
    pub fn check(&self, largest: usize) -> Result<(), Failure> {
        let wrong = |why: String| Err(Failure::new(Fault::InvalidParams, why));
        let twice = (1..self.format.len()).find(|at| self.format[..*at].contains(&self.format[*at]));
        if let Some(at) = twice {
            return wrong(format!("format: {} stands there twice", self.format[at]));
        }
        let History { messages, seconds } = LONGEST_HISTORY;
        if self.history.is_some_and(|history| history.messages > messages || history.seconds > seconds) {
            return wrong(format!("history: messages 0 to {messages}, seconds 0 to {seconds}"));
        }
        if self.max_message_bytes.is_some_and(|bytes| !(1..=largest).contains(&bytes)) {
            return wrong(format!("max_message_bytes: 1 to {largest}, which is what the node takes"));
        }
        if self.queue_bytes.is_some_and(|bytes| !super::QUEUE_BYTES.contains(&bytes)) {
            let (least, most) = super::QUEUE_BYTES.into_inner();
            return wrong(format!("queue_bytes: {least} to {most}"));
        }
        if let Some(rate) = &self.rate {
            rate.check()?;
        }
        if self.subprotocols.len() > MOST_SUBPROTOCOLS {
            return wrong(format!("subprotocols: at most {MOST_SUBPROTOCOLS}"));
        }
        if let Some(name) = self.subprotocols.iter().find(|name| !is_token(name)) {
            return wrong(format!("subprotocols: {name:?} is no subprotocol: letters, digits and !#$%&'*+-.^_`|~"));
        }
        let own = |name: &&String| name.starts_with("bearer.") || name.starts_with("siblings.");
        if let Some(name) = self.subprotocols.iter().find(own) {
            return wrong(format!("subprotocols: {name:?} is the gateway's own: list those of your clients"));
        }
        check_meta(&self.meta)
    }

    /// How much it keeps, if it keeps frames.
    #[must_use]
    pub fn keeps(&self) -> Option<History> {
        self.history.filter(|history| history.messages > 0 && history.seconds > 0)
    }

    /// Whether all its frames come in one order. A room that keeps them has one.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        self.order == Order::Room || self.keeps().is_some()
    }

    /// What a client with these offers is to speak; `spoken` is what the room speaks while it has members.
    ///
    /// # Errors
    /// [`Fault::NoCommonFormat`], naming what the room speaks.
    pub fn agree(&self, spoken: Option<Format>, offers: &[Format]) -> Result<Format, Failure> {
        // What nobody may speak any more is spoken by those who are just being closed.
        let spoken = spoken.filter(|spoken| self.speaks_after(*spoken) == *spoken);
        let choice = match spoken {
            Some(spoken) => Some(spoken).filter(|spoken| spoken.suits(offers)),
            None if self.format.is_empty() => Some(Format::first_choice(offers)),
            None => self.format.iter().copied().find(|format| format.suits(offers)),
        };
        choice.ok_or_else(|| {
            let speaks = match spoken {
                Some(spoken) => spoken.to_string(),
                None => self.format.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or "),
            };
            Failure::new(Fault::NoCommonFormat, format!("the room speaks {speaks}: ask for that format, or for none"))
        })
    }

    /// What a room that speaks `spoken` speaks under this specification.
    #[must_use]
    pub fn speaks_after(&self, spoken: Format) -> Format {
        match self.format.first() {
            Some(first) if !self.format.contains(&spoken) => *first,
            _ => spoken,
        }
    }
}

/// Whether text may stand as a subprotocol (a token of HTTP).
pub(super) fn is_token(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c))
}

/// One format, or a list of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "text, json, binary or any, or a list of them")]
pub enum OneOrMany {
    /// One.
    One(Format),
    /// Several, in order of preference.
    Many(Vec<Format>),
}

impl From<OneOrMany> for Vec<Format> {
    fn from(formats: OneOrMany) -> Self {
        match formats {
            OneOrMany::One(format) => vec![format],
            OneOrMany::Many(formats) => formats,
        }
    }
}

/// Formats as people write them.
mod one_or_many {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::{Format, OneOrMany};

    pub(super) fn serialize<S: Serializer>(formats: &[Format], s: S) -> Result<S::Ok, S::Error> {
        match formats {
            [] => s.serialize_none(),
            [one] => one.serialize(s),
            many => many.serialize(s),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Format>, D::Error> {
        Ok(Option::<OneOrMany>::deserialize(d)?.map(Into::into).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<RoomSpec, Failure> {
        let spec: RoomSpec =
            serde_path_to_error::deserialize(value).map_err(|error| Failure::misfit("body", &error))?;
        spec.check(1 << 20).map(|()| spec)
    }

    #[test]
    fn a_specification_is_read_as_it_is_written() {
        for (format, list) in [
            (json!(null), vec![]),
            (json!("binary"), vec![Format::Binary]),
            (json!(["json", "text"]), vec![Format::Json, Format::Text]),
        ] {
            let spec = read(json!({"format": format, "public": true, "order": "room", "meta": {"a": 1}})).unwrap();
            assert_eq!(spec.format, list);
            let written = serde_json::to_value(&spec).unwrap();
            assert_eq!(written["format"], format);
            assert_eq!(read(written).unwrap(), spec);
            let kept = rmp_serde::to_vec_named(&spec).unwrap();
            assert_eq!(rmp_serde::from_slice::<RoomSpec>(&kept).unwrap(), spec);
        }
    }

    #[test]
    fn mistakes_are_named_by_field() {
        for (spec, names) in [
            (json!({"formt": "text"}), "formt"),
            (json!({"format": "mp3"}), "format"),
            (json!({"format": ["text", "text"]}), "format"),
            (json!({"publish": "some"}), "publish"),
            (json!({"order": 1}), "order"),
            (json!({"history": {"messages": 5_000_000}}), "history"),
            (json!({"capacity": -1}), "capacity"),
            (json!({"max_message_bytes": 0}), "max_message_bytes"),
            (json!({"max_message_bytes": (1 << 20) + 1}), "max_message_bytes"),
            (json!({"rate": {"messages_per_second": 0}}), "rate"),
            (json!({"rate": {"messages": 0}}), "rate.messages"),
            (json!({"queue_bytes": 1}), "queue_bytes"),
            (json!({"slow": "never"}), "slow"),
            (json!({"subprotocols": ["a b"]}), "subprotocols"),
            (json!({"subprotocols": ["bearer.x"]}), "subprotocols"),
            (json!({"subprotocols": ["siblings.text"]}), "subprotocols"),
            (json!({"meta": {"x": "y".repeat(5_000)}}), "meta"),
        ] {
            let failure = read(spec.clone()).unwrap_err();
            assert!(failure.message.contains(names), "{spec}: {failure}");
            assert_eq!(failure.fault.status(), 400, "{spec}");
        }
    }

    #[test]
    fn room_and_client_agree() {
        use Format::{Any, Binary, Json, Text};
        let spec = |formats: &[Format]| RoomSpec { format: formats.to_vec(), ..RoomSpec::default() };
        for (room, spoken, offers, agreed) in [
            (vec![], None, vec![Json, Text], Some(Json)),
            (vec![], None, vec![], Some(Any)),
            (vec![], Some(Text), vec![], Some(Text)),
            (vec![], Some(Text), vec![Binary], None),
            (vec![Binary], None, vec![], Some(Binary)),
            (vec![Binary], None, vec![Text], None),
            (vec![Binary, Text], None, vec![Text, Binary], Some(Binary)),
            (vec![Binary, Text], None, vec![Text], Some(Text)),
            (vec![Binary, Text], Some(Text), vec![Binary], None),
            (vec![Any], None, vec![Text], None),
            (vec![Binary], Some(Text), vec![Binary], Some(Binary)),
            (vec![Binary], Some(Text), vec![Text], None),
            (vec![Text], None, vec![Any], Some(Text)),
        ] {
            assert_eq!(spec(&room).agree(spoken, &offers).ok(), agreed, "{room:?} {spoken:?} {offers:?}");
        }
        let failure = spec(&[Binary, Json]).agree(None, &[Text]).unwrap_err();
        assert!(failure.message.contains("binary or json"), "{failure}");
        assert_eq!(spec(&[Binary]).speaks_after(Text), Binary);
        assert_eq!(spec(&[Binary, Text]).speaks_after(Text), Text);
        assert_eq!(spec(&[]).speaks_after(Text), Text);
    }
}
