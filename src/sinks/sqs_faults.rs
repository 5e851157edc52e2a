//! What an error code of SQS means for a message: the one table.
//!
//! Codes: Amazon SQS API reference, `SendMessageBatch` and "Common Error Types". They come in several spellings
//! (`AWS.SimpleQueueService.NonExistentQueue`, `com.amazonaws.sqs#QueueDoesNotExist`, `ThrottlingException`), so they
//! are compared by their last word without `Exception`.
//!
//! Nothing secret is repeated: messages about credentials can quote the signed request, so they are replaced by our own
//! words; of other messages the account numbers are cut out.

/// Longest piece of the server's words that is repeated, characters.
const MAX_WORDS: usize = 200;
/// Digits of an AWS account number.
const ACCOUNT_DIGITS: usize = 12;

const THROTTLED: &[&str] = &[
    "RequestThrottled",
    "Throttling",
    "Throttled",
    "TooManyRequests",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "LimitExceeded",
    "SlowDown",
    "KmsThrottled",
];

/// Someone has to act; with words that say on what.
const FATAL: &[(&str, &str)] = &[
    ("NonExistentQueue", "the queue does not exist in this region and account"),
    ("QueueDoesNotExist", "the queue does not exist in this region and account"),
    ("QueueDeletedRecently", "the queue was deleted a moment ago"),
    ("InvalidAddress", "the queue's URL is not one of this endpoint"),
    ("AccessDenied", "access denied: sqs:SendMessage and sqs:GetQueueAttributes are needed"),
    ("NotAuthorized", "access denied: sqs:SendMessage and sqs:GetQueueAttributes are needed"),
    ("AuthFailure", "the AWS credentials are not valid"),
    ("InvalidClientTokenId", "the AWS credentials are not valid"),
    ("InvalidAccessKeyId", "the AWS credentials are not valid"),
    ("UnrecognizedClient", "the AWS credentials are not valid"),
    ("MissingAuthenticationToken", "the AWS credentials are missing"),
    ("ExpiredToken", "the AWS credentials have expired"),
    ("SignatureDoesNotMatch", "the AWS secret key is not the right one, or the clock is wrong"),
    ("InvalidSignature", "the AWS secret key is not the right one, or the clock is wrong"),
    ("IncompleteSignature", "the AWS credentials are not complete"),
    ("RequestExpired", "the clock is wrong"),
    ("InvalidSecurity", "the queue takes signed HTTPS requests only"),
    ("OptInRequired", "the AWS account does not have this service"),
    ("KmsAccessDenied", "access to the queue's KMS key is denied"),
    ("KmsDisabled", "the queue's KMS key is disabled"),
    ("KmsInvalidKeyUsage", "the queue's KMS key cannot encrypt"),
    ("KmsInvalidState", "the queue's KMS key is in an invalid state"),
    ("KmsNotFound", "the queue's KMS key does not exist"),
    ("KmsOptInRequired", "the AWS account does not have the KMS service"),
];

/// What an entry of a batch fails with when the message itself is what the queue will never take.
const ENTRY: &[&str] = &["InvalidMessageContents", "InvalidParameterValue", "InvalidAttributeValue"];

/// What a whole batch fails with because of a message in it. `InvalidParameterValue` is not here: of a whole call it is
/// as likely about the queue's URL, and then every message would be refused.
const BATCH: &[&str] = &["BatchRequestTooLong", "InvalidMessageContents"];

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Try again later.
    Retry,
    /// Try again later, with less traffic.
    SlowDown,
    /// Try again later, and call for someone: it does not mend itself.
    Call,
    /// A message is at fault, and stays so.
    Refuse,
}

/// A failure and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reaction: Reaction,
    /// Without secrets.
    pub(super) reason: String,
}

impl Fault {
    /// A failure that mends itself.
    pub(super) fn retry(reason: impl Into<String>) -> Self {
        Self { reaction: Reaction::Retry, reason: reason.into() }
    }

    /// The answer to a whole call.
    pub(super) fn of_call(code: &str, message: &str, status: Option<u16>) -> Self {
        let fault = Self::classify(code, message, BATCH);
        let overloaded = status.is_some_and(|status| status == 429);
        if overloaded { Self { reaction: Reaction::SlowDown, ..fault } } else { fault }
    }

    /// The answer to one entry of a batch.
    pub(super) fn of_entry(code: &str, message: &str, sender_fault: bool) -> Self {
        Self::classify(code, message, if sender_fault { ENTRY } else { &[] })
    }

    fn classify(code: &str, message: &str, refused: &[&str]) -> Self {
        let word = last_word(code);
        if let Some((_, meaning)) = FATAL.iter().find(|(name, _)| *name == word) {
            return Self { reaction: Reaction::Call, reason: format!("{meaning} ({word})") };
        }
        let reaction = match word {
            word if THROTTLED.contains(&word) => Reaction::SlowDown,
            word if refused.contains(&word) => Reaction::Refuse,
            _ => Reaction::Retry,
        };
        Self { reaction, reason: format!("{word}: {}", without_accounts(message)) }
    }
}

fn last_word(code: &str) -> &str {
    let word = code.rsplit(['.', '#']).next().unwrap_or(code);
    word.strip_suffix("Exception").unwrap_or(word)
}

/// The server's words, cut, on one line, with account numbers replaced.
fn without_accounts(message: &str) -> String {
    let (mut words, mut digits) = (String::new(), String::new());
    let end = |digits: &mut String, words: &mut String| {
        words.push_str(if digits.len() >= ACCOUNT_DIGITS { "…" } else { digits.as_str() });
        digits.clear();
    };
    for character in message.chars().take(MAX_WORDS) {
        if character.is_ascii_digit() {
            digits.push(character);
            continue;
        }
        end(&mut digits, &mut words);
        words.push(if character.is_control() { ' ' } else { character });
    }
    end(&mut digits, &mut words);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_code_means_the_same() {
        for code in ["AWS.SimpleQueueService.NonExistentQueue", "com.amazonaws.sqs#QueueDoesNotExist"] {
            assert_eq!(Fault::of_call(code, "", Some(400)).reaction, Reaction::Call, "{code}");
        }
        for code in ["ThrottlingException", "KMS.ThrottlingException", "RequestThrottled"] {
            assert_eq!(Fault::of_call(code, "", Some(400)).reaction, Reaction::SlowDown, "{code}");
        }
        assert_eq!(Fault::of_call("InternalError", "", Some(500)).reaction, Reaction::Retry);
        assert_eq!(Fault::of_call("Whatever", "", Some(429)).reaction, Reaction::SlowDown);
    }

    #[test]
    fn only_codes_about_the_message_refuse_it_and_only_where_the_sender_is_at_fault() {
        let entry = |code, fault| Fault::of_entry(code, "", fault).reaction;
        assert_eq!(entry("InvalidMessageContents", true), Reaction::Refuse);
        assert_eq!(entry("InvalidParameterValue", true), Reaction::Refuse);
        assert_eq!(entry("InvalidParameterValue", false), Reaction::Retry);
        assert_eq!(entry("AccessDenied", true), Reaction::Call);
        assert_eq!(entry("SomethingNew", true), Reaction::Retry);
        assert_eq!(Fault::of_call("InvalidParameterValue", "", Some(400)).reaction, Reaction::Retry);
        assert_eq!(Fault::of_call("AWS.SimpleQueueService.BatchRequestTooLong", "", None).reaction, Reaction::Refuse);
    }

    #[test]
    fn neither_account_numbers_nor_signed_requests_are_repeated() {
        let fault = Fault::of_call("Odd", "arn:aws:sqs:eu-west-1:123456789012:q\nfailed 42 times", None);
        assert_eq!(fault.reason, "Odd: arn:aws:sqs:eu-west-1:…:q failed 42 times");
        let fault = Fault::of_call("SignatureDoesNotMatch", "canonical: x-amz-security-token:SECRET", None);
        assert!(!fault.reason.contains("SECRET"), "{}", fault.reason);
        let fault = Fault::of_call("AccessDeniedException", "User: arn:aws:iam::123456789012:user/x", None);
        assert!(!fault.reason.contains("123456789012"), "{}", fault.reason);
    }
}
