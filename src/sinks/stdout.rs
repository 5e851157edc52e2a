//! Standard output: one JSON object a line, for pipes, files and the demo.
//!
//! A message is acknowledged once its line was written and flushed. A reader that pauses holds progress back, as any
//! sink does. After an attempt that failed or was dropped midway the next one begins with a line break, so that a torn
//! line never spoils the one after it.

use std::{
    borrow::Cow,
    io::ErrorKind,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt, Stdout},
    sync::Mutex,
    time::timeout,
};

use super::{Message, Outcome, Sink, SinkError};

/// Bytes of whole lines that are written at once, a thousand messages or so; bounds what a call holds besides its messages, and
/// how long others wait. Between two pieces the reader may have nothing to read, so there are few.
const PIECE_BYTES: usize = 1 << 20;

/// Why nothing can be written any more.
const CLOSED: &str = "standard output is closed";

/// Writes each message as a line.
#[derive(Debug)]
pub struct StdoutSink<W> {
    /// Held for whole lines, so that those of concurrent calls never mix.
    writer: Mutex<Lines<W>>,
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
        Self::writing_to(tokio::io::stdout(), patience)
    }
}

impl<W: AsyncWrite + Unpin + Send> StdoutSink<W> {
    /// The sink on any writer. A call gives up after `patience`.
    #[must_use]
    pub fn writing_to(out: W, patience: Duration) -> Self {
        let writer = Mutex::new(Lines { out, torn: false });
        Self { writer, closed: AtomicBool::new(false), patience }
    }

    /// Writes in pieces, between which another call may write.
    async fn write(&self, messages: &[Message]) -> std::io::Result<()> {
        let mut rest = messages;
        while !rest.is_empty() {
            let piece = next_piece(&mut rest);
            self.writer.lock().await.write(piece.as_bytes()).await?;
        }
        Ok(())
    }
}

/// Takes messages as whole lines until they are a piece. Messages that were composed together are lines already.
fn next_piece<'a>(rest: &mut &'a [Message]) -> Cow<'a, str> {
    let Some((first, mut others)) = rest.split_first() else { return Cow::default() };
    let alone = || Cow::Owned(format!("{}\n", first.body()));
    let (mut last, mut piece) = (first, first.lines_to(first).map_or_else(alone, Cow::Borrowed));
    while piece.len() < PIECE_BYTES
        && let Some((message, behind)) = others.split_first()
    {
        let joined = if last.is_followed_by(message) { first.lines_to(message) } else { None };
        match (&piece, joined) {
            (Cow::Borrowed(_), Some(joined)) => piece = Cow::Borrowed(joined),
            _ => piece.to_mut().extend([message.body(), "\n"]),
        }
        (last, others) = (message, behind);
    }
    *rest = others;
    piece
}

impl<W: AsyncWrite + Unpin> Lines<W> {
    async fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if std::mem::replace(&mut self.torn, true) {
            self.out.write_all(b"\n").await?;
        }
        self.out.write_all(lines).await?;
        self.out.flush().await?;
        self.torn = false;
        Ok(())
    }
}

#[async_trait]
impl<W: AsyncWrite + Unpin + Send> Sink for StdoutSink<W> {
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
        pin::Pin,
        sync::Arc,
        task::{Context, Poll},
    };

    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(200);

    fn message(body: &str) -> Message {
        Message::of_bodies(&[body]).remove(0)
    }

    /// Takes some bytes, then fails once, then works.
    struct Hiccup {
        room: usize,
        failed: bool,
        got: Vec<u8>,
    }

    impl AsyncWrite for Hiccup {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
            if self.failed {
                self.got.extend_from_slice(bytes);
                return Poll::Ready(Ok(bytes.len()));
            }
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                self.failed = true;
                return Poll::Ready(Err(std::io::Error::from(ErrorKind::StorageFull)));
            }
            self.room -= taken;
            self.got.extend_from_slice(&bytes[..taken]);
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn each_message_is_one_line_and_is_acknowledged_after_it_was_written() {
        let sink = StdoutSink::writing_to(Vec::new(), PATIENCE);
        let outcomes = sink.send(&[message("{1}"), message("{2}")]).await;
        assert_eq!(outcomes, [Outcome::Acknowledged, Outcome::Acknowledged]);
        assert_eq!(sink.writer.into_inner().out, b"{1}\n{2}\n");
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
        for (messages, are_borrowed) in [(all, true), (mixed, false), (without, false)] {
            let expected = messages.iter().fold(String::new(), |text, message| text + message.body() + "\n");
            let (mut rest, mut text, mut pieces) = (&messages[..], String::new(), 0);
            while !rest.is_empty() {
                let piece = next_piece(&mut rest);
                assert!(piece.len() >= PIECE_BYTES || rest.is_empty(), "a piece of {} bytes", piece.len());
                assert!(piece.len() < PIECE_BYTES + PIECE_BYTES / 9 && piece.ends_with('\n'));
                assert!(!are_borrowed || matches!(piece, Cow::Borrowed(_)), "it was copied");
                text.push_str(&piece);
                pieces += 1;
            }
            assert_eq!((text, pieces), (expected, 3));
        }
    }

    #[tokio::test]
    async fn lines_of_concurrent_sends_never_mix() {
        let (out, mut reader) = duplex(7);
        let sink = Arc::new(StdoutSink::writing_to(out, Duration::from_secs(10)));
        let senders = ["a", "b", "c", "d"].map(|letter| {
            let sink = Arc::clone(&sink);
            tokio::spawn(async move { sink.send(&vec![message(&letter.repeat(50)); 20]).await })
        });
        let read = tokio::spawn(async move {
            let mut text = String::new();
            reader.read_to_string(&mut text).await.unwrap();
            text
        });
        for sender in senders {
            assert_eq!(sender.await.unwrap(), vec![Outcome::Acknowledged; 20]);
        }
        drop(sink);
        let text = read.await.unwrap();
        assert_eq!(text.lines().count(), 80);
        assert!(text.lines().all(|line| line.len() == 50 && line.chars().all(|c| line.starts_with(c))));
    }

    #[tokio::test]
    async fn another_call_waits_for_a_piece_of_a_long_one() {
        let (out, mut reader) = duplex(4 << 10);
        let sink = Arc::new(StdoutSink::writing_to(out, Duration::from_mins(1)));
        let body = "x".repeat(PIECE_BYTES / 4);
        let long = tokio::spawn({
            let (sink, lines) = (Arc::clone(&sink), Message::of_bodies(&[body.as_str(); 20]));
            async move { sink.send(&lines).await }
        });
        // It has begun.
        reader.read_exact(&mut vec![0; PIECE_BYTES / 4]).await.unwrap();
        let short = tokio::spawn({
            let sink = Arc::clone(&sink);
            async move { sink.send(&[message("short")]).await }
        });
        tokio::task::yield_now().await;
        drop(sink);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).await.unwrap();
        let before = rest.lines().position(|line| line == "short").unwrap();
        assert!(before <= 5, "before it came {before} lines; a piece is four or five");
        assert_eq!(rest.lines().count(), 21, "with the end of the first line");
        for call in [long, short] {
            assert!(call.await.unwrap().iter().all(|outcome| *outcome == Outcome::Acknowledged));
        }
    }

    #[tokio::test]
    async fn a_closed_pipe_is_tried_again_and_fails_the_check() {
        let (out, reader) = duplex(64);
        drop(reader);
        let sink = StdoutSink::writing_to(out, PATIENCE);
        let outcomes = sink.send(&[message("{}")]).await;
        assert_eq!(outcomes, [Outcome::Retry { reason: CLOSED.to_owned(), throttled: false }]);
        assert!(matches!(sink.check().await, Err(SinkError::Fatal(reason)) if reason == CLOSED));
    }

    #[tokio::test]
    async fn a_reader_that_pauses_holds_the_message_back() {
        let (out, _reader) = duplex(4);
        let sink = StdoutSink::writing_to(out, PATIENCE);
        let outcomes = sink.send(&[message("{\"long\":1}")]).await;
        assert!(matches!(&outcomes[..], [Outcome::Retry { reason, .. }] if reason.contains("not read for 200ms")));
        assert!(sink.check().await.is_ok());
    }

    #[tokio::test]
    async fn a_torn_line_does_not_spoil_the_next_one() {
        let sink = StdoutSink::writing_to(Hiccup { room: 6, failed: false, got: Vec::new() }, PATIENCE);
        let pending = [message("{1}"), message("{2}")];
        let outcomes = sink.send(&pending).await;
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry { .. })), "{outcomes:?}");
        assert_eq!(sink.send(&pending).await, vec![Outcome::Acknowledged; 2]);
        assert_eq!(sink.writer.into_inner().out.got, b"{1}\n{2\n{1}\n{2}\n");
    }
}
