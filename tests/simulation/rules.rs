//! Rules of the store that a planted fault breaks and that matter in the simulation only once in very many seeds: each
//! asked of the model directly. `tests/store_contract.rs` asks the same of the real stores.

use std::{fmt::Debug, time::Duration};

use alloy::primitives::B256;
use chaintap::{
    domain::{BlockRange, BlockRef, Track},
    store::{
        BlockCommit, ClaimReply, CommitReply, FinalCommit, Grant, Intent, IntentReply, Orphan, RewindReply, SealReply,
        Start, StateStore, StoreError,
    },
};

use crate::support::{
    chain::{block, digest, events, parent},
    model_store::{Model, ModelStore, StoreMutant},
};

/// A rule that holds, or what was seen instead.
type Kept = Result<(), String>;

/// The rule that a fault breaks, and whether it is kept, with or without the fault. Not every fault has one.
pub fn of(mutant: StoreMutant, planted: bool) -> Option<(&'static str, Kept)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let desk = Desk::new(Some(mutant).filter(|_| planted)).await;
        Some(match mutant {
            StoreMutant::NoBarrier => ("a fail-over keeps a journaled intent", desk.intent_survives().await),
            StoreMutant::BarrierAnywhere => ("no barrier across a fail-over", desk.barrier_breaks().await),
            StoreMutant::RetractionsWithoutBarrier => {
                ("a fail-over keeps what is to be retracted", desk.orphans_survive().await)
            }
            StoreMutant::EpochUnchecked => ("INTENT of an old epoch is stale", desk.old_intent().await),
            StoreMutant::RewindUnchecked => ("REWIND of an old epoch is stale", desk.old_rewind().await),
            StoreMutant::NeighboursUnchecked => ("INTENT fits its parent", desk.wrong_parent().await),
            StoreMutant::CommitUnfenced => ("COMMIT of what was taken back is fenced", desk.fenced().await),
            StoreMutant::DigestUnchecked => ("COMMIT covers what was journaled", desk.fewer_events().await),
            StoreMutant::FinalWithoutEpoch => ("COMMIT_FINAL of an old epoch is stale", desk.old_final().await),
            StoreMutant::FinalUnchecked => ("COMMIT_FINAL fits the journal", desk.foreign_final().await),
            StoreMutant::SealBlind => ("SEAL knows what is journaled", desk.blind_seal().await),
            _ => return None,
        })
    })
}

/// A store that begins at block 10, and one owner.
struct Desk {
    model: Model,
    store: ModelStore,
    first_epoch: u64,
}

#[allow(clippy::needless_pass_by_value, reason = "what is expected is written where it is handed over")]
fn expect<T: PartialEq + Debug>(got: T, wanted: T) -> Kept {
    if got == wanted { Ok(()) } else { Err(format!("{got:?} instead of {wanted:?}")) }
}

impl Desk {
    async fn new(mutant: Option<StoreMutant>) -> Self {
        let model = Model::new();
        model.plant(mutant);
        model.enable_fail_over();
        let store = model.replica("one");
        let first_epoch = store.init(Start::At(10)).await.unwrap().progress.epoch;
        Self { model, store, first_epoch }
    }

    async fn claim(&self, from: u64, to: u64) -> Grant {
        match self.store.claim(BlockRange { from, to }).await.unwrap() {
            ClaimReply::Granted(grant) => grant,
            other => panic!("{from}-{to}: {other:?}"),
        }
    }

    /// INTENT of two events in the first epoch.
    async fn intent(&self, block: BlockRef, parent: B256) -> Result<IntentReply, StoreError> {
        let (epoch, digest, events) = (self.first_epoch, digest(block, 0..2), events(block, 0..2));
        self.store.intent(Intent { block, parent, epoch, filter_version: 0, digest, events: &events }).await
    }

    async fn commit(&self, block: BlockRef, events: u64) -> CommitReply {
        let commit =
            BlockCommit { block, epoch: self.first_epoch, filter_version: 0, digest: digest(block, 0..events) };
        self.store.commit(commit, Track::Realtime).await.unwrap()
    }

    /// `COMMIT_FINAL` of a range of the second branch, in the first epoch.
    async fn commit_final(&self, from: u64, to: u64) -> CommitReply {
        let commit = FinalCommit {
            range: BlockRange { from, to },
            epoch: self.first_epoch,
            sealed: -1,
            parent: parent(from, 2),
            hash: block(to, 2).hash,
            confirmed: vec![],
            filter_version: 0,
        };
        self.store.commit_final(commit, Track::Historical).await.unwrap()
    }

    /// Delivers a block of the first branch.
    async fn deliver(&self, number: u64) {
        self.claim(number, number).await;
        let journaled = self.intent(block(number, 1), parent(number, 1)).await.unwrap();
        assert_eq!(journaled, IntentReply::Journaled);
        let committed = self.commit(block(number, 1), 2).await;
        assert!(matches!(committed, CommitReply::Committed { .. }), "{committed:?}");
    }

    /// A block of the first branch leaves the chain, and is retracted.
    async fn take_back(&self, number: u64) {
        self.rewind(number).await;
        for orphan in self.store.orphans().await.unwrap() {
            self.store.retracted(orphan).await.unwrap();
        }
    }

    /// REWIND of a block of the first branch, by someone who knows the first epoch only.
    async fn rewind(&self, number: u64) -> RewindReply {
        self.store.rewind(&[(block(number, 1), self.first_epoch)], None, self.first_epoch).await.unwrap()
    }

    async fn intent_survives(&self) -> Kept {
        self.intent(block(10, 1), parent(10, 1)).await.unwrap();
        self.model.fail_over(0);
        expect(self.store.journal(10).await.unwrap().len(), 1)
    }

    async fn barrier_breaks(&self) -> Kept {
        self.model.set_barrier_delay(Duration::from_millis(10));
        let fails = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.model.fail_over(0)
        };
        let (reply, _) = tokio::join!(self.intent(block(10, 1), parent(10, 1)), fails);
        expect(reply.is_err(), true)
    }

    async fn orphans_survive(&self) -> Kept {
        self.deliver(10).await;
        self.model.checkpoint();
        self.rewind(10).await;
        let told = self.store.orphans().await.unwrap();
        self.model.fail_over(0);
        let kept: Vec<Orphan> = self.store.orphans().await.unwrap();
        expect(kept, told)
    }

    async fn old_intent(&self) -> Kept {
        self.deliver(10).await;
        self.take_back(10).await;
        expect(self.intent(block(10, 1), parent(10, 1)).await.unwrap(), IntentReply::Stale)
    }

    async fn old_rewind(&self) -> Kept {
        self.deliver(10).await;
        self.deliver(11).await;
        self.rewind(11).await;
        expect(self.rewind(10).await, RewindReply::Stale)
    }

    async fn wrong_parent(&self) -> Kept {
        self.deliver(10).await;
        let reply = self.intent(block(11, 2), parent(11, 2)).await.unwrap();
        expect(matches!(reply, IntentReply::Conflict(_)), true)
    }

    async fn fenced(&self) -> Kept {
        self.claim(10, 10).await;
        self.intent(block(10, 1), parent(10, 1)).await.unwrap();
        self.take_back(10).await;
        expect(self.commit(block(10, 1), 2).await, CommitReply::Fenced)
    }

    async fn fewer_events(&self) -> Kept {
        self.claim(10, 10).await;
        self.intent(block(10, 1), parent(10, 1)).await.unwrap();
        expect(self.commit(block(10, 1), 1).await, CommitReply::More)
    }

    async fn old_final(&self) -> Kept {
        self.claim(10, 12).await;
        self.deliver(14).await;
        self.take_back(14).await;
        expect(self.commit_final(10, 12).await, CommitReply::Stale)
    }

    async fn foreign_final(&self) -> Kept {
        self.deliver(11).await;
        self.claim(10, 10).await;
        let reply = self.commit_final(10, 10).await;
        expect(matches!(reply, CommitReply::Conflict(_)), true)
    }

    async fn blind_seal(&self) -> Kept {
        self.deliver(10).await;
        expect(self.store.seal(block(12, 2), &[]).await.unwrap(), SealReply::Refused)
    }
}
