//! Rules of rooms, and the list of all.
//!
//! A rule is in its room's slot, so that it is read and replaced in one step with the room's members. The list is in
//! another, so the two can't change in one step. It errs on the safe side, as a node's list of what it holds does
//! ([`super::holds`]): an entry is added before the rule is laid down, and removed after it is out of force; and it
//! names the version, so that an old rule's removal can't hit a new one's entry. Wherever a call is given up in
//! between, at most an entry stays that stands for nothing. Who lists compares each with its room's rule, and removes
//! it when it is so old that what it is to stand for can't be on its way any more.

use bytes::Bytes;
use fred::types::Value;

use super::{
    Redis,
    reply::{as_array, as_parsed, as_rule},
    script::{self, unavailable},
};
use crate::{
    broker::{BrokerError, Group, Rule},
    protocol::RoomName,
};

/// How many entries are read in one go.
const PAGE: usize = 1_000;

/// How long an entry that stands for nothing is let alone: longer than any call may take, in seconds.
const DOUBT: &str = "60";

/// One entry of the list: room, version, and when it was added. No name has a space in it, nor anything that sorts
/// before one: so entries are in the order of names.
fn read_entry(text: &str) -> Option<(RoomName, u64)> {
    let (room, rest) = text.split_once(' ')?;
    let (version, _) = rest.split_once(' ')?;
    Some((room.parse().ok()?, version.parse().ok()?))
}

impl Redis {
    pub(super) async fn replace_rule(
        &self,
        room: &RoomName,
        version: u64,
        rule: Option<Rule>,
        charter: Option<Bytes>,
    ) -> Result<bool, BrokerError> {
        let (new, value) = rule.map_or((0, Bytes::new()), |rule| (rule.version, rule.value));
        if new != 0 {
            let args = vec![room.as_str().into(), new.to_string().into()];
            script::ENLIST.call(&self.commands, vec![self.keys.rules()], args).await?;
        }
        let keys = self.keys.group(&Group::Room(room.clone()));
        let mut args: Vec<Value> = vec![version.to_string().into(), new.to_string().into(), value.into()];
        args.extend(charter.map(Value::from));
        let keys = vec![keys.members, keys.charter, keys.rule];
        let is: u64 = as_parsed(&script::LAY_DOWN.call(&self.commands, keys, args).await?)?;
        let done = is == new;
        let out = if done { version } else { new };
        if out != is {
            self.strike_rule(room, out).await;
        }
        Ok(done)
    }

    pub(super) async fn list_rules(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(RoomName, Rule)>, BrokerError> {
        // Behind all entries of that room.
        let mut from = after.map_or_else(|| "-".to_owned(), |name| format!("({name}!"));
        let (mut listed, mut stale) = (Vec::<(RoomName, Rule)>::new(), Vec::new());
        while listed.len() < limit {
            let most = PAGE.min(limit - listed.len());
            let args: Vec<Value> = vec![from.into(), "+".into(), most.to_string().into()];
            let reply = script::PAGE.call(&self.commands, vec![self.keys.rules()], args).await?;
            let entries: Vec<_> = as_array(reply)?.into_iter().skip(1).filter_map(Value::into_string).collect();
            let Some(last) = entries.last() else { break };
            from = format!("({last}");
            let complete = entries.len() < most;
            for ((room, version), entry, rule) in self.rules_of(entries).await? {
                if rule.as_ref().is_none_or(|rule| rule.version != version) {
                    stale.push(entry);
                }
                // A rule that was replaced meanwhile, or laid down again by who had no answer, has several entries.
                let is_new = listed.last().is_none_or(|(last, _)| *last != room);
                if is_new && after.is_none_or(|after| room.as_str() > after) {
                    listed.extend(rule.map(|rule| (room, rule)));
                }
            }
            if complete {
                break;
            }
        }
        self.weed(stale).await;
        Ok(listed)
    }

    /// What each of these entries is to stand for, and the rule of its room, in one round trip.
    async fn rules_of(
        &self,
        entries: Vec<String>,
    ) -> Result<impl Iterator<Item = ((RoomName, u64), String, Option<Rule>)>, BrokerError> {
        let read = |entry: String| read_entry(&entry).map(|names| (names, entry));
        let entries: Vec<_> = entries.into_iter().filter_map(read).collect();
        let asked = entries.iter().map(|((room, _), _)| {
            let key = self.keys.group(&Group::Room(room.clone())).rule;
            (key.clone(), "HMGET", vec![key.into(), "version".into(), "value".into()])
        });
        let replies = self.commands.send_all(asked).await.map_err(unavailable)?;
        let rules: Vec<_> = replies.into_iter().map(as_rule).collect::<Result<_, _>>()?;
        Ok(entries.into_iter().zip(rules).map(|((names, entry), rule)| (names, entry, rule)))
    }

    /// After a version is out of force, or was never in it. It is so whether or not this works.
    async fn strike_rule(&self, room: &RoomName, version: u64) {
        let entries = [format!("[{room} {version} "), format!("({room} {version}!")];
        if let Err(error) = self.commands.zremrangebylex(self.keys.rules(), entries).await {
            tracing::debug!(%room, %error, "an entry too many stays in the list of rules");
        }
    }

    /// Removes entries that stand for nothing, if they are old enough.
    async fn weed(&self, stale: Vec<String>) {
        for some in stale.chunks(PAGE) {
            let args = [DOUBT.into()].into_iter().chain(some.iter().map(|entry| entry.as_str().into())).collect();
            if let Err(error) = script::WEED.call(&self.commands, vec![self.keys.rules()], args).await {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "entries too many stay in the list of rules");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read() {
        let room: RoomName = "a/~b".parse().unwrap();
        assert_eq!(read_entry(&format!("{room} {} 17", u64::MAX)), Some((room, u64::MAX)));
        for not in ["", "a", "a 1", "a b 17", "a! 1 17", " 1 17"] {
            assert_eq!(read_entry(not), None, "{not:?}");
        }
    }
}
