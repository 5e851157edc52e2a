//! Signals, seen from outside: a process of its own is sent real ones.
#![allow(clippy::unwrap_used, clippy::expect_used)] // what a test's own functions cannot do fails the test

use std::{
    future::pending,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(20);

/// The process that the tests below send signals to: it never finishes what is in flight.
#[tokio::test]
#[ignore = "started by the other tests, in a process of its own"]
async fn process_that_never_finishes() {
    let stop = chaintap::shutdown::on_signals().unwrap();
    say("listening").await;
    timeout(LIMIT, stop.cancelled()).await.unwrap();
    say("draining").await;
    chaintap::shutdown::within_grace(&stop, LIMIT, pending::<()>()).await;
    say("cut off").await;
}

async fn say(word: &str) {
    let mut out = tokio::io::stdout();
    out.write_all(format!("\n{word}\n").as_bytes()).await.unwrap();
    out.flush().await.unwrap();
}

fn start() -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["process_that_never_finishes", "--exact", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

async fn wait_for(lines: &mut Lines<BufReader<ChildStdout>>, word: &str) {
    let seen = async { while lines.next_line().await.unwrap().expect("it still runs") != word {} };
    timeout(LIMIT, seen).await.unwrap();
}

async fn signal(child: &Child, name: &str) {
    let id = child.id().unwrap().to_string();
    assert!(Command::new("kill").args(["-s", name, &id]).status().await.unwrap().success());
}

async fn end(mut child: Child) -> ExitStatus {
    timeout(LIMIT, child.wait()).await.unwrap().unwrap()
}

#[tokio::test]
async fn the_first_signal_drains_and_a_second_one_ends_the_process_at_once() {
    for (first, second, code) in [("TERM", "TERM", 143), ("INT", "INT", 130), ("TERM", "INT", 130)] {
        let (child, mut lines) = start();
        wait_for(&mut lines, "listening").await;
        signal(&child, first).await;
        wait_for(&mut lines, "draining").await;
        signal(&child, second).await;
        assert_eq!(end(child).await.code(), Some(code), "{first}, {second}");
    }
}
