//! Rotary position embeddings on a GPU.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;

use super::gpu::Grid;
use super::{Argument, Array, Buffer, Gpu, GpuGradient, GpuOperation};
use crate::rotary::Rotary;

/// The cosines and sines of an embedding, kept for all batches: 64 KiB for each 512 positions of a head of 64 columns.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<Key, Table>>);

/// `head_dim`, the bits of `theta`, and the first position.
type Key = (usize, u64, usize);

struct Table {
    positions: usize,
    turns: Arc<Buffer>, // (positions, head_dim / 2, 2)
}

impl Turns {
    /// Those of at least so many positions.
    fn of(&self, gpu: &Gpu, rotary: &Rotary, positions: usize) -> Result<Arc<Buffer>> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (rotary.head_dim, rotary.theta.to_bits(), rotary.first);
        if let Some(table) = tables.get(&key).filter(|table| table.positions >= positions) {
            return Ok(table.turns.clone());
        }
        // So that a slowly growing length does not make a new one at each batch.
        let positions = positions.next_power_of_two();
        let turns: Vec<f32> = rotary.turns::<f32>(positions).into_iter().flat_map(<[f32; 2]>::from).collect();
        let table = Table { positions, turns: Arc::new(gpu.copy(&turns)?) };
        let turns = table.turns.clone();
        tables.insert(key, table);
        Ok(turns)
    }
}

impl Rotary {
    fn on_rows(&self, gpu: &Gpu, x: Array, sign: f32) -> Result<Buffer> {
        let ((rows, columns), offsets) = (x.matrix(), self.segments.on_gpu(gpu)?);
        let turns = gpu.turns.of(gpu, self, self.longest())?;
        let y = gpu.empty(x.element, x.count())?;
        let mut arguments = vec![y.array(x.shape)?.into(), x.into(), Argument::Pointer(turns.pointer()?)];
        arguments.push((&*offsets).into());
        arguments.extend([self.segments.len(), rows, columns, self.head_dim / 2].map(Argument::from));
        arguments.push(sign.into());
        gpu.launch(&x.element.kernel("rotary"), Grid::rows(rows), &arguments)?;
        Ok(y)
    }
}

impl GpuOperation for Rotary {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<(Buffer, Vec<usize>)> {
        Ok((self.on_rows(gpu, inputs[0], 1.0)?, inputs[0].shape.to_vec()))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        _inputs: &[Array],
        _needed: &[bool],
        _output: Array,
        gradient: Array,
    ) -> Result<Vec<GpuGradient>> {
        Ok(vec![GpuGradient::Values(self.on_rows(gpu, gradient, -1.0)?)])
    }
}
