//! Linear layers: plain, and with a LoRA branch.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, DType, Result, Tensor, bail};
use serde::{Deserialize, Serialize};

#[cfg(feature = "cuda")]
use crate::cuda::{Buffer, GpuOperation, GpuWeight};
use crate::dropout::{Dropout, add_masked, masked};
use crate::float::Float;
use crate::matrix::{Cores, Matrix, column_sums};
use crate::operation::{Gradient, Operation, View, apply, with_views};
use crate::panels::Panels;
use crate::product::{Packing, Term, sum_of_products};
use crate::tiles::Number;

/// What the numbers of a linear layer's products are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Precision {
    /// Nothing: products in the tensors' own type, which is f32 for all training.
    #[default]
    #[serde(rename = "f32")]
    Exact,
    /// bf16, the sums in f32. Parameters, gradients and all other operations stay in f32.
    #[serde(rename = "bf16")]
    Bf16,
    /// TF32 on a GPU: 10 bits of an f32's 23 behind the point, with its exponent, the sums in f32 (CUDA programming guide, "Alternate
    /// Floating Point"). As torch's `allow_tf32` it is of the products of all linear layers, adapters' among them, and does nothing
    /// where the device has no such products: on the CPU it is exact.
    #[serde(rename = "tf32")]
    Tf32,
}

impl Precision {
    /// bf16 where the processor has an instruction for its products (AVX-512 BF16), else exact.
    pub fn fastest() -> Self {
        if Number::Bf16.is_native() { Self::Bf16 } else { Self::Exact }
    }

    /// That of what stays f32 beside products of bf16: adapters' own layers, and the classifier.
    pub fn of_f32(self) -> Self {
        if self == Self::Bf16 { Self::Exact } else { self }
    }
}

/// The weight of a linear layer, `(out, in)`.
#[derive(Clone, Debug)]
pub struct Weight {
    tensor: Tensor,
    precision: Precision,
    products: Products,
}

/// How a weight is multiplied.
#[derive(Clone, Debug)]
pub(crate) enum Products {
    /// By a general product.
    General,
    /// In panels, ordered anew each time, since training changes the weight.
    Packed(Number),
    /// In panels, ordered once: the weight is frozen.
    Frozen(Arc<Frozen>),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Gpu(Arc<GpuWeight>),
}

#[derive(Debug)]
pub(crate) struct Frozen {
    transposed: Arc<Panels>, // (in, out), for the forward pass
    straight: Arc<Panels>,   // (out, in), for the backward pass
}

impl Weight {
    /// A weight whose products are taken at that precision.
    ///
    /// # Errors
    /// When it is no matrix, or bf16 is asked of one that is not f32.
    pub fn new(tensor: Tensor, precision: Precision) -> Result<Self> {
        let (outputs, inputs) = tensor.dims2()?;
        let number = match precision {
            Precision::Bf16 if tensor.dtype() != DType::F32 => {
                bail!("linear: bf16 products take f32 tensors, found {:?}", tensor.dtype())
            }
            Precision::Bf16 => Some(Number::Bf16),
            Precision::Exact | Precision::Tf32 => {
                (tensor.dtype() == DType::F32 && Number::F32.is_native()).then_some(Number::F32)
            }
        };
        let products = match number {
            #[cfg(feature = "cuda")]
            _ if tensor.device().is_cuda() => Products::Gpu(Arc::new(GpuWeight::new(precision, !tensor.track_op()))),
            None => Products::General,
            Some(number) if tensor.track_op() => Products::Packed(number),
            Some(number) => with_views::<f32, _>(&[&tensor.contiguous()?], "linear", |views| {
                let weight = Matrix::new(views[0].data, outputs, inputs);
                let pack = |matrix| Arc::new(Panels::pack(matrix, number, Cores::All));
                Ok(Products::Frozen(Arc::new(Frozen { transposed: pack(weight.t()), straight: pack(weight) })))
            })?,
        };
        Ok(Self { tensor, precision, products })
    }

    /// A frozen weight whose panels another one has already.
    pub(crate) fn with_panels(tensor: Tensor, precision: Precision, panels: Arc<Frozen>) -> Self {
        Self { tensor, precision, products: Products::Frozen(panels) }
    }

    /// The panels of a frozen weight, if it is multiplied in panels.
    pub(crate) fn panels(&self) -> Option<&Arc<Frozen>> {
        match &self.products {
            Products::Frozen(panels) => Some(panels),
            _ => None,
        }
    }

    /// Its numbers, `(out, in)`, as they were given: unrounded.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
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
        Self::new((self.tensor.detach() + branch)?, self.precision)
    }
}

impl Products {
    /// Of the transposed weight, in the forward pass.
    fn forward(&self) -> Packing {
        match self {
            Self::Frozen(frozen) => Packing::Before(frozen.transposed.clone()),
            _ => self.anew(),
        }
    }

    /// Of the weight, in the backward pass.
    fn backward(&self) -> Packing {
        match self {
            Self::Frozen(frozen) => Packing::Before(frozen.straight.clone()),
            _ => self.anew(),
        }
    }

    /// Of a right side that differs each time.
    fn anew(&self) -> Packing {
        match self {
            Self::Packed(number) => Packing::Now(*number),
            _ => Packing::None,
        }
    }

    /// The weight on the GPU, for an operation of that name.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(&self, operation: &str) -> Result<&GpuWeight> {
        match self {
            Self::Gpu(weight) => Ok(weight),
            _ => bail!("{operation}: the weight is not on the GPU"),
        }
    }

    /// Of an adapter's thin matrices: never rounded.
    fn adapter(&self) -> Packing {
        match self {
            Self::General => Packing::None,
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => Packing::None,
            _ => Packing::Now(Number::F32),
        }
    }
}

/// The transpose of a row-major matrix of `columns`.
fn transpose<T: Float>(values: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

/// `x Wᵀ + b`: x `(tokens, in)`, weight `(out, in)`, bias `(out)`, result `(tokens, out)`.
///
/// A frozen weight costs the backward pass nothing but its product with the gradient.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, &weight.tensor, bias)?;
    let operation = Linear { products: weight.products.clone() };
    match bias {
        Some(bias) => apply(operation, &[x, &weight.tensor, bias]),
        None => apply(operation, &[x, &weight.tensor]),
    }
}

fn check(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<()> {
    let (_, columns) = x.dims2()?;
    let (outputs, inputs) = weight.dims2()?;
    if columns != inputs || bias.is_some_and(|bias| bias.dims() != [outputs]) {
        let bias = bias.map(|bias| bias.dims());
        bail!("linear: input {:?}, weight {:?} and bias {bias:?} do not fit", x.dims(), weight.dims())
    }
    Ok(())
}

pub(crate) struct Linear {
    pub(crate) products: Products,
}

impl Operation for Linear {
    const NAME: &'static str = "linear";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let ((tokens, columns), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix());
        let x = Matrix::new(inputs[0].data, tokens, columns);
        let weight = Matrix::new(inputs[1].data, outputs, columns);
        let product = Term { a: x, b: weight.t(), packing: self.products.forward() };
        Ok((sum_of_products(1.0, &[product], inputs.get(2).map(|bias| bias.data)), vec![tokens, outputs]))
    }

    fn backward<T: Float>(
        &self,
        inputs: &[View<T>],
        needed: &[bool],
        _output: View<T>,
        gradient: View<T>,
    ) -> Result<Vec<Gradient<T>>> {
        let ((tokens, columns), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix());
        let x = Matrix::new(inputs[0].data, tokens, columns);
        let weight = Matrix::new(inputs[1].data, outputs, columns);
        let upstream = Matrix::new(gradient.data, tokens, outputs);
        let mut gradients = vec![Gradient::None, Gradient::None, Gradient::None];
        if needed[0] {
            let product = Term { a: upstream, b: weight, packing: self.products.backward() };
            gradients[0] = Gradient::Values(sum_of_products(1.0, &[product], None)); // (tokens, in)
        }
        if needed[1] {
            let product = Term { a: upstream.t(), b: x, packing: self.products.anew() };
            gradients[1] = Gradient::Values(sum_of_products(1.0, &[product], None)); // (out, in)
        }
        if needed.get(2) == Some(&true) {
            gradients[2] = Gradient::Values(column_sums(gradient.data, outputs)); // (out)
        }
        gradients.truncate(inputs.len());
        Ok(gradients)
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&self) -> Option<&dyn GpuOperation> {
        Some(self)
    }
}

/// The branch that LoRA adds to a linear layer.
#[derive(Clone, Debug)]
pub struct Lora<'a> {
    /// `lora_A`, `(r, in)`.
    pub a: &'a Tensor,
    /// `lora_B`, `(out, r)`.
    pub b: &'a Tensor,
    /// What the branch is multiplied by: `lora_alpha / r`.
    pub scaling: f64,
    /// Dropout on the branch's input only.
    pub dropout: Option<Dropout>,
}

/// `x Wᵀ + b + scaling * dropout(x) Aᵀ Bᵀ` with a frozen weight and bias (Hu et al. 2021, equation 3; PEFT's
/// `tuners/lora/layer.py`): x `(tokens, in)`, weight `(out, in)`, result `(tokens, out)`.
///
/// # Errors
/// When the shapes do not fit, or the weight or bias is trainable: no gradient would reach it.
pub fn lora_linear(x: &Tensor, weight: &Weight, bias: Option<&Tensor>, lora: Lora) -> Result<Tensor> {
    check(x, &weight.tensor, bias)?;
    check_branch(&weight.tensor, &lora)?;
    if weight.tensor.track_op() || bias.is_some_and(|bias| bias.track_op()) {
        bail!("lora: the weight and the bias under a LoRA branch must be frozen")
    }
    let operation = LoraLinear {
        weight: weight.tensor.contiguous()?,
        products: weight.products.clone(),
        bias: bias.map(|bias| bias.contiguous()).transpose()?,
        scaling: lora.scaling,
        dropout: lora.dropout,
        down: OnceLock::new(),
        #[cfg(feature = "cuda")]
        gpu_down: OnceLock::new(),
    };
    apply(operation, &[x, lora.a, lora.b])
}

fn check_branch(weight: &Tensor, lora: &Lora) -> Result<()> {
    let (outputs, inputs) = weight.dims2()?;
    let (rank, a_inputs) = lora.a.dims2()?;
    if a_inputs != inputs || lora.b.dims() != [outputs, rank] {
        bail!("lora: weight {:?}, A {:?} and B {:?} do not fit", weight.dims(), lora.a.dims(), lora.b.dims())
    }
    Ok(())
}

pub(crate) struct LoraLinear {
    pub(crate) weight: Tensor,
    pub(crate) products: Products,
    pub(crate) bias: Option<Tensor>,
    pub(crate) scaling: f64,
    pub(crate) dropout: Option<Dropout>,
    /// `scaling * dropout(x) Aᵀ`, `(tokens, r)`: thin enough to keep for the backward pass.
    down: OnceLock<CpuStorage>,
    /// The same on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) gpu_down: OnceLock<Buffer>,
}

impl LoraLinear {
    /// The branch's input: x itself, or a masked copy.
    fn branch_input<'a, T: Float>(&self, x: &'a [T]) -> Cow<'a, [T]> {
        match self.dropout {
            Some(dropout) => masked(x, dropout).into(),
            None => x.into(),
        }
    }
}

impl Operation for LoraLinear {
    const NAME: &'static str = "lora_linear";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let ((tokens, columns), (rank, _), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix(), inputs[2].matrix());
        let x = Matrix::new(inputs[0].data, tokens, columns);
        let a = Matrix::new(inputs[1].data, rank, columns);
        let b = Matrix::new(inputs[2].data, outputs, rank);
        let adapter = self.products.adapter();

        let input = self.branch_input(inputs[0].data);
        let product = Term { a: Matrix::new(&input, tokens, columns), b: a.t(), packing: adapter.clone() };
        let down = sum_of_products(self.scaling, &[product], None); // (tokens, r)
        let frozen: Vec<&Tensor> = std::iter::once(&self.weight).chain(&self.bias).collect();
        let y = with_views::<T, _>(&frozen, Self::NAME, |frozen| {
            let weight = Matrix::new(frozen[0].data, outputs, columns);
            let terms = [
                Term { a: x, b: weight.t(), packing: self.products.forward() },
                Term { a: Matrix::new(&down, tokens, rank), b: b.t(), packing: adapter },
            ];
            Ok(sum_of_products(1.0, &terms, frozen.get(1).map(|bias| bias.data))) // (tokens, out)
        })?;
        let _ = self.down.set(T::to_cpu_storage_owned(down));
        Ok((y, vec![tokens, outputs]))
    }

    fn backward<T: Float>(
        &self,
        inputs: &[View<T>],
        needed: &[bool],
        _output: View<T>,
        gradient: View<T>,
    ) -> Result<Vec<Gradient<T>>> {
        let ((tokens, columns), (rank, _), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix(), inputs[2].matrix());
        let a = Matrix::new(inputs[1].data, rank, columns);
        let b = Matrix::new(inputs[2].data, outputs, rank);
        let upstream = Matrix::new(gradient.data, tokens, outputs);
        let adapter = self.products.adapter();
        let mut gradients = vec![Gradient::None, Gradient::None, Gradient::None];

        let product = Term { a: upstream, b, packing: adapter.clone() };
        let down_gradient = sum_of_products(self.scaling, &[product], None); // scaling * g B, (tokens, r)
        let down_gradient = Matrix::new(&down_gradient, tokens, rank);
        if needed[0] {
            let branch = Term { a: down_gradient, b: a, packing: adapter.clone() };
            let values = with_views::<T, _>(&[&self.weight], Self::NAME, |frozen| {
                let weight = Matrix::new(frozen[0].data, outputs, columns);
                let product = Term { a: upstream, b: weight, packing: self.products.backward() };
                let Some(dropout) = self.dropout else { return Ok(sum_of_products(1.0, &[product, branch], None)) };
                let branch = sum_of_products(1.0, &[branch], None);
                let product = sum_of_products(1.0, &[product], None);
                Ok(add_masked(&branch, &product, Some(dropout)))
            })?;
            gradients[0] = Gradient::Values(values); // (tokens, in)
        }
        if needed[1] {
            let x = self.branch_input(inputs[0].data);
            let product = Term { a: down_gradient.t(), b: Matrix::new(&x, tokens, columns), packing: adapter.clone() };
            gradients[1] = Gradient::Values(sum_of_products(1.0, &[product], None)); // (r, in)
        }
        if needed[2] {
            let Some(down) = self.down.get() else { bail!("{}: backward before forward", Self::NAME) };
            let down = Matrix::new(down.as_slice::<T>()?, tokens, rank);
            // Taken as its transpose, so that the wide side is the one that is read in order.
            let product = Term { a: down.t(), b: upstream, packing: adapter };
            gradients[2] = Gradient::Values(transpose(&sum_of_products(1.0, &[product], None), outputs)); // (out, r)
        }
        Ok(gradients)
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&self) -> Option<&dyn GpuOperation> {
        Some(self)
    }
}
