//! Makes what this process filters with the chain's, so that no replica can journal or commit with anything older.
//!
//! Every good reading of the token list is held against what is published; where they are the same the store is told so,
//! which is what a later re-scan counts from. A difference is published by compare-and-set, and only with a list that was
//! read after what it replaces.
//!
//! Processes that want different things never fight. One publishes at its start, and afterwards only what changed in the
//! token directory before its own eyes. One that finds something else published, other contracts or a list that its own
//! directory does not have, is **superseded**: a newer deployment is taking its place. It delivers nothing and waits,
//! unless for minutes nobody delivers what could be.

use std::{convert::Infallible, fmt::Display, mem::replace, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Context, Filter, Reading, Tokens, View,
    members::{self, Members},
    tokens::LOAD_TIMEOUT,
};
use crate::{
    backoff::Backoff,
    domain::signed,
    store::{Checked, Member, Publication, PublishReply, Published, Snapshot},
};

/// A superseded process looks this often whether it still is.
const RECHECK: Duration = Duration::from_secs(5);
/// Where nobody delivers for this long, a superseded process takes over.
const NOBODY: Duration = Duration::from_mins(2);
/// Longest pause while the store or the directory does not answer.
const LONGEST: Duration = Duration::from_secs(5);
/// A reading that was asked for is waited for this long.
const RELOAD_WITHIN: Duration = LOAD_TIMEOUT.saturating_add(Duration::from_secs(10));
/// This many others may publish in between before the matter is looked at anew, after a pause.
const ROUNDS: usize = 5;

/// Keeps the filter in use the published one.
pub(in crate::pipeline) async fn keep_published(ctx: &Context, views: watch::Receiver<Option<View>>) -> Infallible {
    let mut publisher = Publisher::new(ctx, views);
    let mut tokens = ctx.filters.tokens();
    let mut backoff = Backoff::new(LONGEST);
    let mut is_outage = false;
    loop {
        tokens.mark_unchanged();
        match publisher.turn().await {
            Ok(None) => {
                is_outage = false;
                backoff.reset();
                publisher.goes_on();
                let is_off = matches!(*tokens.borrow(), Tokens::Off);
                tokio::select! {
                    biased;
                    Ok(()) = tokens.changed() => {}
                    () = ctx.filters.outdated.notified() => {}
                    () = sleep(ctx.limits.token_refresh), if is_off => {}
                }
            }
            Ok(Some(reason)) => {
                publisher.superseded(reason).await;
                sleep(RECHECK).await;
            }
            Err(reason) => {
                if replace(&mut is_outage, true) {
                    debug!(reason, "filter not published");
                } else {
                    warn!(reason, "what to filter with cannot be published; trying until it can");
                }
                backoff.wait(None).await;
            }
        }
    }
}

struct Publisher<'a> {
    ctx: &'a Context,
    views: watch::Receiver<Option<View>>,
    /// What was last published by this process, or found to be published and wanted; `None` at the start.
    adopted: Option<Members>,
    /// The version of that.
    version: u64,
    /// The reading that was last held against what is published.
    checked: Option<Instant>,
    /// What was delivered at a moment; readings that begin later are held against it.
    before: Option<(Instant, Checked)>,
    /// While superseded: since when nobody delivers, and the state meanwhile.
    idle: Option<(Snapshot, Instant)>,
}

impl<'a> Publisher<'a> {
    fn new(ctx: &'a Context, views: watch::Receiver<Option<View>>) -> Self {
        Self { ctx, views, adopted: None, version: 0, checked: None, before: None, idle: None }
    }

    /// Holds what is wanted against what is published; answers why this process is superseded, where it is.
    async fn turn(&mut self) -> Result<Option<&'static str>, String> {
        for _ in 0..ROUNDS {
            let published = self.ctx.store.published().await.map_err(text)?;
            let asked = Instant::now();
            let mut reading = self.reading()?;
            let mut wanted = members::wanted(&self.ctx.registry, reading.as_deref());
            if let Some(reason) = self.other_contracts(&wanted, &published) {
                return Ok(Some(reason));
            }
            let is_older = reading.as_ref().is_some_and(|reading| reading.begun < asked);
            // Before the first publication there is nothing that a newer list than ours may have been published in.
            if !is_same(&wanted, &published) && is_older && published.version > 0 {
                reading = self.read_again(asked).await?;
                wanted = members::wanted(&self.ctx.registry, reading.as_deref());
            }
            if !is_same(&wanted, &published)
                && let Some(reason) = self.other_tokens(&wanted, &published)
            {
                return Ok(Some(reason));
            }
            if self.publish(&wanted, &published, reading.as_deref()).await? {
                self.adopted = Some(wanted);
                return Ok(None);
            }
        }
        Err("others publish at the same time".into())
    }

    /// The list to filter with; none where filtering is off.
    fn reading(&self) -> Result<Option<Arc<Reading>>, String> {
        match &*self.ctx.filters.tokens.borrow() {
            Tokens::Off => Ok(None),
            Tokens::Waiting => Err("the token list was not read yet".into()),
            Tokens::Tracked(reading) => Ok(Some(Arc::clone(reading))),
        }
    }

    /// A list that holds whatever was in the directory at that moment.
    async fn read_again(&self, asked: Instant) -> Result<Option<Arc<Reading>>, String> {
        let mut tokens = self.ctx.filters.tokens();
        self.ctx.filters.reload.notify_one();
        let is_new = |tokens: &Tokens| matches!(tokens, Tokens::Tracked(reading) if reading.begun >= asked);
        match timeout(RELOAD_WITHIN, tokens.wait_for(is_new)).await {
            Ok(Ok(_)) => self.reading(),
            Ok(Err(_)) | Err(_) => Err("another token list was published, and the directory does not answer".into()),
        }
    }

    /// What this process published or found published, where that still counts: not at its start, and not where the
    /// store went back to an older state, for then it is published again.
    fn settled(&self, published: &Published) -> Option<&Members> {
        self.adopted.as_ref().filter(|_| published.version >= self.version)
    }

    fn other_contracts(&self, wanted: &Members, published: &Published) -> Option<&'static str> {
        self.settled(published)?;
        let are_ours = members::contracts(wanted.keys()).eq(members::contracts(&published.members));
        (!are_ours).then_some("another deployment listens to other contracts")
    }

    /// Our own directory did not change, and has something else than what is published.
    fn other_tokens(&self, wanted: &Members, published: &Published) -> Option<&'static str> {
        let is_unchanged = self.settled(published)?.keys().eq(wanted.keys());
        is_unchanged.then_some("another process tracks other tokens than this one's directory has")
    }

    /// Publishes what is wanted, or that nothing changed, and uses it; `false` where someone else was first.
    async fn publish(
        &mut self,
        wanted: &Members,
        published: &Published,
        reading: Option<&Reading>,
    ) -> Result<bool, String> {
        let is_checked = reading.is_some_and(|reading| self.checked == Some(reading.begun));
        if is_checked && is_same(wanted, published) && self.version == published.version {
            return Ok(true);
        }
        let added: Vec<Member> = wanted
            .iter()
            .filter(|(key, _)| !published.members.contains(*key))
            .map(|(key, from)| Member { key: key.clone(), from: *from })
            .collect();
        let removed: Vec<String> = published.members.iter().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        let publication =
            Publication { version: published.version, added: &added, removed: &removed, checked: self.before(reading) };
        let PublishReply::Published(version) = self.ctx.store.publish(publication).await.map_err(text)? else {
            return Ok(false);
        };
        if !added.is_empty() || !removed.is_empty() {
            info!(version, added = added.len(), removed = removed.len(), "filter published");
        }
        let progress = self.ctx.store.snapshot().await.map_err(text)?.progress;
        self.version = version;
        self.before = Some((Instant::now(), Checked { tip: progress.tip, epoch: progress.epoch }));
        self.use_from(progress.tip, reading);
        Ok(true)
    }

    /// What was delivered before the reading began, where that is known. What is not read from the directory does not
    /// change while this process lives.
    fn before(&self, reading: Option<&Reading>) -> Option<Checked> {
        let (at, checked) = self.before?;
        reading.is_none_or(|reading| reading.begun >= at).then_some(checked)
    }

    /// Filters with what was just published.
    fn use_from(&mut self, tip: i64, reading: Option<&Reading>) {
        self.checked = reading.map(|reading| reading.begun);
        let (version, tokens) = (self.version, reading.map(|reading| Arc::clone(&reading.tokens)));
        let before = self.ctx.filters.now().ok().filter(|before| before.version == version);
        let is_same = before.as_ref().is_some_and(|before| before.tokens == tokens);
        if !is_same {
            let since = before.map_or(tip, |before| before.since);
            self.ctx.filters.adopt(Some(Filter { version, tokens, since }));
        }
    }

    /// Delivers nothing; takes over where nobody else does what could be done.
    async fn superseded(&mut self, reason: &'static str) {
        if self.ctx.filters.now().is_ok() {
            warn!(reason, "superseded: this process delivers nothing any more and waits to be replaced");
        }
        self.ctx.filters.adopt(None);
        self.ctx.vitals.note("filter", Some(format!("superseded, delivers nothing: {reason}")));
        let Ok(snapshot) = self.ctx.store.snapshot().await else { return };
        let depth = self.ctx.chain.finality_depth;
        let head = self.views.borrow().as_ref().and_then(|view| view.heights.deliverable(self.ctx.deliver, depth));
        let waits = head.is_some_and(|head| signed(head) > snapshot.progress.watermark);
        match &self.idle {
            Some((before, since)) if waits && *before == snapshot => {
                if since.elapsed() >= NOBODY {
                    warn!(reason, "superseded, but nobody delivers: taking over");
                    (self.adopted, self.idle) = (None, None);
                }
            }
            _ => self.idle = Some((snapshot, Instant::now())),
        }
    }

    fn goes_on(&mut self) {
        self.idle = None;
        self.ctx.vitals.note("filter", None);
    }
}

fn is_same(wanted: &Members, published: &Published) -> bool {
    published.version > 0 && wanted.keys().eq(published.members.iter())
}

fn text(error: impl Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use alloy::primitives::{Address, B256};
    use tokio::sync::Notify;

    use super::*;
    use crate::{
        config::{Limits, Registry, Sources, load_offline},
        domain::{DeliveryMode, Header, Heights, Token},
        pipeline::{Audit, Filters, Threads, Turns},
        rpc::{Endpoints, LogFilter},
        store::{Start, StateStore as _, embedded::Embedded},
        telemetry::Vitals,
    };

    /// A process: what it works with, and the directory that it reads.
    struct Process {
        context: Context,
        directory: watch::Sender<Tokens>,
        reload: Arc<Notify>,
    }

    fn reading(tokens: impl IntoIterator<Item = u8>) -> Tokens {
        let token = |n| Token { address: Address::repeat_byte(n), symbol: "T".into(), name: "T".into(), decimals: 18 };
        let tokens = Arc::new(tokens.into_iter().map(token).collect());
        Tokens::Tracked(Arc::new(Reading { tokens, from: BTreeMap::new(), begun: Instant::now() }))
    }

    /// A process on this store that reads these tokens, and listens to no contract where it is of another deployment.
    fn process(store: &Embedded, tokens: Tokens, is_other: bool) -> Process {
        let environment = [("CHAIN_ID", "31337"), ("WEB3_PROVIDER", "http://127.0.0.1:1")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into_iter().collect();
        let settings = load_offline(&Sources { environment, ..Sources::default() }).unwrap();
        let (directory, lists) = watch::channel(tokens);
        let reload = Arc::new(Notify::new());
        let context = Context {
            chain: settings.chain.clone(),
            deliver: DeliveryMode::Instant,
            log_filter: LogFilter::default(),
            registry: if is_other { Arc::new(Registry::default()) } else { settings.registry.clone() },
            source: Arc::new(Endpoints::of(
                (settings.chain.id, settings.chain.block_time),
                settings.providers.clone(),
                Limits::default(),
            )),
            store: Arc::new(store.clone()),
            sinks: BTreeMap::new(),
            turns: Turns::default(),
            threads: Threads::default(),
            filters: Filters::new(lists, reload.clone()),
            audit: Audit::new(false),
            vitals: Arc::new(Vitals::default()),
            limits: Limits::default(),
        };
        Process { context, directory, reload }
    }

    impl Process {
        fn publisher(&self) -> Publisher<'_> {
            Publisher::new(&self.context, watch::channel(None).1)
        }

        /// One look, while the directory holds these tokens whenever it is read anew.
        async fn looks(&self, publisher: &mut Publisher<'_>, tokens: &[u8]) -> Option<&'static str> {
            let answering = async {
                loop {
                    self.reload.notified().await;
                    self.directory.send_replace(reading(tokens.iter().copied()));
                }
            };
            tokio::select! {
                turned = publisher.turn() => turned.unwrap(),
                () = answering => unreachable!(),
            }
        }

        fn version(&self) -> Option<u64> {
            self.context.filters.now().ok().map(|filter| filter.version)
        }
    }

    async fn store() -> Embedded {
        let store = Embedded::in_memory(31_337, "development").unwrap();
        store.init(Start::At(1)).await.unwrap();
        store
    }

    #[tokio::test]
    async fn a_change_that_one_process_saw_is_taken_over_by_the_other_and_published_once() {
        let store = store().await;
        let (one, other) = (process(&store, reading([1]), false), process(&store, reading([1]), false));
        let (mut first, mut second) = (one.publisher(), other.publisher());
        assert!(one.version().is_none(), "nothing is filtered with before it is published");
        assert_eq!(one.looks(&mut first, &[1]).await, None);
        assert_eq!(other.looks(&mut second, &[1]).await, None);
        assert_eq!((one.version(), other.version()), (Some(1), Some(1)));
        one.directory.send_replace(reading([1, 2]));
        assert_eq!(one.looks(&mut first, &[1, 2]).await, None);
        assert_eq!(other.looks(&mut second, &[1, 2]).await, None, "its directory has it by now, too");
        assert_eq!((one.version(), other.version()), (Some(2), Some(2)));
        assert_eq!(store.published().await.unwrap().version, 2);
    }

    #[tokio::test]
    async fn a_process_with_other_contracts_takes_over_and_the_older_one_never_fights() {
        let store = store().await;
        let (older, newer) = (process(&store, reading([1]), false), process(&store, reading([1]), true));
        let (mut first, mut second) = (older.publisher(), newer.publisher());
        older.looks(&mut first, &[1]).await;
        assert_eq!(newer.looks(&mut second, &[1]).await, None);
        for _ in 0..3 {
            older.directory.send_replace(reading([1, 2]));
            let reason = older.looks(&mut first, &[1, 2]).await.expect("it is superseded");
            first.superseded(reason).await;
        }
        assert_eq!((older.version(), store.published().await.unwrap().version), (None, 2));
        assert!(older.context.vitals.health().reasons.iter().any(|reason| reason.contains("other contracts")));
    }

    #[tokio::test(start_paused = true)]
    async fn however_far_behind_the_others_are_nobody_takes_over_while_they_deliver() {
        let store = store().await;
        let (older, newer) = (process(&store, reading([1]), false), process(&store, reading([1]), true));
        let head = Header { number: 1_000, hash: B256::ZERO, parent: B256::ZERO, timestamp: 0 };
        let view = View { head, heights: Heights { head: head.number, ..Heights::default() } };
        let mut first = Publisher::new(&older.context, watch::channel(Some(view)).1);
        older.looks(&mut first, &[1]).await;
        newer.looks(&mut newer.publisher(), &[1]).await;
        for delivered in 1..=20 {
            let reason = older.looks(&mut first, &[1]).await.expect("it is superseded");
            first.superseded(reason).await;
            let epoch = store.snapshot().await.unwrap().progress.epoch;
            store.skip(delivered, epoch).await.unwrap();
            sleep(NOBODY / 2).await;
        }
        for is_long_enough in [false, false, true] {
            assert!(older.looks(&mut first, &[1]).await.is_some());
            first.superseded("nobody delivers").await;
            assert_eq!(first.adopted.is_none(), is_long_enough);
            sleep(NOBODY / 2).await;
        }
        assert_eq!(older.looks(&mut first, &[1]).await, None, "it takes over");
    }

    #[tokio::test]
    async fn processes_with_different_directories_do_not_publish_in_turns() {
        let store = store().await;
        let (one, other) = (process(&store, reading([1]), false), process(&store, reading([2]), false));
        let (mut first, mut second) = (one.publisher(), other.publisher());
        one.looks(&mut first, &[1]).await;
        assert_eq!(other.looks(&mut second, &[2]).await, None, "its start counts");
        assert!(one.looks(&mut first, &[1]).await.unwrap().contains("other tokens"));
        assert_eq!(one.looks(&mut first, &[2]).await, None, "once its directory has the same, it goes on");
        assert_eq!((one.version(), other.version()), (Some(2), Some(2)));
    }
}
