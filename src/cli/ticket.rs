//! `sibling ticket`: a ticket for one side of a pair, signed here.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::{FAILED, USAGE, say};
use crate::{
    node::now_seconds,
    protocol::{Grants, PairId, Side, Ticket, TicketKeys},
};

/// Which ticket to sign.
#[derive(Debug, Args)]
pub(super) struct TicketArgs {
    /// The pair
    #[arg(long)]
    pair: PairId,
    /// The side that it opens
    #[arg(long)]
    side: SideArg,
    /// What a sibling may do with it, separated by commas [default: everything about its own pair]
    #[arg(long, value_delimiter = ',', value_name = "GRANTS")]
    grants: Option<Vec<String>>,
    /// Seconds that it lives
    #[arg(long, default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=86_400 * 366), value_name = "SECONDS")]
    ttl: u64,
    /// The gateway's keys; the first one signs
    #[arg(long, env = "SIBLING_SECRET", hide_env_values = true, value_name = "KEYS")]
    secret: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SideArg {
    /// The client socket
    Client,
    /// A sibling socket, and the pair's routes
    Sibling,
}

pub(super) fn run(args: TicketArgs) -> ExitCode {
    let usage = |why: &str| {
        eprintln!("sibling: {why}");
        ExitCode::from(USAGE)
    };
    let key = args.secret.as_deref().and_then(|keys| keys.split(',').next()).map(str::trim).unwrap_or_default();
    if key.is_empty() {
        return usage("set SIBLING_SECRET to that of the gateway: a ticket is signed with it");
    }
    let (side, grants) = match (args.side, args.grants) {
        (SideArg::Client, Some(_)) => return usage("--grants: a client ticket has none, it opens the client socket"),
        (SideArg::Client, None) => (Side::Client, Grants::default()),
        (SideArg::Sibling, None) => (Side::Sibling, Grants::of_a_sibling()),
        (SideArg::Sibling, Some(names)) => match Grants::read(names) {
            Ok(grants) => (Side::Sibling, grants),
            Err(failure) => return usage(&failure.message),
        },
    };
    let ticket = Ticket::new(side, args.pair, grants, now_seconds() + args.ttl);
    match TicketKeys::new([key.as_bytes()]).sign(&ticket) {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("sibling: {failure}");
            ExitCode::from(FAILED)
        }
    }
}
