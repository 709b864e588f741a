//! What a run leaves behind: everything that the agents did, heard and got, for the ledger to be checked.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::Closed;

/// Milliseconds since 1970: the clock that events are stamped with, too, since all run on one machine.
pub type Ms = u64;

pub fn now() -> Ms {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    u64::try_from(since.as_millis()).expect("a clock before the year 500 million")
}

/// When an event was raised, by its own account.
pub fn said_at(params: &Value) -> Ms {
    use time::OffsetDateTime;
    use time::format_description::well_known::Rfc3339;
    let at = params["at"].as_str().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    at.and_then(|at| u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()).unwrap_or(0)
}

/// What a fault leaves untouched.
#[derive(Clone, Copy, Debug)]
pub struct Promises {
    /// Histories survive it: no event that was told is lost, and every gap can be counted.
    pub histories: bool,
    /// No client socket is closed by it.
    pub pipes: bool,
    /// No node dies in the middle of a command: each key gets a definite answer in the end.
    pub answers: bool,
    /// Nodes end in good order: everything is closed with 1012, and siblings are told first.
    pub draining: bool,
}

/// All that is recorded of a run.
pub struct Book {
    pub promises: Promises,
    /// The nodes, by name, that were killed, stopped or cut off.
    pub harmed: HashSet<String>,
    /// Which node listened where, as its siblings were told.
    pub names: BTreeMap<SocketAddr, String>,
    pub pages: Vec<Page>,
}

/// All that is recorded of one pair.
#[derive(Clone, Debug, Default)]
pub struct Page {
    pub pair: String,
    /// The rooms that it may be in.
    pub rooms: Vec<String>,
    /// Every event that its siblings heard, in order, over all their connections.
    pub heard: Vec<Heard>,
    /// Those connections.
    pub links: Vec<Link>,
    pub orders: Vec<Order>,
    pub pipes: Vec<Pipe>,
    /// What a fresh sibling was told from the start, at the end, on another node.
    pub told: Vec<Value>,
    /// How much had been heard when that was read.
    pub settled: usize,
    /// What went wrong on the spot.
    pub odd: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Heard {
    pub when: Ms,
    pub said: Ms,
    pub params: Value,
}

/// One connection of a sibling.
#[derive(Clone, Debug)]
pub struct Link {
    pub node: SocketAddr,
    /// Told that its node is draining.
    pub warned: bool,
    /// How it ended, if not by the sibling's own wish.
    pub ended: Option<Closed>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Act {
    Set,
    Pause,
    Resume,
    Move,
    Push,
}

impl Act {
    /// The event that is its effect.
    pub fn effect(self) -> Option<&'static str> {
        match self {
            Self::Set => Some("client.changed"),
            Self::Pause => Some("client.paused"),
            Self::Resume => Some("client.unpaused"),
            Self::Move => Some("client.moved"),
            Self::Push => None,
        }
    }
}

/// A command with a key, however often it was sent.
#[derive(Clone, Debug)]
pub struct Order {
    pub act: Act,
    pub key: String,
    pub params: Value,
    pub first_sent: Ms,
    pub last_sent: Ms,
    pub attempts: u32,
    /// The last answer that left it open.
    pub unsure: Option<Value>,
    /// The first definite answer: its result, or its error.
    pub answer: Option<(Ms, Result<Value, Value>)>,
    /// Results that came later, to attempts made before.
    pub again: Vec<Value>,
    /// Its agent gave up on it: all that it was told for long is that nobody knows.
    pub given_up: bool,
}

/// One client socket.
#[derive(Clone, Debug)]
pub struct Pipe {
    pub node: SocketAddr,
    pub opened: Ms,
    /// How it ended, and whether the agent itself wanted that.
    pub ended: Option<(Ms, Closed, bool)>,
    /// The numbers of the frames that were sent on it.
    pub sent: Vec<u64>,
    pub got: Vec<Frame>,
}

/// A frame that came out of a pipe.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Another pair's frame: which pair, on its how manyth socket, which number.
    Of(usize, usize, u64),
    /// What a `client.push` said.
    Pushed(String),
    /// What no agent sends.
    Odd(String),
}

/// How a frame is written: who sent it on which of its sockets, its number, and a filling that tells a cut one.
pub fn write_frame(pair: usize, socket: usize, number: u64, filling: usize) -> String {
    let letter = filling_of(number);
    let mut text = format!("f {pair} {socket} {number} {filling} ");
    text.extend(std::iter::repeat_n(letter, filling));
    text
}

pub fn read_frame(text: &str) -> Frame {
    if text.starts_with("p ") {
        return Frame::Pushed(text.to_owned());
    }
    let read = || {
        let mut words = text.strip_prefix("f ")?.splitn(5, ' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        let (pair, socket, number, filling) = (number()?, number()?, number()?, number()?);
        let rest = words.next()?;
        let whole = rest.len() as u64 == filling && rest.chars().all(|c| c == filling_of(number));
        whole.then(|| Frame::Of(usize::try_from(pair).unwrap(), usize::try_from(socket).unwrap(), number))
    };
    read().unwrap_or_else(|| Frame::Odd(text.chars().take(80).collect()))
}

fn filling_of(number: u64) -> char {
    char::from(b'a' + u8::try_from(number % 26).expect("less than 26"))
}

#[test]
fn a_frame_is_read_as_it_was_written_and_a_cut_one_is_odd() {
    let text = write_frame(3, 1, 77, 40);
    assert_eq!(read_frame(&text), Frame::Of(3, 1, 77));
    assert!(matches!(read_frame(&text[..text.len() - 1]), Frame::Odd(_)));
    assert!(matches!(read_frame("hello"), Frame::Odd(_)));
    assert!(matches!(read_frame("p 1 x"), Frame::Pushed(_)));
}
