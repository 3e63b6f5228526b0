//! Tokenization of examples by a model's own `tokenizer.json`, as transformers uses it for that folder.

mod checks;
mod folder;
mod special_tokens;
mod vocabulary;

use std::path::PathBuf;

use glue::{Dataset, Example};
use peft::{Pretrained, Remark, Sequence};
use tokenizers::utils::parallelism::MaybeParallelIterator;
use tokenizers::{Encoding, PostProcessor, TruncationParams};

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::panics::caught;
use crate::record::Stop;
use checks::Growth;

/// How many examples are encoded before the time is looked at.
const AT_ONCE: usize = 2048;

/// A model's tokenizer, with its own truncation and without padding.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    path: PathBuf,
    /// Rows of the model's table of words: no id is as large.
    words: usize,
    growth: Growth,
    remarks: Vec<Remark>,
}

impl Tokenizer {
    /// The tokenizer of a model's folder. Sequences are cut to `max_length` tokens, the longer sentence of a pair first, on the side that
    /// the folder says; the padding that a `tokenizer.json` may ask for is switched off. One that adds no special tokens is completed as
    /// the architecture's own tokenizer adds them.
    ///
    /// # Errors
    /// When the file is missing or not a tokenizer, it lacks special tokens that the model needs, or `max_length` exceeds the model's
    /// positions.
    pub fn load(pretrained: &Pretrained, max_length: usize) -> Result<Self> {
        let broken = |reason| Error::Tokenizer { path: pretrained.tokenizer_path(), reason };
        caught(|| Self::read(pretrained, max_length)).map_err(broken)?
    }

    fn read(pretrained: &Pretrained, max_length: usize) -> Result<Self> {
        let path = pretrained.tokenizer_path();
        let positions = pretrained.max_length();
        if !(4..=positions).contains(&max_length) {
            let expected = format!("4 to {positions}, the positions of the model");
            return Err(Error::Setting { name: "max_length", found: max_length.to_string(), expected });
        }
        let failed = |error: tokenizers::Error| Error::Tokenizer { path: path.clone(), reason: error.to_string() };
        let folder = folder::TokenizerFolder::read(pretrained.folder())?;
        let architecture = pretrained.config.architecture;
        let (mut tokenizer, growth) = folder.tokenizer(architecture)?;
        let remark = special_tokens::complete(&mut tokenizer, &folder, architecture)?;
        // A vocabulary says nothing of them, and they are as ever.
        let remark = remark.filter(|_| !folder.is_vocabulary(architecture));
        let direction = folder.truncation_side(&tokenizer)?;
        tokenizer.with_padding(None);
        let added = |is_pair| tokenizer.get_post_processor().map_or(0, |added| added.added_tokens(is_pair));
        let added = added(false).max(added(true));
        if added > max_length {
            let reason = format!("it adds {added} special tokens to a sequence, which has at most {max_length} of all");
            return Err(Error::Tokenizer { path, reason });
        }
        let truncation = TruncationParams { max_length, direction, ..Default::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(failed)?;
        let (words, remarks) = (pretrained.config.vocab_size, remark.into_iter().collect());
        Ok(Self { tokenizer, path, words, growth, remarks })
    }

    /// What should be known of how it was read.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// One sequence for each example: `[CLS] first [SEP]`, or `[CLS] first [SEP] second [SEP]`.
    ///
    /// # Errors
    /// When the tokenizer fails, or gives a token that the model has no vector for.
    pub fn encode(&self, examples: &[Example]) -> Result<Vec<Sequence>> {
        let mut sequences = Vec::with_capacity(examples.len());
        examples.chunks(AT_ONCE).try_for_each(|part| self.encode_part(part, &mut sequences))?;
        self.check_ids(&sequences)?;
        Ok(sequences)
    }

    /// One sequence for each of these rows, within limits; a first part is always encoded.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and when a limit is reached before the last part.
    pub(crate) fn encode_rows(&self, dataset: &Dataset, rows: &[usize], limits: &Limits) -> Result<Vec<Sequence>> {
        let mut sequences = Vec::with_capacity(rows.len());
        for part in rows.chunks(AT_ONCE) {
            let (done, of) = (sequences.len(), rows.len());
            match limits.stop().filter(|_| done > 0) {
                Some(Stop::Interrupted) => {
                    let place = format!("{done} of {of} sentences were tokenized");
                    return Err(Error::Interrupted { place });
                }
                Some(_) => return Err(Error::OutOfTime { done, of }),
                None => {}
            }
            self.encode_part(&dataset.examples_of(part.iter().copied())?, &mut sequences)?;
        }
        self.check_ids(&sequences)?;
        Ok(sequences)
    }

    fn encode_part(&self, examples: &[Example], sequences: &mut Vec<Sequence>) -> Result<()> {
        let part: Vec<Sequence> =
            examples.into_maybe_par_iter().map(|example| self.encode_one(example)).collect::<Result<_>>()?;
        sequences.extend(part);
        Ok(())
    }

    /// An encoding holds many times what a sequence does: none outlives its example.
    fn encode_one(&self, example: &Example) -> Result<Sequence> {
        let failed = |reason| Error::Tokenizer { path: self.path.clone(), reason };
        for text in [Some(&example.first), example.second.as_ref()].into_iter().flatten() {
            self.growth.check(text).map_err(failed)?;
        }
        let encode = || {
            let first = self.cut(&example.first, 0)?;
            let second = example.second.as_ref().map(|second| self.cut(second, 1)).transpose()?;
            self.tokenizer.post_process(first, second, true)
        };
        let encoding = caught(encode).map_err(failed)?.map_err(|error| failed(error.to_string()))?;
        Ok(Sequence { input_ids: encoding.get_ids().to_vec(), token_type_ids: encoding.get_type_ids().to_vec() })
    }

    /// A sentence of that token type without special tokens, cut to the length of a whole sequence on the side that is cut later: what then is left of it is the
    /// same. What was cut off goes at once, since of a pair every piece of one sentence would be put beside every one of the other.
    fn cut(&self, text: &str, token_type: u32) -> tokenizers::Result<Encoding> {
        let mut encoding = self.tokenizer.encode_fast(text, false)?;
        encoding.take_overflowing();
        encoding.set_type_ids(vec![token_type; encoding.len()]);
        Ok(encoding)
    }

    /// The pieces an example is cut into, `[CLS]` and `[SEP]` among them.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn pieces(&self, example: &Example) -> Result<Vec<String>> {
        let sequence = self.encode(std::slice::from_ref(example))?.remove(0);
        Ok(sequence.input_ids.iter().map(|&id| self.tokenizer.id_to_token(id).unwrap_or_default()).collect())
    }

    /// Fails at the first id that the model's table of words has no row for, as of a token that was added to the tokenizer alone.
    fn check_ids(&self, sequences: &[Sequence]) -> Result<()> {
        let ids = sequences.iter().flat_map(|sequence| &sequence.input_ids);
        let Some(&id) = ids.into_iter().find(|&&id| id as usize >= self.words) else { return Ok(()) };
        let token = self.tokenizer.id_to_token(id).unwrap_or_default();
        Err(Error::TokenWithoutRow { path: self.path.clone(), token, id, rows: self.words })
    }
}
