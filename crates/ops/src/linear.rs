//! Linear layers: plain, and with a LoRA branch.

use candle_core::{Result, Tensor, bail};

use crate::dropout::{Dropout, mask_in_place};
use crate::float::Float;
use crate::matrix::{Cores, Into, Matrix, column_sums, multiply, product};
use crate::operation::{Gradient, Operation, View, apply, with_views};

/// `x Wᵀ + b`: x `(tokens, in)`, weight `(out, in)`, bias `(out)`, result `(tokens, out)`.
///
/// A frozen weight costs the backward pass nothing but its product with the gradient.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    check(x, weight, bias)?;
    match bias {
        Some(bias) => apply(Linear, &[x, weight, bias]),
        None => apply(Linear, &[x, weight]),
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

/// `x Wᵀ + b` over slices.
fn forward<T: Float>(x: View<T>, weight: View<T>, bias: Option<&[T]>) -> Vec<T> {
    let ((tokens, inputs), (outputs, _)) = (x.matrix(), weight.matrix());
    let (mut y, into) = match bias {
        Some(bias) => (bias.repeat(tokens), Into::Add),
        None => (vec![T::zero(); tokens * outputs], Into::Overwrite),
    };
    let (x, weight) = (Matrix::new(x.data, tokens, inputs), Matrix::new(weight.data, outputs, inputs));
    multiply(&mut y, outputs, into, 1.0, x, weight.t(), Cores::All);
    y
}

struct Linear;

impl Operation for Linear {
    const NAME: &'static str = "linear";

    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<(Vec<T>, Vec<usize>)> {
        let bias = inputs.get(2).map(|bias| bias.data);
        Ok((forward(inputs[0], inputs[1], bias), vec![inputs[0].matrix().0, inputs[1].matrix().0]))
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
            gradients[0] = Gradient::Values(product(upstream, weight)); // (tokens, in)
        }
        if needed[1] {
            gradients[1] = Gradient::Values(product(upstream.t(), x)); // (out, in)
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
pub fn lora_linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, lora: Lora) -> Result<Tensor> {
    check(x, weight, bias)?;
    let (outputs, inputs) = weight.dims2()?;
    let (rank, a_inputs) = lora.a.dims2()?;
    if a_inputs != inputs || lora.b.dims() != [outputs, rank] {
        bail!("lora: weight {:?}, A {:?} and B {:?} do not fit", weight.dims(), lora.a.dims(), lora.b.dims())
    }
    if weight.track_op() || bias.is_some_and(|bias| bias.track_op()) {
        bail!("lora: the weight and the bias under a LoRA branch must be frozen")
    }
    let operation = LoraLinear {
        weight: weight.contiguous()?,
        bias: bias.map(|bias| bias.contiguous()).transpose()?,
        scaling: lora.scaling,
        dropout: lora.dropout,
    };
    apply(operation, &[x, lora.a, lora.b])
}

struct LoraLinear {
    weight: Tensor,
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
            Ok(forward(inputs[0], frozen[0], frozen.get(1).map(|bias| bias.data)))
        })?;
        let x = self.branch_input(inputs[0].data);
        let a = Matrix::new(inputs[1].data, rank, columns);
        let b = Matrix::new(inputs[2].data, outputs, rank);
        let down = product(Matrix::new(&x, tokens, columns), a.t()); // (tokens, r)
        multiply(&mut y, outputs, Into::Add, self.scaling, Matrix::new(&down, tokens, rank), b.t(), Cores::All);
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

        let mut down_gradient = vec![T::zero(); tokens * rank]; // scaling * g B, (tokens, r)
        multiply(&mut down_gradient, rank, Into::Overwrite, self.scaling, upstream, b, Cores::All);
        let down_gradient = Matrix::new(&down_gradient, tokens, rank);
        if needed[0] {
            let mut values = with_views::<T, _>(&[&self.weight], Self::NAME, |frozen| {
                Ok(product(upstream, Matrix::new(frozen[0].data, outputs, columns))) // (tokens, in)
            })?;
            match self.dropout {
                Some(dropout) => {
                    let mut branch = product(down_gradient, a);
                    mask_in_place(&mut branch, dropout);
                    values.iter_mut().zip(&branch).for_each(|(value, &other)| *value += other);
                }
                None => multiply(&mut values, columns, Into::Add, 1.0, down_gradient, a, Cores::All),
            }
            gradients[0] = Gradient::Values(values);
        }
        if needed[1] {
            gradients[1] = Gradient::Values(product(down_gradient.t(), x)); // (r, in)
        }
        if needed[2] {
            // Recomputed: x Aᵀ is thin, and keeping it would cost memory for every layer.
            let down = product(x, a.t()); // (tokens, r)
            let mut values = vec![T::zero(); outputs * rank];
            let down = Matrix::new(&down, tokens, rank);
            multiply(&mut values, rank, Into::Overwrite, self.scaling, upstream.t(), down, Cores::All);
            gradients[2] = Gradient::Values(values); // (out, r)
        }
        Ok(gradients)
    }
}
