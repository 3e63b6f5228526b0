//! Linear layers on a GPU: plain, and with a LoRA branch.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Result, Tensor, TensorId};

use super::conversion::{Converted, aligned};
use crate::autograd::{Operation, Output};
use crate::cuda::cublaslt::{Plus, Target};
use crate::cuda::{Array, Buffer, Element, Gpu, GpuBackward, GpuGradient, GpuOperation, with_arrays};
use crate::operations::linear::lora::LoraLinear;
use crate::operations::linear::{Linear, Precision, Weight};

/// How a weight is multiplied on a GPU.
#[derive(Debug)]
pub(crate) struct GpuWeight {
    element: Element,
    precision: Precision,
    is_frozen: bool,
    /// A frozen weight, rounded once.
    rounded: OnceLock<RoundedWeight>,
    /// The frozen bias that it was first used with, rounded: `(out)`.
    bias: OnceLock<(TensorId, Rounded)>,
}

/// A frozen weight as products take it, `(out, in)` in bf16: one of a stack, in whose memory the next one lies behind it.
#[derive(Debug)]
struct RoundedWeight {
    tensor: Tensor,
    stack: Arc<()>,
    place: usize,
}

/// What operations on a GPU are given of a weight.
pub(crate) fn factor(weight: &Weight) -> Result<Tensor> {
    let prepared: &GpuWeight = weight.prepared().of(Linear::NAME)?;
    let rounded = match prepared.is_frozen && prepared.element == Element::Bf16 {
        true => GpuWeight::stack(&[weight])?,
        false => None,
    };
    Ok(rounded.and_then(|mut tensors| tensors.pop()).unwrap_or_else(|| weight.tensor().clone()))
}

/// Frozen weights of one shape, rounded, one behind the other.
fn rounded_together(weights: &[&Weight]) -> Result<Vec<Tensor>> {
    let numbers = weights.iter().map(|weight| weight.unrounded()?.contiguous()).collect::<Result<Vec<_>>>()?;
    let (outputs, inputs) = numbers[0].dims2()?;
    let rounded = with_arrays(&numbers.iter().collect::<Vec<_>>(), Linear::NAME, |gpu, arrays| gpu.rounded(arrays, 0))?;
    let (all, count) = (rounded.count(), outputs * inputs);
    let stack = rounded.into_tensor(&all.into());
    (0..weights.len()).map(|place| stack.narrow(0, place * count, count)?.reshape((outputs, inputs))).collect()
}

/// Numbers from one on in a buffer, which others may lie in too.
#[derive(Clone, Debug)]
struct Rounded {
    buffer: Arc<Buffer>,
    first: usize,
}

impl Rounded {
    fn array<'a>(&'a self, shape: &'a [usize]) -> Result<Array<'a>> {
        self.buffer.part(self.first, shape)
    }

    /// Arrays of one shape, rounded, one behind the other; of so many numbers that each begins as aligned as the first.
    fn stack(gpu: &Gpu, arrays: &[Array]) -> Result<impl Iterator<Item = Self>> {
        let (buffer, count) = (Arc::new(gpu.rounded(arrays, 0)?), arrays[0].count());
        Ok((0..arrays.len()).map(move |index| Self { buffer: buffer.clone(), first: index * count }))
    }

    /// The first of several, of the shape of `like`, if all others lie behind it in their order.
    fn first_of_stack<'a>(parts: &[Option<&'a Self>], like: Array<'a>) -> Result<Option<Array<'a>>> {
        let Some(first) = parts[0] else { return Ok(None) };
        let is_behind = |(index, part): (usize, &Option<&Self>)| {
            part.is_some_and(|part| {
                Arc::ptr_eq(&first.buffer, &part.buffer) && part.first == first.first + index * like.count()
            })
        };
        parts.iter().enumerate().all(is_behind).then(|| first.array(like.shape)).transpose()
    }
}

impl GpuWeight {
    pub(crate) fn new(precision: Precision, is_frozen: bool) -> Self {
        let element = match precision {
            Precision::F32 | Precision::Tf32 => Element::F32,
            Precision::Bf16 => Element::Bf16,
        };
        Self { element, precision, is_frozen, rounded: OnceLock::new(), bias: OnceLock::new() }
    }

    pub(crate) fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether it is frozen, and hidden states of that type are multiplied by it as they are.
    pub(crate) fn is_frozen_for(&self, hidden: DType) -> bool {
        self.is_frozen && self.element == if hidden == DType::BF16 { Element::Bf16 } else { Element::F32 }
    }

    /// Frozen weights of one shape as products take them, one behind the other. Nothing where they were rounded apart before. In f32
    /// there is one only.
    pub(crate) fn stack(weights: &[&Weight]) -> Result<Option<Vec<Tensor>>> {
        let all: Vec<&Self> = weights.iter().map(|weight| weight.prepared().of(Linear::NAME)).collect::<Result<_>>()?;
        if all[0].element == Element::F32 {
            return if let [weight] = weights { Ok(Some(vec![weight.tensor().contiguous()?])) } else { Ok(None) };
        }
        if all.iter().all(|weight| weight.rounded.get().is_none()) {
            let stack = Arc::new(());
            for (place, (weight, tensor)) in all.iter().zip(rounded_together(weights)?).enumerate() {
                // What another thread has rounded meanwhile stays.
                let _ = weight.rounded.set(RoundedWeight { tensor, stack: stack.clone(), place });
            }
        }
        let rounded: Vec<&RoundedWeight> = all.iter().filter_map(|weight| weight.rounded.get()).collect();
        let is_behind = |(index, weight): (usize, &&RoundedWeight)| {
            Arc::ptr_eq(&weight.stack, &rounded[0].stack) && weight.place == rounded[0].place + index
        };
        let are_stacked = rounded.len() == all.len() && rounded.iter().enumerate().all(is_behind);
        Ok(are_stacked.then(|| rounded.iter().map(|weight| weight.tensor.clone()).collect()))
    }

    /// The same of their frozen biases.
    pub(crate) fn stack_biases<'a>(
        gpu: &Gpu,
        weights: &[&'a Self],
        biases: &[(TensorId, Array<'a>)],
    ) -> Result<Option<Array<'a>>> {
        if weights[0].element == Element::F32 {
            return Ok((weights.len() == 1).then_some(biases[0].1));
        }
        if weights.iter().all(|weight| weight.bias.get().is_none()) {
            let arrays: Vec<Array> = biases.iter().map(|(_, array)| *array).collect();
            let parts = biases.iter().map(|(id, _)| *id).zip(Rounded::stack(gpu, &arrays)?);
            weights.iter().zip(parts).for_each(|(weight, part)| drop(weight.bias.set(part)));
        }
        let of = |(weight, (id, _)): (&&'a Self, &(TensorId, Array))| {
            weight.bias.get().filter(|(kept, _)| kept == id).map(|(_, rounded)| rounded)
        };
        let rounded: Vec<_> = weights.iter().zip(biases).map(of).collect();
        Rounded::first_of_stack(&rounded, biases[0].1)
    }

    /// The weight as its products take it: a frozen one is given so ([`factor`]).
    fn factor<'a>(&self, gpu: &Gpu, weight: Array<'a>) -> Result<Converted<'a>> {
        gpu.convert(weight, self.element)
    }

    /// A bias as products take it whose result has the type `element`; `frozen`: which tensor it is, if that is frozen.
    fn bias<'a>(
        &'a self,
        gpu: &Gpu,
        bias: Array<'a>,
        frozen: Option<TensorId>,
        element: Element,
    ) -> Result<Converted<'a>> {
        let (Some(id), Element::Bf16, Element::Bf16) = (frozen, self.element, element) else {
            // A product in f32 adds it before its result is rounded.
            return Ok(Converted::Same(bias));
        };
        if self.bias.get().is_none()
            && let Converted::Copy(buffer, _) = gpu.convert(bias, element)?
        {
            self.bias.get_or_init(|| (id, Rounded { buffer: Arc::new(buffer), first: 0 }));
        }
        Ok(Converted::Same(match self.bias.get().filter(|(kept, _)| *kept == id) {
            Some((_, rounded)) => rounded.array(bias.shape)?,
            None => bias,
        }))
    }

    /// What training changes of a layer, rounded for one pass: the weight, and a bias that is given.
    fn trained(&self, gpu: &Gpu, weight: Array, bias: Option<Array>) -> Result<Option<Buffer>> {
        let arrays: Vec<Array> = (!self.is_frozen).then_some(weight).into_iter().chain(bias).collect();
        (self.element == Element::Bf16 && !arrays.is_empty()).then(|| gpu.rounded(&arrays, 0)).transpose()
    }

    /// The weight as products take it; `trained`: rounded for this pass.
    fn weight<'a>(&'a self, gpu: &Gpu, weight: Array<'a>, trained: Option<&'a Buffer>) -> Result<Converted<'a>> {
        match trained.filter(|_| !self.is_frozen) {
            Some(trained) => Ok(Converted::Same(trained.array(weight.shape)?)),
            None => self.factor(gpu, weight),
        }
    }

    /// `x Wᵀ + b` with a bias of the type that products add, in the type of x: `(tokens, out)`.
    fn forward(&self, gpu: &Gpu, x: Array, weight: Array, bias: Option<Array>) -> Result<Buffer> {
        let factor = gpu.convert(x, self.element)?;
        gpu.product(self.precision, 1.0, factor.array()?.into(), weight.t(), bias, x.element)
    }

    /// `g W` and, if there is any, what was found of the input's gradient before, in the type of g: `(tokens, in)`.
    fn backward(&self, gpu: &Gpu, gradient: Array, weight: Converted, earlier: Option<Array>) -> Result<InputSum> {
        let factor = gpu.convert(gradient, self.element)?;
        let (factor, weight) = (factor.array()?, weight.array()?);
        // cuBLASLt adds what has the type of its result, which is not bf16 where its factors are f32.
        let is_addable = |earlier: &Array| {
            earlier.element == gradient.element && (self.element, gradient.element) != (Element::F32, Element::Bf16)
        };
        let plus = earlier.filter(is_addable).map_or(Plus::Nothing, Plus::Matrix);
        let dx = gpu.empty(gradient.element, gradient.matrix().0 * weight.matrix().1)?;
        gpu.multiply(self.precision, 1.0, factor.into(), weight.into(), plus, &dx)?;
        Ok(InputSum { dx, is_sum: matches!(plus, Plus::Matrix(_)) })
    }
}

/// The gradient of an input, `(tokens, in)`, and whether what was found of it before is in it.
struct InputSum {
    dx: Buffer,
    is_sum: bool,
}

impl InputSum {
    fn found(self) -> GpuGradient {
        if self.is_sum { GpuGradient::Sum(self.dx) } else { GpuGradient::Values(self.dx) }
    }
}

impl GpuOperation for Linear {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let ((tokens, _), (outputs, _)) = (inputs[0].matrix(), inputs[1].matrix());
        let (x, weight, bias) = (inputs[0], inputs[1], inputs.get(2).copied());
        let products: &GpuWeight = self.weight.of(Self::NAME)?;
        let trained_bias = bias.filter(|_| self.frozen_bias.is_none() && x.element == Element::Bf16);
        let trained = products.trained(gpu, weight, trained_bias)?;
        let factor = products.weight(gpu, weight, trained.as_ref())?;
        let bias = match (trained_bias, &trained) {
            (Some(bias), Some(trained)) => {
                let first = if products.is_frozen { 0 } else { aligned(weight.count()) };
                Some(Converted::Same(trained.part(first, bias.shape)?))
            }
            _ => bias.map(|bias| products.bias(gpu, bias, self.frozen_bias, x.element)).transpose()?,
        };
        let y = products.forward(gpu, x, factor.array()?, bias.as_ref().map(Converted::array).transpose()?)?;
        let output = Output::new(y, vec![tokens, outputs]);
        Ok(match trained.filter(|_| !products.is_frozen) {
            Some(trained) => output.saving(trained),
            None => output,
        })
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let &GpuBackward { inputs, needed, gradient, .. } = &pass;
        let weight: &GpuWeight = self.weight.of(Self::NAME)?;
        let mut gradients = vec![if needed[0] {
            // Rounded once for both passes.
            let is_rounded = !weight.is_frozen && weight.element == Element::Bf16;
            let trained = is_rounded.then(|| pass.saved()).transpose()?;
            let factor = weight.weight(gpu, inputs[1], trained)?;
            weight.backward(gpu, gradient, factor, pass.earlier(0).copied())?.found() // (tokens, in)
        } else {
            GpuGradient::None
        }];
        gradients.push(if needed[1] {
            let (upstream, x) = (gpu.convert(gradient, weight.element)?, gpu.convert(inputs[0], weight.element)?);
            let product =
                gpu.product(weight.precision, 1.0, upstream.array()?.t(), x.array()?.into(), None, Element::F32)?;
            GpuGradient::Values(product) // (out, in)
        } else {
            GpuGradient::None
        });
        if inputs.len() > 2 {
            gradients.push(match needed[2] {
                true => GpuGradient::Values(gpu.column_sums(gradient)?), // (out)
                false => GpuGradient::None,
            });
        }
        Ok(gradients)
    }
}

/// A branch's factors as its products take them, which the forward pass leaves for the backward pass with
/// `scaling * dropout(x) Aᵀ`, `(tokens, r)`: rounded copies of A and B lie before it where hidden states are bf16.
struct Branch<'a> {
    a: Array<'a>,
    b: Array<'a>,
    down: Array<'a>,
}

impl<'a> Branch<'a> {
    /// The memory for one.
    fn buffer(gpu: &Gpu, x: Array, [a, b]: [Array; 2]) -> Result<Buffer> {
        let down = x.matrix().0 * a.matrix().0;
        match x.element {
            Element::F32 => gpu.empty(Element::F32, down),
            Element::Bf16 => gpu.rounded(&[a, b], down),
        }
    }

    /// What lies there.
    fn of(buffer: &'a Buffer, [a, b]: [Array<'a>; 2], thin: &'a [usize; 2]) -> Result<Self> {
        Ok(match buffer.element() {
            Element::F32 => Self { a, b, down: buffer.array(thin)? },
            Element::Bf16 => Self {
                a: buffer.part(0, a.shape)?,
                b: buffer.part(aligned(a.count()), b.shape)?,
                down: buffer.part(aligned(a.count()) + aligned(b.count()), thin)?,
            },
        })
    }
}

impl LoraLinear {
    /// With the frozen weight and bias.
    fn with_frozen<R>(&self, run: impl FnOnce(&Gpu, &GpuWeight, Array, Option<Array>) -> Result<R>) -> Result<R> {
        let products = self.prepared.of(Self::NAME)?;
        let frozen: Vec<_> = std::iter::once(&self.weight).chain(&self.bias).collect();
        with_arrays(&frozen, Self::NAME, |gpu, frozen| run(gpu, products, frozen[0], frozen.get(1).copied()))
    }

    /// The branch's input: x itself, or a masked copy.
    fn gpu_input<'a>(&self, gpu: &Gpu, x: Array<'a>) -> Result<Converted<'a>> {
        Ok(match self.dropout {
            Some(dropout) => Converted::Copy(gpu.masked(x, dropout)?, x.shape),
            None => Converted::Same(x),
        })
    }
}

impl GpuOperation for LoraLinear {
    fn forward(&self, gpu: &Gpu, inputs: &[Array]) -> Result<Output<Buffer>> {
        let [x, a, b] = [inputs[0], inputs[1], inputs[2]];
        let ((tokens, _), (rank, _), (outputs, _)) = (x.matrix(), a.matrix(), b.matrix());
        let (precision, scaling) = (self.prepared.of::<GpuWeight>(Self::NAME)?.precision, self.scaling as f32);
        let (saved, thin) = (Branch::buffer(gpu, x, [a, b])?, [tokens, rank]);
        let branch = Branch::of(&saved, [a, b], &thin)?;
        let input = self.gpu_input(gpu, x)?;
        let factors = [input.array()?.into(), branch.a.t()];
        gpu.multiply_batch(precision, scaling, factors, Plus::Nothing, Target::new(branch.down), 1)?; // (tokens, r)
        let frozen_bias = self.bias.as_ref().map(|bias| bias.id());
        let y = self.with_frozen(|gpu, products, weight, bias| {
            let weight = products.factor(gpu, weight)?;
            let bias = bias.map(|bias| products.bias(gpu, bias, frozen_bias, x.element)).transpose()?;
            products.forward(gpu, x, weight.array()?, bias.as_ref().map(Converted::array).transpose()?)
        })?;
        gpu.multiply(precision, 1.0, branch.down.into(), branch.b.t(), Plus::Output, &y)?; // (tokens, out)
        Ok(Output::new(y, vec![tokens, outputs]).saving(saved))
    }

    fn backward(&self, gpu: &Gpu, pass: GpuBackward) -> Result<Vec<GpuGradient>> {
        let &GpuBackward { inputs, needed, gradient, .. } = &pass;
        let [x, a, b] = [inputs[0], inputs[1], inputs[2]];
        let ((tokens, columns), (rank, _)) = (x.matrix(), a.matrix());
        let (precision, scaling) = (self.prepared.of::<GpuWeight>(Self::NAME)?.precision, self.scaling as f32);
        let thin = [tokens, rank];
        let branch = Branch::of(pass.saved()?, [a, b], &thin)?;
        let down_gradient = gpu.product(precision, scaling, gradient.into(), branch.b.into(), None, x.element)?; // scaling * g B
        let down_gradient = down_gradient.array(&thin)?; // (tokens, r)
        let mut gradients = [GpuGradient::None, GpuGradient::None, GpuGradient::None];
        if needed[0] {
            let earlier = pass.earlier(0).copied();
            let sum = self.with_frozen(|gpu, products, weight, _| {
                products.backward(gpu, gradient, products.factor(gpu, weight)?, earlier)
            })?;
            let dx = match self.dropout {
                None => {
                    gpu.multiply(precision, 1.0, down_gradient.into(), branch.a.into(), Plus::Output, &sum.dx)?;
                    sum.dx
                }
                Some(dropout) => {
                    let shape = [tokens, columns];
                    let branch = gpu.product(precision, 1.0, down_gradient.into(), branch.a.into(), None, x.element)?;
                    gpu.add_masked(branch.array(&shape)?, sum.dx.array(&shape)?, dropout)?
                }
            };
            gradients[0] = InputSum { dx, ..sum }.found(); // (tokens, in)
        }
        if needed[1] {
            let input = self.gpu_input(gpu, x)?;
            let product = gpu.product(precision, 1.0, down_gradient.t(), input.array()?.into(), None, Element::F32)?;
            gradients[1] = GpuGradient::Values(product); // (r, in)
        }
        if needed[2] {
            let product = gpu.product(precision, 1.0, gradient.t(), branch.down.into(), None, Element::F32)?;
            gradients[2] = GpuGradient::Values(product); // (out, r)
        }
        Ok(gradients.into())
    }
}
