//! The answer to a request for logs, read as it arrives.
//!
//! Such an answer has megabytes, and nearly all of them are the logs of one list. The list is taken out of the answer while
//! it comes in: each log is read and checked, and its text dropped. What is left, the answer with an empty list in it, is
//! small, and is read as any other answer. So of a usual answer nothing is held as it was said, nor read at a stretch; what is
//! no log, and one log that is huge, are within the limits of size.
//!
//! Only the first list that is the `result` of a reply is taken out; whose result it was is told by the reply's place, and
//! nothing in the answer can pretend another.

use serde::{Deserialize, de::IgnoredAny};

use super::{
    LogFilter,
    error::unreadable,
    form::Form,
    wire::{Gathering, WireLog},
};
use crate::{config::LogIndex, domain::BlockRange};

/// So much is gathered before logs are read from it, bytes: the one that is cut off at the end is read again.
const ENOUGH: usize = 64 << 10;
/// A log that is cut off is completed with so much of what comes behind it, as a part of what is enough.
const BITE: usize = 16;

/// How many of these logs an answer to one call has, read as one that arrives: what `cargo bench --bench stages` measures.
///
/// # Errors
///
/// What is not JSON, and what is not an answer with these logs, in words.
pub fn count_logs(answer: &[u8], filter: &LogFilter) -> Result<usize, String> {
    let mut reader = Reader::new(Gathering::new(filter, LogIndex::Block));
    answer.chunks(ENOUGH).try_for_each(|piece| reader.take(piece))?;
    let logs = reader.end()?.logs;
    logs.of_range(BlockRange { from: 0, to: u64::MAX }).map(|logs| logs.len()).map_err(|error| error.to_string())
}

/// Reads one answer.
#[derive(Debug)]
pub(super) struct Reader<'f> {
    envelope: Envelope,
    gathering: Gathering<'f>,
    /// The form of the logs, as long as all were in it: nodes write them alike, so where one is not the others are not.
    form: Option<Form>,
    stands: Stands,
    /// What came of the list and is not read yet.
    unread: Vec<u8>,
    /// How much there must be of it to be read.
    enough: usize,
    /// The least that is enough.
    at_least: usize,
}

/// Where the reader stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// Around the list: before it, behind it, or there is none.
    Around,
    /// At the list's beginning.
    AtBegin,
    /// Before a log, which must come.
    AtLog,
    /// Behind a log.
    BehindLog,
}

/// A whole answer, of which the logs were taken out.
#[derive(Debug)]
pub(super) struct Rest<'f> {
    /// The answer with an empty list where the logs were.
    pub(super) text: Vec<u8>,
    /// The place of the reply whose result they were, where there was a list.
    pub(super) place: Option<usize>,
    pub(super) logs: Gathering<'f>,
}

impl<'f> Reader<'f> {
    pub(super) fn new(logs: Gathering<'f>) -> Self {
        Self::eager(logs, ENOUGH)
    }

    /// One that reads logs as soon as there are so many bytes of them.
    pub(super) fn eager(logs: Gathering<'f>, at_least: usize) -> Self {
        let (envelope, form, unread) = (Envelope::default(), Some(Form::default()), Vec::new());
        Self { envelope, gathering: logs, form, stands: Stands::Around, unread, enough: at_least, at_least }
    }

    /// Reads on. What comes is read where it stands, but for the log that is cut off at each end of it.
    ///
    /// # Errors
    ///
    /// What is not JSON, in words.
    pub(super) fn take(&mut self, piece: &[u8]) -> Result<(), String> {
        let mut rest = if self.stands == Stands::Around { self.around(piece) } else { piece };
        if self.stands == Stands::Around {
            return Ok(());
        }
        if !self.will_read(rest) {
            self.unread.extend_from_slice(rest);
            return Ok(());
        }
        if !self.unread.is_empty() {
            let cut_off = self.unread.len();
            let mut text = std::mem::take(&mut self.unread);
            let (bite, others) = rest.split_at(rest.len().min(self.at_least.div_ceil(BITE)));
            text.extend_from_slice(bite);
            let read = self.read(&text)?;
            if read < cut_off {
                text.drain(..read);
                text.extend_from_slice(others);
                return self.go_on_with(text);
            }
            rest = rest.get(read - cut_off..).unwrap_or_default();
        }
        self.go_on(rest)
    }

    /// Whether what is there is enough, with this piece, to read logs from it; else the piece is only kept.
    pub(super) fn will_read(&self, piece: &[u8]) -> bool {
        self.unread.len() + piece.len() >= self.enough
    }

    /// How much came besides the list, bytes.
    pub(super) fn besides(&self) -> usize {
        self.envelope.text.len()
    }

    /// The answer is over.
    ///
    /// # Errors
    ///
    /// What is not JSON, in words; the text that is left is not judged.
    pub(super) fn end(mut self) -> Result<Rest<'f>, String> {
        if self.stands != Stands::Around {
            let unread = std::mem::take(&mut self.unread);
            self.go_on_with(unread)?;
        }
        if self.stands != Stands::Around {
            return Err("it ends within a list".to_owned());
        }
        let Envelope { text, taken, .. } = self.envelope;
        Ok(Rest { text, place: taken, logs: self.gathering })
    }

    /// Keeps what is not of the list, and tells what is.
    fn around<'p>(&mut self, piece: &'p [u8]) -> &'p [u8] {
        match self.envelope.keep(piece) {
            None => &[],
            Some(list) => {
                self.stands = Stands::AtBegin;
                list
            }
        }
    }

    /// Reads what is there of the list, and keeps what is behind it.
    fn go_on(&mut self, text: &[u8]) -> Result<(), String> {
        let read = if self.stands == Stands::Around { 0 } else { self.read(text)? };
        let unread = text.get(read..).unwrap_or_default();
        if self.stands == Stands::Around {
            self.around(unread);
        } else {
            self.unread.extend_from_slice(unread);
            self.wait();
        }
        Ok(())
    }

    /// The same with a text of our own, which may be one huge log: there is no second one of its size.
    fn go_on_with(&mut self, mut text: Vec<u8>) -> Result<(), String> {
        let read = if self.stands == Stands::Around { 0 } else { self.read(&text)? };
        text.drain(..read);
        if self.stands == Stands::Around {
            self.around(&text);
        } else {
            self.unread = text;
            self.wait();
        }
        Ok(())
    }

    /// A log of megabytes is not tried for each piece of it.
    fn wait(&mut self) {
        self.enough = self.at_least.max(self.unread.len() * 2);
    }

    /// Reads what is there of the list, but for a log that is cut off; answers how much that was.
    fn read(&mut self, text: &[u8]) -> Result<usize, String> {
        let text = whole_characters(text)?;
        Ok(text.len() - self.logs(text)?.len())
    }

    /// Reads logs to the list's end or to one that is cut off; what stands behind.
    fn logs<'b>(&mut self, mut text: &'b str) -> Result<&'b str, String> {
        loop {
            text = text.trim_start_matches([' ', '\t', '\n', '\r']);
            let (is_over, is_next) = (text.strip_prefix(']'), text.strip_prefix(','));
            text = match (self.stands, is_over, is_next) {
                _ if text.is_empty() => return Ok(text),
                (Stands::AtBegin | Stands::BehindLog, Some(behind), _) => {
                    self.stands = Stands::Around;
                    self.envelope.close();
                    return Ok(behind);
                }
                (Stands::BehindLog, _, Some(behind)) => {
                    self.stands = Stands::AtLog;
                    behind
                }
                (Stands::BehindLog, ..) => return Err("no comma between two elements of a list".to_owned()),
                _ => match self.log(text)? {
                    None => return Ok(text),
                    Some(behind) => {
                        self.stands = Stands::BehindLog;
                        behind
                    }
                },
            }
        }
    }

    /// Reads one log; what stands behind it, or none where it is not there as a whole.
    fn log<'b>(&mut self, text: &'b str) -> Result<Option<&'b str>, String> {
        if !self.gathering.is_refused() {
            if let Some((log, behind)) = self.form.as_mut().and_then(|form| form.read(text)) {
                self.gathering.add(log);
                return Ok(Some(behind));
            }
            match first::<WireLog>(text) {
                Ok(None) => return Ok(None),
                Ok(Some((log, behind))) => {
                    self.form = None;
                    self.gathering.add(log);
                    return Ok(Some(behind));
                }
                Err(error) => self.gathering.refuse(unreadable(error)),
            }
        }
        // Of an answer that is of no use it is still to be told whether it is JSON: what else is in it says why.
        let passed = first::<IgnoredAny>(text).map_err(|error| error.to_string())?;
        Ok(passed.map(|(_, behind)| behind))
    }
}

/// The text, without a character at its end that is cut off. Told once for all texts in it: from bytes serde would look at
/// each of them again.
fn whole_characters(bytes: &[u8]) -> Result<&str, String> {
    let told = match str::from_utf8(bytes) {
        Err(error) if error.error_len().is_none() => bytes.get(..error.valid_up_to()).map_or(Ok(""), str::from_utf8),
        told => told,
    };
    told.map_err(|error| error.to_string())
}

/// The first value of a text and what stands behind it; none where more must come to say what it is.
fn first<'b, V: Deserialize<'b>>(text: &'b str) -> serde_json::Result<Option<(V, &'b str)>> {
    let mut source = serde_json::Deserializer::from_str(text);
    match V::deserialize(&mut source) {
        Ok(value) => {
            let behind = text.get(source.into_iter::<IgnoredAny>().byte_offset()..).unwrap_or_default();
            // A number may go on.
            Ok(if behind.is_empty() { None } else { Some((value, behind)) })
        }
        Err(error) if error.is_data() || !(error.is_eof() || may_be_cut_off(text)) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Whether a text may end within a number: of one that is passed over, serde does not say that it is cut off.
fn may_be_cut_off(text: &str) -> bool {
    text.ends_with(|end: char| matches!(end, '0'..='9' | '-' | '+' | '.' | 'e' | 'E'))
}

/// An answer without its list of logs. Of its structure no more is followed than it takes to find that list; where it is
/// not JSON, the text shows it in the end.
#[derive(Debug, Default)]
struct Envelope {
    text: Vec<u8>,
    depth: usize,
    /// How deep replies stand: 1 where there is one, 2 in a batch.
    depth_of_replies: usize,
    /// Whether what stands there is an object.
    is_reply: bool,
    /// The place of the reply in the batch.
    reply: usize,
    /// The place of the reply that the list was taken out of.
    taken: Option<usize>,
    /// Where the string that is being read begins.
    string: Option<usize>,
    is_escaped: bool,
    /// What comes at the depth of replies.
    next: Next,
}

/// What comes in a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Next {
    #[default]
    Other,
    /// The name of a member.
    Name,
    /// The result.
    Result,
}

impl Envelope {
    /// Keeps the text, but what stands behind the beginning of the list.
    fn keep<'p>(&mut self, piece: &'p [u8]) -> Option<&'p [u8]> {
        for (place, byte) in piece.iter().enumerate() {
            self.text.push(*byte);
            if self.is_at_list(*byte) {
                return piece.get(place + 1..);
            }
        }
        None
    }

    /// The list is over.
    fn close(&mut self) {
        self.text.push(b']');
    }

    /// Follows one byte more, which may begin the list.
    fn is_at_list(&mut self, byte: u8) -> bool {
        if let Some(begin) = self.string {
            self.follow_string(begin, byte);
            return false;
        }
        let is_member = self.is_reply && self.depth == self.depth_of_replies;
        match byte {
            b'"' => self.string = Some(self.text.len() - 1),
            b'[' if is_member && self.next == Next::Result && self.taken.is_none() => {
                self.taken = Some(self.reply);
                return true;
            }
            b'[' | b'{' => self.open(byte == b'{'),
            b']' | b'}' => self.depth = self.depth.saturating_sub(1),
            b',' if is_member => self.next = Next::Name,
            b',' if self.depth == 1 => self.reply += 1,
            _ => {}
        }
        false
    }

    fn open(&mut self, is_object: bool) {
        if self.depth == 0 {
            self.depth_of_replies = if is_object { 1 } else { 2 };
        }
        self.depth += 1;
        if self.depth == self.depth_of_replies {
            self.is_reply = is_object;
            self.next = if is_object { Next::Name } else { Next::Other };
        }
    }

    fn follow_string(&mut self, begin: usize, byte: u8) {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = true,
            b'"' => {
                self.string = None;
                if self.next == Next::Name && self.depth == self.depth_of_replies {
                    // Letters may be escaped.
                    let name = self.text.get(begin..).and_then(|name| serde_json::from_slice::<String>(name).ok());
                    self.next = if name.as_deref() == Some("result") { Next::Result } else { Next::Other };
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{super::fuzzing::told_in_pieces, *};

    const TOPIC: &str = "0xdddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd";
    const HASH: &str = "0xaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn filter() -> LogFilter {
        LogFilter { addresses: Vec::new(), topics: vec![TOPIC.parse().unwrap()] }
    }

    fn log(index: usize, data: &str) -> Value {
        let mut log = json!({ "address": format!("0x{}", "11".repeat(20)), "topics": [TOPIC], "data": data,
            "blockNumber": "0x5", "blockHash": HASH, "transactionHash": HASH, "transactionIndex": "0x0",
            "logIndex": format!("{index:#x}") });
        // The first ones are in the usual form.
        if index > 0 {
            log["unknown"] = json!({ "result": [1, "}]€", null] });
        }
        log
    }

    fn header() -> Value {
        json!({ "number": "0x5", "hash": HASH, "parentHash": HASH, "timestamp": "0x7", "transactions": [HASH, "]"] })
    }

    fn batch(logs: &Value) -> String {
        json!([{ "jsonrpc": "2.0", "id": 0, "result": logs }, { "result": header(), "id": 1 },
            { "id": 2, "extra": [{ "result": [] }], "result": null }])
        .to_string()
    }

    /// Reads an answer in pieces of this size, whatever is enough to be read.
    fn read(answer: impl AsRef<[u8]>, size: usize) -> Result<(usize, Vec<u8>), String> {
        let filter = filter();
        let mut told = [1, 50, 600].map(|enough| {
            let mut reader = Reader::eager(Gathering::new(&filter, LogIndex::Block), enough);
            answer.as_ref().chunks(size).try_for_each(|piece| reader.take(piece))?;
            let rest = reader.end()?;
            Ok((rest.logs.told(), rest.text))
        });
        assert!(told.iter().all(|one| one.as_ref().ok() == told[0].as_ref().ok()), "{told:?}");
        std::mem::replace(&mut told[0], Err(String::new()))
    }

    #[test]
    fn logs_are_taken_out_and_the_rest_is_left_wherever_the_answer_is_cut() {
        let logs = json!([log(0, "0x"), log(1, "0x00ff"), log(2, "0x")]);
        let (answer, empty) = (batch(&logs), batch(&json!([])));
        for size in 1..=answer.len() {
            assert_eq!(read(&answer, size), Ok((3, empty.clone().into_bytes())), "in pieces of {size} bytes");
        }
        let spaced = serde_json::to_string_pretty(&serde_json::from_str::<Value>(&answer).unwrap()).unwrap();
        for size in [1, 7, 64, spaced.len()] {
            assert_eq!(read(&spaced, size).map(|(logs, _)| logs), Ok(3), "in pieces of {size} bytes");
        }
    }

    #[test]
    fn an_answer_that_is_cut_off_or_no_json_is_no_answer() {
        let answer = batch(&json!([log(0, "0x"), log(1, "0x")]));
        let list = answer.find('[').unwrap()..answer.rfind("]},{\"result\"").unwrap();
        for end in 0..answer.len() {
            let left = read(&answer.as_bytes()[..end], 5).map(|(_, text)| text);
            let is_answer = left.as_ref().is_ok_and(|text| serde_json::from_slice::<Value>(text).is_ok());
            assert!(!is_answer, "cut off at {end}");
            assert!(left.is_err() || !(list.start + 40..list.end).contains(&end), "within the list, at {end}");
        }
        for wrong in ["[1 2]", "[1,]", "[,1]", "[}", "[\"\u{7}\"]", "[1\u{c},2]", "[nul]"] {
            assert!(read(format!(r#"{{"id":0,"result":{wrong}}}"#), 1).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_number_may_be_cut_anywhere() {
        let mut log = log(0, "0x");
        log["unknown"] = json!([-1.5e-30, 0.25, 12]);
        let answer = batch(&json!([log, log]));
        for size in 1..=answer.len() {
            assert_eq!(read(&answer, size).map(|(logs, _)| logs), Ok(2), "in pieces of {size} bytes");
        }
    }

    #[test]
    fn a_huge_log_is_not_tried_for_each_of_its_pieces() {
        let filter = filter();
        let mut reader = Reader::new(Gathering::new(&filter, LogIndex::Block));
        let (mut tries, mut most) = (0, 0);
        for piece in batch(&json!([log(0, &format!("0x{}", "00".repeat(4 << 20)))])).as_bytes().chunks(1_000) {
            let before = reader.enough;
            reader.take(piece).unwrap();
            tries += usize::from(reader.enough != before);
            most = most.max(reader.unread.len());
        }
        assert!((1..=9).contains(&tries) && most > 8 << 20, "{tries} tries, {most} bytes");
        assert_eq!(reader.end().unwrap().logs.told(), 1);
    }

    #[test]
    fn no_more_than_what_is_being_read_is_held() {
        let filter = filter();
        let mut reader = Reader::new(Gathering::new(&filter, LogIndex::Block));
        let logs: Vec<Value> = (0..3_000).map(|index| log(index, "0x")).collect();
        let answer = batch(&json!(logs));
        let mut most = 0;
        for piece in answer.as_bytes().chunks(8_000) {
            reader.take(piece).unwrap();
            most = most.max(reader.unread.capacity() + reader.envelope.text.capacity());
        }
        assert!(answer.len() > 1 << 20 && most < 3 * ENOUGH, "{most} bytes held of {}", answer.len());
        assert_eq!(reader.end().unwrap().logs.told(), 3_000);
    }

    #[test]
    fn a_useless_list_costs_no_memory() {
        let filter = filter();
        let mut reader = Reader::new(Gathering::new(&filter, LogIndex::Block));
        reader.take(br#"{"id":0,"result":["#).unwrap();
        (0..100).try_for_each(|_| reader.take("{},".repeat(1_000).as_bytes())).unwrap();
        reader.take(b"{}]}").unwrap();
        let rest = reader.end().unwrap();
        assert!(rest.logs.is_refused() && rest.logs.told() == 0 && rest.text.len() < 100);
    }

    /// Results of a call for logs and others, in any form.
    fn result() -> impl Strategy<Value = String> {
        let logs = proptest::collection::vec((0..4usize, "0x(00){0,3}"), 0..4)
            .prop_map(|logs| logs.iter().map(|(index, data)| log(*index, data)).collect::<Value>().to_string());
        prop_oneof![
            4 => logs,
            3 => Just(header().to_string()),
            1 => Just("null".to_owned()),
            1 => Just("[]".to_owned()),
            1 => Just(r#"[{"a":["\u005d\ud800"]} , 12,-1.5e3, "x", [[]]]"#.to_owned()),
            1 => Just(format!(r#"["0x5","{HASH}","{HASH}","0x7"]"#)),
        ]
    }

    /// Members of a reply, in any order; most have an id and a result.
    fn reply() -> impl Strategy<Value = String> {
        let id = prop_oneof![8 => (0..4u8).prop_map(|id| id.to_string()), 1 => Just("null".to_owned()),
            1 => Just("\"0\"".to_owned())];
        let error = Just(r#""error":{"code":-32005,"message":"rate limit","data":["result"]}"#.to_owned());
        let outcome = prop_oneof![
            9 => result().prop_map(|result| format!(r#""result":{result}"#)),
            1 => result().prop_map(|result| format!(r#""r\u0065sult" : {result}"#)),
            2 => error,
        ];
        let other = prop_oneof![
            Just(r#""jsonrpc":"2.0""#.to_owned()),
            Just(r#""x":{"result":[{}]}"#.to_owned()),
            Just(r#""\"result":"[""#.to_owned()),
            result().prop_map(|result| format!(r#""result":{result}"#)),
        ];
        (id, outcome, proptest::collection::vec(other, 0..2))
            .prop_flat_map(|(id, outcome, others)| {
                Just([vec![format!(r#""id":{id}"#), outcome], others].concat()).prop_shuffle()
            })
            .prop_map(|members| format!("{{{}}}", members.join(",")))
    }

    fn answer() -> impl Strategy<Value = Vec<u8>> {
        let right = proptest::collection::vec(result(), 3).prop_map(|results| {
            let reply = |(id, result)| format!(r#"{{"id":{id},"result":{result}}}"#);
            format!("[{}]", results.iter().enumerate().map(reply).collect::<Vec<_>>().join(", "))
        });
        let others = proptest::collection::vec(reply(), 0..5).prop_map(|replies| format!(" [{}]\n", replies.join(",")));
        (
            prop_oneof![right, others, reply()],
            proptest::option::weighted(0.3, (any::<usize>(), any::<u8>())),
            any::<bool>(),
        )
            .prop_map(|(answer, change, cuts)| {
                let mut answer = answer.into_bytes();
                if let Some((at, byte)) = change {
                    let at = at % answer.len();
                    if cuts { answer.truncate(at) } else { answer[at] = byte }
                }
                answer
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn an_answer_says_the_same_whether_it_is_read_as_a_whole_or_in_pieces(
            answer in answer(), sizes in proptest::collection::vec(1..200usize, 1..6), alone: bool
        ) {
            told_in_pieces(&answer, if alone { 1 } else { 3 }, &filter(), &sizes);
        }
    }
}
