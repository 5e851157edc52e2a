//! What the listener is held against: the same requests without any of its work.

use std::{io::Write as _, time::Duration};

use alloy::rpc::types::Log;
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use serde_json::json;

use crate::{
    block_on,
    chain::{FIRST, TRANSFER},
};

/// Blocks of one request.
const BATCH: u64 = 100;

#[derive(Deserialize)]
struct Answer {
    result: Vec<Log>,
}

/// Where the program was started as one of these: `download URL BLOCKS AT_ONCE bytes|parse`, `pour LINES BYTES`.
pub fn role(arguments: &[&str]) -> bool {
    match arguments {
        ["download", url, blocks, at_once, what] => {
            let (blocks, at_once) = (blocks.parse().unwrap(), at_once.parse().unwrap());
            println!("{}", block_on(download(url, blocks, at_once, *what == "parse")));
        }
        ["pour", lines, bytes] => pour(lines.parse().unwrap(), bytes.parse().unwrap()),
        _ => return false,
    }
    true
}

/// Downloads the logs of this many blocks, so many requests at once, and says how many there were. Without `parse`
/// what comes is thrown away as it comes, and its bytes are counted.
///
/// One task, as the program would be written that does this and nothing else.
async fn download(url: &str, blocks: u64, at_once: usize, parse: bool) -> u64 {
    // The client is built with TLS whether or not it is used.
    rustls::crypto::ring::default_provider().install_default().unwrap();
    let client = reqwest::Client::builder().timeout(Duration::from_mins(1)).build().unwrap();
    let ranges = (FIRST..FIRST + blocks).step_by(usize::try_from(BATCH).unwrap());
    let requests = ranges.map(|from| {
        let client = client.clone();
        async move {
            let to = (from + BATCH).min(FIRST + blocks) - 1;
            let filter =
                json!({"fromBlock": format!("0x{from:x}"), "toBlock": format!("0x{to:x}"), "topics": [[TRANSFER]]});
            let call = json!({"jsonrpc": "2.0", "id": 1, "method": "eth_getLogs", "params": [filter]});
            let mut response = client.post(url).json(&call).send().await.unwrap();
            if parse {
                let answer: Answer = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
                return answer.result.len() as u64;
            }
            let mut bytes = 0;
            while let Some(chunk) = response.chunk().await.unwrap() {
                bytes += chunk.len() as u64;
            }
            bytes
        }
    });
    stream::iter(requests).buffer_unordered(at_once).fold(0, async |sum, one| sum + one).await
}

/// Writes so many lines of so many bytes to standard output and does nothing else: how fast whoever reads the listener
/// is.
fn pour(lines: usize, bytes: usize) {
    let line = [vec![b'x'; bytes - 1], vec![b'\n']].concat();
    let at_once = (64 << 10) / bytes + 1;
    let text = line.repeat(at_once);
    let mut out = std::io::stdout().lock();
    for _ in 0..lines / at_once {
        out.write_all(&text).unwrap();
    }
    out.write_all(&text[..lines % at_once * bytes]).unwrap();
}
