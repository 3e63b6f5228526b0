//! A record as a file: JSON whose first two fields are the version of its format and a digest of all that follows,
//!
//! ```json
//! {"format": 2, "sha256": "9f86d081...", "run": { ... }, ... }
//! ```
//!
//! The digest is that of the text without the field `sha256` and without blanks between what JSON is made of: a record may be laid out
//! anew, and nothing of it edited. Records of before (version 1) have neither field.
//!
//! Those of a study stand in one file, [`LINES`], a record in each line.

use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files;
use crate::integrity::{FORMAT, Fault, Origin, known};
use crate::losses;
use crate::numbers::hexadecimal;
use crate::record::Record;

/// What is looked for, for messages.
const EXPECTED: &str = "the record of a run";

/// What the name of a file of several records ends in.
pub(crate) const LINES: &str = "jsonl";

/// How a file that should be a record is.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// In the present format, and with the digest of its content.
    Whole,
    /// A record of before there were versions: it reads, and nothing shows whether it was edited.
    Old,
    /// No record, or not as it was written; the message of the error says what to do.
    Damaged(String),
}

impl Record {
    /// The record as it stands in a file, in one line.
    ///
    /// # Errors
    /// As serde_json; no record is known that does not serialize.
    pub fn to_json(&self) -> serde_json::Result<String> {
        Ok(with_digest(&serde_json::to_string(self)?))
    }

    /// The same, indented.
    ///
    /// # Errors
    /// As [`Record::to_json`].
    pub fn to_pretty_json(&self) -> serde_json::Result<String> {
        Ok(with_digest(&serde_json::to_string_pretty(self)?))
    }

    /// Writes the record, as a whole.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = self.to_pretty_json().map_err(|error| damaged(error).at(path, EXPECTED))?;
        files::write_atomically(path, text.as_bytes())
    }

    /// The record in a file; `None` where there is no file. One of before there were versions reads as it always did.
    ///
    /// # Errors
    /// When the file is no record, was edited or damaged, or is of a later version.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let Some(bytes) = files::read(path)? else { return Ok(None) };
        let (record, _) = parsed(&bytes).map_err(|fault| fault.at(path, EXPECTED))?;
        Ok(Some(record))
    }

    /// The records in a file of several, a line each; `None` where there is no file.
    ///
    /// # Errors
    /// When a line is no record, was edited or damaged, has no digest, or is of a later version; the message names it.
    pub fn read_lines(path: &Path) -> Result<Option<Vec<Self>>> {
        let Some(bytes) = files::read(path)? else { return Ok(None) };
        let of_line = |(index, line): (usize, &[u8])| match parsed(line) {
            Ok((record, true)) => Ok(record),
            Ok((_, false)) => Err(damaged(format!("no digest in line {}", index + 1))),
            Err(Fault::Damaged(found)) => Err(damaged(format!("in line {}: {found}", index + 1))),
            Err(fault) => Err(fault),
        };
        let lines = bytes.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
        let records = lines.map(of_line).collect::<std::result::Result<_, _>>();
        records.map(Some).map_err(|fault| fault.at(path, EXPECTED))
    }
}

/// How the record in a file is, or all those of a study; in a run's folder also whether the losses beside it, where it does not hold all of them, are its own and whole.
///
/// # Errors
/// When the file cannot be read.
pub fn check(path: &Path) -> Result<Condition> {
    if has_lines(path) {
        required(path)?;
        return Ok(
            Record::read_lines(path).map_or_else(|error| Condition::Damaged(error.to_string()), |_| Condition::Whole)
        );
    }
    let with_losses = |(record, has_digest): (Record, bool)| {
        if let Some(folder) = path.parent().filter(|_| path.ends_with("record.json")) {
            losses::read(folder, &Origin::new(&record.run, &record.inputs.unwrap_or_default()))?;
        }
        Ok(has_digest)
    };
    let bytes = required(path)?;
    Ok(match parsed(&bytes).map_err(|fault| fault.at(path, EXPECTED)).and_then(with_losses) {
        Ok(true) => Condition::Whole,
        Ok(false) => Condition::Old,
        Err(error) => Condition::Damaged(error.to_string()),
    })
}

/// Gives a record of before the present format, its text as it is. Returns whether it was one of before; those of a study never are.
///
/// # Errors
/// When the file is no record, was edited or damaged, or cannot be written.
pub fn migrate(path: &Path) -> Result<bool> {
    if has_lines(path) {
        return Record::read_lines(path).map(|_| false);
    }
    let bytes = required(path)?;
    let fault = |fault: Fault| fault.at(path, EXPECTED);
    let (_, is_sealed) = parsed(&bytes).map_err(fault)?;
    if is_sealed {
        return Ok(false);
    }
    let text = std::str::from_utf8(&bytes).map_err(|error| fault(damaged(error)))?;
    files::write_atomically(path, with_digest(text).as_bytes())?;
    Ok(true)
}

/// Whether a file is one of several records.
fn has_lines(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == LINES)
}

fn required(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| Error::File { path: path.into(), source })
}

fn damaged(found: impl ToString) -> Fault {
    Fault::Damaged(found.to_string())
}

/// A record, and whether its digest shows that it is as it was written.
fn parsed(bytes: &[u8]) -> std::result::Result<(Record, bool), Fault> {
    let text = std::str::from_utf8(bytes).map_err(damaged)?;
    let has_digest = check_digest(text)?;
    Ok((serde_json::from_str(text).map_err(damaged)?, has_digest))
}

/// The text of an object with two fields more, in its layout: the version and the digest.
fn with_digest(object: &str) -> String {
    let fields = object.trim_start().trim_start_matches('{');
    let (line, blank) = if fields.starts_with(['\n', '\r']) { ("\n  ", " ") } else { ("", "") };
    let digest = digest(FORMAT, &without_blanks(fields));
    format!("{{{line}\"format\":{blank}{FORMAT},{line}\"sha256\":{blank}\"{digest}\",{fields}")
}

/// Whether a text says its digest and has it; not where it says neither version nor digest.
fn check_digest(text: &str) -> std::result::Result<bool, Fault> {
    let compact = without_blanks(text);
    let Some(after) = compact.strip_prefix("{\"format\":") else {
        return match says_digest(text) {
            true => Err(damaged("a version and a digest in other places than the first")),
            false => Ok(false),
        };
    };
    let (version, after) = after.split_once(',').unwrap_or((after, ""));
    let version = version.parse().map_err(|_| damaged(format!("the version {version} of a format")))?;
    known(version)?;
    let said = after.strip_prefix("\"sha256\":\"").and_then(|after| after.split_once("\","));
    let (said, fields) = said.ok_or_else(|| damaged("no digest after the version"))?;
    if said != digest(version, fields) {
        return Err(Fault::changed());
    }
    Ok(true)
}

/// The digest of a version and the fields that follow, without blanks.
fn digest(version: u64, fields: &str) -> String {
    hexadecimal(Sha256::digest(format!("{{\"format\":{version},{fields}")))
}

/// Whether an object has a field that records of before have not.
fn says_digest(text: &str) -> bool {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Fields {
        format: Option<serde_json::Value>,
        sha256: Option<serde_json::Value>,
    }
    let Fields { format, sha256 } = serde_json::from_str(text).unwrap_or_default();
    format.is_some() || sha256.is_some()
}

/// JSON without the blanks between what it is made of.
fn without_blanks(json: &str) -> String {
    let (mut in_string, mut is_escaped) = (false, false);
    let keep = |character: &char| {
        let is_kept = in_string || !matches!(character, ' ' | '\t' | '\n' | '\r');
        in_string ^= *character == '"' && !is_escaped;
        is_escaped = in_string && *character == '\\' && !is_escaped;
        is_kept
    };
    json.chars().filter(keep).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use glue::Task;
    use peft::Method;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;
    use crate::record::tests::{evaluation, number, step_loss, text};
    use crate::record::{Environment, Stop};
    use crate::submission::tests::record;

    fn small() -> Record {
        let record = record(Task::Rte, Method::bitfit(), 1, 0.7);
        Record { environment: Environment { finished_at: 0, ..record.environment }, ..record }
    }

    fn read(text: &str) -> std::result::Result<(Record, bool), Fault> {
        parsed(text.as_bytes())
    }

    fn records() -> impl Strategy<Value = Record> {
        let stops = [Stop::Finished, Stop::EarlyStopping, Stop::Diverged, Stop::TimeBudget, Stop::StopFile];
        let logged = (vec(step_loss(), 0..4), vec(evaluation(), 0..3), option::of(evaluation()));
        let counts = (any::<usize>(), any::<u64>(), any::<u64>());
        (
            logged,
            counts,
            number(),
            (text(), text(), text()),
            option::of(text()),
            proptest::sample::select(stops.to_vec()),
        )
            .prop_map(
                |(
                    (losses, evaluations, best),
                    (tokens, peak_memory, seed),
                    train_seconds,
                    (model, origin, version),
                    gpu,
                    stop,
                )| {
                    let mut record = small();
                    (record.run.model, record.run.seed, record.data.origin) = (model, seed, origin);
                    let environment = Environment { version, gpu, ..record.environment };
                    Record {
                        losses,
                        evaluations,
                        best,
                        stop,
                        train_seconds,
                        tokens,
                        peak_memory,
                        environment,
                        ..record
                    }
                },
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_record_reads_back_from_its_file_whatever_numbers_and_texts_it_holds(record in records()) {
            for text in [record.to_json().unwrap(), record.to_pretty_json().unwrap()] {
                let (read, has_digest) = read(&text).unwrap();
                // Written out, numbers are equal where their bits are, and what is not a number equals itself.
                prop_assert_eq!(format!("{read:?}"), format!("{record:?}"));
                prop_assert!(has_digest);
            }
        }

        #[test]
        fn blanks_are_left_out_between_what_json_is_made_of_and_nowhere_else(record in records()) {
            let [compact, pretty] = [serde_json::to_string(&record).unwrap(), serde_json::to_string_pretty(&record).unwrap()];
            prop_assert_eq!(without_blanks(&pretty), without_blanks(&compact));
            prop_assert_eq!(without_blanks(&compact), compact);
        }
    }

    #[test]
    fn a_record_with_any_one_bit_flipped_is_refused() {
        for text in [small().to_json().unwrap(), small().to_pretty_json().unwrap() + "\n"] {
            assert_eq!(read(&text).unwrap(), (small(), true));
            for bit in 0..8 * text.len() {
                let mut bytes = text.clone().into_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(parsed(&bytes).is_err(), "bit {bit}: {}", String::from_utf8_lossy(&bytes));
            }
        }
    }

    #[test]
    fn the_digest_is_the_sha256_of_the_text_without_it() {
        let text = small().to_json().unwrap();
        let without = format!("{{\"format\":2,{}", &serde_json::to_string(&small()).unwrap()[1..]);
        assert!(text.contains(&format!("\"sha256\":\"{}\"", hexadecimal(Sha256::digest(without)))), "{text}");
    }

    #[test]
    fn a_record_of_before_reads_as_it_did_and_its_losses_that_are_null_are_not_numbers() {
        let old = serde_json::to_string(&small()).unwrap();
        assert_eq!(read(&old).unwrap(), (small(), false));
        let diverged = old.replace("\"loss\":0.5", "\"loss\":null");
        assert_ne!(diverged, old);
        let (record, _) = read(&diverged).unwrap();
        assert!(record.best.unwrap().loss.is_nan() && record.evaluations[0].loss.is_nan());
    }

    #[test]
    fn a_record_that_says_a_version_or_a_digest_elsewhere_than_first_is_refused() {
        let old = serde_json::to_string(&small()).unwrap();
        for field in ["\"format\":2", "\"sha256\":\"0\""] {
            let moved = format!("{},{field}}}", &old[..old.len() - 1]);
            assert!(matches!(read(&moved), Err(Fault::Damaged(_))), "{moved}");
        }
    }

    #[test]
    fn an_old_record_is_migrated_with_its_text_as_it_is_and_only_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        for old in [serde_json::to_string(&small()).unwrap() + "\n", serde_json::to_string_pretty(&small()).unwrap()] {
            std::fs::write(&path, &old).unwrap();
            assert_eq!(check(&path).unwrap(), Condition::Old);
            assert!(migrate(&path).unwrap());
            let new = std::fs::read_to_string(&path).unwrap();
            assert!(new.ends_with(&old[1..]) && new.lines().count() >= old.lines().count());
            assert_eq!((check(&path).unwrap(), Record::read(&path).unwrap()), (Condition::Whole, Some(small())));
            assert!(!migrate(&path).unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), new);
        }
        std::fs::write(&path, "{}").unwrap();
        assert!(migrate(&path).unwrap_err().to_string().contains("record.json"));
        assert!(matches!(check(&path).unwrap(), Condition::Damaged(_)));
    }
}
