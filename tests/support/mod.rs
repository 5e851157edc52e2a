//! The real servers that tests run against, each started on a free loopback port and ended with its guard.
//!
//! `make test` installs them (`tests/support/install.sh`); a test whose server is missing fails and says so.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    clippy::must_use_candidate
)]
#![allow(clippy::needless_pass_by_value, reason = "a test reads better without borrows")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what fails here fails the test"
)]

pub mod anvil;
pub mod chain;
pub mod chaintap;
pub mod deliveries;
pub mod devchain;
pub mod dice;
pub mod faulty_node;
pub mod fleet;
/// The consumer of the documentation is the oracle.
#[path = "../../examples/consumer/fold.rs"]
pub mod fold;
pub mod ledger;
pub mod mailbox;
pub mod message;
pub mod model_store;
pub mod mongo;
pub mod process;
pub mod proxy;
pub mod puppet;
pub mod redis;
pub mod small_chain;
pub mod sqs;
pub mod world;
