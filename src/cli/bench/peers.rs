//! Peers: other servers that send a message to many WebSockets, driven by the same load in the same run.
//!
//! They are started by whoever calls this (`tests/peers/run`), who says where they listen and which processes they are.

use std::{net::SocketAddr, str::FromStr};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    BenchArgs, Outcome,
    child::{Meter, need_files},
    complete,
    fan::{Fan, Pace, Turn},
    fan_out::{add_costs, add_latencies, samples},
    latency::payload,
    messages::Messages,
    raw::{Raw, connect, write_head},
    report::{Report, Unit},
};

const SIZE: usize = 64;
/// Messages a second at which they are compared: less than what each of them can do.
const PACES: [f64; 2] = [100.0, 500.0];
const TEXT: u8 = 1;
const BINARY: u8 = 2;

/// A peer, as it is given on the command line: `NAME=HOST:PORT,PID,…`.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    name: String,
    speaks: Speaks,
    address: SocketAddr,
    processes: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
enum Speaks {
    Nats,
    Mqtt,
    SocketIo,
    /// Nothing of its own: what comes in goes out. Who opens `/sender` gets nothing.
    Frames,
    Pusher,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || {
            format!(
                "{text}: write NAME=HOST:PORT,PID, where NAME begins with nats, mosquitto, socket.io, ws or sockudo"
            )
        };
        let (name, rest) = text.split_once('=').ok_or_else(bad)?;
        let mut parts = rest.split(',');
        let address = parts.next().and_then(|part| part.parse().ok()).ok_or_else(bad)?;
        let processes: Vec<u32> = parts.map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
        let known = [
            ("nats", Speaks::Nats),
            ("mosquitto", Speaks::Mqtt),
            ("socket.io", Speaks::SocketIo),
            ("ws", Speaks::Frames),
            ("sockudo", Speaks::Pusher),
        ];
        let speaks = known.into_iter().find(|(begin, _)| name.starts_with(begin)).map(|(_, speaks)| speaks);
        match speaks {
            Some(speaks) if !processes.is_empty() => Ok(Self { name: name.into(), speaks, address, processes }),
            _ => Err(bad()),
        }
    }
}

impl Peer {
    async fn fan(&self, receivers: u32) -> Outcome<Fan> {
        let named = |why| format!("{}: {why}", self.name);
        let mut open = Vec::new();
        for number in 0..receivers {
            open.push(self.join(number, true).await.map_err(named)?);
        }
        let sender = self.join(receivers, false).await.map_err(named)?;
        Ok(Fan::new(sender, &self.message(), open, SIZE))
    }

    /// One socket: a receiver has subscribed when this returns.
    async fn join(&self, number: u32, receives: bool) -> Outcome<Raw> {
        let tcp = connect(self.address).await?;
        let frames = Messages::frames(SIZE);
        Ok(match self.speaks {
            Speaks::Nats => {
                let mut raw = Raw::shake(tcp, "/", "", Messages::nats()).await?;
                raw.hear(b"INFO").await?;
                let subscribe = if receives { "SUB bench 1\r\n" } else { "" };
                let begin = format!("CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\n{subscribe}PING\r\n");
                raw.say(BINARY, begin.as_bytes()).await?;
                raw.hear(b"PONG\r\n").await?;
                raw
            }
            Speaks::Mqtt => {
                let mut raw = Raw::shake(tcp, "/mqtt", "sec-websocket-protocol: mqtt\r\n", Messages::mqtt()).await?;
                let name = format!("bench{number:05}");
                // Version 4, a clean session, no keep-alive.
                let connect = [b"\x10\x16\0\x04MQTT\x04\x02\0\0\0\x0a", name.as_bytes()].concat();
                raw.say(BINARY, &connect).await?;
                raw.hear(b"\x20\x02\0\0").await?;
                if receives {
                    raw.say(BINARY, b"\x82\x0a\0\x01\0\x05bench\0").await?;
                    raw.hear(b"\x90\x03\0\x01\0").await?;
                }
                raw
            }
            Speaks::SocketIo => {
                let mut raw = Raw::shake(tcp, "/socket.io/?EIO=4&transport=websocket", "", frames).await?;
                raw.hear(b"0{").await?;
                raw.say(TEXT, b"40").await?;
                raw.hear(b"40{").await?;
                if receives {
                    raw.say(TEXT, b"42[\"join\"]").await?;
                    raw.hear(b"42[\"joined\"]").await?;
                }
                raw
            }
            Speaks::Frames => Raw::shake(tcp, if receives { "/" } else { "/sender" }, "", frames).await?,
            Speaks::Pusher => {
                let mut raw = Raw::shake(tcp, "/app/bench-key?protocol=7&client=bench&version=1", "", frames).await?;
                let heard = raw.hear(b"connection_established").await?;
                let heard = if heard.ends_with(b"}") { heard } else { [heard, raw.hear(b"}").await?].concat() };
                let text = String::from_utf8_lossy(&heard).into_owned();
                let greeting: Value =
                    text.find('{').map_or(Value::Null, |at| serde_json::from_str(&text[at..]).unwrap_or_default());
                let data: Value =
                    greeting["data"].as_str().and_then(|d| serde_json::from_str(d).ok()).unwrap_or_default();
                let id = data["socket_id"].as_str().ok_or_else(|| format!("no socket id in {text:?}"))?;
                let proof = sign(b"bench-secret", format!("{id}:private-bench").as_bytes());
                let subscribe = format!(
                    r#"{{"event":"pusher:subscribe","data":{{"channel":"private-bench","auth":"bench-key:{proof}"}}}}"#
                );
                raw.say(TEXT, subscribe.as_bytes()).await?;
                raw.hear(b"subscription_succeeded").await?;
                raw
            }
        })
    }

    /// What the sender writes.
    fn message(&self) -> Vec<u8> {
        let payload = payload(SIZE);
        let (opcode, before, after): (_, &[u8], &[u8]) = match self.speaks {
            Speaks::Nats => (BINARY, b"PUB bench 64\r\n", b"\r\n"),
            Speaks::Mqtt => (BINARY, b"\x30\x47\0\x05bench", b""),
            Speaks::SocketIo => (TEXT, b"42[\"message\",\"", b"\"]"),
            Speaks::Frames => (BINARY, b"", b""),
            Speaks::Pusher => (TEXT, br#"{"event":"client-message","channel":"private-bench","data":""#, b"\"}"),
        };
        let length = before.len() + payload.len() + after.len();
        [&write_head(opcode, length, true), before, &payload, after].concat()
    }
}

/// HMAC with SHA-256, in hexadecimal digits.
fn sign(key: &[u8], text: &[u8]) -> String {
    let pad = |with: u8| -> Vec<u8> { (0..64).map(|at| key.get(at).unwrap_or(&0) ^ with).collect() };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    let outer = Sha256::new().chain_update(pad(0x5C)).chain_update(inner).finalize();
    outer
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0xF])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

pub(super) async fn measure(args: &BenchArgs, report: &mut Report) -> Outcome<()> {
    for receivers in &args.receivers {
        compare(args, *receivers, report).await?;
    }
    Ok(())
}

async fn compare(args: &BenchArgs, receivers: u32, report: &mut Report) -> Outcome<()> {
    need_files((u64::from(receivers) + 1) * (2 + args.peers.len() as u64) + 100, "use fewer --receivers")?;
    let gateway = complete::start("memory")?;
    let mut ours = complete::fan(&[gateway.address], "fan-peers", receivers, SIZE).await?;
    let mut peers = Vec::new();
    for peer in &args.peers {
        let (fan, meter) = (peer.fan(receivers).await?, Meter::of(peer.processes.iter().copied()));
        peers.push(Beside { peer, fan, meter, turns: Vec::new() });
    }
    let paces = [Pace::Saturating].into_iter().chain(PACES.map(Pace::Set));
    let lasting = args.turn(1 + PACES.len() as u32);
    for pace in paces {
        for _ in 0..args.turns {
            for mut beside in std::mem::take(&mut peers) {
                match beside.fan.turn(lasting, pace, &beside.meter).await {
                    Ok(theirs) => {
                        beside.turns.push([ours.turn(lasting, pace, &gateway.meter()).await?, theirs]);
                        peers.push(beside);
                    }
                    Err(why) => eprintln!("sibling: {}: {why}; the others go on without it", beside.peer.name),
                }
            }
        }
        for beside in &mut peers {
            beside.tell(receivers, pace, report);
        }
    }
    if peers.is_empty() { Err("no peer is left".into()) } else { Ok(()) }
}

/// A peer that is there, and how it did at one pace.
struct Beside<'a> {
    peer: &'a Peer,
    fan: Fan,
    meter: Meter,
    /// Ours and theirs.
    turns: Vec<[Turn; 2]>,
}

impl Beside<'_> {
    fn tell(&mut self, receivers: u32, pace: Pace, report: &mut Report) {
        let turns = std::mem::take(&mut self.turns);
        let how = match pace {
            Pace::Saturating | Pace::SaturatingTimed => "saturating".into(),
            Pace::Set(rate) => format!("{rate} a second"),
        };
        let name = format!("beside {}, {receivers} × 64 B, {how}", self.peer.name);
        report.add(&name, "deliveries", Unit::PerSecond, "peer", &samples(&turns, Turn::rate));
        if pace != Pace::Saturating {
            add_latencies(report, &name, "peer", &turns);
        }
        add_costs(report, &name, "peer", &turns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_told_apart() {
        let peer: Peer = "socket.io+redis=127.0.0.1:80,7,8".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.processes.len()), ("socket.io+redis", 2));
        assert!("nats=127.0.0.1:80".parse::<Peer>().is_err(), "no process");
        assert!("smtp=127.0.0.1:80,1".parse::<Peer>().is_err());
        assert_eq!(sign(b"key", b"The quick brown fox jumps over the lazy dog").get(..8), Some("f7bc83f4"));
    }

    #[test]
    fn a_mqtt_packet_is_as_long_as_it_says() {
        let peer: Peer = "mosquitto=127.0.0.1:80,1".parse().unwrap();
        assert_eq!(peer.message()[6 + 1], 2 + 5 + SIZE as u8);
    }
}
