//! Attention on a GPU whose scores depend on how far a key stands from the query.

use candle_core::{Result, bail};

use super::attention::{Batch, Inputs, Upstream};
use super::{Array, Buffer, Gpu, GpuGradient, GpuOperation};
use crate::relative_attention::{RelativeAttention, Terms};

impl RelativeAttention {
    fn batch(&self) -> Batch<'_> {
        let Self { queries, segments: keys, prefix, heads, scale, dropout, .. } = self;
        let window = match self.terms {
            Terms::Window(window) => Some(window),
            _ => None,
        };
        Batch { queries, keys, heads: *heads, prefix: *prefix, window, scale: *scale, dropout: *dropout }
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
        let (output, logarithms) = self.batch().forward(gpu, &together(inputs[0], inputs[1]))?;
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
        let (batch, [query, keys_and_values]) = (self.batch(), [inputs[0], inputs[1]]);
        let (inputs, upstream) = (together(query, keys_and_values), Upstream { output, gradient, logarithms });
        let mut gradients = vec![GpuGradient::None, GpuGradient::None];
        if needed[0] {
            gradients[0] = GpuGradient::Values(batch.query_gradient(gpu, &inputs, &upstream)?);
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
