//! The files of a tokenizer in a model's folder: `tokenizer.json`, and what `tokenizer_config.json` and `special_tokens_map.json` change
//! about it in transformers.

use std::path::{Path, PathBuf};

use peft::{Architecture, WrongContent};
use serde_json::{Map, Value};
use tokenizers::{AddedToken, NormalizerWrapper, PreTokenizerWrapper, Tokenizer, TruncationDirection};

use super::checks::{self, Growth};
use super::{special_tokens, vocabulary};
use crate::error::{Error, Result};
use crate::files;

/// What some folders have in the place of a `tokenizer.json`.
const VOCABULARY: &str = "vocab.txt";

/// A folder with a tokenizer.
pub(super) struct TokenizerFolder {
    folder: PathBuf,
    /// The fields of `tokenizer_config.json`.
    config: Map<String, Value>,
    /// Those of `special_tokens_map.json`.
    special: Map<String, Value>,
}

impl TokenizerFolder {
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let fields = |name: &str| -> Result<Map<String, Value>> {
            let path = folder.join(name);
            let Some(bytes) = files::read(&path)? else { return Ok(Map::new()) };
            check(&path, &bytes)?;
            serde_json::from_slice(&bytes).map_err(|error| Error::Tokenizer { path, reason: error.to_string() })
        };
        let (config, special) = (fields("tokenizer_config.json")?, fields("special_tokens_map.json")?);
        Ok(Self { folder: folder.into(), config, special })
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.join("tokenizer.json")
    }

    /// Whether the tokenizer is made of a `vocab.txt`.
    pub(super) fn is_vocabulary(&self, architecture: Architecture) -> bool {
        !self.path().exists() && self.folder.join(VOCABULARY).is_file() && vocabulary::is_read_by(architecture)
    }

    /// The tokenizer of `tokenizer.json`, or of `vocab.txt` where that is what there is, with the casing and the leading blank that `tokenizer_config.json` says: where both say
    /// something, transformers goes by the latter. Besides, how much longer it may make a text.
    pub(super) fn tokenizer(&self, architecture: Architecture) -> Result<(Tokenizer, Growth)> {
        let path = self.path();
        let failed = |error: tokenizers::Error| Error::Tokenizer { path: path.clone(), reason: error.to_string() };
        let (mut tokenizer, growth) = match files::read(&path)? {
            Some(bytes) => {
                check(&path, &bytes)?;
                let growth = checks::check(&bytes).map_err(|reason| Error::Tokenizer { path: path.clone(), reason })?;
                (Tokenizer::from_bytes(&bytes).map_err(failed)?, growth)
            }
            None if self.is_vocabulary(architecture) => (self.of_vocabulary(architecture)?, Growth::NONE),
            None => return Err(self.missing()),
        };
        self.add_tokens(&mut tokenizer)?;
        if let Some(NormalizerWrapper::BertNormalizer(normalizer)) = tokenizer.get_normalizer() {
            let mut changed = *normalizer;
            changed.lowercase = self.switch("do_lower_case")?.unwrap_or(changed.lowercase);
            changed.handle_chinese_chars =
                self.switch("tokenize_chinese_chars")?.unwrap_or(changed.handle_chinese_chars);
            changed.strip_accents = self.switch("strip_accents")?.or(changed.strip_accents);
            tokenizer.with_normalizer(Some(changed)).map_err(failed)?;
        }
        if let (Some(PreTokenizerWrapper::ByteLevel(bytes)), Some(add)) =
            (tokenizer.get_pre_tokenizer(), self.switch("add_prefix_space")?)
        {
            let changed = bytes.add_prefix_space(add);
            tokenizer.with_pre_tokenizer(Some(changed));
        }
        Ok((tokenizer, growth))
    }

    fn of_vocabulary(&self, architecture: Architecture) -> Result<Tokenizer> {
        let path = self.folder.join(VOCABULARY);
        check(&path, &files::read(&path)?.unwrap_or_default())?;
        let around = special_tokens::names(self, architecture);
        vocabulary::tokenizer(&path, architecture, |field| self.special_token(field), &around)
            .map_err(|reason| Error::Tokenizer { path, reason })
    }

    /// Adds the tokens of `added_tokens_decoder` that the tokenizer does not know, in the order of their numbers, as transformers' fast
    /// tokenizers do (`tokenization_utils_fast.py`).
    fn add_tokens(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        let Some(decoder) = self.config.get("added_tokens_decoder") else { return Ok(()) };
        let unfit = || self.unfit("added_tokens_decoder", decoder, "an object of numbers and tokens");
        let mut tokens: Vec<(u32, AddedToken)> = decoder
            .as_object()
            .ok_or_else(unfit)?
            .iter()
            .map(|(number, token)| {
                let is = |field: &str| token.get(field).and_then(Value::as_bool);
                let content = token.get("content")?.as_str()?;
                let special = is("special").unwrap_or(false);
                let added = AddedToken {
                    single_word: is("single_word").unwrap_or(false),
                    lstrip: is("lstrip").unwrap_or(false),
                    rstrip: is("rstrip").unwrap_or(false),
                    normalized: is("normalized").unwrap_or(!special),
                    ..AddedToken::from(content, special)
                };
                Some((number.parse().ok()?, added))
            })
            .collect::<Option<_>>()
            .ok_or_else(unfit)?;
        tokens.sort_by_key(|(number, _)| *number);
        let known = tokenizer.get_added_tokens_decoder();
        let new = tokens.into_iter().map(|(_, token)| token);
        let new: Vec<AddedToken> =
            new.filter(|token| !known.values().any(|known| known.content == token.content)).collect();
        let failed = |error: tokenizers::Error| Error::Tokenizer { path: self.path(), reason: error.to_string() };
        for token in new {
            let added =
                if token.special { tokenizer.add_special_tokens([token]) } else { tokenizer.add_tokens([token]) };
            added.map_err(failed)?;
        }
        Ok(())
    }

    /// The side on which a sequence that is too long is cut: as `tokenizer_config.json` says, or else `tokenizer.json`.
    pub(super) fn truncation_side(&self, tokenizer: &Tokenizer) -> Result<TruncationDirection> {
        let in_file = || tokenizer.get_truncation().map(|truncation| truncation.direction).unwrap_or_default();
        match self.config.get("truncation_side") {
            None | Some(Value::Null) => Ok(in_file()),
            Some(Value::String(side)) if side == "left" => Ok(TruncationDirection::Left),
            Some(Value::String(side)) if side == "right" => Ok(TruncationDirection::Right),
            Some(other) => Err(self.unfit("truncation_side", other, "\"left\" or \"right\"")),
        }
    }

    /// The text of a special token, such as `cls_token`, if one of the files says it.
    pub(super) fn special_token(&self, name: &str) -> Option<String> {
        let said = self.config.get(name).or_else(|| self.special.get(name))?;
        said.as_str().or_else(|| said.get("content")?.as_str()).map(String::from)
    }

    /// A field of `tokenizer_config.json` that is true or false, if it is there.
    fn switch(&self, field: &str) -> Result<Option<bool>> {
        match self.config.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.unfit(field, other, "true or false")),
        }
    }

    fn unfit(&self, field: &str, found: &Value, expected: &str) -> Error {
        let path = self.folder.join("tokenizer_config.json");
        Error::Tokenizer { path, reason: format!("{field} {found}, expected {expected}") }
    }

    /// What lies in the place of a `tokenizer.json`, and how to make one of it.
    fn missing(&self) -> Error {
        const OTHERS: [&str; 5] = ["vocab.txt", "vocab.json", "spm.model", "sentencepiece.bpe.model", "spiece.model"];
        let found: Vec<&str> = OTHERS.into_iter().filter(|name| self.folder.join(name).exists()).collect();
        let reason = match found.as_slice() {
            [] => "there is none, nor another file of a tokenizer; download it from where the model is from".into(),
            found => format!(
                "there is none, but {}; make one of it: python -c \"from transformers import AutoTokenizer; \
                 AutoTokenizer.from_pretrained('{folder}').save_pretrained('{folder}')\"",
                found.join(", "),
                folder = self.folder.display(),
            ),
        };
        Error::Tokenizer { path: self.path(), reason }
    }
}

/// Fails where a file is none of a tokenizer's.
fn check(path: &Path, bytes: &[u8]) -> Result<()> {
    match WrongContent::of(bytes) {
        Some(found) => Err(Error::Tokenizer { path: path.into(), reason: format!("found {found}") }),
        None => Ok(()),
    }
}
