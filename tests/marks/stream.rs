//! Marks that are set while a sender streams: among many receivers, and among such that live restlessly.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Instant,
};

use rand::Rng as _;
use rstest::rstest;
use serde_json::{Value, json};

use crate::{
    CONFLICT, PAUSE, ROOM, WINDOW, count, marks_of, member, members, number, numbered, numbers,
    support::{Agent, Arrival, ClientSocket, Cluster, Fault, Kind, Settings, Sibling, eventually, kind_of, specify},
};

#[derive(Default)]
struct Plan {
    sent: AtomicU64,
    done: AtomicBool,
    places: Mutex<HashMap<u64, u64>>,
    refused: AtomicU64,
}

impl Plan {
    fn place(&self, mark: &Value) -> Option<u64> {
        self.places.lock().expect("no panic under the lock").get(&mark.as_u64()?).copied()
    }

    fn count(&self) -> u64 {
        self.places.lock().expect("no panic under the lock").len() as u64
    }

    /// Streams until all marks are set, at the pace of `pacers`.
    async fn stream(&self, sender: &mut ClientSocket, pacers: &mut [Agent]) {
        while !self.done.load(SeqCst) {
            let from = self.sent.load(SeqCst);
            let upto = from + rand::rng().random_range(1..=200);
            // Others may know of frames that are not sent yet: these come at once.
            self.sent.store(upto, SeqCst);
            sender.burst(numbered(from + 1..=upto)).await;
            for pacer in pacers.iter_mut() {
                // Frames that were dropped never come: then it goes on all the same.
                let near = async {
                    while pacer.pipe.last().map_or(0, |frame| number(&frame)) + WINDOW < upto {
                        pacer.pipe.more().await;
                    }
                };
                drop(tokio::time::timeout(PAUSE, near).await);
            }
        }
    }

    /// Sets `count` marks, many in flight at a time: most behind a frame that is to come soon, the others behind
    /// whichever came last.
    async fn set_marks(&self, sibling: &mut Sibling, first: u64, count: u64) {
        let mut asked = Vec::new();
        for mark in first..first + count {
            let (ahead, how) = (rand::rng().random_range(0..=600), rand::rng().random_range(0..3));
            let after = (how > 0).then(|| self.sent.load(SeqCst) + ahead);
            let params = match after {
                Some(after) => json!({"data": mark, "after": after}),
                None => json!({"data": mark}),
            };
            asked.push((sibling.ask("client.mark", params).await, mark, after));
            if asked.len() == 24 || mark + 1 == first + count {
                for (id, mark, after) in asked.drain(..) {
                    self.settle(mark, after, sibling.reply(id).await);
                }
            }
        }
    }

    fn settle(&self, mark: u64, after: Option<u64>, reply: Result<Value, Fault>) {
        match (reply, after) {
            (Ok(result), after) => {
                let position = result["position"].as_u64().unwrap_or_else(|| panic!("no position: {result}"));
                assert!(after.is_none_or(|after| after == position), "{after:?} {result}");
                self.places.lock().expect("no panic under the lock").insert(mark, position);
            }
            (Err(fault), Some(_)) if fault.code == CONFLICT => _ = self.refused.fetch_add(1, SeqCst),
            (Err(fault), after) => panic!("{after:?}: {fault:?}"),
        }
    }

    /// Checks every mark that a sibling was told against the frames of the socket that it was told of; returns how many
    /// there were.
    fn check(&self, sibling: &Sibling, frames: impl Fn(u64) -> (Vec<u64>, bool)) -> u64 {
        let (mut sockets, mut seen) = (HashMap::new(), HashMap::new());
        let marks = marks_of(sibling);
        for told in &marks {
            let data = &told["data"];
            let (epoch, at) = (data["epoch"].as_u64().expect("an epoch"), data["at"].as_u64().expect("a place"));
            let (frames, whole) = sockets.entry(epoch).or_insert_with(|| frames(epoch));
            let behind = self.place(&data["data"]).unwrap_or_else(|| panic!("nobody set this: {told}"));
            let right = frames.partition_point(|number| *number <= behind) as u64;
            // A socket that was replaced may not have brought all that was written to it.
            let cut = !*whole && right == frames.len() as u64 && at > right;
            assert!(at == right || cut, "behind {behind}: told {at}, and it is {right}: {told}");
            assert!(seen.insert(data["data"].to_string(), at).is_none(), "told twice: {told}");
        }
        marks.len() as u64
    }
}

/// The frames of one that kept its socket, all of them.
fn frames_of(agent: &Agent) -> impl Fn(u64) -> (Vec<u64>, bool) {
    let frames = numbers(&agent.pipe);
    assert!(frames.is_sorted());
    move |epoch| {
        assert_eq!(epoch, 1, "it has had one socket");
        (frames.clone(), true)
    }
}

async fn heard_all(agent: &mut Agent, count: u64) {
    let is_mark = |arrival: &Arrival| matches!(arrival, Arrival::Event(event) if kind_of(event) == "mark");
    agent.sibling.until("all marks", |all| all.iter().filter(|one| is_mark(one)).count() as u64 >= count).await;
}

#[rstest]
#[case::across(Kind::Redis, "sender", 50)]
#[case::across_in_one_order(Kind::Redis, "room", 20)]
#[case::alone(Kind::Memory, "sender", 20)]
#[case::alone_in_one_order(Kind::Memory, "room", 20)]
#[case::across_and_kept(Kind::Redis, "kept", 20)]
#[case::alone_and_kept(Kind::Memory, "kept", 20)]
#[tokio::test(flavor = "multi_thread")]
async fn every_mark_stands_between_the_two_frames_that_it_belongs_between(
    #[case] kind: Kind,
    #[case] order: &str,
    #[case] receivers: usize,
) {
    let wanted: u64 = std::env::var("MARKS").map_or(2_500, |marks| marks.parse().expect("MARKS is a number"));
    let per_receiver = wanted.div_ceil(receivers as u64);
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let echo = order != "sender";
    let mut spec = json!({"format": "binary", "echo": echo, "queue_bytes": 64 << 20});
    match order {
        "kept" => spec["history"] = json!({"messages": 100_000, "seconds": 60}),
        order => spec["order"] = json!(order),
    }
    specify(cluster.node(0), ROOM, spec).await;
    let mut all = members(&cluster, receivers).await;
    let mut sender = member(&cluster, 0, "binary").await;
    let mut others =
        [Sibling::open(cluster.node(1), &sender.pair).await, Sibling::open(cluster.node(2), &sender.pair).await];
    let (plan, started) = (Plan::default(), Instant::now());
    let setting = async {
        // Some are refused, because their places have passed: so many are set that enough remain.
        let [one, two] = &mut others;
        let mut first = 0;
        while plan.count() < per_receiver {
            let some = (per_receiver - plan.count()).div_ceil(2);
            tokio::join!(plan.set_marks(one, first, some), plan.set_marks(two, first + some, some));
            first += 2 * some;
        }
        plan.done.store(true, SeqCst);
    };
    tokio::join!(setting, plan.stream(&mut sender.pipe, &mut all[..3]));
    let (count, sent) = (plan.count(), plan.sent.load(SeqCst));
    let mut checked = 0;
    for agent in &mut all {
        agent.pipe.until_received(usize::try_from(sent).expect("a count")).await;
        heard_all(agent, count).await;
        let frames = numbers(&agent.pipe);
        assert!(frames.iter().copied().eq(1..=sent), "every frame, in order");
        checked += plan.check(&agent.sibling, frames_of(agent));
    }
    assert_eq!(checked, count * receivers as u64, "each of them heard each mark once");
    // Its own siblings watch too, and count the frames that it received: none, or its own.
    if echo {
        sender.pipe.until_received(usize::try_from(sent).expect("a count")).await;
    }
    heard_all(&mut sender, count).await;
    checked += plan.check(&sender.sibling, frames_of(&sender));
    let own = &marks_of(&sender.sibling)[0];
    assert!(own["cause"]["sibling"].is_string(), "its own command: {own}");
    assert_eq!(marks_of(&all[0].sibling)[0].get("cause"), None, "another agent's command");
    println!(
        "{kind:?}, order {order}: {count} marks ({} refused as too late) among {sent} frames, {checked} deliveries checked, 0 wrong, {:?}",
        plan.refused.load(SeqCst),
        started.elapsed()
    );
}

/// What happens to a receiver meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Life {
    Quiet,
    Paused,
    DropsOldest,
    DropsNewest,
    Moves,
    Reconnects,
}

/// A receiver, and all sockets that it had.
struct Restless {
    life: Life,
    agent: Agent,
    before: Vec<ClientSocket>,
}

impl Restless {
    /// Goes through its life until everything is sent.
    async fn live(&mut self, cluster: &Cluster, plan: &Plan) {
        let Self { life, agent, before } = self;
        let mut turn = 0;
        while !plan.done.load(SeqCst) && *life != Life::Quiet {
            turn += 1;
            let seen = agent.pipe.received();
            let (policy, sibling) = (["buffer", "drop", "hold"][turn % 3], &mut agent.sibling);
            match life {
                Life::Quiet => {}
                Life::Paused | Life::DropsOldest | Life::DropsNewest => {
                    // What is too slow drops in a pause that holds: there it is sure to.
                    let policy = if *life == Life::Paused { policy } else { "buffer" };
                    let paused = sibling.must("client.pause", json!({"direction": "out", "policy": policy})).await;
                    let resumed = sibling.must("client.resume", json!({"direction": "out"})).await;
                    assert!(resumed["position"].as_u64() >= paused["position"].as_u64(), "{paused} {resumed}");
                }
                Life::Moves => {
                    sibling.must("client.move", json!({"room": "elsewhere"})).await;
                    sibling.must("client.move", json!({"room": ROOM})).await;
                    // To where it is: nothing is missed by that.
                    sibling.must("client.move", json!({"room": ROOM})).await;
                }
                Life::Reconnects => {
                    let again = ClientSocket::open(cluster.node(turn), &agent.pair).await;
                    before.push(std::mem::replace(&mut agent.pipe, again));
                    sibling.event("client.opened").await;
                }
            }
            let sent = plan.sent.load(SeqCst);
            while !plan.done.load(SeqCst) && agent.pipe.received() <= seen && plan.sent.load(SeqCst) <= sent + 500 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn lost_marks(&self) -> u64 {
        let lost = |params: &Value| params["data"]["dropped"]["marks"].as_u64();
        self.agent.sibling.story().iter().filter(|told| kind_of(told) == "client.caught_up").filter_map(lost).sum()
    }
}

/// The sender is paused again and again, with each policy.
async fn pause_sender(sibling: &mut Sibling, plan: &Plan) {
    let mut stops = Vec::new();
    for policy in ["buffer", "drop", "hold"].iter().cycle() {
        if plan.done.load(SeqCst) {
            break;
        }
        let paused = sibling.must("client.pause", json!({"direction": "in", "policy": policy})).await;
        // Marks are set meanwhile, and frames come, except where the socket is not read.
        sibling.must("pair.get", json!({})).await;
        let resumed = sibling.must("client.resume", json!({"direction": "in"})).await;
        stops.push((*policy, paused, resumed));
    }
    for (policy, paused, resumed) in stops {
        let (stop, go) = (count(&paused, "position"), count(&resumed, "position"));
        match policy {
            "drop" => assert_eq!(go - stop, count(&resumed, "dropped"), "{paused} {resumed}"),
            _ => assert_eq!(go, stop, "it goes on where it stopped: {paused} {resumed}"),
        }
    }
}

#[rstest]
#[case::alone(Kind::Memory, "sender")]
#[case::across(Kind::Redis, "sender")]
#[case::across_in_one_order(Kind::Redis, "room")]
#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_right_whatever_happens_to_the_pipe(#[case] kind: Kind, #[case] order: &str) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let spec = json!({"format": "binary", "order": order, "queue_bytes": 64 << 20});
    specify(cluster.node(0), ROOM, spec).await;
    let lives = [
        [Life::Quiet, Life::Quiet, Life::Quiet],
        [Life::Paused, Life::Paused, Life::Moves],
        [Life::DropsOldest, Life::DropsNewest, Life::Reconnects],
        [Life::Moves, Life::DropsOldest, Life::DropsNewest],
    ]
    .concat();
    let mut all = members(&cluster, lives.len()).await;
    for (agent, life) in all.iter_mut().zip(&lives) {
        let slow = match life {
            Life::DropsOldest => "drop_oldest",
            Life::DropsNewest => "drop_newest",
            _ => continue,
        };
        agent.sibling.must("client.set", json!({"slow": slow, "queue_bytes": 2_048})).await;
    }
    let mut restless: Vec<_> = all
        .drain(3..)
        .zip(&lives[3..])
        .map(|(agent, life)| Restless { life: *life, agent, before: Vec::new() })
        .collect();
    let mut sender = member(&cluster, 0, "binary").await;
    let mut marker = Sibling::open(cluster.node(1), &sender.pair).await;
    let plan = Arc::new(Plan::default());
    let setting = async {
        plan.set_marks(&mut marker, 0, 400).await;
        plan.done.store(true, SeqCst);
    };
    let living = futures_util::future::join_all(restless.iter_mut().map(|one| one.live(&cluster, &plan)));
    let pausing = pause_sender(&mut sender.sibling, &plan);
    tokio::join!(setting, plan.stream(&mut sender.pipe, &mut all), living, pausing);

    // One more for all of them, behind everything.
    const END: u64 = u64::MAX;
    plan.settle(END, None, marker.call("client.mark", json!({"data": END})).await);
    restless.extend(all.into_iter().map(|agent| Restless { life: Life::Quiet, agent, before: Vec::new() }));
    let (count, mut checked, mut lost_marks, mut sockets) = (plan.count(), 0, 0, 0);
    for one in &mut restless {
        let end = one.agent.sibling.event_where("mark", |params| params["data"]["data"] == END).await;
        let at = usize::try_from(end["data"]["at"].as_u64().expect("a place")).expect("a count");
        one.agent.pipe.until_received(at).await;
        let epochs: Vec<_> = one.before.iter().chain([&one.agent.pipe]).map(numbers).collect();
        assert!(epochs.iter().all(|frames| frames.is_sorted()), "{:?}", one.life);
        let told = plan.check(&one.agent.sibling, |epoch| {
            let epoch = usize::try_from(epoch).expect("a count");
            (epochs[epoch - 1].clone(), epoch == epochs.len())
        });
        sockets += epochs.len();
        checked += told;
        assert!(told <= count);
        if !matches!(one.life, Life::Moves | Life::Reconnects) {
            // All were told, or it was told that they were lost.
            let kept: u64 = count - told;
            eventually("lost marks are told", async || (one.lost_marks() == kept).then_some(())).await;
            assert!(kept == 0 || matches!(one.life, Life::DropsOldest | Life::DropsNewest), "{:?}", one.life);
            lost_marks += kept;
        }
    }
    println!(
        "{kind:?}, order {order}: {count} marks among {} frames, {checked} deliveries on {sockets} sockets checked, 0 wrong, {lost_marks} lost and told so",
        plan.sent.load(SeqCst),
    );
}
