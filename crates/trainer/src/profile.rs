//! Budgets: the same study, larger or smaller.

use std::str::FromStr;

use glue::{Glue, Split, Task};
use peft::{
    AdaLora, AdapterStyle, Bottleneck, Ia3, InitLoraWeights, LnTuning, Lora, Method, PTuning, Pooling, Precision,
    PrefixTuning, PromptTuning, PromptTuningInit, Targets, Vera,
};

use crate::error::{Error, Result};
use crate::run::{Evaluate, Run, Settings};
use crate::study::SearchSpace;

/// The encoder that runs where nothing else is named: all-MiniLM-L6-v2, 6 layers of width 384.
pub const DEFAULT_MODEL: &str = "all-MiniLM-L6-v2";

/// How much a study may cost. The times are of training, on two processor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Checks that everything runs: at most 3 minutes. Its scores mean nothing.
    Smoke,
    /// A first look: at most 15 minutes.
    Quick,
    /// The report: at most 60 minutes.
    Standard,
    /// All seeds and epochs, meant for a GPU.
    Full,
}

/// The part of a task's training set that a run sees, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Budget {
    train_limit: Option<usize>,
    epochs: usize,
    /// Spread evenly over the run.
    evaluations: usize,
}

impl Profile {
    /// All of them, the smallest first.
    pub const ALL: [Self; 4] = [Self::Smoke, Self::Quick, Self::Standard, Self::Full];

    /// The profile that the variable `LAB_PROFILE` names; `quick` if it is not set.
    ///
    /// # Errors
    /// When it names none.
    pub fn from_environment() -> Result<Self> {
        std::env::var("LAB_PROFILE").map_or(Ok(Self::Quick), |name| name.parse())
    }

    /// `smoke`, `quick`, `standard` or `full`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Quick => "quick",
            Self::Standard => "standard",
            Self::Full => "full",
        }
    }

    /// What it is for.
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Smoke => "checks that everything runs; its scores mean nothing",
            Self::Quick => "a first look: small parts of the training sets",
            Self::Standard => "the report: what two processor cores train in an hour",
            Self::Full => "whole training sets, all seeds and epochs; meant for a GPU",
        }
    }

    /// The two tasks of the study, or the synthetic one where there is no GLUE: SST-2, single sentences, and MRPC, pairs.
    pub fn tasks(self, glue: &Glue) -> Vec<Task> {
        let here = glue.tasks();
        let tasks: Vec<Task> = [Task::Sst2, Task::Mrpc].into_iter().filter(|task| here.contains(task)).collect();
        if tasks.is_empty() { vec![Task::Synthetic] } else { tasks }
    }

    /// The methods that are compared.
    pub fn methods(self) -> [Method; 3] {
        [Method::Full, Method::Lora(lora()), Method::bitfit()]
    }

    /// The seeds of the comparison.
    pub fn seeds(self) -> Vec<u64> {
        (1..=match self {
            Self::Smoke => 2,
            Self::Quick | Self::Standard => 3,
            Self::Full => 5,
        })
            .collect()
    }

    /// The ranks LoRA is tried at.
    pub fn ranks(self) -> Vec<usize> {
        match self {
            Self::Smoke => vec![1, 8, 64],
            _ => vec![1, 2, 4, 8, 16, 32, 64],
        }
    }

    /// A run of the comparison: what a method does on a task with all the training this profile allows.
    pub fn run(self, task: Task, method: &Method) -> Run {
        let of = |train_limit, epochs, evaluations| Budget { train_limit, epochs, evaluations };
        let budget = match (self, task) {
            (Self::Smoke, _) => of(Some(128), 1, 2),
            (Self::Quick, Task::Sst2) => of(Some(3000), 1, 3),
            (Self::Quick, _) => of(Some(2000), 1, 3),
            (Self::Standard, Task::Sst2) => of(Some(20_000), 1, 4),
            (Self::Standard, _) => of(None, 4, 8),
            (Self::Full, Task::Sst2) => of(None, 5, 10),
            (Self::Full, _) => of(None, 20, 20),
        };
        budget.run(task, method)
    }

    /// Where the search for hyper-parameters starts: on the first task, with less training.
    pub fn search_run(self, task: Task, method: &Method) -> Run {
        let (train_limit, epochs) = match self {
            Self::Smoke => (Some(128), 1),
            Self::Quick => (Some(2000), 1),
            Self::Standard => (Some(3000), 1),
            Self::Full => (None, 3),
        };
        Budget { train_limit, epochs, evaluations: 1 }.run(task, method)
    }

    /// What the search tries for a method: rates around those published for it, and for the sum of the others' costs, other
    /// batch sizes and warm-ups at the best rate.
    pub fn search_space(self, method: &Method) -> SearchSpace {
        let rates = match (self, method) {
            (Self::Smoke, Method::Full) => vec![1e-4],
            (Self::Smoke, _) => vec![3e-3],
            (_, Method::Full) => vec![3e-5, 1e-4, 3e-4, 1e-3],
            (_, Method::Lora(_)) => vec![3e-4, 1e-3, 3e-3, 1e-2],
            (_, Method::Bottleneck(_)) => vec![1e-4, 3e-4, 1e-3, 3e-3],
            (_, _) => vec![1e-3, 3e-3, 1e-2, 3e-2],
        };
        SearchSpace { learning_rates: rates, batch_sizes: vec![16, 32], warmup_ratios: vec![0.06, 0.2] }
    }

    /// A run of every method, on a part of the examples of the comparison, since there are many. Each adapts what its paper or PEFT
    /// would; LoRA and its kin have the layers and the rank of [`Profile::methods`].
    pub fn every_method(self, task: Task) -> Vec<Run> {
        let with = |change: fn(&mut Lora)| {
            let mut lora = lora();
            change(&mut lora);
            Method::Lora(lora)
        };
        let start = |start| Method::Lora(Lora { init_lora_weights: start, ..lora() });
        let methods = [
            Method::Full,
            Method::Head,
            Method::bitfit(),
            Method::LnTuning(LnTuning::default()),
            Method::Ia3(Ia3::default()),
            Method::Lora(lora()),
            with(|lora| lora.use_rslora = true),
            with(|lora| lora.use_dora = true),
            start(InitLoraWeights::Gaussian),
            start(InitLoraWeights::Pissa),
            start(InitLoraWeights::Olora),
            start(InitLoraWeights::Eva),
            Method::AdaLora(AdaLora { target_modules: lora().target_modules, ..AdaLora::default() }),
            Method::Vera(Vera { target_modules: lora().target_modules, ..Vera::default() }),
            Method::Bottleneck(Bottleneck::new(AdapterStyle::Houlsby)),
            Method::Bottleneck(Bottleneck::new(AdapterStyle::Pfeiffer)),
            Method::Bottleneck(Bottleneck::new(AdapterStyle::Parallel)),
            Method::PrefixTuning(PrefixTuning::default()),
            // As words, from where it learns more than from random vectors (Lester et al. 2021, section 3.2).
            Method::PromptTuning(PromptTuning {
                prompt_tuning_init: PromptTuningInit::SampleVocab,
                ..PromptTuning::default()
            }),
            Method::PTuning(PTuning::default()),
        ];
        let (train_limit, epochs) = match self {
            Self::Smoke => (Some(64), 1),
            Self::Quick => (Some(4000), 1),
            Self::Standard => (Some(8000), 2),
            Self::Full => (None, 3),
        };
        let budget = Budget { train_limit, epochs, evaluations: 1 };
        let lora_plus =
            budget.run(task, &Method::Lora(lora())).with(|settings| settings.loraplus_lr_ratio = Some(16.0));
        methods.iter().map(|method| budget.run(task, method)).chain([lora_plus]).collect()
    }

    /// What is tried for one of them: three learning rates, about the threefold apart, around its own.
    pub fn rates(self, run: &Run) -> SearchSpace {
        let rate = run.settings.learning_rate;
        let learning_rates = match self {
            Self::Smoke => vec![rate],
            // In decimals, so that a rate is the same number wherever it is written down.
            _ => vec![decimal(0.3 * rate), rate, decimal(3.0 * rate)],
        };
        let Settings { batch_size, warmup_ratio, .. } = run.settings;
        SearchSpace { learning_rates, batch_sizes: vec![batch_size], warmup_ratios: vec![warmup_ratio] }
    }

    /// A run of the rank study: as in the comparison, but for the standard profile on half the examples, since there are seven
    /// ranks.
    pub fn rank_run(self, task: Task) -> Run {
        let run = self.run(task, &Method::Lora(lora()));
        match (self, run.settings.train_limit) {
            (Self::Standard, Some(limit)) => run.with(|settings| settings.train_limit = Some(limit / 2)),
            _ => run,
        }
    }

    /// The seeds of the rank study.
    pub fn rank_seeds(self) -> Vec<u64> {
        match self {
            Self::Smoke | Self::Quick => vec![1],
            Self::Standard => vec![1, 2],
            Self::Full => self.seeds(),
        }
    }
}

/// The nearest number of one decimal digit.
fn decimal(value: f64) -> f64 {
    format!("{value:.0e}").parse().unwrap_or(value)
}

/// LoRA as the study uses it: rank 8 on every linear layer of the encoder.
fn lora() -> Lora {
    Lora::rank(8).on(Targets::suffixes(["query", "key", "value", "dense"]))
}

impl Budget {
    /// With the settings that searches on this encoder favour. The mean of the tokens is what it was pretrained to give, and
    /// serves single sentences; pairs do better on BERT's pooler.
    fn run(self, task: Task, method: &Method) -> Run {
        let learning_rate = match method {
            Method::Full => 1e-4,
            Method::Lora(_) | Method::Bottleneck(_) => 1e-3,
            Method::BitFit(_) | Method::Ia3(_) | Method::LnTuning(_) | Method::Head => 3e-3,
            // What they train first, a vector or singular values, starts at zero between matrices of small numbers.
            Method::AdaLora(_) | Method::Vera(_) => 1e-2,
            Method::PrefixTuning(PrefixTuning { prefix_projection: true, .. }) => 1e-3,
            Method::PrefixTuning(_) | Method::PromptTuning(_) | Method::PTuning(_) => 1e-2,
        };
        let batch_size = 16;
        let examples = self.train_limit.or(task.official_rows(Split::Train)).unwrap_or(batch_size);
        let steps = self.epochs * examples.div_ceil(batch_size);
        let settings = Settings {
            learning_rate,
            epochs: self.epochs,
            batch_size,
            evaluate: Evaluate::Steps(steps.div_ceil(self.evaluations)),
            precision: Precision::fastest(),
            pooling: if task.has_pairs() { Pooling::Cls } else { Pooling::Mean },
            train_limit: self.train_limit,
            ..Settings::default()
        };
        Run { settings, ..Run::new(task, DEFAULT_MODEL, method.clone()) }
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name).ok_or_else(|| Error::Setting {
            name: "LAB_PROFILE",
            found: format!("{name:?}"),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_profile_is_an_error_that_lists_the_known_ones() {
        let error = "fast".parse::<Profile>().unwrap_err().to_string();
        assert!(error.contains("fast") && error.contains("smoke, quick, standard, full"), "{error}");
    }

    #[test]
    fn every_method_is_there_once_and_tries_three_rates() {
        let runs = Profile::Quick.every_method(Task::Sst2);
        for (index, run) in runs.iter().enumerate() {
            assert!(runs[..index].iter().all(|other| !other.has_method_of(run)), "{} twice", run.method_name());
        }
        let lora = runs.iter().find(|run| run.method == Method::Lora(lora())).unwrap();
        assert_eq!(Profile::Quick.rates(lora).learning_rates, [3e-4, 1e-3, 3e-3]);
    }

    #[test]
    fn without_glue_there_is_the_synthetic_task() {
        assert_eq!(Profile::Quick.tasks(&Glue::synthetic("test")), [Task::Synthetic]);
    }
}
