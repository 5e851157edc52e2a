//! What the process tells of itself: logs, metrics, error reports, and the vitals behind `/health`.

mod facts;
pub mod health;
pub mod logging;
pub mod metrics;
mod outlet;
mod panics;
pub mod prometheus;
pub mod scrub;
pub mod sentry;
mod summary;
pub mod verdict;
pub mod vitals;

pub use facts::SeenProvider;
pub use health::Health;
pub use prometheus::Metrics;
pub use scrub::scrub;
pub use summary::summarise;
pub use verdict::{Check, Status};
pub use vitals::{Edge, Profile, Vitals};
