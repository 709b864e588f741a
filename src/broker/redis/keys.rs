//! Every name that is used in Redis, built in one place.
//!
//! What one script touches shares a hash tag, so that it shares a slot in Redis Cluster. Names of rooms hold no
//! braces, ids neither; the prefix is refused if it does.
//!
//! # What an idle pair takes
//! Of most pairs nothing is kept but what was when they came: a record, a history of one event, one sibling; a place in
//! their node's list; a share in their room's members and talk; and the channels that their node listens to. A key takes
//! some 100 bytes beside its value, an entry of a large HASH or ZSET some 70 or 100, and a small one is one piece of
//! memory only while nothing in it is longer than 64 bytes. So there are few keys, what belongs together is one value, and
//! in it ids are 16 bytes, fences and positions two numbers of 8 each.

use crate::{
    broker::Group,
    protocol::{NodeId, PairId, Topic},
};

/// Builds keys and channels that begin with one prefix.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
}

/// The keys of a group.
pub(super) struct GroupKeys {
    /// ZSET, all scores 0: the members in the order of their ids, see `lua/counted.lua`.
    pub(super) members: String,
    /// STRING.
    pub(super) charter: String,
    /// HASH: version and value. For all but rooms it never exists.
    pub(super) rule: String,
    /// LIST: what is told of it. For all but rooms it never exists.
    pub(super) talk: String,
    /// LIST: who has come to a crowd (+) or left it (-), and is not told of yet. For all but rooms it never exists.
    pub(super) untold: String,
}

impl Keys {
    /// Keys that begin with `prefix`; `None` if it has braces, which would break the hash tags.
    pub(super) fn new(prefix: &str) -> Option<Self> {
        (!prefix.contains(['{', '}'])).then(|| Self { prefix: prefix.to_owned() })
    }

    /// STRING: a pair's record, see `lua/record.lua`.
    pub(super) fn pair(&self, pair: PairId) -> String {
        format!("{}{{{pair}}}:pair", self.prefix)
    }

    /// STRING: the reply to a pair's command with a key; empty while it is carried out.
    pub(super) fn command(&self, pair: PairId, key: &str) -> String {
        format!("{}{{{pair}}}:command:{key}", self.prefix)
    }

    /// LIST: a topic's history, see `lua/entries.lua`.
    pub(super) fn log(&self, topic: &Topic) -> String {
        self.under(topic, if matches!(topic, Topic::Talk(_)) { "talk" } else { "log" })
    }

    /// What a topic's history shares its life with: a pair's record, and while a room has members, they. For others it
    /// never exists.
    pub(super) fn record(&self, topic: &Topic) -> String {
        self.under(topic, if matches!(topic, Topic::Talk(_)) { "members" } else { "pair" })
    }

    /// Channel: a topic's live traffic.
    pub(super) fn live(&self, topic: &Topic) -> String {
        self.under(topic, if matches!(topic, Topic::Talk(_)) { "talk-live" } else { "live" })
    }

    /// HASH: what one of a history's many writers has added to it.
    pub(super) fn writer(&self, topic: &Topic, name: &str) -> String {
        self.under(topic, &format!("writer:{name}"))
    }

    pub(super) fn group(&self, group: &Group) -> GroupKeys {
        let key = |kind: &str| match group {
            Group::Room(room) => format!("{}{{room/{room}}}:{kind}", self.prefix),
            Group::Siblings(pair) => format!("{}{{{pair}}}:{kind}", self.prefix),
        };
        GroupKeys {
            members: key("members"),
            charter: key("charter"),
            rule: key("rule"),
            talk: key("talk"),
            untold: key("untold"),
        }
    }

    /// HASH: pair to all that a node holds of it, see [`super::holds`].
    pub(super) fn holds(&self, node: NodeId) -> String {
        format!("{}{{{node}}}:holds", self.prefix)
    }

    /// ZSET, all scores 0: the rules of all rooms, see [`super::rules`].
    pub(super) fn rules(&self) -> String {
        format!("{}{{rooms}}:rules", self.prefix)
    }

    /// ZSET: nodes, by when their lease runs out.
    pub(super) fn alive(&self) -> String {
        format!("{}{{nodes}}:alive", self.prefix)
    }

    /// HASH: node to what it says of itself.
    pub(super) fn value(&self) -> String {
        format!("{}{{nodes}}:value", self.prefix)
    }

    fn under(&self, topic: &Topic, kind: &str) -> String {
        match topic {
            Topic::Pair(pair) => format!("{}{{{pair}}}:{kind}", self.prefix),
            Topic::Room(room) | Topic::Talk(room) => format!("{}{{room/{room}}}:{kind}", self.prefix),
            Topic::Node(node) => format!("{}{{{node}}}:{kind}", self.prefix),
            Topic::Cluster => format!("{}{{cluster}}:{kind}", self.prefix),
        }
    }
}

impl From<GroupKeys> for Vec<String> {
    /// As every script about groups takes them, see `lua/counted.lua`.
    fn from(keys: GroupKeys) -> Self {
        let GroupKeys { members, charter, rule, talk, untold } = keys;
        vec![members, charter, rule, talk, untold]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_of_a_topic_shares_its_tag() {
        let keys = Keys::new("sib:").unwrap();
        let pair = PairId::fresh();
        let room = Topic::Room("a/b".parse().unwrap());
        assert_eq!(keys.pair(pair), format!("sib:{{{pair}}}:pair"));
        assert_eq!(keys.pair(pair), keys.record(&pair.into()));
        assert_eq!(keys.log(&pair.into()), format!("sib:{{{pair}}}:log"));
        assert_eq!(keys.group(&Group::Siblings(pair)).members, format!("sib:{{{pair}}}:members"));
        assert_eq!(keys.live(&room), "sib:{room/a/b}:live");
        let talk = Topic::Talk("a/b".parse().unwrap());
        let group = keys.group(&Group::Room("a/b".parse().unwrap()));
        assert_eq!(keys.live(&talk), "sib:{room/a/b}:talk-live");
        assert_eq!((keys.log(&talk), keys.record(&talk)), (group.talk, group.members));
        assert_eq!(keys.log(&Topic::Cluster), "sib:{cluster}:log");
        assert_eq!(keys.group(&Group::Room("a/b".parse().unwrap())).rule, "sib:{room/a/b}:rule");
        assert!(Keys::new("a{b").is_none());
    }
}
