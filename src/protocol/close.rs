//! Close codes: what a socket is told when it ends.

use super::Fault;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $phrase:literal;)*) => {
        /// The codes that this gateway says. 3000–3499: come back; 3500–3999: do not; 4000–4999 are applications'.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum CloseCode { $($(#[$doc])* $name,)* }

        impl CloseCode {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                match self { $(Self::$name => $code,)* }
            }

            /// The short plain phrase that goes with it, where nothing more exact is said.
            #[must_use]
            pub const fn phrase(self) -> &'static str {
                match self { $(Self::$name => $phrase,)* }
            }
        }
    };
}

codes! {
    /// All is done.
    Normal = 1000, "normal";
    /// A frame broke the WebSocket protocol.
    Protocol = 1002, "protocol error";
    /// A frame of a kind that is not spoken here.
    WrongKind = 1003, "wrong kind of frame";
    /// Text that is not UTF-8.
    InvalidText = 1007, "invalid UTF-8";
    /// A frame over the limit.
    TooBig = 1009, "message too big";
    /// The node stops.
    Restarting = 1012, "node restarting";
    /// The node has too much to do.
    Overloaded = 1013, "overloaded, try later";
    /// Reopen with the new ticket.
    Switched = 3307, "switched";
    /// The peer did not answer pings.
    NoAnswer = 3408, "no answer to pings";
    /// The peer did not read fast enough.
    TooSlow = 3413, "too slow";
    /// The peer sent too much.
    RateLimited = 3429, "rate limited";
    /// Ticket missing, bad or expired.
    Unauthorized = 3501, "unauthorized";
    /// Not allowed.
    Forbidden = 3503, "forbidden";
    /// No such pair, room or cursor.
    NotFound = 3504, "not found";
    /// A newer client socket took over.
    Replaced = 3509, "replaced by a newer client socket";
    /// The pair has ended.
    PairEnded = 3510, "pair ended";
    /// The room was closed.
    RoomClosed = 3511, "room closed";
    /// Client and room have no format in common.
    NoCommonFormat = 3516, "no common format";
}

impl From<Fault> for CloseCode {
    /// What a browser is told where others are told the HTTP status.
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unauthorized => Self::Unauthorized,
            Fault::Forbidden => Self::Forbidden,
            Fault::NotFound => Self::NotFound,
            Fault::Gone => Self::PairEnded,
            Fault::Conflict => Self::Replaced,
            Fault::NoCommonFormat => Self::NoCommonFormat,
            Fault::RateLimited => Self::RateLimited,
            Fault::TooLarge => Self::TooBig,
            Fault::Parse
            | Fault::InvalidRequest
            | Fault::UnknownMethod
            | Fault::InvalidParams
            | Fault::UnknownField => Self::Protocol,
            Fault::Draining => Self::Restarting,
            Fault::Internal
            | Fault::Timeout
            | Fault::ClientDetached
            | Fault::RoomFull
            | Fault::Overloaded
            | Fault::AuthorizerUnavailable
            | Fault::BrokerUnavailable => Self::Overloaded,
        }
    }
}

/// The longest reason that fits a close frame, in bytes.
pub const LONGEST_REASON: usize = 123;

/// Why a socket is closed, as its peer reads it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Closing {
    /// The number on the wire; 1005 and 1006 stand for "none was said" and are never sent.
    pub code: u16,
    /// A short plain phrase.
    pub reason: String,
}

impl Closing {
    /// With the code's own phrase.
    #[must_use]
    pub fn new(code: CloseCode) -> Self {
        Self { code: code.number(), reason: code.phrase().into() }
    }

    /// With a more exact phrase, cut where it would not fit, and without control characters.
    #[must_use]
    pub fn because(code: CloseCode, reason: &str) -> Self {
        Self { code: code.number(), reason: clean(reason) }
    }

    /// With an application's code.
    #[must_use]
    pub fn application(code: u16, reason: &str) -> Self {
        Self { code, reason: clean(reason) }
    }
}

fn clean(reason: &str) -> String {
    let mut text: String = reason.chars().filter(|c| !c.is_control()).collect();
    text.truncate(text.floor_char_boundary(LONGEST_REASON));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_fit_and_codes_differ() {
        for (i, code) in CloseCode::ALL.iter().enumerate() {
            assert!(code.phrase().len() <= LONGEST_REASON);
            assert!(CloseCode::ALL[..i].iter().all(|other| other.number() != code.number()));
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let closing = Closing::because(CloseCode::Forbidden, &"é\n".repeat(100));
        assert_eq!(closing.reason, "é".repeat(61));
    }
}
