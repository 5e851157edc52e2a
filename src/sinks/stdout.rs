//! Standard output: one JSON object a line, for pipes, files and the demo.
//!
//! A message is acknowledged once its line was written and flushed. A reader that pauses holds progress back, as any
//! sink does. After an attempt that failed or was dropped midway the next one begins with a line break, so that a torn
//! line never spoils the one after it.

use std::{
    io::{ErrorKind, Stdout, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};

use super::{Message, Outcome, Sink, SinkError};

/// Bytes of whole lines that are written at once, a thousand messages or so; bounds how long others wait. Between two pieces
/// the reader may have nothing to read, so there are few.
const PIECE_BYTES: usize = 1 << 20;

/// What a pipe may hold that its reader has not taken yet. With the usual 64 KiB (pipe(7)) the two wait for each other so often
/// that history takes 5 % longer; what is in it when the reader dies is lost in any case.
#[cfg(target_os = "linux")]
const PIPE_BYTES: usize = 1 << 18;

/// Why nothing can be written any more.
const CLOSED: &str = "standard output is closed";

/// Writes each message as a line.
#[derive(Debug)]
pub struct StdoutSink<W> {
    /// Held for whole lines, so that those of concurrent calls never mix.
    writer: Arc<Mutex<Lines<W>>>,
    closed: AtomicBool,
    patience: Duration,
}

#[derive(Debug)]
struct Lines<W> {
    out: W,
    /// Whether the last attempt may have left part of a line behind.
    torn: bool,
}

impl StdoutSink<Stdout> {
    /// The sink on this process's standard output. A call gives up after `patience`.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let out = std::io::stdout();
        widen(&out);
        Self::writing_to(out, patience)
    }
}

impl<W: Write + Send + 'static> StdoutSink<W> {
    /// The sink on any writer, which may block. A call gives up after `patience`; what it was writing then is still written
    /// once the reader goes on, before anything else.
    #[must_use]
    pub fn writing_to(out: W, patience: Duration) -> Self {
        let writer = Arc::new(Mutex::new(Lines { out, torn: false }));
        Self { writer, closed: AtomicBool::new(false), patience }
    }

    /// Writes in pieces, between which another call may write. Each goes to a thread for what blocks, and that is all the
    /// way there is for it: it is not copied.
    async fn write(&self, messages: &[Message]) -> std::io::Result<()> {
        let mut rest = messages;
        while let Some(piece) = next_piece(&mut rest) {
            let mut lines = self.writer.clone().lock_owned().await;
            spawn_blocking(move || lines.write(piece.text())).await??;
        }
        Ok(())
    }
}

/// Gives a pipe more room, where the system allows that.
#[cfg(target_os = "linux")]
fn widen(out: &Stdout) {
    use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};

    if fcntl_getpipe_size(out).is_ok_and(|bytes| bytes < PIPE_BYTES) {
        fcntl_setpipe_size(out, PIPE_BYTES).ok();
    }
}

#[cfg(not(target_os = "linux"))]
fn widen(_: &Stdout) {}

/// Whole lines.
enum Piece {
    /// Of one text, from the one message's to the other's.
    Composed(Box<(Message, Message)>),
    Copied(String),
}

impl Piece {
    fn text(&self) -> &str {
        match self {
            Self::Composed(ends) => ends.0.lines_to(&ends.1).unwrap_or_default(),
            Self::Copied(text) => text,
        }
    }
}

/// Takes messages as whole lines until they are a piece. Messages that were composed together are lines already.
fn next_piece(rest: &mut &[Message]) -> Option<Piece> {
    let (first, mut others) = rest.split_first()?;
    let (mut last, mut bytes, mut are_together) = (first, first.body().len() + 1, true);
    while bytes < PIECE_BYTES
        && let Some((message, behind)) = others.split_first()
    {
        are_together &= last.is_followed_by(message);
        bytes += message.body().len() + 1;
        (last, others) = (message, behind);
    }
    let taken = rest.len() - others.len();
    let copied = || rest.iter().take(taken).flat_map(|message| [message.body(), "\n"]).collect();
    let ends = || Box::new((first.clone(), last.clone()));
    let is_composed = are_together && first.lines_to(last).is_some();
    let piece = if is_composed { Piece::Composed(ends()) } else { Piece::Copied(copied()) };
    *rest = others;
    Some(piece)
}

impl<W: Write> Lines<W> {
    fn write(&mut self, lines: &str) -> std::io::Result<()> {
        if std::mem::replace(&mut self.torn, true) {
            self.out.write_all(b"\n")?;
        }
        self.out.write_all(lines.as_bytes())?;
        self.out.flush()?;
        self.torn = false;
        Ok(())
    }
}

#[async_trait]
impl<W: Write + Send + 'static> Sink for StdoutSink<W> {
    fn name(&self) -> &'static str {
        "stdout"
    }

    fn is_one_at_a_time(&self) -> bool {
        true
    }

    /// All of `pending`, or none of it.
    async fn send(&self, pending: &[Message]) -> Vec<Outcome> {
        let outcome = match timeout(self.patience, self.write(pending)).await {
            Ok(Ok(())) => Outcome::Acknowledged,
            Ok(Err(error)) if error.kind() == ErrorKind::BrokenPipe => {
                self.closed.store(true, Ordering::Relaxed);
                Outcome::Retry { reason: CLOSED.to_owned(), throttled: false }
            }
            Ok(Err(error)) => Outcome::Retry { reason: format!("standard output: {error}"), throttled: false },
            Err(_) => {
                let reason = format!("standard output was not read for {:?}", self.patience);
                Outcome::Retry { reason, throttled: false }
            }
        };
        vec![outcome; pending.len()]
    }

    async fn check(&self) -> Result<(), SinkError> {
        if self.closed.load(Ordering::Relaxed) { Err(SinkError::Fatal(CLOSED.to_owned())) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{PipeReader, Read as _, pipe},
        sync::PoisonError,
    };

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn message(body: &str) -> Message {
        Message::of_bodies(&[body]).remove(0)
    }

    /// Takes some bytes, then fails once, then works.
    #[derive(Debug)]
    struct Hiccup {
        room: usize,
        failed: bool,
        got: Vec<u8>,
    }

    impl Write for Hiccup {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let room = if self.failed { bytes.len() } else { self.room };
            let taken = bytes.len().min(room);
            if taken == 0 {
                self.failed = true;
                return Err(ErrorKind::StorageFull.into());
            }
            self.room = room - taken;
            self.got.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Takes a few bytes at a time.
    #[derive(Clone, Default)]
    struct Dribble(Arc<std::sync::Mutex<String>>);

    impl Write for Dribble {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = &bytes[..bytes.len().min(7)];
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push_str(std::str::from_utf8(taken).unwrap());
            std::thread::yield_now();
            Ok(taken.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written<W: std::fmt::Debug>(sink: StdoutSink<W>) -> W {
        Arc::try_unwrap(sink.writer).unwrap().into_inner().out
    }

    /// The first bytes that come.
    async fn begun(mut reader: PipeReader, bytes: usize) -> (PipeReader, String) {
        let reading = move || {
            let mut text = vec![0; bytes];
            reader.read_exact(&mut text).unwrap();
            (reader, String::from_utf8(text).unwrap())
        };
        spawn_blocking(reading).await.unwrap()
    }

    #[tokio::test]
    async fn each_message_is_one_line_and_is_acknowledged_after_it_was_written() {
        let sink = StdoutSink::writing_to(Vec::new(), PATIENCE);
        let outcomes = sink.send(&[message("{1}"), message("{2}")]).await;
        assert_eq!(outcomes, [Outcome::Acknowledged, Outcome::Acknowledged]);
        assert_eq!(written(sink), b"{1}\n{2}\n");
    }

    #[test]
    fn pieces_are_all_lines_in_order_whichever_messages_stand_together() {
        let body = |number: usize| format!("{number:05}{}", "x".repeat(PIECE_BYTES / 10));
        let together = |numbers: std::ops::Range<usize>| {
            let bodies: Vec<String> = numbers.map(body).collect();
            Message::of_bodies(&bodies.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let all = together(0..25);
        let mixed = [together(0..4), together(4..5), together(5..17), together(17..25)].concat();
        let without: Vec<Message> =
            all.iter().enumerate().filter(|(at, _)| at % 7 != 3).map(|(_, m)| m.clone()).collect();
        for (messages, are_together) in [(all, true), (mixed, false), (without, false)] {
            let expected = messages.iter().fold(String::new(), |text, message| text + message.body() + "\n");
            let (mut rest, mut text, mut pieces) = (&messages[..], String::new(), 0);
            while let Some(piece) = next_piece(&mut rest) {
                let lines = piece.text();
                assert!(lines.len() >= PIECE_BYTES || rest.is_empty(), "a piece of {} bytes", lines.len());
                assert!(lines.len() < PIECE_BYTES + PIECE_BYTES / 9 && lines.ends_with('\n'));
                assert!(!are_together || matches!(piece, Piece::Composed(..)), "it was copied");
                text.push_str(lines);
                pieces += 1;
            }
            assert_eq!((text, pieces), (expected, 3));
        }
    }

    #[tokio::test]
    async fn lines_of_concurrent_sends_never_mix() {
        let out = Dribble::default();
        let sink = Arc::new(StdoutSink::writing_to(out.clone(), Duration::from_secs(10)));
        let senders = ["a", "b", "c", "d"].map(|letter| {
            let sink = Arc::clone(&sink);
            tokio::spawn(async move { sink.send(&vec![message(&letter.repeat(50)); 20]).await })
        });
        for sender in senders {
            assert_eq!(sender.await.unwrap(), vec![Outcome::Acknowledged; 20]);
        }
        let text = out.0.lock().unwrap();
        assert_eq!(text.lines().count(), 80);
        assert!(text.lines().all(|line| line.len() == 50 && line.chars().all(|c| line.starts_with(c))));
    }

    #[tokio::test]
    async fn another_call_waits_for_a_piece_of_a_long_one() {
        let (reader, out) = pipe().unwrap();
        let sink = Arc::new(StdoutSink::writing_to(out, Duration::from_mins(1)));
        let body = "x".repeat(PIECE_BYTES / 4);
        let long = tokio::spawn({
            let (sink, lines) = (Arc::clone(&sink), Message::of_bodies(&[body.as_str(); 20]));
            async move { sink.send(&lines).await }
        });
        let (mut reader, _) = begun(reader, PIECE_BYTES / 4).await;
        let short = tokio::spawn({
            let sink = Arc::clone(&sink);
            async move { sink.send(&[message("short")]).await }
        });
        tokio::task::yield_now().await;
        drop(sink);
        let rest = spawn_blocking(move || {
            let mut rest = String::new();
            reader.read_to_string(&mut rest).unwrap();
            rest
        });
        for call in [long, short] {
            assert!(call.await.unwrap().iter().all(|outcome| *outcome == Outcome::Acknowledged));
        }
        let rest = rest.await.unwrap();
        let before = rest.lines().position(|line| line == "short").unwrap();
        assert!(before <= 5, "before it came {before} lines; a piece is four or five");
        assert_eq!(rest.lines().count(), 21, "with the end of the first line");
    }

    #[tokio::test]
    async fn a_closed_pipe_is_tried_again_and_fails_the_check() {
        let (reader, out) = pipe().unwrap();
        drop(reader);
        let sink = StdoutSink::writing_to(out, PATIENCE);
        let outcomes = sink.send(&[message("{}")]).await;
        assert_eq!(outcomes, [Outcome::Retry { reason: CLOSED.to_owned(), throttled: false }]);
        assert!(matches!(sink.check().await, Err(SinkError::Fatal(reason)) if reason == CLOSED));
    }

    #[tokio::test]
    async fn a_reader_that_pauses_holds_the_message_back_and_gets_it_whole_when_it_goes_on() {
        let (reader, out) = pipe().unwrap();
        let sink = StdoutSink::writing_to(out, PATIENCE);
        let long = "x".repeat(PIECE_BYTES);
        for tried in ["the first", "one behind it"] {
            let outcomes = sink.send(&[message(&long)]).await;
            let is_late = |outcome: &Outcome| matches!(outcome, Outcome::Retry { reason, .. } if reason.contains("not read for 200ms"));
            assert!(is_late(&outcomes[0]), "{tried}");
        }
        assert!(sink.check().await.is_ok());
        let (_reader, text) = begun(reader, PIECE_BYTES + 1).await;
        assert_eq!(text, format!("{long}\n"));
        assert_eq!(sink.send(&[message("{1}")]).await, [Outcome::Acknowledged]);
    }

    #[tokio::test]
    async fn a_torn_line_does_not_spoil_the_next_one() {
        let sink = StdoutSink::writing_to(Hiccup { room: 6, failed: false, got: Vec::new() }, PATIENCE);
        let pending = [message("{1}"), message("{2}")];
        let outcomes = sink.send(&pending).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry { .. })), "{outcomes:?}");
        assert_eq!(sink.send(&pending).await, vec![Outcome::Acknowledged; 2]);
        assert_eq!(written(sink).got, b"{1}\n{2\n{1}\n{2}\n");
    }
}
