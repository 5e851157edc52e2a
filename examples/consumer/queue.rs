//! Messages from an SQS queue, standard or FIFO.

use aws_sdk_sqs::{Client, Error};

use super::fold::Fold;

/// Most messages in one answer (Amazon SQS quotas).
const MOST: i32 = 10;

/// Folds everything that is in the queue, until nothing comes for `wait_seconds` (at most 20). Answers how many messages
/// came, and what could not be folded, which stays in the queue for its redrive policy.
///
/// A message is deleted after it is folded, never before. This consumer keeps its fold in memory; one that must survive
/// its own end writes the message to its table first (`docs/consuming.md`).
pub(crate) async fn drain(
    client: &Client,
    url: &str,
    wait_seconds: i32,
    fold: &mut Fold,
) -> Result<(usize, Vec<String>), Error> {
    let (mut came, mut mistakes) = (0, Vec::new());
    loop {
        let receive = client.receive_message().queue_url(url).max_number_of_messages(MOST);
        let messages = receive.wait_time_seconds(wait_seconds).send().await?.messages.unwrap_or_default();
        if messages.is_empty() {
            return Ok((came, mistakes));
        }
        for message in messages {
            came += 1;
            if let Err(mistake) = fold.take(message.body().unwrap_or_default()) {
                mistakes.push(mistake.to_string());
                continue;
            }
            client.delete_message().queue_url(url).set_receipt_handle(message.receipt_handle).send().await?;
        }
    }
}
