//! Initial values of new parameters: zeros, ones, normal, Kaiming-uniform, drawn from a generator of the parameter's own.

use candle_core::{Device, Result, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal, Uniform};

/// How a parameter that the checkpoint lacks begins.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Initializer {
    /// It must be in the checkpoint.
    Pretrained,
    Zeros,
    Ones,
    /// A normal distribution around 0.
    Normal {
        standard_deviation: f64,
    },
    /// Kaiming-uniform with a = sqrt(5) over `inputs`, which is uniform in `±1 / sqrt(inputs)`: PEFT's start of `lora_A`
    /// (`tuners/lora/layer.py`, `reset_lora_parameters`).
    KaimingUniform {
        inputs: usize,
    },
}

impl Initializer {
    /// The values of the parameter at `path`, f64 of that shape on the CPU. They depend on the seed and the path, not on the order
    /// in which a model is built.
    pub(crate) fn values(self, path: &str, shape: &[usize], seed: u64) -> Result<Tensor> {
        let mut generator = generator(path, seed);
        let count = shape.iter().product();
        let invalid = |e: &dyn std::fmt::Display| candle_core::Error::Msg(format!("{path}: {e}"));
        let values: Vec<f64> = match self {
            Self::Pretrained | Self::Zeros => vec![0.0; count],
            Self::Ones => vec![1.0; count],
            Self::Normal { standard_deviation } => {
                let normal = Normal::new(0.0, standard_deviation).map_err(|e| invalid(&e))?;
                normal.sample_iter(&mut generator).take(count).collect()
            }
            Self::KaimingUniform { inputs } => {
                let bound = 1.0 / (inputs as f64).sqrt();
                let uniform = Uniform::new_inclusive(-bound, bound).map_err(|e| invalid(&e))?;
                uniform.sample_iter(&mut generator).take(count).collect()
            }
        };
        Tensor::from_vec(values, shape, &Device::Cpu)
    }
}

/// A generator of a name's own.
pub(crate) fn generator(name: &str, seed: u64) -> ChaCha8Rng {
    let name_hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3) // FNV-1a
    });
    ChaCha8Rng::seed_from_u64(name_hash ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}
