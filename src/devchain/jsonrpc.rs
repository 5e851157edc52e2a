//! JSON-RPC 2.0: requests in, replies out, alone or in batches.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

/// Why a call failed: the `error` member of a reply.
#[derive(Clone, Debug, Serialize, thiserror::Error)]
#[error("{message} ({code})")]
pub(super) struct Fault {
    code: i64,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

impl Fault {
    /// A fault with a code of its own.
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    /// The same fault with machine-readable details.
    pub(super) fn with_data(self, data: Value) -> Self {
        Self { data: Some(data), ..self }
    }

    /// -32602: the parameters are not what the method takes.
    pub(super) fn params(message: impl Into<String>) -> Self {
        Self::new(-32602, message)
    }

    /// -32601: there is no such method.
    pub(super) fn method(name: &str) -> Self {
        Self::new(-32601, format!("the method {name} does not exist/is not available"))
    }

    /// -32000: the server's own errors.
    pub(super) fn server(message: impl Into<String>) -> Self {
        Self::new(-32000, message)
    }
}

/// What a method answers, already serialised.
pub(super) type Answer = Result<Box<RawValue>, Fault>;

/// Serialises a result.
pub(super) fn answer(result: &impl Serialize) -> Answer {
    to_raw_value(result).map_err(|error| Fault::new(-32603, error.to_string()))
}

/// The positional parameters of a call.
pub(super) struct Params(Vec<Value>);

impl Params {
    fn of(params: Option<&mut Value>) -> Result<Self, Fault> {
        match params.map(Value::take) {
            None | Some(Value::Null) => Ok(Self(Vec::new())),
            Some(Value::Array(params)) => Ok(Self(params)),
            Some(_) => Err(Fault::params("parameters are given as a list")),
        }
    }

    /// The first parameter, where there is one; it stays.
    pub(super) fn first(&self) -> Option<&Value> {
        self.0.first()
    }

    /// Takes parameter `place`, which must be there.
    pub(super) fn required<T: DeserializeOwned>(&mut self, place: usize) -> Result<T, Fault> {
        self.optional(place)?.ok_or_else(|| Fault::params(format!("missing value for required argument {place}")))
    }

    /// Takes parameter `place`; absent and `null` are the same.
    pub(super) fn optional<T: DeserializeOwned>(&mut self, place: usize) -> Result<Option<T>, Fault> {
        let value = self.0.get_mut(place).map(Value::take);
        let parsed = value.filter(|value| !value.is_null()).map(serde_json::from_value).transpose();
        parsed.map_err(|error| Fault::params(format!("invalid argument {place}: {error}")))
    }
}

/// Handles one message, which is a call or a batch of up to `most` calls. `None` where nothing is to be answered
/// because all calls were notifications.
pub(super) fn respond(message: &[u8], most: usize, mut call: impl FnMut(&str, Params) -> Answer) -> Option<String> {
    match serde_json::from_slice(message) {
        Err(error) => Some(reply(&Value::Null, Err(Fault::new(-32700, format!("parse error: {error}"))))),
        Ok(Value::Array(calls)) if calls.is_empty() => Some(invalid("empty batch")),
        Ok(Value::Array(calls)) if calls.len() > most => {
            Some(invalid(&format!("batch of {} calls: at most {most} are allowed", calls.len())))
        }
        Ok(Value::Array(calls)) => {
            let replies: Vec<_> = calls.into_iter().filter_map(|one| single(one, &mut call)).collect();
            (!replies.is_empty()).then(|| format!("[{}]", replies.join(",")))
        }
        Ok(one) => single(one, &mut call),
    }
}

fn single(mut request: Value, call: &mut impl FnMut(&str, Params) -> Answer) -> Option<String> {
    let Some(object) = request.as_object_mut() else { return Some(invalid("a request is an object")) };
    let id = object.remove("id");
    let Some(Value::String(method)) = object.remove("method") else {
        return Some(invalid("a request names its method"));
    };
    let result = Params::of(object.get_mut("params")).and_then(|params| call(&method, params));
    // Without an id it is a notification, which is never answered.
    id.map(|id| reply(&id, result))
}

fn invalid(reason: &str) -> String {
    reply(&Value::Null, Err(Fault::new(-32600, format!("invalid request: {reason}"))))
}

fn reply(id: &Value, result: Answer) -> String {
    match result {
        Ok(result) => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{}}}"#, result.get()),
        Err(error) => json!({ "jsonrpc": "2.0", "id": id, "error": error }).to_string(),
    }
}

/// A message to a subscriber.
pub(super) fn notification(subscription: &str, result: &impl Serialize) -> String {
    let params = json!({ "subscription": subscription, "result": result });
    json!({ "jsonrpc": "2.0", "method": "eth_subscription", "params": params }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(message: &str) -> Option<Value> {
        let reply = respond(message.as_bytes(), 3, |method, mut params| match method {
            "double" => answer(&(2 * params.required::<u64>(0)?)),
            _ => Err(Fault::method(method)),
        });
        reply.map(|text| serde_json::from_str(&text).unwrap())
    }

    fn code(message: &str) -> Value {
        ask(message).unwrap()["error"]["code"].take()
    }

    #[test]
    fn a_call_is_answered_under_its_id_whatever_that_is() {
        let reply = ask(r#"{"id":"x","method":"double","params":[21]}"#).unwrap();
        assert_eq!(reply, json!({ "jsonrpc": "2.0", "id": "x", "result": 42 }));
        assert_eq!(ask(r#"{"id":null,"method":"double","params":[1]}"#).unwrap()["id"], Value::Null);
    }

    #[test]
    fn mistakes_have_the_codes_of_the_specification() {
        assert_eq!(code("{"), -32700);
        assert_eq!(code("7"), -32600);
        assert_eq!(code("[]"), -32600);
        assert_eq!(code("[1,2,3,4]"), -32600);
        assert_eq!(code(r#"{"id":1,"params":[]}"#), -32600);
        assert_eq!(code(r#"{"id":1,"method":"halve"}"#), -32601);
        assert_eq!(code(r#"{"id":1,"method":"double"}"#), -32602);
        assert_eq!(code(r#"{"id":1,"method":"double","params":["a"]}"#), -32602);
        assert_eq!(code(r#"{"id":1,"method":"double","params":{"a":1}}"#), -32602);
    }

    #[test]
    fn a_batch_answers_every_call_but_the_notifications() {
        let batch = r#"[{"id":1,"method":"double","params":[1]},{"method":"double","params":[2]},7]"#;
        let replies = ask(batch).unwrap();
        assert_eq!(replies.as_array().unwrap().len(), 2);
        assert_eq!(replies[0]["result"], 2);
        assert_eq!(replies[1]["error"]["code"], -32600);
        assert_eq!(ask(r#"[{"method":"double","params":[1]}]"#), None);
    }
}
