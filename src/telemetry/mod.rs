//! What the process tells of itself: logs, metrics, error reports, and the vitals behind `/health`.

pub mod metrics;
pub mod vitals;

pub use vitals::Vitals;
