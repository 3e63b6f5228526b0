//! The optimizer: AdamW over a model's trained parameters, each with its learning rate and weight decay; and AdaLoRA's rank allocation
//! after each step.

use candle_core::{Tensor, Var};
use ops::{AdamWSettings, AdamWSlot, Gradients, ParameterMoments};
use peft::{AfterStep, Model};

use crate::error::{Error, Result};
use crate::run::Settings;
use crate::training::step::Update;

/// A trained parameter with its state and the group it belongs to.
pub(crate) struct Slot {
    pub name: String,
    pub variable: Var,
    pub moments: ParameterMoments,
    learning_rate: f64,
    weight_decay: f64,
}

impl Slot {
    /// Its parameter's gradient.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn gradient<'a>(&self, found: &'a Gradients) -> Result<&'a Tensor> {
        found.get(&self.variable).ok_or_else(|| Error::CutGradient { name: self.name.clone() })
    }
}

/// AdamW with weight decay on matrices only, and a learning rate of its own for the classifier, or by LoRA+ for B and vectors.
pub(crate) struct Optimizer {
    pub slots: Vec<Slot>,
    /// What the method does after a step.
    pub after_step: Option<Box<dyn AfterStep>>,
    max_grad_norm: Option<f64>,
}

impl Optimizer {
    /// # Errors
    /// When AdaLoRA does not say over how many steps its schedule runs.
    pub(crate) fn new(model: &Model, settings: &Settings) -> Result<Self> {
        let slots = model
            .parameters()
            .trainable()
            .map(|(name, variable)| {
                let factor = loraplus_factor(name, variable.rank(), settings.loraplus_lr_ratio);
                Ok(Slot {
                    name: name.into(),
                    variable: variable.clone(),
                    moments: ParameterMoments::zeros(variable)?,
                    learning_rate: match settings.head_learning_rate {
                        Some(rate) if peft::is_head(name) => rate,
                        _ => settings.learning_rate * factor,
                    },
                    // Biases and layer norms are vectors.
                    weight_decay: if variable.rank() > 1 { settings.weight_decay } else { 0.0 },
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { slots, after_step: model.after_step()?, max_grad_norm: settings.max_grad_norm })
    }

    /// Updates the parameters; not if the loss is not finite. A step is taken whole, whoever has asked the run to stop.
    ///
    /// # Errors
    /// When a parameter has no gradient.
    pub(crate) fn step(&mut self, found: &Gradients, loss: &Tensor, update: Update) -> Result<()> {
        let Update { index: step, factor } = update;
        let gradients = self.slots.iter().map(|slot| slot.gradient(found)).collect::<Result<Vec<_>>>()?;
        let mut slots = Vec::with_capacity(gradients.len());
        for (Slot { variable: parameter, moments, learning_rate, weight_decay, .. }, gradient) in
            self.slots.iter_mut().zip(gradients)
        {
            let (learning_rate, weight_decay) = (*learning_rate * factor, *weight_decay);
            slots.push(AdamWSlot { parameter, gradient, moments, learning_rate, weight_decay });
        }
        let settings =
            AdamWSettings { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, max_norm: self.max_grad_norm, step: step + 1 };
        ops::uninterrupted(|| {
            let clipped = ops::adamw(&mut slots, loss, settings)?;
            if let Some(after_step) = &mut self.after_step {
                after_step.after_step(step, &|variable| found.get(variable).cloned(), clipped.value()?)?;
            }
            Ok(())
        })
    }
}

/// How much faster than LoRA's A a parameter learns (PEFT `optimizers/loraplus.py`, `create_loraplus_optimizer`: groups A and B).
fn loraplus_factor(name: &str, rank: usize, ratio: Option<f64>) -> f64 {
    match ratio {
        Some(ratio) if name.contains("lora_B") || rank == 1 => ratio,
        _ => 1.0,
    }
}
