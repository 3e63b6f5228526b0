//! Rotary position embeddings on a GPU.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;

use crate::autograd::Output;
use crate::cuda::{Array, Buffer, Gpu, GpuBackward, GpuGradient, GpuOperation, Grid, Kernel};
use crate::operations::rotary::Rotary;

/// The cosines and sines of an embedding, kept for all batches: 64 KiB for each 512 positions of a head of 64 columns.
#[derive(Default)]
struct Turns(Mutex<HashMap<Key, Table>>);

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
        let ((rows, columns), sequences, half) = (x.matrix(), self.segments.len(), self.head_dim / 2);
        let offsets = gpu.shared_indices(&self.segments.offsets)?;
        let turns = gpu.state(|| Ok(Turns::default()))?.of(gpu, self, self.longest())?;
        let y = gpu.empty(x.element, x.count())?;
        let shape = [self.longest(), half, 2];
        let kernel = Kernel::of("rotary", x.element)
            .write(&y, x.count())
            .read(x, x.count())
            .read_f32(turns.array(&shape)?, self.longest() * half * 2)
            .indices(&offsets, sequences + 1)
            .counts([sequences, rows, columns, half])
            .float(sign);
        // SAFETY: rows.cu, rotary: the offsets lie within x (`Segments::check`), and there is a turn for each position of a sequence.
        unsafe { kernel.launch(gpu, Grid::rows(rows)) }?;
        Ok(y)
    }
}

impl GpuOperation for Rotary {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        Ok(Output::new(self.on_rows(gpu, inputs[0], 1.0)?, inputs[0].shape.to_vec()))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        Ok(vec![GpuGradient::Values(self.on_rows(gpu, pass.gradient, -1.0)?)])
    }
}
