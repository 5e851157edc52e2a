//! The request of a batch as SQS reads it, in JSON, written in one pass.
//!
//! The client would hold a dozen texts and a map for each message before it writes the same; of millions of messages that
//! is most of what sending them costs. Names and forms: Amazon SQS API reference, `SendMessageBatch`, AWS JSON 1.0.

use super::{
    Message,
    json::{Object, key},
};

/// The type of every attribute (contract §8).
const STRING: &str = "String";
/// What of an entry is neither its body nor grows with it.
const USUAL_FRAME_BYTES: usize = 768;

/// Name and value of each attribute (contract §8).
fn attributes<'m>(message: &'m Message, digits: &'m mut itoa::Buffer) -> [(&'static str, &'m str); 4] {
    [
        ("eventType", &message.event_type),
        ("chainId", digits.format(message.chain_id)),
        ("contractAddress", message.contract_address.as_str()),
        ("id", message.id()),
    ]
}

/// What counts for the queue's limit: the body, and name, type and value of each attribute.
pub(super) fn size(message: &Message) -> usize {
    let mut digits = itoa::Buffer::new();
    let attributes = attributes(message, &mut digits);
    message.body().len() + attributes.iter().map(|(name, value)| name.len() + STRING.len() + value.len()).sum::<usize>()
}

/// Sends these messages, each under its place as the id of its entry.
pub(super) fn payload(queue_url: &str, messages: &[&Message], fifo: bool) -> String {
    // The quotes of a body are a tenth of it, and each is escaped.
    let usual = |message: &&Message| message.body().len() / 8 * 9 + USUAL_FRAME_BYTES;
    let mut out = String::with_capacity(queue_url.len() + messages.iter().map(usual).sum::<usize>());
    let mut request = Object::open(&mut out);
    request.text(key!("QueueUrl"), queue_url);
    let entries = request.member(key!("Entries"));
    entries.push('[');
    for (place, message) in messages.iter().enumerate() {
        if place > 0 {
            entries.push(',');
        }
        write_entry(entries, place, message, fifo);
    }
    entries.push(']');
    request.close();
    out
}

fn write_entry(out: &mut String, place: usize, message: &Message, fifo: bool) {
    let mut entry = Object::open(out);
    entry.plain(key!("Id"), itoa::Buffer::new().format(place));
    entry.text(key!("MessageBody"), message.body());
    let mut all = Object::open(entry.member(key!("MessageAttributes")));
    for (name, value) in attributes(message, &mut itoa::Buffer::new()) {
        let mut attribute = Object::open(all.named(name));
        attribute.plain(key!("DataType"), STRING);
        attribute.text(key!("StringValue"), value);
        attribute.close();
    }
    all.close();
    if fifo {
        entry.plain(key!("MessageGroupId"), &message.group());
        entry.plain(key!("MessageDeduplicationId"), &message.deduplication_id());
    }
    entry.close();
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A body in which everything is that has to be escaped.
    const BODY: &str = r#"{"eventType":"Über\"tragen\\","contractAddress":"0x00000000000000000000000000000000000000aB",
        "chainId":8453,"id":"8453:0x00:\u00e9\n7","version":11,"text":	"ギ𝄞"}"#;

    fn sent(fifo: bool) -> (Vec<Message>, Value) {
        let messages = vec![Message::from_body(BODY).unwrap(), Message::of_bodies(&[r#"{"a":"b"}"#]).remove(0)];
        let text = payload("http://queue/\"1\"", &messages.iter().collect::<Vec<_>>(), fifo);
        assert!(text.is_ascii());
        (messages, serde_json::from_str(&text).unwrap())
    }

    fn attribute(value: &str) -> Value {
        json!({ "DataType": "String", "StringValue": value })
    }

    #[test]
    fn the_request_says_every_message_with_its_attributes() {
        let (messages, request) = sent(false);
        let entry = |place: usize| {
            let message = &messages[place];
            json!({
                "Id": place.to_string(),
                "MessageBody": message.body(),
                "MessageAttributes": {
                    "eventType": attribute(&message.event_type),
                    "chainId": attribute(&message.chain_id.to_string()),
                    "contractAddress": attribute(message.contract_address.as_str()),
                    "id": attribute(message.id()),
                },
            })
        };
        assert_eq!(request, json!({ "QueueUrl": "http://queue/\"1\"", "Entries": [entry(0), entry(1)] }));
        assert_eq!(request["Entries"][0]["MessageBody"], BODY);
        assert_eq!(request["Entries"][0]["MessageAttributes"]["id"], attribute("8453:0x00:é\n7"));
    }

    #[test]
    fn to_a_fifo_queue_each_message_tells_its_group_and_what_it_is_known_by() {
        let (messages, request) = sent(true);
        for (message, entry) in messages.iter().zip(request["Entries"].as_array().unwrap()) {
            assert_eq!(entry["MessageGroupId"], message.group());
            assert_eq!(entry["MessageDeduplicationId"], message.deduplication_id());
        }
        assert_eq!(sent(false).1["Entries"][0].get("MessageGroupId"), None);
    }

    #[test]
    fn the_size_is_that_of_the_body_and_of_all_that_attributes_are() {
        let message = Message::of_bodies(&[r#"{"a":"b"}"#]).remove(0);
        let names = "eventType".len() + "chainId".len() + "contractAddress".len() + "id".len();
        let values = "Transfer".len() + "1".len() + 42 + message.id().len();
        assert_eq!(size(&message), message.body().len() + names + 4 * "String".len() + values);
    }
}
