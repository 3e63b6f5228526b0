//! Linear layers: plain, and with a LoRA branch.

use std::sync::Arc;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

use crate::bf16::{self, Panels};
use crate::dropout::{Dropout, mask_in_place};
use crate::float::Float;
use crate::matrix::{Cores, Into, Matrix, column_sums, multiply};
use crate::operation::{Gradient, Operation, View, apply, with_views};

/// What the numbers of a linear layer's products are rounded to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Precision {
    /// Nothing: products in the tensors' own type, which is f32 for all training.
    #[default]
    #[serde(rename = "f32")]
    Exact,
    /// bf16, the sums in f32. Parameters, gradients and all other operations stay in f32.
    #[serde(rename = "bf16")]
    Bf16,
}

impl Precision {
    /// bf16 where the processor has an instruction for its products (AVX-512 BF16), else exact.
    pub fn fastest() -> Self {
        if bf16::is_native() { Self::Bf16 } else { Self::Exact }
    }
}

/// The weight of a linear layer, `(out, in)`.
#[derive(Clone, Debug)]
pub struct Weight {
    tensor: Tensor,
    products: Products,
}

/// How a weight is multiplied.
#[derive(Clone, Debug)]
enum Products {
    Exact,
    /// Rounded and ordered anew each time, since training changes it.
    Rounded,
    /// Frozen: rounded and ordered once.
    Packed(Arc<Packed>),
}

#[derive(Debug)]
struct Packed {
    transposed: Arc<Panels>, // (in, out), for the forward pass
    straight: Arc<Panels>,   // (out, in), for the backward pass
}

impl Weight {
    /// A weight whose products are taken at that precision.
    ///
    /// # Errors
    /// When it is no matrix, or bf16 is asked of one that is not f32 on the CPU.
    pub fn new(tensor: Tensor, precision: Precision) -> Result<Self> {
        let (outputs, inputs) = tensor.dims2()?;
        let products = match precision {
            Precision::Exact => Products::Exact,
            Precision::Bf16 if tensor.dtype() != candle_core::DType::F32 => {
                bail!("linear: bf16 products take f32 tensors, found {:?}", tensor.dtype())
            }
            Precision::Bf16 if tensor.track_op() => Products::Rounded,
            Precision::Bf16 => with_views::<f32, _>(&[&tensor.contiguous()?], "linear", |views| {
                let weight = Matrix::new(views[0].data, outputs, inputs);
                let packed =
                    Packed { transposed: Arc::new(Panels::pack(weight.t())), straight: Arc::new(Panels::pack(weight)) };
                Ok(Products::Packed(Arc::new(packed)))
            })?,
        };
        Ok(Self { tensor, products })
    }

    /// The weight itself, `(out, in)`.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }
}

impl Products {
    /// A right-hand matrix as bf16 products take it; `None` where products are exact.
    fn round<T: Float>(&self, b: Matrix<T>) -> Option<Arc<Panels>> {
        match self {
            Self::Exact => None,
            Self::Rounded | Self::Packed(_) => Some(Arc::new(Panels::pack(b.as_f32()?))),
        }
    }

    /// `output += scale * a b` for a row-major output.
    fn add<T: Float>(&self, output: &mut [T], scale: f64, a: Matrix<T>, b: Matrix<T>) {
        if let (Some(panels), Some(a)) = (self.round(b), a.as_f32())
            && let Some(output) = T::as_f32_mut(output)
        {
            return bf16::multiply_add(output, scale, a, &panels);
        }
        multiply(output, b.columns, Into::Add, scale, a, b, Cores::All);
    }

    /// `scale * a b` as a new row-major matrix.
    fn product<T: Float>(&self, scale: f64, a: Matrix<T>, b: Matrix<T>) -> Vec<T> {
        product(scale, a, b, self.round(b), None)
    }

    /// `x Wᵀ + b`, `(tokens, out)`.
    fn forward<T: Float>(&self, x: View<T>, weight: View<T>, bias: Option<&[T]>) -> Vec<T> {
        let ((tokens, inputs), (outputs, _)) = (x.matrix(), weight.matrix());
        let (x, weight) = (Matrix::new(x.data, tokens, inputs), Matrix::new(weight.data, outputs, inputs));
        let panels = match self {
            Self::Packed(packed) => Some(packed.transposed.clone()),
            _ => self.round(weight.t()),
        };
        product(1.0, x, weight.t(), panels, bias)
    }

    /// `g W`, `(tokens, in)`.
    fn input_gradient<T: Float>(&self, upstream: Matrix<T>, weight: Matrix<T>) -> Vec<T> {
        let panels = match self {
            Self::Packed(packed) => Some(packed.straight.clone()),
            _ => self.round(weight),
        };
        product(1.0, upstream, weight, panels, None)
    }
}

/// `scale * a b`, plus a bias in each row if there is one, as a new row-major matrix; of rounded numbers if `b` is there rounded.
fn product<T: Float>(
    scale: f64,
    a: Matrix<T>,
    b: Matrix<T>,
    rounded: Option<Arc<Panels>>,
    bias: Option<&[T]>,
) -> Vec<T> {
    if let (Some(panels), Some(a)) = (rounded, a.as_f32()) {
        return T::from_f32(bf16::product(scale, a, &panels, bias.and_then(T::as_f32)));
    }
    let (mut output, into) = match bias {
        Some(bias) => (bias.repeat(a.rows), Into::Add),
        None => (vec![T::zero(); a.rows * b.columns], Into::Overwrite),
    };
    multiply(&mut output, b.columns, into, scale, a, b, Cores::All);
    output
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

struct Linear {
    products: Products,
}

impl Operation for Linear {
    const NAME: &'static str = "linear";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let bias = inputs.get(2).map(|bias| bias.data);
        let y = self.products.forward(inputs[0], inputs[1], bias);
        Ok((y, vec![inputs[0].matrix().0, inputs[1].matrix().0]))
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
            gradients[0] = Gradient::Values(self.products.input_gradient(upstream, weight)); // (tokens, in)
        }
        if needed[1] {
            gradients[1] = Gradient::Values(self.products.product(1.0, upstream.t(), x)); // (out, in)
        }
        if needed.get(2) == Some(&true) {
            gradients[2] = Gradient::Values(column_sums(gradient.data, outputs)); // (out)
        }
        gradients.truncate(inputs.len());
        Ok(gradients)
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
    let (outputs, inputs) = weight.tensor.dims2()?;
    let (rank, a_inputs) = lora.a.dims2()?;
    if a_inputs != inputs || lora.b.dims() != [outputs, rank] {
        bail!("lora: weight {:?}, A {:?} and B {:?} do not fit", weight.tensor.dims(), lora.a.dims(), lora.b.dims())
    }
    if weight.tensor.track_op() || bias.is_some_and(|bias| bias.track_op()) {
        bail!("lora: the weight and the bias under a LoRA branch must be frozen")
    }
    let operation = LoraLinear {
        weight: weight.tensor.contiguous()?,
        products: weight.products.clone(),
        bias: bias.map(|bias| bias.contiguous()).transpose()?,
        scaling: lora.scaling,
        dropout: lora.dropout,
    };
    apply(operation, &[x, lora.a, lora.b])
}

struct LoraLinear {
    weight: Tensor,
    products: Products,
    bias: Option<Tensor>,
    scaling: f64,
    dropout: Option<Dropout>,
}

impl LoraLinear {
    /// The branch's input: x itself, or a masked copy.
    fn branch_input<'a, T: Float>(&self, x: &'a [T]) -> std::borrow::Cow<'a, [T]> {
        match self.dropout {
            Some(dropout) => {
                let mut masked = x.to_vec();
                mask_in_place(&mut masked, dropout);
                masked.into()
            }
            None => x.into(),
        }
    }
}

impl Operation for LoraLinear {
    const NAME: &'static str = "lora_linear";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let ((tokens, columns), (rank, _), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix(), inputs[2].matrix());
        let frozen: Vec<&Tensor> = std::iter::once(&self.weight).chain(&self.bias).collect();
        let mut y = with_views::<T, _>(&frozen, Self::NAME, |frozen| {
            Ok(self.products.forward(inputs[0], frozen[0], frozen.get(1).map(|bias| bias.data)))
        })?;
        let x = self.branch_input(inputs[0].data);
        let a = Matrix::new(inputs[1].data, rank, columns);
        let b = Matrix::new(inputs[2].data, outputs, rank);
        let down = self.products.product(1.0, Matrix::new(&x, tokens, columns), a.t()); // (tokens, r)
        self.products.add(&mut y, self.scaling, Matrix::new(&down, tokens, rank), b.t());
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
        let x = self.branch_input(inputs[0].data);
        let x = Matrix::new(&x, tokens, columns);
        let mut gradients = vec![Gradient::None, Gradient::None, Gradient::None];

        let down_gradient = self.products.product(self.scaling, upstream, b); // scaling * g B, (tokens, r)
        let down_gradient = Matrix::new(&down_gradient, tokens, rank);
        if needed[0] {
            let mut values = with_views::<T, _>(&[&self.weight], Self::NAME, |frozen| {
                let weight = Matrix::new(frozen[0].data, outputs, columns);
                Ok(self.products.input_gradient(upstream, weight)) // (tokens, in)
            })?;
            match self.dropout {
                Some(dropout) => {
                    let mut branch = self.products.product(1.0, down_gradient, a);
                    mask_in_place(&mut branch, dropout);
                    values.iter_mut().zip(&branch).for_each(|(value, &other)| *value += other);
                }
                None => self.products.add(&mut values, 1.0, down_gradient, a),
            }
            gradients[0] = Gradient::Values(values);
        }
        if needed[1] {
            gradients[1] = Gradient::Values(self.products.product(1.0, down_gradient.t(), x)); // (r, in)
        }
        if needed[2] {
            // Recomputed: x Aᵀ is thin, and keeping it would cost memory for every layer.
            let down = self.products.product(1.0, x, a.t()); // (tokens, r)
            let down = Matrix::new(&down, tokens, rank);
            // Taken as its transpose, so that the wide side is the one that is read in order.
            let values = self.products.product(self.scaling, down.t(), upstream); // (r, out)
            gradients[2] = Gradient::Values(transpose(&values, outputs)); // (out, r)
        }
        Ok(gradients)
    }
}
