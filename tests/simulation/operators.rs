//! What befalls a chain that was final, and what operators do about that and otherwise: as `src/cli/mend.rs` does it.

use chaintap::{
    domain::BlockRange,
    store::{Progress, ReplayReply},
};

use crate::{run::Run, swarm::Act};

impl Run {
    /// Blocks leave that were final.
    pub fn reorganise_deeply(&self, below: u64, seconds: u64) {
        let mut tree = self.world.tree();
        let floor = tree.floor();
        let left = tree.leave_deeply(below);
        (0..=left).for_each(|_| tree.mine(seconds, None));
        if left > 0 {
            self.world.oracle().reorganised_deeply(floor, tree.height() - left);
            self.world.saw("deep reorganisation");
        }
    }

    async fn progress(&self) -> Option<Progress> {
        self.store.inner.snapshot().await.ok().map(|snapshot| snapshot.progress)
    }

    /// `resume --accept-reorg`, with `--from` the first block that was replaced where they are to be delivered `again`.
    pub async fn accept(&mut self, again: bool) {
        let Some(Progress { frozen: Some(_), sealed, epoch, .. }) = self.progress().await else { return };
        let sealed = sealed.cast_unsigned();
        let live = self.store.inner.journal(sealed).await.unwrap_or_default();
        let lowest = live.iter().map(|entry| entry.block.number).min();
        let at = lowest.map_or(sealed, |lowest| sealed.min(lowest.saturating_sub(1)));
        let base = self.world.tree().at(at).map(|block| block.header.block());
        let Some(base) = base else { return };
        if let Ok(ReplayReply::Done(now)) = self.store.inner.resume(base, epoch).await {
            self.world.saw("RESUME");
            self.world.note([91, at, 0, 0], || format!("accepted at {base}"));
            let first = self.world.oracle().first_replaced().map(|first| first.max(self.world.swarm.start));
            if let Some(first) = first.filter(|first| again && first.cast_signed() <= now.tip) {
                self.deliver_again(BlockRange { from: first, to: now.tip.cast_unsigned() }, None, now.epoch).await;
            }
        }
    }

    /// `replay`.
    pub async fn replay(&mut self, back: u64, blocks: u64) {
        let Some(Progress { frozen: None, tip, epoch, .. }) = self.progress().await else { return };
        let Ok(tip) = u64::try_from(tip) else { return };
        let from = tip.saturating_sub(back).max(self.world.swarm.start);
        if let Some(range) = BlockRange::new(from, tip.min(from + blocks - 1)) {
            self.deliver_again(range, Some(range.to).filter(|to| *to < tip), epoch).await;
        }
    }

    async fn deliver_again(&self, range: BlockRange, until: Option<u64>, epoch: u64) {
        let to = range.from.cast_signed() - 1;
        if let Ok(ReplayReply::Done(now)) = self.store.inner.replay(to, until, epoch).await {
            let is_sure = !self.world.swarm.script.iter().any(|(_, act)| *act == Act::FailOver);
            self.world.oracle().replayed(range, now.watermark, is_sure);
            self.world.saw("REPLAY");
            self.world.note([90, range.from, range.to, now.epoch], || format!("{range} again, {now:?}"));
        }
    }

    /// `skip`, of what is missing below the tip.
    pub async fn skip(&mut self, blocks: u64) {
        let Some(Progress { frozen: None, watermark, tip, epoch, .. }) = self.progress().await else { return };
        let to = tip.min(watermark + blocks.cast_signed());
        if to <= watermark {
            return;
        }
        let skipped = BlockRange { from: (watermark + 1).cast_unsigned(), to: to.cast_unsigned() };
        if let Ok(ReplayReply::Done(now)) = self.store.inner.skip(skipped.to, epoch).await {
            self.world.oracle().skipped(skipped, now.watermark);
            self.world.saw("SKIP");
            self.world.note([89, skipped.from, skipped.to, 0], || format!("{skipped} left out, {now:?}"));
        }
    }
}
