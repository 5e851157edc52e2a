//! One endpoint of the pool: its connection, verified by the chain's id, and the record of how it does.
//!
//! What it answers and how it fails decides whether it is asked again (`breaker`); what it was seen to have decides for what. The
//! record is written after every request, whoever sent it.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    EndpointState, RpcError,
    bearing::Bearing,
    breaker::{Breaker, Gate, STEADY, Why},
    budget::Budget,
    client::Node,
    connection::{Connection, Way},
    floor::Floor,
    patience::Patience,
    question::{Kind, Question},
    route::{Height, Standing},
    tap::Tape,
};
use crate::{
    config::{Limits, Provider},
    domain::Header,
    recording::Recorder,
};

/// An endpoint on another chain or fork is not asked for this long.
const EJECTED_FOR: Duration = Duration::from_mins(10);
/// An endpoint that says that it will never serve a kind of request is not asked for that kind for this long.
const REFUSED_FOR: Duration = Duration::from_mins(5);
/// A height that was seen longer ago says little about where the endpoint is now.
const FRESH: Duration = Duration::from_secs(2);
/// An endpoint has to lag for this long before others are preferred.
const LAGS_AFTER: Duration = Duration::from_secs(10);
/// Where there is another one, it is not waited for longer than this until it is connected.
const CONNECTS: Duration = Duration::from_secs(5);

/// One endpoint.
pub(super) struct Endpoint {
    pub(super) provider: Provider,
    budget: Arc<Budget>,
    pub(super) bearing: Arc<Bearing>,
    /// Where its traffic is kept; nowhere before it is set.
    pub(super) recorder: OnceLock<Recorder>,
    connection: Connection,
    record: Mutex<Record>,
    /// Tells that requests leave it: whoever waits for something from it should look elsewhere.
    pub(super) left: Notify,
}

/// How an endpoint has done so far.
#[derive(Default)]
struct Record {
    asked: u64,
    errors: u64,
    last_error: Option<String>,
    /// The last failure's kind, for metric labels.
    last_kind: &'static str,
    /// It was away since its chain was verified: another node may stand there now (F11).
    doubtful: bool,
    breaker: Breaker,
    /// Why it is ejected, while it is.
    ejected: Option<String>,
    patience: Patience,
    refused: [Option<Instant>; 2],
    /// The newest block that it was seen to have, and when.
    head: Option<(u64, Instant)>,
    /// When it was last looked at without need.
    probed: Option<Instant>,
    /// Blocks that it was behind the best one when its head was last seen.
    lag: u64,
    lags_since: Option<Instant>,
    /// Who waits for something from it was told that it lags, since it does.
    lag_told: bool,
    /// When it had last caught up after it lagged.
    caught_up: Option<Instant>,
    disagreements: u64,
    /// From where on it has blocks.
    floor: Floor,
}

impl Record {
    fn lags(&self, now: Instant) -> bool {
        self.lags_since.is_some_and(|since| now.duration_since(since) >= LAGS_AFTER)
    }

    fn refusal(&mut self, kind: Kind) -> Option<&mut Option<Instant>> {
        let [block_logs, range_logs] = &mut self.refused;
        match kind {
            Kind::Header => None,
            Kind::BlockLogs => Some(block_logs),
            Kind::RangeLogs => Some(range_logs),
        }
    }

    /// Why others are asked instead, in words and as a metric label; `None` where it serves.
    fn aside(&self, now: Instant) -> Option<(String, &'static str)> {
        match self.breaker.gate(now) {
            Gate::Open(Why::Ejected, _) => {
                let text = self.ejected.clone().unwrap_or_else(|| "it is on another fork".to_owned());
                Some((text, "ejected"))
            }
            Gate::Open(Why::Throttles | Why::Waits, _) => {
                Some(("it asked for fewer requests".to_owned(), "rate_limited"))
            }
            Gate::Open(Why::Fails, _) | Gate::HalfOpen => Some(("it does not serve".to_owned(), self.last_kind)),
            Gate::Closed if self.lags(now) => Some((format!("it is {} blocks behind", self.lag), "lags")),
            Gate::Closed => None,
        }
    }
}

impl Endpoint {
    /// Nothing is sent yet.
    pub(super) fn new(provider: Provider) -> Self {
        let budget = Arc::new(Budget::of(&provider));
        let bearing = Arc::new(Bearing::new(Arc::clone(&budget)));
        Self {
            provider,
            budget,
            bearing,
            recorder: OnceLock::new(),
            connection: Connection::default(),
            record: Mutex::default(),
            left: Notify::new(),
        }
    }

    /// What its traffic is kept with.
    pub(super) fn tape(&self) -> Tape {
        Tape::new(self.name(), self.recorder.get())
    }

    pub(super) fn name(&self) -> &str {
        &self.provider.name
    }

    /// Asks it, and takes note of how it did. `limited`: there is another one, so that this one is not waited for longer
    /// than its answers usually take.
    pub(super) async fn ask<R, F>(
        &self,
        (chain_id, limits): (u64, &Limits),
        question: Question,
        limited: bool,
        request: impl FnOnce(Arc<Node>) -> F,
    ) -> Result<R, RpcError>
    where
        F: Future<Output = Result<R, RpcError>> + Send,
    {
        let _in_flight = if question.is_of_history() { Some(self.bearing.place().await) } else { None };
        // It may have stopped serving while others were waited for.
        if limited && question.is_of_history() {
            self.still_serves(Instant::now())?;
        }
        self.bearing.may_be_asked()?;
        // What the plan does not allow is not asked, and no failure of the endpoint.
        match self.budget.turn(question.method(), Instant::now()) {
            // A sleep of no time lasts until the clock's next millisecond.
            Ok(Duration::ZERO) => {}
            Ok(wait) => sleep(wait).await,
            Err(wait) => {
                let message = "the provider's plan allows no more requests now".to_owned();
                return Err(RpcError::Throttled { message, retry_after: Some(wait) });
            }
        }
        let begun = Instant::now();
        let usual = self.record().patience.limit();
        let limit = match (limited, self.is_connected()) {
            // Whoever waits for a connection waits in a line.
            (true, false) => CONNECTS.min(limits.rpc_timeout),
            (true, true) if question.is_quick() => usual.min(limits.rpc_timeout),
            _ => Duration::MAX,
        };
        let way = self.way(chain_id, limits);
        let asked = async {
            // A look at the head goes beside the proof of the chain: without that its answer is dropped.
            let newcomer = if question.is_for_head { self.connection.newcomer(way).await? } else { None };
            match newcomer {
                Some(newcomer) => {
                    // It is connected only once it is verified; whatever fails from now on is a new doubt.
                    self.record().doubtful = false;
                    let request = request(newcomer.node.clone());
                    Box::pin(newcomer.answer(request)).await
                }
                None => request(self.node(way).await?).await,
            }
        };
        let answer = timeout(limit, asked).await.unwrap_or(Err(RpcError::TimedOut));
        self.remember(question, begun.elapsed(), answer.as_ref().err());
        answer
    }

    fn still_serves(&self, now: Instant) -> Result<(), RpcError> {
        match self.record().breaker.gate(now) {
            Gate::Closed | Gate::HalfOpen => Ok(()),
            Gate::Open(why, until) if why.ends_by_itself() => {
                let message = "the endpoint asked for fewer requests while this one waited for its turn".to_owned();
                Err(RpcError::Throttled { message, retry_after: Some(until.duration_since(now)) })
            }
            Gate::Open(..) => {
                Err(RpcError::Transient("it stopped serving while this request waited for its turn".to_owned()))
            }
        }
    }

    /// Whether there is a connection. Where not, someone has to wait for as long as it takes: a try that is given up every
    /// time would never succeed.
    pub(super) fn is_connected(&self) -> bool {
        self.connection.node_now().is_some()
    }

    fn way<'a>(&'a self, chain_id: u64, limits: &'a Limits) -> Way<'a> {
        let (provider, budget, bearing) = (&self.provider, &self.budget, &self.bearing);
        Way { provider, chain_id, limits, budget, bearing, recorder: self.recorder.get() }
    }

    /// The verified node behind this endpoint; connects at the first call that succeeds, and verifies it again after an
    /// outage.
    async fn node(&self, way: Way<'_>) -> Result<Arc<Node>, RpcError> {
        let is_doubtful = self.record().doubtful;
        let node = self.connection.node(way, is_doubtful).await?;
        if is_doubtful {
            self.record().doubtful = false;
        }
        Ok(node)
    }

    fn remember(&self, question: Question, took: Duration, error: Option<&RpcError>) {
        let now = Instant::now();
        match error {
            None if question.kind != Kind::Header => self.bearing.served(),
            Some(RpcError::TimedOut) if question.is_of_history() => self.bearing.pressed(),
            // Whatever it was asked: history makes room.
            Some(RpcError::Throttled { .. }) => self.bearing.pressed(),
            _ => {}
        }
        let mut record = self.record();
        let failure = error.filter(|error| error.is_failure());
        let head = record.head.map(|(head, _)| head);
        if let Some(floor) = record.floor.told(question, error, (head, now)) {
            info!(endpoint = self.name(), floor, "the endpoint has dropped old blocks: below, others are asked first");
        }
        record.asked += 1;
        record.errors += u64::from(failure.is_some());
        record.last_error = failure.map(ToString::to_string);
        let Some(failure) = failure else {
            if question.is_quick() {
                record.patience.answered(took);
            }
            if record.breaker.answered(now, question.kind) {
                record.ejected = None;
                info!(endpoint = self.name(), "the endpoint answers again");
            }
            return;
        };
        record.last_kind = failure.kind();
        // Complaints about a request come from a node that runs.
        record.doubtful |= matches!(
            failure,
            RpcError::Transient(_) | RpcError::TimedOut | RpcError::Unclear { .. } | RpcError::WrongChain { .. }
        );
        let has_opened = match failure {
            RpcError::Throttled { retry_after, .. } => {
                record.breaker.throttled(now, *retry_after);
                false
            }
            RpcError::WrongChain { .. } => {
                drop(record);
                return self.put_aside(&failure.to_string(), |breaker, now| breaker.eject(now, EJECTED_FOR));
            }
            RpcError::Fatal(_) => match record.refusal(question.kind) {
                Some(refused) => {
                    *refused = Some(now + REFUSED_FOR);
                    record.breaker.answered(now, question.kind);
                    false
                }
                None => record.breaker.failed(now, question.kind, true),
            },
            RpcError::TimedOut => {
                if question.is_quick() {
                    record.patience.given_up(took);
                }
                // What takes a node too long may be more than one may ask for.
                record.breaker.failed(now, question.kind, question.is_quick())
            }
            _ => record.breaker.failed(now, question.kind, false),
        };
        drop(record);
        if has_opened {
            warn!(endpoint = self.name(), error = %failure, "the endpoint does not serve; it is asked again after a pause");
            self.left.notify_waiters();
        }
    }

    /// It is on another chain or fork, and not asked for some minutes. Told once, however often it is found.
    pub(super) fn eject(&self, reason: &str) {
        self.record().errors += 1;
        self.put_aside(reason, |breaker, now| breaker.eject(now, EJECTED_FOR));
    }

    /// It is alone with its opinion, which may be news: not asked for a short time.
    pub(super) fn set_aside(&self, reason: &str) {
        let mut record = self.record();
        if matches!(record.breaker.gate(Instant::now()), Gate::Open(Why::Ejected, _)) {
            return;
        }
        record.errors += 1;
        drop(record);
        self.put_aside(reason, Breaker::set_aside);
    }

    fn put_aside(&self, reason: &str, open: impl FnOnce(&mut Breaker, Instant)) {
        let mut record = self.record();
        let is_news = record.ejected.as_deref() != Some(reason);
        open(&mut record.breaker, Instant::now());
        (record.last_error, record.ejected) = (Some(reason.to_owned()), Some(reason.to_owned()));
        drop(record);
        if is_news {
            warn!(endpoint = self.name(), reason, "the endpoint is not asked for a while");
        }
        self.left.notify_waiters();
    }

    /// It has a block of this height. Its newest one may be far above: nothing says that it lacks higher ones.
    pub(super) fn has(&self, number: u64) {
        let mut record = self.record();
        if record.head.is_none_or(|(head, _)| head < number) {
            let now = Instant::now();
            record.head = Some((number, now.checked_sub(FRESH).unwrap_or(now)));
        }
    }

    /// It told of its newest block; `best` is the highest one that another endpoint was seen to have before, `far` the
    /// number of blocks that one may be behind another. A number that is further above all others would make them look
    /// late: it counts only once the endpoint has shown that block (R15).
    pub(super) fn told_head(&self, head: &Header, best: Option<u64>, far: u64) {
        let now = Instant::now();
        let mut record = self.record();
        let known = record.head.map(|(known, _)| known).max(best).unwrap_or_default();
        if best.is_some() && head.number > known.saturating_add(far) {
            return;
        }
        record.head = Some((head.number, now));
        record.lag = best.unwrap_or_default().saturating_sub(head.number);
        if record.lag <= far {
            if record.lags(now) {
                record.caught_up = Some(now);
            }
            (record.lags_since, record.lag_told) = (None, false);
            return;
        }
        record.lags_since.get_or_insert(now);
        // Once: it may be the only one that tells of heads, and who comes back to it stays.
        if record.lags(now) && !record.lag_told {
            record.lag_told = true;
            self.left.notify_waiters();
        }
    }

    /// The newest block that it was seen to have, where it is on the right chain.
    pub(super) fn counted_head(&self) -> Option<u64> {
        let record = self.record();
        let is_ejected = matches!(record.breaker.gate(Instant::now()), Gate::Open(Why::Ejected, _));
        record.head.map(|(head, _)| head).filter(|_| !is_ejected)
    }

    /// Whether it is known not to answer.
    pub(super) fn is_down(&self) -> bool {
        matches!(self.record().breaker.gate(Instant::now()), Gate::Open(Why::Fails, _))
    }

    /// It has another block somewhere than most others.
    pub(super) fn disagreed(&self) {
        self.record().disagreements += 1;
    }

    /// How it stands towards a question.
    pub(super) fn standing(&self, question: Question, now: Instant) -> Standing {
        let mut record = self.record();
        let refuses = record.refusal(question.kind).is_some_and(|until| until.is_some_and(|until| now < until));
        let height = match (record.head, question.height) {
            _ if record.floor.is_above(question, now) => Height::Dropped,
            (Some((head, at)), Some(height)) if head < height => {
                if now.duration_since(at) < FRESH {
                    Height::Below
                } else {
                    Height::WasBelow
                }
            }
            _ => Height::There,
        };
        Standing { gate: record.breaker.gate(now), lags: record.lags(now), refuses, height }
    }

    /// Whether requests may come back to it: it has served, and kept up, for a while.
    pub(super) fn is_steady(&self, now: Instant) -> bool {
        let record = self.record();
        let keeps_up = record.caught_up.is_none_or(|since| now.duration_since(since) >= STEADY.0);
        record.breaker.is_steady(now) && !record.lags(now) && keeps_up
    }

    /// Whether it is time to look how it does, and if so takes note of it: after its pause, or where its head was not seen
    /// for `every`.
    pub(super) fn take_probe(&self, now: Instant, every: Duration) -> bool {
        let mut record = self.record();
        let seen = record.head.map(|(_, at)| at).max(record.probed);
        let is_due = match record.breaker.gate(now) {
            Gate::Open(..) => false,
            Gate::HalfOpen => true,
            Gate::Closed => seen.is_none_or(|at| now.duration_since(at) >= every),
        };
        if is_due {
            record.probed = Some(now);
        }
        is_due
    }

    /// Why others are asked instead, in words and as a metric label.
    pub(super) fn aside(&self) -> Option<(String, &'static str)> {
        self.record().aside(Instant::now())
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn state(&self) -> EndpointState {
        let record = self.record();
        EndpointState {
            name: self.provider.name.clone(),
            asked: record.asked,
            errors: record.errors,
            last_error: record.last_error.clone(),
            head: record.head.map(|(number, _)| number),
            lag: record.head.map(|_| record.lag),
            disagreements: record.disagreements,
            aside: record.aside(Instant::now()).map(|(text, _)| text),
            allowance: self.bearing.allowance(),
            unproven: None,
            unknown_messages: self.connection.node_now().map(|node| node.unknown_messages()).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloy::primitives::B256;
    use futures_util::FutureExt as _;
    use tokio::time::advance;

    use super::*;
    use crate::config::SecretUrl;

    fn endpoint() -> Endpoint {
        Endpoint::new(Provider::from(SecretUrl::parse("http://127.0.0.1:1").unwrap()))
    }

    /// It tells of this head while another one has block 100; whether who waits for something from it is told to leave.
    fn tells(endpoint: &Endpoint, number: u64) -> bool {
        let mut left = std::pin::pin!(endpoint.left.notified());
        left.as_mut().enable();
        let head = Header { number, hash: B256::ZERO, parent: B256::ZERO, timestamp: 0 };
        endpoint.told_head(&head, Some(100), 3);
        left.now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn that_it_lags_is_told_once() {
        let endpoint = endpoint();
        assert!(!tells(&endpoint, 90), "not yet for long");
        advance(LAGS_AFTER).await;
        let told: Vec<_> = (91..95).map(|number| tells(&endpoint, number)).collect();
        assert_eq!(told, [true, false, false, false]);
        assert!(!tells(&endpoint, 100) && !tells(&endpoint, 90));
        advance(LAGS_AFTER).await;
        assert!(tells(&endpoint, 90), "it lags again");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_lagged_is_steady_only_once_it_has_kept_up_for_a_while() {
        let endpoint = endpoint();
        tells(&endpoint, 90);
        tells(&endpoint, 100);
        assert!(endpoint.is_steady(Instant::now()), "it was late, and not for long");
        tells(&endpoint, 90);
        advance(LAGS_AFTER).await;
        assert!(!endpoint.is_steady(Instant::now()));
        tells(&endpoint, 100);
        assert!(endpoint.aside().is_none() && !endpoint.is_steady(Instant::now()));
        advance(STEADY.0 / 2).await;
        tells(&endpoint, 100);
        assert!(!endpoint.is_steady(Instant::now()));
        advance(STEADY.0 / 2).await;
        assert!(endpoint.is_steady(Instant::now()));
    }
}
