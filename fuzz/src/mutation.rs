//! Changes of files: of bytes, and of what JSON, safetensors, npz and tables hold.

use std::io::{Cursor, Read, Write};

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde_json::{Map, Value};

use crate::input::Input;
use crate::values;

/// Changes one to four things in an input. Parts of another one may be put in.
pub fn mutate(random: &mut impl Rng, input: &mut Input, other: &Input) {
    let names: Vec<String> = input.files.keys().cloned().collect();
    for _ in 0..random.random_range(1..5) {
        let Some(name) = names.choose(random) else { return };
        let Some(bytes) = input.files.get_mut(name) else { continue };
        let end = name.rsplit('.').next().unwrap_or_default();
        let others = other
            .files
            .get(name)
            .or_else(|| other.files.iter().find(|(other, _)| other.ends_with(end)).map(|(_, bytes)| bytes));
        mutate_file(random, end, bytes, others.map_or(&[], Vec::as_slice));
    }
}

fn mutate_file(random: &mut impl Rng, end: &str, bytes: &mut Vec<u8>, other: &[u8]) {
    let is_structured = random.random_bool(0.85);
    let changed = match end {
        "json" if is_structured => json(random, bytes, other),
        "safetensors" if is_structured => safetensors(random, bytes, other),
        "npz" if is_structured => npz(random, bytes),
        "tsv" | "toml" | "txt" if is_structured => lines(random, bytes, other),
        _ => None,
    };
    match changed {
        Some(changed) => *bytes = changed,
        None => flip(random, bytes, other),
    }
}

/// Bits, bytes and pieces.
fn flip(random: &mut impl Rng, bytes: &mut Vec<u8>, other: &[u8]) {
    let length = bytes.len();
    let place = random.random_range(0..=length);
    let span = |random: &mut dyn FnMut(usize) -> usize, length: usize| {
        let from = random(length);
        from..(from + 1 + random(64)).min(length)
    };
    let mut draw = |below: usize| if below == 0 { 0 } else { random.random_range(0..below) };
    match draw(9) {
        0 | 1 if length > 0 => bytes[place.min(length - 1)] ^= 1 << draw(8),
        2 if length > 0 => bytes[place.min(length - 1)] = draw(256) as u8,
        3 => bytes.truncate(place),
        4 if length > 0 => _ = bytes.drain(span(&mut draw, length)),
        5 if length > 0 => {
            let piece = bytes[span(&mut draw, length)].to_vec();
            bytes.splice(place..place, piece);
        }
        6 if !other.is_empty() => {
            let piece = other[span(&mut draw, other.len())].to_vec();
            bytes.splice(place..(place + piece.len()).min(length), piece);
        }
        7 if length > 0 => {
            let span = span(&mut draw, length);
            bytes[span].fill([0, 255, b'9', b'\n'][draw(4)]);
        }
        _ => {
            let piece = [0, 255, b'"', b'}', b'\t', 0xef, b'-'][draw(7)];
            bytes.insert(place, piece);
        }
    }
}

fn json(random: &mut impl Rng, bytes: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    let other = serde_json::from_slice(other).unwrap_or(Value::Null);
    change_value(random, &mut value, &other);
    serde_json::to_vec(&value).ok()
}

/// Changes one value of a document: a number, a text, a key, or all of it.
fn change_value(random: &mut impl Rng, root: &mut Value, other: &Value) {
    let place = descend(random, root);
    let Some(node) = root.pointer_mut(&place) else { return };
    let foreign = || -> Option<Value> { Some(other.pointer(&place)?.clone()) };
    match random.random_range(0..12) {
        0 => *node = values::value(random),
        1 => {
            if let Some(value) = foreign() {
                *node = value;
            }
        }
        _ => match node {
            Value::Number(number) => *node = values::number(random, number),
            Value::String(text) => *text = values::text(random, text),
            Value::Bool(is) => *is = !*is,
            Value::Null => *node = values::value(random),
            Value::Array(members) => change_list(random, members),
            Value::Object(members) => change_object(random, members, other),
        },
    }
}

/// A path to a value of a document, which stands the less deep the more there is on the way.
fn descend(random: &mut impl Rng, root: &Value) -> String {
    let (mut node, mut path) = (root, String::new());
    loop {
        let next = match node {
            _ if random.random_bool(0.15) => None,
            Value::Array(members) if !members.is_empty() => {
                let index = random.random_range(0..members.len());
                Some((index.to_string(), &members[index]))
            }
            Value::Object(members) if !members.is_empty() => {
                let index = random.random_range(0..members.len());
                members.iter().nth(index).map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value))
            }
            _ => None,
        };
        let Some((key, value)) = next else { return path };
        path = format!("{path}/{key}");
        node = value;
    }
}

fn change_list(random: &mut impl Rng, members: &mut Vec<Value>) {
    let place = random.random_range(0..=members.len());
    match random.random_range(0..5) {
        0 if place < members.len() => _ = members.remove(place),
        1 if !members.is_empty() => {
            let member = members[place.min(members.len() - 1)].clone();
            let times = if random.random_bool(0.1) { 1000 } else { 1 };
            members.splice(place..place, std::iter::repeat_n(member, times));
        }
        2 => members.clear(),
        3 => members.reverse(),
        _ => members.insert(place, values::value(random)),
    }
}

fn change_object(random: &mut impl Rng, members: &mut Map<String, Value>, other: &Value) {
    let keys: Vec<String> = members.keys().cloned().collect();
    let key = keys.choose(random).cloned();
    match (random.random_range(0..6), key) {
        (0, Some(key)) => _ = members.remove(&key),
        (1, Some(key)) => {
            if let Some(value) = members.remove(&key) {
                members.insert(values::text(random, &key), value);
            }
        }
        (2, Some(key)) => {
            if let (Some(value), Some(from)) = (keys.choose(random).and_then(|from| members.get(from)), Some(key)) {
                let value = value.clone();
                members.insert(from, value);
            }
        }
        (3 | 4, _) => {
            let others: Vec<(&String, &Value)> = other.as_object().into_iter().flatten().collect();
            if let Some((key, value)) = others.choose(random) {
                members.insert((*key).clone(), (*value).clone());
            }
        }
        (_, key) => {
            members.insert(key.unwrap_or_default(), values::value(random));
        }
    }
}

/// The header of a safetensors file, or its numbers.
fn safetensors(random: &mut impl Rng, bytes: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    let parts = |bytes: &[u8]| -> Option<(Vec<u8>, Vec<u8>)> {
        let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        let end = usize::try_from(length).ok()?.checked_add(8)?;
        Some((bytes.get(8..end)?.to_vec(), bytes.get(end..)?.to_vec()))
    };
    let (header, mut numbers) = parts(bytes)?;
    let header = match random.random_range(0..4) {
        0 => {
            let (_, others) = parts(other).unwrap_or_default();
            for _ in 0..random.random_range(1..4) {
                flip(random, &mut numbers, &others);
            }
            header
        }
        1 => {
            let special = [f32::NAN, f32::INFINITY, 1e38, -1e38, 0.0, 1e-40, -0.0];
            for _ in 0..random.random_range(1..4) {
                let place = random.random_range(0..=numbers.len() / 4) * 4;
                let number = *special.choose(random)?;
                if let Some(bytes) = numbers.get_mut(place..place + 4) {
                    bytes.copy_from_slice(&number.to_le_bytes());
                }
            }
            header
        }
        _ => json(random, &header, &parts(other).unwrap_or_default().0)?,
    };
    let length = match random.random_range(0..40) {
        0 => u64::MAX,
        1 => header.len() as u64 + 1,
        _ => header.len() as u64,
    };
    Some([&length.to_le_bytes()[..], &header, &numbers].concat())
}

/// An array of an npz file: its header, its numbers, its name.
fn npz(random: &mut impl Rng, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut archive = zip::ZipArchive::new(Cursor::new(bytes)).ok()?;
    let mut arrays: Vec<(String, Vec<u8>)> = Vec::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).ok()?;
        let mut content = Vec::new();
        entry.by_ref().take(1 << 20).read_to_end(&mut content).ok()?;
        arrays.push((entry.name().ok()?.into_owned(), content));
    }
    let place = random.random_range(0..arrays.len().max(1));
    let another = arrays.choose(random)?.1.clone();
    let (name, content) = arrays.get_mut(place)?;
    match random.random_range(0..8) {
        0..3 => *content = npy_header(random, content)?,
        3..6 => {
            let begin = 10 + usize::from(u16::from_le_bytes(content.get(8..10)?.try_into().ok()?));
            let mut numbers = content.split_off(begin.min(content.len()));
            match (random.random_bool(0.5), numbers.len() / 8) {
                (true, words @ 1..) => {
                    let place = random.random_range(0..words) * 8;
                    let special = [1.0, 0.0, 0.7, -1.0, 4_294_967_301.0, f64::NAN, 1e300, 3.0];
                    let whole = [0_u64, 1, 2, 7, u64::from(u32::MAX), (1 << 32) + 5, u64::MAX];
                    let bytes = match random.random_bool(0.5) {
                        true => special.choose(random)?.to_le_bytes(),
                        false => whole.choose(random)?.to_le_bytes(),
                    };
                    numbers[place..place + 8].copy_from_slice(&bytes);
                }
                _ => flip(random, &mut numbers, &another),
            }
            content.extend(numbers);
        }
        6 => *content = another,
        _ => *name = values::text(random, name),
    }
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let method =
        if random.random_bool(0.5) { zip::CompressionMethod::Stored } else { zip::CompressionMethod::Deflated };
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    for (name, content) in arrays {
        writer.start_file(name, options).ok()?;
        writer.write_all(&content).ok()?;
    }
    Some(writer.finish().ok()?.into_inner())
}

/// An npy file with another header, of which the length is right.
fn npy_header(random: &mut impl Rng, content: &[u8]) -> Option<Vec<u8>> {
    let end = 10 + usize::from(u16::from_le_bytes(content.get(8..10)?.try_into().ok()?));
    let header = String::from_utf8_lossy(content.get(10..end)?).into_owned();
    let shape = match random.random_range(0..4) {
        0 => format!("({},)", values::digits(random)),
        1 => format!("({}, {})", values::digits(random), values::digits(random)),
        2 => "()".into(),
        _ => header.split_once("'shape': ").and_then(|(_, rest)| Some(format!("{})", rest.split_once(')')?.0)))?,
    };
    let kinds = ["<i8", "<f8", "<u4", "<f4", "|u1", "|b1", "|O", ">i8", "<i2", "<U3"];
    let kind = kinds.choose(random)?;
    let order = if random.random_bool(0.1) { "True" } else { "False" };
    let header = match random.random_bool(0.2) {
        true => header.replace(['0', '1', '2'], &values::digits(random)),
        false => format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}"),
    };
    let length = u16::try_from(header.len()).ok()?.to_le_bytes();
    Some([&content[..8], &length, header.as_bytes(), &content[end..]].concat())
}

/// Lines and fields of a table or of a file of settings.
fn lines(random: &mut impl Rng, bytes: &[u8], other: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines: Vec<String> = text.split('\n').map(String::from).collect();
    let others: Vec<String> = String::from_utf8_lossy(other).split('\n').map(String::from).collect();
    let place = random.random_range(0..lines.len());
    match random.random_range(0..9) {
        0 => _ = lines.remove(place),
        1 => {
            let line = lines[place].clone();
            lines.insert(place, line);
        }
        2 => lines.insert(place, others.choose(random)?.clone()),
        3 => {
            let second = random.random_range(0..lines.len());
            lines.swap(place, second);
        }
        4 => lines[place] += "\r",
        5 => lines[place] = String::new(),
        _ => lines[place] = change_field(random, &lines[place]),
    }
    Some(lines.join("\n").into_bytes())
}

fn change_field(random: &mut impl Rng, line: &str) -> String {
    let separator = if line.contains('\t') { "\t" } else { "= " };
    let mut fields: Vec<String> = line.split(separator).map(String::from).collect();
    let place = random.random_range(0..fields.len());
    match random.random_range(0..6) {
        0 => _ = fields.remove(place),
        1 => fields.insert(place, values::digits(random)),
        2 | 3 => fields[place] = values::digits(random),
        4 => fields[place] = values::text(random, &fields[place]),
        _ => {
            let field = fields[place].clone();
            fields.insert(place, field);
        }
    }
    fields.join(separator)
}
