//! What a run is made from, by content: its data, its model and its tokenizer.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use glue::Glue;
use peft::ModelFiles;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::files;
use crate::numbers::hexadecimal;
use crate::run::{Run, StartsFrom};

/// The SHA-256 digests of what a run is made from, in hexadecimal digits. One is absent where its files are not on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Inputs {
    /// Of the training and validation files; the synthetic task has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Of the configuration and the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Of the tokenizer's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// Of the run that it starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Box<Inputs>>,
}

impl Inputs {
    /// What is another than before. Of what is known of one side alone nothing is said.
    pub(crate) fn changed_since(&self, before: &Self) -> Vec<&'static str> {
        let differ = |now: &Option<String>, before: &Option<String>| now.is_some() && before.is_some() && now != before;
        let mut changed = Vec::new();
        for (name, now, before) in [
            ("data", &self.data, &before.data),
            ("model", &self.model, &before.model),
            ("tokenizer", &self.tokenizer, &before.tokenizer),
        ] {
            if differ(now, before) {
                changed.push(name);
            }
        }
        if let (Some(now), Some(before)) = (&self.start, &before.start)
            && !now.changed_since(before).is_empty()
        {
            changed.push("start");
        }
        changed
    }

    /// A name for them, for a folder.
    pub(crate) fn short(&self) -> String {
        let parts = [&self.data, &self.model, &self.tokenizer].map(|part| part.as_deref().unwrap_or_default());
        let start = self.start.as_ref().map(|start| start.short()).unwrap_or_default();
        hexadecimal(Sha256::digest([&parts[..], &[&start]].concat().join(" ")))[..8].into()
    }
}

/// Digests of files, which are kept in a file: one that has the size and the time of before is not read again.
pub(crate) struct Digests {
    path: PathBuf,
    known: Option<BTreeMap<PathBuf, Known>>,
}

/// What is known of a file.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u64,
    sha256: String,
}

impl Digests {
    /// Digests that are kept in `path`.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, known: None }
    }

    /// The inputs of a run, as they are now.
    pub(crate) fn of_run(&mut self, glue: &Glue, run: &Run) -> Inputs {
        let files = ModelFiles::find(&run.model);
        let mut of = |files: &[PathBuf]| self.of_files(files);
        let inputs = Inputs {
            data: of(&glue.training_files(run.task, run.settings.train_extra)),
            model: files.as_ref().and_then(|files| of(&files.weights)),
            tokenizer: files.as_ref().and_then(|files| of(&files.tokenizer)),
            start: None,
        };
        let start = match &run.starts_from {
            Some(StartsFrom::Run(start)) => Some(Box::new(self.of_run(glue, start))),
            _ => None,
        };
        Inputs { start, ..inputs }
    }

    /// The digest of a model's configuration and weights, as they are now.
    pub(crate) fn of_model(&mut self, name: &str) -> Option<String> {
        self.of_files(&ModelFiles::find(name)?.weights)
    }

    /// One digest of files in their order; none where there is no file or one cannot be read, of which whoever needs it tells.
    fn of_files(&mut self, files: &[PathBuf]) -> Option<String> {
        let mut digest = Sha256::new();
        for file in files {
            digest.update(file.file_name()?.as_encoded_bytes());
            digest.update(self.of_file(file)?);
        }
        (!files.is_empty()).then(|| hexadecimal(digest.finalize()))
    }

    fn of_file(&mut self, path: &Path) -> Option<&str> {
        // Under one name, however it is spelled.
        let path = path.canonicalize().ok()?;
        let about = path.metadata().ok()?;
        let modified = about.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64;
        let is_same = |known: &Known| known.size == about.len() && known.modified == modified;
        let known = self.known.get_or_insert_with(|| read(&self.path));
        if !known.get(&path).is_some_and(is_same) {
            let now = Known { size: about.len(), modified, sha256: sha256(&path).ok()? };
            known.insert(path.clone(), now);
            // Where there are no runs yet nothing is written; without the file digests are computed again, which costs time and nothing else.
            if self.path.parent().is_some_and(Path::is_dir) {
                let _ = files::write_json(&self.path, known);
            }
        }
        known.get(&path).map(|known| known.sha256.as_str())
    }
}

/// What was known the last time; nothing where the file is broken, as it is made again.
fn read(path: &Path) -> BTreeMap<PathBuf, Known> {
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let (mut file, mut digest) = (std::fs::File::open(path)?, Sha256::new());
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hexadecimal(digest.finalize())),
            read => digest.update(&part[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    #[test]
    fn a_file_has_the_digest_of_its_content_and_is_read_again_only_where_it_may_have_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, kept) = (folder.path().join("train.tsv"), folder.path().join("digests.json"));
        std::fs::write(&file, "abc").unwrap();
        let mut digests = Digests::new(kept.clone());
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digests.of_file(&file), Some(abc));
        assert_eq!(digests.of_file(&folder.path().join("./").join("train.tsv")), Some(abc));

        let modified = file.metadata().unwrap().modified().unwrap();
        std::fs::write(&file, "abd").unwrap();
        assert_ne!(Digests::new(kept.clone()).of_file(&file), Some(abc));
        std::fs::write(&file, "abc").unwrap();
        assert_eq!(Digests::new(kept.clone()).of_file(&file), Some(abc));
        // What looks as before is not read.
        std::fs::write(&file, "abd").unwrap();
        std::fs::File::open(&file).unwrap().set_modified(modified).unwrap();
        let known = Known {
            size: 3,
            modified: modified.duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
            sha256: "kept".into(),
        };
        let json = serde_json::to_vec(&BTreeMap::from([(file.canonicalize().unwrap(), known)])).unwrap();
        std::fs::write(&kept, json).unwrap();
        assert_eq!(Digests::new(kept.clone()).of_file(&file), Some("kept"));
        std::fs::write(&kept, "broken").unwrap();
        assert!(Digests::new(kept).of_file(&file).is_some_and(|digest| digest.len() == 64));
    }

    #[test]
    fn what_is_known_of_one_side_alone_has_not_changed() {
        let of = |data: &str, model: &str| {
            let known = |text: &str| (!text.is_empty()).then(|| text.to_string());
            Inputs { data: known(data), model: known(model), ..Inputs::default() }
        };
        assert!(of("a", "b").changed_since(&of("a", "")).is_empty());
        assert!(of("", "").changed_since(&of("a", "b")).is_empty());
        assert_eq!(of("a", "b").changed_since(&of("x", "y")), ["data", "model"]);
        assert_ne!(of("a", "b").short(), of("a", "c").short());
        let started = |start: Inputs| Inputs { start: Some(Box::new(start)), ..of("a", "b") };
        assert_eq!(started(of("a", "b")).changed_since(&started(of("c", "b"))), ["start"]);
    }
}
