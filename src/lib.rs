//! Sibling Sockets (to be written).
pub mod broker;
pub mod cli;
pub mod config;
pub mod http;
pub mod hub;
pub mod node;
pub mod protocol;
pub mod socket;
pub mod telemetry;
