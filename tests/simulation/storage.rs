//! The store behind all replicas.

use std::sync::Arc;

use chaintap::store::{StateStore, embedded::Embedded};

use crate::{oracle::CHAIN, random::Draw};

/// The store behind all replicas.
pub struct Storage {
    store: Embedded,
}

impl Storage {
    pub fn new(_seed: u64) -> Self {
        Self { store: Embedded::in_memory(CHAIN, "simulation").unwrap() }
    }

    /// The store as a process of this name has it.
    pub fn open(&self, _owner: &str) -> Arc<dyn StateStore> {
        Arc::new(self.store.clone())
    }

    /// The store's replica takes over; answers whether there is one.
    pub fn fail_over(&self, _draw: &mut Draw) -> bool {
        false
    }

    pub fn base_epoch(&self) -> u64 {
        0
    }
}
