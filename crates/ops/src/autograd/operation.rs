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
    /// What other operations have found of the inputs' gradients so far; nothing where there is none yet, and on the CPU. Who adds it to
    /// its own says so by [`Found::Sum`], and spares a sum of its own.
    pub earlier: &'a [Option<V>],
    output: Option<V>,
    /// The gradient of the result.
    pub gradient: V,
    saved: Option<&'a M>,
    operation: &'static str,
}

impl<'a, V: Copy, M> BackwardPass<'a, V, M> {
    pub(crate) fn new<O: Operation>(
        (inputs, needed): (&'a [V], &'a [bool]),
        (output, gradient): (Option<V>, V),
        saved: Option<&'a M>,
    ) -> Self {
        Self { inputs, needed, earlier: &[], output, gradient, saved, operation: O::NAME }
    }

    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU adds up what operations find"))]
    pub(crate) fn after(self, earlier: &'a [Option<V>]) -> Self {
        Self { earlier, ..self }
    }

    /// What other operations have found of an input's gradient.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU adds up what operations find"))]
    pub(crate) fn earlier(&self, input: usize) -> Option<&'a V> {
        self.earlier.get(input).and_then(Option::as_ref)
    }

    /// The result of the forward pass, if it is kept.
    pub(crate) fn output(&self) -> Result<V> {
        match self.output {
            Some(output) => Ok(output),
            None => bail!("{}: the backward pass reads a result that was not kept", self.operation),
        }
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
    /// The sum of its own and of what other operations had found before: [`BackwardPass::earlier`].
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "the CPU adds up what operations find"))]
    Sum(M),
}

/// What a backward pass on the CPU says of one input.
pub(crate) type Gradient<T> = Found<Vec<T>>;

/// The gradient of an input, as a tensor.
#[derive(Clone)]
pub(crate) struct InputGradient {
    pub tensor: Tensor,
    /// Whether what other operations had found before is in it.
    pub is_sum: bool,
}

impl InputGradient {
    /// One operation's own.
    pub(crate) fn own(tensor: Tensor) -> Self {
        Self { tensor, is_sum: false }
    }
}

/// The gradients of inputs as tensors: `tensor` makes one of values, for an input.
pub(crate) fn tensors<M>(
    found: Vec<Found<M>>,
    inputs: &[&Tensor],
    upstream: &Tensor,
    tensor: impl Fn(M, &Tensor) -> Result<Tensor>,
) -> Result<Vec<Option<InputGradient>>> {
    let mut tensors: Vec<Option<InputGradient>> = Vec::with_capacity(inputs.len());
    for (found, input) in found.into_iter().zip(inputs) {
        tensors.push(match found {
            Found::None => None,
            Found::Upstream => Some(InputGradient::own(upstream.clone())),
            Found::Same(index) => tensors.get(index).cloned().flatten(),
            Found::Values(values) => Some(InputGradient::own(tensor(values, input)?)),
            Found::Sum(values) => Some(InputGradient { tensor: tensor(values, input)?, is_sum: true }),
        });
    }
    Ok(tensors)
}
