//! What the process tells of itself: logs, metrics, error reports, and the vitals behind `/health`.

pub mod metrics;
pub mod scrub;
pub mod vitals;

pub use scrub::scrub;
pub use vitals::Vitals;
