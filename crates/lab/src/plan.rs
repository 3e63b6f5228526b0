//! The plan of a study: its tasks and runs, as many as a profile and this processor's speed allow.

use std::collections::BTreeSet;
use std::path::Path;

use glue::variables::variable;
use glue::{Glue, Split, Task, project_root};
use peft::{
    AdaLora, AdapterStyle, Bottleneck, Ia3, InitLoraWeights, LnTuning, Lora, Method, PTuning, Pooling, Precision,
    PrefixTuning, PromptTuning, PromptTuningInit, Targets, Vera,
};
use trainer::study::{SearchSpace, best_run};
use trainer::{DEFAULT_MODEL, Evaluate, Recipe, Record, Result, Run, Settings, Speed, Trainer, results};

use crate::profile::{Profile, REPORT};
use crate::table::Table;

/// The encoder of the study and of the recipes: all-mpnet-base-v2, 12 layers of width 768.
const STUDY_MODEL: &str = "all-mpnet-base-v2";

/// With so many examples of either task both parameter-efficient methods reach its baseline: with 2500 of MRPC BitFit just does.
const LEAST_EXAMPLES: usize = 3000;

// Seconds of training and evaluation that each part of the profile `quick` may take.
const COMPARISON_SECONDS: f64 = 600.0;
const SEARCH_SECONDS: f64 = 150.0;
const RANKS_SECONDS: f64 = 150.0;

/// The part of a task's training set that a run sees, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Budget {
    train_limit: Option<usize>,
    epochs: usize,
    /// Spread evenly over the run.
    evaluations: usize,
}

/// The runs of a study.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How much it may cost.
    pub profile: Profile,
    /// The encoder.
    pub model: String,
    /// The tasks: SST-2, single sentences, and MRPC, pairs; the synthetic one where there is no GLUE.
    pub tasks: Vec<Task>,
    /// Of the comparison.
    pub seeds: Vec<u64>,
    /// Whether the encoder has the size of BERT-base: smaller ones want higher learning rates.
    is_base: bool,
    comparison: Budget,
    search: Budget,
    ranks: Budget,
}

impl Plan {
    /// The study of a profile. Where that is a budget of time, this processor's speed is measured first, once: it is kept beside
    /// the records, and says how many examples the time allows.
    ///
    /// The encoder is all-mpnet-base-v2, for a smoke test all-MiniLM-L6-v2, or what the variable `LAB_MODEL` names.
    ///
    /// # Errors
    /// When the model or data are missing or broken.
    pub(crate) fn new(profile: Profile, trainer: &mut Trainer) -> Result<Self> {
        let usual = if profile == Profile::Smoke { DEFAULT_MODEL } else { STUDY_MODEL };
        let model = named_model().unwrap_or_else(|| usual.into());
        let is_base = is_base(trainer, &model)?;
        let of = |train_limit, epochs, evaluations| Budget { train_limit, epochs, evaluations };
        let (comparison, search, ranks) = match profile {
            Profile::Smoke => (of(Some(128), 1, 2), of(Some(128), 1, 1), of(Some(128), 1, 2)),
            Profile::Full => (of(None, 5, 10), of(None, 3, 1), of(None, 5, 10)),
            // Measured below.
            Profile::Quick => (of(Some(LEAST_EXAMPLES), 1, 3), of(Some(500), 1, 1), of(Some(1000), 1, 1)),
            // The same on every machine, so that published records are of these runs. The comparison is that of the recipes.
            Profile::Published | Profile::Standard => {
                (of(Some(LEAST_EXAMPLES), 1, 3), of(Some(800), 1, 1), of(Some(2100), 1, 1))
            }
        };
        let seeds = match profile {
            Profile::Smoke => vec![1, 2],
            Profile::Quick => vec![1],
            Profile::Published | Profile::Standard => vec![1, 2, 3],
            Profile::Full => vec![1, 2, 3, 4, 5],
        };
        let mut plan = Self { profile, model, tasks: tasks(trainer.glue()), seeds, is_base, comparison, search, ranks };
        if profile == Profile::Quick {
            plan.spend(trainer)?;
        }
        Ok(plan)
    }

    /// The plan of [`Plan::every_method`], on the small encoder, since there are many methods and rates.
    ///
    /// # Errors
    /// When the model is missing or broken.
    pub(crate) fn of_every_method(profile: Profile, trainer: &mut Trainer) -> Result<Self> {
        let model = named_model().unwrap_or_else(|| DEFAULT_MODEL.into());
        let (train_limit, epochs) = match profile {
            Profile::Smoke => (Some(64), 1),
            Profile::Quick => (Some(4000), 1),
            Profile::Published | Profile::Standard => (Some(8000), 2),
            Profile::Full => (None, 3),
        };
        let budget = Budget { train_limit, epochs, evaluations: 1 };
        let seeds = (1..=match profile {
            Profile::Smoke => 2,
            Profile::Quick | Profile::Published | Profile::Standard => 3,
            Profile::Full => 5,
        })
            .collect();
        let (tasks, is_base) = (tasks(trainer.glue()), is_base(trainer, &model)?);
        Ok(Self { profile, model, tasks, seeds, is_base, comparison: budget, search: budget, ranks: budget })
    }

    /// Gives each part of the study as many examples as its time pays for on this processor. The comparison has a least number, with which both
    /// parameter-efficient methods have learned their task: a slow processor takes longer for it.
    fn spend(&mut self, trainer: &mut Trainer) -> Result<()> {
        let mut costs = Vec::new();
        for method in &self.methods() {
            let speed = trainer.speed(&self.budgeted(self.tasks[0], method, self.search))?;
            for &task in &self.tasks {
                let data = trainer.data(&self.budgeted(task, method, Budget { train_limit: None, ..self.search }))?;
                let validation = data.validation.iter().flat_map(|(_, labeled)| labeled.lengths()).sum();
                let tokens: usize = data.train.lengths().iter().sum();
                costs.push(Cost::new(task, method, tokens as f64 / data.train.len() as f64, validation, speed));
            }
        }
        let all: Vec<&Cost> = costs.iter().collect();
        let of_first: Vec<&Cost> = costs.iter().filter(|cost| cost.task == self.tasks[0]).collect();
        let of_lora: Vec<&Cost> = of_first.iter().copied().filter(|cost| cost.is_lora).collect();
        let seeds = self.seeds.len() as f64;
        let tried = |method: &Method| self.search_space(method).runs();
        let most_tried = self.methods().iter().map(tried).max().unwrap_or(1) as f64;
        let rank_runs = (self.ranks().len() * self.rank_seeds().len() + self.rank_seeds().len()) as f64;

        self.comparison.spend(COMPARISON_SECONDS, seeds, &all, [LEAST_EXAMPLES, 20_000]);
        self.search.spend(SEARCH_SECONDS, most_tried, &of_first, [500, 4000]);
        // High ranks take longer than the eighth.
        self.ranks.spend(RANKS_SECONDS, 1.2 * rank_runs, &of_lora, [1000, 8000]);
        Ok(())
    }

    /// The methods that are compared.
    pub fn methods(&self) -> [Method; 3] {
        [Method::Full, Method::Lora(self.lora()), Method::bitfit()]
    }

    /// The ranks LoRA is tried at.
    pub fn ranks(&self) -> Vec<usize> {
        match self.profile {
            Profile::Smoke => vec![1, 8, 64],
            _ => vec![1, 2, 4, 8, 16, 32, 64],
        }
    }

    /// A run of the comparison: what a method does on a task with all the training this profile allows. The standard profile takes
    /// the recipe of both, if that is of this model.
    ///
    /// # Errors
    /// When there is a recipe that cannot be read.
    pub fn run(&self, task: Task, method: &Method) -> Result<Run> {
        let has_recipes = matches!(self.profile, Profile::Published | Profile::Standard);
        if has_recipes && self.model == STUDY_MODEL && task != Task::Synthetic {
            return Ok(Recipe::load(&format!("{}-{}", task.id(), method.id()))?.run);
        }
        Ok(self.budgeted(task, method, self.comparison))
    }

    /// Where the search for hyper-parameters starts: on the first task, with less training.
    pub fn search_run(&self, task: Task, method: &Method) -> Run {
        self.budgeted(task, method, self.search)
    }

    /// What the search tries for a method: rates around those published for it, and for the sum of the others' costs, other
    /// batch sizes and warm-ups at the best rate.
    pub fn search_space(&self, method: &Method) -> SearchSpace {
        let usual = self.learning_rate(method);
        let times = |factors: &[f64]| factors.iter().map(|factor| decimal(factor * usual)).collect();
        let learning_rates = match self.profile {
            Profile::Smoke => vec![usual],
            Profile::Quick => times(&[0.3, 1.0, 3.0]),
            Profile::Published | Profile::Standard | Profile::Full => times(&[0.1, 0.3, 1.0, 3.0, 10.0]),
        };
        let batch_size = self.batch_size(self.search);
        SearchSpace { learning_rates, batch_sizes: vec![batch_size, 2 * batch_size], warmup_ratios: vec![0.06, 0.2] }
    }

    /// A run of the rank study, LoRA on the first task; its cost is that of all ranks.
    pub fn rank_run(&self, task: Task) -> Run {
        self.budgeted(task, &Method::Lora(self.lora()), self.ranks)
    }

    /// The seeds of the rank study.
    pub fn rank_seeds(&self) -> Vec<u64> {
        match self.profile {
            Profile::Smoke | Profile::Quick => vec![1],
            Profile::Published | Profile::Standard => vec![1, 2],
            Profile::Full => self.seeds.clone(),
        }
    }

    /// The best BitFit run of each task, to predict the test sets with. Where the profile trains nothing, only those whose weights are here.
    ///
    /// # Errors
    /// When there is a record that is not whole.
    pub fn predicting(&self, trainer: &Trainer, records: &[Record]) -> Result<Vec<Run>> {
        let mut predicting = Vec::new();
        for run in self.tasks.iter().filter_map(|&task| best_run(records, task, &Method::bitfit())) {
            if self.profile.trains() || trainer.has_weights(&run)? {
                predicting.push(run);
            }
        }
        Ok(predicting)
    }

    /// Publishes those records of the report that are not published yet, where the variable `PUBLISH` is set; says what became of them.
    ///
    /// # Errors
    /// When a record among the published ones cannot be read, or the file cannot be written.
    pub fn publish(&self, results: &Path, records: &[&[Record]]) -> Result<Table> {
        let published = results::load(results)?;
        let mut new: Vec<Record> = Vec::new();
        for record in records.iter().copied().flatten() {
            if published.iter().chain(&new).all(|other| other.run != record.run) {
                new.push(record.clone());
            }
        }
        let mut table = Table::new(["records of this report", "in results/", "its own", "published in"]);
        let file = match variable("PUBLISH").is_some() {
            true => {
                let file = results::publish_study(results, REPORT, &new)?;
                // A notebook is published too, and names no folder of the machine it ran on.
                file.strip_prefix(project_root()).unwrap_or(&file).display().to_string()
            }
            false => "not now: PUBLISH=1 publishes them".into(),
        };
        let runs: BTreeSet<String> = records.iter().copied().flatten().map(|record| record.run.key()).collect();
        table.push([runs.len().to_string(), (runs.len() - new.len()).to_string(), new.len().to_string(), file]);
        Ok(table)
    }

    /// A run of every method on a task. Each adapts what its paper or PEFT would; LoRA and its kin have the layers and the rank of
    /// [`Plan::methods`].
    pub fn every_method(&self, task: Task) -> Vec<Run> {
        let lora = || self.lora();
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
        let run = |method: &Method| self.budgeted(task, method, self.comparison);
        let lora_plus = run(&Method::Lora(lora())).with(|settings| settings.loraplus_lr_ratio = Some(16.0));
        methods.iter().map(run).chain([lora_plus]).collect()
    }

    /// What is tried for one of them: three learning rates, about the threefold apart, around its own.
    pub fn rates(&self, run: &Run) -> SearchSpace {
        let rate = run.settings.learning_rate;
        let learning_rates = match self.profile {
            Profile::Smoke => vec![rate],
            _ => vec![decimal(0.3 * rate), rate, decimal(3.0 * rate)],
        };
        let Settings { batch_size, warmup_ratio, .. } = run.settings;
        SearchSpace { learning_rates, batch_sizes: vec![batch_size], warmup_ratios: vec![warmup_ratio] }
    }

    /// A run with the settings that searches on these encoders favor. The mean of the tokens is what MiniLM was pretrained to give,
    /// and serves single sentences; pairs do better on BERT's pooler, and MPNet's head is of the first token.
    fn budgeted(&self, task: Task, method: &Method, budget: Budget) -> Run {
        let batch_size = self.batch_size(budget);
        let whole = task.official_rows(Split::Train).unwrap_or(batch_size);
        let examples = budget.train_limit.map_or(whole, |limit| limit.min(whole));
        let steps = budget.epochs * examples.div_ceil(batch_size);
        let settings = Settings {
            learning_rate: self.learning_rate(method),
            epochs: budget.epochs,
            batch_size,
            evaluate: Evaluate::Steps(steps.div_ceil(budget.evaluations)),
            // What little is seen once is not overfitted.
            dropout: self.sees_little(budget).then_some(0.0),
            precision: Precision::fastest(),
            pooling: if task.has_pairs() || self.is_base { Pooling::Cls } else { Pooling::Mean },
            train_limit: budget.train_limit.filter(|&limit| limit < whole),
            ..Settings::default()
        };
        Run { settings, ..Run::new(task, &self.model, method.clone()) }
    }

    /// The larger encoder learns from few examples in small batches: it needs some hundred steps before its loss falls on MRPC.
    fn batch_size(&self, budget: Budget) -> usize {
        if self.sees_little(budget) { 8 } else { 16 }
    }

    fn sees_little(&self, budget: Budget) -> bool {
        self.is_base && budget.train_limit.is_some()
    }

    /// LoRA as the study uses it: rank 8 on every linear layer of the encoder; of the study's own encoder by the names that the recipes
    /// have, so that both are one method.
    fn lora(&self) -> Lora {
        let names = ["q", "k", "v", "o", "dense"];
        Lora::rank(8).on(if self.model == STUDY_MODEL { Targets::suffixes(names) } else { Targets::AllLinear })
    }

    fn learning_rate(&self, method: &Method) -> f64 {
        method.default_learning_rate(if self.is_base { 768 } else { 384 })
    }
}

/// What a method costs on a task.
struct Cost {
    task: Task,
    is_lora: bool,
    /// Seconds of a training example.
    example: f64,
    /// Seconds of an evaluation.
    evaluation: f64,
}

impl Cost {
    /// Of examples of so many tokens on average, and validation data of so many in all.
    fn new(task: Task, method: &Method, tokens: f64, validation: usize, speed: Speed) -> Self {
        let is_lora = matches!(method, Method::Lora(_));
        Self { task, is_lora, example: tokens / speed.training, evaluation: validation as f64 / speed.evaluation }
    }
}

impl Budget {
    /// As many examples as `seconds` pay for, if so many runs are made at each of these costs; within the limits, and in hundreds.
    fn spend(&mut self, seconds: f64, runs: f64, costs: &[&Cost], [least, most]: [usize; 2]) {
        let evaluations: f64 = costs.iter().map(|cost| runs * self.evaluations as f64 * cost.evaluation).sum();
        let example: f64 = costs.iter().map(|cost| runs * cost.example).sum();
        let examples = ((seconds - evaluations) / example).max(0.0) as usize / 100 * 100;
        self.train_limit = Some(examples.clamp(least, most));
    }
}

/// The model that the variable `LAB_MODEL` names.
fn named_model() -> Option<String> {
    std::env::var("LAB_MODEL").ok().filter(|name| !name.is_empty())
}

/// Whether a model has the width of BERT-base or a larger one.
fn is_base(trainer: &mut Trainer, model: &str) -> Result<bool> {
    Ok(trainer.pretrained(model)?.config.hidden_size >= 768)
}

/// The tasks of the study that are here.
fn tasks(glue: &Glue) -> Vec<Task> {
    let here = glue.tasks();
    let tasks: Vec<Task> = [Task::Sst2, Task::Mrpc].into_iter().filter(|task| here.contains(task)).collect();
    if tasks.is_empty() { vec![Task::Synthetic] } else { tasks }
}

/// The nearest number of one decimal digit, so that a rate is the same number wherever it is written down.
fn decimal(value: f64) -> f64 {
    format!("{value:.0e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::tests::record;

    fn plan(profile: Profile) -> Plan {
        let budget = Budget { train_limit: Some(1000), epochs: 1, evaluations: 1 };
        Plan {
            profile,
            model: DEFAULT_MODEL.into(),
            tasks: vec![Task::Sst2],
            seeds: vec![1],
            is_base: false,
            comparison: budget,
            search: budget,
            ranks: budget,
        }
    }

    #[test]
    fn every_method_is_there_once_and_tries_three_rates() {
        let plan = plan(Profile::Quick);
        let runs = plan.every_method(Task::Sst2);
        for (index, run) in runs.iter().enumerate() {
            assert!(runs[..index].iter().all(|other| !other.has_method_of(run)), "{} twice", run.method_name());
        }
        let lora = runs.iter().find(|run| run.method == Method::Lora(plan.lora())).unwrap();
        assert_eq!(plan.rates(lora).learning_rates, [3e-4, 1e-3, 3e-3]);
    }

    #[test]
    fn the_published_report_is_of_the_standard_ones_runs_and_predicts_with_what_is_here_alone() {
        let [published, standard] = [Profile::Published, Profile::Standard].map(plan);
        assert_eq!(published.rank_seeds(), standard.rank_seeds());
        for method in standard.methods() {
            assert_eq!(published.search_space(&method), standard.search_space(&method));
            assert_eq!(published.search_run(Task::Sst2, &method), standard.search_run(Task::Sst2, &method));
        }
        let runs = tempfile::tempdir().unwrap();
        let trainer = Trainer::new(Glue::synthetic("a test"), runs.path());
        let records = [record(Task::Sst2, Method::bitfit(), 1, 0.9), record(Task::Sst2, Method::bitfit(), 2, 0.8)];
        assert_eq!(standard.predicting(&trainer, &records).unwrap(), [records[0].run.clone()]);
        assert_eq!(published.predicting(&trainer, &records).unwrap(), []);
    }

    #[test]
    fn without_glue_there_is_the_synthetic_task() {
        assert_eq!(tasks(&Glue::synthetic("test")), [Task::Synthetic]);
    }

    #[test]
    fn a_budget_of_time_buys_what_it_costs_within_the_limits() {
        let speed = Speed { training: 1000.0, evaluation: 4000.0 };
        // 20 tokens at 1000 in a second: 0.02 s an example; 8000 tokens at 4000: 2 s an evaluation.
        let cost = Cost::new(Task::Sst2, &Method::bitfit(), 20.0, 8000, speed);
        let bought = |seconds: f64, runs: f64| {
            let mut budget = Budget { train_limit: None, epochs: 1, evaluations: 5 };
            budget.spend(seconds, runs, &[&cost], [100, 5000]);
            budget.train_limit.unwrap()
        };
        assert_eq!(bought(110.0, 1.0), 5000); // (110 - 5 * 2) / 0.02 = 5000
        assert_eq!(bought(110.0, 2.0), 2200); // (110 - 20) / 0.04 = 2250
        assert_eq!((bought(1.0, 1.0), bought(1e6, 1.0)), (100, 5000));
    }

    #[test]
    fn a_slow_processor_has_the_same_study_with_fewer_examples() {
        let run = |limit| {
            let mut plan = plan(Profile::Quick);
            plan.comparison.train_limit = Some(limit);
            plan.run(Task::Mrpc, &Method::bitfit()).unwrap()
        };
        assert_eq!(run(2500).settings.train_limit, Some(2500));
        assert_eq!(run(3700).settings.train_limit, None, "MRPC has 3668 examples");
        assert_eq!(run(2500).settings.evaluate, Evaluate::Steps(157));
    }
}
