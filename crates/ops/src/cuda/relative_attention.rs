//! Attention on a GPU whose scores depend on how far a key stands from the query.

use std::sync::Arc;

use candle_core::{Result, bail};

use super::attention::{Batch, Distances, Inputs, Needed, Term, To, Upstream, if_needed};
use super::pointwise::Converted;
use super::{Array, Buffer, Element, Gpu, GpuGradient, GpuOperation, Indices};
use crate::relative_attention::{RelativeAttention, RelativeRows, Terms};

/// A table by distance, on the GPU.
struct Table<'a> {
    rows: &'a RelativeRows,
    uploaded: Arc<Indices>,
    values: Converted<'a>,
    term: Term,
}

impl RelativeAttention {
    fn table<'a>(&'a self, gpu: &Gpu, inputs: &[Array<'a>]) -> Result<Option<Table<'a>>> {
        let (rows, term, element) = match &self.terms {
            Terms::Window(_) => return Ok(None),
            Terms::Bias(rows) => (rows, Term::Bias, Element::F32),
            &Terms::Disentangled { ref rows, to_position, to_content } => {
                (rows, Term::Disentangled { to_position, to_content }, inputs[0].element)
            }
        };
        let Some(&values) = inputs.get(2) else { return Ok(None) };
        Ok(Some(Table { rows, uploaded: rows.on_gpu(gpu)?, values: gpu.convert(values, element)?, term }))
    }

    fn batch<'a>(&'a self, table: Option<&'a Table>) -> Result<Batch<'a>> {
        let Self { queries, segments: keys, prefix, heads, scale, dropout, .. } = self;
        let window = match self.terms {
            Terms::Window(window) => Some(window),
            _ => None,
        };
        let distances = |table: &'a Table| {
            let Table { rows, uploaded, values, term } = table;
            Ok::<_, candle_core::Error>(Distances { rows, uploaded, table: values.array()?, term: *term })
        };
        Ok(Batch {
            queries,
            keys,
            heads: *heads,
            prefix: *prefix,
            window,
            scale: *scale,
            dropout: *dropout,
            distances: table.map(distances).transpose()?,
        })
    }
}

/// The values stand behind the keys in each row.
fn together<'a>(query: Array<'a>, keys_and_values: Array<'a>) -> Inputs<'a> {
    let key = keys_and_values.pointer;
    Inputs { query, key, value: behind_key(query, key), key_stride: keys_and_values.matrix().1 }
}

/// The address of the value in a row that begins with a key at that address.
fn behind_key(query: Array, key: u64) -> u64 {
    key + (query.matrix().1 * query.element.bytes()) as u64
}

impl GpuOperation for RelativeAttention {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        let table = self.table(gpu, inputs)?;
        let (output, logarithms) = self.batch(table.as_ref())?.forward(gpu, &together(inputs[0], inputs[1]))?;
        let _ = self.logarithms.set(logarithms);
        Ok((output, inputs[0].shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Array],
        needed: &[bool],
        output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        let Some(logarithms) = self.logarithms.get() else { bail!("relative_attention: backward before forward") };
        let table = self.table(gpu, inputs)?;
        let empty = |index: usize| gpu.empty(inputs[index].element, inputs[index].count());
        let (dq, dkv) = (empty(0)?, empty(1)?);
        let upstream = Upstream { output, gradient, logarithms };
        let asked = Needed { query: needed[0], keys: needed[1], table: needed.get(2).copied().unwrap_or(false) };
        let key = dkv.pointer()?;
        let to = To { query: dq.pointer()?, key, value: behind_key(inputs[0], key) };
        let attended = together(inputs[0], inputs[1]);
        let of_table = self.batch(table.as_ref())?.backward(gpu, &attended, &upstream, &asked, &to)?;
        let mut gradients = vec![if_needed(needed[0], dq), if_needed(needed[1], dkv)];
        if let (Some(&values), Some(table)) = (inputs.get(2), table) {
            gradients.push(match of_table {
                None => GpuGradient::None,
                Some(of_distances) if table.term == Term::Bias => {
                    let looked_up: Vec<u32> = table.rows.rows.iter().map(|&row| row as u32).collect();
                    gpu.table_gradient(values, &looked_up, of_distances.array(&[looked_up.len(), self.heads])?)?
                }
                Some(of_rows) => gpu.of_type(of_rows, values)?,
            });
        }
        Ok(gradients)
    }
}
