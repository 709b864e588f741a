//! As much of Redis' protocol as the floors need: commands as lists of words, and their replies.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{Outcome, raw::connect};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What Redis answers.
#[derive(Debug, PartialEq)]
pub(super) enum Reply {
    /// A word, a number or a blob.
    One(Vec<u8>),
    /// A list.
    Many(Vec<Reply>),
    /// A refusal.
    Refused(String),
}

/// A connection to Redis.
pub(super) struct Resp {
    tcp: TcpStream,
    /// What was read and not understood yet.
    read: Vec<u8>,
}

impl Resp {
    pub(super) async fn open(address: SocketAddr) -> Outcome<Self> {
        Ok(Self { tcp: connect(address).await?, read: Vec::new() })
    }

    /// A connection that listens to one channel.
    pub(super) async fn subscribed(address: SocketAddr, channel: &str) -> Outcome<Self> {
        let mut redis = Self::open(address).await?;
        redis.ask(&[b"SUBSCRIBE", channel.as_bytes()]).await?;
        Ok(redis)
    }

    /// Sends a command; its reply, or another message, is to be read.
    pub(super) async fn send(&mut self, words: &[&[u8]]) -> Outcome<()> {
        let mut wire = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            wire.extend(format!("${}\r\n", word.len()).bytes());
            wire.extend_from_slice(word);
            wire.extend(b"\r\n");
        }
        self.tcp.write_all(&wire).await.map_err(|error| format!("the connection to Redis broke: {error}"))
    }

    /// The next reply or message.
    pub(super) async fn reply(&mut self) -> Outcome<Reply> {
        loop {
            if let Some((reply, end)) = parse(&self.read) {
                self.read.drain(..end);
                return match reply {
                    Reply::Refused(why) => Err(format!("Redis refused a command: {why}")),
                    reply => Ok(reply),
                };
            }
            match timeout(PATIENCE, self.tcp.read_buf(&mut self.read)).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0)) => return Err("Redis hung up".into()),
                Ok(Err(error)) => return Err(format!("the connection to Redis broke: {error}")),
                Err(_) => return Err(format!("Redis said nothing for {} s", PATIENCE.as_secs())),
            }
        }
    }

    /// How often it has carried out each command so far, also those in scripts.
    pub(super) async fn calls(&mut self) -> Outcome<Calls> {
        let line = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        Ok(Calls(self.info(b"commandstats").await?.lines().filter_map(line).collect()))
    }

    /// The memory that it uses, in bytes.
    pub(super) async fn memory(&mut self) -> Outcome<f64> {
        let text = self.info(b"memory").await?;
        let used = text.lines().find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok());
        used.ok_or_else(|| "Redis does not say how much memory it uses".into())
    }

    async fn info(&mut self, section: &[u8]) -> Outcome<String> {
        match self.ask(&[b"INFO", section]).await? {
            Reply::One(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            _ => Err("Redis answered INFO with something that is no text".into()),
        }
    }

    /// Sends a command and reads its reply.
    pub(super) async fn ask(&mut self, words: &[&[u8]]) -> Outcome<Reply> {
        self.send(words).await?;
        self.reply().await
    }
}

/// How often each command was carried out.
pub(super) struct Calls(BTreeMap<String, u64>);

impl Calls {
    /// What has been carried out since then, but for the asking.
    pub(super) fn since(&self, before: &Self) -> Self {
        let calls = self.0.iter().map(|(name, calls)| (name, calls - before.0.get(name).unwrap_or(&0)));
        let others = calls.filter(|(name, calls)| *calls > 0 && *name != "info");
        Self(others.map(|(name, calls)| (name.clone(), calls)).collect())
    }

    /// Of these commands.
    pub(super) fn of(&self, names: &[&str]) -> u64 {
        names.iter().filter_map(|name| self.0.get(*name)).sum()
    }

    pub(super) fn all(&self) -> u64 {
        self.0.values().sum()
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.0.iter().map(|(name, calls)| format!("{name} {calls}")).collect();
        f.write_str(&all.join(", "))
    }
}

/// The first whole reply, and where it ends.
fn parse(bytes: &[u8]) -> Option<(Reply, usize)> {
    let line_end = bytes.windows(2).position(|two| two == b"\r\n")?;
    let (line, start) = (bytes.get(1..line_end)?, line_end + 2);
    let length = || std::str::from_utf8(line).ok().and_then(|text| text.parse::<usize>().ok());
    match (bytes[0], length()) {
        (b'$', Some(length)) => {
            let blob = bytes.get(start..start + length)?;
            bytes.get(start + length..start + length + 2).map(|_| (Reply::One(blob.into()), start + length + 2))
        }
        (b'*', Some(count)) => {
            let (mut all, mut at) = (Vec::new(), start);
            for _ in 0..count {
                let (one, end) = parse(&bytes[at..])?;
                all.push(one);
                at += end;
            }
            Some((Reply::Many(all), at))
        }
        (b'-', _) => Some((Reply::Refused(String::from_utf8_lossy(line).into_owned()), start)),
        // A number, a word, or (with the length -1) nothing.
        _ => Some((Reply::One(line.into()), start)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_read_when_they_are_whole() {
        let wire = b"*3\r\n$2\r\nab\r\n:42\r\n*1\r\n+OK\r\n";
        let one = |text: &str| Reply::One(text.into());
        let whole = Reply::Many(vec![one("ab"), one("42"), Reply::Many(vec![one("OK")])]);
        assert!((0..wire.len()).all(|n| parse(&wire[..n]).is_none()));
        assert_eq!(parse(&[&wire[..], b"+"].concat()), Some((whole, wire.len())));
        assert_eq!(parse(b"$-1\r\n"), Some((one("-1"), 5)));
    }
}
