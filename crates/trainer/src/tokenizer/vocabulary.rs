//! The tokenizer of a folder that has a `vocab.txt` alone, as transformers makes it of one (`convert_slow_tokenizer.py`, `BertConverter` and
//! `MPNetConverter`): WordPiece over words that are cleaned, and in lower case where no file says otherwise.

use std::path::Path;

use peft::Architecture;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{AddedToken, Model, Tokenizer};

/// The special tokens besides those around sentences, where no file names them: unknown, padding, mask.
const OTHERS: [(&str, &str); 3] = [("unk_token", "[UNK]"), ("pad_token", "[PAD]"), ("mask_token", "[MASK]")];
/// MPNet's.
const OTHERS_OF_MPNET: [(&str, &str); 3] = [("unk_token", "[UNK]"), ("pad_token", "<pad>"), ("mask_token", "<mask>")];

/// Whether an architecture's tokenizer is made of a `vocab.txt`.
pub(super) fn is_read_by(architecture: Architecture) -> bool {
    matches!(architecture, Architecture::Bert | Architecture::DistilBert | Architecture::Electra | Architecture::Mpnet)
}

/// The tokenizer of the vocabulary in `path`. `named` gives the text of a special token by its field, if a file says it; `around` are those
/// around sentences.
///
/// # Errors
/// When the file is not text or lacks the token for unknown words.
pub(super) fn tokenizer(
    path: &Path,
    architecture: Architecture,
    named: impl Fn(&str) -> Option<String>,
    around: &[String],
) -> Result<Tokenizer, String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let vocabulary = WordPiece::read_bytes(&bytes).map_err(|error| error.to_string())?;
    let others = if architecture == Architecture::Mpnet { OTHERS_OF_MPNET } else { OTHERS };
    let others = others.map(|(field, name)| named(field).unwrap_or_else(|| name.into()));
    let [unknown, ..] = &others;
    if !vocabulary.contains_key(unknown) {
        return Err(format!("no line {unknown:?}, the token for unknown words"));
    }
    let model = WordPiece::builder().vocab(vocabulary).unk_token(unknown.clone()).build();
    let model = model.map_err(|error| error.to_string())?;
    let special: Vec<AddedToken> = others
        .iter()
        .chain(around)
        .filter(|token| model.token_to_id(token).is_some())
        .map(|token| AddedToken::from(token.clone(), true))
        .collect();
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_pre_tokenizer(Some(BertPreTokenizer))
        .with_normalizer(Some(BertNormalizer::new(true, true, None, true)))
        .and_then(|tokenizer| tokenizer.add_special_tokens(special))
        .map_err(|error| error.to_string())?;
    Ok(tokenizer)
}
