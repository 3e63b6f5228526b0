//! The command line.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;
use trainer::glue::{Example, Task};
use trainer::peft::{
    Activation, AdaLora, AdapterConfig, AdapterStyle, Architecture, Bias, BitFit, Bottleneck, EvaConfig, Ia3,
    InitLoraWeights, LnTuning, Lora, Method, PTuning, Pooling, Precision, PrefixTuning, Pretrained, PromptTuning,
    PromptTuningInit, Targets, Vera,
};
use trainer::study::{over_ranks, over_seeds};
use trainer::{DeviceName, Evaluate, Recipe, Run, Settings, StartsFrom, Tokenizer};

use crate::adapter::AdapterCommand;

impl Arguments {
    /// The arguments of this process. Ends it where they are wrong, or ask for help.
    pub fn from_command_line() -> Self {
        let matches = Self::command().get_matches();
        let mut arguments = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let of_command = matches.subcommand().map(|(_, matches)| matches);
        let names = of_command.iter().flat_map(|matches| matches.ids().map(move |id| (matches, id.as_str())));
        let is_typed =
            |(matches, id): &(&&ArgMatches, &str)| matches.value_source(id) == Some(ValueSource::CommandLine);
        // Groups have ids too, in capital letters as the structs they are of.
        let is_option = |(_, id): &(&&ArgMatches, &str)| !id.starts_with(char::is_uppercase);
        let given = names.filter(is_typed).filter(is_option).map(|(_, id)| id.to_string()).collect();
        if let Command::Run { run, .. }
        | Command::Predict { run, .. }
        | Command::Replay { run, .. }
        | Command::Parameters { run, .. } = &mut arguments.command
        {
            run.given = given;
        }
        arguments
    }
}

/// Parameter-efficient fine-tuning on GLUE.
#[derive(Parser)]
#[command(name = "peft-glue", version)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Make one run or several, or print the records they already have.
    Run {
        #[command(flatten)]
        run: RunArguments,
        #[command(flatten)]
        several: SeveralArguments,
        /// Write what was trained, as it was at the best evaluation, to this folder: adapter_config.json and
        /// adapter_model.safetensors, which Python's peft loads.
        #[arg(long, conflicts_with_all = ["adapter", "seeds", "ranks"])]
        save_adapter: Option<PathBuf>,
    },
    /// Make one run, or take an adapter, and write the test predictions as GLUE's submission files.
    Predict {
        #[command(flatten)]
        run: RunArguments,
        /// Where the files go.
        #[arg(long, default_value = "predictions")]
        folder: PathBuf,
    },
    /// Take the steps of another implementation again, and print their losses and times as JSON.
    Replay {
        #[command(flatten)]
        run: RunArguments,
        /// An npz file of batches, as `bench_peft.py --dump-batches` writes it.
        #[arg(long)]
        batches: PathBuf,
        /// A safetensors file with the new parameters' first values, as `--dump-init` writes it.
        #[arg(long)]
        start: Option<PathBuf>,
        /// Write what was trained to this folder, as an adapter.
        #[arg(long, conflicts_with = "forward_only")]
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
    /// Write the zip that GLUE's server takes, each file predicted by the best run of its task, and the majority where there is none.
    Submit(SubmitArguments),
    /// Print which data was found and how complete it is.
    Data,
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
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodName {
    Full,
    Head,
    Bitfit,
    Lora,
    Ia3,
    #[value(name = "ln_tuning")]
    LnTuning,
    Bottleneck,
    Vera,
    #[value(name = "adalora")]
    AdaLora,
    #[value(name = "prefix_tuning")]
    PrefixTuning,
    #[value(name = "prompt_tuning")]
    PromptTuning,
    #[value(name = "p_tuning")]
    PTuning,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "SCREAMING_SNAKE_CASE")]
enum PromptTuningInitName {
    Random,
    SampleVocab,
    Text,
}

#[derive(Clone, Copy, ValueEnum)]
enum BiasName {
    None,
    All,
    #[value(name = "lora_only", alias = "vera_only")]
    LoraOnly,
}

#[derive(Clone, Copy, ValueEnum)]
enum InitName {
    True,
    False,
    Gaussian,
    Pissa,
    Olora,
    Eva,
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
pub struct RunArguments {
    /// A recipe: a name in the folder recipes, such as cola-lora, or a .toml file. It says task, model, method and settings; they are
    /// changed there, and not by options beside it.
    #[arg(long)]
    recipe: Option<String>,
    /// cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli; synthetic where there is no GLUE.
    #[arg(long, required_unless_present = "recipe")]
    task: Option<Task>,
    /// What is trained.
    #[arg(long, value_enum, required_unless_present_any = ["adapter", "recipe"])]
    method: Option<MethodName>,
    /// Instead of a method: the folder of an adapter, of this program's or of Python's peft. Predict, replay and parameters
    /// take the model with it.
    #[arg(long, conflicts_with = "method")]
    pub adapter: Option<PathBuf>,
    /// auto (the first NVIDIA GPU, if this was built for such and there is one), cpu, cuda:0, or several GPUs that share a run's
    /// batches, as in cuda:0,1; these need NVIDIA's library NCCL.
    #[arg(long, default_value_t = DeviceName::Auto)]
    pub device: DeviceName,
    /// A folder, a folder below models/, or a Hugging Face hub id.
    #[arg(long, default_value = "all-MiniLM-L6-v2")]
    model: String,
    /// What the run goes on from, with the same method and layers and a new output layer: a recipe, or the folder of an adapter.
    #[arg(long, conflicts_with = "adapter")]
    starts_from: Option<String>,
    /// LoRA and VeRA: the rank [default: 8; VeRA: 256].
    #[arg(long)]
    r: Option<usize>,
    /// LoRA: the branch is multiplied by lora_alpha / r; AdaLoRA: by lora_alpha / init_r [default: 2 r; AdaLoRA: 8].
    #[arg(long)]
    lora_alpha: Option<f64>,
    /// LoRA and AdaLoRA: dropout on the branch's input.
    #[arg(long, default_value_t = 0.0)]
    lora_dropout: f64,
    /// VeRA: dropout on the branch's input.
    #[arg(long, default_value_t = Vera::default().vera_dropout)]
    vera_dropout: f64,
    /// VeRA: what the vector between the two matrices starts as.
    #[arg(long, default_value_t = Vera::default().d_initial)]
    d_initial: f64,
    /// VeRA: what the two matrices are drawn from, whatever the seed.
    #[arg(long, default_value_t = Vera::default().projection_prng_key)]
    projection_prng_key: u64,
    /// VeRA: whether files hold the two matrices, or whoever reads one draws them anew from the key.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    save_projection: bool,
    /// AdaLoRA: the rank of each branch at first.
    #[arg(long, default_value_t = AdaLora::default().init_r)]
    init_r: usize,
    /// AdaLoRA: the mean rank of the branches at last.
    #[arg(long, default_value_t = AdaLora::default().target_r)]
    target_r: usize,
    /// AdaLoRA: steps before the first singular value is masked.
    #[arg(long, default_value_t = AdaLora::default().tinit)]
    tinit: usize,
    /// AdaLoRA: steps at the end, in which the same values stay masked.
    #[arg(long, default_value_t = AdaLora::default().tfinal)]
    tfinal: usize,
    /// AdaLoRA: steps from one masking to the next.
    #[arg(long, alias = "deltaT", default_value_t = AdaLora::default().delta_t)]
    delta_t: usize,
    /// AdaLoRA: how much of its mean an importance keeps with each step.
    #[arg(long, default_value_t = AdaLora::default().beta1)]
    beta1: f64,
    /// AdaLoRA: the same for how uncertain an importance is.
    #[arg(long, default_value_t = AdaLora::default().beta2)]
    beta2: f64,
    /// AdaLoRA: the weight of the term that keeps the branches' vectors near orthonormal.
    #[arg(long, default_value_t = AdaLora::default().orth_reg_weight)]
    orth_reg_weight: f64,
    /// AdaLoRA: the steps over which the budget is spent [default: those of the run].
    #[arg(long)]
    total_step: Option<usize>,
    /// LoRA, VeRA, AdaLoRA, (IA)³, LN tuning and BitFit: modules by the end of their path, such as query,value, or all-linear [default: PEFT's
    /// for the model's architecture, such as query,value;
    /// (IA)³: key,value,output.dense; LN tuning: LayerNorm; BitFit: all].
    #[arg(long, value_delimiter = ',', conflicts_with = "target_pattern")]
    target_modules: Option<Vec<String>>,
    /// LoRA, VeRA, AdaLoRA, (IA)³, LN tuning and BitFit: modules by a regular expression for the whole path.
    #[arg(long)]
    target_pattern: Option<String>,
    /// (IA)³: targets whose input is scaled instead of their output [default: output.dense].
    #[arg(long, value_delimiter = ',')]
    feedforward_modules: Option<Vec<String>>,
    /// LoRA, AdaLoRA, (IA)³ and LN tuning: targets that are left as they are after all.
    #[arg(long, value_delimiter = ',', conflicts_with = "exclude_pattern")]
    exclude_modules: Option<Vec<String>>,
    /// LoRA: the same by a regular expression for the whole path.
    #[arg(long)]
    exclude_pattern: Option<String>,
    /// LoRA, VeRA and AdaLoRA: only layers of these numbers get a branch.
    #[arg(long, value_delimiter = ',')]
    layers_to_transform: Option<Vec<usize>>,
    /// LoRA, VeRA and AdaLoRA: names before a layer's number in a path.
    #[arg(long, value_delimiter = ',', requires = "layers_to_transform")]
    layers_pattern: Vec<String>,
    /// LoRA: ranks of their own, such as query=4,output.dense=16.
    #[arg(long, value_delimiter = ',', value_parser = pair::<usize>)]
    rank_pattern: Vec<(String, usize)>,
    /// LoRA: lora_alpha of their own, such as query=8.
    #[arg(long, value_delimiter = ',', value_parser = pair::<f64>)]
    alpha_pattern: Vec<(String, f64)>,
    /// Prefix tuning, prompt tuning and P-tuning: virtual tokens before each sequence.
    #[arg(long, default_value_t = 20)]
    num_virtual_tokens: usize,
    /// Prefix tuning: make the keys and values by a network of two layers.
    #[arg(long)]
    prefix_projection: bool,
    /// Prefix tuning with a projection, and P-tuning: the width within the network [default: that of what it is given].
    #[arg(long)]
    encoder_hidden_size: Option<usize>,
    /// Prompt tuning: how the virtual tokens start: random, as random words, or as a text.
    #[arg(long, value_enum, default_value = "RANDOM", ignore_case = true)]
    prompt_tuning_init: PromptTuningInitName,
    /// Prompt tuning: the text, with --prompt-tuning-init TEXT.
    #[arg(long, required_if_eq("prompt_tuning_init", "TEXT"))]
    prompt_tuning_init_text: Option<String>,
    /// All but full, head and BitFit: modules that are trained whole, besides the classifier.
    #[arg(long, value_delimiter = ',')]
    modules_to_save: Vec<String>,
    /// LoRA, VeRA and AdaLoRA: biases that are trained besides.
    #[arg(long, value_enum, default_value = "none")]
    bias: BiasName,
    /// LoRA: multiply the branch by lora_alpha / sqrt(r).
    #[arg(long)]
    use_rslora: bool,
    /// LoRA: train the length of each row of the weight besides (DoRA).
    #[arg(long)]
    use_dora: bool,
    /// LoRA: how A and B start; AdaLoRA: true or false.
    #[arg(long, value_enum, default_value = "true")]
    init_lora_weights: InitName,
    /// LoRA that starts as EVA: a layer's rank may grow to this multiple, while others' shrink.
    #[arg(long, default_value_t = EvaConfig::default().rho)]
    eva_rho: f64,
    /// LoRA that starts as EVA: the cosine between a component and what it was a batch before at which it has settled.
    #[arg(long, default_value_t = EvaConfig::default().tau)]
    eva_tau: f64,
    /// LoRA that starts as EVA: divide each row of A by the root of its singular value.
    #[arg(long)]
    eva_whiten: bool,
    /// LoRA that starts as EVA: let lora_alpha grow and shrink with a layer's rank.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    eva_adjust_scaling_factors: bool,
    /// LoRA: B's learning rate as a multiple of A's (LoRA+).
    #[arg(long)]
    loraplus_lr_ratio: Option<f64>,
    /// Bottleneck: houlsby (after attention and after the feed-forward network), pfeiffer (after the feed-forward network) or parallel
    /// (beside it).
    #[arg(long, value_parser = named::<AdapterStyle>, default_value = "pfeiffer")]
    adapter_style: AdapterStyle,
    /// Bottleneck: the hidden size over the bottleneck's [default: 16; parallel: 2].
    #[arg(long, conflicts_with = "bottleneck_size")]
    reduction_factor: Option<usize>,
    /// Bottleneck: its size, instead of a reduction factor.
    #[arg(long)]
    bottleneck_size: Option<usize>,
    /// Bottleneck: relu, gelu, gelu_new, swish or tanh [default: relu; houlsby: swish].
    #[arg(long, value_parser = named::<Activation>)]
    non_linearity: Option<Activation>,
    /// Bottleneck: what the adapter's output is multiplied by [default: 1; parallel: 4].
    #[arg(long)]
    adapter_scaling: Option<f64>,
    /// Bottleneck: dropout on the adapter's output.
    #[arg(long, default_value_t = 0.0)]
    adapter_dropout: f64,
    /// Bottleneck: how the adapter starts, bert or mam_adapter [default: bert; parallel: mam_adapter]. Prefix tuning: how keys and
    /// values start, zero [default: random].
    #[arg(long)]
    init_weights: Option<String>,
    /// Bottleneck: train the encoder's layer norms besides.
    #[arg(long)]
    train_layer_norms: bool,
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
    #[arg(long, default_value_t = Settings::default().max_length)]
    max_length: usize,
    /// The first token, under BERT's pooler, or the mean over tokens.
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
    /// Evaluate every so many steps [default: every epoch].
    #[arg(long)]
    eval_steps: Option<usize>,
    /// Stop after this many evaluations without a better score.
    #[arg(long)]
    patience: Option<usize>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after so many seconds; the same command goes on from there.
    #[arg(long)]
    pub time_budget: Option<u64>,
    /// Keep the trained weights of the best evaluation, even where most of the model is trained.
    #[arg(long)]
    pub keep_weights: bool,
    /// The folder of the records.
    #[arg(long, default_value = "runs")]
    pub runs: PathBuf,
    /// Print the record as JSON, and nothing else.
    #[arg(long)]
    pub json: bool,
    /// The options that were typed, by their names.
    #[arg(skip)]
    given: Vec<String>,
}

/// What may be typed beside a recipe.
const BESIDE_RECIPE: [&str; 9] =
    ["recipe", "device", "seed", "seeds", "at_once", "time_budget", "keep_weights", "runs", "json"];

/// Which recipes, and where records go.
#[derive(Args)]
pub struct GlueArguments {
    /// Recipes by name [default: all].
    pub recipes: Vec<String>,
    /// Only say which runs there are and what they will take.
    #[arg(long)]
    pub list: bool,
    /// Only print the published records as a table in Markdown.
    #[arg(long, conflicts_with = "list")]
    pub table: bool,
    /// The folder of published records, which tables and charts are made of.
    #[arg(long, default_value = "results")]
    pub results: PathBuf,
    /// The folder of the runs: their records, checkpoints and weights.
    #[arg(long, default_value = "runs")]
    pub runs: PathBuf,
    /// As for a run.
    #[arg(long, default_value_t = DeviceName::Auto)]
    pub device: DeviceName,
}

/// Which runs predict, and where the zip goes.
#[derive(Args)]
pub struct SubmitArguments {
    /// Only say which run each file would come from, and what has to be trained again.
    #[arg(long)]
    pub list: bool,
    /// The folder of published records, among which the best runs are.
    #[arg(long, default_value = "results")]
    pub results: PathBuf,
    /// The folder of the runs; one whose weights are not there is made again.
    #[arg(long, default_value = "runs")]
    pub runs: PathBuf,
    /// The zip.
    #[arg(long, default_value = "submission.zip")]
    pub output: PathBuf,
    /// Only runs of this method, such as lora or bitfit [default: of any].
    #[arg(long, value_name = "NAME")]
    pub method: Option<String>,
    /// As for a run.
    #[arg(long, default_value_t = DeviceName::Auto)]
    pub device: DeviceName,
}

/// Several runs in the place of one.
#[derive(Args)]
pub struct SeveralArguments {
    /// Make a run with each of these seeds, such as 1,2,3.
    #[arg(long, value_delimiter = ',', conflicts_with = "seed")]
    seeds: Vec<u64>,
    /// LoRA: make a run at each of these ranks, such as 1,8,64. lora_alpha grows with them, so that the scaling stays.
    #[arg(long, value_delimiter = ',', conflicts_with = "r")]
    ranks: Vec<usize>,
    /// How many of them are under way at once. It pays on a GPU that one run does not fill; on the CPU one run has all cores.
    #[arg(long, default_value = "1", value_name = "RUNS")]
    pub at_once: NonZeroUsize,
}

impl SeveralArguments {
    /// The runs of all ranks and seeds; of a recipe those of its seeds, if no others are given.
    pub fn runs(&self, arguments: &RunArguments) -> Result<Vec<Run>> {
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

/// `NAME=VALUE`.
pub fn pair<T: std::str::FromStr>(text: &str) -> std::result::Result<(String, T), String> {
    let (name, value) = text.rsplit_once('=').ok_or("expected NAME=VALUE")?;
    Ok((name.into(), value.parse().map_err(|_| format!("{value:?} is no number that {name} can have"))?))
}

/// A value by its name in the files.
fn named<T: DeserializeOwned>(name: &str) -> std::result::Result<T, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

impl RunArguments {
    fn targets(&self) -> Option<Targets> {
        let named = self.target_modules.as_ref().map(|names| match names.as_slice() {
            [all] if all == "all-linear" => Targets::AllLinear,
            names => Targets::suffixes(names),
        });
        self.target_pattern.as_ref().map(Targets::pattern).or(named)
    }

    fn excluded(&self) -> Option<Targets> {
        let named = self.exclude_modules.as_ref().map(Targets::suffixes);
        self.exclude_pattern.as_ref().map(Targets::pattern).or(named)
    }

    fn lora(&self) -> Result<Lora> {
        let lora = Lora::rank(self.r.unwrap_or(8));
        Ok(Lora {
            r: lora.r,
            lora_alpha: self.lora_alpha.unwrap_or(lora.lora_alpha),
            lora_dropout: self.lora_dropout,
            target_modules: self.targets_or_defaults()?,
            exclude_modules: self.excluded(),
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
            rank_pattern: self.rank_pattern.iter().cloned().collect(),
            alpha_pattern: self.alpha_pattern.iter().cloned().collect(),
            modules_to_save: self.modules_to_save.clone(),
            bias: self.bias(),
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            init_lora_weights: match self.init_lora_weights {
                InitName::True => InitLoraWeights::Kaiming,
                InitName::False => InitLoraWeights::Unset,
                InitName::Gaussian => InitLoraWeights::Gaussian,
                InitName::Pissa => InitLoraWeights::Pissa,
                InitName::Olora => InitLoraWeights::Olora,
                InitName::Eva => InitLoraWeights::Eva,
            },
            eva_config: matches!(self.init_lora_weights, InitName::Eva).then(|| EvaConfig {
                rho: self.eva_rho,
                tau: self.eva_tau,
                whiten: self.eva_whiten,
                adjust_scaling_factors: self.eva_adjust_scaling_factors,
            }),
        })
    }

    fn targets_or_defaults(&self) -> Result<Targets> {
        self.targets().map_or_else(|| Ok(Architecture::of_model(&self.model)?.default_targets()), Ok)
    }

    fn bias(&self) -> Bias {
        match self.bias {
            BiasName::None => Bias::None,
            BiasName::All => Bias::All,
            BiasName::LoraOnly => Bias::LoraOnly,
        }
    }

    fn vera(&self) -> Result<Vera> {
        Ok(Vera {
            r: self.r.unwrap_or(Vera::default().r),
            target_modules: self.targets_or_defaults()?,
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
            projection_prng_key: self.projection_prng_key,
            save_projection: self.save_projection,
            vera_dropout: self.vera_dropout,
            d_initial: self.d_initial,
            modules_to_save: self.modules_to_save.clone(),
            bias: self.bias(),
        })
    }

    fn adalora(&self) -> Result<AdaLora> {
        Ok(AdaLora {
            init_r: self.init_r,
            target_r: self.target_r,
            tinit: self.tinit,
            tfinal: self.tfinal,
            delta_t: self.delta_t,
            beta1: self.beta1,
            beta2: self.beta2,
            orth_reg_weight: self.orth_reg_weight,
            total_step: self.total_step,
            lora_alpha: self.lora_alpha.unwrap_or(AdaLora::default().lora_alpha),
            lora_dropout: self.lora_dropout,
            target_modules: self.targets_or_defaults()?,
            exclude_modules: self.excluded(),
            layers_to_transform: self.layers_to_transform.clone(),
            layers_pattern: self.layers_pattern.clone(),
            modules_to_save: self.modules_to_save.clone(),
            bias: self.bias(),
            init_lora_weights: match self.init_lora_weights {
                InitName::True => true,
                InitName::False => false,
                _ => bail!("--init-lora-weights of AdaLoRA is true or false"),
            },
            ..AdaLora::default()
        })
    }

    fn ia3(&self) -> Result<Ia3> {
        let ia3 = match self.targets() {
            Some(_) => Ia3::default(),
            None => Architecture::of_model(&self.model)?.default_ia3(),
        };
        // Targets of one's own are scaled at their output, unless they are named among the feed-forward modules.
        let feedforward = match (&self.feedforward_modules, &self.target_modules, &self.target_pattern) {
            (Some(names), ..) => Targets::suffixes(names),
            (None, None, None) => ia3.feedforward_modules,
            (None, ..) => Targets::Suffixes(Vec::new()),
        };
        Ok(Ia3 {
            target_modules: self.targets().unwrap_or(ia3.target_modules),
            feedforward_modules: feedforward,
            exclude_modules: self.excluded(),
            modules_to_save: self.modules_to_save.clone(),
        })
    }

    /// How a method of that kind starts.
    fn init_weights<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        let named = |name: &String| named(name).map_err(|error| anyhow!("--init-weights {name}: {error}"));
        self.init_weights.as_ref().map(named).transpose()
    }

    fn bottleneck(&self) -> Result<Bottleneck> {
        let bottleneck = Bottleneck::new(self.adapter_style);
        Ok(Bottleneck {
            reduction_factor: self.reduction_factor.unwrap_or(bottleneck.reduction_factor),
            bottleneck_size: self.bottleneck_size,
            non_linearity: self.non_linearity.unwrap_or(bottleneck.non_linearity),
            scaling: self.adapter_scaling.unwrap_or(bottleneck.scaling),
            dropout: self.adapter_dropout,
            init_weights: self.init_weights()?.unwrap_or(bottleneck.init_weights),
            train_layer_norms: self.train_layer_norms,
            ..bottleneck
        })
    }

    fn prefix_tuning(&self) -> Result<PrefixTuning> {
        Ok(PrefixTuning {
            num_virtual_tokens: self.num_virtual_tokens,
            prefix_projection: self.prefix_projection,
            encoder_hidden_size: self.encoder_hidden_size,
            init_weights: self.init_weights()?,
            modules_to_save: self.modules_to_save.clone(),
            inference_mode: false,
        })
    }

    fn prompt_tuning(&self) -> Result<PromptTuning> {
        Ok(PromptTuning {
            num_virtual_tokens: self.num_virtual_tokens,
            prompt_tuning_init: match (self.prompt_tuning_init, &self.prompt_tuning_init_text) {
                (PromptTuningInitName::Random, _) => PromptTuningInit::Random,
                (PromptTuningInitName::SampleVocab, _) => PromptTuningInit::SampleVocab,
                (PromptTuningInitName::Text, text) => self.text(text.as_deref().unwrap_or_default())?,
            },
            modules_to_save: self.modules_to_save.clone(),
            inference_mode: false,
        })
    }

    /// A text as the model's tokenizer cuts it, `[CLS]` and `[SEP]` among it, as in PEFT.
    fn text(&self, text: &str) -> Result<PromptTuningInit> {
        let pretrained = Pretrained::load(&self.model)?;
        let tokenizer = Tokenizer::load(&pretrained, pretrained.max_length())?;
        let sequences = tokenizer.encode(&[Example { first: text.into(), second: None }])?;
        Ok(PromptTuningInit::Text {
            prompt_tuning_init_text: text.into(),
            tokenizer_name_or_path: self.model.clone(),
            token_ids: sequences.into_iter().flat_map(|sequence| sequence.input_ids).collect(),
        })
    }

    fn p_tuning(&self) -> PTuning {
        PTuning {
            num_virtual_tokens: self.num_virtual_tokens,
            encoder_hidden_size: self.encoder_hidden_size,
            modules_to_save: self.modules_to_save.clone(),
            ..PTuning::default()
        }
    }

    fn method(&self, name: MethodName) -> Result<Method> {
        Ok(match name {
            MethodName::Full => Method::Full,
            MethodName::Head => Method::Head,
            MethodName::Bitfit => Method::BitFit(BitFit { target_modules: self.targets() }),
            MethodName::Lora => Method::Lora(self.lora()?),
            MethodName::Vera => Method::Vera(self.vera()?),
            MethodName::AdaLora => Method::AdaLora(self.adalora()?),
            MethodName::Ia3 => Method::Ia3(self.ia3()?),
            MethodName::PrefixTuning => Method::PrefixTuning(self.prefix_tuning()?),
            MethodName::PromptTuning => Method::PromptTuning(self.prompt_tuning()?),
            MethodName::PTuning => Method::PTuning(self.p_tuning()),
            MethodName::LnTuning => Method::LnTuning(LnTuning {
                target_modules: match self.targets() {
                    Some(targets) => targets,
                    None => Architecture::of_model(&self.model)?.default_ln_tuning().target_modules,
                },
                exclude_modules: self.excluded(),
                modules_to_save: self.modules_to_save.clone(),
            }),
            MethodName::Bottleneck => Method::Bottleneck(self.bottleneck()?),
        })
    }

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
        Ok(if self.is_given("seed") { run.seed(self.seed) } else { run })
    }

    /// The run these arguments describe. An adapter brings its method and its pooling.
    pub fn run(&self) -> Result<Run> {
        if let Some(recipe) = &self.recipe {
            return self.recipe_run(recipe);
        }
        let settings = Settings {
            learning_rate: self.lr,
            head_learning_rate: self.head_lr,
            loraplus_lr_ratio: self.loraplus_lr_ratio,
            epochs: self.epochs,
            batch_size: self.batch_size,
            warmup_ratio: self.warmup,
            weight_decay: self.weight_decay,
            max_grad_norm: (self.max_grad_norm != 0.0).then_some(self.max_grad_norm),
            dropout: self.dropout,
            precision: match self.precision {
                PrecisionName::F32 => Precision::Exact,
                PrecisionName::Bf16 => Precision::Bf16,
                PrecisionName::Tf32 => Precision::Tf32,
            },
            max_length: self.max_length,
            pooling: match self.pooling {
                PoolingName::Cls => Pooling::Cls,
                PoolingName::Mean => Pooling::Mean,
            },
            train_pooler: self.train_pooler,
            group_by_length: self.group_by_length,
            train_limit: self.train_limit,
            train_extra: self.train_extra,
            evaluate: self.eval_steps.map_or(Evaluate::Epoch, Evaluate::Steps),
            patience: self.patience,
        };
        let (method, settings) = match (&self.adapter, self.method) {
            (Some(folder), _) => {
                let (config, _) = AdapterConfig::read(folder)?;
                let (pooling, train_pooler) = (config.pooling, config.train_pooler);
                (config.method, Settings { pooling, train_pooler, ..settings })
            }
            (None, Some(name)) => (self.method(name)?, settings),
            (None, None) => bail!("neither --method nor --adapter is given"),
        };
        let Some(task) = self.task else { bail!("neither --task nor --recipe is given") };
        let starts_from = match &self.starts_from {
            Some(folder) if Path::new(folder).join("adapter_config.json").is_file() => {
                Some(StartsFrom::adapter(Path::new(folder))?)
            }
            Some(recipe) => Some(StartsFrom::Run(Box::new(Recipe::load(recipe)?.run))),
            None => None,
        };
        Ok(Run { settings, starts_from, ..Run::new(task, &self.model, method) }.seed(self.seed))
    }
}
