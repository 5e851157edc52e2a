//! When the events of new blocks came: read from a listener's standard output, or noted by a queue.

use std::{
    collections::HashMap,
    io::{BufRead as _, Read as _},
    process::ChildStdout,
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::growing::MARK;

const PATIENCE: Duration = Duration::from_secs(30);

/// Events of each new block so far, and when the last one came.
type Blocks = HashMap<u64, (usize, Instant)>;

/// What came, of blocks that have so many events each.
pub struct Arrivals {
    logs: usize,
    blocks: Mutex<Blocks>,
    came: Condvar,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Arrivals {
    /// Nothing yet.
    pub fn new(logs: usize) -> Arc<Self> {
        Arc::new(Self { logs, blocks: Mutex::default(), came: Condvar::new(), reader: Mutex::default() })
    }

    /// Of what a listener writes.
    pub fn reading(output: ChildStdout, logs: usize) -> Arc<Self> {
        let arrivals = Self::new(logs);
        let noted = Arc::clone(&arrivals);
        let reader = std::thread::spawn(move || read(output, |block, at| noted.note(block, at)));
        *arrivals.reader.lock().unwrap() = Some(reader);
        arrivals
    }

    /// One more event of this block.
    pub fn note(&self, block: u64, at: Instant) {
        let mut blocks = self.blocks.lock().unwrap();
        let (count, last) = blocks.entry(block).or_insert((0, at));
        (*count, *last) = (*count + 1, at);
        if *count >= self.logs {
            self.came.notify_all();
        }
    }

    /// When the last event of this block came; waits for it.
    pub fn of(&self, block: u64) -> Instant {
        let is_missing = |blocks: &mut Blocks| blocks.get(&block).is_none_or(|(count, _)| *count < self.logs);
        let blocks = self.blocks.lock().unwrap();
        let (blocks, waited) = self.came.wait_timeout_while(blocks, PATIENCE, is_missing).unwrap();
        assert!(!waited.timed_out(), "block {block} was not delivered within {PATIENCE:?}");
        blocks[&block].1
    }

    /// That so many blocks came, each whole and once; after the listener ended.
    pub fn check(&self, count: u64) {
        if let Some(reader) = self.reader.lock().unwrap().take() {
            reader.join().unwrap();
        }
        let blocks = self.blocks.lock().unwrap();
        assert_eq!(blocks.len() as u64, count, "blocks came");
        assert!(blocks.values().all(|(events, _)| *events == self.logs), "a block did not come whole and once");
    }
}

/// Reads messages, and tells the block of each that is of a new one.
fn read(mut output: ChildStdout, note: impl Fn(u64, Instant)) {
    const BEFORE: &[u8] = br#""transactionHash":"0x"#;
    let mut buffer = vec![0; 1 << 20];
    let (mut held, mut place) = (0, None);
    loop {
        let read = output.read(&mut buffer[held..]).unwrap();
        if read == 0 {
            return;
        }
        let at = Instant::now();
        held += read;
        let mut begin = 0;
        loop {
            let mut rest = &buffer[begin..held];
            // The reader competes with the listener for processors: this is the fastest way to a line's end.
            let length = rest.skip_until(b'\n').unwrap();
            let Some(line) = buffer[begin..begin + length].strip_suffix(b"\n") else { break };
            // All that stands before it has one length.
            let place = *place.get_or_insert_with(|| {
                line.windows(BEFORE.len()).position(|part| part == BEFORE).unwrap() + BEFORE.len()
            });
            if line[place..].starts_with(MARK.as_bytes()) {
                let number = str::from_utf8(&line[place + MARK.len()..][..16]).unwrap();
                note(u64::from_str_radix(number, 16).unwrap(), at);
            }
            begin += length;
        }
        buffer.copy_within(begin..held, 0);
        held -= begin;
    }
}
