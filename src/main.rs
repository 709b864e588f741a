//! `sibling`: the gateway, and the tools to try it from a terminal.

use std::process::ExitCode;

// Measured against the system's allocator in the fan-out benchmark; see the README.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sibling_sockets::cli::main()
}
