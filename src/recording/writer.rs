//! Writes a recording, beside the listener and never in its way.
//!
//! One thread writes. What it cannot take in time is dropped and counted, and so is everything while the directory cannot be
//! written to, which is told once and tried again every half a minute. The files never hold more than the limit: the oldest go.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use serde::de::IgnoredAny;
use tokio::{sync::oneshot, time::timeout};
use tracing::{info, warn};

use super::{DIGITS, Record, SUFFIX, is_segment, now};
use crate::telemetry::{
    metrics,
    scrub::{MASK, scrub},
};

/// Records that wait for the writer, and their bytes.
const WAITING: (usize, usize) = (4_096, 64 << 20);
/// What was written so long ago survives a kill.
const FLUSH: Duration = Duration::from_secs(1);
/// A directory that could not be written to is left alone for this long.
const AGAIN: Duration = Duration::from_secs(30);
/// The limit holds about so many segments, of these sizes.
const SEGMENTS: u64 = 16;
const SEGMENT_BYTES: (u64, u64) = (64 << 10, 16 << 20);
/// What gzip adds to data that it cannot compress: a header and an end, and a little for each block.
const GZIP_BYTES: u64 = 64;
/// The end waits no longer than this for what is not written yet.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// Where the traffic with the nodes is kept.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: SyncSender<Message>,
    /// Bytes that wait.
    waiting: Arc<AtomicUsize>,
}

enum Message {
    Record(Box<Record>),
    Close(oneshot::Sender<()>),
}

impl Recorder {
    /// Begins a recording in `dir`, which is made if need be, of at most so many bytes together with what is there of earlier
    /// ones. `secrets` are masked wherever they stand.
    ///
    /// # Errors
    ///
    /// Where the system gives no thread. What is wrong with the directory is told later, in the log.
    pub fn start(dir: PathBuf, limit: u64, secrets: Vec<String>) -> io::Result<Self> {
        let (queue, records) = mpsc::sync_channel(WAITING.0);
        let waiting = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&waiting);
        let files = Files::new(dir, limit);
        thread::Builder::new()
            .name("recording".to_owned())
            .spawn(move || write(&records, &counted, &secrets, files))?;
        Ok(Self { queue, waiting })
    }

    /// Keeps a record, or drops and counts it; never waits.
    pub fn keep(&self, record: Record) {
        let bytes = record.bytes();
        let waiting = self.waiting.fetch_add(bytes, Ordering::Relaxed);
        let is_taken = waiting + bytes <= WAITING.1 && self.queue.try_send(Message::Record(Box::new(record))).is_ok();
        if !is_taken {
            self.waiting.fetch_sub(bytes, Ordering::Relaxed);
            metrics::recorded("dropped");
        }
    }

    /// Waits a moment until what was kept is written. Nothing is kept any more.
    pub async fn close(&self) {
        let (done, written) = oneshot::channel();
        // Where the queue is full, or the thread gone, there is nothing to wait for.
        if self.queue.try_send(Message::Close(done)).is_ok() && !matches!(timeout(LAST_WAIT, written).await, Ok(Ok(())))
        {
            warn!("the end of the recording was not written in time");
        }
    }
}

/// Writes what comes, until the end.
fn write(records: &Receiver<Message>, waiting: &AtomicUsize, secrets: &[String], mut files: Files) {
    let mut flushed = Instant::now();
    loop {
        match records.recv_timeout(FLUSH) {
            Ok(Message::Record(record)) => {
                let line = line(&record, secrets);
                let is_kept = line.is_some_and(|line| files.keep(&line));
                waiting.fetch_sub(record.bytes(), Ordering::Relaxed);
                metrics::recorded(if is_kept { "kept" } else { "dropped" });
            }
            Ok(Message::Close(done)) => {
                drop(files);
                // Whoever asked may be gone.
                return done.send(()).unwrap_or_default();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if flushed.elapsed() >= FLUSH {
            files.flush();
            flushed = Instant::now();
        }
    }
}

/// The record in one line, without secrets; `None` where it cannot be kept without.
fn line(record: &Record, secrets: &[String]) -> Option<String> {
    let mut line = serde_json::to_string(record).ok()?;
    for secret in secrets {
        if line.contains(secret) {
            line = line.replace(secret, MASK);
        }
    }
    if !record.is_plain() || line.contains("://") {
        let scrubbed = scrub(&line).into_owned();
        serde_json::from_str::<IgnoredAny>(&scrubbed).ok()?;
        line = scrubbed;
    }
    line.push('\n');
    Some(line)
}

/// The segments in the directory.
struct Files {
    dir: PathBuf,
    limit: u64,
    /// When this recording began, milliseconds since the Unix epoch.
    start: u64,
    /// Segments that it has begun.
    number: u32,
    current: Option<Segment>,
    /// The others, the oldest first, with their sizes; `None` before the directory was looked at.
    others: Option<VecDeque<(PathBuf, u64)>>,
    /// Not tried again before.
    failed_until: Option<Instant>,
}

impl Files {
    fn new(dir: PathBuf, limit: u64) -> Self {
        Self { dir, limit, start: now() / 1_000, number: 0, current: None, others: None, failed_until: None }
    }

    /// Whether the line is kept.
    fn keep(&mut self, line: &str) -> bool {
        if self.failed_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        match self.write(line) {
            Ok(is_kept) => {
                if self.failed_until.take().is_some() {
                    info!(dir = %self.dir.display(), "the traffic is recorded again");
                }
                is_kept
            }
            Err(error) => {
                self.failed(&error);
                false
            }
        }
    }

    fn failed(&mut self, error: &io::Error) {
        if self.failed_until.is_none() {
            warn!(dir = %self.dir.display(), %error, "the traffic cannot be recorded; what is lost is counted");
        }
        (self.current, self.others) = (None, None);
        self.failed_until = Some(Instant::now() + AGAIN);
    }

    fn write(&mut self, line: &str) -> io::Result<bool> {
        let bytes = line.len() as u64;
        let most = bytes + bytes / 1_000 + GZIP_BYTES;
        if !self.make_room(most)? {
            return Ok(false);
        }
        let segment_bytes = (self.limit / SEGMENTS).clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1);
        if self.current.as_ref().is_some_and(|current| current.bytes() >= segment_bytes) {
            self.flush_current()?;
        }
        if self.current.as_ref().is_some_and(|current| current.bytes() >= segment_bytes) {
            self.end_current()?;
        }
        if self.current.is_none() {
            self.current = Some(Segment::create(&self.dir, self.start, self.number)?);
            self.number += 1;
        }
        self.current.as_mut().map_or(Ok(()), |current| current.write(line, most))?;
        Ok(true)
    }

    /// Deletes the oldest segments until so many bytes more are within the limit; whether they can be.
    fn make_room(&mut self, bytes: u64) -> io::Result<bool> {
        if bytes > self.limit {
            return Ok(false);
        }
        let mut others = match self.others.take() {
            Some(others) => others,
            None => segments(&self.dir)?,
        };
        let mut held: u64 = others.iter().map(|(_, bytes)| bytes).sum();
        loop {
            let current = self.current.as_ref().map_or(0, Segment::bytes);
            if held + current + bytes <= self.limit {
                self.others = Some(others);
                return Ok(true);
            }
            if let Some((path, bytes)) = others.pop_front() {
                remove(&path)?;
                held -= bytes;
            } else if let Some(current) = self.current.take() {
                let (path, bytes) = current.finish()?;
                held += bytes;
                others.push_back((path, bytes));
            }
        }
    }

    fn end_current(&mut self) -> io::Result<()> {
        if let Some(current) = self.current.take() {
            let ended = current.finish()?;
            self.others.get_or_insert_default().push_back(ended);
        }
        Ok(())
    }

    fn flush_current(&mut self) -> io::Result<()> {
        self.current.as_mut().map_or(Ok(()), Segment::flush)
    }

    /// What was written survives a kill of the process.
    fn flush(&mut self) {
        if let Err(error) = self.flush_current() {
            self.failed(&error);
        }
    }
}

/// The segments that are there, the oldest first, with their sizes; makes the directory.
fn segments(dir: &Path) -> io::Result<VecDeque<(PathBuf, u64)>> {
    fs::create_dir_all(dir)?;
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_segment) {
            found.push((entry.path(), entry.metadata()?.len()));
        }
    }
    found.sort();
    Ok(found.into())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The file that is written to.
struct Segment {
    path: PathBuf,
    gzip: GzEncoder<Counted>,
    /// Bytes that may come out of what was not flushed yet.
    pending: u64,
}

struct Counted {
    file: File,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Segment {
    fn create(dir: &Path, start: u64, number: u32) -> io::Result<Self> {
        let (start_digits, digits) = DIGITS;
        let path = dir.join(format!("{start:0start_digits$}-{number:0digits$}{SUFFIX}"));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let gzip = GzEncoder::new(Counted { file, bytes: 0 }, Compression::fast());
        Ok(Self { path, gzip, pending: 0 })
    }

    /// How much it holds, at most.
    fn bytes(&self) -> u64 {
        self.gzip.get_ref().bytes + self.pending
    }

    fn write(&mut self, line: &str, most: u64) -> io::Result<()> {
        self.pending += most;
        self.gzip.write_all(line.as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.pending > 0 {
            self.gzip.flush()?;
            self.pending = 0;
        }
        Ok(())
    }

    /// Ends it; where it is, and its size.
    fn finish(self) -> io::Result<(PathBuf, u64)> {
        let counted = self.gzip.finish()?;
        Ok((self.path, counted.bytes))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::{
        super::{Answer, Call, Event, Exchange, Reply, read},
        *,
    };

    /// An answer of so many characters that no compression makes much smaller.
    fn record(at: u64, characters: usize) -> Record {
        let mut state = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let text: String = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'0' + u8::try_from(state % 10).unwrap())
        })
        .take(characters)
        .collect();
        let result = RawValue::from_string(format!("\"{text}\"")).unwrap();
        let asked = vec![Call { method: "eth_getLogs".into(), params: RawValue::from_string("[]".into()).unwrap() }];
        let answer = Answer::Replies(vec![Reply::Result(result)]);
        Record { at, endpoint: "one".into(), event: Event::Exchange(Exchange { took: 1, asked, answer }) }
    }

    fn held(dir: &Path) -> u64 {
        segments(dir).unwrap().iter().map(|(_, bytes)| bytes).sum()
    }

    #[test]
    fn the_files_never_hold_more_than_the_limit_and_the_newest_records_stay() {
        let dir = tempfile::tempdir().unwrap();
        let stranger = dir.path().join("notes.jsonl.gz");
        fs::write(&stranger, "not ours").unwrap();
        let limit = 1 << 20;
        for start in [1, 2] {
            let mut files = Files { start, ..Files::new(dir.path().to_owned(), limit) };
            for nth in 0..200 {
                let line = line(&record(start * 1_000 + nth, 20_000), &[]).unwrap();
                assert!(files.keep(&line));
                assert!(held(dir.path()) <= limit);
                if nth % 7 == 0 {
                    files.flush();
                    assert!(held(dir.path()) <= limit);
                }
            }
        }
        let kept = read(dir.path()).unwrap();
        assert_eq!(kept.last().unwrap().at, 2_199);
        assert!(kept.len() > 60 && kept.windows(2).all(|pair| pair[0].at + 1 == pair[1].at), "{}", kept.len());
        assert!(stranger.exists());
        let mut files = Files::new(dir.path().to_owned(), limit);
        assert!(!files.keep(&"x".repeat(1 << 20)), "one that is larger than the limit");
    }

    #[test]
    fn what_was_flushed_is_readable_whatever_becomes_of_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::new(dir.path().to_owned(), 1 << 20);
        (0..5).for_each(|at| assert!(files.keep(&line(&record(at, 100), &[]).unwrap())));
        files.flush();
        (5..9).for_each(|at| assert!(files.keep(&line(&record(at, 100), &[]).unwrap())));
        // As a kill leaves it: without an end.
        assert_eq!(read(dir.path()).unwrap().len(), 5);
        drop(files);
        assert_eq!(read(dir.path()).unwrap().len(), 9);
    }

    #[test]
    fn no_secret_and_no_url_is_kept() {
        let secrets = ["abcdef-0123456789".to_owned()];
        let said =
            r#"{"code":1,"message":"see https://node.example/v2/other-key?x=1 apikey=hunter2 abcdef-0123456789"}"#;
        let mut record = record(1, 10);
        let Event::Exchange(exchange) = &mut record.event else { panic!() };
        exchange.answer = Answer::Replies(vec![Reply::Error(RawValue::from_string(said.into()).unwrap())]);
        let line = line(&record, &secrets).unwrap();
        for secret in ["other-key", "hunter2", "abcdef"] {
            assert!(!line.contains(secret), "{line}");
        }
        assert!(line.contains("see https://node.example") && serde_json::from_str::<Record>(&line).is_ok(), "{line}");
    }
}
