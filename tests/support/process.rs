//! Signals to processes.

use std::fs;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Sends a signal by name, such as `TERM`. `STOP` has stopped every thread when this returns: until each has noticed,
/// which takes a while on a busy machine, the process goes on.
pub fn signal(child: &Child, name: &str) {
    let pid = child.id();
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().expect("kill runs");
    assert!(sent.success(), "the process was already gone at SIG{name}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while name == "STOP" && !is_stopped(pid) {
        assert!(Instant::now() < deadline, "the process still runs after SIGSTOP");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_stopped(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives").flatten();
    threads.map(|thread| fs::read_to_string(thread.path().join("stat")).unwrap_or_default()).all(|stat| {
        // Behind the name in parentheses.
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    })
}
