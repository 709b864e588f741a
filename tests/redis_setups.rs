//! Redis under Sentinel and Redis Cluster: the broker's contract, and what fail-overs do to live traffic and
//! histories. Each fault is made several times over, while numbered payloads and entries are under way.

#[macro_use]
#[path = "support/clauses.rs"]
mod clauses;
#[path = "support/process.rs"]
mod process;
#[path = "support/redis_sets.rs"]
mod redis_sets;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use redis_sets::{RedisCluster, Sentinels};
use sibling_sockets::{
    broker::{
        Broker, BrokerError, Deliveries, Delivery, Draft, Keep, Link,
        conformance::{self, all_of, append_one, assert_chain},
        redis,
    },
    protocol::{NodeId, PairId, Position, Topic},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How often each fault is made.
const ROUNDS: usize = 5;
/// How long live traffic may take to be whole again after a fault.
const RECOVERY: Duration = Duration::from_secs(20);
/// How soon Sentinels take a silent server for dead.
const DOWN_AFTER: Duration = Duration::from_secs(1);
/// How long a broker waits for an answer before it says that there is none.
const ANSWER: Duration = Duration::from_secs(2);
/// Keeps all that is appended.
const ALL: Keep = Keep { events: 1_000_000, age: Duration::from_secs(3_600), most: 1_000_000 };

/// Everything that is connected to one set-up.
struct Nodes {
    url: String,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Nodes {
    fn of(url: String) -> Self {
        Self { url, tasks: TaskTracker::new(), stop: CancellationToken::new() }
    }

    async fn link(&self, prefix: &str) -> Link {
        redis::connect(&self.url, NodeId::fresh(), prefix, &self.tasks, &self.stop).await.unwrap()
    }

    /// All tasks end when they are told to.
    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(10), self.tasks.wait()).await.expect("the tasks end in time");
    }
}

macro_rules! keep_each_clause {
    ($($clause:ident)*) => {
        async fn keep_the_contract(url: String) {
            // A set-up takes long to start: so the clauses share one, each with nodes and keys of its own.
            $({
                println!("{}", stringify!($clause));
                let nodes = Nodes::of(url.clone());
                let prefix = concat!(stringify!($clause), ":");
                let mut three = [nodes.link(prefix).await, nodes.link(prefix).await, nodes.link(prefix).await];
                conformance::$clause(&mut three).await;
                nodes.end().await;
            })*
        }
    };
}
each_clause!(keep_each_clause);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_keep_the_contract() {
    let set = Sentinels::start(DOWN_AFTER).await;
    keep_the_contract(set.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_the_contract() {
    let set = RedisCluster::start().await;
    keep_the_contract(set.url()).await;
}

/// Numbers, each said once.
#[derive(Default)]
struct Counter(AtomicU64);

impl Counter {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What one node has heard.
#[derive(Default)]
struct Heard {
    /// The last number of each topic and sender.
    numbers: HashMap<(Topic, usize), u64>,
    /// Whether the node takes the broker for lost.
    down: bool,
    downs: usize,
    losses: usize,
    /// What must not have happened.
    wrong: Vec<String>,
}

impl Heard {
    fn hear(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Down => {
                self.downs += 1;
                if std::mem::replace(&mut self.down, true) {
                    self.wrong.push("Down twice".into());
                }
            }
            Delivery::Lost => {
                self.losses += 1;
                self.down = false;
            }
            Delivery::Message(topic, payload) => {
                let text = std::str::from_utf8(&payload).unwrap();
                let (sender, number) = text.split_once(' ').unwrap();
                let (sender, number): (usize, u64) = (sender.parse().unwrap(), number.parse().unwrap());
                let before = self.numbers.insert((topic.clone(), sender), number);
                if before.is_some_and(|before| before >= number) {
                    self.wrong.push(format!("{number} after {before:?} from {sender} in {topic:?}"));
                }
            }
            // Live entries are compared with what is kept by whoever follows them: their chain is looked at there.
            Delivery::Entry(topic, entry) => {
                let number = std::str::from_utf8(&entry.payload).unwrap().parse().unwrap();
                self.numbers.insert((topic, APPENDER), number);
            }
        }
    }
}

/// Stands for whoever appends, among the senders.
const APPENDER: usize = 9;

/// Three nodes with traffic in several rooms and pairs, which lie in slots of all primaries.
struct Traffic {
    nodes: Nodes,
    brokers: Vec<Arc<dyn Broker>>,
    rooms: Vec<Topic>,
    pairs: Vec<Topic>,
    heard: Vec<Arc<Mutex<Heard>>>,
    sent: Arc<Counter>,
    /// The last number that is known to have been appended to each pair.
    acked: Arc<Mutex<HashMap<Topic, Vec<u64>>>>,
    /// Appends that were tried again: after how long, and why.
    failed: Failures,
    quiet: CancellationToken,
    senders: TaskTracker,
}

impl Traffic {
    async fn start(url: String) -> Self {
        // What a node would log, for whoever looks into a failure: RUST_LOG=sibling_sockets=debug.
        drop(tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).try_init());
        let nodes = Nodes::of(url);
        let rooms: Vec<_> = (0..6).map(|n| Topic::Room(format!("hall{n}").parse().unwrap())).collect();
        let pairs: Vec<_> = (0..4).map(|_| Topic::Pair(PairId::fresh())).collect();
        let (mut brokers, mut heard) = (Vec::new(), Vec::new());
        let senders = TaskTracker::new();
        for _ in 0..3 {
            let Link { broker, deliveries, .. } = nodes.link("sib:").await;
            for topic in rooms.iter().chain(&pairs) {
                broker.subscribe(topic).await.unwrap();
            }
            let ear = Arc::new(Mutex::new(Heard::default()));
            senders.spawn(listen(deliveries, ear.clone()));
            brokers.push(broker);
            heard.push(ear);
        }
        let (sent, failed, acked) = (Arc::new(Counter::default()), Failures::default(), Arc::default());
        let quiet = CancellationToken::new();
        let this = Self { nodes, brokers, rooms, pairs, heard, sent, acked, failed, quiet, senders };
        for sender in 0..2 {
            for room in &this.rooms {
                this.senders.spawn(publish(
                    sender,
                    this.brokers[sender].clone(),
                    room.clone(),
                    this.sent.clone(),
                    this.quiet.clone(),
                ));
            }
        }
        for pair in &this.pairs {
            this.senders.spawn(append(
                this.brokers[0].clone(),
                pair.clone(),
                this.sent.clone(),
                (this.acked.clone(), this.failed.clone()),
                this.quiet.clone(),
            ));
        }
        this.flows("at first").await;
        this
    }

    /// Waits until every node has heard something from every sender in every room and of every pair that was said
    /// after now, and takes the broker for whole.
    async fn flows(&self, what: &str) -> Duration {
        let (mark, since) = (self.sent.now(), Instant::now());
        let missing = || {
            let mut missing = Vec::new();
            for (node, heard) in self.heard.iter().enumerate() {
                let heard = heard.lock().unwrap();
                assert!(heard.wrong.is_empty(), "{what}: {:?}", heard.wrong);
                let wanted = self.rooms.iter().flat_map(|room| [(room, 0), (room, 1)]);
                for (topic, sender) in wanted.chain(self.pairs.iter().map(|pair| (pair, APPENDER))) {
                    if heard.numbers.get(&(topic.clone(), sender)).is_none_or(|number| *number < mark) {
                        missing.push(format!("node {node} of {sender} in {topic:?}"));
                    }
                }
                if heard.down {
                    missing.push(format!("node {node} is down"));
                }
            }
            missing
        };
        while !missing().is_empty() {
            assert!(since.elapsed() < RECOVERY, "{what}: after {RECOVERY:?} still missing: {:#?}", missing());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        since.elapsed()
    }

    fn downs(&self) -> Vec<usize> {
        self.heard.iter().map(|heard| heard.lock().unwrap().downs).collect()
    }

    fn losses(&self) -> Vec<usize> {
        self.heard.iter().map(|heard| heard.lock().unwrap().losses).collect()
    }

    /// Every node is told. A primary that was demoted as planned goes on publishing to those who still listen to it, so
    /// this may come after all flows again.
    async fn is_told_of_a_loss(&self, before: &[usize], what: &str) {
        let since = Instant::now();
        while !self.losses().iter().zip(before).all(|(now, before)| now > before) {
            assert!(since.elapsed() < RECOVERY, "{what}: a node is not told of the loss");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Something new can be subscribed to, and is heard, whatever the attempt during the fault said.
    async fn newcomer(&self, round: usize, what: &str) {
        let topic = Topic::Room(format!("new{round}").parse().unwrap());
        let (broker, ear) = (&self.brokers[2], &self.heard[2]);
        let since = Instant::now();
        while broker.subscribe(&topic).await.is_err() {
            assert!(since.elapsed() < RECOVERY, "{what}: can't subscribe");
        }
        let number = self.sent.next();
        self.brokers[0].publish(&topic, format!("0 {number}").into()).unwrap();
        while ear.lock().unwrap().numbers.get(&(topic.clone(), 0)) != Some(&number) {
            assert!(since.elapsed() < RECOVERY, "{what}: the newcomer hears nothing");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        broker.unsubscribe(&topic).await.unwrap();
    }

    /// Looks at the histories when nothing is on its way any more. `Some(lossless)`: whether all that was acknowledged
    /// must be there.
    async fn end(self, lossless: bool) {
        self.quiet.cancel();
        self.senders.close();
        for heard in &self.heard {
            let heard = heard.lock().unwrap();
            assert!(heard.wrong.is_empty(), "{:?}", heard.wrong);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let failed = std::mem::take(&mut *self.failed.lock().unwrap());
        println!("  {} appends were tried again", failed.len());
        let soon = failed.iter().filter(|(after, _)| *after < ANSWER).collect::<Vec<_>>();
        assert!(
            !lossless || soon.is_empty(),
            "what is refused while primaries change is sent to the next one, for as long as an answer may take: {soon:?}"
        );
        for pair in &self.pairs {
            let kept = all_of(&*self.brokers[1], pair).await;
            assert_chain(Position::START, &kept);
            let numbers: Vec<u64> =
                kept.iter().map(|entry| std::str::from_utf8(&entry.payload).unwrap().parse().unwrap()).collect();
            assert!(numbers.is_sorted_by(|one, two| one < two), "appended once, in order: {numbers:?}");
            let acked = self.acked.lock().unwrap().get(pair).cloned().unwrap_or_default();
            let lost = acked.iter().filter(|number| numbers.binary_search(number).is_err()).count();
            println!("  {} entries kept, {lost} of {} acknowledged are lost", kept.len(), acked.len());
            assert!(!lossless || lost == 0, "{lost} acknowledged entries are lost");
        }
        self.nodes.end().await;
        tokio::time::timeout(Duration::from_secs(10), self.senders.wait()).await.expect("all listeners end");
    }
}

async fn listen(mut deliveries: Deliveries, heard: Arc<Mutex<Heard>>) {
    while let Some(delivery) = deliveries.recv().await {
        heard.lock().unwrap().hear(delivery);
    }
}

async fn publish(sender: usize, broker: Arc<dyn Broker>, room: Topic, sent: Arc<Counter>, quiet: CancellationToken) {
    while !quiet.is_cancelled() {
        // Refused or not: a number is said once.
        drop(broker.publish(&room, format!("{sender} {}", sent.next()).into()));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The numbers whose appends were acknowledged, by topic.
type Acknowledged = Arc<Mutex<HashMap<Topic, Vec<u64>>>>;
/// How long each of these had taken, and why it failed.
type Failures = Arc<Mutex<Vec<(Duration, String)>>>;

/// Appends, with the same nonce again for as long as it is not known to have worked.
async fn append(
    broker: Arc<dyn Broker>,
    pair: Topic,
    sent: Arc<Counter>,
    (acked, failed): (Acknowledged, Failures),
    quiet: CancellationToken,
) {
    while !quiet.is_cancelled() {
        let (nonce, number, since) = (rand::random(), sent.next(), Instant::now());
        let draft = Draft { nonce, payload: Bytes::from(number.to_string()) };
        let mut sent_at = since;
        while let Err(error) = append_one(&*broker, &pair, draft.clone(), &ALL).await {
            assert!(matches!(error, BrokerError::Unavailable(_)), "{error:?}");
            failed.lock().unwrap().push((sent_at.elapsed(), format!("{error:?}")));
            assert!(since.elapsed() < RECOVERY + RECOVERY, "{error:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
            sent_at = Instant::now();
        }
        acked.lock().unwrap().entry(pair.clone()).or_default().push(number);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// An operator's fail-over.
    Planned,
    /// `kill -9`, and later a start with nothing.
    Kill,
    /// The primary stands still, and goes on when it has been replaced.
    Stop,
}

fn report(setup: &str, fault: Fault, times: &[(Duration, Duration)]) {
    for (elected, flows) in times {
        println!("{setup} {fault:?}: elected after {elected:.2?}, all flows {flows:.2?} later");
    }
}

async fn sentinel_fails_over(fault: Fault) {
    let mut set = Sentinels::start(DOWN_AFTER).await;
    let traffic = Traffic::start(set.url()).await;
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let what = format!("{fault:?} of Sentinel, round {round}");
        let (before, losses, since) = (set.primary(), traffic.losses(), Instant::now());
        let downs = traffic.downs();
        match fault {
            Fault::Planned => drop(set.fail_over().await),
            Fault::Kill => set.kill(before),
            Fault::Stop => set.stop(before),
        }
        set.elected(before).await;
        let elected = since.elapsed();
        times.push((elected, traffic.flows(&what).await));
        traffic.newcomer(round, &what).await;
        traffic.is_told_of_a_loss(&losses, &what).await;
        let lost = traffic.downs().iter().zip(&downs).all(|(now, before)| now > before);
        assert!(fault != Fault::Kill || lost, "{what}: a connection that is gone is told as Down, and before Lost");
        match fault {
            Fault::Planned => {}
            Fault::Kill => set.restart(before).await,
            Fault::Stop => set.cont(before),
        }
        set.whole().await;
        traffic.flows(&what).await;
    }
    traffic.end(false).await;
    report("Sentinel", fault, &times);
}

async fn cluster_fails_over(fault: Fault) {
    let mut set = RedisCluster::start().await;
    let traffic = Traffic::start(set.url()).await;
    let slot = set.slot("sib:{room/hall0}:live");
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let what = format!("{fault:?} of Cluster, round {round}");
        let (before, losses, since) = (set.primary_of_slot(slot), traffic.losses(), Instant::now());
        let downs = traffic.downs();
        match fault {
            Fault::Planned => drop(set.fail_over(before).await),
            Fault::Kill => set.kill(before),
            Fault::Stop => set.stop(before),
        }
        set.elected(slot, before).await;
        let elected = since.elapsed();
        times.push((elected, traffic.flows(&what).await));
        traffic.newcomer(round, &what).await;
        traffic.is_told_of_a_loss(&losses, &what).await;
        let lost = traffic.downs().iter().zip(&downs).all(|(now, before)| now > before);
        assert!(fault != Fault::Kill || lost, "{what}: a connection that is gone is told as Down, and before Lost");
        match fault {
            Fault::Planned => {}
            Fault::Kill => set.restart(before).await,
            Fault::Stop => set.cont(before),
        }
        set.whole().await;
        traffic.flows(&what).await;
    }
    traffic.end(fault == Fault::Planned).await;
    report("Cluster", fault, &times);
}

macro_rules! fail_overs {
    ($($name:ident $fails_over:ident $fault:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $name() {
            $fails_over(Fault::$fault).await;
        })*
    };
}

fail_overs! {
    sentinels_fail_over_as_planned sentinel_fails_over Planned
    sentinels_replace_a_killed_primary sentinel_fails_over Kill
    sentinels_replace_a_primary_that_stands_still sentinel_fails_over Stop
    a_cluster_fails_over_as_planned cluster_fails_over Planned
    a_cluster_replaces_a_killed_primary cluster_fails_over Kill
    a_cluster_replaces_a_primary_that_stands_still cluster_fails_over Stop
}

/// A slot goes from primary to primary with everything in it, while its room and its pair are in use.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn busy_slots_migrate() {
    let set = RedisCluster::start().await;
    let traffic = Traffic::start(set.url()).await;
    let Topic::Pair(pair) = &traffic.pairs[0] else { panic!("not a pair") };
    let slots = [set.slot("sib:{room/hall0}:live"), set.slot(&format!("sib:{{{pair}}}:log"))];
    for round in 0..ROUNDS {
        for slot in slots {
            let what = format!("slot {slot}, round {round}");
            let (losses, since) = (traffic.losses(), Instant::now());
            let to = (set.primary_of_slot(slot) + 1) % 3;
            set.migrate(slot, to).await;
            let migrated = since.elapsed();
            let flows = traffic.flows(&what).await;
            println!("{what}: migrated after {migrated:.2?}, all flows {flows:.2?} later");
            traffic.newcomer(round, &what).await;
            traffic.is_told_of_a_loss(&losses, &what).await;
        }
    }
    traffic.end(true).await;
}

/// When a node hears `Lost`, Redis has its subscriptions already. Red as it stands: see the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_are_in_force_before_lost_is_told() {
    drop(tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).try_init());
    let set = RedisCluster::start().await;
    let nodes = Nodes::of(set.url());
    let mut link = nodes.link("sib:").await;
    let (room, channel) = (Topic::Room("hall".parse().unwrap()), "sib:{room/hall}:live");
    link.broker.subscribe(&room).await.unwrap();
    let slot = set.slot(channel);
    for round in 0..ROUNDS {
        let primary = set.fail_over(set.primary_of_slot(slot)).await;
        let lost = tokio::time::timeout(RECOVERY, link.deliveries.recv()).await.expect("a loss is told");
        assert!(matches!(lost, Some(Delivery::Lost)), "round {round}: {lost:?}");
        let counted = set.members[primary].ask(&["PUBSUB", "SHARDNUMSUB", channel]);
        assert_eq!(counted, format!("{channel}\n1"), "round {round}");
        set.whole().await;
    }
    nodes.end().await;
}

/// Nobody is there, or nobody who is of use: that is said in time, and nothing goes on in the background.
#[tokio::test]
async fn an_unreachable_set_up_is_told_in_time() {
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for address in [mute.local_addr().unwrap(), closed] {
        for url in
            [format!("redis-sentinel://{address},{address}/main"), format!("redis-cluster://{address},{address}")]
        {
            let (tasks, stop, asked) = (TaskTracker::new(), CancellationToken::new(), Instant::now());
            let outcome = redis::connect(&url, NodeId::fresh(), "sib:", &tasks, &stop).await;
            assert!(matches!(outcome, Err(BrokerError::Unavailable(_))), "{url}");
            assert!(asked.elapsed() < Duration::from_secs(10), "{url}: {:?}", asked.elapsed());
            assert!(tasks.is_empty(), "nothing goes on in the background");
        }
    }
}
