//! Gradients without candle's own tape.
//!
//! candle's backward pass makes zeros for every gradient before it adds the first one, and keeps all that a step computed until the
//! step's end. Within [`record`], operations of this crate are noted here instead: a gradient is kept as it comes, and what an
//! operation has left for its backward pass is freed when that is done. Outside, the same operations are part of candle's graph.

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use candle_core::{Device, Result, Tensor, TensorId, bail};

use super::operation::InputGradient;
use crate::interruption;
use crate::operations::add::add;

/// An operation that was applied: its backward pass, and what it keeps for it.
pub(crate) trait Backward {
    /// One gradient per input that needs one.
    fn backward(&self, pass: Pass) -> Result<Vec<Option<InputGradient>>>;

    /// Whether a trainable parameter stands behind an output, where one stands behind the inputs that are `needed`.
    fn reaches(&self, needed: &[bool], output: usize) -> bool {
        let _ = output;
        needed.contains(&true)
    }
}

/// What a backward pass is given.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    /// Which inputs a trainable parameter stands behind.
    pub needed: &'a [bool],
    /// What other operations have found of the inputs' gradients.
    pub earlier: &'a [Option<Tensor>],
    /// The gradients of the results that the value depends on.
    pub gradients: &'a [Option<Tensor>],
}

struct Node {
    operation: Box<dyn Backward>,
    inputs: Vec<TensorId>,
    /// Which inputs a trainable parameter stands behind.
    needed: Vec<bool>,
    outputs: Vec<TensorId>,
}

#[derive(Default)]
struct Tape {
    nodes: Vec<Node>,
    /// The outputs of the nodes.
    outputs: HashSet<TensorId>,
}

/// Who notes operations for a backward pass.
#[derive(Default)]
enum Recorder {
    #[default]
    Candle,
    Tape(Tape),
    Nobody,
}

thread_local! {
    static RECORDER: RefCell<Recorder> = RefCell::default();
}

/// Puts the recorder from before back, also when the work fails.
struct Restore(Option<Recorder>);

impl Restore {
    fn after(recorder: Recorder) -> Self {
        Self(Some(RECORDER.replace(recorder)))
    }

    /// The recorder that this one took the place of is back; what has been recorded since.
    fn finish(mut self) -> Recorder {
        RECORDER.replace(self.0.take().unwrap_or_default())
    }
}

impl Drop for Restore {
    fn drop(&mut self) {
        if let Some(recorder) = self.0.take() {
            RECORDER.set(recorder);
        }
    }
}

/// Whether candle's graph is to hold what is computed now.
pub(crate) fn is_candles() -> bool {
    RECORDER.with_borrow(|recorder| matches!(recorder, Recorder::Candle))
}

/// Whether a trainable parameter stands behind a tensor, as far as candle or the tape knows.
pub(crate) fn is_trained(tensor: &Tensor) -> bool {
    let is_noted =
        |recorder: &Recorder| matches!(recorder, Recorder::Tape(tape) if tape.outputs.contains(&tensor.id()));
    tensor.track_op() || RECORDER.with_borrow(is_noted)
}

/// Notes an operation, if somebody does and a trainable parameter stands behind an input.
pub(crate) fn note(
    operation: impl Backward + 'static,
    inputs: &[Tensor],
    outputs: &[Tensor],
    name: &str,
) -> Result<()> {
    RECORDER.with_borrow_mut(|recorder| {
        let Recorder::Tape(tape) = recorder else { return Ok(()) };
        if inputs.iter().any(|input| input.track_op() && !input.is_variable()) {
            bail!("{name}: an operation of candle's stands before it, whose gradient would be lost while recording")
        }
        let needed: Vec<bool> =
            inputs.iter().map(|input| input.is_variable() || tape.outputs.contains(&input.id())).collect();
        if needed.contains(&true) {
            let reached = outputs.iter().enumerate().filter(|(index, _)| operation.reaches(&needed, *index));
            tape.outputs.extend(reached.map(|(_, output)| output.id()));
            let [inputs, outputs] = [inputs, outputs].map(|tensors| tensors.iter().map(Tensor::id).collect());
            tape.nodes.push(Node { operation: Box::new(operation), inputs, needed, outputs });
        }
        Ok(())
    })
}

/// A value, and how it was computed.
pub struct Recorded {
    value: Tensor,
    tape: Tape,
}

/// Records what `compute` does on this thread with the operations of this crate. Operations of candle's have no part in the
/// gradient: between a parameter and the value there may be none.
///
/// # Errors
/// Those of `compute`.
pub fn record<E>(compute: impl FnOnce() -> std::result::Result<Tensor, E>) -> std::result::Result<Recorded, E> {
    let restore = Restore::after(Recorder::Tape(Tape::default()));
    let value = compute()?;
    let tape = match restore.finish() {
        Recorder::Tape(tape) => tape,
        _ => Tape::default(),
    };
    Ok(Recorded { value, tape })
}

/// Has nothing recorded of what `compute` does on this thread with the operations of this crate: what one result is computed
/// from can be freed at once.
pub fn without_gradients<R>(compute: impl FnOnce() -> R) -> R {
    let _restore = Restore::after(Recorder::Nobody);
    compute()
}

/// Does what it would do on a thread that records nothing yet.
pub(crate) fn apart<R>(work: impl FnOnce() -> R) -> R {
    let _restore = Restore::after(Recorder::default());
    work()
}

impl Recorded {
    /// What was computed.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The gradient of the value, a scalar, for each trainable parameter behind it.
    ///
    /// # Errors
    /// When an operation's backward pass fails.
    pub fn gradients(self) -> Result<Gradients> {
        self.gradients_times(1.0)
    }

    /// The gradient of `factor` times the value.
    ///
    /// # Errors
    /// When an operation's backward pass fails.
    pub fn gradients_times(self, factor: f64) -> Result<Gradients> {
        let Self { value, mut tape } = self;
        let factor =
            Tensor::full(factor, value.shape(), &Device::Cpu)?.to_dtype(value.dtype())?.to_device(value.device())?;
        let mut gradients = Gradients(HashMap::from([(value.id(), factor)]));
        while let Some(Node { operation, inputs, needed, outputs }) = tape.nodes.pop() {
            interruption::check()?;
            let upstream: Vec<_> = outputs.iter().map(|output| gradients.0.remove(output)).collect();
            if upstream.iter().all(Option::is_none) {
                continue;
            }
            let earlier = gradients.before(&inputs, &needed);
            let found = operation.backward(Pass { needed: &needed, earlier: &earlier, gradients: &upstream })?;
            drop((operation, upstream, earlier));
            for (input, gradient) in inputs.iter().zip(found).filter_map(|(input, found)| Some((input, found?))) {
                match gradient.is_sum {
                    true => drop(gradients.0.insert(*input, gradient.tensor)),
                    false => gradients.add(*input, gradient.tensor)?,
                }
            }
        }
        Ok(gradients)
    }
}

/// The gradients of parameters.
pub struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// The sum of two gradients of the same parameters.
    ///
    /// # Errors
    /// When their shapes differ.
    pub fn plus(mut self, others: Self) -> Result<Self> {
        for (parameter, gradient) in others.0 {
            self.add(parameter, gradient)?;
        }
        Ok(self)
    }

    /// What has been found of the gradients of an operation's inputs. Of one that is given twice, it is told once.
    fn before(&self, inputs: &[TensorId], needed: &[bool]) -> Vec<Option<Tensor>> {
        let is_first = |index: usize| !inputs[..index].contains(&inputs[index]);
        let of = |(index, needed): (usize, &bool)| {
            self.0.get(&inputs[index]).filter(|_| *needed && is_first(index)).cloned()
        };
        needed.iter().enumerate().map(of).collect()
    }

    fn add(&mut self, tensor: TensorId, gradient: Tensor) -> Result<()> {
        match self.0.entry(tensor) {
            Entry::Vacant(entry) => drop(entry.insert(gradient)),
            Entry::Occupied(mut entry) => {
                let sum = without_gradients(|| add(entry.get(), &gradient))?;
                entry.insert(sum);
            }
        }
        Ok(())
    }

    /// The gradients of these parameters.
    pub fn of<'a>(found: impl IntoIterator<Item = (&'a Tensor, Tensor)>) -> Self {
        Self(found.into_iter().map(|(parameter, gradient)| (parameter.id(), gradient)).collect())
    }

    /// A parameter's gradient, of its shape.
    pub fn get(&self, parameter: &Tensor) -> Option<&Tensor> {
        self.0.get(&parameter.id())
    }
}
