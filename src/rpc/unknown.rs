//! What a provider says that no row of [`words`](super::words) has: counted, and told once, so that an operator can
//! report it and the next release understands it.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use tracing::{debug, warn};

use crate::telemetry::metrics;

/// Longest text that is kept, characters.
const TEXT_CHARS: usize = 200;
/// Distinct texts that are kept, the newest.
const KEPT: usize = 8;
/// Texts that are told in a warning while the process runs: words from outside do not fill the log.
const TOLD: usize = 100;

/// The unknown messages of one provider.
#[derive(Default)]
pub(super) struct UnknownMessages(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    newest: VecDeque<String>,
    told: usize,
}

impl UnknownMessages {
    /// Counts a message (scrubbed by who read it), and tells it if it is a new one.
    pub(super) fn note(&self, provider: &str, message: &str) {
        metrics::unknown_message(provider);
        let text: String = message.chars().take(TEXT_CHARS).collect();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.is_new(&text) {
            return;
        }
        if seen.told < TOLD {
            seen.told += 1;
            warn!(endpoint = provider, text, "a provider's words that are not known; please report them");
        } else {
            debug!(endpoint = provider, text, "a provider's words that are not known");
        }
        if seen.newest.len() == KEPT {
            seen.newest.pop_front();
        }
        seen.newest.push_back(text);
    }

    /// Those that are kept, the oldest first.
    pub(super) fn newest(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).newest.iter().cloned().collect()
    }
}

impl Seen {
    fn is_new(&self, text: &str) -> bool {
        !self.newest.iter().any(|known| wording(known).eq(wording(text)))
    }
}

/// The words without those that have a digit in them: heights, hashes and request ids do not make a message another one.
fn wording(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|sign: char| !sign.is_alphanumeric()).filter(|word| !word.is_empty());
    words.filter(|word| !word.contains(|sign: char| sign.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_messages_that_differ_in_numbers_only_one_is_kept() {
        let messages = UnknownMessages::default();
        messages.note("node", "shard 7 said no to 0xabc1 (code 5)");
        messages.note("node", "shard 8 said no to 0xabc2 (code 5)");
        messages.note("node", "shard 8 said maybe");
        assert_eq!(messages.newest(), ["shard 7 said no to 0xabc1 (code 5)", "shard 8 said maybe"]);
        assert_eq!(messages.0.lock().unwrap().told, 2);
    }

    #[test]
    fn the_newest_eight_are_kept_in_brief_and_the_log_is_not_filled() {
        let messages = UnknownMessages::default();
        for length in 1..=300 {
            messages.note("node", &"x".repeat(length));
        }
        let kept = messages.newest();
        assert!(kept.len() <= KEPT && kept.iter().all(|text| text.len() <= TEXT_CHARS));
        assert_eq!(kept.last().unwrap().len(), TEXT_CHARS);
        assert_eq!(messages.0.lock().unwrap().told, TOLD);
    }
}
