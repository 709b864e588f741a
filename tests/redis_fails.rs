//! What only Redis can do to us.

#[path = "support/links.rs"]
mod links;
#[path = "support/process.rs"]
mod process;
#[allow(dead_code, reason = "written for all tests")]
#[path = "support/wait.rs"]
mod wait;
#[path = "support/wire.rs"]
mod wire;

use std::time::{Duration, Instant};

use bytes::Bytes;
use links::{Cluster, Server};
use sibling_sockets::{
    broker::{
        BrokerError, Delivery, Draft, Group, Keep, Link, Member, Rule,
        conformance::{all_of, append_one, assert_chain, next, until},
        redis,
    },
    protocol::{Fence, NodeId, PairId, Position, RoomName, Topic},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wait::within;
use wire::{State, Wire};

const ALL: Keep = Keep { events: 100_000, age: Duration::from_secs(600), most: 100_000 };

fn number(n: u64) -> Bytes {
    n.to_string().into()
}

fn as_number(payload: &Bytes) -> u64 {
    std::str::from_utf8(payload).unwrap().parse().unwrap()
}

fn room(name: &str) -> Topic {
    Topic::Room(name.parse().unwrap())
}

async fn wait_for(link: &mut Link, what: fn(&Delivery) -> bool) {
    while !what(&next(link).await) {}
}

/// Appends, with the same nonce again for as long as it is not known to have worked.
async fn insist(link: &Link, topic: &Topic, payload: u64) -> Position {
    let (nonce, end) = (rand::random(), Instant::now() + Duration::from_secs(30));
    loop {
        match append_one(&*link.broker, topic, Draft { nonce, payload: number(payload) }, &ALL).await {
            Ok(position) => return position,
            Err(error) => assert!(Instant::now() < end, "{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_are_cut_off() {
    let mut cluster = Cluster::start().await;
    let [a, b, c] = &mut cluster.nodes;
    let topic = Topic::Pair(PairId::fresh());
    // Before there is any subscription Redis does not call the connection a subscriber's.
    for link in [&*b, c] {
        link.broker.subscribe(&topic).await.unwrap();
    }
    for round in 0..5u64 {
        let appender = async {
            for n in 0..200 {
                insist(a, &topic, round * 1_000 + n).await;
                if n == 50 {
                    assert_eq!(cluster.server.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]), "2");
                }
            }
        };
        // Everyone keeps up as a sibling does: live entries that follow on, and a look into the history where
        // something may have been lost.
        let follower = async |link: &mut Link, mut seen: Vec<_>| {
            let (mut down, mut lost) = (0, 0);
            while seen.len() < 200 || lost == 0 {
                match next(link).await {
                    Delivery::Down => down += 1,
                    Delivery::Lost => {
                        lost += 1;
                        let skip = seen.len() + usize::try_from(round).unwrap() * 200;
                        seen.extend(all_of(&*link.broker, &topic).await.into_iter().skip(skip));
                    }
                    Delivery::Entry(_, entry) => {
                        assert_eq!(down, lost, "nothing between Down and Lost");
                        // An entry of the round before may come again, for who did not hear that it stands.
                        let Some(at) = (entry.position.offset - 1).checked_sub(round * 200) else { continue };
                        let at = usize::try_from(at).unwrap();
                        assert!(at <= seen.len(), "a hole that nobody told of");
                        if at == seen.len() {
                            seen.push(entry);
                        }
                    }
                    Delivery::Message(..) => panic!("nobody publishes"),
                }
            }
            assert_eq!((down, lost), (1, 1));
            seen
        };
        let ((), of_b, of_c) = tokio::join!(appender, follower(b, Vec::new()), follower(c, Vec::new()));
        assert_eq!(of_b, of_c);
        assert_eq!(of_b, all_of(&*a.broker, &topic).await[usize::try_from(round * 200).unwrap()..]);
    }
    assert_chain(Position::START, &all_of(&*a.broker, &topic).await);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_restarts_empty() {
    let mut cluster = Cluster::start().await;
    let (old, new, room) = (Topic::Pair(PairId::fresh()), Topic::Pair(PairId::fresh()), room("hall"));
    for link in &cluster.nodes {
        link.broker.subscribe(&old).await.unwrap();
        link.broker.subscribe(&room).await.unwrap();
    }
    insist(&cluster.nodes[0], &old, 1).await;
    cluster.server.stop();
    for link in &mut cluster.nodes {
        wait_for(link, |delivery| matches!(delivery, Delivery::Down)).await;
        let asked = Instant::now();
        assert!(matches!(link.broker.read(&old, Position::START, 1).await, Err(BrokerError::Unavailable(_))));
        assert!(matches!(link.broker.subscribe(&new).await, Err(BrokerError::Unavailable(_))));
        link.broker.unsubscribe(&room).await.unwrap_err();
        assert!(asked.elapsed() < Duration::from_secs(8), "an answer takes two seconds at most");
    }
    cluster.server.start_again().await;
    for link in &mut cluster.nodes {
        assert!(matches!(next(link).await, Delivery::Lost));
    }
    // What was subscribed to before and meanwhile is in force, what was given up meanwhile is not; and Redis has
    // no scripts any more.
    cluster.nodes[0].broker.publish(&room, number(1)).unwrap();
    let first = insist(&cluster.nodes[0], &old, 2).await;
    assert_eq!(first.offset, 1);
    insist(&cluster.nodes[1], &new, 3).await;
    for link in &mut cluster.nodes {
        assert!(matches!(next(link).await, Delivery::Entry(topic, entry) if topic == old && entry.position == first));
        assert!(matches!(next(link).await, Delivery::Entry(topic, _) if topic == new));
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_pauses() {
    let mut cluster = Cluster::start().await;
    let [a, b, _] = &mut cluster.nodes;
    let topic = Topic::Pair(PairId::fresh());
    b.broker.subscribe(&topic).await.unwrap();
    let mut retries = 0;
    for n in 0..3u64 {
        cluster.server.ask(&["CLIENT", "PAUSE", "2300", "ALL"]);
        let nonce = rand::random();
        while let Err(error) = append_one(&*a.broker, &topic, Draft { nonce, payload: number(n) }, &ALL).await {
            assert!(matches!(error, BrokerError::Unavailable(_)));
            retries += 1;
        }
    }
    assert!(retries >= 3);
    let kept = all_of(&*a.broker, &topic).await;
    assert_chain(Position::START, &kept);
    assert_eq!(kept.iter().map(|entry| as_number(&entry.payload)).collect::<Vec<_>>(), [0, 1, 2]);
    cluster.end().await;
}

/// fred's own `subscribe` returns when the command is queued; ours when Redis has done it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_are_confirmed() {
    let cluster = Cluster::start().await;
    let [a, ..] = &cluster.nodes;
    let paused = Instant::now();
    cluster.server.ask(&["CLIENT", "PAUSE", "1000", "ALL"]);
    a.broker.subscribe(&room("hall")).await.unwrap();
    assert!(paused.elapsed() > Duration::from_millis(900), "nobody can have confirmed it");
    assert_eq!(cluster.server.ask(&["PUBSUB", "SHARDNUMSUB", "sib:{room/hall}:live"]), "sib:{room/hall}:live\n1");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_are_forgotten() {
    let mut cluster = Cluster::start().await;
    let [a, b, _] = &mut cluster.nodes;
    let pair = PairId::fresh();
    let topic = Topic::Pair(pair);
    b.broker.subscribe(&topic).await.unwrap();
    for n in 1..=3 {
        cluster.server.ask(&["SCRIPT", "FLUSH"]);
        assert_eq!(
            append_one(&*a.broker, &topic, Draft { nonce: n, payload: number(n) }, &ALL).await.unwrap().offset,
            n
        );
        assert!(matches!(next(b).await, Delivery::Entry(_, entry) if entry.position.offset == n));
        cluster.server.ask(&["SCRIPT", "FLUSH"]);
        let topics = vec![topic.clone(); 10];
        assert_eq!(b.broker.heads(&topics).await.unwrap(), vec![Position { offset: n, nonce: n }; 10]);
        assert_eq!(b.broker.read(&topic, Position::START, 10).await.unwrap().entries.len() as u64, n);
        a.registry.beat(NodeId::fresh(), number(n), Duration::from_secs(1)).await.unwrap();
    }
    cluster.end().await;
}

/// While Redis hangs, publishing never waits and the queue is bounded; afterwards order holds, and there is no
/// flood of what was said long ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_hangs_for_a_while() {
    redis_hangs(Duration::from_millis(2_500)).await;
}

/// So long that the connections are given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_hangs_long() {
    redis_hangs(Duration::from_secs(7)).await;
}

/// What a connection still holds that was given up must not be heard among what goes over the next.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stuck_connection_held_is_not_heard_late() {
    let mut cluster = Cluster::start().await;
    let wire = Wire::to(([127, 0, 0, 1], cluster.server.port).into()).await;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let url = format!("redis://{}", wire.addr());
    let a = redis::connect(&url, NodeId::fresh(), "sib:", &tasks, &stop).await.unwrap();
    let [b, ..] = &mut cluster.nodes;
    let topic = room("hall");
    b.broker.subscribe(&topic).await.unwrap();
    a.broker.publish(&topic, number(0)).unwrap();
    assert!(matches!(next(b).await, Delivery::Message(_, payload) if as_number(&payload) == 0));
    wire.set(State::Stuck);
    let (mut sent, mut heard) = (1, 0);
    let mut say_and_hear = async |until: &mut dyn FnMut(u64) -> bool| {
        let end = Instant::now() + Duration::from_secs(20);
        while !until(heard) {
            assert!(Instant::now() < end, "nothing is heard after {heard}");
            if a.broker.publish(&topic, number(sent)).is_ok() {
                sent += 1;
            }
            while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_millis(20), b.deliveries.recv()).await
            {
                let Delivery::Message(_, payload) = delivery else { continue };
                assert!(heard < as_number(&payload), "{payload:?} after {heard}");
                heard = as_number(&payload);
            }
        }
    };
    say_and_hear(&mut |heard| heard > 0).await;
    // It finds the other end closed. The length of a silence, not a wait for a state.
    wire.set(State::Whole);
    let late = Instant::now() + Duration::from_secs(1);
    say_and_hear(&mut |_| Instant::now() > late).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    cluster.end().await;
}

#[tokio::test]
async fn a_wire_holds_back_and_forwards_later_and_hangs_up() {
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let wire = Wire::to(echo.local_addr().unwrap()).await;
    let mut near = TcpStream::connect(wire.addr()).await.unwrap();
    let (mut far, _) = echo.accept().await.unwrap();
    let mut one = [0; 1];
    near.write_all(b"a").await.unwrap();
    far.read_exact(&mut one).await.unwrap();

    wire.set(State::Silent);
    near.write_all(b"b").await.unwrap();
    // The length of the silence, not a wait for a state.
    let silent = tokio::time::timeout(Duration::from_millis(200), far.read_exact(&mut one)).await;
    assert!(silent.is_err(), "nothing comes through a silent wire");
    wire.set(State::Whole);
    within("what was on the way", far.read_exact(&mut one)).await.unwrap();
    assert_eq!(one, *b"b");

    wire.set(State::Closed);
    assert_eq!(within("the end", near.read(&mut one)).await.unwrap_or(0), 0);
    let mut late = TcpStream::connect(wire.addr()).await.unwrap();
    assert_eq!(within("the refusal", late.read(&mut one)).await.unwrap_or(0), 0);
}

async fn redis_hangs(time: Duration) {
    let mut cluster = Cluster::start().await;
    let [a, b, _] = &mut cluster.nodes;
    let topic = room("hall");
    b.broker.subscribe(&topic).await.unwrap();
    cluster.server.signal("STOP");
    let payload = |n: u64| Bytes::from(format!("{n:0>65000}"));
    let (mut sent, mut longest) = (0, Duration::ZERO);
    loop {
        let asked = Instant::now();
        let outcome = a.broker.publish(&topic, payload(sent));
        longest = longest.max(asked.elapsed());
        match outcome {
            Ok(()) => sent += 1,
            Err(error) => break assert!(matches!(error, BrokerError::Full)),
        }
        assert!(sent * 65_000 < 64 << 20, "a bound of 32 MiB, and what is on its way");
    }
    assert!(sent * 65_000 > 30 << 20, "{sent} are little for 32 MiB");
    assert!(longest < Duration::from_millis(200), "publishing took {longest:?}");
    tokio::time::sleep(time).await;
    cluster.server.signal("CONT");
    // Whether or not the connections survived it: from some point on, what is said is heard.
    let first_fresh = sent;
    let mut heard = None;
    let end = Instant::now() + Duration::from_secs(20);
    while heard.is_none_or(|n| n < first_fresh) {
        assert!(Instant::now() < end, "nothing fresh was heard after the hang");
        if a.broker.publish(&topic, payload(sent)).is_ok() {
            sent += 1;
        }
        while let Ok(Some(delivery)) = tokio::time::timeout(Duration::from_millis(20), b.deliveries.recv()).await {
            let Delivery::Message(_, payload) = delivery else { continue };
            let n = as_number(&payload);
            assert!(heard.is_none_or(|before| before < n), "{n} after {heard:?}");
            assert!(n < 64 || n >= first_fresh, "{n} had grown stale");
            heard = Some(n);
        }
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_listen_is_told_what_it_lost() {
    let mut cluster = Cluster::start().await;
    let [a, b, _] = &mut cluster.nodes;
    let topic = room("hall");
    b.broker.subscribe(&topic).await.unwrap();
    let mut sent = 0;
    for _ in 0..150_000 {
        while a.broker.publish(&topic, number(sent)).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        sent += 1;
    }
    // The queue, and fred's behind it, can't have held all of them once the last is through.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (mut before, mut lost) = (None, 0);
    while lost == 0 {
        match next(b).await {
            Delivery::Message(_, payload) => {
                assert_eq!(as_number(&payload), before.map_or(0, |n: u64| n + 1), "no loss before Lost");
                before = Some(as_number(&payload));
            }
            Delivery::Lost => lost += 1,
            other => panic!("not {other:?}"),
        }
    }
    a.broker.publish(&topic, number(sent)).unwrap();
    wait_for(b, |delivery| matches!(delivery, Delivery::Message(_, payload) if as_number(payload) == 150_000)).await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_queued_goes_out_at_the_end() {
    let mut cluster = Cluster::start().await;
    let topic = room("hall");
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let url = cluster.server.url();
    let leaving = redis::connect(&url, NodeId::fresh(), "sib:", &tasks, &stop).await.unwrap();
    let [a, ..] = &mut cluster.nodes;
    a.broker.subscribe(&topic).await.unwrap();
    for n in 0..10_000 {
        leaving.broker.publish(&topic, number(n)).unwrap();
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    for n in 0..10_000 {
        assert!(matches!(next(a).await, Delivery::Message(_, payload) if as_number(&payload) == n));
    }
    let silent = leaving.broker.read(&topic, Position::START, 1).await;
    assert!(matches!(silent, Err(BrokerError::Unavailable(_))), "nothing works after the end");
    // Its three connections are gone; left are three of each other node, and the one that asks.
    until(async || cluster.server.ask(&["CLIENT", "LIST"]).lines().count() == 10, "connections to close").await;
    cluster.end().await;
}

#[tokio::test]
async fn nobody_is_there() {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    // It takes connections and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [mute.local_addr().unwrap(), closed] {
        let asked = Instant::now();
        let url = format!("redis://{address}");
        let outcome = redis::connect(&url, NodeId::fresh(), "sib:", &tasks, &stop).await;
        assert!(matches!(outcome, Err(BrokerError::Unavailable(_))));
        assert!(asked.elapsed() < Duration::from_secs(10));
    }
    assert!(tasks.is_empty(), "nothing goes on in the background");
    let outcome = redis::connect("redis://127.0.0.1", NodeId::fresh(), "a{b}", &tasks, &stop).await;
    assert!(outcome.is_err());
}

/// Passwords and databases, and that nothing lies about under other names or without an end.
#[tokio::test]
async fn keys_have_a_prefix_and_an_end() {
    let server = Server::start().await;
    server.ask(&["CONFIG", "SET", "requirepass", "secret"]);
    let ask = |command: &[&str]| {
        let with_password = [&["-a", "secret", "--no-auth-warning", "-n", "3"], command].concat();
        server.ask(&with_password)
    };
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let connect = async |user: &str| {
        let url = format!("redis://{user}127.0.0.1:{}/3", server.port);
        redis::connect(&url, NodeId::fresh(), "mine:", &tasks, &stop).await
    };
    assert!(connect("").await.is_err());
    assert!(connect(":wrong@").await.is_err());
    let link = connect(":secret@").await.unwrap();
    let (held, idle, nobodys) = (PairId::fresh(), PairId::fresh(), PairId::fresh());
    let ttl = |pair: PairId, kind: &str| ask(&["PTTL", &format!("mine:{{{pair}}}:{kind}")]).parse::<i64>().unwrap();
    let (minute, node) = (Duration::from_secs(60), NodeId::fresh());
    let keep = Keep { events: 1, age: Duration::from_secs(90), most: 9 };
    for pair in [held, idle] {
        link.registry.create(pair, number(1), node, minute, keep.age).await.unwrap();
        assert!((90_001..=150_000).contains(&ttl(pair, "pair")));
        link.registry.claim(pair, node, 7).await.unwrap();
    }
    let fence = Fence { epoch: 1, nonce: 7 };
    link.registry.release(idle, fence, node, minute, &[], &keep).await.unwrap();
    for pair in [held, idle, nobodys] {
        let draft = Draft { nonce: 1, payload: number(1) };
        append_one(&*link.broker, &pair.into(), draft, &keep).await.unwrap();
    }
    assert_eq!((ttl(held, "pair"), ttl(held, "log")), (-1, -1));
    assert!((90_001..=150_000).contains(&ttl(idle, "pair")));
    assert!((150_001..=240_000).contains(&ttl(idle, "log")), "a first entry after the release has an end, too");
    assert!((60_001..=90_000).contains(&ttl(nobodys, "log")));
    // Notes in a list that stand for nothing (any more) are not answered for, and do not hide the others.
    let node = NodeId::fresh();
    let stale = "
        local function notes(n)
            return struct.pack('>Bc1I8', 9, 'p', n) .. struct.pack('>Bc1I8c4', 13, 'r', n, 'hall')
        end
        for n = 1, 600 do
            redis.call('HSET', KEYS[1], struct.pack('>I8I8', 7, n), notes(n))
        end
        local idle = string.gsub(ARGV[1], '..', function(two) return string.char(tonumber(two, 16)) end)
        redis.call('HSET', KEYS[1], idle, notes(1) .. notes(2))";
    ask(&["EVAL", stale, "1", &format!("mine:{{{node}}}:holds"), &idle.uuid().simple().to_string()]);
    link.registry.claim(idle, node, 1_000_000).await.unwrap();
    assert_eq!(link.registry.holdings(node, 10).await.unwrap().pairs, [(idle, 1_000_000)]);
    assert_eq!(link.registry.holdings(node, 10).await.unwrap().members, []);
    let holder = link.registry.look_up(held).await.unwrap().unwrap().holder;
    link.registry.end(held, fence, holder, &[], &keep).await.unwrap();
    assert!((1..=90_000).contains(&ttl(held, "log")));
    let keys = ask(&["KEYS", "*"]);
    assert!(keys.lines().all(|key| key.starts_with("mine:{")), "{keys}");
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

/// A leaving was acknowledged, and is taken back by the fail-over of the primary that took it. The list of what a
/// node holds may be at another one.
#[tokio::test]
async fn what_a_fail_over_brings_back_is_still_noted() {
    let cluster = Cluster::start().await;
    let ([a, ..], node) = (&cluster.nodes, NodeId::fresh());
    let ask = |command: &[&str]| cluster.server.ask(command);
    let list = format!("sib:{{{node}}}:holds");
    let mut groups = Vec::new();
    for _ in 0..2 {
        let pair = PairId::fresh();
        let (group, member) = (Group::Siblings(pair), Member { id: pair.uuid(), node, value: Bytes::new() });
        a.registry.join(&group, member.clone(), Bytes::new(), None, None).await.unwrap().unwrap();
        let members = format!("sib:{{{pair}}}:members");
        ask(&["COPY", &members, "before", "REPLACE"]);
        a.registry.leave(&group, &member, None).await.unwrap().unwrap();
        groups.push((group, member, members));
    }
    let (group, member, members) = groups.pop().unwrap();
    ask(&["COPY", "before", &members]);
    until(async || ask(&["HLEN", &list]) == "1", "the note of what has not come back to go").await;
    assert_eq!(a.registry.holdings(node, 9).await.unwrap().members, [(group.clone(), member.clone())]);
    a.registry.leave(&group, &member, None).await.unwrap().unwrap();
    until(async || ask(&["EXISTS", &list]) == "0", "the other note to go").await;
    cluster.end().await;
}

/// The list of all rules is in another slot than they are: it may have entries too many, but not for long.
#[tokio::test]
async fn the_list_of_rules_is_weeded() {
    let cluster = Cluster::start().await;
    let [a, b, _] = &cluster.nodes;
    let list = "sib:{rooms}:rules";
    let (room, node): (RoomName, _) = ("z".parse().unwrap(), NodeId::fresh());
    let rule = |version| Some(Rule { version, value: number(version) });
    let lay_down = async |before, rule| a.registry.lay_down(&room, before, rule, None).await.unwrap();
    let listed = async |limit| {
        let rules = b.registry.rules(None, limit).await.unwrap();
        rules.into_iter().map(|(room, rule)| (room.to_string(), rule.version)).collect::<Vec<_>>()
    };
    // Without the times.
    let entries = || {
        let all = cluster.server.ask(&["ZRANGE", list, "0", "-1"]);
        all.lines().map(|entry| entry.rsplit_once(' ').unwrap().0.to_owned()).collect::<Vec<_>>()
    };
    let add = |entries: &[String]| {
        for some in entries.chunks(500) {
            let pairs = some.iter().flat_map(|entry| ["0", entry]);
            cluster.server.ask(&["ZADD", list].into_iter().chain(pairs).collect::<Vec<_>>());
        }
    };
    assert!(lay_down(0, rule(1)).await);
    assert_eq!(cluster.server.ask(&["PTTL", "sib:{room/z}:rule"]), "-1", "a rule does not expire");
    assert_eq!(entries(), ["z 1"]);
    add(&(0..2_500).map(|n| format!("r{n} 7 0")).collect::<Vec<_>>());
    let now = cluster.server.ask(&["TIME"]).lines().next().unwrap().to_owned();
    add(&["not an entry".to_owned(), "z 11 0".to_owned(), format!("young 7 {now}")]);
    assert_eq!(listed(1).await, [("z".to_owned(), 1)], "however many entries come before it");
    assert_eq!(entries(), ["not an", "young 7", "z 1", "z 11"], "what comes behind is not looked at");
    assert_eq!(listed(9).await, [("z".to_owned(), 1)]);
    assert_eq!(entries(), ["not an", "young 7", "z 1"], "what is young may be on its way");
    cluster.server.ask(&["DEL", list]);

    // Whoever lays a rule down again has it listed again; a version of many begins as another does.
    for (before, new, taken, left) in [
        (0, rule(1), true, "z 1"),
        (9, rule(11), false, "z 1"),
        (9, None, false, "z 1"),
        (1, rule(11), true, "z 11"),
        (11, rule(1), true, "z 1"),
    ] {
        assert_eq!(lay_down(before, new).await, taken);
        assert_eq!(entries(), [left]);
    }
    add(&["z 1 0".to_owned()]);
    assert_eq!(listed(9).await, [("z".to_owned(), 1)], "listed once, with two entries");
    assert!(lay_down(1, None).await);
    assert!(!lay_down(2, rule(3)).await);
    // Nor does a member that was refused leave anything.
    let member = Member { id: PairId::fresh().uuid(), node, value: Bytes::new() };
    let joined = a.registry.join(&Group::Room(room.clone()), member, Bytes::new(), Some(0), None).await.unwrap();
    assert_eq!(joined, None);
    until(async || cluster.server.ask(&["KEYS", "*"]).is_empty(), "nothing to be left").await;
    cluster.end().await;
}
