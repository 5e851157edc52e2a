//! anvil: an EVM node that was not written here, with a token to send around on it.

use std::time::Duration;

use alloy::{
    primitives::{Address, B256, U256, address},
    sol,
    sol_types::SolCall as _,
};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::{
    devchain::Rpc,
    process::{dev_dir, eventually, free_port, spawn},
};

/// The first of anvil's unlocked accounts; it deploys, and owns all tokens.
pub const OWNER: Address = address!("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266");

sol! {
    function transfer(address to, uint256 value) returns (bool);
    function burst(address to, uint256 count);
    function named(string text);
}

/// A running anvil; it is killed with its guard.
pub struct Anvil {
    pub rpc: Rpc,
    pub child: Child,
}

impl Anvil {
    /// Starts one with this chain id and further options, e.g. `["--block-time", "1"]` or `["--no-mining"]`. Without
    /// either it mines a block per transaction.
    pub async fn start(chain_id: u64, options: &[&str]) -> Self {
        Self::start_at(free_port(), chain_id, options).await
    }

    /// Starts one on this port: for a node that comes back.
    pub async fn start_at(port: u16, chain_id: u64, options: &[&str]) -> Self {
        let mut command = Command::new(dev_dir().join("node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--chain-id", &chain_id.to_string()]);
        // Each call may use what a block usually holds, so that a block needs room for many.
        command.args(["--gas-limit", "10000000000"]);
        let mut child = spawn(command.arg("--silent").args(options));
        let rpc = Rpc::new(format!("http://127.0.0.1:{port}"));
        let ask = json!({ "jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": [] });
        eventually("anvil answers", Duration::from_secs(20), || async {
            rpc.try_reply(&ask).await.is_some_and(|reply| reply["result"] == format!("{chain_id:#x}"))
        })
        .await;
        // Whoever answered is the child only if the child is still there.
        assert!(child.try_wait().unwrap().is_none(), "anvil ended at once");
        Self { rpc, child }
    }

    /// Sends a transaction from the owner's unlocked account; its hash.
    pub async fn send(&self, transaction: Value) -> B256 {
        let mut transaction = transaction;
        transaction["from"] = json!(OWNER);
        serde_json::from_value(self.rpc.call("eth_sendTransaction", json!([transaction])).await).unwrap()
    }

    /// Deploys the token of `erc20.sol`; its address. Mines with `--no-mining`, too.
    pub async fn deploy_token(&self) -> Address {
        let contract: Value = serde_json::from_str(include_str!("erc20.json")).unwrap();
        let hash = self.send(json!({ "data": contract["bytecode"], "gas": "0x1e8480" })).await;
        if self.rpc.call("eth_getTransactionReceipt", json!([hash])).await.is_null() {
            self.mine(1).await;
        }
        let receipt = self.rpc.call("eth_getTransactionReceipt", json!([hash])).await;
        serde_json::from_value(receipt["contractAddress"].clone()).unwrap()
    }

    /// Sends a call of the owner to a contract; the transaction's hash.
    pub async fn call_contract(&self, contract: Address, data: Vec<u8>) -> B256 {
        let data = alloy::primitives::hex::encode_prefixed(data);
        self.send(json!({ "to": contract, "data": data, "gas": "0x1c9c380" })).await
    }

    /// Sends one transfer of the token.
    pub async fn transfer(&self, token: Address, to: Address, value: U256) -> B256 {
        self.call_contract(token, transferCall { to, value }.abi_encode()).await
    }

    /// Sends one transaction that emits `count` transfers, of 1, 2, 3, ...; about 1,800 gas each.
    pub async fn burst(&self, token: Address, to: Address, count: u64) -> B256 {
        self.call_contract(token, burstCall { to, count: U256::from(count) }.abi_encode()).await
    }

    /// Sends one transaction with an event that is no transfer.
    pub async fn named(&self, token: Address, text: &str) -> B256 {
        self.call_contract(token, namedCall { text: text.to_owned() }.abi_encode()).await
    }

    /// Mines blocks at once.
    pub async fn mine(&self, blocks: u64) {
        self.rpc.call("anvil_mine", json!([format!("{blocks:#x}")])).await;
    }

    /// Replaces the newest blocks by as many empty ones.
    pub async fn reorg(&self, depth: u64) {
        self.rpc.call("anvil_reorg", json!([depth, []])).await;
    }

    /// Replaces the newest blocks by as many others, each with a burst of transfers.
    pub async fn reorg_with_bursts(&self, depth: u64, token: Address, to: Address, counts: &[u64]) {
        let bursts = (0..depth).zip(counts).map(|(place, &count)| {
            let data = alloy::primitives::hex::encode_prefixed(burstCall { to, count: U256::from(count) }.abi_encode());
            json!([{ "from": OWNER, "to": token, "data": data, "gas": "0x1c9c380" }, place])
        });
        self.rpc.call("anvil_reorg", json!([depth, bursts.collect::<Vec<_>>()])).await;
    }

    /// Takes the newest blocks back: the head is lower after it.
    pub async fn rollback(&self, depth: u64) {
        self.rpc.call("anvil_rollback", json!([depth])).await;
    }

    /// Remembers the chain as it is now.
    pub async fn snapshot(&self) -> Value {
        self.rpc.call("evm_snapshot", json!([])).await
    }

    /// Goes back to a remembered chain: the head is lower after it.
    pub async fn revert(&self, snapshot: Value) {
        assert_eq!(self.rpc.call("evm_revert", json!([snapshot])).await, true);
    }
}
