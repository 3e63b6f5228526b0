//! A run as a value that determines its result: task, model, method, settings (hyper-parameters) and seed.

use std::fmt;
use std::path::{Path, PathBuf};

use glue::Task;
use peft::{Method, Pooling, Precision};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::numbers::hexadecimal;
use crate::provenance;

/// A small encoder: all-MiniLM-L6-v2, 6 layers of width 384. What runs where nothing else is named.
pub const DEFAULT_MODEL: &str = "all-MiniLM-L6-v2";

/// A fine-tuning run. Equal runs give equal results, bit for bit, on one machine with one number of threads
/// and of GPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The GLUE task.
    pub task: Task,
    /// The pretrained model: a folder, a folder below `models/`, or a hub id.
    pub model: String,
    /// What is trained.
    pub method: Method,
    /// How it is trained.
    pub settings: Settings,
    /// Of the new parameters, the order of the examples, and dropout.
    pub seed: u64,
    /// What it starts from besides the pretrained model; `None`: from nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_from: Option<StartsFrom>,
}

/// What was trained before, from which a run goes on with a task of its own: its values, and a new output layer unless the labels of
/// both tasks are the same. The method and the layers must be the run's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartsFrom {
    /// Another run, as it was at its best evaluation. It is made first if it has no record or its weights were not kept.
    Run(Box<Run>),
    /// An adapter in a folder.
    Adapter(SavedAdapter),
}

/// An adapter in a folder, known by its content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedAdapter {
    /// Where it lies.
    pub folder: PathBuf,
    /// The SHA-256 digest of its `adapter_config.json` and then its `adapter_model.safetensors`, in hexadecimal digits.
    pub sha256: String,
    /// The run that made it, if its folder tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Box<Run>>,
}

impl StartsFrom {
    /// The adapter in `folder`, as it is now.
    ///
    /// # Errors
    /// When a file of it is missing or cannot be read.
    pub fn adapter(folder: &Path) -> Result<Self> {
        let sha256 = SavedAdapter::digest(folder)?;
        Ok(Self::Adapter(SavedAdapter { folder: folder.into(), sha256, run: provenance::read(folder)?.map(Box::new) }))
    }

    /// The run that made what it is, if that is known.
    pub fn run(&self) -> Option<&Run> {
        match self {
            Self::Run(run) => Some(run),
            Self::Adapter(adapter) => adapter.run.as_deref(),
        }
    }

    /// Whether it was trained on these labels, so that its output layer is kept.
    pub(crate) fn has_labels_of(&self, task: Task) -> bool {
        self.run().is_some_and(|run| run.task.labels() == task.labels())
    }
}

impl fmt::Display for StartsFrom {
    /// Such as `MNLI, LoRA r=8, seed 1`; an adapter by its folder, where no run is known.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match (self, self.run()) {
            (_, Some(run)) => f.write_str(&run.name()),
            (Self::Adapter(adapter), None) => write!(f, "the adapter {}", adapter.folder.display()),
            (Self::Run(_), None) => Ok(()), // A run is always known.
        }
    }
}

impl SavedAdapter {
    fn digest(folder: &Path) -> Result<String> {
        let mut digest = Sha256::new();
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            let path = folder.join(name);
            digest.update(std::fs::read(&path).map_err(|source| Error::File { path, source })?);
        }
        Ok(hexadecimal(digest.finalize()))
    }

    /// Fails if the folder holds another adapter by now.
    pub(crate) fn check(&self) -> Result<()> {
        let found = Self::digest(&self.folder)?;
        if found == self.sha256 {
            return Ok(());
        }
        let (path, found) = (self.folder.clone(), format!("one with the digest {found}"));
        Err(Error::AdapterChanged { path, expected: self.sha256.clone(), found })
    }
}

impl Run {
    /// A run with the default settings and seed 1.
    pub fn new(task: Task, model: &str, method: Method) -> Self {
        Self { task, model: model.into(), method, settings: Settings::default(), seed: 1, starts_from: None }
    }

    /// With another seed.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// That goes on from what was trained before.
    pub fn starting_from(mut self, start: StartsFrom) -> Self {
        self.starts_from = Some(start);
        self
    }

    /// With other settings.
    pub fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// The method's name. LoRA+ is a setting, since it changes how LoRA is trained and not what it is.
    pub fn method_name(&self) -> String {
        match self.settings.loraplus_lr_ratio {
            Some(ratio) => format!("{}, LoRA+ {ratio}", self.method),
            None => self.method.to_string(),
        }
    }

    /// Task, method and seed, such as `MNLI, LoRA r=8, seed 1`.
    pub fn name(&self) -> String {
        format!("{}, {}, seed {}", self.task, self.method_name(), self.seed)
    }

    /// The run in one line: task, method, and the settings that are usually varied.
    pub(crate) fn description(&self) -> String {
        let Self { task, method, settings, seed, .. } = self;
        format!(
            "{task}, {method}, learning rate {}, batch size {}, warm-up {} %, {} epochs, seed {seed}",
            settings.learning_rate,
            settings.batch_size,
            settings.warmup_ratio * 100.0,
            settings.epochs,
        )
    }

    /// Whether the methods have one name and one configuration.
    pub fn has_method_of(&self, other: &Self) -> bool {
        self.method == other.method && self.settings.loraplus_lr_ratio == other.settings.loraplus_lr_ratio
    }

    /// Fails if its settings make no sense, by themselves or with its method. It reads nothing.
    ///
    /// # Errors
    /// The message names the setting.
    pub fn check(&self) -> Result<()> {
        self.settings.check()?;
        match (self.settings.loraplus_lr_ratio, &self.method) {
            (None, _) | (_, Method::Lora(_) | Method::AdaLora(_)) => Ok(()),
            (Some(ratio), method) => Err(Error::Setting {
                name: "loraplus_lr_ratio",
                found: format!("{ratio} with {method}"),
                expected: "LoRA or AdaLoRA, whose B has that learning rate".into(),
            }),
        }
    }

    /// A name for the run's folder: task, method, and a hash of everything else.
    pub fn key(&self) -> String {
        // Serializing a plain value of numbers and strings does not fail; if it did, the debug form is as unique.
        let text = serde_json::to_string(self).unwrap_or_else(|_| format!("{self:?}"));
        let hash = hexadecimal(&Sha256::digest(text)[..6]);
        format!("{}-{}-{hash}", self.task.id(), self.method.id())
    }
}

/// When a model is evaluated while it trains. It always is after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evaluate {
    /// After each epoch.
    Epoch,
    /// After every so many steps.
    Steps(usize),
}

/// How a model is trained. AdamW with betas 0.9 and 0.999 and epsilon 1e-8; the rate rises linearly from 0, then falls
/// linearly to 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The highest learning rate.
    pub learning_rate: f64,
    /// The classifier's, if it has one of its own.
    pub head_learning_rate: Option<f64>,
    /// LoRA+ (Hayou et al. 2024, equation 3): the learning rate of LoRA's B, and of every vector, such as a bias, is this
    /// multiple of the others'; PEFT's `loraplus_lr_ratio` (`optimizers/loraplus.py`). `None` or 1: one rate for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loraplus_lr_ratio: Option<f64>,
    /// Passes over the training set.
    pub epochs: usize,
    /// Sequences per step.
    pub batch_size: usize,
    /// The share of all steps over which the learning rate rises.
    pub warmup_ratio: f64,
    /// Decoupled weight decay, on matrices only: biases and layer norms have none.
    pub weight_decay: f64,
    /// The gradient's global norm is clipped to this; `None`: not clipped.
    pub max_grad_norm: Option<f64>,
    /// Every dropout probability; `None`: as the checkpoint's configuration says.
    pub dropout: Option<f64>,
    /// Of the encoder's products: `f32`, or `bf16` with sums, parameters and all else in f32; or on a GPU `tf32`, of all linear layers.
    pub precision: Precision,
    /// Tokens of a sequence, special ones among them; longer ones are cut, the longer sentence first.
    pub max_length: usize,
    /// From hidden states to the classifier's input.
    pub pooling: Pooling,
    /// Train the pooler whole, whatever the method.
    pub train_pooler: bool,
    /// Batches of like lengths, drawn as transformers' `group_by_length`. Batches are packed, so there is no padding to
    /// save: off by default, since a batch drawn at random is the better sample.
    pub group_by_length: bool,
    /// Train on this many examples only: the same ones for every seed.
    pub train_limit: Option<usize>,
    /// Train on the rows of `train_extra.tsv` too, further examples that are not GLUE's; QQP may have such a file.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub train_extra: bool,
    /// Validate on a tenth of the training set, which is then not trained on, in the place of GLUE's validation set: what is chosen by
    /// such scores, as by a search, is not chosen by the score that is reported of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub held_out: bool,
    /// When to evaluate.
    pub evaluate: Evaluate,
    /// Stop after this many evaluations without a better score; `None`: never.
    pub patience: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            learning_rate: 1e-3,
            head_learning_rate: None,
            loraplus_lr_ratio: None,
            epochs: 3,
            batch_size: 32,
            warmup_ratio: 0.06,
            weight_decay: 0.01,
            max_grad_norm: Some(1.0),
            dropout: None,
            precision: Precision::F32,
            max_length: 128,
            pooling: Pooling::Cls,
            train_pooler: false,
            group_by_length: false,
            train_limit: None,
            train_extra: false,
            held_out: false,
            evaluate: Evaluate::Epoch,
            patience: None,
        }
    }
}

impl Settings {
    /// The steps of the longest run: each leaves a loss in memory and in the record, and at a thousand a second they take a day.
    pub const MOST_STEPS: usize = 100_000_000;

    /// The steps of a run with these settings on so many examples.
    ///
    /// # Errors
    /// When they are more than [`Settings::MOST_STEPS`]; the message names the epochs.
    pub fn steps(&self, examples: usize) -> Result<usize> {
        let per_epoch = self.steps_per_epoch(examples);
        let steps = self.epochs.checked_mul(per_epoch).filter(|steps| *steps <= Self::MOST_STEPS);
        steps.ok_or_else(|| {
            let (most, most_epochs) = (Self::MOST_STEPS, Self::MOST_STEPS / per_epoch.max(1));
            let expected = format!("at most {most_epochs}: each has {per_epoch} steps, and a run at most {most}");
            Error::Setting { name: "epochs", found: self.epochs.to_string(), expected }
        })
    }

    /// The steps of an epoch on so many examples.
    pub(crate) fn steps_per_epoch(&self, examples: usize) -> usize {
        examples.div_ceil(self.batch_size.max(1))
    }

    /// Fails if no run can have these settings. It reads nothing.
    ///
    /// # Errors
    /// When one is outside its range; the message names it.
    pub fn check(&self) -> Result<()> {
        let wrong =
            |name, found: String, expected: &str| Err(Error::Setting { name, found, expected: expected.into() });
        let positive = |value: f64| value.is_finite() && value > 0.0;
        match self {
            s if !positive(s.learning_rate) => wrong("learning_rate", s.learning_rate.to_string(), "a number above 0"),
            Settings { head_learning_rate: Some(rate), .. } if !positive(*rate) => {
                wrong("head_learning_rate", rate.to_string(), "a number above 0")
            }
            Settings { loraplus_lr_ratio: Some(ratio), .. } if !positive(*ratio) => {
                wrong("loraplus_lr_ratio", ratio.to_string(), "a number above 0")
            }
            Settings { epochs: 0, .. } => wrong("epochs", "0".into(), "at least 1"),
            Settings { batch_size: 0, .. } => wrong("batch_size", "0".into(), "at least 1"),
            s if !(0.0..=1.0).contains(&s.warmup_ratio) => wrong("warmup_ratio", s.warmup_ratio.to_string(), "0 to 1"),
            s if !(0.0..=1.0).contains(&s.weight_decay) => wrong("weight_decay", s.weight_decay.to_string(), "0 to 1"),
            Settings { max_grad_norm: Some(norm), .. } if !positive(*norm) => {
                wrong("max_grad_norm", norm.to_string(), "a number above 0")
            }
            Settings { dropout: Some(p), .. } if !(0.0..1.0).contains(p) => {
                wrong("dropout", p.to_string(), "at least 0 and below 1")
            }
            Settings { evaluate: Evaluate::Steps(0), .. } => {
                wrong("evaluate", "every 0 steps".into(), "at least every 1")
            }
            Settings { train_limit: Some(0), .. } => wrong("train_limit", "0".into(), "at least 1"),
            Settings { patience: Some(0), .. } => wrong("patience", "0".into(), "at least 1"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_differ_in_anything_have_different_keys() {
        let run = Run::new(Task::Mrpc, "m", Method::lora(8));
        let others = [
            run.clone().seed(2),
            run.clone().with(|s| s.learning_rate = 2e-3),
            Run { method: Method::lora(4), ..run.clone() },
            Run { task: Task::Rte, ..run.clone() },
        ];
        assert!(others.iter().all(|other| other.key() != run.key()));
        assert_eq!(run.key(), run.clone().key());
    }

    #[test]
    fn a_run_reads_back_from_its_json_and_missing_settings_take_their_defaults() {
        let run = Run::new(Task::Mrpc, "m", Method::bitfit()).with(|s| s.evaluate = Evaluate::Steps(10));
        let json = serde_json::to_string(&run).unwrap();
        assert_eq!(serde_json::from_str::<Run>(&json).unwrap(), run);
        let short = r#"{"task":"mrpc","model":"m","method":{"name":"full"},"settings":{"epochs":1},"seed":1}"#;
        assert_eq!(serde_json::from_str::<Run>(short).unwrap().settings.batch_size, 32);
    }

    #[test]
    fn a_ratio_of_learning_rates_is_of_lora_alone() {
        let run = |method| Run::new(Task::Rte, "m", method).with(|s| s.loraplus_lr_ratio = Some(16.0));
        assert!(run(Method::lora(8)).check().is_ok());
        let error = run(Method::bitfit()).check().unwrap_err().to_string();
        assert!(error.contains("loraplus_lr_ratio") && error.contains("BitFit"), "{error}");
    }

    #[test]
    fn epochs_that_make_more_steps_than_a_run_can_have_are_refused_by_name() {
        let settings = |epochs, batch_size| Settings { epochs, batch_size, ..Settings::default() };
        assert_eq!(settings(3, 32).steps(65).unwrap(), 9);
        assert_eq!(settings(3, usize::MAX).steps(65).unwrap(), 3);
        for epochs in [1 << 63, 50_000_001, usize::MAX] {
            let error = settings(epochs, 32).steps(64).unwrap_err().to_string();
            assert!(error.contains(&format!("epochs is {epochs}")) && error.contains("50000000"), "{error}");
        }
    }

    #[test]
    fn a_learning_rate_of_zero_is_refused_by_name() {
        let error = Settings { learning_rate: 0.0, ..Settings::default() }.check().unwrap_err().to_string();
        assert!(error.contains("learning_rate") && error.contains("above 0"), "{error}");
    }
}
