//! Standard error that never holds up the work.
//!
//! A pipe that nobody reads blocks its writer, and a closed one makes `eprintln!` panic; a listener must survive both.
//! Lines are handed to a thread of their own, by way of the scrubber, so that no secret passes whoever logs it. While
//! standard error does not take them they wait, up to a limit of bytes; beyond it they are dropped, counted, and the
//! number is told as soon as a line goes through again. Errors of writing are ignored: there is nowhere to tell them.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

use super::scrub;

/// Bytes of lines that may wait.
const MAX_WAITING: usize = 8 << 20;
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Takes lines without ever blocking.
#[derive(Clone, Debug)]
pub(super) struct Outlet {
    lines: Sender<Parcel>,
    backlog: Arc<Backlog>,
}

#[derive(Debug)]
enum Parcel {
    Line(Vec<u8>),
    /// Answered once everything before it is written.
    Flush(Sender<()>),
}

#[derive(Debug, Default)]
struct Backlog {
    bytes: AtomicUsize,
    dropped: AtomicU64,
}

/// Waits for the last lines when it is dropped, for a second at most.
#[derive(Debug)]
#[must_use = "the last lines are lost when it is dropped at once"]
pub struct LogGuard {
    lines: Sender<Parcel>,
}

impl Outlet {
    /// Starts the thread that writes to `sink`; `told_dropped` words the line about a number of dropped ones.
    pub(super) fn start(
        mut sink: impl Write + Send + 'static,
        told_dropped: fn(u64) -> String,
    ) -> io::Result<(Self, LogGuard)> {
        let (lines, waiting) = channel();
        let backlog = Arc::new(Backlog::default());
        let counted = Arc::clone(&backlog);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write_all(&waiting, &counted, &mut sink, told_dropped))?;
        Ok((Self { lines: lines.clone(), backlog }, LogGuard { lines }))
    }
}

fn write_all(waiting: &Receiver<Parcel>, backlog: &Backlog, sink: &mut dyn Write, told_dropped: fn(u64) -> String) {
    while let Ok(parcel) = waiting.recv() {
        match parcel {
            Parcel::Line(line) => {
                sink.write_all(&line).ok();
                backlog.bytes.fetch_sub(line.len(), Ordering::Relaxed);
                let dropped = backlog.dropped.swap(0, Ordering::Relaxed);
                if dropped > 0 {
                    sink.write_all(told_dropped(dropped).as_bytes()).ok();
                }
            }
            Parcel::Flush(done) => {
                sink.flush().ok();
                // Whoever waited may have given up.
                done.send(()).ok();
            }
        }
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (done, written) = channel();
        if self.lines.send(Parcel::Flush(done)).is_ok() {
            written.recv_timeout(LAST_LINES).ok();
        }
    }
}

impl Write for Outlet {
    /// One call is one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let clean = scrub(&text).into_owned().into_bytes();
        let size = clean.len();
        let before = self.backlog.bytes.fetch_add(size, Ordering::Relaxed);
        if before + size > MAX_WAITING || self.lines.send(Parcel::Line(clean)).is_err() {
            self.backlog.bytes.fetch_sub(size, Ordering::Relaxed);
            self.backlog.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Outlet {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc::sync_channel};

    use super::*;

    /// Takes nothing until it is let go.
    struct Gate {
        open: Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.open.recv().ok();
            self.taken.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_stuck_costs_lines_but_neither_time_nor_memory() {
        let (let_go, open) = sync_channel(0);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let gate = Gate { open, taken: Arc::clone(&taken) };
        let (mut outlet, guard) = Outlet::start(gate, |n| format!("{n} dropped\n")).unwrap();
        let line = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            outlet.write_all(&line).unwrap();
        }
        assert!(outlet.backlog.bytes.load(Ordering::Relaxed) <= MAX_WAITING);
        drop(let_go);
        drop(guard);
        let text = String::from_utf8(taken.lock().unwrap().clone()).unwrap();
        assert!(text.contains("12 dropped\n"), "{} bytes", text.len());
        assert_eq!(text.matches('x').count(), 8 << 20);
    }

    #[test]
    fn every_line_is_scrubbed_on_its_way() {
        let (let_go, open) = sync_channel(0);
        drop(let_go);
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (mut outlet, guard) = Outlet::start(Gate { open, taken: Arc::clone(&taken) }, |n| n.to_string()).unwrap();
        outlet.write_all(b"to https://node.example/v2/CANARY failed\n").unwrap();
        drop(guard);
        assert_eq!(*taken.lock().unwrap(), b"to https://node.example failed\n");
    }
}
