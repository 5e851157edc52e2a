//! A picture of the state, from which the loop plans.
//!
//! The state is read once a second, and at once where something speaks against the picture; in between what this process
//! commits is added to it. That saves a reading for every block and range. It is safe because nothing is decided by it
//! alone:
//!
//! * CLAIM says what is delivered already, held or frozen, and tells the epoch, the sealed height and what is being taken back,
//!   by which the range is then worked off; so INTENT and both commits are fenced by what is true, never by the picture.
//! * What others delivered is missing in it: the claim answers that it is done.
//! * What it has and the state has no more was taken back, set back, or lost with a store's tail. Each of these is found by
//!   the next reading, as it was while an idle loop read once a second: it waits for that long, and is forgotten by nobody.
//!   Of what this process commits nothing is added that may have been taken back before the last reading, see `committed`.
//! * The end of the run, a look at the chain, and whatever is frozen or being taken back are decided on a new reading alone.

use std::time::Duration;

use tokio::time::Instant;

use super::{Context, Reached};
use crate::{
    domain::BlockRange,
    store::{Progress, Snapshot, StoreError},
    telemetry::Edge,
};

/// The state is read at least this often.
const READ_EVERY: Duration = Duration::from_secs(1);

/// The state as it was read last, and what was committed since.
pub(super) struct Picture {
    known: Option<(Snapshot, Instant)>,
    is_doubted: bool,
}

impl Picture {
    pub(super) fn new() -> Self {
        Self { known: None, is_doubted: false }
    }

    /// Reads the state.
    pub(super) async fn read(&mut self, ctx: &Context) -> Result<Snapshot, StoreError> {
        let asked = Instant::now();
        let read = ctx.store.snapshot().await;
        if let Err(StoreError::Transient(reason)) = &read {
            ctx.vitals.answer(Edge::Store, asked, Err(reason));
        }
        let snapshot = read?;
        self.is_now(snapshot.clone(), asked);
        Ok(snapshot)
    }

    /// The state as it was read by who asked for it at that moment.
    fn is_now(&mut self, snapshot: Snapshot, asked: Instant) {
        (self.known, self.is_doubted) = (Some((snapshot, asked)), false);
    }

    /// Something may be otherwise: the next round reads the state.
    pub(super) fn doubt(&mut self) {
        self.is_doubted = true;
    }

    /// The picture, unless the state is to be read now.
    pub(super) fn current(&self, now: Instant) -> Option<&Snapshot> {
        let (snapshot, read) = self.known.as_ref().filter(|_| !self.is_doubted)?;
        let Progress { frozen, retracting, .. } = &snapshot.progress;
        let is_calm = frozen.is_none() && *retracting == 0;
        (is_calm && now < *read + READ_EVERY).then_some(snapshot)
    }

    /// A range was committed. Whatever takes blocks back or sets them back raises the epoch, so where its claim has that of the
    /// last reading, nothing was taken back between the two: the range is delivered in what was read, or it was committed later.
    /// Under another epoch nobody knows, and the state is read. So it is where the answers came in another order than the
    /// commits: progress that is less than what is known may also be a set-back.
    pub(super) fn committed(&mut self, range: BlockRange, reached: Reached) {
        let Some((snapshot, _)) = &mut self.known else { return };
        let Snapshot { progress, done } = snapshot;
        let is_further = reached.watermark >= progress.watermark && reached.tip >= progress.tip;
        if reached.epoch != progress.epoch || !is_further {
            self.is_doubted = true;
            return;
        }
        (progress.watermark, progress.tip) = (reached.watermark, reached.tip);
        done.insert(range);
        if let Ok(watermark) = u64::try_from(reached.watermark) {
            done.remove_up_to(watermark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(watermark: i64, done: &[BlockRange]) -> Snapshot {
        let progress = Progress {
            watermark,
            tip: done.last().map_or(watermark, |last| last.to.cast_signed()),
            sealed: -1,
            sealed_hash: None,
            epoch: 7,
            filter_version: 0,
            frozen: None,
            retracting: 0,
            service: String::new(),
        };
        Snapshot { progress, done: done.iter().copied().collect() }
    }

    fn range(from: u64, to: u64) -> BlockRange {
        BlockRange { from, to }
    }

    fn reached(epoch: u64, watermark: i64, tip: i64) -> Reached {
        Reached { epoch, watermark, tip }
    }

    /// A picture that was just read.
    fn picture(snapshot: Snapshot) -> (Picture, Instant) {
        let (mut picture, now) = (Picture::new(), Instant::now());
        assert_eq!(picture.current(now), None, "nothing was read yet");
        picture.is_now(snapshot, now);
        (picture, now)
    }

    #[test]
    fn the_state_is_read_again_after_a_second_and_after_a_doubt() {
        let (mut picture, now) = picture(snapshot(4, &[]));
        let almost = now + READ_EVERY - Duration::from_millis(1);
        assert!(picture.current(almost).is_some());
        assert_eq!(picture.current(now + READ_EVERY), None);
        picture.doubt();
        assert_eq!(picture.current(now), None);
        picture.is_now(snapshot(4, &[]), now);
        assert!(picture.current(now).is_some(), "read anew");
    }

    #[test]
    fn what_is_frozen_or_taken_back_is_read_in_every_round() {
        let mut frozen = snapshot(4, &[]);
        frozen.progress.frozen = Some("why".into());
        let mut retracting = snapshot(4, &[]);
        retracting.progress.retracting = 1;
        for unusual in [frozen, retracting] {
            let (picture, now) = picture(unusual);
            assert_eq!(picture.current(now), None);
        }
    }

    #[test]
    fn what_is_committed_is_in_the_picture_as_a_reading_would_have_it() {
        let (mut picture, now) = picture(snapshot(9, &[range(20, 29), range(50, 50)]));
        picture.committed(range(30, 39), reached(7, 9, 50));
        assert_eq!(picture.current(now), Some(&snapshot(9, &[range(20, 39), range(50, 50)])));
        picture.committed(range(10, 19), reached(7, 39, 50));
        assert_eq!(picture.current(now), Some(&snapshot(39, &[range(50, 50)])));
        picture.committed(range(51, 51), reached(7, 39, 51));
        assert_eq!(picture.current(now), Some(&snapshot(39, &[range(50, 51)])));
        picture.committed(range(40, 44), reached(7, 51, 51));
        assert_eq!(picture.current(now), Some(&snapshot(51, &[])), "others delivered the rest");
    }

    #[test]
    fn a_commit_that_does_not_fit_to_the_picture_is_not_added_but_doubted() {
        for (odd, why) in [
            (reached(6, 19, 19), "claimed before something was taken back, which was read since"),
            (reached(8, 19, 19), "claimed after something was taken back that was not read yet"),
            (reached(7, 8, 19), "the watermark is lower"),
            (reached(7, 19, 8), "the tip is lower"),
        ] {
            let (mut picture, now) = picture(snapshot(9, &[]));
            picture.committed(range(10, 19), odd);
            assert_eq!(picture.current(now), None, "{why}");
            assert_eq!(picture.known.map(|(known, _)| known), Some(snapshot(9, &[])), "{why}");
        }
    }
}
