//! The readers of files, each with inputs to begin from and with what must hold of what it takes.

mod adapter;
mod checkpoint;
mod encoder;
mod npz;
mod recipe;
mod record;
mod tokenizer;
mod tsv;

use std::path::Path;

use anyhow::Result;
use peft::{Batch, Model, Pretrained, Sequence};

use crate::input::{Input, repository};

/// What a reader makes of an input.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    /// It takes it.
    Accepted,
    /// It refuses it, with this message.
    Refused(String),
    /// It takes it and gets it wrong, or refuses what it has written itself.
    Wrong(String),
}

/// A reader of files.
pub trait Target {
    /// Inputs that it takes, to be changed.
    fn seeds(&self) -> &[Input];

    /// Has it read an input.
    ///
    /// # Errors
    /// When the input cannot be put where it is read.
    fn run(&mut self, input: &Input) -> Result<Outcome>;
}

/// The name of a target, and how it is set up.
pub type Named = (&'static str, fn() -> Result<Box<dyn Target>>);

/// All of them.
pub fn all() -> [Named; 9] {
    [
        ("adapter", || Ok(Box::new(adapter::Adapters::new()?))),
        ("config", || Ok(Box::new(encoder::Encoders::new("config.json")?))),
        ("weights", || Ok(Box::new(encoder::Encoders::new("model.safetensors")?))),
        ("tokenizer", || Ok(Box::new(tokenizer::Tokenizers::new()?))),
        ("checkpoint", || Ok(Box::new(checkpoint::Checkpoints::new()?))),
        ("npz", || Ok(Box::new(npz::Batches::new()?))),
        ("record", || Ok(Box::new(record::Records::new()?))),
        ("tsv", || Ok(Box::new(tsv::Tables::new()?))),
        ("recipe", || Ok(Box::new(recipe::Recipes::new()?))),
    ]
}

/// The smallest checkpoint.
fn tiny() -> Result<Pretrained> {
    Ok(Pretrained::from_folder(&repository("crates/peft/tests/oracle/tiny-bert"))?)
}

/// Two sequences that every small checkpoint has words for.
fn batch() -> Result<Batch> {
    let sequence = |ids: &[u32]| Sequence { input_ids: ids.to_vec(), token_type_ids: vec![0; ids.len()] };
    Ok(Batch::new(&[sequence(&[2, 8, 9, 10, 11, 3]), sequence(&[2, 12, 3])])?)
}

/// The bits of a model's logits.
fn logits(model: &Model) -> Result<Vec<u32>> {
    let logits: Vec<Vec<f32>> = model.predict(&batch()?)?.to_vec2()?;
    Ok(logits.into_iter().flatten().map(f32::to_bits).collect())
}

/// Removes what lies in a folder.
fn clear(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(path)?;
        } else {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The folders of a folder of the repository, from its root, in the order of their names.
fn folders(of: &str) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(repository(of))? {
        let entry = entry?;
        if entry.path().is_dir() {
            names.push(format!("{of}/{}", entry.file_name().to_string_lossy()));
        }
    }
    names.sort();
    Ok(names)
}
