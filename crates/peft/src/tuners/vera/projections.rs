//! The pair of frozen random matrices that all layers share.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::{DType, Device, Tensor};
use ops::{Precision, Weight};

use super::generator::TorchGenerator;
use crate::builder::SharedTensors;
use crate::error::Result;

/// A `(r, in)` and B `(out, r)`, as wide as the widest layers, and what each width of layer takes of them.
pub(super) struct Projections {
    r: usize,
    matrices: RwLock<Matrices>,
}

#[derive(Default)]
struct Matrices {
    /// The first columns of A, by their number; `None` until they are drawn.
    a: BTreeMap<usize, Option<Weight>>,
    /// The first rows of B, by their number.
    b: BTreeMap<usize, Option<Weight>>,
    /// Of their products.
    precision: Precision,
    whole: Option<(Tensor, Tensor)>,
    /// The key that they were drawn from; `None` where a file brought them.
    key: Option<u64>,
}

impl Projections {
    pub(super) fn new(r: usize) -> Self {
        Self { r, matrices: RwLock::default() }
    }

    /// Their rank.
    pub(super) fn r(&self) -> usize {
        self.r
    }

    fn read(&self) -> RwLockReadGuard<'_, Matrices> {
        self.matrices.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Matrices> {
        self.matrices.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a layer, as the model is built: the matrices are to be as wide as it.
    pub(super) fn widen(&self, inputs: usize, outputs: usize, precision: Precision) {
        let mut matrices = self.write();
        // No adapter's matrix is rounded to bf16.
        matrices.precision = precision.of_f32();
        matrices.a.entry(inputs).or_default();
        matrices.b.entry(outputs).or_default();
    }

    /// The first `inputs` columns of A.
    pub(super) fn a(&self, inputs: usize) -> Result<Weight> {
        drawn(self.read().a.get(&inputs).cloned().flatten())
    }

    /// The first `outputs` rows of B.
    pub(super) fn b(&self, outputs: usize) -> Result<Weight> {
        drawn(self.read().b.get(&outputs).cloned().flatten())
    }

    /// The same as tensors.
    pub(super) fn pair(&self, inputs: usize, outputs: usize) -> Result<(Tensor, Tensor)> {
        let (a, b) = self.whole()?;
        Ok((a.narrow(1, 0, inputs)?.contiguous()?, b.narrow(0, 0, outputs)?.contiguous()?))
    }

    /// A and B.
    fn whole(&self) -> Result<(Tensor, Tensor)> {
        drawn(self.read().whole.clone())
    }
}

impl SharedTensors for Projections {
    fn shapes(&self) -> Vec<(&'static str, [usize; 2])> {
        let matrices = self.read();
        let widest = |slices: &BTreeMap<usize, Option<Weight>>| slices.keys().last().copied().unwrap_or_default();
        vec![("vera_A", [self.r, widest(&matrices.a)]), ("vera_B", [widest(&matrices.b), self.r])]
    }

    fn values(&self) -> Result<Vec<Tensor>> {
        let (a, b) = self.whole()?;
        Ok(vec![a, b])
    }

    /// As PEFT does (`tuners/vera/model.py`, `_init_vera_A_vera_B` and `_kaiming_init`): A, then B, uniform in `±sqrt(6 / columns)`,
    /// Kaiming's distribution for rectified units (He et al. 2015, equation 10).
    fn draw(&self, key: u64, dtype: DType, device: &Device) -> Result<()> {
        let mut generator = TorchGenerator::new(key);
        let matrices = self.shapes().into_iter().map(|(_, [rows, columns])| -> Result<Tensor> {
            let bound = 3f64.sqrt() * (2f64.sqrt() / (columns as f64).sqrt());
            let values: Vec<f32> = (0..rows * columns).map(|_| generator.uniform(-bound, bound)).collect();
            Ok(Tensor::from_vec(values, (rows, columns), &Device::Cpu)?)
        });
        self.set(matrices.collect::<Result<_>>()?, dtype, device)?;
        self.write().key = Some(key);
        Ok(())
    }

    fn set(&self, values: Vec<Tensor>, dtype: DType, device: &Device) -> Result<()> {
        let mut values = values.into_iter().map(|matrix| matrix.to_dtype(dtype)?.to_device(device));
        let mut next = || drawn(values.next().transpose()?);
        let (a, b) = (next()?, next()?);
        let mut matrices = self.write();
        let precision = matrices.precision;
        for (&columns, slice) in &mut matrices.a {
            *slice = Some(Weight::new(a.narrow(1, 0, columns)?.contiguous()?, precision)?);
        }
        for (&rows, slice) in &mut matrices.b {
            *slice = Some(Weight::new(b.narrow(0, 0, rows)?.contiguous()?, precision)?);
        }
        matrices.whole = Some((a, b));
        matrices.key = None;
        Ok(())
    }

    fn are_drawn_from(&self, key: u64) -> bool {
        self.read().key == Some(key)
    }
}

fn drawn<T>(value: Option<T>) -> Result<T> {
    Ok(value
        .ok_or_else(|| candle_core::Error::Msg("vera: a layer that is no part of the model that was built".into()))?)
}
