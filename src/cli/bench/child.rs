//! The processes that are measured: started, asked what they used, and stopped.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, ErrorKind},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use super::{Outcome, resp::Resp};

/// What the allocator of a process asks the kernel for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pages {
    /// What it asks for by itself, huge ones where there are.
    Usual,
    /// No huge ones: 2 MiB more or less would be a KiB for each of 2 000 sockets.
    Small,
}

/// A child process that listens. Dropping it stops it.
pub(super) struct Process {
    child: Child,
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// Kept open: a program whose standard output is gone fails when it prints.
    _stdout: Option<BufReader<ChildStdout>>,
}

impl Process {
    /// A gateway that says little, takes everyone, and disturbs no measurement with pings.
    pub(super) fn gateway(broker: &str, pages: Pages) -> Outcome<Self> {
        Self::gateway_with(broker, pages, &[])
    }

    /// The same with more settings.
    pub(super) fn gateway_with(broker: &str, pages: Pages, more: &[&str]) -> Outcome<Self> {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--default-public", "on", "--log", "error"];
        let secret = ["--secret", "the key of a benchmark, which protects nothing"];
        let settings = ["--ping-seconds", "3600", "--broker", broker];
        Self::own(&[&arguments[..], &secret, &settings, more].concat(), pages)
    }

    /// The bare program.
    pub(super) fn floor(payload: usize, pages: Pages) -> Outcome<Self> {
        Self::own(&["bench", "--floor", &payload.to_string()], pages)
    }

    /// Client sockets at a gateway that do nothing, in so many rooms.
    pub(super) fn crowd(gateway: SocketAddr, sockets: u32, rooms: u32) -> Outcome<Self> {
        let (gateway, sockets, rooms) = (gateway.to_string(), sockets.to_string(), rooms.to_string());
        Self::own(&["bench", "--crowd-of", &gateway, "--crowd", &sockets, "--crowd-rooms", &rooms], Pages::Usual)
    }

    /// This executable with other arguments; it says in one line where it listens.
    fn own(arguments: &[&str], pages: Pages) -> Outcome<Self> {
        let failed = |why: String| format!("a process for the measurement did not start: {why}");
        let program = env::current_exe().map_err(|error| failed(error.to_string()))?;
        let mut command = Command::new(program);
        for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SIBLING_")) {
            command.env_remove(name);
        }
        if pages == Pages::Small {
            command.env("MIMALLOC_ALLOW_THP", "0");
        }
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let mut stdout = child.stdout.take().map(BufReader::new);
        let mut line = String::new();
        // What can't be read is not an address either.
        drop(stdout.as_mut().map(|out| out.read_line(&mut line)));
        let words = line.split_once("listening on ").and_then(|(_, rest)| rest.split_whitespace().next());
        match words.and_then(|address| address.parse().ok()) {
            Some(address) => Ok(Self { child, address, _stdout: stdout }),
            None => {
                stop(&mut child);
                Err(failed(format!("it said {line:?} instead of where it listens")))
            }
        }
    }

    /// A Redis that keeps nothing, if one is installed.
    pub(super) async fn redis() -> Outcome<Option<Self>> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.map_err(|error| format!("no port is free: {error}"))?;
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--port",
            &address.port().to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        let child = match command.stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("redis-server did not start: {error}")),
        };
        let server = Self { child, address, _stdout: None };
        for _ in 0..100 {
            if let Ok(mut redis) = Resp::open(address).await
                && redis.ask(&[b"PING"]).await.is_ok()
            {
                return Ok(Some(server));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err("redis-server started and did not answer within 5 s".into())
    }

    /// What tells its CPU time.
    pub(super) fn meter(&self) -> Meter {
        Meter::of([self.child.id()])
    }

    /// The memory that it has now, in bytes.
    pub(super) fn memory(&self) -> Outcome<f64> {
        // Unlike the counters in `status`, these are exact.
        let text = read(&format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let kib =
            text.lines().find_map(|line| line.strip_prefix("Rss:")?.split_whitespace().next()?.parse::<f64>().ok());
        kib.map(|kib| kib * 1_024.0).ok_or_else(|| "the kernel does not say how much memory a process has".into())
    }
}

/// Tells the CPU time of processes, which need not be ours.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Meter(Vec<u32>);

impl Meter {
    /// For the processes with these ids.
    pub(super) fn of(ids: impl IntoIterator<Item = u32>) -> Self {
        Self(ids.into_iter().collect())
    }

    /// For all of these together.
    pub(super) fn of_all<'a>(processes: impl IntoIterator<Item = &'a Process>) -> Self {
        Self::of(processes.into_iter().map(|process| process.child.id()))
    }

    /// The CPU time that they used so far, their own and the kernel's for them.
    pub(super) fn cpu(&self) -> Outcome<Duration> {
        self.0.iter().map(|id| cpu_of(&id.to_string())).sum()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

fn stop(child: &mut Child) {
    drop(child.kill());
    drop(child.wait());
}

/// The CPU time of this process, which is the load.
pub(super) fn own_cpu() -> Outcome<Duration> {
    cpu_of("self")
}

fn cpu_of(process: &str) -> Outcome<Duration> {
    let folder = format!("/proc/{process}/task");
    let mut nanoseconds = 0;
    // The counters of the whole process move in steps of 10 ms, those of its threads do not.
    for thread in fs::read_dir(&folder).map_err(|error| unreadable(&folder, &error))?.flatten() {
        // One that has just ended is gone with what it used.
        let Ok(text) = fs::read_to_string(thread.path().join("schedstat")) else { continue };
        let used = text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok());
        nanoseconds += used.ok_or("the kernel does not say how much CPU time a thread used")?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Refuses to begin what would end at the limit of open files.
pub(super) fn need_files(files: u64, instead: &str) -> Outcome<()> {
    let text = read("/proc/self/limits")?;
    let limit =
        text.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    match limit {
        Some(limit) if files > limit => Err(format!(
            "this needs {files} open files and the limit is {limit}: run ulimit -n {files} first, or {instead}"
        )),
        // Unlimited, or unknown: then the sockets tell.
        _ => Ok(()),
    }
}

fn read(path: &str) -> Outcome<String> {
    fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &str, error: &std::io::Error) -> String {
    format!("{path}: {error} (the benchmark needs Linux)")
}
