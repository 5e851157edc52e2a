//! What the process tells of itself: logs, metrics, error reports, and the vitals behind `/health`.

pub mod logging;
pub mod metrics;
mod outlet;
mod panics;
pub mod scrub;
pub mod sentry;
pub mod vitals;

pub use scrub::scrub;
pub use vitals::Vitals;
