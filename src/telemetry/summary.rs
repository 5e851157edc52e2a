//! One line every few seconds that says where the listener stands, for whoever watches the log.

use std::{sync::Arc, time::Duration};

use tokio::time::interval;
use tracing::info;

use super::Vitals;

/// Logs the line every so often; never returns.
pub async fn summarise(vitals: Arc<Vitals>, every: Duration) {
    let mut ticks = interval(every);
    ticks.tick().await;
    loop {
        ticks.tick().await;
        let health = vitals.health();
        info!(
            status = ?health.status,
            head = health.head.as_ref().map(|head| head.number),
            processed = health.processed,
            watermark = health.watermark,
            lag = health.lag_blocks,
            gaps = health.gaps,
            dead_letters = health.dead_letters,
            "summary"
        );
    }
}
