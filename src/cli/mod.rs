//! Floor 5: the command line.

mod attach;
mod bench;
mod keys;
mod pipe;
mod serve;
mod ticket;
mod token;
mod wire;

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::config::{ServeArgs, read_file};

pub use serve::{Running, start};

/// Bad usage or configuration.
const USAGE: u8 = 64;
/// The broker can't be reached.
const UNAVAILABLE: u8 = 69;
/// Something else went wrong.
const FAILED: u8 = 1;

/// A WebSocket gateway that keeps each client socket a pure pipe and gives it a sibling socket for commands.
#[derive(Debug, Parser)]
#[command(name = "sibling", version, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    tool: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Run a node (this is what `sibling` alone means)
    #[command(args_override_self = true)]
    Serve(Box<ServeArgs>),
    /// Open a client socket: standard input goes into the room, what comes out of it to standard output
    Pipe(pipe::PipeArgs),
    /// Attach a sibling to a pair: events on standard output, commands from standard input
    Attach(attach::AttachArgs),
    /// Sign a ticket for one side of a pair, with the gateway's secret
    Ticket(ticket::TicketArgs),
    /// Sign and verify tokens of accounts
    #[command(subcommand)]
    Token(token::TokenTool),
    /// Make keys
    #[command(subcommand)]
    Keys(keys::KeysTool),
    /// Measure what the gateway costs, beside floors measured in the same run
    Bench(bench::BenchArgs),
}

/// Reads the command line and does what it says.
#[must_use]
pub fn main() -> ExitCode {
    let tool = match read_arguments(std::env::args_os().collect()) {
        Ok(cli) => cli.tool,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sibling: {error}");
            return ExitCode::from(FAILED);
        }
    };
    let code = runtime.block_on(async {
        match tool {
            Tool::Serve(args) => serve::run(*args).await,
            Tool::Pipe(args) => pipe::run(args).await,
            Tool::Attach(args) => attach::run(args).await,
            Tool::Ticket(args) => ticket::run(args),
            Tool::Token(tool) => token::run(tool).await,
            Tool::Keys(tool) => keys::run(tool),
            Tool::Bench(args) => bench::run(args).await,
        }
    });
    // Standard input is read on a thread that can't be interrupted: it is not waited for.
    runtime.shutdown_background();
    code
}

/// Writes a line to standard output. That nobody reads it (any more) is no reason to end.
fn say(line: &str) {
    let mut stdout = std::io::stdout();
    drop(writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}

/// `sibling` alone, and `sibling --listen …`, mean `sibling serve …`; a file's settings go before the arguments.
fn read_arguments(mut args: Vec<OsString>) -> Result<Cli, ExitCode> {
    let known = |arg: &OsString| {
        let names = ["help", "-h", "--help", "-V", "--version"];
        arg.to_str().is_some_and(|arg| names.contains(&arg) || Cli::command().find_subcommand(arg).is_some())
    };
    if !args.get(1).is_some_and(known) {
        args.insert(1.min(args.len()), "serve".into());
    }
    let cli = parse(&args)?;
    if let Tool::Serve(serve) = &cli.tool
        && let Some(path) = &serve.config
    {
        let settings = read_file(path).map_err(|bad| {
            eprintln!("sibling: {bad}");
            ExitCode::from(USAGE)
        })?;
        args.splice(2..2, settings.into_iter().map(OsString::from));
        return parse(&args);
    }
    Ok(cli)
}

fn parse(args: &[OsString]) -> Result<Cli, ExitCode> {
    let matches =
        Cli::command().try_get_matches_from(args).and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    matches.map_err(|error| {
        drop(error.print());
        if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
    })
}
