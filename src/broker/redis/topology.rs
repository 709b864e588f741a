//! Who the primaries are, and which slots each of them owns: asked of those who know.
//!
//! A single server is the primary of everything. Sentinels are asked for the primary of their service, and the members
//! of a Redis Cluster for what they know of each other. One of them may have been away and tell what was true before:
//! so all that answer are heard, and the highest configuration epoch wins, which is what they decide by themselves.

use std::{collections::HashMap, time::Duration};

use fred::{
    clients::Client,
    interfaces::ClientLike,
    types::{CustomCommand, Value, config::Server},
};
use futures_util::future::join_all;

use super::connect::{self, Purpose, Setup, Target};

/// How many slots there are.
pub(super) const SLOTS: u16 = 16_384;

/// How long one of those who know may take to answer, and to be connected to. The others' answers wait for it.
const ANSWER: Duration = Duration::from_millis(700);

/// How long one that did not answer may take to be left.
const PARTING: Duration = Duration::from_millis(50);

/// How many are asked at most.
const GUIDES: usize = 64;

/// Who owns which slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    /// The primaries.
    pub(super) owners: Vec<Server>,
    /// For each slot its owner's index, if it has one.
    pub(super) slots: Vec<Option<u16>>,
}

impl View {
    fn of_one(server: Server) -> Self {
        Self { owners: vec![server], slots: vec![Some(0); usize::from(SLOTS)] }
    }
}

/// What one who knows said: a primary, since when, and the slots that it owns.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Claim {
    server: Server,
    epoch: u64,
    slots: Vec<(u16, u16)>,
}

/// Where to ask, with the connections to those who were asked before.
pub(super) struct Topology {
    guides: HashMap<Server, Client>,
    /// Members of a cluster that were heard of: asked when none of the primaries answers.
    known: Vec<Server>,
    /// The primaries that were found last.
    owners: Vec<Server>,
}

impl Topology {
    pub(super) fn new() -> Self {
        Self { guides: HashMap::new(), known: Vec::new(), owners: Vec::new() }
    }

    /// Looks once; `None` when nobody answers.
    pub(super) async fn look(&mut self, target: &Target) -> Option<View> {
        let view = match &target.setup {
            Setup::Single(server) => Some(View::of_one(server.clone())),
            Setup::Sentinel { sentinels, service } => {
                let name = || vec![Value::from("MASTER"), Value::from(service.as_str())];
                let address = || vec![Value::from("GET-MASTER-ADDR-BY-NAME"), Value::from(service.as_str())];
                let answers = self.ask(target, sentinels, "SENTINEL", [Some(address()), Some(name())]).await;
                primary_of(answers.iter().filter_map(|(_, [address, state])| {
                    Some((read_address(address.as_ref()?)?, read_epoch(state.as_ref()?)?))
                }))
                .map(View::of_one)
            }
            Setup::Cluster(seeds) => {
                let nodes = || [Some(vec![Value::from("NODES")]), None];
                let mut answers = self.ask(target, &self.owners.clone(), "CLUSTER", nodes()).await;
                if answers.is_empty() {
                    let everyone: Vec<_> = seeds.iter().chain(&self.known).cloned().collect();
                    answers = self.ask(target, &everyone, "CLUSTER", nodes()).await;
                }
                let (mut claims, mut known) = (Vec::new(), Vec::new());
                for (asked, [answer, _]) in &answers {
                    let Some(text) = answer.as_ref().and_then(Value::as_str) else { continue };
                    for (server, claim) in text.lines().filter_map(|line| read_member(line, asked)) {
                        claims.extend(claim);
                        known.push(server);
                    }
                }
                known.sort();
                known.dedup();
                known.truncate(GUIDES);
                if !known.is_empty() {
                    self.known = known;
                }
                merge(claims)
            }
        };
        if let Some(view) = &view {
            self.owners = view.owners.clone();
        }
        view
    }

    /// Closes the connections.
    pub(super) async fn close(&mut self) {
        join_all(self.guides.drain().map(|(_, client)| async move { connect::quit(&client).await })).await;
    }

    /// Asks everyone at once for both; who doesn't answer in time is left out, and connected to anew next time.
    async fn ask(
        &mut self,
        target: &Target,
        servers: &[Server],
        command: &'static str,
        args: [Option<Vec<Value>>; 2],
    ) -> Vec<(Server, [Option<Value>; 2])> {
        let mut servers = servers.to_vec();
        servers.sort();
        servers.dedup();
        servers.truncate(GUIDES);
        let asked = servers.into_iter().map(|server| {
            let (known, args) = (self.guides.remove(&server), args.clone());
            async move {
                let client = match known {
                    Some(client) => client,
                    None => {
                        let purpose = Purpose { commands: 16, answer: ANSWER };
                        connect::connect(&target.to_guide(&server), &purpose, ANSWER).await.ok()?
                    }
                };
                let mut answers = [None, None];
                for (answer, args) in answers.iter_mut().zip(args) {
                    let Some(args) = args else { continue };
                    let command = CustomCommand::new_static(command, None::<u16>, false);
                    match client.custom::<Value, _>(command, args).await {
                        Ok(value) => *answer = Some(value),
                        Err(error) => {
                            tracing::debug!(%server, %error, "does not tell who the primaries are");
                            // Not waited for: it may hang, and the others' answers are there.
                            drop(tokio::time::timeout(PARTING, client.quit()).await);
                            return None;
                        }
                    }
                }
                Some((server, client, answers))
            }
        });
        let answered: Vec<_> = join_all(asked).await.into_iter().flatten().collect();
        // Whoever was asked before and not now is not needed any more.
        self.close().await;
        let keep = |(server, client, answers): (Server, Client, _)| {
            self.guides.insert(server.clone(), client);
            (server, answers)
        };
        answered.into_iter().map(keep).collect()
    }
}

/// The address with the highest epoch; among equals the one that most name.
fn primary_of(said: impl Iterator<Item = (Server, u64)>) -> Option<Server> {
    let mut votes: HashMap<(u64, Server), usize> = HashMap::new();
    for (server, epoch) in said {
        *votes.entry((epoch, server)).or_default() += 1;
    }
    votes.into_iter().max_by_key(|((epoch, _), count)| (*epoch, *count)).map(|((_, server), _)| server)
}

fn read_address(value: &Value) -> Option<Server> {
    let Value::Array(parts) = value else { return None };
    let [host, port] = parts.as_slice() else { return None };
    Some(Server::new(host.as_string()?, port.as_string()?.parse().ok()?))
}

/// The epoch in a Sentinel's list of names and values.
fn read_epoch(value: &Value) -> Option<u64> {
    let Value::Array(fields) = value else { return None };
    let at = fields.iter().step_by(2).position(|name| name.as_str().as_deref() == Some("config-epoch"))?;
    fields.get(2 * at + 1)?.as_string()?.parse().ok()
}

/// A line of CLUSTER NODES: id, address, flags, primary, ping, pong, epoch, link, slots.
fn read_member(line: &str, asked: &Server) -> Option<(Server, Option<Claim>)> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [_, address, flags, _, _, _, epoch, _, slots @ ..] = fields.as_slice() else { return None };
    if flags.contains("noaddr") || flags.contains("handshake") {
        return None;
    }
    // host:port@bus,hostname: in an address of version six there are more colons.
    let (host, port) = address.split('@').next()?.rsplit_once(':')?;
    // Who has never met anyone does not know its own address.
    let host = if host.is_empty() { &*asked.host } else { host };
    let server = Server::new(host.to_owned(), port.parse().ok()?);
    let slots: Vec<_> = slots
        .iter()
        // Slots on their way are in brackets, and still their owner's.
        .filter_map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((first.parse().ok()?, last.parse().ok()?))
        })
        .filter(|(_, last)| *last < SLOTS)
        .collect();
    let claim = (flags.contains("master") && !slots.is_empty())
        .then(|| Some(Claim { server: server.clone(), epoch: epoch.parse().ok()?, slots }));
    Some((server, claim.flatten()))
}

/// For each slot the claim with the highest epoch.
fn merge(claims: Vec<Claim>) -> Option<View> {
    let mut best: Vec<Option<&Claim>> = vec![None; usize::from(SLOTS)];
    for claim in &claims {
        for slot in claim.slots.iter().flat_map(|(first, last)| *first..=*last) {
            let before = &mut best[usize::from(slot)];
            if before.is_none_or(|before| before.epoch < claim.epoch) {
                *before = Some(claim);
            }
        }
    }
    let mut owners: Vec<Server> = best.iter().flatten().map(|claim| claim.server.clone()).collect();
    owners.sort();
    owners.dedup();
    let index = |server: &Server| owners.binary_search(server).ok().and_then(|index| u16::try_from(index).ok());
    let slots = best.iter().map(|claim| claim.and_then(|claim| index(&claim.server))).collect();
    (!owners.is_empty()).then_some(View { owners, slots })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(port: u16) -> Server {
        Server::new("127.0.0.1", port)
    }

    fn read(text: &str) -> Vec<Claim> {
        text.lines().filter_map(|line| read_member(line, &server(9))?.1).collect()
    }

    #[test]
    fn members_are_read() {
        let claims = read(
            "a 127.0.0.1:1@11,name myself,master - 0 0 3 connected 0-99 101 [100->-b]\n\
             b :2@12 master - 0 0 5 connected 100\n\
             c 127.0.0.1:3@13 slave a 0 0 3 connected\n\
             d :0@0 master,noaddr - 0 0 1 disconnected 7",
        );
        assert_eq!(claims.len(), 2);
        assert_eq!(claims[0], Claim { server: server(1), epoch: 3, slots: vec![(0, 99), (101, 101)] });
        assert_eq!(claims[1].server, server(2), "its own address is the one it was asked at");
        assert_eq!(read_member("e ::1:4@5 slave a 0 0 3 connected", &server(9)).unwrap().0, Server::new("::1", 4));
    }

    #[test]
    fn the_newest_claim_wins_whoever_tells_it() {
        let old = "a 127.0.0.1:1@11 master - 0 0 3 connected 0-16383";
        let new = "b 127.0.0.1:2@12 master - 0 0 4 connected 0-9";
        for text in [format!("{old}\n{new}"), format!("{new}\n{old}")] {
            let view = merge(read(&text)).unwrap();
            assert_eq!(view.owners, [server(1), server(2)]);
            assert_eq!((view.slots[9], view.slots[10]), (Some(1), Some(0)));
        }
        assert!(merge(Vec::new()).is_none());
    }

    #[test]
    fn the_newest_sentinel_wins_and_then_the_most() {
        let said = |list: &[(u16, u64)]| primary_of(list.iter().map(|(port, epoch)| (server(*port), *epoch)));
        assert_eq!(said(&[(1, 1), (1, 1), (2, 2)]), Some(server(2)));
        assert_eq!(said(&[(1, 1), (2, 1), (2, 1)]), Some(server(2)));
        assert_eq!(said(&[]), None);
    }
}
