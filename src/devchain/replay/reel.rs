//! The answers of a recording, endpoint by endpoint and question by question, and how far they were given.

use std::{collections::HashMap, sync::Arc, time::Duration};

use alloy::primitives::B256;
use serde_json::{Value, value::RawValue};
use url::Url;

use super::{
    known::{Known, Position},
    not_recorded,
    question::{Asked, Question},
};
use crate::recording::{Answer, Event, Exchange, Record, Reply};

/// What is said to a question.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) said: Said,
    pub(super) took: Duration,
}

/// What an endpoint says.
#[derive(Clone, Debug)]
pub(super) enum Said {
    /// The `result` member, as JSON.
    Result(Arc<RawValue>),
    /// The `error` member.
    Error(Arc<RawValue>),
    /// Nothing, in an answer to other calls of the batch.
    Missing,
    /// Another HTTP answer to the whole request.
    Http { status: u16, retry_after: Option<u64>, body: String },
    /// Something that could not be read, for this reason, to the whole request.
    Failed(String),
    /// Nothing ever.
    Silence,
}

/// All of a recording.
#[derive(Debug, Default)]
pub(super) struct Reel {
    endpoints: Vec<Endpoint>,
    /// Their paths.
    paths: Vec<String>,
    known: Known,
    position: Position,
    /// When the newest head that was announced here was announced in the recording.
    announced: u64,
    /// When it begins, microseconds since the Unix epoch.
    first: u64,
}

#[derive(Debug, Default)]
struct Endpoint {
    answers: HashMap<Question, Answers>,
    /// What its socket told, the earliest first.
    signs: Vec<(u64, Sign)>,
    /// Whether each opening of a socket succeeded.
    openings: Openings,
}

/// What a socket tells.
#[derive(Clone, Debug)]
pub(super) enum Sign {
    /// A head.
    Head(Arc<RawValue>),
    /// That it ends.
    End,
}

#[derive(Debug, Default)]
struct Openings {
    succeeded: Vec<bool>,
    next: usize,
}

/// The answers to one question in the order in which it was asked.
#[derive(Debug, Default)]
struct Answers {
    given: Vec<Given>,
    next: usize,
}

#[derive(Clone, Debug)]
struct Given {
    at: u64,
    told: Told,
    /// The block that it is.
    block: Option<B256>,
}

impl Given {
    fn is_result(&self) -> bool {
        matches!(self.told.said, Said::Result(_))
    }
}

impl Answers {
    /// The next one that is not outdated, or the last one again. Where the next one is not due, the last result again.
    fn next(&mut self, present: Present, due: u64) -> Option<Given> {
        while let Some(this) = self.given.get(self.next) {
            let mut later = self.given.iter().skip(self.next + 1);
            if !present.outdates(this, &mut later) {
                break;
            }
            self.next += 1;
        }
        let found = self.given.get(self.next).or_else(|| self.given.last())?;
        if found.at > due
            && let Some(again) = self.given.iter().take(self.next).rfind(|given| given.is_result())
        {
            return Some(again.clone());
        }
        self.next = (self.next + 1).min(self.given.len());
        Some(found.clone())
    }
}

/// What answers to one question may not contradict.
#[derive(Clone, Copy, Debug)]
enum Present {
    /// It does not change.
    Fixed,
    /// The newest head was told then.
    Told(u64),
    /// The same, and the question is for the newest head, of which this is when the last one was announced.
    Head(u64, u64),
    /// The same, and the question is for a block of which this is the one on the newest head's branch.
    Block(u64, B256),
}

impl Present {
    /// Whether an answer is outdated by those that were given later.
    fn outdates<'a>(self, this: &Given, later: &mut impl Iterator<Item = &'a Given>) -> bool {
        let Some(next) = later.next() else { return false };
        let is_before = |told: u64| next.at <= told;
        match self {
            Self::Fixed => false,
            Self::Told(told) => is_before(told),
            Self::Head(told, announced) => {
                let is_again = this.block.is_some() && next.block == this.block;
                is_before(told) || (is_again && is_before(announced))
            }
            Self::Block(told, block) => {
                let is_it = |given: &Given| given.block == Some(block);
                is_before(told) || (this.is_result() && !is_it(this) && (is_it(next) || later.any(is_it)))
            }
        }
    }
}

impl Reel {
    /// What these records, in the order in which they began, tell.
    pub(super) fn new(records: Vec<Record>) -> Self {
        let mut reel = Self { first: records.first().map_or(0, |record| record.at), ..Self::default() };
        for Record { at, endpoint, event } in records {
            let endpoint = reel.place(&endpoint);
            reel.add(endpoint, at, event);
        }
        reel
    }

    /// The endpoint of this name, which may be new.
    fn place(&mut self, name: &str) -> usize {
        let path = path(name);
        self.paths.iter().position(|known| *known == path).unwrap_or_else(|| {
            self.paths.push(path);
            self.endpoints.push(Endpoint::default());
            self.endpoints.len() - 1
        })
    }

    fn add(&mut self, place: usize, at: u64, event: Event) {
        let Some(endpoint) = self.endpoints.get_mut(place) else { return };
        match event {
            Event::Opened => endpoint.openings.succeeded.push(true),
            Event::Refused(_) => endpoint.openings.succeeded.push(false),
            Event::Closed => endpoint.signs.push((at, Sign::End)),
            Event::Head(head) => {
                let head = Arc::from(head);
                self.known.learn_block(&head, at);
                endpoint.signs.push((at, Sign::Head(head)));
            }
            Event::Exchange(Exchange { took, asked, answer }) => {
                let questions = asked.into_iter().map(|call| {
                    let params = serde_json::from_str::<Vec<Value>>(call.params.get()).unwrap_or_default();
                    Question::new(&call.method, params)
                });
                let took = Duration::from_micros(took);
                for (question, said) in questions.zip(said(answer)) {
                    let block = match &said {
                        Said::Result(result) => self.known.learn(&question.asked(), result, at),
                        _ => None,
                    };
                    let given = Given { at, told: Told { said, took }, block };
                    endpoint.answers.entry(question).or_default().given.push(given);
                }
            }
        }
    }

    /// The paths of the endpoints, in the order in which they were first asked.
    pub(super) fn paths(&self) -> &[String] {
        &self.paths
    }

    /// The endpoint of a path.
    pub(super) fn at(&self, path: &str) -> Option<usize> {
        if path == "/" { Some(0) } else { self.paths.iter().position(|known| known == path) }
    }

    /// When it begins, microseconds since the Unix epoch.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// The highest block in it.
    pub(super) fn highest(&self) -> u64 {
        self.known.highest()
    }

    /// What an endpoint says to a question. Of the chain's head it tells nothing that it told after `due`.
    pub(super) fn answer(&mut self, endpoint: usize, question: &Question, due: u64) -> Told {
        let asked = question.asked();
        let present = self.present(&asked);
        let due = if matches!(asked, Asked::Latest | Asked::Tag) { due } else { u64::MAX };
        let own = self.endpoints.get_mut(endpoint).and_then(|own| own.answers.get_mut(question));
        if let Some(given) = own.and_then(|answers| answers.next(present, due)) {
            if asked == Asked::Latest && given.is_result() && given.at >= self.position.at {
                self.position = Position { at: given.at, head: given.block.or(self.position.head) };
            }
            return given.told;
        }
        let known = self.known.answer(&asked, self.position).and_then(|text| RawValue::from_string(text).ok());
        let result = known.map(Arc::from).or_else(|| self.other(question));
        let said = result.map_or_else(|| Said::Error(raw(&not_recorded(question))), Said::Result);
        Told { said, took: Duration::ZERO }
    }

    /// What any endpoint answered to a question in the beginning.
    pub(super) fn any(&self, question: &Question) -> Option<String> {
        self.other(question).map(|result| result.get().to_owned())
    }

    /// What another endpoint answered to a question last, as of now; else what it was the first to answer.
    fn other(&self, question: &Question) -> Option<Arc<RawValue>> {
        let all = self.endpoints.iter().filter_map(|endpoint| endpoint.answers.get(question));
        let results = all.flat_map(|answers| &answers.given).filter_map(|given| match &given.told.said {
            Said::Result(result) => Some((given.at, result)),
            _ => None,
        });
        let by_now = results.clone().filter(|(at, _)| *at <= self.position.at).max_by_key(|(at, _)| *at);
        by_now.or_else(|| results.min_by_key(|(at, _)| *at)).map(|(_, result)| Arc::clone(result))
    }

    /// What an answer may not contradict now.
    fn present(&self, asked: &Asked) -> Present {
        let told = self.position.at;
        match asked {
            Asked::Hash(_) | Asked::BlockLogs(..) | Asked::Fixed => Present::Fixed,
            Asked::Latest => Present::Head(told, self.announced),
            Asked::Number(number) => match self.known.on_branch(*number, self.position) {
                Some(block) => Present::Block(told, block),
                None => Present::Told(told),
            },
            Asked::Tag | Asked::RangeLogs(..) | Asked::Changing => Present::Told(told),
        }
    }

    /// A head was announced, at this moment of the recording.
    pub(super) fn announced(&mut self, at: u64) {
        self.announced = self.announced.max(at);
    }

    /// Whether the next socket of an endpoint opens.
    pub(super) fn opens(&mut self, endpoint: usize) -> bool {
        let Some(Endpoint { openings, .. }) = self.endpoints.get_mut(endpoint) else { return false };
        let opens = openings.succeeded.get(openings.next).copied();
        openings.next += 1;
        opens.unwrap_or(true)
    }

    /// What the socket of an endpoint tells next after this moment, and when.
    pub(super) fn sign_after(&self, endpoint: usize, at: u64) -> Option<(u64, Sign)> {
        let signs = &self.endpoints.get(endpoint)?.signs;
        signs.get(signs.partition_point(|(sign_at, _)| *sign_at <= at)).cloned()
    }
}

/// What each call of a request was told. What became of it as a whole is told to its first call.
fn said(answer: Answer) -> Vec<Said> {
    match answer {
        Answer::Replies(replies) => replies
            .into_iter()
            .map(|reply| match reply {
                Reply::Result(result) => Said::Result(result.into()),
                Reply::Error(error) => Said::Error(error.into()),
                Reply::Missing => Said::Missing,
            })
            .collect(),
        Answer::Http { status, retry_after, body } => vec![Said::Http { status, retry_after, body }],
        Answer::Failed(reason) => vec![Said::Failed(reason)],
        Answer::Silence => vec![Said::Silence],
    }
}

/// The path of an endpoint: its name, as URLs are written.
fn path(name: &str) -> String {
    let mut url = Url::parse("http://endpoint").ok();
    if let Some(mut segments) = url.as_mut().and_then(|url| url.path_segments_mut().ok()) {
        segments.push(name);
    }
    url.map(|url| url.path().to_owned()).unwrap_or_default()
}

fn raw(value: &Value) -> Arc<RawValue> {
    RawValue::from_string(value.to_string()).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::recording::Call;

    fn hash(number: u64) -> B256 {
        B256::from(alloy::primitives::U256::from(number + 1))
    }

    fn exchange(at: u64, endpoint: &str, tag: &str, answer: Answer) -> Record {
        let params = RawValue::from_string(json!([tag, false]).to_string()).unwrap();
        let asked = vec![Call { method: "eth_getBlockByNumber".into(), params }];
        Record { at, endpoint: endpoint.into(), event: Event::Exchange(Exchange { took: 0, asked, answer }) }
    }

    fn block(number: u64) -> Answer {
        let parent = hash(number - 1);
        let block = json!({ "number": format!("{number:#x}"), "hash": hash(number), "parentHash": parent });
        Answer::Replies(vec![Reply::Result(RawValue::from_string(block.to_string()).unwrap())])
    }

    /// What an endpoint tells of a tag: a number, or why not.
    fn ask(reel: &mut Reel, path: &str, tag: &str, due: u64) -> Result<u64, String> {
        let question = Question::new("eth_getBlockByNumber", vec![json!(tag), json!(false)]);
        let endpoint = reel.at(path).unwrap();
        match reel.answer(endpoint, &question, due).said {
            Said::Result(block) => {
                let block: Value = serde_json::from_str(block.get()).unwrap();
                Ok(u64::from_str_radix(block["number"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap())
            }
            Said::Error(error) => Err(error.to_string()),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_nth_answer_comes_to_the_nth_question_and_the_last_one_again() {
        let records = vec![
            exchange(1, "a", "latest", block(5)),
            exchange(2, "a", "latest", Answer::Silence),
            exchange(3, "a", "latest", block(6)),
        ];
        let mut reel = Reel::new(records);
        let told: Vec<_> = (0..4).map(|_| ask(&mut reel, "/a", "latest", u64::MAX)).collect();
        assert_eq!(told, [Ok(5), Err("Silence".into()), Ok(6), Ok(6)]);
        assert_eq!((reel.at("/"), reel.at("/b")), (Some(0), None));
    }

    #[test]
    fn a_head_is_not_told_before_its_time_nor_after_a_later_one_was() {
        let records = vec![
            exchange(1, "a", "latest", block(5)),
            exchange(2, "b#2", "latest", block(4)),
            exchange(10, "a", "latest", block(6)),
            exchange(11, "b#2", "latest", Answer::Silence),
            exchange(20, "a", "latest", block(7)),
            exchange(21, "b#2", "latest", block(6)),
            exchange(30, "b#2", "latest", block(8)),
        ];
        let mut reel = Reel::new(records);
        let told: Vec<_> = [5, 5, 25, 25, 25].map(|due| ask(&mut reel, "/a", "latest", due)).into();
        assert_eq!(told, [Ok(5), Ok(5), Ok(6), Ok(7), Ok(7)]);
        // At 20 the other one had told 4 and nothing.
        assert_eq!(ask(&mut reel, "/b%232", "latest", 25), Err("Silence".into()));
        assert_eq!([25, 25, 30].map(|due| ask(&mut reel, "/b%232", "latest", due)), [Ok(6), Ok(6), Ok(8)]);
        // What it was never asked comes from what is known, and where nothing is, that is said.
        assert_eq!(ask(&mut reel, "/a", "0x6", 30), Ok(6));
        assert_eq!(ask(&mut reel, "/a", "0x3", 30).unwrap_err().matches("not in the recording").count(), 1);
    }
}
