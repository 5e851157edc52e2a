//! The HTTP endpoints (contract §9).
