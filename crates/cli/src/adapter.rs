//! `peft-glue adapter`: new adapters of others, and checkpoints of merged ones.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use trainer::peft::{
    Adapter, Architecture, Combination, CombinationType, ConversionRank, MajoritySignMethod, Model, Pooling,
    Pretrained, Warning,
};
use trainer::provenance;

use crate::arguments::{pair, path};
use crate::given_adapter::base_model;
use crate::output::check_output;

#[derive(Subcommand)]
pub(crate) enum AdapterCommand {
    /// Combine adapters, each with a weight, as peft's add_weighted_adapter does.
    Combine(CombineArguments),
    /// Make a LoRA that computes what another adapter does, as nearly as its rank allows.
    Convert {
        #[command(flatten)]
        source: Source,
        /// The rank of every layer, such as 8, or the share of each layer's change to keep, such as 0.95.
        #[arg(long)]
        rank: ConversionRank,
    },
    /// Merge an adapter into the model's weights, and write a checkpoint that needs no adapter.
    Merge(Source),
}

#[derive(Args)]
pub(crate) struct CombineArguments {
    /// Each adapter's folder and weight: FOLDER=WEIGHT.
    #[arg(required = true, value_name = "FOLDER=WEIGHT", value_parser = pair::<f64>)]
    adapters: Vec<(String, f64)>,
    /// svd, linear, cat, ties, ties_svd, dare_linear, dare_ties, dare_linear_svd, dare_ties_svd, magnitude_prune or
    /// magnitude_prune_svd; of (IA)³ linear.
    #[arg(long, default_value_t = CombinationType::Svd)]
    combination_type: CombinationType,
    /// Where the type ends in svd: the rank of the result [default: the highest of the adapters].
    #[arg(long)]
    svd_rank: Option<usize>,
    /// Of ties, dare and magnitude_prune: the share of numbers that is kept, above 0 and at most 1.
    #[arg(long)]
    density: Option<f64>,
    /// Of ties: the sign of the sum, or that of most adapters.
    #[arg(long, value_enum, default_value = "total")]
    majority_sign_method: SignName,
    /// The folder of the adapter whose head the result has [default: the first; all must have as many labels].
    #[arg(long)]
    head: Option<String>,
    /// Of what dare draws.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the result goes.
    #[arg(long, value_parser = path())]
    output: PathBuf,
}

/// An adapter, its base model, and where the result goes.
#[derive(Args)]
pub(crate) struct Source {
    /// The adapter's folder.
    #[arg(value_parser = path())]
    adapter: PathBuf,
    /// The base model: a folder, a folder below models/, or a hub id [default: the one that the adapter names].
    #[arg(long)]
    model: Option<String>,
    /// Where the result goes.
    #[arg(long, value_parser = path())]
    output: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum SignName {
    Total,
    Frequency,
}

pub(crate) fn perform(command: &AdapterCommand) -> Result<()> {
    match command {
        AdapterCommand::Combine(arguments) => combine(arguments),
        AdapterCommand::Convert { source, rank } => convert(source, *rank),
        AdapterCommand::Merge(source) => {
            let (pretrained, model) = source.load()?;
            let run = provenance::read(&source.adapter)?;
            let labels = run.as_ref().map_or(&[][..], |run| run.task.labels());
            let file = run.as_ref().map(provenance::file).transpose()?;
            let further: Vec<(&str, &[u8])> = file.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
            model.save_merged_with(&pretrained, labels, &source.output, &further)?;
            warn_of_pooling(&model);
            println!("model: {}", source.output.display());
            Ok(())
        }
    }
}

/// transformers' classes take the first token's vector, ModernBERT's alone have a choice.
fn warn_of_pooling(model: &Model) {
    let architecture = model.config().architecture;
    if model.pooling() == Pooling::Mean && architecture != Architecture::ModernBert {
        eprintln!(
            "Warning: the model takes the mean over tokens, which config.json says as classifier_pooling; this program reads it, and \
             transformers has no such choice for {architecture} and takes the first token"
        );
    }
}

fn combine(arguments: &CombineArguments) -> Result<()> {
    let head = match &arguments.head {
        Some(head) => {
            let place = arguments.adapters.iter().position(|(folder, _)| folder == head);
            Some(place.ok_or_else(|| anyhow!("--head {head} is none of the adapters; name one of them as given"))?)
        }
        None => None,
    };
    check_output("--output", &arguments.output, arguments.adapters.iter().map(|(folder, _)| Path::new(folder)))?;
    let adapters: Vec<(Adapter, f64)> = arguments
        .adapters
        .iter()
        .map(|(folder, weight)| Ok((Adapter::read(Path::new(folder))?, *weight)))
        .collect::<Result<_>>()?;
    adapters.iter().for_each(|(adapter, _)| warn(&adapter.warnings));
    let combination = Combination {
        svd_rank: arguments.svd_rank,
        density: arguments.density,
        majority_sign_method: match arguments.majority_sign_method {
            SignName::Total => MajoritySignMethod::Total,
            SignName::Frequency => MajoritySignMethod::Frequency,
        },
        head,
        seed: arguments.seed,
        ..Combination::new(arguments.combination_type)
    };
    let weighted: Vec<(&Adapter, f64)> = adapters.iter().map(|(adapter, weight)| (adapter, *weight)).collect();
    let combined = Adapter::combine(&weighted, &combination)?;
    warn(&combined.warnings);
    combined.save(&arguments.output)?;
    println!("{}", combined.config.method);
    println!("adapter: {}", arguments.output.display());
    Ok(())
}

fn convert(source: &Source, rank: ConversionRank) -> Result<()> {
    let (pretrained, model) = source.load()?;
    let converted = model.convert_to_lora(&pretrained, rank)?;
    converted.adapter.save(&source.output)?;
    println!("rank      kept  of the squared norm of what the adapter changes");
    for layer in &converted.layers {
        println!("{:>4}  {:>7.3}%  {}", layer.rank, 100.0 * layer.kept, layer.path);
    }
    println!("adapter: {}", source.output.display());
    Ok(())
}

impl Source {
    fn load(&self) -> Result<(Pretrained, Model)> {
        let adapter = Adapter::read(&self.adapter)?;
        let name = base_model(&self.adapter, &adapter.config, self.model.as_deref())?;
        check_output("--output", &self.output, [self.adapter.as_path()])?;
        let pretrained = Pretrained::load(&name)?;
        check_output("--output", &self.output, [pretrained.folder()])?;
        pretrained.remarks().iter().for_each(|remark| eprintln!("Note: {remark}"));
        let model = Model::new(&pretrained, &adapter.options(&pretrained)?)?;
        model.remarks().iter().for_each(|remark| eprintln!("Note: {remark}"));
        warn(&model.load(&adapter)?);
        Ok((pretrained, model))
    }
}

fn warn(warnings: &[Warning]) {
    warnings.iter().for_each(|warning| eprintln!("Warning: {warning}"));
}
