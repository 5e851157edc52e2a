//! Amazon SQS, standard and FIFO: the only file that knows the AWS client.
//!
//! A call hands over as much of what is pending as it can, in batches of up to ten entries within the queue's byte
//! limit, one after the other, and stops behind the first batch in which something has to be tried again, so that the
//! order of the log stays the order of the calls. Every entry has its own outcome; the SDK's retries are off, because
//! they would send acknowledged entries again and would hide throttling from the pipeline, which paces itself.
//!
//! Large payloads are not put elsewhere (no claim check): what the queue cannot take is refused, and the pipeline keeps
//! it among the dead letters.

use std::{ops::ControlFlow, time::Duration};

use alloy::primitives::bytes::Bytes;
use async_trait::async_trait;
use aws_config::BehaviorVersion;
use aws_sdk_sqs::{
    Client,
    config::{Credentials, Region, http::HttpResponse, retry::RetryConfig},
    error::{ProvideErrorMetadata, SdkError},
    operation::send_message_batch::SendMessageBatchOutput,
    types::QueueAttributeName,
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use url::Url;

use super::{
    Message, Outcome, Sink, SinkError,
    batches::Batches,
    sqs_faults::{Fault, Reaction},
    sqs_payload::{payload, size},
};

/// Most entries in a batch (Amazon SQS quotas).
const MAX_ENTRIES: usize = 10;
/// Most bytes in a batch, whatever the queue's attributes say (Amazon SQS quotas).
const MAX_BATCH_BYTES: usize = 1 << 20;
/// A message is refused as too large only by a limit that was read within this time: an operator may have raised it.
const LIMITS_FRESH: Duration = Duration::from_mins(1);
/// A request gets a quarter of what a call may take, and none starts in the call's second half: so a call ends in time,
/// with an outcome for every message, even if its last request does not come back.
const REQUESTS_IN_CALL: u32 = 4;

/// How to reach AWS. What is absent comes from where the SDK looks by itself: environment, profile, role.
#[derive(Clone, Debug, Default)]
pub struct AwsAccess {
    /// The queue's region, e.g. `eu-west-1`.
    pub region: Option<String>,
    /// Address of a server that stands in for AWS.
    pub endpoint: Option<String>,
    /// Access key id and secret access key.
    pub keys: Option<(SecretString, SecretString)>,
    /// Session token that belongs to the keys.
    pub session_token: Option<SecretString>,
}

/// One queue.
#[derive(Debug)]
pub struct SqsSink {
    client: Client,
    name: String,
    queue_url: String,
    /// What one call of [`Sink::send`] may take.
    patience: Duration,
    limits: Mutex<Option<Limits>>,
}

/// What the queue's attributes state.
#[derive(Clone, Copy, Debug)]
struct Limits {
    max_bytes: usize,
    fifo: bool,
    read_at: Instant,
}

impl SqsSink {
    /// The sink of the queue at `queue_url`, which goes by `name`. Asks nothing of the queue yet. One call of
    /// [`Sink::send`] takes at most `patience`.
    ///
    /// # Errors
    ///
    /// [`SinkError::Fatal`] where the URL is not that of a queue.
    pub async fn connect(
        access: &AwsAccess,
        name: &str,
        queue_url: &str,
        patience: Duration,
    ) -> Result<Self, SinkError> {
        let url = Url::parse(queue_url)
            .map_err(|error| SinkError::Fatal(format!("the queue's URL is not a URL ({error})")))?;
        if url.path().trim_matches('/').is_empty() {
            return Err(SinkError::Fatal("the queue's URL does not end with a queue's name".to_owned()));
        }
        Ok(Self {
            client: client(access).await,
            name: name.to_owned(),
            queue_url: queue_url.trim_end_matches('/').to_owned(),
            patience,
            limits: Mutex::new(None),
        })
    }

    /// The limits to send `largest` bytes by: the known ones, unless they would refuse that by an old reading.
    async fn limits(&self, largest: usize) -> Result<Limits, Fault> {
        let known = *self.limits.lock().await;
        match known {
            Some(known) if largest <= known.max_bytes || known.read_at.elapsed() < LIMITS_FRESH => Ok(known),
            _ => self.read_limits().await,
        }
    }

    async fn read_limits(&self) -> Result<Limits, Fault> {
        let request = self.client.get_queue_attributes().queue_url(&self.queue_url);
        // `All`, because a standard queue may not be asked for `FifoQueue`.
        let answer = self.within(request.attribute_names(QueueAttributeName::All).send()).await?;
        let attribute = |name| answer.attributes().and_then(|all| all.get(&name)).map(String::as_str);
        let max_bytes = attribute(QueueAttributeName::MaximumMessageSize).and_then(|bytes| bytes.parse().ok());
        let limits = Limits {
            max_bytes: max_bytes.ok_or_else(|| Fault::retry("the queue does not state MaximumMessageSize"))?,
            fifo: attribute(QueueAttributeName::FifoQueue) == Some("true"),
            read_at: Instant::now(),
        };
        *self.limits.lock().await = Some(limits);
        Ok(limits)
    }

    async fn send_batch(&self, messages: &[&Message], fifo: bool) -> Result<Vec<Outcome>, Fault> {
        let payload = Bytes::from(payload(&self.queue_url, messages, fifo));
        // The client signs what it is given here, sends it and reads the answer; a request of its own would say the same.
        let request = self.client.send_message_batch().customize().mutate_request(move |request| {
            request.headers_mut().insert("content-length", payload.len().to_string());
            *request.body_mut() = payload.clone().into();
        });
        Ok(outcomes(&self.within(request.send()).await?, messages.len()))
    }

    /// Waits for an answer, but not for ever; covers the search for credentials too.
    async fn within<T, E: ProvideErrorMetadata>(
        &self,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Fault> {
        let patience = self.patience / REQUESTS_IN_CALL;
        match timeout(patience, call).await {
            Ok(answer) => answer.map_err(|error| fault(&error)),
            Err(_) => Err(Fault::retry(format!("no answer within {patience:?}"))),
        }
    }
}

#[async_trait]
impl Sink for SqsSink {
    fn name(&self) -> &str {
        &self.name
    }

    async fn send(&self, pending: &[Message]) -> Vec<Outcome> {
        let last_start = Instant::now() + self.patience / 2;
        let sizes: Vec<usize> = pending.iter().map(size).collect();
        let limits = match self.limits(sizes.iter().copied().max().unwrap_or_default()).await {
            Ok(limits) => limits,
            Err(fault) => return vec![retry(fault); pending.len()],
        };
        let mut call = Call::new(pending, &sizes, limits);
        while Instant::now() <= last_start {
            let (batch, messages) = call.next_batch();
            if batch.is_empty() {
                break;
            }
            let answer = self.send_batch(&messages, limits.fifo).await;
            if refuses(&answer) {
                // It may have been by a limit that was lowered since.
                *self.limits.lock().await = None;
            }
            if call.settle(batch, answer).is_break() {
                break;
            }
        }
        call.outcomes
    }

    /// Asks for the queue's attributes, which a sink that lacks rights or a queue cannot read.
    async fn check(&self) -> Result<(), SinkError> {
        match self.read_limits().await {
            Ok(_) => Ok(()),
            Err(Fault { reaction: Reaction::Call, reason }) => Err(SinkError::Fatal(reason)),
            Err(Fault { reason, .. }) => Err(SinkError::Transient(reason)),
        }
    }
}

/// One call of [`Sink::send`].
struct Call<'a> {
    pending: &'a [Message],
    outcomes: Vec<Outcome>,
    batches: Batches,
}

impl<'a> Call<'a> {
    /// Nothing is sent yet; what is too large for the queue is refused already, and the rest goes on.
    fn new(pending: &'a [Message], sizes: &[usize], limits: Limits) -> Self {
        let outcomes = vec![Outcome::Held; pending.len()];
        let batches = Batches::new(MAX_ENTRIES, limits.max_bytes.min(MAX_BATCH_BYTES));
        let mut call = Self { pending, outcomes, batches };
        for (position, (message, &size)) in pending.iter().zip(sizes).enumerate() {
            if size > limits.max_bytes {
                let reason = format!("too large: {size} bytes, limit {}", limits.max_bytes);
                call.conclude(position, Outcome::Refused(reason));
            } else {
                call.batches.push(position, size, limits.fifo.then(|| message.group()));
            }
        }
        call
    }

    fn next_batch(&mut self) -> (Vec<usize>, Vec<&'a Message>) {
        let batch = self.batches.take();
        let messages = batch.iter().filter_map(|&position| self.pending.get(position)).collect();
        (batch, messages)
    }

    /// Notes what became of a batch; breaks where something of it has to be tried again.
    fn settle(&mut self, batch: Vec<usize>, answer: Result<Vec<Outcome>, Fault>) -> ControlFlow<()> {
        let outcomes = match answer {
            Ok(outcomes) => outcomes,
            Err(fault) if fault.reaction != Reaction::Refuse => vec![retry(fault); batch.len()],
            Err(_) if batch.len() > 1 => {
                self.batches.isolate(batch);
                return ControlFlow::Continue(());
            }
            Err(fault) => vec![Outcome::Refused(fault.reason)],
        };
        let again = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Retry { .. }));
        for (position, outcome) in batch.into_iter().zip(outcomes) {
            self.conclude(position, outcome);
        }
        if again { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn conclude(&mut self, position: usize, outcome: Outcome) {
        if !matches!(outcome, Outcome::Retry { .. }) {
            self.batches.settle(position);
        }
        if let Some(place) = self.outcomes.get_mut(position) {
            *place = outcome;
        }
    }
}

async fn client(access: &AwsAccess) -> Client {
    crate::crypto::init();
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let mut loader =
        aws_config::defaults(BehaviorVersion::latest()).http_client(http).retry_config(RetryConfig::disabled());
    if let Some(region) = &access.region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(endpoint) = &access.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some((id, key)) = &access.keys {
        let token = access.session_token.as_ref().map(|token| token.expose_secret().to_owned());
        let credentials = Credentials::new(id.expose_secret(), key.expose_secret(), token, None, "settings");
        loader = loader.credentials_provider(credentials);
    }
    Client::new(&loader.load().await)
}

/// The fate of each of the `sent` entries. An entry that the answer does not mention may or may not be there.
fn outcomes(answer: &SendMessageBatchOutput, sent: usize) -> Vec<Outcome> {
    let unmentioned = Fault::retry("the answer does not say what became of the message");
    let mut outcomes = vec![retry(unmentioned); sent];
    let mut note = |id: &str, outcome| {
        if let Some(place) = id.parse().ok().and_then(|id: usize| outcomes.get_mut(id)) {
            *place = outcome;
        }
    };
    for entry in answer.successful() {
        note(entry.id(), Outcome::Acknowledged);
    }
    for entry in answer.failed() {
        let fault = Fault::of_entry(entry.code(), entry.message().unwrap_or_default(), entry.sender_fault());
        let refused = fault.reaction == Reaction::Refuse;
        note(entry.id(), if refused { Outcome::Refused(fault.reason) } else { retry(fault) });
    }
    outcomes
}

fn refuses(answer: &Result<Vec<Outcome>, Fault>) -> bool {
    match answer {
        Ok(outcomes) => outcomes.iter().any(|outcome| matches!(outcome, Outcome::Refused(_))),
        Err(fault) => fault.reaction == Reaction::Refuse,
    }
}

fn retry(fault: Fault) -> Outcome {
    Outcome::Retry { throttled: fault.reaction == Reaction::SlowDown, reason: fault.reason }
}

/// The client's chains of errors can quote URLs and signed requests, so each is told in our own words.
fn fault<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> Fault {
    let status = error.raw_response().map(|response| response.status().as_u16());
    match error {
        SdkError::ServiceError(answer) => {
            let (code, message) = (answer.err().code(), answer.err().message());
            let unnamed = format!("HTTP {}", status.unwrap_or_default());
            Fault::of_call(code.unwrap_or(&unnamed), message.unwrap_or_default(), status)
        }
        SdkError::ResponseError(_) => Fault::retry(format!("unreadable answer, HTTP {}", status.unwrap_or_default())),
        SdkError::TimeoutError(_) => Fault::retry("no answer in time"),
        SdkError::DispatchFailure(failure) if failure.is_io() => Fault::retry("the connection failed"),
        SdkError::DispatchFailure(failure) if failure.is_timeout() => Fault::retry("no connection in time"),
        _ => Fault {
            reaction: Reaction::Call,
            reason: "the request could not be made: no AWS credentials or region, or they could not be fetched"
                .to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_without_a_queue_is_refused_and_keys_never_print() {
        let access = AwsAccess {
            keys: Some(("AKIAPLANTED".into(), "PLANTEDKEY".into())),
            session_token: Some("PLANTEDTOKEN".into()),
            ..AwsAccess::default()
        };
        let error =
            SqsSink::connect(&access, "sqs:x", "https://sqs.eu-west-1.amazonaws.com/", Duration::from_secs(1)).await;
        assert!(matches!(error, Err(SinkError::Fatal(reason)) if reason.contains("queue's name")));
        assert!(!format!("{access:?}").contains("PLANTED"));
    }
}
