//! Multi-head self-attention over packed sequences.

mod heads;
mod scores;
mod softmax;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::autograd::{Backward, Gradient, Operation, Output, View, apply, tape};
use crate::cpu::float::Float;
use crate::operations::concatenation::concatenate_columns;
use crate::operations::dropout::Dropout;
use crate::segments::Segments;
use heads::{Columns, Head, Inputs, is_joined};
pub(crate) use scores::Terms;
use scores::{HeadGradients, Reach, Term};
pub use scores::{RelativeRows, Scores};
use softmax::{Mask, Window, drop_out, softmax, softmax_backward};

/// What attention does besides its inputs.
#[derive(Clone, Copy)]
pub struct AttentionOptions<'a> {
    /// How many heads there are; each has `hidden / heads` columns of query, key and value.
    pub heads: usize,
    /// What a score is made of.
    pub scores: Scores<'a>,
    /// Dropout of the attention probabilities.
    pub dropout: Option<Dropout>,
}

/// `softmax(scale * (q kᵀ + terms)) v` for each head and each sequence (Vaswani et al. 2017, equation 1), with the terms of
/// [`AttentionOptions::scores`]. `scale` is `1 / sqrt(head_dim * n)`, where n counts `q kᵀ` and each part of [`Scores::Disentangled`]; a
/// [`Scores::Bias`] is added unscaled.
///
/// key and value are `(tokens, heads * head_dim)`, query and the result likewise, or of one row per sequence: for what is wanted
/// of its first token only. A query attends to its own sequence only. key and value may have rows more, as many for each
/// sequence, before its own ([`prepend`](crate::prepend())): a prefix, which the sequence's queries attend to as well (Li and
/// Liang 2021, section 4.2), and which stands before the first token as far as distances go. No probability is kept for the backward
/// pass: they are computed again.
///
/// # Errors
/// When the shapes do not fit, or a sequence is longer than a table's rows are made for.
pub fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    segments: &Segments,
    options: AttentionOptions,
) -> Result<Tensor> {
    let AttentionOptions { heads, scores, dropout } = options;
    let Rows { queries, keys, prefix } = check([query, key, value], segments, heads)?;
    let hidden = key.dim(1)?;
    let (terms, table) = scores.terms(heads, hidden, &keys)?;
    let scale = 1.0 / ((hidden / heads) as f64 * terms.count() as f64).sqrt();
    let operation = Attention { queries, keys, prefix, heads, scale, terms, dropout };
    match &table {
        None => apply(operation, &[query, key, value]),
        // candle's graph takes three inputs.
        Some(table) if tape::is_candles() => apply(operation, &[query, &concatenate_columns(key, value)?, table]),
        Some(table) => apply(operation, &[query, key, value, table]),
    }
}

/// Where the sequences lie in attention's inputs.
struct Rows {
    /// Of the query's rows: a sequence's tokens, or its first alone.
    queries: Segments,
    /// Of the key's and the value's rows.
    keys: Segments,
    /// How many rows of each sequence's keys stand before its own.
    prefix: usize,
}

/// The rows that query, key and value of those sequences have.
fn check([query, key, value]: [&Tensor; 3], segments: &Segments, heads: usize) -> Result<Rows> {
    let ((rows, hidden), tokens) = (key.dims2()?, segments.tokens());
    segments.check(tokens, Attention::NAME)?;
    let prefix = rows.saturating_sub(tokens) / segments.len().max(1);
    if rows != tokens + prefix * segments.len() {
        bail!("attention: {rows} keys for {tokens} tokens of {} sequences", segments.len())
    }
    let queries = match query.dims2()? {
        (rows, _) if rows == tokens => segments.clone(),
        (rows, _) if rows == segments.len() => Segments::from_lengths(&vec![1; rows]),
        (rows, _) => bail!("attention: {rows} queries for {tokens} tokens of {} sequences", segments.len()),
    };
    if query.dim(1)? != hidden || value.dims() != key.dims() {
        bail!("attention: query {:?}, key {:?}, value {:?} differ", query.dims(), key.dims(), value.dims())
    }
    if heads == 0 || hidden % heads != 0 {
        bail!("attention: {heads} heads do not divide a hidden size of {hidden}")
    }
    Ok(Rows { queries, keys: segments.lengthened(prefix), prefix })
}

pub(crate) struct Attention {
    /// Of the query's rows.
    pub(crate) queries: Segments,
    /// Of the key's and the value's rows.
    pub(crate) keys: Segments,
    /// How many keys of a sequence stand before that of its first token.
    pub(crate) prefix: usize,
    pub(crate) heads: usize,
    pub(crate) scale: f64,
    pub(crate) terms: Terms,
    pub(crate) dropout: Option<Dropout>,
}

/// Heads that a thread takes at a time.
const TASK_HEADS: usize = 8;

impl Attention {
    /// The heads of all sequences, and the rows of the table that each sequence reaches.
    fn heads(&self, hidden: usize) -> (Vec<Head>, Vec<Option<Reach>>) {
        let width = hidden / self.heads;
        let mut first_probability = 0u32;
        let (mut heads, mut reaches) = (Vec::with_capacity(self.heads * self.keys.len()), Vec::new());
        for (sequence, (queries, keys)) in self.queries.ranges().zip(self.keys.ranges()).enumerate() {
            for index in 0..self.heads {
                let probabilities = (queries.len() * keys.len()) as u32;
                let (queries, keys, first_column) = (queries.clone(), keys.clone(), index * width);
                heads.push(Head { sequence, index, queries, keys, first_column, width, first_probability });
                first_probability = first_probability.wrapping_add(probabilities);
            }
            reaches.push(self.terms.rows().map(|rows| Reach::new(rows, keys.len(), self.prefix)));
        }
        (heads, reaches)
    }

    fn window(&self) -> Option<Window> {
        match self.terms {
            Terms::Window(width) => Some(Window { first: self.prefix, width }),
            _ => None,
        }
    }

    fn mask(&self, head: &Head) -> Option<Mask> {
        let (first, keys) = (head.first_probability, head.keys.len() as u32);
        self.dropout.map(|dropout| Mask { dropout, first, keys })
    }

    /// A head's attention probabilities before dropout, `(keys, queries)`.
    fn probabilities<'b, T: Float>(
        &self,
        head: &Head,
        term: &Term<T>,
        inputs: &Inputs<T>,
        buffer: &'b mut Vec<T>,
    ) -> &'b mut [T] {
        let (query, key) = (head.of(inputs.query, &head.queries), head.of(inputs.key, &head.keys));
        let scores = head.scores(buffer, self.scale, key, query);
        term.add(scores, head, self.scale, [query, key]);
        softmax(scores, head.stride(), self.window());
        scores
    }
}

impl Operation for Attention {
    const NAME: &'static str = "attention";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let ((_, hidden), of) = (inputs[0].matrix(), Inputs::new(inputs));
        let (heads, reaches) = self.heads(hidden);
        let output = Columns::like(&inputs[0]);
        heads.par_chunks(TASK_HEADS).for_each_init(Vec::new, |buffer, heads| {
            for head in heads {
                let term = self.terms.of(head, reaches[head.sequence].as_ref(), &of);
                let probabilities = self.probabilities(head, &term, &of, buffer);
                if let Some(mask) = self.mask(head) {
                    drop_out(probabilities, head.stride(), mask);
                }
                let (probabilities, value) = (head.matrix(probabilities).t(), head.of(of.value, &head.keys));
                // SAFETY: the output has the queries' rows, and these columns are the head's.
                unsafe { output.write(&head.queries, head.first_column, 1.0, probabilities, value) };
            }
        });
        // SAFETY: the heads' columns are all there are.
        Ok(Output::new(unsafe { output.written() }, inputs[0].shape.to_vec()))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let Backward { inputs, needed, gradient, .. } = pass;
        let ((_, hidden), of) = (inputs[0].matrix(), Inputs::new(inputs));
        let (heads, reaches) = self.heads(hidden);
        let table = if is_joined(inputs) { 2 } else { 3 };
        let matrices: Vec<_> = (0..table).map(|i| needed[i].then(|| Columns::like(&inputs[i]))).collect();
        let to = Gradients {
            query: matrices[0].as_ref(),
            key: matrices[1].as_ref(),
            value: matrices[table - 1].as_ref(),
            value_column: if is_joined(inputs) { hidden } else { 0 },
            table: needed.get(table).copied().unwrap_or(false),
        };
        let of_tables: Vec<Vec<T>> = heads
            .par_chunks(TASK_HEADS)
            .map_init(Default::default, |buffers: &mut (_, _), heads| {
                let mut one = |head: &Head| {
                    let (reach, upstream) = (reaches[head.sequence].as_ref(), (gradient.data, hidden));
                    self.head_backward(head, reach, &of, upstream, &to, buffers)
                };
                heads.iter().map(&mut one).collect::<Vec<_>>()
            })
            .flatten_iter()
            .collect();
        // SAFETY: the heads' columns are all there are.
        let written = |gradient: Option<Columns<T>>| gradient.map(|gradient| unsafe { gradient.written() });
        let keep = |values: Option<Vec<T>>| values.map_or(Gradient::None, Gradient::Values);
        let of_table = of.table.map(|of| {
            to.table.then(|| {
                let reached = |head: &Head| reaches[head.sequence].as_ref().map_or(0..0, |reach| reach.reached.clone());
                let parts = heads.iter().zip(of_tables).map(|(head, part)| (head, reached(head), part));
                self.terms.sum_of_parts(&of, hidden, parts)
            })
        });
        let mut gradients: Vec<Gradient<T>> = matrices.into_iter().map(|gradient| keep(written(gradient))).collect();
        gradients.extend(of_table.map(keep));
        Ok(gradients)
    }
}

/// Where the gradients of a batch go.
struct Gradients<'a, T> {
    query: Option<&'a Columns<T>>,
    key: Option<&'a Columns<T>>,
    value: Option<&'a Columns<T>>,
    /// Where that of the value begins in a row.
    value_column: usize,
    /// Whether that of the table is asked for.
    table: bool,
}

impl Attention {
    /// Writes a head's gradients; gives that of its part of the table, as [`Term::backward`] does.
    fn head_backward<T: Float>(
        &self,
        head: &Head,
        reach: Option<&Reach>,
        inputs: &Inputs<T>,
        upstream: (&[T], usize),
        to: &Gradients<T>,
        (buffer, other): &mut (Vec<T>, Vec<T>),
    ) -> Vec<T> {
        let (query, key) = (head.of(inputs.query, &head.queries), head.of(inputs.key, &head.keys));
        let (value, upstream) = (head.of(inputs.value, &head.keys), head.of(upstream, &head.queries));
        let term = self.terms.of(head, reach, inputs);
        let probabilities = self.probabilities(head, &term, inputs, buffer);
        let of_scores = head.scores(other, 1.0, value, upstream); // first of the probabilities
        softmax_backward(of_scores, probabilities, head.stride(), self.mask(head));
        let (scores, probabilities) = (head.matrix(of_scores), head.matrix(probabilities));
        let (column, scale) = (head.first_column, self.scale);
        // SAFETY: the gradients have the rows of what they are gradients of, and these columns are the head's.
        unsafe {
            if let Some(of_query) = to.query {
                of_query.write(&head.queries, column, scale, scores.t(), key);
            }
            if let Some(of_key) = to.key {
                of_key.write(&head.keys, column, scale, scores, query);
            }
            if let Some(of_value) = to.value {
                of_value.write(&head.keys, to.value_column + column, 1.0, probabilities, upstream);
            }
            let gradients = HeadGradients { query: to.query, key: to.key, table: to.table, scale };
            term.backward(of_scores, head, [query, key], &gradients)
        }
    }
}
