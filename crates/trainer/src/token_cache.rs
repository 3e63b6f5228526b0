//! Tokenized splits on disk, known by the content of data, model and tokenizer, so that a large one is cut into tokens once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use glue::Split;
use peft::Sequence;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};

use crate::files;
use crate::inputs::Inputs;
use crate::numbers::hexadecimal;

/// Counts up where a tokenizer gives other tokens than before for the same files.
const FORMAT: u32 = 1;

/// Fewer sequences are cut into tokens about as fast as they are read.
const FEW: usize = 10_000;

/// The folder of kept splits, and what those of one run are known by. All of it may be removed at any time.
pub(crate) struct TokenCache {
    folder: PathBuf,
    name: String,
}

impl TokenCache {
    /// The splits of these inputs at this length; none where a file of them is not known by content.
    pub(crate) fn new(runs: &Path, inputs: &Inputs, max_length: usize, train_extra: bool) -> Option<Self> {
        let Inputs { data: Some(data), model: Some(model), tokenizer: Some(tokenizer), .. } = inputs else {
            return None;
        };
        let name = Sha256::digest(format!("{FORMAT} {data} {model} {tokenizer} {max_length} {train_extra}"));
        Some(Self { folder: runs.join("tokens"), name: hexadecimal(&name[..16]) })
    }

    fn path(&self, split: Split) -> PathBuf {
        self.folder.join(format!("{}-{split}.safetensors", self.name))
    }

    /// So many kept sequences of a split; none where they are not kept, or the file is not as it was written: they are then made anew.
    pub(crate) fn read(&self, split: Split, count: usize) -> Option<Vec<Sequence>> {
        let bytes = std::fs::read(self.path(split)).ok()?;
        let (_, header) = SafeTensors::read_metadata(&bytes).ok()?;
        let file = SafeTensors::deserialize(&bytes).ok()?;
        let tensor = |name, dtype| file.tensor(name).ok().filter(|view| view.dtype() == dtype).map(|view| view.data());
        let parts =
            [tensor("lengths", Dtype::U32)?, tensor("input_ids", Dtype::U32)?, tensor("token_type_ids", Dtype::U8)?];
        if header.metadata().as_ref()?.get("sha256")? != &digest(parts) {
            return None;
        }
        let [lengths, mut ids, mut types] = parts;
        let sequences = numbers(lengths).map(|length| {
            let (these_ids, these_types);
            (these_ids, ids) = ids.split_at_checked(length as usize * 4)?;
            (these_types, types) = types.split_at_checked(length as usize)?;
            let token_type_ids = these_types.iter().map(|&kind| kind.into()).collect();
            Some(Sequence { input_ids: numbers(these_ids).collect(), token_type_ids })
        });
        sequences.collect::<Option<Vec<_>>>().filter(|sequences| sequences.len() == count)
    }

    /// Keeps the sequences of a split, unless they are few. Where that fails, the next run makes them again, which costs time alone.
    pub(crate) fn write(&self, split: Split, sequences: &[Sequence]) {
        if sequences.len() < FEW || std::fs::create_dir_all(&self.folder).is_err() {
            return;
        }
        let lengths = bytes(sequences.iter().map(|sequence| sequence.len() as u32));
        let ids = bytes(sequences.iter().flat_map(|sequence| sequence.input_ids.iter().copied()));
        let types = sequences.iter().flat_map(|sequence| &sequence.token_type_ids).map(|&kind| u8::try_from(kind));
        let Ok(types) = types.collect::<Result<Vec<u8>, _>>() else { return };
        let sha256 = digest([&lengths, &ids, &types]);
        let views = [
            ("lengths", TensorView::new(Dtype::U32, vec![sequences.len()], &lengths)),
            ("input_ids", TensorView::new(Dtype::U32, vec![types.len()], &ids)),
            ("token_type_ids", TensorView::new(Dtype::U8, vec![types.len()], &types)),
        ];
        let views: Result<Vec<_>, _> = views.into_iter().map(|(name, view)| Ok((name, view?))).collect();
        let file = views
            .and_then(|views| safetensors::serialize(views, Some(HashMap::from([("sha256".to_string(), sha256)]))));
        if let Ok(file) = file {
            let _ = files::write_atomically(&self.path(split), &file);
        }
    }
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.as_chunks().0.iter().map(|&number| u32::from_le_bytes(number))
}

fn bytes(numbers: impl Iterator<Item = u32>) -> Vec<u8> {
    numbers.flat_map(u32::to_le_bytes).collect()
}

fn digest(parts: [&[u8]; 3]) -> String {
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| digest.update(part));
    hexadecimal(digest.finalize())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    fn inputs(data: &str) -> Inputs {
        let known = |text: &str| Some(text.to_string());
        Inputs { data: known(data), model: known("m"), tokenizer: known("t"), start: None }
    }

    fn sequences() -> Vec<Sequence> {
        let sequence = |n: u32| Sequence {
            input_ids: (0..n % 7).collect(),
            token_type_ids: (0..n % 7).map(|id| id % 2).collect(),
        };
        (0..FEW as u32).map(sequence).collect()
    }

    #[test]
    fn what_is_kept_reads_back_and_only_for_the_same_content_length_and_count() {
        let folder = tempfile::tempdir().unwrap();
        let cache = |data, length| TokenCache::new(folder.path(), &inputs(data), length, false).unwrap();
        cache("a", 128).write(Split::Train, &sequences());
        assert_eq!(cache("a", 128).read(Split::Train, FEW), Some(sequences()));
        assert_eq!(cache("a", 128).read(Split::Train, FEW + 1), None);
        assert_eq!(cache("a", 128).read(Split::Validation, FEW), None);
        assert_eq!(cache("a", 64).read(Split::Train, FEW), None);
        assert_eq!(cache("b", 128).read(Split::Train, FEW), None);
        assert!(TokenCache::new(folder.path(), &Inputs { data: None, ..inputs("a") }, 128, false).is_none());
    }

    #[test]
    fn a_kept_file_that_was_changed_or_cut_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = TokenCache::new(folder.path(), &inputs("a"), 128, false).unwrap();
        cache.write(Split::Train, &sequences());
        let whole = std::fs::read(cache.path(Split::Train)).unwrap();
        for at in [9, whole.len() / 2, whole.len() - 1] {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            std::fs::write(cache.path(Split::Train), &changed).unwrap();
            assert_eq!(cache.read(Split::Train, FEW), None, "{at}");
            std::fs::write(cache.path(Split::Train), &whole[..at]).unwrap();
            assert_eq!(cache.read(Split::Train, FEW), None, "{at}");
        }
        std::fs::write(cache.path(Split::Train), whole).unwrap();
        assert_eq!(cache.read(Split::Train, FEW), Some(sequences()));
    }
}
