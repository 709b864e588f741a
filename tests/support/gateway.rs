//! Gateway nodes as processes, alone or as a cluster.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Redis, Reply, eventually, http, process::signal};

/// The bearer of the admin routes on every node started here.
pub const ADMIN_KEY: &str = "an-admin-key-for-acceptance-tests-only";
const SECRET: &str = "a-ticket-secret-for-acceptance-tests-only-0123456789";

/// Environment settings of a node; later ones win.
#[derive(Clone, Default)]
pub struct Settings {
    set: Vec<(String, String)>,
}

impl Settings {
    /// A node of a cluster, with keys of its own, that lets anyone in.
    pub fn new() -> Self {
        Self::bare()
            .set("SECRET", SECRET)
            .set("ADMIN_KEY", ADMIN_KEY)
            .set("DEFAULT_PUBLIC", "on")
            .set("ANONYMOUS", "on")
            .set("DRAIN_SECONDS", 5)
            .set("LOG", "info")
    }

    /// Nothing configured, which makes a development server.
    pub fn bare() -> Self {
        Self::default()
    }

    /// Sets `SIBLING_<name>`.
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.set.push((format!("SIBLING_{name}"), value.to_string()));
        self
    }

    /// Has the allocator not ask for huge pages: a few of them more or less would be more than many sockets.
    pub fn small_pages(mut self) -> Self {
        self.set.push(("MIMALLOC_ALLOW_THP".into(), "0".into()));
        self
    }
}

/// One node process, killed when dropped.
pub struct Gateway {
    child: Child,
    pub addr: SocketAddr,
    output: Arc<Mutex<Vec<String>>>,
}

impl Gateway {
    /// Starts a node and waits until it is ready.
    pub async fn start(broker: &str, settings: &Settings) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sibling"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--broker", broker]);
        for (name, _) in std::env::vars() {
            if name.starts_with("SIBLING_") {
                command.env_remove(name);
            }
        }
        let child = command
            .envs(settings.set.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the gateway's binary runs");
        Self::watch(child).await
    }

    async fn watch(mut child: Child) -> Self {
        let output = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().expect("a piped stdout"), &output);
        collect(child.stderr.take().expect("a piped stderr"), &output);
        // From here on a failed start must not leave the process behind.
        let mut node = Self { child, addr: SocketAddr::from(([127, 0, 0, 1], 0)), output };
        node.addr = eventually("the node prints where it listens", async || {
            if let Some(status) = node.child.try_wait().expect("a child to wait for") {
                panic!("the node ended before it listened: {status}\n{}", node.tail());
            }
            let lines = node.output.lock().expect("no panic under the lock");
            lines.iter().find_map(|line| {
                let at = line.split("listening on ").nth(1)?;
                at.split_whitespace().next()?.parse().ok()
            })
        })
        .await;
        node.until_ready().await;
        node
    }

    /// Waits until it takes client sockets: it does not when it starts, and while it settles a lease that it lost.
    pub async fn until_ready(&self) {
        eventually("the node is ready", async || (self.get("/readyz").await.status == 200).then_some(())).await;
    }

    /// An HTTP request without credentials.
    pub async fn get(&self, path: &str) -> Reply {
        http::send(self.addr, "GET", path, &[], None).await
    }

    /// An HTTP request with a bearer.
    pub async fn ask(&self, method: &str, path: &str, bearer: &str, body: Option<&Value>) -> Reply {
        let bearer = format!("Bearer {bearer}");
        let headers = [("Authorization", bearer.as_str())];
        http::send(self.addr, method, path, &headers, body).await
    }

    /// Any HTTP request.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&Value>) -> Reply {
        http::send(self.addr, method, path, headers, body).await
    }

    /// Sends a signal by name, such as `TERM` or `STOP`.
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// `kill -9`: no goodbye to anyone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the process to end by itself.
    pub async fn exit(&mut self, limit: Duration) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child to wait for") {
                return status;
            }
            assert!(started.elapsed() < limit, "the node still runs after {limit:?}\n{}", self.tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident memory in bytes, as the kernel counts it.
    pub fn resident_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("a live process");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("a VmRSS line") * 1024
    }

    /// Everything the node has printed so far.
    pub fn printed(&self) -> String {
        self.output.lock().expect("no panic under the lock").join("\n")
    }

    fn tail(&self) -> String {
        let lines = self.output.lock().expect("no panic under the lock");
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- node {} printed last:\n{}\n---", self.addr, self.tail());
        }
    }
}

fn collect(from: impl Read + Send + 'static, into: &Arc<Mutex<Vec<String>>>) {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().expect("no panic under the lock").push(line);
        }
    });
}

/// Which broker a scenario runs over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// One node, which is all that the embedded broker can serve.
    Memory,
    /// Three nodes over a Redis of their own.
    Redis,
}

/// Nodes that share one broker.
pub struct Cluster {
    // Nodes go before their broker does.
    nodes: Vec<Gateway>,
    pub redis: Option<Redis>,
    broker: String,
    settings: Settings,
}

impl Cluster {
    pub async fn start(kind: Kind, settings: &Settings) -> Self {
        match kind {
            Kind::Memory => Self::memory(settings).await,
            Kind::Redis => Self::redis(3, settings).await,
        }
    }

    pub async fn memory(settings: &Settings) -> Self {
        Self::of(1, "memory".to_owned(), None, settings).await
    }

    pub async fn redis(nodes: usize, settings: &Settings) -> Self {
        let redis = Redis::start().await;
        Self::of(nodes, redis.url(), Some(redis), settings).await
    }

    async fn of(nodes: usize, broker: String, redis: Option<Redis>, settings: &Settings) -> Self {
        let starts = (0..nodes).map(|_| Gateway::start(&broker, settings));
        let nodes = futures_util::future::join_all(starts).await;
        let settings = settings.clone();
        Self { nodes, redis, broker, settings }
    }

    /// Node `index`, wrapped around: a scenario written for three nodes also runs on one.
    pub fn node(&self, index: usize) -> &Gateway {
        &self.nodes[index % self.nodes.len()]
    }

    pub fn node_mut(&mut self, index: usize) -> &mut Gateway {
        let count = self.nodes.len();
        &mut self.nodes[index % count]
    }

    pub fn size(&self) -> usize {
        self.nodes.len()
    }

    /// Puts a new node in the place of one that is gone.
    pub async fn restart(&mut self, index: usize) {
        self.nodes[index] = Gateway::start(&self.broker, &self.settings).await;
    }

    /// Adds one more node with the settings of the others.
    pub async fn join(&mut self) -> &Gateway {
        let node = Gateway::start(&self.broker, &self.settings).await;
        self.nodes.push(node);
        self.nodes.last().expect("just pushed")
    }
}
