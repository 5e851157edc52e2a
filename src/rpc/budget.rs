//! What a provider's plan allows in a second, kept by asking later (`requests_per_second`, `compute_units_per_second`).
//!
//! A request waits for its turn before it is sent and before its time limit begins, so that waiting is never taken for a slow
//! node. What a batch costs beyond its first request is known only where it is sent: it is charged there, and the
//! next request waits longer. What is asked near the head does not wait for history: history gets what is left, and has up to
//! [`MOST_WAIT`] of turns taken ahead, in which together they may ask for more than the plan allows. Learns nothing: what a
//! provider refuses is told elsewhere.

use std::{
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use alloy::{
    rpc::json_rpc::{RequestPacket, ResponsePacket},
    transports::TransportError,
};
use tokio::time::Instant;
use tower_service::Service;

use crate::config::Provider;

/// What was not used before is kept for this long: so much may be asked for at once.
const BURST: Duration = Duration::from_millis(250);
/// Nobody waits longer for a turn.
const MOST_WAIT: Duration = Duration::from_secs(2);

/// What one endpoint may be asked for. By default anything.
#[derive(Debug, Default)]
pub(super) struct Budget {
    requests: Option<Bucket>,
    units: Option<Bucket>,
}

impl Budget {
    /// What the provider's plan allows.
    pub(super) fn of(provider: &Provider) -> Self {
        let bucket = |a_second: Option<u32>| a_second.map(Bucket::new);
        Self { requests: bucket(provider.requests_per_second), units: bucket(provider.compute_units_per_second) }
    }

    /// How long a request of this method, of history or not, has to wait for its turn, which is now taken.
    ///
    /// # Errors
    ///
    /// The wait, where it is too long; then no turn is taken.
    pub(super) fn turn(&self, (method, of_history): (&str, bool), now: Instant) -> Result<Duration, Duration> {
        let wait =
            |bucket: &Option<Bucket>| bucket.as_ref().map_or(Duration::ZERO, |bucket| bucket.wait(of_history, now));
        let wait = wait(&self.requests).max(wait(&self.units));
        if wait > MOST_WAIT {
            return Err(wait);
        }
        self.charge((1, price(method)), of_history, now);
        Ok(wait)
    }

    fn charge(&self, (requests, units): (u32, u32), of_history: bool, now: Instant) {
        self.requests.iter().for_each(|bucket| bucket.take(requests, of_history, now));
        self.units.iter().for_each(|bucket| bucket.take(units, of_history, now));
    }

    /// Charges one more request for logs, which goes on with one that had a turn: it is not held up, the next one is.
    pub(super) fn charge_logs(&self, now: Instant) {
        self.charge((1, price("eth_getLogs")), false, now);
    }

    /// Charges what a batch costs beyond its first request, which had a turn of its own.
    pub(super) fn charge_rest(&self, packet: &RequestPacket, now: Instant) {
        let RequestPacket::Batch(requests) = packet else { return };
        let rest = requests.iter().skip(1);
        let units = rest.clone().map(|request| price(request.method())).sum();
        self.charge((u32::try_from(rest.count()).unwrap_or(u32::MAX), units), false, now);
    }
}

/// The compute units of a method against the throughput of a plan, as Alchemy charges them (docs/reference/compute-unit-costs);
/// others that count in such units differ little.
fn price(method: &str) -> u32 {
    match method {
        "eth_chainId" => 0,
        "eth_blockNumber" => 10,
        "eth_getLogs" => 60,
        "eth_getBlockReceipts" => 500,
        _ => 20,
    }
}

/// So much a second, evenly: the generic cell rate algorithm (ITU-T I.371).
#[derive(Debug)]
struct Bucket {
    /// The time that one piece is worth.
    each: Duration,
    paid: Mutex<Paid>,
}

#[derive(Debug, Default)]
struct Paid {
    /// When all that was taken so far is paid for.
    all: Option<Instant>,
    /// When it is, but for the turns of history.
    urgent: Option<Instant>,
}

impl Bucket {
    fn new(a_second: u32) -> Self {
        Self { each: Duration::from_secs(1) / a_second.max(1), paid: Mutex::default() }
    }

    fn wait(&self, of_history: bool, now: Instant) -> Duration {
        let paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = if of_history { paid.all } else { paid.urgent };
        paid.map_or(Duration::ZERO, |paid| paid.saturating_duration_since(now + BURST))
    }

    fn take(&self, pieces: u32, of_history: bool, now: Instant) {
        let later =
            |paid: Option<Instant>| Some(paid.map_or(now, |paid| paid.max(now)) + self.each.saturating_mul(pieces));
        let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
        paid.all = later(paid.all);
        if !of_history {
            paid.urgent = later(paid.urgent);
        }
    }
}

/// A transport whose requests are charged.
#[derive(Clone, Debug)]
pub(super) struct Charged<T> {
    transport: T,
    budget: Arc<Budget>,
}

impl<T> Charged<T> {
    pub(super) fn new(transport: T, budget: Arc<Budget>) -> Self {
        Self { transport, budget }
    }
}

impl<T> Service<RequestPacket> for Charged<T>
where
    T: Service<RequestPacket, Response = ResponsePacket, Error = TransportError>,
{
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = T::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.transport.poll_ready(cx)
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        self.budget.charge_rest(&packet, Instant::now());
        self.transport.call(packet)
    }
}

#[cfg(test)]
mod tests {
    use alloy::rpc::json_rpc::{Id, Request};

    use super::*;

    const LOGS: &str = "eth_getLogs";

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn of(requests: Option<u32>, units: Option<u32>) -> Budget {
        Budget { requests: requests.map(Bucket::new), units: units.map(Bucket::new) }
    }

    #[test]
    fn requests_wait_so_that_no_second_has_more_than_allowed() {
        let (budget, begun) = (of(Some(20), None), Instant::now());
        let mut now = begun;
        let mut sent = Vec::new();
        while sent.len() < 200 {
            match budget.turn((LOGS, true), now) {
                Ok(wait) => sent.push(now + wait - begun),
                Err(wait) => now += wait.saturating_sub(MOST_WAIT),
            }
        }
        assert_eq!(sent.iter().filter(|at| **at == Duration::ZERO).count(), 6, "a burst first");
        for from in 0..8 {
            let within = |at: &&Duration| (ms(from * 1_000)..ms(from * 1_000 + 1_000)).contains(*at);
            let count = sent.iter().filter(within).count();
            assert!((19..=26).contains(&count), "{count} in second {from}");
        }
    }

    #[test]
    fn whoever_would_wait_too_long_is_told_and_takes_no_turn() {
        let (budget, now) = (of(Some(1), None), Instant::now());
        let waits: Vec<_> = (0..5).map(|_| budget.turn(("eth_chainId", false), now)).collect();
        assert_eq!(waits, [Ok(ms(0)), Ok(ms(750)), Ok(ms(1_750)), Err(ms(2_750)), Err(ms(2_750))]);
    }

    #[test]
    fn history_waits_for_what_is_asked_near_the_head_and_not_the_other_way_round() {
        let (budget, now) = (of(None, Some(600)), Instant::now());
        while budget.turn((LOGS, true), now).is_ok() {}
        assert_eq!(budget.turn((LOGS, false), now), Ok(ms(0)));
        let in_a_second = now + ms(1_000);
        let (head, ranges) = (budget.turn((LOGS, false), in_a_second), budget.turn((LOGS, true), in_a_second));
        assert_eq!(head, Ok(ms(0)));
        // 2.3 s of history were taken ahead, and two turns near the head since.
        assert!(ranges.is_ok_and(|wait| wait > ms(1_000)), "{ranges:?}");
        while budget.turn((LOGS, false), in_a_second).is_ok() {}
        assert!(budget.turn((LOGS, true), in_a_second).is_err(), "nothing is left for history");
    }

    #[test]
    fn a_batch_is_paid_for_as_a_whole() {
        let (budget, now) = (of(None, Some(100)), Instant::now());
        assert_eq!(budget.turn((LOGS, false), now), Ok(ms(0)));
        let call = |id, method: &'static str| Request::new(method, Id::Number(id), ()).try_into().unwrap();
        let batch = vec![call(1, "eth_getLogs"), call(2, "eth_getBlockByNumber"), call(3, "eth_getBlockByNumber")];
        budget.charge_rest(&RequestPacket::Batch(batch), now);
        // 60 and twice 20 units are worth a second.
        assert_eq!(budget.turn((LOGS, false), now), Ok(ms(750)));
        let free = of(None, None);
        assert!((0..1_000).all(|_| free.turn(("eth_getBlockReceipts", false), now) == Ok(ms(0))));
    }
}
