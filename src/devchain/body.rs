//! What is in a block: transactions and their logs, and the roots that a header states of them.

use alloy::{
    consensus::{
        Receipt, ReceiptEnvelope, ReceiptWithBloom, Signed, TxEip1559, TxEnvelope,
        proofs::{calculate_receipt_root, calculate_transaction_root},
    },
    primitives::{Address, B256, Bloom, Log},
};

use super::blooms::Blooms;

/// The transactions of one block, in order; with their logs, in order. A log's index is its place in the block.
#[derive(Clone, Debug, Default)]
pub(super) struct Body {
    /// In the order of their index.
    pub(super) transactions: Vec<Transaction>,
}

/// One transaction and the logs it emitted.
#[derive(Clone, Debug)]
pub(super) struct Transaction {
    /// Its place in the block. Equal to its place in [`Body::transactions`] unless the block is a recorded one.
    pub(super) index: u64,
    /// Its logs, in order.
    pub(super) logs: Vec<Log>,
    /// The transaction itself, or all that is known of it.
    pub(super) content: Content,
}

/// What is known of a transaction besides its logs.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// All of it.
    Signed(Box<SignedTransaction>),
    /// Its hash: it is one of a recorded block.
    Hash(B256),
}

impl Transaction {
    /// Its hash; of a signed one it is computed when asked for the first time, as building a chain does not need it.
    pub(super) fn hash(&self) -> B256 {
        match &self.content {
            Content::Signed(signed) => *signed.envelope.tx_hash(),
            Content::Hash(hash) => *hash,
        }
    }

    /// The transaction itself, where it is known.
    pub(super) fn signed(&self) -> Option<&SignedTransaction> {
        match &self.content {
            Content::Signed(signed) => Some(signed),
            Content::Hash(_) => None,
        }
    }
}

/// A transaction as it was sent and executed.
#[derive(Clone, Debug)]
pub(super) struct SignedTransaction {
    /// What was signed. The signature is made up: nobody can recover the sender from it.
    pub(super) envelope: TxEnvelope,
    /// Who sent it, as the node states it.
    pub(super) sender: Address,
    /// Gas used by this transaction alone.
    pub(super) gas_used: u64,
}

impl SignedTransaction {
    /// An EIP-1559 transaction that used all its gas.
    pub(super) fn new(signed: Signed<TxEip1559>, sender: Address) -> Self {
        let gas_used = signed.tx().gas_limit;
        Self { envelope: TxEnvelope::Eip1559(signed), sender, gas_used }
    }
}

/// What a header states of its block's body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Roots {
    /// `transactionsRoot`.
    pub(super) transactions: B256,
    /// `receiptsRoot`.
    pub(super) receipts: B256,
    /// `logsBloom`.
    pub(super) bloom: Bloom,
    /// `gasUsed`.
    pub(super) gas_used: u64,
}

impl Body {
    /// All logs with their transaction and their index in the block.
    pub(super) fn logs(&self) -> impl Iterator<Item = (u64, &Transaction, &Log)> {
        let all = self.transactions.iter().flat_map(|tx| tx.logs.iter().map(move |log| (tx, log)));
        (0..).zip(all).map(|(index, (tx, log))| (index, tx, log))
    }

    /// The receipts; `None` where a transaction is known by its hash alone.
    pub(super) fn receipts(&self, blooms: &Blooms) -> Option<Vec<ReceiptEnvelope>> {
        let mut cumulative_gas_used = 0;
        let receipt = |tx: &Transaction| {
            cumulative_gas_used += tx.signed()?.gas_used;
            let logs_bloom = blooms.of(&tx.logs);
            let receipt = Receipt { status: true.into(), cumulative_gas_used, logs: tx.logs.clone() };
            Some(ReceiptEnvelope::Eip1559(ReceiptWithBloom { receipt, logs_bloom }))
        };
        self.transactions.iter().map(receipt).collect()
    }

    /// The roots, computed from the signed transactions and their receipts as every client does.
    pub(super) fn roots(&self, blooms: &Blooms) -> Roots {
        let receipts = self.receipts(blooms).unwrap_or_default();
        let envelopes: Vec<_> =
            self.transactions.iter().filter_map(Transaction::signed).map(|signed| &signed.envelope).collect();
        let mut bloom = Bloom::default();
        for receipt in &receipts {
            bloom.accrue_bloom(receipt.logs_bloom());
        }
        Roots {
            transactions: calculate_transaction_root(&envelopes),
            receipts: calculate_receipt_root(&receipts),
            bloom,
            gas_used: receipts.last().map_or(0, ReceiptEnvelope::cumulative_gas_used),
        }
    }
}
