//! The store behind all replicas: the model of the protocol, which may fail over.

use std::sync::Arc;

use chaintap::store::StateStore;

use crate::{random::Draw, support::model_store::Model};

/// The store behind all replicas.
pub struct Storage {
    model: Model,
}

impl Storage {
    /// An empty store; `fails_over` costs time.
    pub fn new(fails_over: bool) -> Self {
        let model = Model::new();
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

    /// Whether blocks are still to be scanned for tokens that joined.
    pub fn has_duties(&self) -> bool {
        self.model.look(|state| state.is_some_and(|state| !state.duties.is_empty()))
    }

    /// How long a barrier waits for the store's replica.
    pub fn set_barrier_delay(&self, delay: std::time::Duration) {
        self.model.set_barrier_delay(delay);
    }
}
