//! A packed batch of tokenized sequences.

use candle_core::{Device, Tensor};
use ops::Segments;

use crate::error::{Error, Result};

/// One tokenized example: `[CLS] first [SEP]`, or `[CLS] first [SEP] second [SEP]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Vocabulary ids.
    pub input_ids: Vec<u32>,
    /// 0 for the first sentence, 1 for the second; as long as `input_ids`.
    pub token_type_ids: Vec<u32>,
}

impl Sequence {
    /// How many tokens.
    pub fn len(&self) -> usize {
        self.input_ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.input_ids.is_empty()
    }
}

/// Sequences one after the other, without padding. The ids are on the CPU, wherever the model is: the operations that look
/// something up by them bring them there.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Where each sequence begins and ends.
    pub segments: Segments,
    pub(crate) input_ids: Tensor,      // (tokens)
    pub(crate) token_type_ids: Tensor, // (tokens)
    positions: Tensor,                 // (tokens)
}

impl Batch {
    /// Packs `sequences`.
    ///
    /// # Errors
    /// When a sequence's two lists differ in length.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Result<Self> {
        let (mut lengths, mut ids, mut types, mut positions) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for sequence in sequences {
            if sequence.token_type_ids.len() != sequence.len() {
                let types = sequence.token_type_ids.len();
                return Err(Error::TokenTypes { tokens: sequence.len(), types });
            }
            lengths.push(sequence.len());
            ids.extend_from_slice(&sequence.input_ids);
            types.extend_from_slice(&sequence.token_type_ids);
            positions.extend(0..sequence.len() as u32);
        }
        let tokens = ids.len();
        Ok(Self {
            segments: Segments::from_lengths(&lengths),
            input_ids: Tensor::from_vec(ids, tokens, &Device::Cpu)?,
            token_type_ids: Tensor::from_vec(types, tokens, &Device::Cpu)?,
            positions: Tensor::from_vec(positions, tokens, &Device::Cpu)?,
        })
    }

    /// Some of its sequences, by their places in it.
    ///
    /// # Errors
    /// When there is no sequence in such a place.
    pub fn select(&self, places: &[usize]) -> Result<Self> {
        let (ids, types) = (self.input_ids.to_vec1::<u32>()?, self.token_type_ids.to_vec1::<u32>()?);
        let ranges: Vec<_> = self.segments.ranges().collect();
        let one = |&place: &usize| {
            let range = ranges.get(place).ok_or(Error::NoSuchSequence { place, sequences: ranges.len() })?.clone();
            Ok(Sequence { input_ids: ids[range.clone()].to_vec(), token_type_ids: types[range].to_vec() })
        };
        let sequences: Vec<Sequence> = places.iter().map(one).collect::<Result<_>>()?;
        Self::new(&sequences)
    }

    /// Positions of which a sequence's first is `first`.
    pub(crate) fn position_ids(&self, first: u32) -> Result<Tensor> {
        Ok(match first {
            0 => self.positions.clone(),
            _ => (&self.positions + f64::from(first))?,
        })
    }

    /// Positions that begin `first` behind the padding token's id; a padding token itself has that one, and is not counted.
    pub(crate) fn position_ids_after(&self, padding: u32, first: u32) -> Result<Tensor> {
        let ids = self.input_ids.to_vec1::<u32>()?;
        let mut positions = Vec::with_capacity(ids.len());
        for range in self.segments.ranges() {
            let mut last = padding + first;
            positions.extend(ids[range].iter().map(|&id| {
                last += u32::from(id != padding);
                if id == padding { padding } else { last }
            }));
        }
        Ok(Tensor::from_vec(positions, ids.len(), &Device::Cpu)?)
    }

    /// How many tokens all sequences have together.
    pub fn tokens(&self) -> usize {
        self.segments.tokens()
    }

    /// Fails where a sequence, behind so many virtual tokens, has more than these positions.
    pub(crate) fn check(&self, positions: usize, virtual_tokens: usize) -> Result<()> {
        let limit = positions.saturating_sub(virtual_tokens);
        match self.segments.ranges().map(|range| range.len()).max() {
            Some(found) if found > limit => {
                let besides = match virtual_tokens {
                    0 => String::new(),
                    _ => format!(" besides those of {virtual_tokens} virtual tokens"),
                };
                Err(Error::TooLong { found, limit, besides })
            }
            _ => Ok(()),
        }
    }
}
