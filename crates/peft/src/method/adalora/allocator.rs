//! The budget of ranks, and who gets it.

use candle_core::{DType, Device, Tensor, Var};

use super::{AdaLora, NAMES};
use crate::error::{Error, Result};
use crate::method::Method;
use crate::model::Model;

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
    fn of(model: &Model, name: &str) -> Option<Self> {
        let variable = model.parameters().get(name)?.clone();
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
    fn of(model: &Model, module: &str) -> Option<Self> {
        let part = |name: &str| Importance::of(model, &format!("{module}.{name}"));
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
    /// That of a model; `None` if its method is not AdaLoRA, or its budget was spent before: its method has a `rank_pattern`.
    ///
    /// # Errors
    /// When the method does not say how many steps there are.
    pub fn new(model: &Model) -> Result<Option<Self>> {
        let Method::AdaLora(adalora) = model.method() else { return Ok(None) };
        if !adalora.rank_pattern.is_empty() {
            return Ok(None);
        }
        let total_step = adalora.total_step.ok_or(Error::Adapter {
            method: "AdaLoRA",
            field: "total_step",
            found: "not given".into(),
            expected: "the number of training steps",
        })?;
        let values = model.parameters().trainable().filter_map(|(name, _)| name.strip_suffix(NAMES.e));
        let branches = values.filter_map(|path| Branch::of(model, path.trim_end_matches('.'))).collect();
        Ok(Some(Self { adalora: adalora.clone(), total_step, branches }))
    }

    fn first_budget(&self) -> usize {
        self.branches.iter().map(Branch::r).sum()
    }

    /// How many values are to be left after a step, counted from 0, and whether they are masked then (equation 12; PEFT's
    /// `budget_schedule`).
    pub fn budget(&self, step: usize) -> (usize, bool) {
        let AdaLora { tinit, tfinal, delta_t, target_r, .. } = self.adalora;
        let (first, last) = (self.first_budget(), target_r * self.branches.len());
        let decided = self.total_step.saturating_sub(tfinal);
        if step <= tinit {
            (first, false)
        } else if step > decided {
            (last, true)
        } else {
            let left = 1.0 - (step - tinit) as f64 / (decided - tinit) as f64;
            let budget = ((first - last) as f64 * left.powi(3) + last as f64) as usize;
            (budget, step.is_multiple_of(delta_t) || step == decided)
        }
    }

    /// To be called after the optimiser's step, counted from 0: measures the importance from the gradients of the step, each times
    /// `gradient_scale`, which is below 1 when gradients are clipped, and masks values where the schedule says so.
    ///
    /// # Errors
    /// When a parameter has no gradient.
    pub fn update_and_allocate<'g>(
        &mut self,
        step: usize,
        gradient: impl Fn(&Var) -> Option<&'g Tensor>,
        gradient_scale: f64,
    ) -> Result<()> {
        let decided = self.total_step.saturating_sub(self.adalora.tfinal);
        if step < decided {
            let (beta1, beta2) = (self.adalora.beta1 as f32, self.adalora.beta2 as f32);
            let parts: Vec<_> =
                self.branches.iter_mut().flat_map(|branch| [&mut branch.a, &mut branch.b, &mut branch.e]).collect();
            let missing =
                || Error::from(candle_core::Error::Msg("adalora: a parameter of a branch has no gradient".into()));
            let gradients: Vec<&Tensor> =
                parts.iter().map(|part| gradient(&part.variable).ok_or_else(missing)).collect::<Result<_>>()?;
            let gradients = numbers(gradients.into_iter())?;
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

    /// What it remembers from step to step, by name: to be kept with a run that is to go on from here.
    pub fn state(&mut self) -> impl Iterator<Item = (String, &mut Vec<f32>)> {
        self.branches.iter_mut().flat_map(|branch| {
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
        })
    }
}

impl Model {
    /// What a method adds to the loss of a training step, as a scalar: AdaLoRA's `orth_reg_weight` times the mean over its matrices
    /// of how far they are from having orthonormal rows (A) or columns (B), `‖A Aᵀ - I‖` and `‖Bᵀ B - I‖` (Zhang et al. 2023,
    /// equation 4; PEFT `tuners/adalora/model.py`, `forward`). `None` for other methods.
    ///
    /// # Errors
    /// When the tensor library fails.
    pub fn regularization(&self) -> Result<Option<Tensor>> {
        let Method::AdaLora(adalora) = self.method() else { return Ok(None) };
        let of = |name: &str| match name.rsplit('.').next() {
            Some(last) if last == NAMES.a => Some(ops::Orthonormal::Rows),
            Some(last) if last == NAMES.b => Some(ops::Orthonormal::Columns),
            _ => None,
        };
        let matrices: Vec<_> =
            self.parameters().trainable().filter_map(|(name, variable)| Some((variable, of(name)?))).collect();
        // Branches that have nothing left count in PEFT's mean.
        let spent = adalora.rank_pattern.values().filter(|left| !left.contains(&true)).count();
        let scale = adalora.orth_reg_weight / (matrices.len() + 2 * spent) as f64;
        let mut sum: Option<Tensor> = None;
        for (matrix, of) in matrices {
            let term = ops::orthogonality(matrix, of, scale)?;
            sum = Some(match sum {
                Some(sum) => ops::add_dropout(&sum, &term, None)?,
                None => term,
            });
        }
        Ok(sum)
    }
}
