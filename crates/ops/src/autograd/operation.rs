//! An operation: a forward and a backward pass over plain slices.

use candle_core::{Result, Tensor, bail};

use crate::cpu::float::Float;

/// A differentiable operation of some tensors. Its fields are options; what the forward pass leaves for the backward pass is in
/// [`Output::saved`].
pub(crate) trait Operation: Send + Sync + 'static {
    const NAME: &'static str;

    /// The result on the CPU.
    fn forward<T: Float>(&self, inputs: &[View<T>]) -> Result<Output<Vec<T>>>;

    /// One gradient per input.
    fn backward<T: Float>(&self, pass: Backward<T>) -> Result<Vec<Gradient<T>>>;
}

/// A contiguous tensor of the CPU.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T> {
    pub data: &'a [T],
    pub shape: &'a [usize],
}

impl<T> View<'_, T> {
    /// `(rows, columns)`, all dimensions but the last folded into the rows.
    pub(crate) fn matrix(&self) -> (usize, usize) {
        let columns = self.shape.last().copied().unwrap_or(1);
        (self.data.len() / columns.max(1), columns)
    }
}

/// What a forward pass gives, in a device's memory `M`.
pub(crate) struct Output<M> {
    pub values: M,
    pub shape: Vec<usize>,
    /// What the backward pass needs of the forward pass besides its inputs and its result.
    pub saved: Option<M>,
}

impl<M> Output<M> {
    pub(crate) fn new(values: M, shape: Vec<usize>) -> Self {
        Self { values, shape, saved: None }
    }

    pub(crate) fn saving(self, saved: M) -> Self {
        Self { saved: Some(saved), ..self }
    }
}

/// What a backward pass is given: tensors as `V`, and what the forward pass saved in a device's memory `M`.
pub(crate) struct BackwardPass<'a, V, M> {
    pub inputs: &'a [V],
    /// Which inputs a trainable parameter stands behind.
    pub needed: &'a [bool],
    /// The result of the forward pass.
    pub output: V,
    /// Its gradient.
    pub gradient: V,
    saved: Option<&'a M>,
    operation: &'static str,
}

impl<'a, V, M> BackwardPass<'a, V, M> {
    pub(crate) fn new<O: Operation>(
        (inputs, needed): (&'a [V], &'a [bool]),
        [output, gradient]: [V; 2],
        saved: Option<&'a M>,
    ) -> Self {
        Self { inputs, needed, output, gradient, saved, operation: O::NAME }
    }

    /// What the forward pass saved.
    pub(crate) fn saved(&self) -> Result<&'a M> {
        match self.saved {
            Some(saved) => Ok(saved),
            None => bail!("{}: the backward pass was called before the forward pass", self.operation),
        }
    }
}

/// A backward pass on the CPU.
pub(crate) type Backward<'a, T> = BackwardPass<'a, View<'a, T>, Vec<T>>;

/// What a backward pass says of one input, the values in a device's memory `M`.
pub(crate) enum Found<M> {
    /// The input is frozen: nothing was computed.
    None,
    /// The same values as the gradient of the result.
    Upstream,
    /// The same values as the gradient of an earlier input, of its type.
    Same(usize),
    Values(M),
}

/// What a backward pass on the CPU says of one input.
pub(crate) type Gradient<T> = Found<Vec<T>>;

/// The gradients of inputs as tensors: `tensor` makes one of values, for an input.
pub(crate) fn tensors<M>(
    found: Vec<Found<M>>,
    inputs: &[&Tensor],
    upstream: &Tensor,
    tensor: impl Fn(M, &Tensor) -> Result<Tensor>,
) -> Result<Vec<Option<Tensor>>> {
    let mut tensors: Vec<Option<Tensor>> = Vec::with_capacity(inputs.len());
    for (found, input) in found.into_iter().zip(inputs) {
        tensors.push(match found {
            Found::None => None,
            Found::Upstream => Some(upstream.clone()),
            Found::Same(index) => tensors.get(index).cloned().flatten(),
            Found::Values(values) => Some(tensor(values, input)?),
        });
    }
    Ok(tensors)
}
