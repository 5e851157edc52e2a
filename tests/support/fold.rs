//! What a consumer that keeps to the rule holds: of every id the highest version, retractions included.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

/// The highest version of one id.
struct Top {
    version: u64,
    block: u64,
}

impl Top {
    /// Applied versions are odd, retractions even.
    fn is_live(&self) -> bool {
        self.version % 2 == 1
    }
}

/// All messages so far, folded.
#[derive(Default)]
pub struct Fold {
    /// The text of each message by id and version.
    texts: HashMap<(String, u64), String>,
    tops: BTreeMap<String, Top>,
    /// How many messages came in all.
    pub received: usize,
    /// How many of them had come before.
    pub duplicates: usize,
    /// How many retractions came, each counted once.
    pub retractions: usize,
}

impl Fold {
    /// Folds one message in. Two messages of one id and version must be the same, byte for byte.
    pub fn enter(&mut self, text: &str) {
        let message: Value = serde_json::from_str(text).unwrap_or_else(|_| panic!("no JSON: {text}"));
        let id = message["id"].as_str().unwrap().to_owned();
        let version = message["version"].as_u64().unwrap();
        let is_retraction = message["eventType"].as_str().unwrap().ends_with("Retracted");
        assert_eq!(is_retraction, version.is_multiple_of(2), "kind and version disagree: {text}");
        self.received += 1;
        if let Some(first) = self.texts.get(&(id.clone(), version)) {
            assert_eq!(first, text, "two texts of one id and version");
            self.duplicates += 1;
            return;
        }
        self.retractions += usize::from(is_retraction);
        self.texts.insert((id.clone(), version), text.to_owned());
        let block = message["blockNumber"].as_u64().unwrap();
        let top = self.tops.entry(id).or_insert(Top { version, block });
        top.version = top.version.max(version);
    }

    /// The ids that are applied and not taken back.
    pub fn live(&self) -> BTreeSet<&str> {
        self.tops.iter().filter(|(_, top)| top.is_live()).map(|(id, _)| id.as_str()).collect()
    }

    /// The ids whose last word is a retraction.
    pub fn taken_back(&self) -> impl Iterator<Item = &str> {
        self.tops.iter().filter(|(_, top)| !top.is_live()).map(|(id, _)| id.as_str())
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

    /// An id with its block and the versions that came of it.
    fn story(&self, id: &str) -> String {
        let Some(top) = self.tops.get(id) else { return format!("{id}: never came") };
        let mut versions: Vec<u64> =
            self.texts.keys().filter(|(known, _)| known == id).map(|(_, version)| *version).collect();
        versions.sort_unstable();
        format!("{id}, block {}: {versions:?}", top.block)
    }
}
