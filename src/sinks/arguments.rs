//! The arguments of any event as the JSON object of the message (contract §8).
//!
//! | Solidity | JSON |
//! | --- | --- |
//! | `uintN`, `intN`, N ≤ 48 | number |
//! | wider `uintN`, `intN` | decimal string |
//! | `bool` | boolean |
//! | `address` | EIP-55 string |
//! | `bytes`, `bytesN`, `function` | `0x` and lower-case hex |
//! | `string` | string |
//! | arrays | array |
//! | tuples | object |
//! | an indexed argument of dynamic type | its 32-byte hash, as hex: all that the log holds |
//!
//! Pure: decoding a log is `pipeline::decode`'s work.

use alloy::{
    dyn_abi::{DecodedEvent, DynSolValue},
    hex,
    json_abi::{Event, Param},
};

use super::{
    checksum::Checksummed,
    json::{Object, quote},
};

/// The widest integer, in bits, that every JSON reader takes as an exact number; doubles hold 53.
const MAX_NUMBER_BITS: usize = 48;

/// The arguments of `decoded` as one JSON object in ASCII, members in the order of the ABI. `decoded` must come from
/// `event`.
///
/// An argument without a name is `arg{position}`. So is one whose name an earlier one took (Solidity refuses such an
/// event, a hand-written ABI may hold it), with `_` appended until it is the only one of that name.
#[must_use]
pub fn args_json(event: &Event, decoded: &DecodedEvent) -> String {
    let (mut indexed, mut body) = (decoded.indexed.iter(), decoded.body.iter());
    let members = event.inputs.iter().filter_map(|input| {
        let value = if input.indexed { indexed.next() } else { body.next() }?;
        Some((input.name.as_str(), input.components.as_slice(), value))
    });
    let mut json = String::new();
    write_object(&mut json, members);
    json
}

fn write_object<'a>(out: &mut String, members: impl Iterator<Item = (&'a str, &'a [Param], &'a DynSolValue)>) {
    let mut taken = Vec::new();
    let mut object = Object::open(out);
    for (position, (name, components, value)) in members.enumerate() {
        let name = unique(name, position, &taken);
        write_value(object.named(&name), components, value);
        taken.push(name);
    }
    object.close();
}

fn unique(name: &str, position: usize, taken: &[String]) -> String {
    let is_free = |name: &str| !name.is_empty() && taken.iter().all(|other| other != name);
    if is_free(name) {
        return name.to_owned();
    }
    let mut name = format!("arg{position}");
    while !is_free(&name) {
        name.push('_');
    }
    name
}

/// `components` are those of the argument's tuple, also where it is an array of such tuples.
fn write_value(out: &mut String, components: &[Param], value: &DynSolValue) {
    match value {
        DynSolValue::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        DynSolValue::Int(value, bits) => write_integer(out, &value.to_string(), *bits),
        DynSolValue::Uint(value, bits) => write_integer(out, &value.to_string(), *bits),
        DynSolValue::Address(value) => quote(out, Checksummed::of(*value).as_str()),
        DynSolValue::FixedBytes(word, size) => write_bytes(out, word.get(..*size).unwrap_or(word.as_slice())),
        DynSolValue::Function(value) => write_bytes(out, value.as_slice()),
        DynSolValue::Bytes(value) => write_bytes(out, value),
        DynSolValue::String(value) => quote(out, value),
        DynSolValue::Array(values) | DynSolValue::FixedArray(values) => write_array(out, components, values),
        DynSolValue::Tuple(values) => write_tuple(out, components, values),
    }
}

fn write_integer(out: &mut String, digits: &str, bits: usize) {
    if bits <= MAX_NUMBER_BITS { out.push_str(digits) } else { quote(out, digits) }
}

fn write_bytes(out: &mut String, bytes: &[u8]) {
    quote(out, &hex::encode_prefixed(bytes));
}

fn write_array(out: &mut String, components: &[Param], values: &[DynSolValue]) {
    out.push('[');
    for (position, value) in values.iter().enumerate() {
        if position > 0 {
            out.push(',');
        }
        write_value(out, components, value);
    }
    out.push(']');
}

fn write_tuple(out: &mut String, components: &[Param], values: &[DynSolValue]) {
    let members = components.iter().map(|part| (part.name.as_str(), part.components.as_slice())).zip(values);
    write_object(out, members.map(|((name, components), value)| (name, components, value)));
}

#[cfg(test)]
mod tests {
    use alloy::{
        dyn_abi::{DynSolType, EventExt},
        json_abi::EventParam,
        primitives::{B256, I256, U256, address, keccak256},
    };

    use super::*;

    /// Encodes `values` as a log of `event` would hold them, decodes the log by the ABI, and gives the JSON.
    fn json_of(event: &Event, values: &[DynSolValue]) -> String {
        let (mut topics, mut body) = (vec![event.selector()], Vec::new());
        for (input, value) in event.inputs.iter().zip(values) {
            if input.indexed { topics.push(value.encode_topic()) } else { body.push(value.clone()) }
        }
        let data = DynSolValue::Tuple(body).abi_encode_params();
        args_json(event, &event.decode_log_parts(topics, &data).unwrap())
    }

    fn json(signature: &str, values: &[DynSolValue]) -> String {
        json_of(&Event::parse(signature).unwrap(), values)
    }

    fn uint(value: u64, bits: usize) -> DynSolValue {
        DynSolValue::Uint(U256::from(value), bits)
    }

    #[test]
    fn integers_of_up_to_48_bits_are_numbers_and_wider_ones_are_decimal_strings() {
        let top = (1 << 48) - 1;
        let text = json(
            "event E(uint8 a, uint48 b, uint56 c, uint256 d)",
            &[uint(255, 8), uint(top, 48), uint(top, 56), DynSolValue::Uint(U256::MAX, 256)],
        );
        let max = U256::MAX;
        assert_eq!(text, format!(r#"{{"a":255,"b":281474976710655,"c":"281474976710655","d":"{max}"}}"#));
    }

    #[test]
    fn negative_integers_keep_their_sign() {
        let low = I256::try_from(-(1_i64 << 47)).unwrap();
        let text = json(
            "event E(int8 indexed a, int48 b, int56 c, int256 d)",
            &[
                DynSolValue::Int(I256::MINUS_ONE, 8),
                DynSolValue::Int(low, 48),
                DynSolValue::Int(low, 56),
                DynSolValue::Int(I256::MIN, 256),
            ],
        );
        let min = I256::MIN;
        assert_eq!(text, format!(r#"{{"a":-1,"b":-140737488355328,"c":"-140737488355328","d":"{min}"}}"#));
    }

    #[test]
    fn simple_values_have_their_own_forms() {
        let usdc = address!("a0b86991c6218b36c1d19d4a2e9eb0ce3606eb48");
        let text = json(
            "event E(bool yes, address indexed who, bytes raw, bytes4 four, string name)",
            &[
                DynSolValue::Bool(true),
                DynSolValue::Address(usdc),
                DynSolValue::Bytes(vec![0xAB, 0]),
                DynSolValue::FixedBytes(B256::right_padding_from(&[0xDE, 0xAD, 0xBE, 0xEF]), 4),
                DynSolValue::String("a \"quoted\" ü\n".to_owned()),
            ],
        );
        let expected = concat!(
            r#"{"yes":true,"who":"0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48","raw":"0xab00","#,
            r#""four":"0xdeadbeef","name":"a \"quoted\" \u00fc\n"}"#,
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn indexed_arguments_of_dynamic_type_are_their_hash() {
        let text = json("event E(string indexed name, uint8 n)", &[DynSolValue::String("x".to_owned()), uint(1, 8)]);
        assert_eq!(text, format!(r#"{{"name":"{}","n":1}}"#, keccak256("x")));
    }

    #[test]
    fn members_stand_in_the_order_of_the_abi_whichever_are_indexed() {
        let text = json("event E(uint8 a, uint8 indexed b, uint8 c)", &[uint(1, 8), uint(2, 8), uint(3, 8)]);
        assert_eq!(text, r#"{"a":1,"b":2,"c":3}"#);
    }

    #[test]
    fn tuples_are_objects_and_arrays_are_arrays_at_any_depth() {
        let order = |id, tags: &[u64]| {
            let tags = DynSolValue::Array(tags.iter().map(|tag| uint(*tag, 256)).collect());
            DynSolValue::Tuple(vec![uint(id, 8), DynSolValue::Tuple(vec![tags, DynSolValue::Bool(false)])])
        };
        let abi = serde_json::json!({ "type": "event", "name": "E", "anonymous": false, "inputs": [
            { "name": "orders", "type": "tuple[]", "indexed": false, "components": [
                { "name": "id", "type": "uint8" },
                { "name": "more", "type": "tuple", "components": [
                    { "name": "tags", "type": "uint256[]" },
                    { "name": "done", "type": "bool" },
                ] },
            ] },
            { "name": "pairs", "type": "uint8[2][]", "indexed": false },
            { "name": "none", "type": "uint8[]", "indexed": false },
        ] });
        let event: Event = serde_json::from_str(&abi.to_string()).unwrap();
        let text = json_of(
            &event,
            &[
                DynSolValue::Array(vec![order(1, &[7, 8]), order(2, &[])]),
                DynSolValue::Array(vec![DynSolValue::FixedArray(vec![uint(3, 8), uint(4, 8)])]),
                DynSolValue::Array(Vec::new()),
            ],
        );
        let expected = concat!(
            r#"{"orders":[{"id":1,"more":{"tags":["7","8"],"done":false}},{"id":2,"more":{"tags":[],"done":false}}],"#,
            r#""pairs":[[3,4]],"none":[]}"#,
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn arguments_without_a_name_are_numbered_by_their_place() {
        let text = json(
            "event E(uint8, uint8 named, (uint8, bool))",
            &[uint(1, 8), uint(2, 8), DynSolValue::Tuple(vec![uint(3, 8), DynSolValue::Bool(true)])],
        );
        assert_eq!(text, r#"{"arg0":1,"named":2,"arg2":{"arg0":3,"arg1":true}}"#);
    }

    #[test]
    fn a_name_that_is_taken_gives_way_so_that_no_member_hides_another() {
        let input = |name: &str| EventParam { ty: "uint8".into(), name: name.into(), ..EventParam::default() };
        let names = ["x", "x", "arg3", ""];
        let event =
            Event { name: "E".to_owned(), inputs: names.iter().map(|name| input(name)).collect(), anonymous: false };
        let text = json_of(&event, &[uint(0, 8), uint(1, 8), uint(2, 8), uint(3, 8)]);
        assert_eq!(text, r#"{"x":0,"arg1":1,"arg3":2,"arg3_":3}"#);
    }

    proptest::proptest! {
        #[test]
        fn any_text_and_bytes_give_ascii_json_that_holds_them(
            name in proptest::prelude::any::<String>(),
            raw in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..100),
        ) {
            let values = [DynSolValue::String(name.clone()), DynSolValue::Bytes(raw.clone())];
            let text = json("event E(string name, bytes raw)", &values);
            proptest::prop_assert!(text.is_ascii());
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            proptest::prop_assert_eq!(&read["name"], &serde_json::json!(name));
            proptest::prop_assert_eq!(&read["raw"], &serde_json::json!(hex::encode_prefixed(&raw)));
        }
    }

    #[test]
    fn a_function_is_its_24_bytes() {
        let ty: DynSolType = "function".parse().unwrap();
        let value = ty.abi_decode(&DynSolValue::Function([0x11; 24].into()).abi_encode()).unwrap();
        assert_eq!(json("event E(function f)", &[value]), format!(r#"{{"f":"0x{}"}}"#, "11".repeat(24)));
    }
}
