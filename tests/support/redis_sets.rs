//! Real Redis set-ups that fail over: a primary with replicas under Sentinels, and a Redis Cluster.
//!
//! Every process has its own port and directory, and ends with the value that started it. Nothing here sleeps for a
//! time: every step waits until Redis itself says that it has come about.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::process::signal;

/// Redis gives up a planned fail-over that has not come to pass after 5 s.
const GIVEN_UP: Duration = Duration::from_secs(6);

/// How long a set-up may take to start, or to be whole again.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the Sentinels call the primary that they watch.
const SERVICE: &str = "main";
/// How long a member of a Redis Cluster is silent before the others take it for dead, in milliseconds.
const NODE_TIMEOUT: &str = "1000";

/// One process of a set-up.
pub struct Member {
    child: Child,
    args: Vec<String>,
    pub port: u16,
    stopped: bool,
}

impl Member {
    fn spawn(port: u16, args: Vec<String>) -> Self {
        Self { child: launch(&args), args, port, stopped: false }
    }

    /// What `redis-cli` prints for a command; nothing when nobody answers.
    pub fn ask(&self, command: &[&str]) -> String {
        // A stopped process would keep redis-cli waiting for ever.
        if self.stopped {
            return String::new();
        }
        let port = self.port.to_string();
        let cli = Command::new("timeout").args(["5", "redis-cli", "-p", &port]).args(command).output();
        let cli = cli.expect("redis-cli is part of the package `redis-tools`");
        String::from_utf8_lossy(&cli.stdout).replace('\r', "").trim().to_owned()
    }

    fn answers(&self) -> bool {
        self.ask(&["PING"]) == "PONG"
    }

    /// One field of INFO.
    pub fn info(&self, section: &str, field: &str) -> String {
        let text = self.ask(&["INFO", section]);
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_default().to_owned()
    }

    pub fn is_primary(&self) -> bool {
        self.ask(&["ROLE"]).lines().next() == Some("master")
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.stopped = false;
    }

    /// It keeps its connections and says nothing.
    pub fn stop(&mut self) {
        signal(&self.child, "STOP");
        self.stopped = true;
    }

    /// It goes on as if no time had passed.
    pub fn cont(&mut self) {
        signal(&self.child, "CONT");
        self.stopped = false;
    }

    /// Starts it again on the same port and in the same directory; a process that still runs is killed first.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = launch(&self.args);
        eventually("a restarted process answers", || self.answers()).await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

fn launch(args: &[String]) -> Child {
    let quiet =
        |command: &mut Command| command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    quiet(Command::new("redis-server").args(args)).expect("redis-server runs; it is the package `redis-server`")
}

/// Ports that are free now, all different. They are none of those that systems give to connections: one of these could
/// be taken before a server listens, or while it is down.
pub fn free_ports(count: usize) -> Vec<u16> {
    // Held until all are found: a port that is let go could be found twice.
    let free = || TcpListener::bind(("127.0.0.1", rand::random_range(10_000..32_000))).ok();
    let held: Vec<_> = std::iter::repeat_with(free).take(10_000).flatten().take(count).collect();
    assert_eq!(held.len(), count, "free ports");
    held.iter().map(|probe| probe.local_addr().expect("a bound address").port()).collect()
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// Arguments of a server that keeps nothing on disk and replicates at once.
fn server_args(port: u16, dir: &TempDir) -> Vec<String> {
    let (port, home) = (port.to_string(), dir.path().join(port.to_string()));
    std::fs::create_dir_all(&home).expect("a directory for a server");
    let home = home.to_str().expect("temporary directories have plain names").to_owned();
    let mut args =
        owned(&["--port", &port, "--bind", "127.0.0.1", "--dir", &home, "--save", "", "--appendonly", "no"]);
    args.extend(owned(&["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]));
    // A test that loses a primary for a moment must not make its replicas copy everything for it.
    args.extend(owned(&["--repl-backlog-size", "32mb", "--repl-ping-replica-period", "1"]));
    args
}

/// Polls until `holds`; panics with `what` when patience runs out.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "gave up waiting until {what} after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// One primary, two replicas, three Sentinels.
pub struct Sentinels {
    /// The servers with data: whoever is primary at the moment, and its replicas.
    pub servers: Vec<Member>,
    /// The Sentinels.
    pub watchers: Vec<Member>,
    _dir: TempDir,
}

impl Sentinels {
    /// Starts all six and waits until they are whole. A server that is silent for `down_after` is taken for dead.
    pub async fn start(down_after: Duration) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let ports = free_ports(6);
        let primary = ports[0].to_string();
        let servers: Vec<_> = (0..3)
            .map(|index| {
                let mut args = server_args(ports[index], &dir);
                if index > 0 {
                    args.extend(owned(&["--replicaof", "127.0.0.1", &primary]));
                }
                Member::spawn(ports[index], args)
            })
            .collect();
        eventually("all servers answer", || servers.iter().all(Member::answers)).await;
        let watchers: Vec<_> =
            ports[3..].iter().map(|port| Self::watcher(*port, &primary, down_after, &dir)).collect();
        let set = Self { servers, watchers, _dir: dir };
        for watcher in &set.watchers {
            eventually("a Sentinel answers", || watcher.answers()).await;
            // Or it would learn of a replica that is back only ten seconds later. What elections take is as ever.
            watcher.ask(&["SENTINEL", "DEBUG", "INFO-PERIOD", "1000"]);
        }
        set.whole().await;
        set
    }

    fn watcher(port: u16, primary: &str, down_after: Duration, dir: &TempDir) -> Member {
        let home = dir.path().join(port.to_string());
        std::fs::create_dir_all(&home).expect("a directory for a Sentinel");
        let file = home.join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {SERVICE} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {SERVICE} {}\nsentinel failover-timeout {SERVICE} 5000\n\
             sentinel parallel-syncs {SERVICE} 2\n",
            home.display(),
            down_after.as_millis()
        );
        std::fs::write(&file, text).expect("a file for a Sentinel");
        Member::spawn(port, owned(&[file.to_str().expect("plain names"), "--sentinel"]))
    }

    /// The `--broker` address of this set-up.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.watchers.iter().map(|watcher| format!("127.0.0.1:{}", watcher.port)).collect();
        format!("redis-sentinel://{}/{SERVICE}", hosts.join(","))
    }

    /// Index of the server that most Sentinels name as primary.
    pub fn primary(&self) -> usize {
        let named = |index: usize| self.views().iter().filter(|port| **port == self.servers[index].port).count();
        (0..self.servers.len()).max_by_key(|index| named(*index)).expect("there are servers")
    }

    /// What each Sentinel that answers takes for the primary's port.
    fn views(&self) -> Vec<u16> {
        let view = |watcher: &Member| {
            let said = watcher.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]);
            said.lines().nth(1).and_then(|port| port.parse().ok())
        };
        self.watchers.iter().filter_map(view).collect()
    }

    pub fn kill(&mut self, index: usize) {
        self.servers[index].kill();
    }

    pub fn stop(&mut self, index: usize) {
        self.servers[index].stop();
    }

    pub fn cont(&mut self, index: usize) {
        self.servers[index].cont();
    }

    pub async fn restart(&mut self, index: usize) {
        self.servers[index].restart().await;
    }

    /// A planned fail-over; returns the index of the new primary as soon as a Sentinel names it.
    pub async fn fail_over(&self) -> usize {
        let (before, watcher) = (self.primary(), &self.watchers[0]);
        let port = self.servers[before].port.to_string();
        eventually("Sentinel fails over", || {
            // It gives a fail-over up that takes it too long, and says nothing of it: then it is told again.
            let named = watcher.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE]).ends_with(&port);
            let at_work = watcher.ask(&["SENTINEL", "MASTER", SERVICE]).contains("failover_in_progress");
            if named && !at_work {
                watcher.ask(&["SENTINEL", "FAILOVER", SERVICE]);
            }
            !named && !at_work
        })
        .await;
        self.elected(before).await
    }

    /// Waits until most Sentinels name another primary than `before`, and it is one.
    pub async fn elected(&self, before: usize) -> usize {
        let mut now = before;
        eventually("another primary is elected", || {
            now = self.primary();
            let named = self.views().iter().filter(|port| **port == self.servers[now].port).count();
            now != before && named * 2 > self.watchers.len() && self.servers[now].is_primary()
        })
        .await;
        now
    }

    /// Waits until there is one primary, everyone replicates it, and every Sentinel knows all that.
    pub async fn whole(&self) {
        eventually("the Sentinels' set-up is whole", || {
            let primary = &self.servers[self.primary()];
            let follows = |server: &Member| {
                server.port == primary.port
                    || (server.info("replication", "master_port") == primary.port.to_string()
                        && server.info("replication", "master_link_status") == "up")
            };
            let knows = |watcher: &Member| {
                let of = format!("{SERVICE},status=ok,address=127.0.0.1:{},slaves=2,sentinels=3", primary.port);
                watcher.ask(&["INFO", "sentinel"]).contains(&of)
                    && watcher.ask(&["SENTINEL", "CKQUORUM", SERVICE]).starts_with("OK")
                    && !watcher.ask(&["SENTINEL", "REPLICAS", SERVICE]).contains("_down")
                    && !watcher.ask(&["SENTINEL", "MASTER", SERVICE]).contains("failover_in_progress")
            };
            primary.is_primary()
                && primary.info("replication", "connected_slaves") == "2"
                && self.servers.iter().all(follows)
                && self.watchers.iter().all(knows)
        })
        .await;
    }
}

/// Three primaries with a replica each, in one Redis Cluster.
pub struct RedisCluster {
    /// Members 0, 1 and 2 begin as primaries, 3, 4 and 5 as their replicas.
    pub members: Vec<Member>,
    _dir: TempDir,
}

impl RedisCluster {
    /// Starts all six, makes them a cluster, and waits until it is whole.
    pub async fn start() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let ports = free_ports(12);
        let members: Vec<_> = (0..6)
            .map(|index| {
                let (port, bus) = (ports[index], ports[index + 6].to_string());
                let mut args = server_args(port, &dir);
                // Said explicitly: the default bus port is 10 000 above, and may be out of range or taken.
                args.extend(owned(&["--cluster-enabled", "yes", "--cluster-port", &bus]));
                args.extend(owned(&["--cluster-node-timeout", NODE_TIMEOUT, "--cluster-config-file", "nodes.conf"]));
                // A replica stands for election however long it has heard nothing of its primary.
                args.extend(owned(&["--cluster-replica-validity-factor", "0"]));
                Member::spawn(port, args)
            })
            .collect();
        eventually("all members answer", || members.iter().all(Member::answers)).await;
        let set = Self { members, _dir: dir };
        for (index, slots) in [["0", "5460"], ["5461", "10922"], ["10923", "16383"]].iter().enumerate() {
            set.must(index, &["CLUSTER", "ADDSLOTSRANGE", slots[0], slots[1]]);
        }
        for index in 0..6 {
            set.must(index, &["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
        }
        for index in 1..6 {
            let (port, bus) = (ports[index].to_string(), ports[index + 6].to_string());
            set.must(0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]);
        }
        let met = |member: &Member| member.ask(&["CLUSTER", "NODES"]).matches(" connected").count() == 6;
        eventually("all members have met", || set.members.iter().all(met)).await;
        for index in 3..6 {
            let primary = set.id(index - 3);
            // It may not have heard yet that this one is a primary.
            eventually("a member becomes a replica", || {
                set.members[index].ask(&["CLUSTER", "REPLICATE", &primary]) == "OK"
            })
            .await;
        }
        set.whole().await;
        set
    }

    fn must(&self, index: usize, command: &[&str]) {
        let said = self.members[index].ask(command);
        assert_eq!(said, "OK", "{command:?}");
    }

    /// How the cluster calls a member.
    pub fn id(&self, index: usize) -> String {
        self.members[index].ask(&["CLUSTER", "MYID"])
    }

    /// The `--broker` address of this set-up.
    pub fn url(&self) -> String {
        let hosts: Vec<_> = self.members.iter().map(|member| format!("127.0.0.1:{}", member.port)).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    /// The slot of a key or a channel.
    pub fn slot(&self, key: &str) -> u16 {
        let mut said = self.members.iter().map(|member| member.ask(&["CLUSTER", "KEYSLOT", key]));
        said.find_map(|slot| slot.parse().ok()).expect("some member answers")
    }

    /// Who owns a slot, as most of those that answer see it.
    pub fn primary_of_slot(&self, slot: u16) -> usize {
        let mut votes = vec![0; self.members.len()];
        for member in &self.members {
            let view = member.ask(&["CLUSTER", "NODES"]);
            let owner = view.lines().find(|line| owns(line, slot)).and_then(port_of);
            if let Some(index) = self.members.iter().position(|other| Some(other.port) == owner) {
                votes[index] += 1;
            }
        }
        (0..votes.len()).max_by_key(|index| votes[*index]).expect("there are members")
    }

    /// A replica of `primary` that answers.
    pub fn replica_of(&self, primary: usize) -> usize {
        let port = self.members[primary].port.to_string();
        let replicates = |member: &Member| member.info("replication", "master_port") == port;
        self.members.iter().position(replicates).expect("every primary has a replica")
    }

    pub fn kill(&mut self, index: usize) {
        self.members[index].kill();
    }

    pub fn stop(&mut self, index: usize) {
        self.members[index].stop();
    }

    pub fn cont(&mut self, index: usize) {
        self.members[index].cont();
    }

    pub async fn restart(&mut self, index: usize) {
        self.members[index].restart().await;
    }

    /// A planned fail-over of `primary` to its replica, whose index is returned once most members agree.
    pub async fn fail_over(&self, primary: usize) -> usize {
        let (replica, slot) = (self.replica_of(primary), self.a_slot_of(primary));
        let mut ordered: Option<Instant> = None;
        eventually("the replica has taken over", || {
            // Redis gives a fail-over up that it could not begin, and says nothing of it.
            if ordered.is_none_or(|at| at.elapsed() > GIVEN_UP) {
                self.members[replica].ask(&["CLUSTER", "FAILOVER"]);
                ordered = Some(Instant::now());
            }
            self.primary_of_slot(slot) == replica
        })
        .await;
        replica
    }

    /// Waits until most members that answer name another owner of `slot` than `before`.
    pub async fn elected(&self, slot: u16, before: usize) -> usize {
        let mut now = before;
        eventually("another primary is elected", || {
            now = self.primary_of_slot(slot);
            now != before
        })
        .await;
        now
    }

    /// Any slot that `primary` owns.
    pub fn a_slot_of(&self, primary: usize) -> u16 {
        let view = self.members[primary].ask(&["CLUSTER", "NODES"]);
        let own = view.lines().find(|line| line.contains("myself")).expect("a member knows itself").to_owned();
        ranges(&own).next().expect("a primary owns slots").0
    }

    /// Gives one slot with all its keys to another primary, while it is in use.
    pub async fn migrate(&self, slot: u16, to: usize) {
        let from = self.primary_of_slot(slot);
        let (slot, from_id, to_id) = (slot.to_string(), self.id(from), self.id(to));
        let target = self.members[to].port.to_string();
        self.must(to, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]);
        self.must(from, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]);
        loop {
            let keys = self.members[from].ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]);
            if keys.is_empty() {
                break;
            }
            let mut command = vec!["MIGRATE", "127.0.0.1", &target, "", "0", "5000", "REPLACE", "KEYS"];
            command.extend(keys.lines());
            let said = self.members[from].ask(&command);
            assert!(said == "OK" || said == "NOKEY", "{said}");
        }
        self.must(to, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        self.must(from, &["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        for index in (0..self.members.len()).filter(|index| self.members[*index].is_primary()) {
            self.members[index].ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]);
        }
        let slot: u16 = slot.parse().expect("it was a number");
        let agrees = |member: &Member| {
            let view = member.ask(&["CLUSTER", "NODES"]);
            view.lines().find(|line| owns(line, slot)).and_then(port_of) == Some(self.members[to].port)
        };
        eventually("all members know the new owner", || self.members.iter().all(agrees)).await;
    }

    /// Waits until all members run and agree, all slots are served, and every primary has a replica in step.
    pub async fn whole(&self) {
        eventually("the cluster is whole", || {
            let fine = |member: &Member| {
                let view = member.ask(&["CLUSTER", "NODES"]);
                let role = |word: &str| view.lines().filter(|line| line.contains(word)).count();
                member.ask(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
                    && view.matches(" connected").count() == 6
                    && !view.contains("fail")
                    && (role("master"), role("slave")) == (3, 3)
            };
            let in_step = |member: &Member| {
                let (links, followers) = (
                    member.info("replication", "master_link_status"),
                    member.info("replication", "connected_slaves"),
                );
                links == "up" || followers == "1"
            };
            self.members.iter().all(fine) && self.members.iter().all(in_step)
        })
        .await;
    }
}

/// The ranges of slots in a line of CLUSTER NODES; a slot on its way is no range.
fn ranges(line: &str) -> impl Iterator<Item = (u16, u16)> + '_ {
    line.split(' ').skip(8).filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some((first.parse().ok()?, last.parse().ok()?))
    })
}

fn owns(line: &str, slot: u16) -> bool {
    ranges(line).any(|(first, last)| (first..=last).contains(&slot))
}

fn port_of(line: &str) -> Option<u16> {
    line.split(' ').nth(1)?.split('@').next()?.rsplit(':').next()?.parse().ok()
}
