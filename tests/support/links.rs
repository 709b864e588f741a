//! Links to a broker on a Redis of their own, without a gateway.

#![allow(dead_code, reason = "each test binary compiles this module and uses its own part of it")]

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sibling_sockets::{
    broker::{conformance::Nodes, redis},
    protocol::NodeId,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::process::signal;

/// A Redis of our own, on a free port, that ends with the test.
pub struct Server {
    child: Child,
    pub port: u16,
    home: tempfile::TempDir,
}

impl Server {
    pub async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        // The port may be taken between our asking and Redis' listening: then another is tried.
        for _ in 0..10 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let mut server = Self { child: Self::spawn(port, &home), port, home: tempfile::tempdir().unwrap() };
            if server.answers().await {
                server.home = home;
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    fn spawn(port: u16, home: &tempfile::TempDir) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--dir".as_ref(), home.path().as_os_str()])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    async fn answers(&mut self) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && self.child.try_wait().unwrap().is_none() {
            if self.ask(&["PING"]) == "PONG" {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn ask(&self, command: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(command).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub async fn start_again(&mut self) {
        self.child = Self::spawn(self.port, &self.home);
        assert!(self.answers().await);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Three nodes of one Redis.
pub struct Cluster {
    pub nodes: Nodes,
    pub server: Server,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Cluster {
    pub async fn start() -> Self {
        let server = Server::start().await;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let link = async || redis::connect(&server.url(), NodeId::fresh(), "sib:", &tasks, &stop).await.unwrap();
        let nodes = [link().await, link().await, link().await];
        Self { nodes, server, tasks, stop }
    }

    /// All tasks end when they are told to.
    pub async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await.expect("the tasks end in time");
    }
}
