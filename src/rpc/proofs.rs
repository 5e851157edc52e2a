//! When a node's logs are proven by receipts, and what is made of a proof that fails.
//!
//! A proof that fails may be the fault of the node, which is then asked no more for this block, or of the chain, whose
//! encoding nobody here knows. So the first failures in a row are refusals, and others are asked; after some the node is
//! taken at its word as if receipts were off, and that is said. From time to time a block is proven all the same, and the
//! first proof that holds ends it. A contradiction in a known encoding is never forgiven by a node that has proven a block.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{debug, info, warn};

use super::{
    RpcError,
    receipts::{Held, Unproven},
};
use crate::{
    config::{Limits, Verify},
    telemetry::metrics,
};

/// Failures in a row after which a node is taken at its word.
const PATIENCE: u32 = 5;
/// One block in so many is proven all the same.
const TRIAL_EVERY: u32 = 64;

/// The proofs of one node.
#[derive(Debug)]
pub(super) struct Proofs {
    /// The node's name.
    name: String,
    verify: Verify,
    sample: u64,
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    /// A block with receipts was proven: this chain's encoding is known.
    has_proven: bool,
    /// Since the last proof that held.
    failures: u32,
    /// Blocks that were due since the node is taken at its word.
    passed: u32,
}

impl Record {
    fn is_suspended(&self) -> bool {
        self.failures >= PATIENCE
    }
}

impl Proofs {
    /// None made yet.
    pub(super) fn new(name: String, limits: &Limits) -> Self {
        Self { name, verify: limits.verify, sample: limits.verify_sample, record: Mutex::default() }
    }

    /// Whether answers are held against blooms where they are not proven.
    pub(super) fn minds_blooms(&self) -> bool {
        self.verify != Verify::None
    }

    /// Whether the next block is to be proven. Asking counts.
    pub(super) fn is_due(&self) -> bool {
        if self.verify != Verify::Receipts {
            return false;
        }
        let mut record = self.record();
        if !record.is_suspended() {
            return true;
        }
        record.passed = record.passed.wrapping_add(1);
        record.passed.is_multiple_of(TRIAL_EVERY)
    }

    /// Whether this block is among those of history that are proven: the same ones for everyone who asks.
    pub(super) fn is_sampled(&self, number: u64) -> bool {
        self.verify == Verify::Receipts && number.checked_rem(self.sample) == Some(0)
    }

    /// What a proof amounts to: the block's logs, or `None` where the node is taken at its word.
    ///
    /// # Errors
    ///
    /// [`RpcError::Invalid`] where the node contradicts itself, and whatever else keeps a node from a proof that is not
    /// taken at its word.
    pub(super) fn judge(&self, block: u64, proof: Result<Held, Unproven>) -> Result<Option<Held>, RpcError> {
        match proof {
            Ok(held) => {
                self.succeeded(held.has_receipts);
                if held.is_other() {
                    let Held { missing, false_logs, .. } = &held;
                    warn!(
                        endpoint = self.name,
                        block, missing, false_logs, "eth_getLogs contradicts the block's receipts, which are used"
                    );
                    metrics::logs_restored(&self.name, missing + false_logs);
                }
                Ok(Some(held))
            }
            // It has not failed to prove anything: it asks for time.
            Err(Unproven::Request(error @ RpcError::Throttled { .. })) => Err(error),
            Err(Unproven::Wrong(text)) if self.record().has_proven => {
                metrics::proof(&self.name, "wrong");
                // Whatever failed before: the encoding is known, and the next block is to be proven.
                self.record().failures = 0;
                warn!(endpoint = self.name, block, reason = text, "a node's receipts are false and not used");
                Err(RpcError::Invalid(text))
            }
            Err(Unproven::Wrong(text) | Unproven::Unknown(text)) => {
                metrics::proof(&self.name, "unknown");
                self.failed(block, RpcError::Invalid(text))
            }
            Err(Unproven::Request(error)) => {
                metrics::proof(&self.name, "failed");
                self.failed(block, of_proof(error))
            }
        }
    }

    fn succeeded(&self, has_receipts: bool) {
        metrics::proof(&self.name, "proven");
        let mut record = self.record();
        if record.is_suspended() {
            info!(endpoint = self.name, "receipts prove blocks again, and are asked for again");
        }
        record.failures = 0;
        record.has_proven |= has_receipts;
    }

    fn failed(&self, block: u64, error: RpcError) -> Result<Option<Held>, RpcError> {
        let mut record = self.record();
        let was_suspended = record.is_suspended();
        record.failures = record.failures.saturating_add(1);
        if !record.is_suspended() {
            debug!(endpoint = self.name, block, %error, "a block could not be proven");
            return Err(error);
        }
        if !was_suspended {
            warn!(
                endpoint = self.name,
                block,
                %error,
                "this endpoint's blocks cannot be proven by their receipts: its logs are held against blooms only; \
                 where that lasts set VERIFY=bloom, or give an endpoint that serves eth_getBlockReceipts"
            );
        }
        Ok(None)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receipts that are too large or not served say nothing about the logs that were asked for: fewer blocks would not help,
/// and another endpoint may.
fn of_proof(error: RpcError) -> RpcError {
    match error {
        RpcError::Behind(_) | RpcError::Invalid(_) => error,
        other => RpcError::Transient(format!("no proof by receipts: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::Cap;

    fn proofs() -> Proofs {
        Proofs::new("node".into(), &Limits { verify: Verify::Receipts, verify_sample: 10, ..Limits::default() })
    }

    fn held(has_receipts: bool) -> Held {
        Held { logs: vec![], missing: 0, false_logs: 0, has_receipts }
    }

    fn unknown() -> Unproven {
        Unproven::Unknown("another encoding".into())
    }

    fn wrong() -> Unproven {
        Unproven::Wrong("another root".into())
    }

    #[test]
    fn a_node_that_proves_nothing_is_taken_at_its_word_and_tried_again_from_time_to_time() {
        let proofs = proofs();
        for _ in 1..PATIENCE {
            assert!(proofs.is_due());
            assert!(matches!(proofs.judge(1, Err(unknown())), Err(RpcError::Invalid(_))));
        }
        assert!(matches!(proofs.judge(1, Err(unknown())), Ok(None)));
        let due = (0..10 * TRIAL_EVERY).filter(|_| proofs.is_due()).count();
        assert_eq!(due, 10);
        assert!(matches!(proofs.judge(1, Ok(held(false))), Ok(Some(_))));
        assert!(proofs.is_due() && proofs.is_due());
        assert!(proofs.judge(1, Err(unknown())).is_err(), "it begins anew");
    }

    #[test]
    fn a_contradiction_is_never_forgiven_once_the_encoding_is_known() {
        let proofs = proofs();
        proofs.judge(1, Ok(held(false))).unwrap();
        assert!(
            (1..=PATIENCE).any(|_| proofs.judge(1, Err(wrong())).is_ok()),
            "an empty block says nothing of encodings"
        );
        proofs.judge(1, Ok(held(true))).unwrap();
        for _ in 0..3 * PATIENCE {
            assert!(matches!(proofs.judge(1, Err(wrong())), Err(RpcError::Invalid(_))));
            assert!(proofs.is_due());
        }
    }

    #[test]
    fn a_node_that_asks_for_time_gets_it_and_no_failure_asks_for_a_smaller_range() {
        let proofs = proofs();
        for _ in 0..3 * PATIENCE {
            let throttled = RpcError::Throttled { message: String::new(), retry_after: None };
            let error = proofs.judge(1, Err(throttled.into())).unwrap_err();
            assert!(matches!(error, RpcError::Throttled { .. }));
            assert!(proofs.is_due());
        }
        let unclear = RpcError::Unclear { message: "no".into(), is_known: false };
        let large = RpcError::TooLarge { message: "no".into(), cap: Cap::Density, suggested: None };
        for error in [RpcError::Fatal("no such method".into()), RpcError::TimedOut, unclear, large] {
            let error = proofs.judge(1, Err(error.into())).unwrap_err();
            assert!(matches!(error, RpcError::Transient(_)), "{error:?}");
        }
    }

    #[test]
    fn the_sample_is_the_same_for_everyone_and_only_where_receipts_are_asked_for() {
        let sampled: Vec<u64> = (1..=30).filter(|number| proofs().is_sampled(*number)).collect();
        assert_eq!(sampled, [10, 20, 30]);
        let none = Limits { verify: Verify::Receipts, verify_sample: 0, ..Limits::default() };
        let bloom = Limits { verify: Verify::Bloom, verify_sample: 1, ..Limits::default() };
        for limits in [none, bloom] {
            assert!(!Proofs::new("node".into(), &limits).is_sampled(10));
        }
    }
}
