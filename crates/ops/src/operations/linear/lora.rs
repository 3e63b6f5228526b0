//! A linear layer with the low-rank branch of LoRA.

use std::borrow::Cow;

use candle_core::{Result, Tensor, bail};

use super::{CpuWeight, Weight, check};
use crate::autograd::{Backward, Gradient, Operation, Output, View, apply};
use crate::backend::Prepared;
use crate::cpu::float::Float;
use crate::cpu::products::gemm::Matrix;
use crate::cpu::products::{Term, sum_of_products};
use crate::cpu::with_views;
use crate::operations::dropout::{Dropout, add_masked, masked};

/// The transpose of a row-major matrix of `columns`.
fn transpose<T: Float>(values: &[T], columns: usize) -> Vec<T> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
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
        weight: weight.factor()?.contiguous()?,
        prepared: weight.prepared.clone(),
        bias: bias.map(|bias| bias.contiguous()).transpose()?,
        scaling: lora.scaling,
        dropout: lora.dropout,
    };
    apply(operation, &[x, lora.a, lora.b])
}

pub(super) fn check_branch(weight: &Tensor, lora: &Lora) -> Result<()> {
    let (outputs, inputs) = weight.dims2()?;
    let (rank, a_inputs) = lora.a.dims2()?;
    if a_inputs != inputs || lora.b.dims() != [outputs, rank] {
        bail!("lora: weight {:?}, A {:?} and B {:?} do not fit", weight.dims(), lora.a.dims(), lora.b.dims())
    }
    Ok(())
}

pub(crate) struct LoraLinear {
    pub(crate) weight: Tensor,
    pub(crate) prepared: Prepared,
    pub(crate) bias: Option<Tensor>,
    pub(crate) scaling: f64,
    pub(crate) dropout: Option<Dropout>,
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

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>> {
        let ((tokens, columns), (rank, _), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix(), inputs[2].matrix());
        let x = Matrix::new(inputs[0].data, tokens, columns);
        let a = Matrix::new(inputs[1].data, rank, columns);
        let b = Matrix::new(inputs[2].data, outputs, rank);
        let products: &CpuWeight = self.prepared.of(Self::NAME)?;
        let adapter = products.adapter();

        let input = self.branch_input(inputs[0].data);
        let product = Term { a: Matrix::new(&input, tokens, columns), b: a.t(), packing: adapter.clone() };
        let down = sum_of_products(self.scaling, &[product], None); // (tokens, r)
        let frozen: Vec<&Tensor> = std::iter::once(&self.weight).chain(&self.bias).collect();
        let y = with_views::<T, _>(&frozen, Self::NAME, |frozen| {
            let weight = Matrix::new(frozen[0].data, outputs, columns);
            let terms = [
                Term { a: x, b: weight.t(), packing: products.forward() },
                Term { a: Matrix::new(&down, tokens, rank), b: b.t(), packing: adapter },
            ];
            Ok(sum_of_products(1.0, &terms, frozen.get(1).map(|bias| bias.data))) // (tokens, out)
        })?;
        // `scaling * dropout(x) Aᵀ` is thin enough to keep for the backward pass.
        Ok(Output::new(y, vec![tokens, outputs]).saving(down))
    }

    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>> {
        let &Backward { inputs, needed, gradient, .. } = &pass;
        let ((tokens, columns), (rank, _), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix(), inputs[2].matrix());
        let a = Matrix::new(inputs[1].data, rank, columns);
        let b = Matrix::new(inputs[2].data, outputs, rank);
        let upstream = Matrix::new(gradient.data, tokens, outputs);
        let products: &CpuWeight = self.prepared.of(Self::NAME)?;
        let adapter = products.adapter();
        let mut gradients = vec![Gradient::None, Gradient::None, Gradient::None];

        let product = Term { a: upstream, b, packing: adapter.clone() };
        let down_gradient = sum_of_products(self.scaling, &[product], None); // scaling * g B, (tokens, r)
        let down_gradient = Matrix::new(&down_gradient, tokens, rank);
        if needed[0] {
            let branch = Term { a: down_gradient, b: a, packing: adapter.clone() };
            let values = with_views::<T, _>(&[&self.weight], Self::NAME, |frozen| {
                let weight = Matrix::new(frozen[0].data, outputs, columns);
                let product = Term { a: upstream, b: weight, packing: products.backward() };
                let Some(dropout) = self.dropout else { return Ok(sum_of_products(1.0, &[product, branch], None)) };
                let branch = sum_of_products(1.0, &[branch], None);
                let product = sum_of_products(1.0, &[product], None);
                Ok(add_masked(&branch, &product, dropout))
            })?;
            gradients[0] = Gradient::Values(values); // (tokens, in)
        }
        if needed[1] {
            let x = self.branch_input(inputs[0].data);
            let product = Term { a: down_gradient.t(), b: Matrix::new(&x, tokens, columns), packing: adapter.clone() };
            gradients[1] = Gradient::Values(sum_of_products(1.0, &[product], None)); // (r, in)
        }
        if needed[2] {
            let down = Matrix::new(pass.saved()?, tokens, rank);
            // Taken as its transpose, so that the wide side is the one that is read in order.
            let product = Term { a: down.t(), b: upstream, packing: adapter };
            gradients[2] = Gradient::Values(transpose(&sum_of_products(1.0, &[product], None), outputs)); // (out, r)
        }
        Ok(gradients)
    }
}
