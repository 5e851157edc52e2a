//! The simulated node keeps what it promises.

mod support;

use serde_json::json;
use support::devchain::{Devchain, still};

#[tokio::test]
async fn smoke() {
    let node = Devchain::start(still(300)).await;
    let rpc = node.rpc();
    assert_eq!(rpc.call("eth_chainId", json!([])).await, "0x7a69");
    let block = rpc.call("eth_getBlockByNumber", json!(["latest", false])).await;
    println!("{block:#}");
    let logs = rpc.call("eth_getLogs", json!([{"fromBlock": "0x0", "toBlock": "latest"}])).await;
    println!("{} {:#}", logs.as_array().unwrap().len(), logs[0]);
    println!("{:#}", rpc.call("eth_getBlockReceipts", json!([block["hash"]])).await[0]);
}
