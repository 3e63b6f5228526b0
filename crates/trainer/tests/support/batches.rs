//! Batches for a replay, as `bench_peft.py --dump-batches` writes them.

use std::path::Path;

use candle_core::{Device, Tensor};

/// Writes batches of so many sequences, padded to `width` tokens; `length` gives how long a sequence of a step is. The tiny
/// checkpoints have words for all of their tokens.
pub(crate) fn write_batches(
    path: &Path,
    [steps, sequences, width]: [usize; 3],
    length: impl Fn(usize, usize) -> usize,
) {
    let mut tensors = vec![("steps".to_string(), Tensor::new(steps as u32, &Device::Cpu).unwrap())];
    for step in 0..steps {
        let token = |i: usize| (5 + (i * 7 + step * 3 + i / 11) % 35) as u32;
        let is_token = |i: usize| u32::from(i % width < length(step, i / width));
        let matrix = |number: &dyn Fn(usize) -> u32| {
            let values: Vec<u32> = (0..sequences * width).map(number).collect();
            Tensor::from_vec(values, (sequences, width), &Device::Cpu).unwrap()
        };
        let labels: Vec<u32> = (0..sequences).map(|i| ((i + i / 3 + step) % 2) as u32).collect();
        tensors.push((format!("s{step}.input_ids"), matrix(&token)));
        tensors.push((format!("s{step}.attention_mask"), matrix(&is_token)));
        tensors.push((format!("s{step}.labels"), Tensor::from_vec(labels, sequences, &Device::Cpu).unwrap()));
    }
    Tensor::write_npz(&tensors, path).unwrap();
}
