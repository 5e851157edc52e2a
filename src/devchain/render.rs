//! Blocks, logs and receipts in the form in which the `eth_` methods answer.

use alloy::{
    consensus::{ReceiptEnvelope, transaction::Recovered},
    eips::eip4895::Withdrawals,
    primitives::B256,
    rpc::types::{self, BlockTransactions, Log, TransactionReceipt},
};

use super::{
    blooms::Blooms,
    body::{Body, Transaction},
    chain::Block,
    generator::{BASE_FEE, TIP},
};

/// Wei per gas that every transaction pays.
const GAS_PRICE: u128 = BASE_FEE as u128 + TIP;

/// A header as `newHeads` and the block methods state it.
pub(super) fn header(block: &Block) -> types::Header {
    types::Header::from_sealed(block.header.clone())
}

/// A block with transactions in full or as hashes. Transactions of recorded blocks are known as hashes only.
pub(super) fn block(block: &Block, body: &Body, full: bool) -> types::Block {
    let transactions = full
        .then(|| body.transactions.iter().map(|tx| transaction(block, tx)).collect::<Option<Vec<_>>>())
        .flatten()
        .map_or_else(
            || BlockTransactions::Hashes(body.transactions.iter().map(Transaction::hash).collect()),
            BlockTransactions::Full,
        );
    let withdrawals = block.header.withdrawals_root.map(|_| Withdrawals::default());
    types::Block::new(header(block), transactions).with_withdrawals(withdrawals)
}

/// A transaction; `None` where only its hash is known.
pub(super) fn transaction(block: &Block, tx: &Transaction) -> Option<types::Transaction> {
    let signed = tx.signed()?;
    Some(types::Transaction {
        inner: Recovered::new_unchecked(signed.envelope.clone(), signed.sender),
        block_hash: Some(block.header.hash()),
        block_number: Some(block.header.number),
        transaction_index: Some(tx.index),
        effective_gas_price: Some(GAS_PRICE),
        block_timestamp: Some(block.header.timestamp),
    })
}

/// The logs of a block, in order.
pub(super) fn logs(block: &Block, body: &Body, removed: bool) -> impl Iterator<Item = Log> {
    let (hash, number, timestamp) = (block.header.hash(), block.header.number, block.header.timestamp);
    body.logs().map(move |(index, tx, log)| Log {
        inner: log.clone(),
        block_hash: Some(hash),
        block_number: Some(number),
        block_timestamp: Some(timestamp),
        transaction_hash: Some(tx.hash()),
        transaction_index: Some(tx.index),
        log_index: Some(index),
        removed,
    })
}

/// The receipts of a block; `None` where its transactions are known as hashes only.
pub(super) fn receipts(block: &Block, body: &Body) -> Option<Vec<TransactionReceipt>> {
    let mut logs = logs(block, body, false);
    let receipt = |(tx, envelope): (&Transaction, ReceiptEnvelope)| {
        let signed = tx.signed()?;
        Some(TransactionReceipt {
            inner: envelope.map_logs(|log| logs.next().unwrap_or_else(|| Log { inner: log, ..Log::default() })),
            transaction_hash: tx.hash(),
            transaction_index: Some(tx.index),
            block_hash: Some(block.header.hash()),
            block_number: Some(block.header.number),
            gas_used: signed.gas_used,
            effective_gas_price: GAS_PRICE,
            blob_gas_used: None,
            blob_gas_price: None,
            from: signed.sender,
            to: alloy::consensus::Transaction::to(&signed.envelope),
            contract_address: None,
        })
    };
    body.transactions.iter().zip(body.receipts(&Blooms::default())?).map(receipt).collect()
}

/// A place of a transaction among those of its block.
pub(super) fn position(body: &Body, hash: &B256) -> Option<usize> {
    body.transactions.iter().position(|tx| tx.hash() == *hash)
}
