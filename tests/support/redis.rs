//! A real `redis-server` of the test's own, on its own port and in its own directory.

use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{eventually, redis_sets::free_ports};

/// A Redis process that ends with this value.
pub struct Redis {
    child: Child,
    port: u16,
    dir: TempDir,
    /// Arguments beside the usual ones; later ones win.
    extra: Vec<String>,
}

impl Redis {
    /// Starts a server and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with arguments of its own, which it keeps over restarts.
    pub async fn start_with(extra: &[&str]) -> Self {
        let extra: Vec<String> = extra.iter().map(ToString::to_string).collect();
        let dir = TempDir::new().expect("a temporary directory");
        // Another process may take a free port before Redis binds it, so a dead start is tried again.
        for _ in 0..5 {
            let port = free_ports(1)[0];
            let mut child = spawn(port, &dir, &extra);
            if answers(&mut child, port).await {
                return Self { child, port, dir, extra };
            }
        }
        panic!("redis-server did not start; install the package `redis-server`");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The `--broker` address of this server.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Runs one `redis-cli` command and returns what it printed.
    pub fn cli(&self, args: &[&str]) -> String {
        let out = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(args)
            .output()
            .expect("redis-cli is part of the package `redis-tools`");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// Ends the server at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port; what was not saved is gone.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.dir, &self.extra);
        assert!(answers(&mut self.child, self.port).await, "redis-server did not come back on its port");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(port: u16, dir: &TempDir, extra: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(dir.path())
        .args(extra)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server runs; it is the package `redis-server`")
}

async fn answers(child: &mut Child, port: u16) -> bool {
    eventually("redis answers", async || {
        if child.try_wait().expect("a child to wait for").is_some() {
            return Some(false);
        }
        let out = Command::new("redis-cli")
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "ping"])
            .output()
            .expect("redis-cli is part of the package `redis-tools`");
        (out.stdout.starts_with(b"PONG")).then_some(true)
    })
    .await
}
