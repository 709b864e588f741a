//! The processes of a run: a broker, nodes, and between them wires where a fault cuts some.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::field::Field;
use super::wire::Wire;
use crate::support::{ADMIN_KEY, Gateway, Redis, Settings};

/// How many nodes a run has.
pub const NODES: usize = 3;
/// Short, so that faults that are longer than a lease are quick.
pub const LEASE: Duration = Duration::from_secs(2);
/// How long histories are kept, which is how long the end of a run takes.
pub const HISTORY: Duration = Duration::from_secs(15);
/// How long a command's key is remembered: longer than any command here is sent again.
pub const KEYS: Duration = Duration::from_secs(30);

/// Long, for faults that are to be shorter than a lease also on a slow machine.
pub const LONG_LEASE: Duration = Duration::from_secs(15);

fn settings(lease: Duration) -> Settings {
    Settings::new()
        .set("NODE_LEASE_SECONDS", lease.as_secs())
        .set("COMMAND_TIMEOUT_SECONDS", 3)
        .set("HISTORY_EVENTS", 16_384)
        .set("HISTORY_SECONDS", HISTORY.as_secs())
        .set("KEY_SECONDS", KEYS.as_secs())
        .set("LINGER_SECONDS", 120)
        // A pause during an outage, with large frames, is no slow client.
        .set("QUEUE_BYTES", 32 << 20)
        .set("LOG", "warn")
}

/// One run's processes. Nodes go before their broker does.
pub struct Stage {
    pub field: Arc<Field>,
    pub nodes: Vec<Gateway>,
    /// One for each node, where the run cuts wires.
    pub wires: Vec<Wire>,
    brokers: Vec<String>,
    settings: Settings,
    /// The servers that hold keys.
    pub ports: Vec<u16>,
    /// Where the broker is one server.
    pub redis: Option<Redis>,
}

impl Stage {
    /// Nodes over one Redis.
    pub async fn over(redis: Redis, lease: Duration) -> Self {
        let (brokers, ports) = (vec![redis.url(); NODES], vec![redis.port()]);
        Self::start(brokers, ports, Vec::new(), Some(redis), lease).await
    }

    /// Nodes over one Redis, each with a wire of its own to it.
    pub async fn wired(redis: Redis, lease: Duration) -> Self {
        let mut wires = Vec::new();
        for _ in 0..NODES {
            wires.push(Wire::to(([127, 0, 0, 1], redis.port()).into()).await);
        }
        let brokers = wires.iter().map(|wire| format!("redis://{}/0", wire.addr())).collect();
        let ports = vec![redis.port()];
        Self::start(brokers, ports, wires, Some(redis), lease).await
    }

    /// Nodes over something else: its address, and the ports of all its servers.
    pub async fn at(broker: String, ports: Vec<u16>) -> Self {
        Self::start(vec![broker; NODES], ports, Vec::new(), None, LEASE).await
    }

    async fn start(
        brokers: Vec<String>,
        ports: Vec<u16>,
        wires: Vec<Wire>,
        redis: Option<Redis>,
        lease: Duration,
    ) -> Self {
        let settings = settings(lease);
        let starts = brokers.iter().map(|broker| Gateway::start(broker, &settings));
        let nodes = futures_util::future::join_all(starts).await;
        let field = Arc::new(Field::default());
        for node in &nodes {
            field.add(node.addr);
        }
        Self { field, nodes, wires, brokers, settings, ports, redis }
    }

    /// Starts a new node in the place of one that is gone, on an address of its own.
    pub async fn replace(&mut self, at: usize) {
        self.nodes[at] = Gateway::start(&self.brokers[at], &self.settings).await;
        self.field.add(self.nodes[at].addr);
    }

    /// Nobody is to come to this node any more.
    pub fn retire(&self, at: usize) {
        self.field.remove(self.nodes[at].addr);
    }

    pub fn redis_mut(&mut self) -> &mut Redis {
        self.redis.as_mut().expect("over one Redis")
    }

    /// Waits until all nodes are ready and know each other as alive; the error says what is missing.
    pub async fn until_whole(&self, deadline: Instant) -> Result<(), String> {
        for node in &self.nodes {
            loop {
                let ready = node.get("/readyz").await;
                let listed = node.ask("GET", "/v1/nodes", ADMIN_KEY, None).await;
                let all = listed.status == 200 && listed.json()["nodes"].as_array().is_some_and(|n| n.len() == NODES);
                if ready.status == 200 && all {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(format!("{} is ready: {}, and lists {}", node.addr, ready.status, listed.text()));
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// Runs a command on the server that holds the keys.
    pub async fn cli(&self, words: &[&str]) -> String {
        cli(self.ports[0], words).await
    }

    /// Every key with the gateway's prefix, on any server.
    pub async fn keys(&self) -> Vec<String> {
        let mut all = Vec::new();
        for port in &self.ports {
            let said = cli(*port, &["--scan", "--pattern", "sib:*"]).await;
            all.extend(said.lines().filter(|line| line.starts_with("sib:")).map(str::to_owned));
        }
        all.sort();
        all.dedup();
        all
    }

    /// What the first server has allocated, in bytes.
    pub async fn used_memory(&self) -> u64 {
        let said = self.cli(&["info", "memory"]).await;
        let line = said.lines().find_map(|line| line.trim().strip_prefix("used_memory:"));
        line.and_then(|bytes| bytes.parse().ok()).expect("Redis tells its memory")
    }
}

/// Runs `redis-cli` against one server. What blocks the server blocks only this future.
pub async fn cli(port: u16, words: &[&str]) -> String {
    let run = Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", &port.to_string()])
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let out = tokio::time::timeout(Duration::from_secs(60), run).await;
    let out = out.expect("redis-cli ends").expect("redis-cli is part of the package `redis-tools`");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
