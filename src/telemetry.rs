//! Logs, on standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// Starts logging.
///
/// # Errors
/// A phrase when the filter can't be read.
pub fn start(filter: &str, json: bool) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("log {filter:?}: {error}"))?;
    let colours = std::io::stderr().is_terminal();
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    // A second start (in tests) finds the first one's logs in place, which is as well.
    drop(if json { logs.json().try_init() } else { logs.try_init() });
    Ok(())
}
