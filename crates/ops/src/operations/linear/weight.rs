//! The weight of a linear layer, and how the CPU multiplies by it.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::lora::check_branch;
use super::{Lora, Precision};
use crate::autograd::tape;
use crate::backend::{self, Prepared};
use crate::cpu::products::Packing;
use crate::cpu::products::gemm::{Cores, Matrix};
use crate::cpu::products::panels::Panels;
use crate::cpu::products::tiles::Number;
use crate::cpu::with_views;
use crate::transfer::to_device;

/// The weight of a linear layer, `(out, in)`.
#[derive(Clone, Debug)]
pub struct Weight {
    pub(super) tensor: Tensor,
    /// Where its products are taken.
    device: Arc<Device>,
    precision: Precision,
    pub(super) prepared: Prepared,
}

impl Weight {
    /// A weight whose products are taken at that precision.
    ///
    /// # Errors
    /// When it is no matrix, or bf16 is asked of one that is not f32.
    pub fn new(tensor: Tensor, precision: Precision) -> Result<Self> {
        let device = tensor.device().clone();
        Self::on(&device, tensor, precision)
    }

    /// A weight whose products are taken on that device. A GPU that takes them in bf16 has a rounded copy of a frozen one, and the tensor
    /// stays where it is: who reads its numbers besides, as merging does, is given them by [`Weight::unrounded`].
    ///
    /// # Errors
    /// As [`Weight::new`], or when the device's memory does not suffice.
    pub fn on(device: &Device, tensor: Tensor, precision: Precision) -> Result<Self> {
        tensor.dims2()?;
        if precision == Precision::Bf16 && tensor.dtype() != DType::F32 {
            bail!("linear: bf16 products take f32 tensors, found {:?}", tensor.dtype())
        }
        let is_rounded_once = device.is_cuda() && precision == Precision::Bf16 && !tensor.track_op();
        let tensor = if is_rounded_once { tensor } else { to_device(&tensor, device)? };
        let prepared = Prepared::new(&tensor, device, precision)?;
        Ok(Self { tensor, device: Arc::new(device.clone()), precision, prepared })
    }

    /// A frozen weight that another one has prepared already, for the device of its tensor.
    pub(super) fn with_prepared(tensor: Tensor, precision: Precision, prepared: Prepared) -> Self {
        Self { device: Arc::new(tensor.device().clone()), tensor, precision, prepared }
    }

    /// What the operations of its device are given: its numbers, or rounded ones of a frozen weight, which tensors on the same memory
    /// hold from the first time on.
    pub(crate) fn factor(&self) -> Result<Tensor> {
        // One that is computed from what is trained has a gradient, which passes on to that.
        if tape::is_trained(&self.tensor) { Ok(self.tensor.clone()) } else { backend::factor(self) }
    }

    /// As its device multiplies by it.
    #[cfg(feature = "cuda")]
    pub(crate) fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// Its numbers, `(out, in)`, as and where they were given: unrounded.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The same on the device of its products; a copy, where they lie elsewhere.
    ///
    /// # Errors
    /// When the device's memory does not suffice.
    pub fn unrounded(&self) -> Result<Tensor> {
        to_device(&self.tensor, &self.device)
    }

    /// Where its products are taken.
    #[cfg(feature = "cuda")]
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// `W + scaling * B A`, frozen and of the same precision: the weight of a layer that computes what layer and branch compute
    /// together, "no additional inference latency" (Hu et al. 2021, section 4.1; PEFT's `tuners/lora/layer.py`, `merge` and
    /// `get_delta_weight`). Dropout belongs to training, and is left out.
    ///
    /// The sum is taken in the tensors' own type. For bf16 products it is then rounded as a whole, where beside a weight the
    /// branch never is.
    ///
    /// # Errors
    /// When the shapes do not fit.
    pub fn merge(&self, lora: &Lora) -> Result<Self> {
        check_branch(&self.tensor, lora)?;
        let branch = (lora.b.detach().matmul(&lora.a.detach())? * lora.scaling)?; // (out, in)
        Self::new((self.unrounded()?.detach() + branch)?, self.precision)
    }
}

/// How the CPU multiplies by a weight.
#[derive(Debug)]
pub(crate) enum CpuWeight {
    /// By a general product.
    General,
    /// In panels, ordered anew each time, since training changes the weight.
    Packed(Number),
    /// In panels, ordered once: the weight is frozen.
    Frozen {
        /// `(in, out)`, for the forward pass.
        transposed: Arc<Panels>,
        /// `(out, in)`, for the backward pass.
        straight: Arc<Panels>,
    },
}

impl CpuWeight {
    pub(crate) fn new(weight: &Tensor, precision: Precision) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        let number = match precision {
            Precision::Bf16 => Number::Bf16,
            _ if weight.dtype() == DType::F32 && Number::F32.is_native() => Number::F32,
            _ => return Ok(Self::General),
        };
        if weight.track_op() {
            return Ok(Self::Packed(number));
        }
        with_views::<f32, _>(&[&weight.contiguous()?], "linear", |views| {
            let weight = Matrix::new(views[0].data, outputs, inputs);
            let pack = |matrix| Arc::new(Panels::pack(matrix, number, Cores::All));
            Ok(Self::Frozen { transposed: pack(weight.t()), straight: pack(weight) })
        })
    }

    /// Of the transposed weight, in the forward pass.
    pub(crate) fn forward(&self) -> Packing {
        match self {
            Self::Frozen { transposed, .. } => Packing::Before(transposed.clone()),
            _ => self.anew(),
        }
    }

    /// Of the weight, in the backward pass.
    pub(crate) fn backward(&self) -> Packing {
        match self {
            Self::Frozen { straight, .. } => Packing::Before(straight.clone()),
            _ => self.anew(),
        }
    }

    /// Of a right side that differs each time.
    pub(crate) fn anew(&self) -> Packing {
        match self {
            Self::Packed(number) => Packing::Now(*number),
            _ => Packing::None,
        }
    }

    /// Of an adapter's thin matrices: never rounded.
    pub(crate) fn adapter(&self) -> Packing {
        match self {
            Self::General => Packing::None,
            _ => Packing::Now(Number::F32),
        }
    }
}
