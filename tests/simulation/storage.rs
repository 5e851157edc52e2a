//! The store behind all replicas: the model of the protocol, which may fail over.

use std::{collections::BTreeSet, sync::Arc};

use chaintap::{domain::BlockRange, store::StateStore};

use crate::{
    random::Draw,
    support::model_store::{Key, Model, State, StoreMutant},
};

/// The store behind all replicas.
#[derive(Clone)]
pub struct Storage {
    model: Model,
}

impl Storage {
    /// An empty store, perhaps with a fault; `fails_over` costs time.
    pub fn new(fails_over: bool, mutant: Option<StoreMutant>) -> Self {
        let model = Model::new();
        model.plant(mutant);
        if fails_over {
            model.enable_fail_over();
        }
        Self { model }
    }

    /// The store as a process of this name has it.
    pub fn open(&self, owner: &str) -> Arc<dyn StateStore> {
        Arc::new(self.model.replica(owner))
    }

    /// The store's replica takes over; answers how many writes are gone.
    pub fn fail_over(&self, draw: &mut Draw) -> u64 {
        let choices = self.model.choices() as u64;
        let recent = choices.saturating_sub(draw.between(1, 40).min(choices));
        let choice = if draw.chance(0.3) { draw.below(choices) } else { recent };
        self.model.fail_over(usize::try_from(choice).unwrap())
    }

    /// Whether someone has a claim on some of these blocks.
    pub fn is_claimed(&self, range: BlockRange) -> bool {
        let now = self.model.now();
        let is_held = |state: &State| state.claims.range(range.from..=range.to).any(|(_, claim)| claim.until > now);
        self.model.look(|state| state.is_some_and(is_held))
    }

    /// Whether this process has claims.
    pub fn has_claims(&self, owner: &str) -> bool {
        let is_of = |state: &State| state.claims.values().any(|claim| &*claim.owner == owner);
        self.model.look(|state| state.is_some_and(is_of))
    }

    /// Names of the journal's entries.
    pub fn entries(&self) -> BTreeSet<Key> {
        self.model.look(|state| state.map(|state| state.live.keys().copied().collect()).unwrap_or_default())
    }

    /// Looks at everything at one moment; `None` where the store is empty.
    pub fn look<T>(&self, look: impl FnOnce(Option<&State>) -> T) -> T {
        self.model.look(look)
    }

    /// The store's clock jumps by so many seconds.
    pub fn jump(&self, seconds: i64) {
        self.model.jump(seconds);
    }

    /// Whether nothing may be delivered until an operator says so.
    pub fn is_frozen(&self) -> bool {
        self.model.look(|state| state.is_some_and(|state| state.frozen.is_some()))
    }

    /// There may be so few pieces of delivered blocks.
    pub fn set_most_pieces(&self, pieces: usize) {
        self.model.set_most_pieces(pieces);
    }

    /// How long a barrier waits for the store's replica.
    pub fn set_barrier_delay(&self, delay: std::time::Duration) {
        self.model.set_barrier_delay(delay);
    }
}
