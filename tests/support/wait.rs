//! Waiting for a state, never for a time.

use std::future::Future;
use std::time::{Duration, Instant};

/// How long a state may take on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls `probe` until it yields a value; panics with `what` when patience runs out.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "gave up waiting until {what} after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// [`eventually`] for a plain condition.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    eventually(what, async || holds().then_some(())).await;
}

/// Runs `work` with the usual patience, so that a hang fails as a sentence.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("gave up waiting for {what} after {PATIENCE:?}"),
    }
}
