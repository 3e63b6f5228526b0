//! Operations on the GPU against the same on the CPU, forward and backward.

use candle_core::{DType, Device, Result, Tensor, Var};

/// The GPU that is tested, which may be an emulated one.
pub(crate) fn gpu() -> Device {
    ops::cuda_device(0).unwrap()
}

/// Numbers in (-1, 1) that follow from a seed.
pub(crate) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0) as f32
    };
    (0..count).map(|_| next()).collect()
}

pub(crate) fn matrix(rows: usize, columns: usize, seed: u64) -> Tensor {
    Tensor::from_vec(numbers(rows * columns, seed), (rows, columns), &Device::Cpu).unwrap()
}

pub(crate) fn vector(count: usize, seed: u64) -> Tensor {
    Tensor::from_vec(numbers(count, seed), count, &Device::Cpu).unwrap()
}

/// What an operation made of its inputs, and the gradients of those, on the CPU in f32.
pub(crate) struct Passes {
    pub output: Tensor,
    pub gradients: Vec<Tensor>,
}

/// Both passes of an operation on a device. The first `hidden` inputs are hidden states, of type `dtype`, the others parameters in
/// f32; all are trained.
pub(crate) fn passes(
    device: &Device,
    dtype: DType,
    hidden: usize,
    inputs: &[Tensor],
    operation: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> Passes {
    let place = |(index, input): (usize, &Tensor)| {
        let dtype = if index < hidden { dtype } else { DType::F32 };
        Var::from_tensor(&input.to_dtype(dtype).unwrap().to_device(device).unwrap()).unwrap()
    };
    let variables: Vec<Var> = inputs.iter().enumerate().map(place).collect();
    let given: Vec<Tensor> = variables.iter().map(|variable| variable.as_tensor().clone()).collect();
    let mut output = None;
    let recorded = ops::record(|| {
        let result = operation(&given)?;
        // Every number of the result counts differently.
        let weights = Tensor::from_vec(numbers(result.elem_count(), 99), result.shape(), &Device::Cpu)?;
        let weighted = ops::gate(&result, &weights.to_dtype(result.dtype())?.to_device(device)?);
        output = Some(result);
        weighted
    })
    .unwrap();
    let gradients = recorded.gradients().unwrap();
    let back = |tensor: &Tensor| tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F32).unwrap();
    Passes {
        output: back(&output.unwrap()),
        gradients: variables.iter().map(|variable| back(gradients.get(variable).unwrap())).collect(),
    }
}

/// The largest difference between two tensors, relative to the largest number of the second.
pub(crate) fn difference(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.dims(), expected.dims());
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (found, expected) = (values(found), values(expected));
    let scale = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    let most = found
        .iter()
        .zip(&expected)
        .fold(0f32, |most, (a, b)| if a.is_nan() { f32::NAN } else { most.max((a - b).abs()) });
    f64::from(most) / f64::from(scale.max(1e-20))
}

/// Fails where the GPU's passes differ from the CPU's by more than `tolerance`, or from themselves by a bit. Hidden states of bf16 are
/// rounded before either side is given them.
pub(crate) fn check(
    name: &str,
    dtype: DType,
    tolerance: f64,
    hidden: usize,
    inputs: &[Tensor],
    operation: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let rounded = |(index, input): (usize, &Tensor)| match index < hidden {
        true => input.to_dtype(dtype).unwrap().to_dtype(DType::F32).unwrap(),
        false => input.clone(),
    };
    let inputs: Vec<Tensor> = inputs.iter().enumerate().map(rounded).collect();
    let expected = passes(&Device::Cpu, DType::F32, hidden, &inputs, &operation);
    let found = passes(&gpu(), dtype, hidden, &inputs, &operation);
    let again = passes(&gpu(), dtype, hidden, &inputs, &operation);
    let of = |error: f64, what: &str| assert!(error <= tolerance, "{name}, {dtype:?}: {what} is off by {error:e}");
    of(difference(&found.output, &expected.output), "the result");
    assert_eq!(difference(&again.output, &found.output), 0.0, "{name}, {dtype:?}: not the same bits twice");
    for (index, (gradient, right)) in found.gradients.iter().zip(&expected.gradients).enumerate() {
        of(difference(gradient, right), &format!("gradient {index}"));
        assert_eq!(difference(&again.gradients[index], gradient), 0.0, "{name}, {dtype:?}: gradient {index} twice");
    }
}
