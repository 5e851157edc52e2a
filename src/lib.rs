//! chaintap listens to one EVM chain and hands every transfer of the tokens that the business tracks to a queue, at least
//! once.
//!
//! > **Follow** the head, **plan** the ranges still missing, **claim** one, **fetch** its logs, **decode** them, **filter**
//! > by token, **deliver** to every sink, **commit** the progress, and when the chain reorganises, **unwind**.
//!
//! Nine verbs: each is a file or a folder in [`pipeline`], a value of the metric label `stage`, and nothing else invents
//! another order.
//!
//! ```text
//!        nodes                       Redis or one file                      MongoDB or a file
//!          │ heads, logs                     ▲  │                                  │ tokens
//!          ▼                                 │  ▼                                  ▼
//!   ┌─ rpc::ChainSource ─┐          ┌─ store::StateStore ─┐          ┌─ tokens::TokenDirectory ─┐
//!   └─────────┬──────────┘          └──────────▲──────────┘          └────────────┬─────────────┘
//!             │                                │                                  │
//!   follow ─► plan ─► claim ─► fetch ─► decode ─► filter ─► deliver ─► commit
//!      └────► unwind ───────────────────────────────────────────┤
//!                                                  ┌─ sinks::Sink ─┐
//!                                                  └───────┬───────┘
//!                                                          ▼ messages
//!                                                  SQS or standard output
//! ```
//!
//! # Where to begin
//!
//! [`pipeline`] reads as the story; [`domain`] has its words. [`store`] is the delivery protocol (`docs/protocol.md`) as a
//! trait with two homes, [`rpc`], [`tokens`] and [`sinks`] are the other three edges. [`app`] puts them together, the
//! only file that names concrete adapters. Around them: [`config`] (what was typed, what is true), [`telemetry`] (what
//! the process tells of itself), [`api`] (over HTTP), [`cli`] (the commands), [`devchain`], a simulated node, and [`recording`], what nodes said.
//! [`mutants`] and `fuzzing` serve the tests alone.
//!
//! # Who may import whom
//!
//! Arrows point down only: `cli`, `app` → everything; `pipeline` → `domain`, `backoff`, `telemetry`, the types of
//! `config`, the traits of the edges; a stage never imports another stage; an edge imports `domain`, its own section of
//! `config` and what counts or scrubs, never another edge; `domain` imports nothing of ours. A client crate stays in
//! its file. `tests/tidy.rs` holds all of it, and the sizes.
//!
//! # Invariants
//!
//! 1. A block is committed only once every sink acknowledged every event of it, or a dead letter durably holds it.
//!    `deliver` alone makes a `Delivered`, and `commit` consumes one: the other order does not compile.
//! 2. The watermark never passes a block that is not delivered. It counts commits, never claims, markers or errors.
//! 3. What is left to do is derived: the blocks between watermark and head that are not done. No queue, no variable, no
//!    notification decides it, so a restart, a gap, a lost message and a set-back by hand are one case.
//! 4. Nothing of a block that may still leave the chain is sent before its intent is journaled.
//! 5. What was sent from a block that left the chain is taken back, from the journal, before anything new is sent.
//! 6. An id is `{chain}:{block hash}:{log index}`, and a version grows with every new life of a block; consumers that keep
//!    the highest version per id are right, whatever arrives twice or late.
//! 7. Every queue, answer, request, retry and wait has a limit. A sink that is down holds back progress, not memory.
//! 8. No secret prints: secrets have types of their own, and foreign texts are scrubbed.
//! 9. What is absent stops the work: no token list, no state, another chain's node mean wait or end, never "everything".
//!
//! # Where this departs from habit
//!
//! Settings are layered here rather than by the `config` crate, because every mistake is reported with file, line and
//! mend, and that crate keeps no places. The HTTP transport below alloy's JSON-RPC client is our own, because alloy's
//! reads an answer whatever its size and quotes URLs in its errors; and answers with logs do not go through that client, which
//! would hold megabytes as they were said, but are read while they arrive. Beside the verbs [`pipeline`] has the loop
//! (`tracks`: it decides when, they decide what) and what looks a second time at delivered blocks; its page names them.

pub mod domain;

pub mod pipeline;

pub mod recording;
pub mod rpc;
pub mod sinks;
pub mod store;
pub mod tokens;

pub mod app;
pub mod cli;
pub mod config;

pub mod api;
pub mod backoff;
pub mod crypto;
pub mod failure;
pub mod shutdown;
pub mod telemetry;

pub mod devchain;

pub mod mutants;

#[doc(hidden)]
pub mod fuzzing;
