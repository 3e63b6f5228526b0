//! The special tokens around sentences, where `tokenizer.json` says none: transformers' classes add them by their own rule.

use peft::{Architecture, Remark};
use tokenizers::Tokenizer;
use tokenizers::processors::template::TemplateProcessing;

use super::folder::TokenizerFolder;
use crate::error::{Error, Result};

/// What stands around one sentence and around two. `$A` and `$B` are the sentences, `CLS` and `SEP` the tokens, numbers the token types.
struct Template {
    pair: &'static str,
    /// What the tokens are called where no file says it.
    names: [&'static str; 2],
    /// Their fields in `tokenizer_config.json`.
    fields: [&'static str; 2],
}

const SINGLE: &str = "CLS:0 $A:0 SEP:0";

/// The rule of an architecture's tokenizer (`tokenization_bert.py` and its like).
fn template(architecture: Architecture) -> Template {
    match architecture {
        Architecture::Bert
        | Architecture::DistilBert
        | Architecture::Electra
        | Architecture::DebertaV2
        | Architecture::ModernBert => Template {
            pair: "CLS:0 $A:0 SEP:0 $B:1 SEP:1",
            names: ["[CLS]", "[SEP]"],
            fields: ["cls_token", "sep_token"],
        },
        Architecture::Roberta | Architecture::Mpnet => Template {
            pair: "CLS:0 $A:0 SEP:0 SEP:0 $B:0 SEP:0",
            names: ["<s>", "</s>"],
            fields: ["cls_token", "sep_token"],
        },
        Architecture::XlmRoberta => Template {
            pair: "CLS:0 $A:0 SEP:0 SEP:0 $B:0 SEP:0",
            names: ["<s>", "</s>"],
            fields: ["bos_token", "eos_token"],
        },
    }
}

/// The texts of the tokens around sentences: as a file of the folder says, or else by the rule.
pub(super) fn names(folder: &TokenizerFolder, architecture: Architecture) -> Vec<String> {
    let Template { fields, names, .. } = template(architecture);
    fields.iter().zip(names).map(|(field, name)| folder.special_token(field).unwrap_or_else(|| name.into())).collect()
}

/// Lets a tokenizer that adds no special tokens add those of its architecture; the remark says so.
///
/// # Errors
/// When its vocabulary has no such tokens.
pub(super) fn complete(
    tokenizer: &mut Tokenizer,
    folder: &TokenizerFolder,
    architecture: Architecture,
) -> Result<Option<Remark>> {
    if adds_tokens(tokenizer) {
        return Ok(None);
    }
    let template = template(architecture);
    let mut tokens = Vec::new();
    for token in names(folder, architecture) {
        let Some(id) = tokenizer.token_to_id(&token) else {
            return Err(Error::NoSpecialTokens { path: folder.path(), architecture: architecture.to_string(), token });
        };
        tokens.push((token, id));
    }
    let [(cls, _), (sep, _)] = tokens.as_slice() else { return Ok(None) };
    let named = |text: &str| text.replace("CLS", cls).replace("SEP", sep);
    let failed = |reason: String| Error::Tokenizer { path: folder.path(), reason };
    let split = |text: &str| text.split(' ').map(named).collect::<Vec<String>>();
    let processor = TemplateProcessing::builder()
        .try_single(split(SINGLE))
        .map_err(failed)?
        .try_pair(split(template.pair))
        .map_err(failed)?
        .special_tokens(tokens.clone())
        .build()
        .map_err(|error| failed(error.to_string()))?;
    tokenizer.with_post_processor(Some(processor));
    let plain =
        |text: &str| named(text).replace(":0", "").replace(":1", "").replace("$A", "first").replace("$B", "second");
    Ok(Some(Remark::SpecialTokens { path: folder.path(), sequence: plain(template.pair) }))
}

/// Whether it puts anything around a sentence.
fn adds_tokens(tokenizer: &Tokenizer) -> bool {
    tokenizer
        .get_post_processor()
        .is_some_and(|processor| tokenizers::PostProcessor::added_tokens(processor, false) > 0)
}
