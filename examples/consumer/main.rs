//! A small consumer of chaintap's messages, as a reference: it folds them by the rule of `docs/consuming.md` and prints
//! what every address received and sent of every token.
//!
//! ```text
//! chaintap run --demo --until 250 | cargo run --example consumer
//! cargo run --example consumer -- https://sqs.eu-west-1.amazonaws.com/123456789012/transfers
//! ```
//!
//! Without an argument it reads JSON lines from standard input to their end; with the URL of a queue it takes (and deletes)
//! what is in it. What it cannot fold is told on standard error, and the exit code is 1.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its answers are for people")]

use std::{error::Error, io::BufRead as _, process::ExitCode};

use aws_config::BehaviorVersion;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

mod fold;
mod queue;
mod totals;

use fold::Fold;
use totals::Totals;

/// A queue without a message for so long is taken to be empty.
const WAIT_SECONDS: i32 = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut fold = Fold::default();
    let (came, mistakes) = match std::env::args().nth(1) {
        None => lines(&mut fold)?,
        Some(url) => {
            chaintap::crypto::init();
            let tls = Provider::Rustls(CryptoMode::Ring);
            let http = aws_smithy_http_client::Builder::new().tls_provider(tls).build_https();
            let config = aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await;
            queue::drain(&aws_sdk_sqs::Client::new(&config), &url, WAIT_SECONDS, &mut fold).await?
        }
    };
    print!("{}", Totals::of(fold.live()));
    let (live, retracted) = (fold.live().count(), fold.retracted());
    eprintln!("{came} messages: {live} events that count, {retracted} taken back");
    for mistake in &mistakes {
        eprintln!("left out: {mistake}");
    }
    Ok(if mistakes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Folds standard input; how many lines came, and what could not be folded.
fn lines(fold: &mut Fold) -> Result<(usize, Vec<String>), std::io::Error> {
    let (mut came, mut mistakes) = (0, Vec::new());
    for line in std::io::stdin().lock().lines() {
        came += 1;
        if let Err(mistake) = fold.take(&line?) {
            mistakes.push(format!("line {came}: {mistake}"));
        }
    }
    Ok((came, mistakes))
}
