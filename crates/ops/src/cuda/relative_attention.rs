//! Attention on a GPU whose scores depend on how far a key stands from the query.

use candle_core::{Result, bail};

use std::sync::Arc;

use super::attention::{Batch, Bias, Inputs, Upstream};
use super::pointwise::Converted;
use super::{Array, Buffer, Element, Gpu, GpuGradient, GpuOperation, Indices};
use crate::relative_attention::{RelativeAttention, RelativeRows, Terms};

/// A table by distance, on the GPU.
struct Table<'a> {
    rows: &'a RelativeRows,
    uploaded: Arc<Indices>,
    values: Converted<'a>, // (rows, heads), f32
}

impl RelativeAttention {
    fn table<'a>(&'a self, gpu: &Gpu, inputs: &[Array<'a>]) -> Result<Option<Table<'a>>> {
        let Terms::Bias(rows) = &self.terms else { return Ok(None) };
        Ok(Some(Table { rows, uploaded: rows.on_gpu(gpu)?, values: gpu.convert(inputs[2], Element::F32)? }))
    }

    fn batch<'a>(&'a self, table: Option<&'a Table>) -> Result<Batch<'a>> {
        let Self { queries, segments: keys, prefix, heads, scale, dropout, .. } = self;
        let window = match self.terms {
            Terms::Window(window) => Some(window),
            _ => None,
        };
        let bias = |table: &'a Table| {
            let Table { rows, uploaded, values } = table;
            Ok::<_, candle_core::Error>(Bias { table: values.array()?, rows: uploaded, longest: rows.longest })
        };
        Ok(Batch {
            queries,
            keys,
            heads: *heads,
            prefix: *prefix,
            window,
            scale: *scale,
            dropout: *dropout,
            bias: table.map(bias).transpose()?,
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
        let (batch, [query, keys_and_values], of_table) =
            (self.batch(table.as_ref())?, [inputs[0], inputs[1]], inputs.get(2));
        let (inputs, upstream) = (together(query, keys_and_values), Upstream { output, gradient, logarithms });
        let mut gradients: Vec<_> = needed.iter().map(|_| GpuGradient::None).collect();
        let of_bias = needed.get(2).copied().unwrap_or(false);
        if needed[0] || of_bias {
            let (dq, of_distances) = batch.query_gradients(gpu, &inputs, &upstream, of_bias)?;
            if needed[0] {
                gradients[0] = GpuGradient::Values(dq);
            }
            if let (Some(sums), Some(table), Some(&values)) = (of_distances, &table, of_table) {
                let looked_up: Vec<u32> = table.rows.rows.iter().map(|&row| row as u32).collect();
                gradients[2] = gpu.table_gradient(values, &looked_up, sums.array(&[looked_up.len(), self.heads])?)?;
            }
        }
        if needed[1] {
            let dkv = gpu.empty(keys_and_values.element, keys_and_values.count())?;
            let dk = dkv.pointer()?;
            batch.key_gradients(gpu, &inputs, &upstream, [dk, behind_key(query, dk)])?;
            gradients[1] = GpuGradient::Values(dkv);
        }
        Ok(gradients)
    }
}
