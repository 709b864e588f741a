//! Leased records: pairs, groups and nodes.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fred::types::{Expiration, SetOptions, Value};

use super::{
    Redis,
    holds::{Hold, read_member, write_member},
    reply::{as_array, as_bytes, as_integer, as_parsed, as_record, millis},
    script::{self, unavailable},
};
use crate::{
    broker::{Begun, BrokerError, Census, Claim, Group, Holdings, Member, Peer, Record, Registry},
    protocol::{Fence, NodeId, PairId},
};

impl Redis {
    /// The keys of a pair's record and history.
    fn pair_keys(&self, pair: PairId) -> Vec<String> {
        vec![self.keys.pair(pair), self.keys.log(&pair.into())]
    }
}

/// The record that a reply has after its first value.
fn record_in(mut reply: Vec<Value>) -> Result<Record, BrokerError> {
    as_record(reply.split_off(1))?.ok_or_else(|| BrokerError::Garbled("an empty record".into()))
}

#[async_trait]
impl Registry for Redis {
    async fn create(&self, pair: PairId, facts: Bytes, ttl: Duration) -> Result<bool, BrokerError> {
        let args = vec![facts.into(), millis(ttl).into()];
        Ok(as_integer(&script::CREATE.call(&self.commands, vec![self.keys.pair(pair)], args).await?)? == 1)
    }

    async fn restore(&self, pair: PairId, node: NodeId, fence: Fence, facts: Bytes) -> Result<bool, BrokerError> {
        let hold = Hold::Pair(pair, fence.nonce);
        self.note(node, &hold).await?;
        let args = vec![
            node.to_string().into(),
            fence.epoch.to_string().into(),
            fence.nonce.to_string().into(),
            facts.into(),
        ];
        let restored = script::RESTORE.call(&self.commands, self.pair_keys(pair), args).await?;
        if as_integer(&restored)? == 1 {
            return Ok(true);
        }
        self.strike(node, &hold).await;
        Ok(false)
    }

    async fn claim(&self, pair: PairId, node: NodeId, nonce: u64) -> Result<Claim, BrokerError> {
        let hold = Hold::Pair(pair, nonce);
        self.note(node, &hold).await?;
        let args = vec![node.to_string().into(), nonce.to_string().into()];
        let reply = as_array(script::CLAIM.call(&self.commands, self.pair_keys(pair), args).await?)?;
        let claim = match reply.first().and_then(Value::as_i64) {
            Some(0) => Claim::Missing,
            Some(1) => Claim::Ended,
            _ => {
                let before = record_in(reply)?;
                if let Some(holder) = before.holder {
                    self.strike(holder, &Hold::Pair(pair, before.fence.nonce)).await;
                }
                return Ok(Claim::Won(Fence { epoch: before.fence.epoch + 1, nonce }, before));
            }
        };
        self.strike(node, &hold).await;
        Ok(claim)
    }

    async fn revise(&self, pair: PairId, fence: Fence, facts: Bytes) -> Result<bool, BrokerError> {
        let args = vec![fence.epoch.to_string().into(), fence.nonce.to_string().into(), facts.into()];
        Ok(as_integer(&script::REVISE.call(&self.commands, vec![self.keys.pair(pair)], args).await?)? == 1)
    }

    async fn release(&self, pair: PairId, fence: Fence, ttl: Duration, keep: Duration) -> Result<bool, BrokerError> {
        let args = vec![
            fence.epoch.to_string().into(),
            fence.nonce.to_string().into(),
            millis(ttl).into(),
            millis(ttl + keep).into(),
        ];
        let holder = script::RELEASE.call(&self.commands, self.pair_keys(pair), args).await?;
        if holder.is_null() {
            return Ok(false);
        }
        self.strike(as_parsed(&holder)?, &Hold::Pair(pair, fence.nonce)).await;
        Ok(true)
    }

    async fn end(
        &self,
        pair: PairId,
        idle_since: Option<Fence>,
        keep: Duration,
    ) -> Result<Option<Record>, BrokerError> {
        let mut args: Vec<Value> = vec![millis(keep).into()];
        if let Some(fence) = idle_since {
            args.extend([fence.epoch.to_string().into(), fence.nonce.to_string().into()]);
        }
        let reply = as_array(script::END.call(&self.commands, self.pair_keys(pair), args).await?)?;
        if reply.len() == 1 {
            return Ok(None);
        }
        let before = record_in(reply)?;
        if let Some(holder) = before.holder {
            self.strike(holder, &Hold::Pair(pair, before.fence.nonce)).await;
        }
        Ok(Some(before))
    }

    async fn look_up(&self, pair: PairId) -> Result<Option<Record>, BrokerError> {
        let fields = vec!["epoch", "nonce", "holder", "ended", "facts"];
        as_record(self.commands.hmget(self.keys.pair(pair), fields).await.map_err(unavailable)?)
    }

    async fn begin(&self, pair: PairId, key: &str, keep: Duration) -> Result<Begun, BrokerError> {
        let (key, expire) =
            (self.keys.command(pair, key), Some(Expiration::PX(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX))));
        let before: Value =
            self.commands.set(key, "", expire, Some(SetOptions::NX), true).await.map_err(unavailable)?;
        if before.is_null() {
            return Ok(Begun::First);
        }
        let reply = as_bytes(before)?;
        Ok(if reply.is_empty() { Begun::Running } else { Begun::Settled(reply) })
    }

    async fn settle(&self, pair: PairId, key: &str, reply: Option<Bytes>, keep: Duration) -> Result<(), BrokerError> {
        let key = self.keys.command(pair, key);
        match reply {
            Some(reply) => {
                let expire = Some(Expiration::PX(i64::try_from(keep.as_millis()).unwrap_or(i64::MAX)));
                self.commands.set(key, reply, expire, None, false).await.map_err(unavailable)
            }
            None => self.commands.del(key).await.map_err(unavailable),
        }
    }

    async fn join(&self, group: &Group, member: Member, charter: Bytes) -> Result<Bytes, BrokerError> {
        let Member { id, node, value } = member;
        let mark = format!("{:016x}", rand::random::<u64>());
        self.note(node, &Hold::Member(group.clone(), mark.clone(), id.clone())).await?;
        let keys = self.keys.group(group);
        let args = vec![id.clone().into(), write_member(node, &mark, &value).into(), charter.into()];
        let reply = script::JOIN.call(&self.commands, vec![keys.members, keys.who, keys.charter], args).await?;
        let [_, charter, before] = <[Value; 3]>::try_from(as_array(reply)?)
            .map_err(|_| BrokerError::Garbled("a joining is not three values".into()))?;
        if !before.is_null() {
            let (on, mark, _) = read_member(as_bytes(before)?)?;
            self.strike(on, &Hold::Member(group.clone(), mark, id)).await;
        }
        as_bytes(charter)
    }

    async fn leave(&self, group: &Group, id: &str, node: NodeId) -> Result<bool, BrokerError> {
        let keys = self.keys.group(group);
        let args = vec![id.into(), node.to_string().into()];
        let was = script::LEAVE.call(&self.commands, vec![keys.members, keys.who, keys.charter], args).await?;
        if was.is_null() {
            return Ok(false);
        }
        let (_, mark, _) = read_member(as_bytes(was)?)?;
        self.strike(node, &Hold::Member(group.clone(), mark, id.to_owned())).await;
        Ok(true)
    }

    async fn census(&self, group: &Group) -> Result<Census, BrokerError> {
        let keys = self.keys.group(group);
        let reply = script::CENSUS.call(&self.commands, vec![keys.members, keys.charter], Vec::new()).await?;
        let [members, charter] = <[Value; 2]>::try_from(as_array(reply)?)
            .map_err(|_| BrokerError::Garbled("a census is not two values".into()))?;
        let members = members.as_u64().unwrap_or_default();
        Ok(Census { charter: if charter.is_null() { None } else { Some(as_bytes(charter)?) }, members })
    }

    async fn members(&self, group: &Group, after: Option<&str>, limit: usize) -> Result<Vec<Member>, BrokerError> {
        let keys = self.keys.group(group);
        let from = after.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
        // Beyond this Redis takes it for a mistake.
        let limit = limit.min(1_000_000);
        let args = vec![from.into(), limit.to_string().into()];
        let reply = script::MEMBERS.call(&self.commands, vec![keys.members, keys.who], args).await?;
        let mut reply = as_array(reply)?.into_iter().skip(1);
        let mut members = Vec::new();
        while let (Some(id), Some(was)) = (reply.next(), reply.next()) {
            let (node, _, value) = read_member(as_bytes(was)?)?;
            members.push(Member { id: as_parsed(&id)?, node, value });
        }
        Ok(members)
    }

    async fn beat(&self, node: NodeId, value: Bytes, lease: Duration) -> Result<bool, BrokerError> {
        let args = vec![node.to_string().into(), value.into(), millis(lease).into()];
        let keys = vec![self.keys.alive(), self.keys.value()];
        Ok(as_integer(&script::BEAT.call(&self.commands, keys, args).await?)? == 1)
    }

    async fn nodes(&self) -> Result<Vec<Peer>, BrokerError> {
        let keys = vec![self.keys.alive(), self.keys.value()];
        let mut reply = as_array(script::NODES.call(&self.commands, keys, Vec::new()).await?)?.into_iter().skip(1);
        let mut peers = Vec::new();
        while let (Some(node), Some(expired), Some(value)) = (reply.next(), reply.next(), reply.next()) {
            let (node, expired) = (as_parsed(&node)?, as_integer(&expired)? == 1);
            peers.push(Peer { node, value: as_bytes(value)?, expired });
        }
        // As the embedded back end has them, not by lease.
        peers.sort_by_key(|peer| peer.node);
        Ok(peers)
    }

    async fn holdings(&self, node: NodeId, limit: usize) -> Result<Holdings, BrokerError> {
        self.read_holds(node, limit).await
    }

    async fn bury(&self, node: NodeId) -> Result<(), BrokerError> {
        // The list first: a node that is forgotten with its list still there would leave it for ever.
        self.forget_holds(node).await?;
        let keys = vec![self.keys.alive(), self.keys.value()];
        script::BURY.call(&self.commands, keys, vec![node.to_string().into()]).await.map(drop)
    }
}
