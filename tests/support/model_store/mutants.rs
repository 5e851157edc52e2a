//! Faults that are planted in the model, one at a time, to prove that the simulation would find them in a store.

/// A fault that a store may have. The numbers are those of the protocol page's section 3.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreMutant {
    /// The watermark passes what someone else has claimed (N1).
    HeldIsDone,
    /// The watermark is the highest committed block (N2).
    WatermarkIsTip,
    /// Where a second gap opens, the first one is forgotten (N3).
    OneGapOnly,
    /// A block that left the chain stays done (N4).
    OrphanStaysDone,
    /// Nobody waits for the replicas.
    NoBarrier,
    /// A barrier vouches for a write that was made before a fail-over (N23).
    BarrierAnywhere,
    /// What is to be retracted is read without a barrier.
    RetractionsWithoutBarrier,
    /// INTENT takes any epoch.
    EpochUnchecked,
    /// REWIND takes any epoch.
    RewindUnchecked,
    /// REWIND leaves the epoch as it is.
    EpochNotRaised,
    /// REWIND drops what it should keep until it is retracted (N14).
    RewindForgets,
    /// INTENT compares the block with no other height.
    NeighboursUnchecked,
    /// COMMIT without an entry.
    CommitUnfenced,
    /// COMMIT with fewer events than were journaled (N25).
    DigestUnchecked,
    /// `COMMIT_FINAL` takes any epoch (N26).
    FinalWithoutEpoch,
    /// `COMMIT_FINAL` over journaled blocks of another branch.
    FinalUnchecked,
    /// SEAL whatever the tops are.
    SealBlind,
    /// What joins the filter is not looked for in what was delivered (N21).
    DutyForgotten,
    /// An old filter is as good as the published one (N21).
    OldListAccepted,
}

impl StoreMutant {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::HeldIsDone,
        Self::WatermarkIsTip,
        Self::OneGapOnly,
        Self::OrphanStaysDone,
        Self::NoBarrier,
        Self::BarrierAnywhere,
        Self::RetractionsWithoutBarrier,
        Self::EpochUnchecked,
        Self::RewindUnchecked,
        Self::EpochNotRaised,
        Self::RewindForgets,
        Self::NeighboursUnchecked,
        Self::CommitUnfenced,
        Self::DigestUnchecked,
        Self::FinalWithoutEpoch,
        Self::FinalUnchecked,
        Self::SealBlind,
        Self::DutyForgotten,
        Self::OldListAccepted,
    ];
}
