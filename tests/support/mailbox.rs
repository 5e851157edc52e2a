//! What arrived at a queue: folded by the consumer of the documentation, and held against the chain.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::fold::{Fold, News};

/// All messages so far.
#[derive(Default)]
pub struct Mailbox {
    fold: Fold,
    /// The text of each message by id and version.
    texts: BTreeMap<(String, u64), String>,
    /// How many messages came in all.
    pub received: usize,
    /// How many of them had come before.
    pub duplicates: usize,
    /// How many retractions came, each counted once.
    pub retractions: usize,
}

impl Mailbox {
    /// Takes one message in. Two messages of one id and version must be the same, byte for byte.
    pub fn enter(&mut self, text: &str) {
        let news = self.fold.take(text).unwrap_or_else(|mistake| panic!("{mistake}: {text}"));
        let message: Value = serde_json::from_str(text).unwrap();
        let version = message["version"].as_u64().unwrap();
        let is_retraction = message["eventType"].as_str().unwrap().ends_with("Retracted");
        assert_eq!(is_retraction, version.is_multiple_of(2), "kind and version disagree: {text}");
        assert!(news == News::Known || is_retraction == (news == News::Retracted), "{news:?}: {text}");
        self.received += 1;
        let key = (message["id"].as_str().unwrap().to_owned(), version);
        if let Some(first) = self.texts.get(&key) {
            assert_eq!(first, text, "two texts of one id and version");
            self.duplicates += 1;
            return;
        }
        self.retractions += usize::from(is_retraction);
        self.texts.insert(key, text.to_owned());
    }

    /// The ids that are applied and not taken back.
    pub fn live(&self) -> BTreeSet<&str> {
        self.fold.live().filter_map(|message| message["id"].as_str()).collect()
    }

    /// The ids whose last word is a retraction.
    pub fn taken_back(&self) -> impl Iterator<Item = &str> {
        let live = self.live();
        let ids: BTreeSet<&str> = self.texts.keys().map(|(id, _)| id.as_str()).collect();
        ids.into_iter().filter(move |id| !live.contains(id))
    }

    /// What is wrong, in words, where these are the transfers of the canonical chain; `None` where all is right.
    pub fn difference(&self, canonical: &BTreeSet<String>) -> Option<String> {
        let live = self.live();
        let lost: Vec<&str> = canonical.iter().map(String::as_str).filter(|id| !live.contains(id)).collect();
        let strange: Vec<&str> = live.iter().copied().filter(|id| !canonical.contains(*id)).collect();
        let some = |ids: &[&str]| ids.iter().take(8).map(|id| self.story(id)).collect::<Vec<_>>().join("\n  ");
        let (lost_ones, strange_ones) = (some(&lost), some(&strange));
        (!lost.is_empty() || !strange.is_empty())
            .then(|| format!("{} lost:\n  {lost_ones}\n{} not canonical:\n  {strange_ones}", lost.len(), strange.len()))
    }

    /// An id with the versions that came of it.
    fn story(&self, id: &str) -> String {
        let versions: Vec<u64> =
            self.texts.keys().filter(|(known, _)| known == id).map(|(_, version)| *version).collect();
        format!("{id}: versions {versions:?}")
    }
}
