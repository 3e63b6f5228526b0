//! Where the sequences of a packed batch begin and end.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Result, bail};

/// The sequences of a packed batch: sequence `i` is the rows `offsets[i]..offsets[i + 1]` of a `(tokens, hidden)` matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments {
    /// `(sequences + 1)`; all clones have the same.
    pub(crate) offsets: Arc<[usize]>,
}

impl Segments {
    fn new(offsets: Arc<[usize]>) -> Self {
        Self { offsets }
    }

    /// Segments of these lengths, one after the other.
    pub fn from_lengths(lengths: &[usize]) -> Self {
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end)
        });
        Self::new(std::iter::once(0).chain(ends).collect())
    }

    /// The same with so many rows more before each sequence's own.
    pub fn lengthened(&self, rows: usize) -> Self {
        Self::new(self.offsets.iter().enumerate().map(|(index, offset)| offset + index * rows).collect())
    }

    /// How many sequences there are.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tokens all sequences have together.
    pub fn tokens(&self) -> usize {
        self.offsets[self.len()]
    }

    /// The row of each sequence's first token.
    pub fn starts(&self) -> &[usize] {
        &self.offsets[..self.len()]
    }

    /// The rows of each sequence.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|pair| pair[0]..pair[1])
    }

    pub(crate) fn check(&self, tokens: usize, operation: &str) -> Result<()> {
        if self.tokens() != tokens {
            bail!("{operation}: the segments hold {} tokens, the tensor has {tokens}", self.tokens());
        }
        if self.ranges().any(|range| range.is_empty()) {
            bail!("{operation}: a sequence of the batch has no token");
        }
        Ok(())
    }
}
