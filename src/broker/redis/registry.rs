//! Leased records: pairs, groups and nodes.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fred::types::Value;
use uuid::Uuid;

use super::{
    Redis,
    holds::{Hold, read_member, write_member},
    push_counted, push_drafts,
    reply::{
        as_appended, as_array, as_bytes, as_census, as_integer, as_parsed, as_record, as_step, millis, write_fence,
        write_id, write_number, write_record,
    },
    script::{self, unavailable},
};
use crate::{
    broker::{
        Appended, Beat, Begun, BrokerError, Census, Changes, Claim, Counted, Draft, Group, Holdings, Keep,
        MOST_CHANGES, Member, Peer, Record, Registry, Rule, Sentence, Step,
    },
    protocol::{Fence, NodeId, PairId, RoomName, Topic},
};

impl Redis {
    /// The keys of a pair's record and history.
    fn pair_keys(&self, pair: PairId) -> Vec<String> {
        vec![self.keys.pair(pair), self.keys.log(&pair.into())]
    }
}

/// Only rooms have talk.
fn of_room<'a>(group: &Group, told: Option<(&'a Counted, &Keep)>) -> Option<&'a Counted> {
    told.filter(|_| matches!(group, Group::Room(_))).map(|(told, _)| told)
}

/// What is noted of a command: r and a token, or s and a reply.
fn as_begun(noted: Value, token: Option<u64>) -> Result<Begun, BrokerError> {
    let mut noted = as_bytes(noted)?;
    let kind = noted.split_to(noted.len().min(1));
    match &kind[..] {
        b"s" => Ok(Begun::Settled(noted)),
        b"r" if token.is_some_and(|token| noted == token.to_string()) => Ok(Begun::First),
        b"r" => Ok(Begun::Running),
        _ => Err(BrokerError::Garbled("not a note of a command".into())),
    }
}

#[async_trait]
impl Registry for Redis {
    async fn create(
        &self,
        pair: PairId,
        facts: Bytes,
        keeper: NodeId,
        linger: Duration,
        keep: Duration,
    ) -> Result<bool, BrokerError> {
        let fence = Fence::default();
        let hold = Hold::Kept(pair, fence.nonce);
        let record = Record { facts, fence, holder: None, keeper: Some(keeper), heard: false, ended: false };
        let args = vec![write_record(&record).into(), millis(linger + keep).into()];
        let created = self.take((keeper, &hold), &script::CREATE, vec![self.keys.pair(pair)], args).await?;
        if as_integer(&created)? == 1 {
            return Ok(true);
        }
        self.strike(keeper, hold);
        Ok(false)
    }

    async fn claim(&self, pair: PairId, node: NodeId, nonce: u64) -> Result<Claim, BrokerError> {
        let hold = Hold::Pair(pair, nonce);
        let args = vec![write_id(node.uuid()), write_number(nonce)];
        let claimed = self.take((node, &hold), &script::CLAIM, self.pair_keys(pair), args).await?;
        let mut reply = as_array(claimed)?.into_iter();
        let code = reply.next().and_then(|code| code.as_i64());
        let claim = match (code, as_record(reply.next().unwrap_or(Value::Null))?) {
            (Some(0), _) => Claim::Missing,
            (Some(1), _) => Claim::Ended,
            (Some(2), Some(record)) => Claim::Held(record),
            (Some(3), Some(before)) => {
                if let Some(keeper) = before.keeper {
                    self.strike(keeper, Hold::Kept(pair, before.fence.nonce));
                }
                return Ok(Claim::Won(Fence { epoch: before.fence.epoch + 1, nonce }));
            }
            (Some(4), Some(record)) => return Ok(Claim::Won(record.fence)),
            _ => return Err(BrokerError::Garbled("not the outcome of a claim".into())),
        };
        self.strike(node, hold);
        Ok(claim)
    }

    async fn restore(
        &self,
        pair: PairId,
        node: NodeId,
        fence: Fence,
        facts: Bytes,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Step<()>, BrokerError> {
        let hold = Hold::Pair(pair, fence.nonce);
        let mut args = self.history_args(&pair.into(), keep);
        args.extend([write_id(node.uuid()), write_fence(fence), facts.into()]);
        push_drafts(&mut args, drafts);
        let restored = self.take((node, &hold), &script::RESTORE, self.pair_keys(pair), args).await?;
        if as_integer(&restored)? == 1 {
            return Ok(Step::Taken(()));
        }
        self.doubt();
        Ok(Step::Refused)
    }

    async fn revise(&self, pair: PairId, fence: Fence, facts: Bytes) -> Result<bool, BrokerError> {
        let args = vec![write_fence(fence), facts.into()];
        Ok(as_integer(&script::REVISE.call(&self.commands, vec![self.keys.pair(pair)], args).await?)? == 1)
    }

    async fn release(
        &self,
        pair: PairId,
        fence: Fence,
        keeper: NodeId,
        linger: Duration,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Step<()>, BrokerError> {
        let hold = Hold::Kept(pair, fence.nonce);
        let mut args = self.history_args(&pair.into(), keep);
        args.extend([write_fence(fence), write_id(keeper.uuid())]);
        args.extend([linger + keep.age, linger + keep.age * 2].map(|kept| millis(kept).into()));
        push_drafts(&mut args, drafts);
        let step = as_step(self.take((keeper, &hold), &script::RELEASE, self.pair_keys(pair), args).await?)?;
        match step {
            Step::Taken(holder) => {
                self.strike(holder.unwrap_or(keeper), Hold::Pair(pair, fence.nonce));
                Ok(Step::Taken(()))
            }
            nothing => {
                self.doubt();
                Ok(if nothing == Step::Refused { Step::Refused } else { Step::Missing })
            }
        }
    }

    async fn end(
        &self,
        pair: PairId,
        fence: Fence,
        holder: Option<NodeId>,
        drafts: &[Draft],
        keep: &Keep,
    ) -> Result<Step<()>, BrokerError> {
        let mut args = self.history_args(&pair.into(), keep);
        let holder_id = holder.map_or_else(|| "".into(), |node| write_id(node.uuid()));
        args.extend([write_fence(fence), holder_id, millis(keep.age).into()]);
        push_drafts(&mut args, drafts);
        let step = as_step(script::END.call(&self.commands, self.pair_keys(pair), args).await?)?;
        Ok(match step {
            Step::Taken(Some(before)) => {
                let nonce = fence.nonce;
                let hold = if holder.is_some() { Hold::Pair(pair, nonce) } else { Hold::Kept(pair, nonce) };
                self.strike(before, hold);
                Step::Taken(())
            }
            Step::Taken(None) => Step::Taken(()),
            Step::Refused => Step::Refused,
            Step::Missing => Step::Missing,
        })
    }

    async fn adopt(
        &self,
        pair: PairId,
        fence: Fence,
        [from, to]: [NodeId; 2],
        keep: Duration,
    ) -> Result<Option<Duration>, BrokerError> {
        let hold = Hold::Kept(pair, fence.nonce);
        let args = vec![write_fence(fence), write_id(from.uuid()), write_id(to.uuid())];
        let left = self.take((to, &hold), &script::ADOPT, vec![self.keys.pair(pair)], args).await?;
        if left.is_null() {
            self.doubt();
            return Ok(None);
        }
        self.strike(from, hold);
        let left = Duration::from_millis(u64::try_from(as_integer(&left)?).unwrap_or_default());
        Ok(Some(left.saturating_sub(keep)))
    }

    async fn tell(&self, pair: PairId, drafts: &[Draft], keep: &Keep) -> Result<Appended, BrokerError> {
        let mut args = self.history_args(&pair.into(), keep);
        push_drafts(&mut args, drafts);
        as_appended(script::TELL.call(&self.commands, self.pair_keys(pair), args).await?)
    }

    async fn look_up(&self, pair: PairId) -> Result<Option<Record>, BrokerError> {
        as_record(self.commands.get(self.keys.pair(pair)).await.map_err(unavailable)?)
    }

    async fn begin(&self, pair: PairId, key: &str, token: u64, keep: Duration) -> Result<Begun, BrokerError> {
        let args = vec![token.to_string().into(), millis(keep).into()];
        let noted = script::BEGIN.call(&self.commands, vec![self.keys.command(pair, key)], args).await?;
        as_begun(noted, Some(token))
    }

    async fn begun(&self, pair: PairId, key: &str) -> Result<Option<Begun>, BrokerError> {
        let noted: Value = self.commands.get(self.keys.command(pair, key)).await.map_err(unavailable)?;
        if noted.is_null() { Ok(None) } else { as_begun(noted, None).map(Some) }
    }

    async fn settle(
        &self,
        pair: PairId,
        key: &str,
        token: u64,
        reply: Option<Bytes>,
        keep: Duration,
    ) -> Result<(), BrokerError> {
        let mut args: Vec<Value> = vec![token.to_string().into(), millis(keep).into()];
        args.extend(reply.map(Value::from));
        script::SETTLE.call(&self.commands, vec![self.keys.command(pair, key)], args).await.map(drop)
    }

    async fn join(
        &self,
        group: &Group,
        member: Member,
        charter: Bytes,
        capacity: Option<u64>,
        told: Option<(&Counted, &Keep)>,
    ) -> Result<Option<Census>, BrokerError> {
        let (id, node, mark) = (member.id, member.node, rand::random());
        let hold = Hold::Member(group.clone(), mark, id);
        let mut args = self.talk_args(group, told);
        args.extend([write_member(&member, mark).into(), charter.into()]);
        args.push(capacity.map(|capacity| capacity.to_string()).unwrap_or_default().into());
        push_counted(&mut args, id, of_room(group, told));
        let keys = self.keys.group(group).into();
        let reply = self.take((node, &hold), &script::JOIN, keys, args).await?;
        if reply.is_null() {
            self.strike(node, hold);
            return Ok(None);
        }
        let [census, before] = <[Value; 2]>::try_from(as_array(reply)?)
            .map_err(|_| BrokerError::Garbled("a joining is not two values".into()))?;
        if !before.is_null() {
            let (before, mark) = read_member(as_bytes(before)?)?;
            self.strike(before.node, Hold::Member(group.clone(), mark, id));
        }
        as_census(census).map(Some)
    }

    async fn leave(
        &self,
        group: &Group,
        member: &Member,
        told: Option<(&Counted, &Keep)>,
    ) -> Result<Option<Census>, BrokerError> {
        let Member { id, node, value } = member;
        let mut args = self.talk_args(group, told);
        let this = Bytes::from([*id.as_bytes(), *node.uuid().as_bytes()].concat());
        args.extend([this.into(), value.clone().into()]);
        push_counted(&mut args, *id, of_room(group, told));
        let reply = script::LEAVE.call(&self.commands, self.keys.group(group).into(), args).await?;
        if reply.is_null() {
            return Ok(None);
        }
        let [census, was] = <[Value; 2]>::try_from(as_array(reply)?)
            .map_err(|_| BrokerError::Garbled("a leaving is not two values".into()))?;
        let (_, mark) = read_member(as_bytes(was)?)?;
        self.strike(*node, Hold::Member(group.clone(), mark, *id));
        as_census(census).map(Some)
    }

    async fn tell_changes(&self, room: &RoomName, told: &Changes, keep: &Keep) -> Result<u64, BrokerError> {
        let mut args = self.history_args(&Topic::Talk(room.clone()), keep);
        args.push(MOST_CHANGES.to_string().into());
        push_drafts(&mut args, &[Draft { nonce: told.nonce, payload: told.joined[0].clone() }]);
        args.extend(told.joined[1..].iter().chain(&told.left).map(|part| part.clone().into()));
        let keys = self.keys.group(&Group::Room(room.clone())).into();
        let left = script::TELL_CHANGES.call(&self.commands, keys, args).await?;
        Ok(as_integer(&left)?.unsigned_abs())
    }

    async fn lay_down(
        &self,
        room: &RoomName,
        version: u64,
        rule: Option<Rule>,
        charter: Option<Bytes>,
    ) -> Result<bool, BrokerError> {
        self.replace_rule(room, version, rule, charter).await
    }

    async fn rules(&self, after: Option<&str>, limit: usize) -> Result<Vec<(RoomName, Rule)>, BrokerError> {
        self.list_rules(after, limit).await
    }

    async fn census(&self, group: &Group) -> Result<Census, BrokerError> {
        as_census(script::CENSUS.call(&self.commands, self.keys.group(group).into(), Vec::new()).await?)
    }

    async fn members(&self, group: &Group, after: Option<Uuid>, limit: usize) -> Result<Vec<Member>, BrokerError> {
        let from = match after.map(|id| id.as_u128().checked_add(1)) {
            None => Bytes::from_static(b"-"),
            Some(None) => return Ok(Vec::new()),
            Some(Some(next)) => [&b"["[..], &next.to_be_bytes()].concat().into(),
        };
        // Beyond this Redis takes it for a mistake.
        let limit = limit.min(1_000_000);
        let args = vec![from.into(), "+".into(), limit.to_string().into()];
        let page = script::PAGE.call(&self.commands, vec![self.keys.group(group).members], args).await?;
        let members = as_array(page)?.into_iter().skip(1).map(|member| Ok(read_member(as_bytes(member)?)?.0));
        members.collect()
    }

    async fn beat(&self, node: NodeId, value: Bytes, lease: Duration) -> Result<Beat, BrokerError> {
        let args = vec![node.to_string().into(), value.into(), millis(lease).into()];
        let keys = vec![self.keys.alive(), self.keys.value()];
        let beat = match as_integer(&script::BEAT.call(&self.commands, keys, args).await?)? {
            0 => Beat::Lapsed,
            1 => Beat::Kept,
            _ => return Ok(Beat::Condemned),
        };
        if let Err(error) = self.settle_doubts(node).await {
            tracing::debug!(%node, error = &error as &dyn std::error::Error, "a node's list was not looked through");
        }
        Ok(beat)
    }

    async fn condemn(&self, node: NodeId) -> Result<Option<Sentence>, BrokerError> {
        let args = vec![node.to_string().into()];
        let sentence = script::CONDEMN.call(&self.commands, vec![self.keys.alive()], args).await?;
        let sentence = if sentence.is_null() { None } else { Some(as_integer(&sentence)?) };
        Ok(sentence.map(|sentence| Sentence(sentence.unsigned_abs())))
    }

    async fn resign(&self, node: NodeId) -> Result<(), BrokerError> {
        let args = vec![node.to_string().into(), "anyhow".into()];
        script::CONDEMN.call(&self.commands, vec![self.keys.alive()], args).await.map(drop)
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

    async fn bury(&self, node: NodeId, sentence: Sentence) -> Result<(), BrokerError> {
        // Entries that stand for nothing go with the node. They are looked up before it can begin anew, so that none
        // of its next life is among them.
        let stale = self.stale_holds(node).await?;
        let keys = vec![self.keys.alive(), self.keys.value()];
        let args = vec![node.to_string().into(), sentence.0.to_string().into()];
        let buried = script::BURY.call(&self.commands, keys, args).await?;
        if as_integer(&buried)? == 1 {
            self.strike_all(node, &stale).await;
        }
        Ok(())
    }
}
