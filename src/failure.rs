//! Why a command ended without doing its work, and the exit code that says so.

use std::process::ExitCode;

/// Why a command ended without doing its work; the exit code is one of sysexits(3).
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The command did its work and the answer is no: a check found mistakes.
    #[error("{0}")]
    No(String),
    /// The command line is wrong (64, `EX_USAGE`).
    #[error("{0}")]
    Usage(String),
    /// Input that was named is wrong or missing (65, `EX_DATAERR`).
    #[error("{0}")]
    Data(String),
    /// A server that is needed cannot be used (69, `EX_UNAVAILABLE`).
    #[error("{0}")]
    Unavailable(String),
    /// A fault of the program (70, `EX_SOFTWARE`).
    #[error("{0}")]
    Internal(String),
    /// Try again later (75, `EX_TEMPFAIL`).
    #[error("{0}")]
    Temporary(String),
    /// The configuration is wrong (78, `EX_CONFIG`).
    #[error("{0}")]
    Config(String),
}

impl Failure {
    /// The exit code of sysexits(3).
    #[must_use]
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::No(_) => 1,
            Self::Usage(_) => 64,
            Self::Data(_) => 65,
            Self::Unavailable(_) => 69,
            Self::Internal(_) => 70,
            Self::Temporary(_) => 75,
            Self::Config(_) => 78,
        })
    }
}
