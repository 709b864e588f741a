//! Rooms that keep their frames: who comes back goes on where it stopped, on any node.

mod support;

use rstest::rstest;
use serde_json::{Value, json};
use support::{
    ADMIN_KEY, Agent, ClientSocket, Cluster, Gateway, Kind, Pair, Settings, Sibling, count_up, eventually, numbers,
    of_room, specify,
};

async fn reopen(node: &Gateway, pair: &Pair, query: &str) -> ClientSocket {
    ClientSocket::over(pair.dial_client(node).queries(query).open().await)
}

async fn resumed(sibling: &mut Sibling, epoch: u64) -> Value {
    sibling.event_where("client.resumed", |params| params["data"]["epoch"] == epoch).await["data"].clone()
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_goes_on(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (a, b, c) = (cluster.node(0), cluster.node(1), cluster.node(2));
    specify(a, "story", json!({"format": "text", "history": {"messages": 1_000, "seconds": 60}})).await;
    let mut speaker = Agent::enter(a, b, json!({"room": "story"})).await;
    let mut listener = Agent::enter(b, c, json!({"room": "story"})).await;
    // What it has is kept.
    let mut witness = Agent::enter(c, a, json!({"room": "story"})).await;
    count_up(&mut speaker.pipe, 0, 100).await;
    listener.pipe.until_received(100).await;

    // The connection breaks: it has had 100, of which it says that it got 40.
    let Agent { pair, pipe, mut sibling } = listener;
    pipe.vanish().await;
    count_up(&mut speaker.pipe, 100, 200).await;
    witness.pipe.until_received(200).await;
    let mut pipe = reopen(c, &pair, "received=40").await;
    pipe.until_received(160).await;
    assert_eq!(resumed(&mut sibling, 2).await, json!({"epoch": 2, "replayed": 160, "lost": 0, "exact": true}));
    count_up(&mut speaker.pipe, 200, 250).await;
    pipe.until_received(210).await;
    assert_eq!(numbers(&pipe), (40..250).collect::<Vec<_>>());

    // It says goodbye: nothing need be said to go on.
    pipe.close(1000, "").await;
    count_up(&mut speaker.pipe, 250, 260).await;
    witness.pipe.until_received(260).await;
    let mut pipe = reopen(a, &pair, "").await;
    pipe.until_received(10).await;
    assert_eq!(resumed(&mut sibling, 3).await, json!({"epoch": 3, "replayed": 10, "lost": 0, "exact": true}));
    // Another takes its place meanwhile, which is another way of coming back.
    count_up(&mut speaker.pipe, 260, 270).await;
    witness.pipe.until_received(270).await;
    pipe.until_received(20).await;
    let mut next = reopen(b, &pair, "received=15").await;
    next.until_received(5).await;
    assert_eq!(resumed(&mut sibling, 4).await, json!({"epoch": 4, "replayed": 5, "lost": 0, "exact": true}));
    assert_eq!(numbers(&next), (265..270).collect::<Vec<_>>());
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn own_frames_and_pushed_ones_do_not_confuse_it(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    specify(a, "talk", json!({"format": "text", "history": {"messages": 1_000, "seconds": 60}})).await;
    let mut one = Agent::enter(a, b, json!({"room": "talk"})).await;
    let mut two = Agent::enter(b, a, json!({"room": "talk"})).await;
    for round in 0..10 {
        count_up(&mut one.pipe, round * 10, round * 10 + 10).await;
        count_up(&mut two.pipe, 1_000 + round * 10, 1_000 + round * 10 + 5).await;
        two.sibling.must("client.send", json!({"text": "2000"})).await;
        if round == 4 {
            two.pipe.until_received(50).await;
            let pushed = two.sibling.must("client.push", json!({"text": "3000"})).await;
            assert_eq!(pushed, json!({"position": 51}));
        }
    }
    two.pipe.until_received(101).await;
    one.pipe.until_received(60).await;
    let all = numbers(&two.pipe);
    assert_eq!(all[50], 3_000);
    // Whatever it says it has had, it gets the rest, but not what was pushed.
    for (epoch, received) in (2..).zip([60, 50, 7, 101, 3]) {
        two.pipe.vanish().await;
        two.pipe = reopen(cluster.node(epoch), &two.pair, &format!("received={received}&epoch=1")).await;
        let lost = usize::from(received < 51);
        let left: Vec<_> = all[received..].iter().copied().filter(|n| *n != 3_000).collect();
        let said = resumed(&mut two.sibling, epoch as u64).await;
        if epoch > 5 {
            // Of a socket that is so long gone nothing is known any more.
            assert_eq!((&said["lost"], &said["exact"]), (&json!(null), &json!(false)));
            continue;
        }
        assert_eq!(said, json!({"epoch": epoch, "replayed": left.len(), "lost": lost, "exact": true}));
        two.pipe.until_received(left.len()).await;
        assert_eq!(numbers(&two.pipe), left);
    }
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_any_more_is_counted(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    let (a, b) = (cluster.node(0), cluster.node(1));
    specify(a, "short", json!({"format": "text", "history": {"messages": 20, "seconds": 60}})).await;
    let mut speaker = Agent::enter(a, b, json!({"room": "short"})).await;
    let Agent { pair, mut pipe, mut sibling } = Agent::enter(b, a, json!({"room": "short"})).await;
    count_up(&mut speaker.pipe, 0, 10).await;
    pipe.until_received(10).await;
    pipe.vanish().await;
    // One at a time, so that each is an entry of its own.
    for n in 10..100 {
        speaker.sibling.must("client.send", json!({"text": n.to_string()})).await;
    }
    let mut pipe = reopen(a, &pair, "received=8").await;
    pipe.until_received(20).await;
    assert_eq!(numbers(&pipe), (80..100).collect::<Vec<_>>());
    assert_eq!(resumed(&mut sibling, 2).await, json!({"epoch": 2, "replayed": 20, "lost": 72, "exact": true}));

    // New members have what they ask for, or as much of it as there is.
    for (wanted, gets) in [(0, 0), (1, 1), (7, 7), (500, 20)] {
        let pair = Pair::from(b, json!({"room": "short"})).await;
        let mut sibling = Sibling::open(a, &pair).await;
        let mut newcomer = reopen(b, &pair, &format!("replay={wanted}")).await;
        assert_eq!(resumed(&mut sibling, 1).await, json!({"epoch": 1, "replayed": gets, "lost": 0, "exact": true}));
        newcomer.until_received(gets).await;
        assert_eq!(numbers(&newcomer), (100 - gets..100).collect::<Vec<_>>());
    }
    // And nothing when they do not ask.
    let mut silent = Agent::enter(a, b, json!({"room": "short"})).await;
    let headers = [("Content-Type", "text/plain"), ("Authorization", &*format!("Bearer {ADMIN_KEY}"))];
    let reply = a.send("POST", "/v1/rooms/short/messages", &headers, None).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(silent.pipe.next_text().await, "");
    assert_eq!(silent.pipe.received(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_before_the_end_is_kept() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    specify(cluster.node(0), "last", json!({"format": "text", "history": {"messages": 10_000, "seconds": 60}})).await;
    let mut listener = Agent::enter(cluster.node(1), cluster.node(0), json!({"room": "last"})).await;
    for round in 0..5 {
        let speaker = Pair::from(cluster.node(0), json!({"room": "last"})).await;
        let mut sibling = Sibling::open(cluster.node(1), &speaker).await;
        let mut pipe = ClientSocket::open(cluster.node(0), &speaker).await;
        count_up(&mut pipe, round * 1_000, round * 1_000 + 1_000).await;
        pipe.close(1000, "").await;
        let closed = sibling.event("client.closed").await;
        assert_eq!(closed["data"]["frames_in"], 1_000, "{closed}");
        // Who hears of the end, and comes then, has all that was said before.
        let late = Pair::from(cluster.node(1), json!({"room": "last"})).await;
        let mut late = reopen(cluster.node(1), &late, "replay=1").await;
        assert_eq!(late.next_text().await, (round * 1_000 + 999).to_string());
    }
    listener.pipe.until_received(5_000).await;
    assert_eq!(numbers(&listener.pipe), (0..5_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_loses_nothing() {
    let mut cluster = Cluster::redis(3, &Settings::new().set("NODE_LEASE_SECONDS", 2)).await;
    specify(cluster.node(0), "story", json!({"format": "text", "history": {"messages": 5_000, "seconds": 60}})).await;
    let mut speaker = Agent::enter(cluster.node(0), cluster.node(0), json!({"room": "story"})).await;
    let with = Pair::from(cluster.node(0), json!({"room": "story"})).await;
    let without = Pair::from(cluster.node(0), json!({"room": "story"})).await;
    let mut told = [Sibling::open(cluster.node(0), &with).await, Sibling::open(cluster.node(0), &without).await];
    let mut pipes = [reopen(cluster.node(1), &with, "").await, reopen(cluster.node(1), &without, "").await];
    for sibling in &mut told {
        sibling.event("client.opened").await;
    }
    count_up(&mut speaker.pipe, 0, 300).await;
    for pipe in &mut pipes {
        pipe.until_received(300).await;
    }
    cluster.node_mut(1).kill();
    count_up(&mut speaker.pipe, 300, 400).await;
    let mut again =
        [reopen(cluster.node(2), &with, "received=299").await, reopen(cluster.node(2), &without, "").await];
    again[0].until_received(101).await;
    assert_eq!(numbers(&again[0]), (299..400).collect::<Vec<_>>());
    assert_eq!(resumed(&mut told[0], 2).await, json!({"epoch": 2, "replayed": 101, "lost": 0, "exact": true}));
    // Nobody knows what it had: rather twice than not at all, and it is said.
    again[1].until_received(400).await;
    assert_eq!(numbers(&again[1]), (0..400).collect::<Vec<_>>());
    assert_eq!(resumed(&mut told[1], 2).await, json!({"epoch": 2, "replayed": 400, "lost": 0, "exact": false}));
}

#[rstest]
#[case::memory(Kind::Memory)]
#[case::redis(Kind::Redis)]
#[tokio::test(flavor = "multi_thread")]
async fn all_hear_the_same_order_and_a_move_begins_anew(#[case] kind: Kind) {
    let cluster = Cluster::start(kind, &Settings::new()).await;
    specify(cluster.node(0), "one", json!({"format": "text", "echo": true, "history": {}})).await;
    specify(cluster.node(0), "two", json!({"format": "text", "history": {}})).await;
    let mut agents = Vec::new();
    for n in 0..6 {
        agents.push(Agent::enter(cluster.node(n), cluster.node(n + 1), json!({"room": "one"})).await);
    }
    let send = agents.iter_mut().enumerate().map(|(n, agent)| count_up(&mut agent.pipe, n * 100, n * 100 + 100));
    futures_util::future::join_all(send).await;
    for agent in &mut agents {
        agent.pipe.until_received(600).await;
    }
    let first = numbers(&agents[0].pipe);
    for agent in &agents {
        assert_eq!(numbers(&agent.pipe), first, "one order for all");
    }
    // With echo, own frames count as well.
    let Agent { pair, pipe, mut sibling } = agents.pop().expect("six");
    pipe.vanish().await;
    let mut pipe = reopen(cluster.node(0), &pair, "received=450").await;
    pipe.until_received(150).await;
    assert_eq!(numbers(&pipe), first[450..]);
    assert_eq!(resumed(&mut sibling, 2).await["exact"], true);

    let mut other = Agent::enter(cluster.node(1), cluster.node(2), json!({"room": "two"})).await;
    let mut witness = Agent::enter(cluster.node(0), cluster.node(2), json!({"room": "two"})).await;
    count_up(&mut other.pipe, 0, 50).await;
    witness.pipe.until_received(50).await;
    let moved = sibling.must("client.move", json!({"room": "two"})).await;
    assert_eq!(moved["position"], 150);
    count_up(&mut agents[0].pipe, 7_000, 7_010).await;
    count_up(&mut other.pipe, 50, 100).await;
    pipe.until_received(200).await;
    assert_eq!(numbers(&pipe)[150..], (50..100).collect::<Vec<_>>());
    pipe.vanish().await;
    let mut pipe = reopen(cluster.node(2), &pair, "received=190").await;
    pipe.until_received(10).await;
    assert_eq!(numbers(&pipe), (90..100).collect::<Vec<_>>());
    assert_eq!(resumed(&mut sibling, 3).await, json!({"epoch": 3, "replayed": 10, "lost": 0, "exact": true}));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_write_for_each_batch_however_many_receive() {
    let cluster = Cluster::redis(2, &Settings::new()).await;
    specify(cluster.node(0), "many", json!({"format": "text", "history": {"messages": 1_000, "seconds": 60}})).await;
    let mut speaker = Agent::enter(cluster.node(0), cluster.node(1), json!({"room": "many"})).await;
    let redis = cluster.redis.as_ref().expect("a cluster over redis");
    let writes = |redis: &support::Redis| -> u64 {
        let stats = redis.cli(&["INFO", "commandstats"]);
        let count = |name: &str| -> u64 {
            let line = stats.lines().find(|line| line.starts_with(&format!("cmdstat_{name}:")));
            let calls = line.and_then(|line| line.split("calls=").nth(1)?.split(',').next()?.parse().ok());
            calls.unwrap_or(0)
        };
        count("rpush")
    };
    let mut costs = Vec::new();
    let mut listeners = Vec::new();
    for more in [1, 60] {
        for n in 0..more {
            let pair = Pair::from(cluster.node(n), json!({"room": "many"})).await;
            listeners.push(ClientSocket::open_and_told(cluster.node(n), &pair).await);
        }
        let before = writes(redis);
        let had = listeners[0].received();
        for n in 0..50 {
            speaker.sibling.must("client.send", json!({"text": n.to_string()})).await;
        }
        listeners[0].until_received(had + 50).await;
        costs.push(writes(redis) - before);
    }
    assert_eq!(costs, [50, 50], "one entry for each frame that was sent alone, and none for a receiver");
    // What comes at once is one entry, or few.
    let before = writes(redis);
    count_up(&mut speaker.pipe, 0, 2_000).await;
    listeners[0].until_received(100 + 2_000).await;
    assert!(writes(redis) - before < 1_000, "{} writes for 2000 frames", writes(redis) - before);
    eventually("all of them have all", async || {
        let all = |pipe: &ClientSocket| pipe.received() >= 2_050;
        listeners.iter().all(all).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_begins_to_keep_sends_its_members_round() {
    let cluster = Cluster::memory(&Settings::new()).await;
    let node = cluster.node(0);
    specify(node, "later", json!({"format": "text"})).await;
    let Agent { pair, mut pipe, mut sibling } = Agent::enter(node, node, json!({"room": "later"})).await;
    specify(node, "later", json!({"format": "text", "history": {"messages": 10, "seconds": 60}})).await;
    assert_eq!(pipe.closed().await.code, Some(3307));
    let closed = sibling.event("client.closed").await;
    assert_eq!(closed["data"]["by"], "room", "{closed}");
    let mut pipe = reopen(node, &pair, "received=0").await;
    let mut other = Agent::enter(node, node, json!({"room": "later"})).await;
    count_up(&mut other.pipe, 0, 5).await;
    pipe.until_received(5).await;
    let told = of_room(node, "GET", "later", "").await.json();
    assert_eq!(told["history"], json!({"messages": 10, "seconds": 60}), "{told}");
}
