//! The command line.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::builder::{PathBufValueParser, PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use trainer::glue::Task;
use trainer::glue::variables::with_home;
use trainer::peft::{Configuration, Method, Pooling, Precision, model_name};
use trainer::study::{over_ranks, over_seeds};
use trainer::{CheckpointEvery, DeviceName, Evaluate, Recipe, Run, Settings, StartsFrom, Trainer, most_threads};

use crate::adapter::AdapterCommand;
use crate::given_adapter::{GivenAdapter, tell_before_downloads};
use crate::method;
use crate::records::RecordsCommand;

impl Arguments {
    /// The arguments of this process. Ends it where they are wrong, or ask for help.
    pub(crate) fn from_command_line() -> Self {
        let matches = Self::with_methods().get_matches();
        let mut arguments = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let of_command = matches.subcommand().map(|(_, matches)| matches);
        let names = of_command.iter().flat_map(|matches| matches.ids().map(move |id| (matches, id.as_str())));
        let is_typed =
            |(matches, id): &(&&ArgMatches, &str)| matches.value_source(id) == Some(ValueSource::CommandLine);
        // Groups have ids too, in capital letters as the structs they are of.
        let is_option = |(_, id): &(&&ArgMatches, &str)| !id.starts_with(char::is_uppercase);
        let given: Vec<String> = names.filter(is_typed).filter(is_option).map(|(_, id)| id.to_string()).collect();
        if let Command::Run { run, .. }
        | Command::Predict { run, .. }
        | Command::Replay { run, .. }
        | Command::Parameters { run, .. } = &mut arguments.command
        {
            run.method_options = of_command.map(|matches| method::given(matches, &given)).unwrap_or_default();
            run.given = given;
        }
        arguments
    }

    /// The options of the run that were typed, by their names with `_`.
    pub(crate) fn given(&self) -> &[String] {
        match &self.command {
            Command::Run { run, .. }
            | Command::Predict { run, .. }
            | Command::Replay { run, .. }
            | Command::Parameters { run, .. } => &run.given,
            _ => &[],
        }
    }

    /// The command with the options of all methods.
    fn with_methods() -> clap::Command {
        let with_runs = ["run", "predict", "replay", "parameters"];
        let command = with_runs.iter().fold(Self::command(), |command, name| {
            command.mut_subcommand(name, |subcommand| subcommand.args(method::arguments()))
        });
        // A run refuses an adapter with what to give instead, and so does not offer it.
        command.mut_subcommand("run", |run| run.mut_arg("adapter", |adapter| adapter.hide(true)))
    }
}

/// Parameter-efficient fine-tuning on GLUE.
#[derive(Parser)]
#[command(
    name = "peft-glue",
    version,
    after_help = "Exit status: 0 done, 1 an error, 2 wrong options, 3 a run that is not finished (the same command goes on), 4 a run that diverged, 129, 130, 143 ended by HUP, INT, TERM (the same command goes on)."
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make one run or several, or print the records they already have.
    Run {
        #[command(flatten)]
        run: RunArguments,
        #[command(flatten)]
        several: SeveralArguments,
        #[command(flatten)]
        keeping: KeepingArguments,
        /// Write what was trained, as it was at the best evaluation, to this folder: adapter_config.json and
        /// adapter_model.safetensors, which Python's peft loads.
        #[arg(long, conflicts_with_all = ["adapter", "seeds", "ranks"], value_parser = path())]
        save_adapter: Option<PathBuf>,
    },
    /// Make one run, or take an adapter, and write the test predictions as GLUE's submission files.
    Predict {
        #[command(flatten)]
        run: RunArguments,
        #[command(flatten)]
        keeping: KeepingArguments,
        /// Where the files go.
        #[arg(long, default_value = "predictions", value_parser = path())]
        folder: PathBuf,
    },
    /// Take the steps of another implementation again, and print their losses and times as JSON.
    Replay {
        #[command(flatten)]
        run: RunArguments,
        /// An npz file of batches, as `bench_peft.py --dump-batches` writes it.
        #[arg(long, value_parser = path())]
        batches: PathBuf,
        /// A safetensors file with the new parameters' first values, as `--dump-init` writes it.
        #[arg(long, value_parser = path())]
        start: Option<PathBuf>,
        /// Write what was trained to this folder, as an adapter.
        #[arg(long, conflicts_with = "forward_only", value_parser = path())]
        save_adapter: Option<PathBuf>,
        /// Only the forward passes, without dropout; nothing is trained. Prints the logits too.
        #[arg(long)]
        forward_only: bool,
        /// Merge the adapter into the weights first, which a bottleneck adapter cannot be.
        #[arg(long, requires = "forward_only")]
        merge: bool,
    },
    /// Make every run of the recipes that has no record, say first what that will take, and publish each record.
    Glue(GlueArguments),
    /// Make the runs of a study, in any number of interrupted parts and processes; show how its candidates compare; or print what is to be
    /// made next, for another program to make it.
    Study(StudyArguments),
    /// Show how far the runs of a folder are, until all have ended or the command is interrupted.
    Watch {
        /// The folder of the runs.
        #[arg(long, default_value = "runs", value_parser = path())]
        runs: PathBuf,
        /// Show it once and end.
        #[arg(long)]
        once: bool,
    },
    /// Write the zip that GLUE's server takes, each file predicted by the best run of its task, and the majority where there is none.
    Submit(SubmitArguments),
    /// Print which data was found and how complete it is.
    Data {
        /// Fetch what is missing in data/glue first.
        #[arg(long)]
        download: bool,
    },
    /// Print every tensor that a method trains.
    Parameters {
        #[command(flatten)]
        run: RunArguments,
        /// The whole model as a tree, in which what is trained is marked.
        #[arg(long)]
        tree: bool,
    },
    /// Make new adapters of others, or a checkpoint that needs none.
    #[command(subcommand)]
    Adapter(AdapterCommand),
    /// Say whether records are as they were written, or write old ones in the present format.
    #[command(subcommand)]
    Records(RecordsCommand),
}

impl Command {
    /// Whether it makes runs: what it does is then worth more than its lines, and a signal ends it with a checkpoint.
    pub(crate) fn trains(&self) -> bool {
        matches!(self, Self::Run { .. } | Self::Predict { .. } | Self::Glue(_) | Self::Submit(_) | Self::Study(_))
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum PoolingName {
    Cls,
    Mean,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionName {
    F32,
    Bf16,
    Tf32,
}

#[derive(Args)]
pub(crate) struct RunArguments {
    /// A recipe: a name in the folder recipes, such as cola-lora, or a .toml file. It says task, model, method and settings; they are
    /// changed there, and not by options beside it.
    #[arg(long)]
    recipe: Option<String>,
    /// A file like a recipe, a run's, which options change: what --print-config prints.
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["recipe", "adapter"])]
    config: Option<String>,
    /// Print the run as a file for --config, and make none.
    #[arg(long)]
    pub print_config: bool,
    /// cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli; synthetic where there is no GLUE.
    #[arg(long, required_unless_present_any = ["recipe", "config"])]
    task: Option<Task>,
    /// What is trained.
    #[arg(long, value_parser = PossibleValuesParser::new(Method::IDS), required_unless_present_any = ["adapter", "recipe", "config"])]
    method: Option<String>,
    /// Instead of a method: the folder of an adapter, of this program's or of Python's peft. Predict, replay and parameters
    /// take the model with it.
    #[arg(long, conflicts_with = "method", value_parser = path())]
    pub adapter: Option<PathBuf>,
    /// auto (the first NVIDIA GPU, if this was built for such and there is one), cpu, cuda:0, or several GPUs that share a run's
    /// batches, as in cuda:0,1; these need NVIDIA's library NCCL.
    #[arg(long, default_value_t = DeviceName::Auto)]
    pub device: DeviceName,
    /// A folder, a folder below models/, or a Hugging Face hub id; with --adapter the model that it names, if no other is given.
    #[arg(long, default_value = "all-MiniLM-L6-v2")]
    model: String,
    /// What the run goes on from, with the same method and layers and a new output layer: a recipe, or the folder of an adapter.
    #[arg(long, conflicts_with = "adapter")]
    starts_from: Option<String>,
    /// LoRA: B's learning rate as a multiple of A's (LoRA+).
    #[arg(long)]
    loraplus_lr_ratio: Option<f64>,
    /// The highest learning rate.
    #[arg(long, alias = "learning-rate", default_value_t = Settings::default().learning_rate)]
    lr: f64,
    /// The classifier's own learning rate.
    #[arg(long)]
    head_lr: Option<f64>,
    #[arg(long, default_value_t = Settings::default().epochs)]
    epochs: usize,
    #[arg(long, default_value_t = Settings::default().batch_size)]
    batch_size: usize,
    /// The share of steps over which the learning rate rises.
    #[arg(long, default_value_t = Settings::default().warmup_ratio)]
    warmup: f64,
    #[arg(long, default_value_t = Settings::default().weight_decay)]
    weight_decay: f64,
    /// Clip the gradient's norm to this; 0: no clipping.
    #[arg(long, default_value_t = 1.0)]
    max_grad_norm: f64,
    /// Every dropout probability [default: the model's].
    #[arg(long)]
    dropout: Option<f64>,
    /// Of the encoder's products; the sums and everything else are f32. tf32 is of all linear layers on a GPU, and f32 on the CPU.
    #[arg(long, value_enum, default_value = "f32")]
    precision: PrecisionName,
    /// Tokens of a sequence, to which longer ones are cut; where it is not given at most as many as the model has positions, and with
    /// --adapter as many as it was trained with.
    #[arg(long, default_value_t = Settings::default().max_length)]
    max_length: usize,
    /// The first token, under BERT's pooler, or the mean over tokens; where it is not given as the adapter or the model's config.json
    /// says.
    #[arg(long, value_enum, default_value = "cls")]
    pooling: PoolingName,
    /// Train the pooler whole, whatever the method.
    #[arg(long)]
    train_pooler: bool,
    /// Batches of like lengths.
    #[arg(long)]
    group_by_length: bool,
    /// Train on this many examples.
    #[arg(long)]
    train_limit: Option<usize>,
    /// Train on the rows of train_extra.tsv too, which are not GLUE's; QQP may have such a file.
    #[arg(long)]
    train_extra: bool,
    /// Validate on a tenth of the training set, which is not trained on then, in the place of the validation set.
    #[arg(long)]
    held_out: bool,
    /// Evaluate every so many steps [default: every epoch].
    #[arg(long)]
    eval_steps: Option<usize>,
    /// Stop after this many evaluations without a better score.
    #[arg(long)]
    patience: Option<usize>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after so many seconds, loading and all runs together; the same command goes on from there. The step that is under way and an
    /// evaluation come after them.
    #[arg(long)]
    pub time_budget: Option<u64>,
    /// Keep the trained weights of the best evaluation, even where most of the model is trained.
    #[arg(long)]
    pub keep_weights: bool,
    /// The folder of the records.
    #[arg(long, default_value = "runs", value_parser = path())]
    pub runs: PathBuf,
    /// Write event files for TensorBoard into this folder while a run trains: tensorboard --logdir FOLDER draws them.
    #[arg(long, value_name = "FOLDER", value_parser = path())]
    pub tensorboard: Option<PathBuf>,
    /// Print the record as JSON, and nothing else.
    #[arg(long)]
    pub json: bool,
    /// The options that were typed, by their names.
    #[arg(skip)]
    given: Vec<String>,
    /// Those of methods among them, with their texts.
    #[arg(skip)]
    method_options: Vec<(String, String)>,
}

/// What may be typed beside a recipe.
const BESIDE_RECIPE: [&str; 14] = [
    "recipe",
    "print_config",
    "device",
    "seed",
    "seeds",
    "at_once",
    "time_budget",
    "keep_weights",
    "runs",
    "tensorboard",
    "json",
    "checkpoint_seconds",
    "checkpoint_steps",
    "no_wait",
];

/// What is kept of a run that is under way, and from whom.
#[derive(Args)]
pub(crate) struct KeepingArguments {
    /// Write a checkpoint every so many seconds, the first after 10 at the latest; more seldom where that took more than a fiftieth of the
    /// time [default: 60].
    #[arg(long, value_name = "SECONDS", conflicts_with = "checkpoint_steps")]
    checkpoint_seconds: Option<u64>,
    /// Write a checkpoint after every so many steps.
    #[arg(long, value_name = "STEPS")]
    checkpoint_steps: Option<NonZeroUsize>,
    /// Fail where another process is making the run, and do not wait for its record.
    #[arg(long)]
    no_wait: bool,
    /// Record of each run that is made how far it moved its model, on so many validation examples.
    #[arg(long, value_name = "EXAMPLES")]
    movement: Option<NonZeroUsize>,
}

impl KeepingArguments {
    /// The trainer, as these say.
    pub(crate) fn of(&self, trainer: Trainer) -> Trainer {
        let every = match (self.checkpoint_steps, self.checkpoint_seconds) {
            (Some(steps), _) => CheckpointEvery::Steps(steps.get()),
            (None, Some(seconds)) => CheckpointEvery::Time(Duration::from_secs(seconds)),
            (None, None) => CheckpointEvery::default(),
        };
        let movement = self.movement.map(NonZeroUsize::get);
        trainer.checkpoint_every(every).waits(!self.no_wait).movement_examples(movement)
    }
}

/// Which recipes, and where records go.
#[derive(Args)]
pub(crate) struct GlueArguments {
    /// Recipes by name [default: all].
    pub recipes: Vec<String>,
    /// Only say which runs there are and what they will take.
    #[arg(long)]
    pub list: bool,
    /// Only print the published records as a table in Markdown.
    #[arg(long, conflicts_with = "list")]
    pub table: bool,
    /// Only print what the published records allow to say: of each two methods on a task, and of each method and baseline.
    #[arg(long, conflicts_with_all = ["list", "table"])]
    pub verdicts: bool,
    /// The folder of published records, which tables and charts are made of.
    #[arg(long, default_value = "results", value_parser = path())]
    pub results: PathBuf,
    /// The folder of the runs: their records, checkpoints and weights.
    #[arg(long, default_value = "runs", value_parser = path())]
    pub runs: PathBuf,
    /// As for a run.
    #[arg(long, default_value_t = DeviceName::Auto)]
    pub device: DeviceName,
    #[command(flatten)]
    pub keeping: KeepingArguments,
}

/// Which runs predict, and where the zip goes.
#[derive(Args)]
pub(crate) struct SubmitArguments {
    /// Only say which run each file would come from, and what has to be trained again.
    #[arg(long)]
    pub list: bool,
    /// The folder of published records, among which the best runs are.
    #[arg(long, default_value = "results", value_parser = path())]
    pub results: PathBuf,
    /// The folder of the runs; one whose weights are not there is made again.
    #[arg(long, default_value = "runs", value_parser = path())]
    pub runs: PathBuf,
    /// The zip.
    #[arg(long, default_value = "submission.zip", value_parser = path())]
    pub output: PathBuf,
    /// Only runs of this method, such as lora or bitfit [default: of any].
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,
    /// As for a run.
    #[arg(long, default_value_t = DeviceName::Auto)]
    pub device: DeviceName,
    #[command(flatten)]
    pub keeping: KeepingArguments,
}

/// A study, and what to do with it.
#[derive(Args)]
pub(crate) struct StudyArguments {
    /// run makes what has no record; show prints the candidates, the best first; next prints a line of JSON for each run to be made now;
    /// publish writes the records there are to one file below the folder of published records.
    #[arg(value_enum)]
    pub action: StudyAction,
    /// A .toml file, such as studies/learning-rates.toml.
    #[arg(value_parser = path())]
    pub study: PathBuf,
    #[command(flatten)]
    pub at_once: AtOnceArguments,
    /// Stop after so many seconds; the same command goes on from there.
    #[arg(long)]
    pub time_budget: Option<u64>,
    /// The folder of the runs, which several processes may share.
    #[arg(long, default_value = "runs", value_parser = path())]
    pub runs: PathBuf,
    /// The folder of published records, which count as well.
    #[arg(long, default_value = "results", value_parser = path())]
    pub results: PathBuf,
    /// As for a run.
    #[arg(long, default_value_t = DeviceName::Auto)]
    pub device: DeviceName,
    #[command(flatten)]
    pub keeping: KeepingArguments,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StudyAction {
    Run,
    Show,
    Next,
    Publish,
}

/// Several runs in the place of one.
#[derive(Args)]
pub(crate) struct SeveralArguments {
    /// Make a run with each of these seeds, such as 1,2,3.
    #[arg(long, value_delimiter = ',', conflicts_with = "seed")]
    seeds: Vec<u64>,
    /// LoRA: make a run at each of these ranks, such as 1,8,64. lora_alpha grows with them, so that the scaling stays.
    #[arg(long, value_delimiter = ',', conflicts_with = "r")]
    ranks: Vec<usize>,
    #[command(flatten)]
    pub at_once: AtOnceArguments,
}

/// How many of several runs are made concurrently.
#[derive(Args)]
pub(crate) struct AtOnceArguments {
    /// How many of them are under way at once. It pays on a GPU that one run does not fill; on the CPU one run has all cores.
    #[arg(long, default_value = "1", value_name = "RUNS")]
    at_once: NonZeroUsize,
}

impl AtOnceArguments {
    /// So many: no more than there are threads of use on the machine.
    pub(crate) fn runs(&self) -> usize {
        let (asked, most) = (self.at_once.get(), most_threads());
        if asked > most {
            eprintln!(
                "Note: --at-once is {asked}, and this machine has use for {most} threads: so many runs are under way at once"
            );
        }
        asked.min(most)
    }
}

impl SeveralArguments {
    /// The runs of all ranks and seeds; of a recipe those of its seeds, if no others are given.
    pub(crate) fn runs(&self, arguments: &RunArguments) -> Result<Vec<Run>> {
        let run = arguments.run()?;
        if let (Some(recipe), true) = (&arguments.recipe, self.seeds.is_empty() && !arguments.is_given("seed")) {
            return Ok(Recipe::load(recipe)?.runs());
        }
        let ranks = if self.ranks.is_empty() { vec![run] } else { over_ranks(&run, &self.ranks) };
        if ranks.is_empty() {
            bail!("--ranks are of LoRA; give --method lora");
        }
        if self.seeds.is_empty() {
            return Ok(ranks);
        }
        Ok(ranks.iter().flat_map(|run| over_seeds(run, &self.seeds)).collect())
    }
}

/// Says on the standard error that an option is another than an adapter was trained with.
fn note_other(option: &str, given: &str, of_adapter: &str) {
    if given != of_adapter {
        eprintln!("Note: {option} {given}, and the adapter was trained with {of_adapter}");
    }
}

/// How many positions a model has, for messages.
fn positions(model: &str, configuration: &Configuration, method: &Method) -> String {
    let besides = match method.virtual_tokens() {
        0 => String::new(),
        taken => format!(", of which virtual tokens take {taken}"),
    };
    format!("{model} has {} positions{besides}", configuration.max_length())
}

/// A path, which may begin with `~`.
pub(crate) fn path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(with_home)
}

/// `NAME=VALUE`.
pub(crate) fn pair<T: std::str::FromStr>(text: &str) -> std::result::Result<(String, T), String> {
    let (name, value) = text.rsplit_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.into(), value.parse().map_err(|_| format!("{value:?} is no number that {name} can have"))?))
}

impl RunArguments {
    fn is_given(&self, name: &str) -> bool {
        self.given.iter().any(|given| given == name)
    }

    /// The recipe's run. What a recipe says is not said by options.
    fn recipe_run(&self, name: &str) -> Result<Run> {
        let others = [&BESIDE_RECIPE[..], &["save_adapter", "folder", "tree"]].concat();
        if let Some(option) = self.given.iter().find(|given| !others.contains(&given.as_str())) {
            let option = option.replace('_', "-");
            bail!(
                "--{option} is not taken with --recipe {name}: the recipe says it; change a copy of its file, and give that"
            );
        }
        let run = Recipe::load(name)?.run;
        tell_before_downloads([&run], Path::new(name));
        Ok(if self.is_given("seed") { run.seed(self.seed) } else { run })
    }

    /// The run these arguments describe. An adapter brings its base model, its method, its pooling and its length.
    pub(crate) fn run(&self) -> Result<Run> {
        if let Some(recipe) = &self.recipe {
            return self.recipe_run(recipe);
        }
        let file = self.config.as_ref().map(|file| Recipe::load(file)).transpose()?;
        let base = file.as_ref().map(|recipe| &recipe.run);
        let adapter = self.adapter.as_deref().map(GivenAdapter::read).transpose()?;
        let given = self.is_given("model").then_some(self.model.as_str());
        let model = match (&adapter, base) {
            (Some(adapter), _) => adapter.base_model(given)?,
            (None, Some(run)) if given.is_none() => {
                let file = self.config.as_deref().unwrap_or_default();
                tell_before_downloads([run], Path::new(file));
                run.model.clone()
            }
            _ => with_home(&self.model).to_string_lossy().into_owned(),
        };
        let model = model_name(&model);
        let mut settings = self.settings(base.map(|run| run.settings.clone()).unwrap_or_default());
        let method = self.method(&model, base, adapter.as_ref())?;
        let in_file = file.as_ref().map(|recipe| recipe.settings_given.as_slice()).unwrap_or_default();
        self.settle(&mut settings, &model, &method, adapter.as_ref(), in_file)?;
        let Some(task) = self.task.or(base.map(|run| run.task)) else {
            bail!("none of --task, --recipe and --config is given")
        };
        let starts_from = match &self.starts_from {
            Some(folder) if Path::new(folder).join("adapter_config.json").is_file() => {
                Some(StartsFrom::adapter(Path::new(folder))?)
            }
            Some(recipe) => {
                let first = Recipe::load(recipe)?.run;
                tell_before_downloads([&first], Path::new(recipe));
                Some(StartsFrom::Run(Box::new(first)))
            }
            None => base.and_then(|run| run.starts_from.clone()),
        };
        let seed = match base {
            Some(run) if !self.is_given("seed") => run.seed,
            _ => self.seed,
        };
        Ok(Run { settings, starts_from, ..Run::new(task, &model, method) }.seed(seed))
    }

    /// The method of the adapter, of `--method` or of a file.
    fn method(&self, model: &str, base: Option<&Run>, adapter: Option<&GivenAdapter>) -> Result<Method> {
        match (adapter, &self.method, base) {
            (Some(adapter), ..) => {
                if self.is_given("train_pooler") {
                    bail!("--train-pooler is not taken with --adapter: its adapter_config.json says it");
                }
                if let Some((name, _)) = self.method_options.first() {
                    bail!("--{name} is not taken with --adapter: its adapter_config.json says it");
                }
                Ok(adapter.config.method.clone())
            }
            (None, Some(id), Some(run)) if *id == run.method.id() => {
                method::method(id, &self.method_options, Some(&run.method), model)
            }
            (None, Some(id), _) => method::method(id, &self.method_options, None, model),
            (None, None, Some(run)) => method::method(run.method.id(), &self.method_options, Some(&run.method), model),
            (None, None, None) => bail!("none of --method, --adapter, --recipe and --config is given"),
        }
    }

    /// Settles what follows from the adapter, or else from the model, where neither an option nor the file of `--config` says it: the
    /// pooling and the length.
    fn settle(
        &self,
        settings: &mut Settings,
        model: &str,
        method: &Method,
        adapter: Option<&GivenAdapter>,
        in_file: &[String],
    ) -> Result<()> {
        let configuration = match (Configuration::of_model(model), adapter) {
            (Ok(configuration), _) => configuration,
            (Err(_), _) if self.print_config => return Ok(()), // It is looked for where the run is made.
            (Err(error), Some(adapter)) if !self.is_given("model") => {
                return Err(anyhow::Error::new(error).context(adapter.about_base_model()));
            }
            (Err(error), _) => return Err(error.into()),
        };
        if let Some(adapter) = adapter {
            settings.train_pooler = adapter.config.train_pooler;
        }
        let in_file = |name: &str| in_file.iter().any(|given| given == name);
        let of_adapter = adapter.map(|adapter| adapter.pooling().unwrap_or(configuration.pooling()));
        match of_adapter {
            Some(of_adapter) if self.is_given("pooling") => {
                note_other("--pooling", &settings.pooling.to_string(), &of_adapter.to_string());
            }
            Some(of_adapter) => settings.pooling = of_adapter,
            None if !self.is_given("pooling") && !in_file("pooling") => settings.pooling = configuration.pooling(),
            None => {}
        }
        let left = configuration.max_length().saturating_sub(method.virtual_tokens());
        let positions = positions(model, &configuration, method);
        let of_adapter = adapter.and_then(GivenAdapter::max_length);
        match of_adapter {
            _ if self.is_given("max_length") && settings.max_length > left => {
                bail!(
                    "max-length is {}, expected at most {left}: {positions}; give another --max-length",
                    settings.max_length
                )
            }
            Some(length) if self.is_given("max_length") => {
                note_other("--max-length", &settings.max_length.to_string(), &length.to_string());
            }
            Some(length) => settings.max_length = length.min(left),
            None if !self.is_given("max_length") && !in_file("max_length") && settings.max_length > left => {
                eprintln!("Note: sequences are cut to {left} tokens and not to {}: {positions}", settings.max_length);
                settings.max_length = left;
            }
            None => {}
        }
        Ok(())
    }

    /// The run as a file that `--config` takes.
    pub(crate) fn config(&self) -> Result<String> {
        let run = self.run()?;
        let recipe = self.recipe.as_ref().or(self.config.as_ref()).map(|name| Recipe::load(name)).transpose()?;
        let starts_from = match (&run.starts_from, &self.starts_from) {
            (None, _) => None,
            (Some(StartsFrom::Adapter(_)), _) => {
                bail!("--starts-from an adapter's folder has no place in a file: give it beside --config each time")
            }
            (Some(_), Some(name)) => Some(name.clone()),
            (Some(_), None) => recipe.and_then(|recipe| recipe.starts_from),
        };
        Ok(Recipe::text(&run, starts_from.as_deref())?)
    }

    /// The settings that were typed, and those of `base` for every other.
    fn settings(&self, base: Settings) -> Settings {
        let or = |name: &str| self.is_given(name);
        Settings {
            learning_rate: if or("lr") { self.lr } else { base.learning_rate },
            head_learning_rate: self.head_lr.or(base.head_learning_rate),
            loraplus_lr_ratio: self.loraplus_lr_ratio.or(base.loraplus_lr_ratio),
            epochs: if or("epochs") { self.epochs } else { base.epochs },
            batch_size: if or("batch_size") { self.batch_size } else { base.batch_size },
            warmup_ratio: if or("warmup") { self.warmup } else { base.warmup_ratio },
            weight_decay: if or("weight_decay") { self.weight_decay } else { base.weight_decay },
            max_grad_norm: match or("max_grad_norm") {
                true => (self.max_grad_norm != 0.0).then_some(self.max_grad_norm),
                false => base.max_grad_norm,
            },
            dropout: self.dropout.or(base.dropout),
            precision: match self.precision {
                _ if !or("precision") => base.precision,
                PrecisionName::F32 => Precision::F32,
                PrecisionName::Bf16 => Precision::Bf16,
                PrecisionName::Tf32 => Precision::Tf32,
            },
            max_length: if or("max_length") { self.max_length } else { base.max_length },
            pooling: match self.pooling {
                _ if !or("pooling") => base.pooling,
                PoolingName::Cls => Pooling::Cls,
                PoolingName::Mean => Pooling::Mean,
            },
            train_pooler: self.train_pooler || base.train_pooler,
            group_by_length: self.group_by_length || base.group_by_length,
            train_limit: self.train_limit.or(base.train_limit),
            train_extra: self.train_extra || base.train_extra,
            held_out: self.held_out || base.held_out,
            evaluate: self.eval_steps.map_or(base.evaluate, Evaluate::Steps),
            patience: self.patience.or(base.patience),
        }
    }
}
