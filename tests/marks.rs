//! Marks stand exactly where they belong, for every receiver: checked frame by frame while a sender streams as fast as it
//! can, and while pipes are paused, too slow, moved and replaced.
//!
//! Each frame carries its number among all that its sender sent. A mark that stands behind the sender's frame N has to be
//! told with `at` = how many of the frames that a receiver got have a number up to N: there is only one right answer.
//! `MARKS=100000 cargo test --test marks every_mark` checks so many.

mod support;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use rand::Rng as _;
use rstest::rstest;
use serde_json::{Value, json};
use support::{Agent, ClientSocket, Cluster, Fault, Kind, Settings, Sibling, kind_of, specify};
use tokio_tungstenite::tungstenite::Message;

const ROOM: &str = "stage";
/// How far the sender may be ahead of those who set its pace.
const WINDOW: u64 = 4_000;
/// How long it waits for them at most before it sends more.
const PAUSE: Duration = Duration::from_millis(200);
const CONFLICT: i64 = -32009;

fn numbered(numbers: impl IntoIterator<Item = u64>) -> Vec<Message> {
    numbers.into_iter().map(|number| Message::binary(number.to_be_bytes().to_vec())).collect()
}

fn number(frame: &Message) -> u64 {
    u64::from_be_bytes(frame.clone().into_data()[..].try_into().expect("eight bytes"))
}

fn numbers(pipe: &ClientSocket) -> Vec<u64> {
    pipe.frames().iter().map(number).collect()
}

fn marks_of(sibling: &Sibling) -> Vec<Value> {
    sibling.events().into_iter().filter(|params| kind_of(params) == "mark").collect()
}

/// A member that watches marks: its pipe on node `n`, its sibling on the next.
async fn member(cluster: &Cluster, n: usize, format: &str) -> Agent {
    let body = json!({"room": ROOM, "format": format});
    let mut agent = Agent::enter(cluster.node(n), cluster.node(n + 1), body).await;
    let watching = agent.sibling.must("room.watch", json!({"marks": true})).await;
    assert_eq!(watching["marks"], true, "{watching}");
    agent
}

async fn members(cluster: &Cluster, count: usize) -> Vec<Agent> {
    futures_util::future::join_all((0..count).map(|n| member(cluster, n, "binary"))).await
}

/// What everyone in a test knows: how far the sender is, and behind which of its frames each mark stands.
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
    let is_mark =
        |arrival: &support::Arrival| matches!(arrival, support::Arrival::Event(event) if kind_of(event) == "mark");
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
        let count = |value: &Value, name: &str| value[name].as_u64().expect("a count");
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
            support::eventually("lost marks are told", async || (one.lost_marks() == kept).then_some(())).await;
            assert!(kept == 0 || matches!(one.life, Life::DropsOldest | Life::DropsNewest), "{:?}", one.life);
            lost_marks += kept;
        }
    }
    println!(
        "{kind:?}, order {order}: {count} marks among {} frames, {checked} deliveries on {sockets} sockets checked, 0 wrong, {lost_marks} lost and told so",
        plan.sent.load(SeqCst),
    );
}

/// Frames of the other room carry this besides their numbers.
const OTHER: u64 = 1 << 40;
/// How often each direction is paused.
const TURNS: usize = 6;

/// Sends as fast as it can until it is told to stop; returns how many frames that were.
async fn pour(sender: &mut ClientSocket, tag: u64, pacer: &mut ClientSocket, done: &AtomicBool) -> u64 {
    let mut sent = 0;
    while !done.load(SeqCst) {
        let some = rand::rng().random_range(1..=100);
        sender.burst(numbered((sent + 1..=sent + some).map(|number| number | tag))).await;
        sent += some;
        let near = async {
            while pacer.last().map_or(0, |frame| number(&frame) & !OTHER) + WINDOW < sent {
                pacer.more().await;
            }
        };
        drop(tokio::time::timeout(PAUSE, near).await);
    }
    sent
}

fn count(value: &Value, name: &str) -> usize {
    let count = value[name].as_u64().unwrap_or_else(|| panic!("no {name}: {value}"));
    usize::try_from(count).expect("a count")
}

/// Pauses one direction again and again; returns where each pause stood, where it ended, and what was dropped in it.
async fn pauses(sibling: &mut Sibling, direction: &str, pipe: Option<&ClientSocket>) -> Vec<(usize, usize, usize)> {
    let mut told = Vec::new();
    for policy in ["buffer", "drop", "hold"].iter().cycle().take(TURNS) {
        let paused = sibling.must("client.pause", json!({"direction": direction, "policy": policy})).await;
        for _ in 0..3 {
            sibling.must("pair.get", json!({})).await;
        }
        let seen = pipe.map_or(0, ClientSocket::received);
        let resumed = sibling.must("client.resume", json!({"direction": direction})).await;
        let (stop, go) = (count(&paused, "position"), count(&resumed, "position"));
        assert!(seen <= stop, "{seen} frames came, and it stopped at {stop}");
        let dropped = count(&resumed, "dropped");
        assert!(*policy == "drop" || dropped == 0 && go == stop, "{policy}: {paused} {resumed}");
        told.push((stop, go, dropped));
        for _ in 0..3 {
            sibling.must("pair.get", json!({})).await;
        }
    }
    told
}

#[rstest]
#[case::alone(Kind::Memory, "sender")]
#[case::across(Kind::Redis, "sender")]
#[case::across_in_one_order(Kind::Redis, "room")]
#[tokio::test(flavor = "multi_thread")]
async fn pauses_and_moves_are_exact_to_the_frame_at_full_speed(#[case] kind: Kind, #[case] order: &str) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (rooms, node) = ([ROOM, "elsewhere"], |n| cluster.node(n));
    for room in rooms {
        specify(node(0), room, json!({"format": "binary", "order": order, "queue_bytes": 64 << 20})).await;
    }
    let enter = async |n, room| Agent::enter(node(n), node(n + 1), json!({"room": room, "format": "binary"})).await;
    let (mut here, mut there) = (enter(0, rooms[0]).await, enter(1, rooms[1]).await);
    let (mut near, mut far) = (enter(1, rooms[0]).await, enter(2, rooms[1]).await);
    let (mut paused, mut mover) = (enter(2, rooms[0]).await, enter(0, rooms[0]).await);
    let (done, paused_enough) = (AtomicBool::new(false), AtomicBool::new(false));
    let working = async {
        // Mostly to where it is already: however often, it misses nothing.
        let moving = async {
            let mut moves = Vec::new();
            while !paused_enough.load(SeqCst) {
                let to = rooms[usize::from(moves.len() % 8 == 0)];
                let moved = mover.sibling.must("client.move", json!({"room": to})).await;
                moves.push((to, count(&moved, "position")));
            }
            moves
        };
        let (pipe, sibling) = (&paused.pipe, &mut paused.sibling);
        let pausing = async {
            let both = tokio::join!(pauses(&mut here.sibling, "in", None), pauses(sibling, "out", Some(pipe)));
            paused_enough.store(true, SeqCst);
            both
        };
        let all = tokio::join!(pausing, moving);
        done.store(true, SeqCst);
        all
    };
    let (((ins, outs), moves), sent, _) = tokio::join!(
        working,
        pour(&mut here.pipe, 0, &mut near.pipe, &done),
        pour(&mut there.pipe, OTHER, &mut far.pipe, &done)
    );
    // What the pauses of the sender dropped is missing for everyone, and nothing else is.
    let mut published: Vec<_> = (1..=sent).collect();
    let dropped = |number: &u64| {
        let number = usize::try_from(*number).expect("a count");
        ins.iter().any(|(stop, go, _)| (stop + 1..=*go).contains(&number))
    };
    published.retain(|number| !dropped(number));
    assert_eq!(sent as usize - published.len(), ins.iter().map(|(.., dropped)| dropped).sum::<usize>());
    near.pipe.until_received(published.len()).await;
    assert_eq!(numbers(&near.pipe), published);

    // Pauses towards a client drop exactly so many frames, exactly there.
    let lost: usize = outs.iter().map(|(.., dropped)| dropped).sum();
    paused.pipe.until_received(published.len() - lost).await;
    let mut expected = published.clone();
    for (stop, go, dropped) in &outs {
        assert_eq!(stop, go, "no frame passes a pause");
        expected.drain(*stop..stop + dropped);
    }
    assert_eq!(numbers(&paused.pipe), expected);

    // Before a move's position only frames of the room that it left, one behind the other.
    let (mut from, mut room, frames) = (0, rooms[0], numbers(&mover.pipe));
    let (mut parts, moved) = (Vec::new(), moves.len());
    for (to, position) in moves {
        if to != room {
            parts.push((room, from..position));
            (from, room) = (position, to);
        }
    }
    for (room, part) in parts {
        let part = &frames[part];
        assert!(part.iter().all(|number| (number & OTHER != 0) == (room == rooms[1])), "a frame of another room");
        if let (Some(first), true) = (part.first(), room == rooms[0]) {
            let begin = published.binary_search(first).expect("a frame that was published");
            assert_eq!(part, &published[begin..begin + part.len()], "every frame between two moves");
        } else {
            assert!(part.windows(2).all(|pair| pair[1] == pair[0] + 1), "every frame between two moves");
        }
    }
    println!(
        "{kind:?}, order {order}: {sent} frames, {moved} moves, {lost} dropped in pauses out, {} in",
        sent as usize - published.len()
    );
}

/// A sender whose sibling sets marks, a receiver whose siblings watch them; nobody else.
struct Scene {
    cluster: Cluster,
    from: Agent,
    to: Agent,
}

impl Scene {
    async fn start(kind: Kind, spec: Value) -> Self {
        let cluster = Cluster::start(kind, &Settings::new()).await;
        specify(cluster.node(0), ROOM, spec).await;
        let (from, to) = (member(&cluster, 0, "binary").await, member(&cluster, 2, "binary").await);
        Self { cluster, from, to }
    }

    /// Sends the frames with these numbers, and waits until they are counted.
    async fn send(&mut self, numbers: std::ops::RangeInclusive<u64>) {
        let last = *numbers.end();
        self.from.pipe.burst(numbered(numbers)).await;
        let sibling = &mut self.from.sibling;
        support::eventually("the node has received all", async || {
            let state = sibling.must("pair.get", json!({})).await;
            (state["counters"]["frames_in"] == last).then_some(())
        })
        .await;
    }

    async fn mark(&mut self, data: &str, after: Option<u64>) -> Result<Value, Fault> {
        let mut params = json!({"data": data, "key": data});
        if let Some(after) = after {
            params["after"] = json!(after);
        }
        self.from.sibling.call("client.mark", params).await
    }

    /// Where the receiver was told of a mark.
    async fn told(&mut self, data: &str) -> u64 {
        let told = self.to.sibling.event_where("mark", |params| params["data"]["data"] == data).await;
        let expected = json!({"from": self.from.pair.id, "data": data, "at": told["data"]["at"], "epoch": 1});
        assert_eq!(told["data"], expected);
        told["data"]["at"].as_u64().expect("a place")
    }
}

fn binary() -> Value {
    json!({"format": "binary"})
}

#[rstest]
#[case::alone(Kind::Memory)]
#[case::across(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_waits_for_its_frame_and_not_for_one_that_has_gone(#[case] kind: Kind) {
    let mut scene = Scene::start(kind, binary()).await;
    assert_eq!(scene.mark("none yet", None).await.expect("a place"), json!({"position": 0}));
    assert_eq!(scene.told("none yet").await, 0, "there is no frame, and it is told");
    scene.send(1..=5).await;
    let late = scene.mark("late", Some(4)).await.expect_err("it has gone");
    assert_eq!((late.code, late.data["code"].as_str()), (CONFLICT, Some("conflict")));
    assert!(late.message.contains("5 frames"), "{late:?}");
    assert_eq!(scene.mark("now", Some(5)).await.expect("a place"), json!({"position": 5}));
    assert_eq!(scene.mark("last", None).await.expect("a place"), json!({"position": 5}));

    // Ahead of its frame, which comes in the middle of a burst; the key makes it one mark, whoever sends it again.
    let ahead = json!({"data": "ahead", "after": 8, "key": "ahead"});
    let first = scene.from.sibling.ask("client.mark", ahead.clone()).await;
    let mut again = Sibling::open(scene.cluster.node(2), &scene.from.pair).await;
    let second = again.ask("client.mark", ahead.clone()).await;
    again.must("pair.get", json!({})).await;
    scene.send(6..=10).await;
    for reply in [scene.from.sibling.reply(first).await, again.reply(second).await] {
        assert_eq!(reply.expect("a place"), json!({"position": 8}));
    }
    assert_eq!(again.must("client.mark", ahead).await, json!({"position": 8}));
    assert_eq!([scene.told("now").await, scene.told("last").await, scene.told("ahead").await], [5, 5, 8]);

    // Nobody is told who does not want to be.
    scene.to.sibling.must("room.unwatch", json!({"marks": true})).await;
    scene.mark("unheard", None).await.expect("a place");
    scene.to.sibling.must("room.watch", json!({"marks": true})).await;
    scene.mark("heard", None).await.expect("a place");
    assert_eq!(scene.told("heard").await, 10);
    let all: Vec<_> = marks_of(&scene.to.sibling).iter().map(|told| told["data"]["data"].clone()).collect();
    assert_eq!(all, ["none yet", "now", "last", "ahead", "heard"]);
    scene.from.sibling.event_where("mark", |params| params["data"]["data"] == "heard").await;
    let own: Vec<_> = marks_of(&scene.from.sibling).iter().map(|told| told["cause"]["key"].clone()).collect();
    assert_eq!(own, ["none yet", "now", "last", "ahead", "unheard", "heard"], "the sender's own siblings watch too");
}

#[rstest]
#[case::buffer("buffer")]
#[case::hold("hold")]
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_goes_among_frames_that_wait(#[case] policy: &str) {
    let mut scene = Scene::start(Kind::Redis, binary()).await;
    scene.send(1..=3).await;
    let pause = json!({"direction": "in", "policy": "buffer"});
    assert_eq!(scene.from.sibling.must("client.pause", pause).await["position"], 3);
    scene.send(4..=9).await;
    let pause = json!({"direction": "in", "policy": policy});
    assert_eq!(scene.from.sibling.must("client.pause", pause).await["position"], 3, "it stands where it stood");
    for (data, after) in
        [("six", Some(6)), ("end", None), ("six too", Some(6)), ("three", Some(3)), ("four", Some(4))]
    {
        let position = scene.mark(data, after).await.expect("a place");
        assert_eq!(position, json!({"position": after.unwrap_or(9)}));
    }
    let late = scene.mark("late", Some(2)).await.expect_err("it has gone");
    assert!(late.code == CONFLICT && late.message.contains("3 frames"), "{late:?}");
    assert!(marks_of(&scene.to.sibling).is_empty() && scene.to.pipe.received() == 3);
    let resumed = scene.from.sibling.must("client.resume", json!({"direction": "in"})).await;
    assert_eq!(resumed, json!({"position": 3, "buffered": 6, "dropped": 0}));
    let mut told = Vec::new();
    for data in ["three", "four", "six", "six too", "end"] {
        told.push(scene.told(data).await);
    }
    assert_eq!(told, [3, 4, 6, 6, 9]);

    // Where frames are dropped it stands behind what was published last.
    scene.from.sibling.must("client.pause", json!({"direction": "in", "policy": "drop"})).await;
    scene.send(10..=12).await;
    assert_eq!(scene.mark("dropped", None).await.expect("a place"), json!({"position": 12}));
    let ahead = scene.from.sibling.ask("client.mark", json!({"data": "ahead", "after": 14})).await;
    let resumed = scene.from.sibling.must("client.resume", json!({"direction": "in"})).await;
    assert_eq!(resumed, json!({"position": 12, "buffered": 0, "dropped": 3}));
    scene.send(13..=15).await;
    assert_eq!(scene.from.sibling.reply(ahead).await.expect("a place"), json!({"position": 14}));
    assert_eq!([scene.told("dropped").await, scene.told("ahead").await], [9, 11]);
    assert_eq!(numbers(&scene.to.pipe)[8..=10], [9, 13, 14]);

    // What waits when the socket ends is told to be lost, though the command has its reply.
    scene.from.sibling.must("client.pause", json!({"direction": "in", "policy": policy})).await;
    scene.mark("never", None).await.expect("a place");
    scene.from.sibling.must("client.close", json!({})).await;
    let missed = scene.from.sibling.event("mark.missed").await;
    assert_eq!((&missed["data"]["data"], &missed["data"]["after"]), (&json!("never"), &json!(15)), "{missed}");
    assert_eq!(missed["cause"]["key"], "never", "{missed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_frames_count_and_so_does_who_may_publish() {
    let mut scene = Scene::start(Kind::Redis, json!({"format": "binary", "violations": "drop"})).await;
    let ahead = scene.from.sibling.ask("client.mark", json!({"data": "a", "after": 3})).await;
    let refused = scene.from.sibling.ask("client.mark", json!({"data": "b", "after": 2})).await;
    let first = scene.from.sibling.ask("client.mark", json!({"data": "c", "after": 1})).await;
    // All have come when this is answered.
    scene.from.sibling.must("pair.get", json!({})).await;
    // A client that counts what it sends counts the second one, too.
    let mut frames = numbered([1, 3, 4]);
    frames.insert(1, Message::text("of the wrong kind"));
    scene.from.pipe.burst(frames).await;
    assert_eq!(scene.from.sibling.reply(ahead).await.expect("a place"), json!({"position": 3}));
    assert_eq!(scene.from.sibling.reply(refused).await.expect("a place"), json!({"position": 2}));
    assert_eq!(scene.from.sibling.reply(first).await.expect("a place"), json!({"position": 1}));
    assert_eq!([scene.told("c").await, scene.told("b").await, scene.told("a").await], [1, 1, 2]);
    scene.to.pipe.until_received(3).await;
    assert_eq!(numbers(&scene.to.pipe), [1, 3, 4]);
    let paused = scene.from.sibling.must("client.pause", json!({"direction": "in"})).await;
    assert_eq!(paused["position"], 4, "one word for one thing");

    specify(scene.cluster.node(1), ROOM, json!({"format": "binary", "publish": "granted"})).await;
    scene.from.sibling.event("room.changed").await;
    let fault = scene.mark("no", None).await.expect_err("not granted");
    assert_eq!((fault.code, fault.data["code"].as_str()), (-32003, Some("forbidden")), "{fault:?}");
    scene.from.sibling.must("client.close", json!({})).await;
    let fault = scene.mark("gone", None).await.expect_err("no client socket");
    assert_eq!((fault.code, fault.data["code"].as_str()), (-32017, Some("client_detached")), "{fault:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_whose_frame_never_comes_is_told_of() {
    let mut scene = Scene::start(Kind::Redis, binary()).await;
    scene.send(1..=5).await;
    // As many as may wait; the next is refused, and everything else is still heard.
    let mut asked = Vec::new();
    for n in 0..64 {
        asked.push(scene.from.sibling.ask("client.mark", json!({"data": n, "after": 100 + n})).await);
    }
    let full = scene.mark("one more", Some(7)).await.expect_err("too many wait");
    assert_eq!((full.code, full.data["code"].as_str()), (-32029, Some("rate_limited")), "{full:?}");
    scene.from.sibling.must("pair.get", json!({})).await;
    scene.send(6..=6).await;
    // A new socket takes over: its frames are counted anew.
    let _again = ClientSocket::open(scene.cluster.node(1), &scene.from.pair).await;
    for (n, id) in asked.into_iter().enumerate() {
        let fault = scene.from.sibling.reply(id).await.expect_err("its frame never came");
        assert!(fault.code == CONFLICT && fault.message.contains("6 frames"), "{fault:?}");
        let missed = scene.from.sibling.event("mark.missed").await;
        let data = &missed["data"];
        assert_eq!(
            (&data["data"], &data["after"], &data["frames"]),
            (&json!(n), &json!(100 + n), &json!(6)),
            "{missed}"
        );
        assert!(data["reason"].is_string() && missed["cause"]["id"] == id, "{missed}");
    }
    assert!(marks_of(&scene.to.sibling).is_empty());
}

/// It takes half a minute: that is what it is about.
#[tokio::test(flavor = "multi_thread")]
async fn a_mark_waits_for_half_a_minute_and_its_asker_a_little_longer() {
    let mut scene = Scene::start(Kind::Redis, binary()).await;
    let started = Instant::now();
    let id = scene.from.sibling.ask("client.mark", json!({"data": "late", "after": 2, "key": "late"})).await;
    scene.send(1..=1).await;
    let soon = scene.from.sibling.ask("client.mark", json!({"data": "in time", "after": 2})).await;
    while started.elapsed().as_secs() < 29 {
        assert_eq!(scene.from.sibling.must("pair.get", json!({})).await["client"], "live");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let fault = scene.from.sibling.reply(id).await.expect_err("its frame never came");
    assert!(fault.code == CONFLICT && fault.message.contains("1 frames"), "{fault:?}");
    assert!((29..34).contains(&started.elapsed().as_secs()), "{:?}", started.elapsed());
    let missed = scene.from.sibling.event("mark.missed").await;
    assert_eq!((&missed["data"]["data"], &missed["data"]["frames"]), (&json!("late"), &json!(1)), "{missed}");
    let fault = scene.from.sibling.reply(soon).await.expect_err("its frame never came, too");
    assert_eq!(fault.code, CONFLICT, "mail that was sent again and again waited once");
    scene.from.sibling.event("mark.missed").await;
    scene.send(2..=2).await;
    let missed = scene.from.sibling.story().iter().filter(|told| kind_of(told) == "mark.missed").count();
    assert_eq!(missed, 2);
    assert!(marks_of(&scene.to.sibling).is_empty());
}
