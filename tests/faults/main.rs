//! The fault suite: real processes under load, hundreds of pairs, and a ledger that is checked at the end of each run.
//!
//! `FAULT_PAIRS` (200) is the size of the load, `FAULT_ROUNDS` (1) how often each fault comes, over one cluster. Each
//! run prints one line of numbers. Times here that are slept are the lengths of faults, never waits for a state.

#[path = "../support/mod.rs"]
mod support;

mod agent;
mod attendant;
mod broker;
mod ending;
mod field;
mod ledger;
mod load;
mod nodes;
mod record;
mod run;
mod sets;
mod stage;
#[path = "../support/wire.rs"]
mod wire;
