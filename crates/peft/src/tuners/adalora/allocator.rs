//! AdaLoRA's rank allocator: how important each singular value is, and which are masked to zero.

use candle_core::{DType, Device, Tensor, Var};

use super::adapter::NAMES;
use super::config::AdaLora;
use crate::error::{Error, Result};
use crate::parameters::Parameters;
use crate::tuners::config::AfterStep;

/// Divides AdaLoRA's budget of ranks among the branches as training goes on (Zhang et al. 2023, section 3.2 and algorithm 1; PEFT's
/// `RankAllocator`, `tuners/adalora/layer.py`): after each step it measures how important each singular value and its vectors are
/// and sets the least important values to zero. They go on being trained, and may come back.
pub struct RankAllocator {
    adalora: AdaLora,
    total_step: usize,
    branches: Vec<Branch>,
}

/// A branch's parameters with their importance, and which of its values were left when values were last masked.
struct Branch {
    a: Importance, // (r, in)
    b: Importance, // (out, r)
    e: Importance, // (r, 1)
    module: String,
    kept: Vec<f32>, // 1 or 0
}

/// The running means of a parameter, number by number.
struct Importance {
    variable: Var,
    /// Of the sensitivity, `|p dL/dp|` (equation 8, smoothed by equation 9).
    sensitivity: Vec<f32>,
    /// Of its distance from that mean (equation 10).
    uncertainty: Vec<f32>,
}

impl Importance {
    fn of(parameters: &Parameters, name: &str) -> Option<Self> {
        let variable = parameters.get(name)?.clone();
        let zeros = vec![0.0; variable.elem_count()];
        Some(Self { variable, sensitivity: zeros.clone(), uncertainty: zeros })
    }

    fn update(&mut self, values: &[f32], gradient: &[f32], scale: f64, beta1: f32, beta2: f32) {
        let means = self.sensitivity.iter_mut().zip(&mut self.uncertainty);
        for ((value, gradient), (sensitivity, uncertainty)) in values.iter().zip(gradient).zip(means) {
            let now = (value * (gradient * scale as f32)).abs();
            *sensitivity = beta1 * *sensitivity + (1.0 - beta1) * now;
            *uncertainty = beta2 * *uncertainty + (1.0 - beta2) * (now - *sensitivity).abs();
        }
    }

    /// `sensitivity * uncertainty` (equation 11), number by number.
    fn scores(&self) -> impl Iterator<Item = f64> {
        self.sensitivity
            .iter()
            .zip(&self.uncertainty)
            .map(|(&sensitivity, &uncertainty)| f64::from(sensitivity * uncertainty))
    }
}

/// The numbers of all tensors, one after the other. A GPU is waited for once, not for each.
fn numbers<'t>(tensors: impl Iterator<Item = &'t Tensor>) -> Result<Vec<f32>> {
    let flat = tensors.map(|tensor| tensor.to_dtype(DType::F32)?.flatten_all());
    Ok(Tensor::cat(&flat.collect::<candle_core::Result<Vec<_>>>()?, 0)?.to_vec1()?)
}

impl Branch {
    fn of(parameters: &Parameters, module: &str) -> Option<Self> {
        let part = |name: &str| Importance::of(parameters, &format!("{module}.{name}"));
        let (a, b, e) = (part(NAMES.a)?, part(NAMES.b)?, part(NAMES.e)?);
        Some(Self { kept: vec![1.0; e.sensitivity.len()], a, b, e, module: module.into() })
    }

    fn r(&self) -> usize {
        self.kept.len()
    }

    /// The score of each value with its vectors: its own, and the means over its row of A and its column of B (equation 7).
    fn scores(&self) -> Vec<f64> {
        let (r, columns, rows) = (self.r(), self.a.sensitivity.len() / self.r(), self.b.sensitivity.len() / self.r());
        let mut scores: Vec<f64> = self.e.scores().collect();
        for (index, score) in self.a.scores().enumerate() {
            scores[index / columns] += score / columns as f64;
        }
        for (index, score) in self.b.scores().enumerate() {
            scores[index % r] += score / rows as f64;
        }
        scores
    }

    /// Sets the values that are not kept to zero.
    fn mask(&self) -> Result<()> {
        let e = &self.e.variable;
        let mask = Tensor::from_slice(&self.kept, e.shape(), &Device::Cpu)?;
        let mask = mask.to_dtype(e.dtype())?.to_device(e.device())?;
        Ok(e.set(&(e.as_tensor() * mask)?)?)
    }
}

impl RankAllocator {
    /// That of a model's parameters; `None` if the budget was spent before: there is a `rank_pattern`.
    ///
    /// # Errors
    /// When the options do not say how many steps there are.
    pub fn new(adalora: &AdaLora, parameters: &Parameters) -> Result<Option<Self>> {
        if !adalora.rank_pattern.is_empty() {
            return Ok(None);
        }
        let total_step = adalora.total_step.ok_or(Error::Adapter {
            method: "AdaLoRA",
            field: "total_step",
            found: "not given".into(),
            expected: "the number of training steps",
        })?;
        let values = parameters.trainable().filter_map(|(name, _)| name.strip_suffix(NAMES.e));
        let branches = values.filter_map(|path| Branch::of(parameters, path.trim_end_matches('.'))).collect();
        Ok(Some(Self { adalora: adalora.clone(), total_step, branches }))
    }

    fn first_budget(&self) -> usize {
        self.branches.iter().map(Branch::r).sum()
    }

    /// How many values are to be left after a step, counted from 0, and whether they are masked then (equation 12; PEFT's
    /// `budget_schedule`).
    pub fn budget(&self, step: usize) -> (usize, bool) {
        let AdaLora { tinit, tfinal, delta_t, target_r, .. } = self.adalora;
        let (first, last) = (self.first_budget(), target_r.saturating_mul(self.branches.len()));
        let decided = self.total_step.saturating_sub(tfinal);
        if step <= tinit {
            (first, false)
        } else if step > decided {
            (last, true)
        } else {
            let left = 1.0 - (step - tinit) as f64 / (decided - tinit) as f64;
            let budget = (first.saturating_sub(last) as f64 * left.powi(3) + last as f64) as usize;
            (budget, step.is_multiple_of(delta_t) || step == decided)
        }
    }

    /// Keeps the values above the highest score of those that are beyond the budget (PEFT's `mask_to_budget`).
    fn choose(&mut self, budget: usize) {
        let scores: Vec<Vec<f64>> = self.branches.iter().map(Branch::scores).collect();
        let mut all = scores.concat();
        all.sort_by(f64::total_cmp);
        let beyond = all.len().saturating_sub(budget);
        let threshold = if beyond == 0 { f64::NEG_INFINITY } else { all[beyond - 1] };
        for (branch, scores) in self.branches.iter_mut().zip(scores) {
            branch.kept = scores.into_iter().map(|score| if score > threshold { 1.0 } else { 0.0 }).collect();
        }
    }
}

impl AfterStep for RankAllocator {
    /// Measures the importance from the gradients of the step, and masks values where the schedule says so.
    fn after_step(
        &mut self,
        step: usize,
        gradient: &dyn Fn(&Var) -> Option<Tensor>,
        gradient_scale: f64,
    ) -> Result<()> {
        let decided = self.total_step.saturating_sub(self.adalora.tfinal);
        if step < decided {
            let (beta1, beta2) = (self.adalora.beta1 as f32, self.adalora.beta2 as f32);
            let parts: Vec<_> =
                self.branches.iter_mut().flat_map(|branch| [&mut branch.a, &mut branch.b, &mut branch.e]).collect();
            let missing =
                || Error::from(candle_core::Error::Msg("adalora: a parameter of a branch has no gradient".into()));
            let gradients: Vec<Tensor> =
                parts.iter().map(|part| gradient(&part.variable).ok_or_else(missing)).collect::<Result<_>>()?;
            let gradients = numbers(gradients.iter())?;
            let values = numbers(parts.iter().map(|part| part.variable.as_tensor()))?;
            let mut begin = 0;
            for part in parts {
                let own = begin..begin + part.sensitivity.len();
                begin = own.end;
                part.update(&values[own.clone()], &gradients[own], gradient_scale, beta1, beta2);
            }
        }
        let (budget, masks) = self.budget(step);
        if !masks {
            return Ok(());
        }
        if step <= decided {
            self.choose(budget);
        }
        self.branches.iter().try_for_each(Branch::mask)
    }

    fn state(&mut self) -> Vec<(String, &mut Vec<f32>)> {
        let parts = self.branches.iter_mut().flat_map(|branch| {
            let Branch { a, b, e, module, kept } = branch;
            let means = [(NAMES.a, a), (NAMES.b, b), (NAMES.e, e)].into_iter().flat_map({
                let module = module.clone();
                move |(name, part)| {
                    [
                        (format!("sensitivity/{module}.{name}"), &mut part.sensitivity),
                        (format!("uncertainty/{module}.{name}"), &mut part.uncertainty),
                    ]
                }
            });
            means.chain([(format!("kept/{module}.{}", NAMES.e), kept)])
        });
        parts.collect()
    }
}
