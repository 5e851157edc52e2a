//! chaintap listens to EVM chains and never loses an event.

pub mod backoff;
pub mod domain;

pub mod pipeline;

pub mod rpc;
pub mod sinks;
pub mod store;
pub mod tokens;

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod devchain;
pub mod shutdown;
pub mod telemetry;
