//! Faults that are planted on purpose, one at a time, to prove that the tests would find them.
//!
//! Only a build with the feature `mutants` has them; in any other [`planted`] is `false` for the compiler, and nothing of
//! this is in the binary. `make mutants` runs the simulation against each and prints which test killed it; one that
//! survives means that a test is missing. The store has mutants of its own, in the tests' model of it.

/// A fault that the pipeline may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutant {
    /// Messages leave before their intent is journaled (N15).
    SendBeforeIntent = 1,
    /// Whatever a sink answers counts as acknowledged (N7, N13).
    AnswersIgnored,
    /// The id names the transaction instead of the block (N16).
    IdWithoutBlock,
    /// A retraction has the epoch of what it takes back, so its version is not higher.
    RetractUnderOldEpoch,
    /// What was delivered is never held against the chain.
    NeverLook,
    /// A head that is not above the tip is not looked at (N11).
    SameHeightIgnored,
    /// Only the highest run of journal entries is held against the chain (N24).
    HighestRunOnly,
    /// Only committed entries are taken back (F25).
    UncommittedKept,
    /// Only events of tokens that are still tracked are taken back (N14, F54).
    RetractByList,
    /// What becomes final is sealed without a look at the chain.
    SealBlind,
    /// A historical range that failed once is not taken up again (N20).
    FailureForgotten,
    /// The filter version is that of the claim, not of the list that was used (N25).
    FilterOfClaim,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::SendBeforeIntent,
        Self::AnswersIgnored,
        Self::IdWithoutBlock,
        Self::RetractUnderOldEpoch,
        Self::NeverLook,
        Self::SameHeightIgnored,
        Self::HighestRunOnly,
        Self::UncommittedKept,
        Self::RetractByList,
        Self::SealBlind,
        Self::FailureForgotten,
        Self::FilterOfClaim,
    ];
}

#[cfg(feature = "mutants")]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants one fault in this process, or none.
#[cfg(feature = "mutants")]
pub fn plant(mutant: Option<Mutant>) {
    PLANTED.store(mutant.map_or(0, |mutant| mutant as u8), std::sync::atomic::Ordering::Relaxed);
}

/// Whether this fault is planted.
#[cfg(feature = "mutants")]
pub(crate) fn planted(mutant: Mutant) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == mutant as u8
}

/// No fault is planted in this build.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn planted(_: Mutant) -> bool {
    false
}
