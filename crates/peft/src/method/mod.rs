//! Which parameters a method trains: the choice that a [`crate::Model`] asks for, module by module, as it is built.

mod adalora;
mod bitfit;
mod bottleneck;
mod ia3;
mod ln_tuning;
mod lora;
mod prompt;
mod saved;
mod selection;
mod targets;
mod vera;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::parameters::is_head;

pub use adalora::{AdaLora, RankAllocator};
pub(crate) use adalora::{NAMES, SvdBranch};
pub use bitfit::BitFit;
pub use bottleneck::{AdapterStyle, Bottleneck, InitWeights};
pub(crate) use bottleneck::{BottleneckAdapter, Flow, Sublayer};
pub use ia3::Ia3;
pub(crate) use ia3::Vector;
pub use ln_tuning::LnTuning;
pub(crate) use lora::Branch;
pub use lora::{Bias, EvaConfig, InitLoraWeights, Lora};
pub use prompt::{PTuning, PrefixInitWeights, PrefixTuning, PromptTuning, PromptTuningInit, Reparameterization};
pub(crate) use prompt::{Prefix, PromptEncoder, VirtualTokens, is_of_prompt};
pub use targets::Targets;
pub use vera::Vera;
pub(crate) use vera::{Projections, VeraBranch};

use adalora::AdaLoraTuner;
use ia3::Ia3Tuner;
use ln_tuning::LnTuner;
use lora::LoraTuner;
use saved::lies_in;
use targets::Matcher;
use vera::VeraTuner;

/// How a pretrained encoder is fine-tuned. The classifier is always trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum Method {
    /// Every parameter.
    Full,
    /// The classifier alone.
    Head,
    /// The encoder's biases.
    BitFit(BitFit),
    /// A low-rank branch beside chosen linear layers.
    Lora(Lora),
    /// Vectors that scale the outputs or inputs of chosen linear layers.
    Ia3(Ia3),
    /// The layer norms.
    #[serde(rename = "ln_tuning")]
    LnTuning(LnTuning),
    /// Small networks within the layers.
    Bottleneck(Bottleneck),
    /// Two vectors beside chosen linear layers, around random matrices that all share.
    Vera(Vera),
    /// Branches beside chosen linear layers that share a budget of ranks.
    AdaLora(AdaLora),
    /// Keys and values before those of each layer.
    #[serde(rename = "prefix_tuning")]
    PrefixTuning(PrefixTuning),
    /// Vectors before the embeddings.
    #[serde(rename = "prompt_tuning")]
    PromptTuning(PromptTuning),
    /// Vectors before the embeddings, made by a network.
    #[serde(rename = "p_tuning")]
    PTuning(PTuning),
}

impl Method {
    /// `full`, `head`, `bitfit`, `lora`, `ia3`, `ln_tuning`, `bottleneck`, `vera`, `adalora`, `prefix_tuning`, `prompt_tuning` or
    /// `p_tuning`.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Head => "head",
            Self::BitFit(_) => "bitfit",
            Self::Lora(_) => "lora",
            Self::Ia3(_) => "ia3",
            Self::LnTuning(_) => "ln_tuning",
            Self::Vera(_) => "vera",
            Self::AdaLora(_) => "adalora",
            Self::Bottleneck(_) => "bottleneck",
            Self::PrefixTuning(_) => "prefix_tuning",
            Self::PromptTuning(_) => "prompt_tuning",
            Self::PTuning(_) => "p_tuning",
        }
    }

    /// How many of the model's positions virtual tokens take: fewer are left for a sequence's own.
    pub fn virtual_tokens(&self) -> usize {
        match self {
            Self::PrefixTuning(prefix) => prefix.num_virtual_tokens,
            Self::PromptTuning(prompt) => prompt.num_virtual_tokens,
            Self::PTuning(prompt) => prompt.num_virtual_tokens,
            _ => 0,
        }
    }

    /// The same as an adapter holds it: virtual tokens stand without the network that made them.
    pub(crate) fn of_adapter(&self) -> Self {
        match self.clone() {
            Self::PrefixTuning(prefix) => Self::PrefixTuning(PrefixTuning { inference_mode: true, ..prefix }),
            Self::PromptTuning(prompt) => Self::PromptTuning(PromptTuning { inference_mode: true, ..prompt }),
            Self::PTuning(prompt) => Self::PTuning(PTuning { inference_mode: true, ..prompt }),
            other => other,
        }
    }

    /// Modules that are trained whole besides the head, by the end of their path.
    pub(crate) fn modules_to_save(&self) -> &[String] {
        match self {
            Self::Full | Self::Head | Self::BitFit(_) | Self::Bottleneck(_) => &[],
            Self::Lora(lora) => &lora.modules_to_save,
            Self::Ia3(ia3) => &ia3.modules_to_save,
            Self::LnTuning(ln_tuning) => &ln_tuning.modules_to_save,
            Self::Vera(vera) => &vera.modules_to_save,
            Self::AdaLora(adalora) => &adalora.modules_to_save,
            Self::PrefixTuning(prefix) => &prefix.modules_to_save,
            Self::PromptTuning(prompt) => &prompt.modules_to_save,
            Self::PTuning(prompt) => &prompt.modules_to_save,
        }
    }

    /// The biases that are trained besides an adapter.
    pub(crate) fn bias(&self) -> Bias {
        match self {
            Self::Lora(lora) => lora.bias,
            Self::Vera(vera) => vera.bias,
            Self::AdaLora(adalora) => adalora.bias,
            _ => Bias::None,
        }
    }

    /// For a run of so many steps: AdaLoRA's schedule runs over them, if it does not say over how many.
    pub fn over(mut self, steps: usize) -> Self {
        if let Self::AdaLora(adalora) = &mut self {
            adalora.total_step.get_or_insert(steps);
        }
        self
    }

    /// Whether its start follows from data, and not from the checkpoint and a seed alone.
    pub fn starts_from_data(&self) -> bool {
        matches!(self, Self::Lora(lora) if lora.init_lora_weights == InitLoraWeights::Eva)
    }

    /// BitFit on all biases.
    pub fn bitfit() -> Self {
        Self::BitFit(BitFit::default())
    }

    /// LoRA of rank `r` on query and value.
    pub fn lora(r: usize) -> Self {
        Self::Lora(Lora::rank(r))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Full => write!(f, "Full fine-tuning"),
            Self::Head => write!(f, "Head only"),
            Self::BitFit(BitFit { target_modules: None }) => write!(f, "BitFit"),
            Self::BitFit(BitFit { target_modules: Some(targets) }) => write!(f, "BitFit ({targets})"),
            Self::Lora(lora) => write!(f, "{lora}"),
            Self::Ia3(_) => write!(f, "(IA)³"),
            Self::LnTuning(_) => write!(f, "LN tuning"),
            Self::Bottleneck(bottleneck) => write!(f, "{bottleneck}"),
            Self::Vera(vera) => write!(f, "VeRA r={}", vera.r),
            Self::AdaLora(adalora) => write!(f, "AdaLoRA r={} to {}", adalora.init_r, adalora.target_r),
            Self::PrefixTuning(PrefixTuning { num_virtual_tokens, prefix_projection, .. }) => {
                let projected = if *prefix_projection { ", projected" } else { "" };
                write!(f, "Prefix tuning n={num_virtual_tokens}{projected}")
            }
            Self::PromptTuning(PromptTuning { num_virtual_tokens, .. }) => {
                write!(f, "Prompt tuning n={num_virtual_tokens}")
            }
            Self::PTuning(PTuning { num_virtual_tokens, .. }) => write!(f, "P-tuning n={num_virtual_tokens}"),
        }
    }
}

/// A [`Method`] ready to be asked.
pub(crate) struct Tuner {
    asked: Asked,
    /// [`Method::modules_to_save`].
    saved: Vec<String>,
    /// [`Method::bias`].
    bias: Bias,
    /// Whether the pooler is trained whole, whatever the method.
    train_pooler: bool,
}

enum Asked {
    Full,
    Head,
    BitFit { targets: Option<(Targets, Matcher)> },
    Lora(Box<LoraTuner>),
    Ia3(Box<Ia3Tuner>),
    LnTuning(Box<LnTuner>),
    Bottleneck(Bottleneck),
    Vera(Box<VeraTuner>),
    AdaLora(Box<AdaLoraTuner>),
    Prompt(Box<VirtualTokens>),
}

/// What a linear layer gets from the method.
pub(crate) enum Adaptation {
    Lora(Branch),
    Ia3(Vector),
    Vera(VeraBranch),
    AdaLora(SvdBranch),
}

pub(crate) const POOLER: &str = "bert.pooler.dense";
pub(crate) const CLASSIFIER: &str = "classifier";
/// What PEFT takes for the head of a sequence classifier, and trains and saves whole (`utils/constants.py`,
/// `SEQ_CLS_HEAD_NAMES`).
pub(crate) const HEADS: [&str; 2] = [CLASSIFIER, "score"];

impl Tuner {
    pub fn new(method: &Method, train_pooler: bool) -> Result<Self> {
        let asked = match method {
            Method::Full => Asked::Full,
            Method::Head => Asked::Head,
            Method::BitFit(BitFit { target_modules }) => {
                let matcher = target_modules.as_ref().map(Targets::compile).transpose()?;
                Asked::BitFit { targets: target_modules.clone().zip(matcher) }
            }
            Method::Lora(lora) => Asked::Lora(Box::new(LoraTuner::new(lora)?)),
            Method::Ia3(ia3) => Asked::Ia3(Box::new(Ia3Tuner::new(ia3)?)),
            Method::LnTuning(ln_tuning) => Asked::LnTuning(Box::new(LnTuner::new(ln_tuning)?)),
            Method::Bottleneck(bottleneck) => {
                bottleneck.check()?;
                Asked::Bottleneck(bottleneck.clone())
            }
            Method::Vera(vera) => Asked::Vera(Box::new(VeraTuner::new(vera)?)),
            Method::AdaLora(adalora) => Asked::AdaLora(Box::new(AdaLoraTuner::new(adalora)?)),
            Method::PrefixTuning(prefix) => Asked::Prompt(VirtualTokens::Prefix(prefix.clone()).checked()?),
            Method::PromptTuning(prompt) => Asked::Prompt(VirtualTokens::Prompt(prompt.clone()).checked()?),
            Method::PTuning(prompt) => Asked::Prompt(VirtualTokens::PTuning(prompt.clone()).checked()?),
        };
        Ok(Self { asked, saved: method.modules_to_save().to_vec(), bias: method.bias(), train_pooler })
    }

    /// Whether the parameter `{module}.{name}` of the pretrained model is trained.
    pub fn trains(&self, module: &str, name: &str) -> bool {
        if self.trains_whole(module) {
            return true;
        }
        match &self.asked {
            Asked::Full => true,
            Asked::Head | Asked::Ia3(_) | Asked::Bottleneck(_) | Asked::Prompt(_) => false,
            Asked::LnTuning(ln_tuning) => ln_tuning.tunes(module),
            Asked::BitFit { targets } => {
                name == "bias"
                    && (module == POOLER || targets.as_ref().is_none_or(|(_, targets)| targets.matches(module)))
            }
            Asked::Lora(_) | Asked::Vera(_) | Asked::AdaLora(_) => name == "bias" && self.bias == Bias::All,
        }
    }

    /// Whether the parameter `name` of a layer that has an adapter is trained, where [`Tuner::trains`] says no.
    pub fn trains_beside_adapter(&self, name: &str) -> bool {
        name == "bias" && self.bias != Bias::None
    }

    /// Whether layer norms are trained, where [`Tuner::trains`] says no.
    pub fn trains_layer_norms(&self) -> bool {
        matches!(&self.asked, Asked::Bottleneck(bottleneck) if bottleneck.train_layer_norms)
    }

    /// Whether a module is trained whole beside what the method adapts: the head always is.
    fn trains_whole(&self, module: &str) -> bool {
        is_head(module) || (self.train_pooler && module == POOLER) || lies_in(module, &self.saved)
    }

    /// Whether PEFT trains a copy of a module, and keeps the frozen original (`utils/other.py`, `ModulesToSaveWrapper`).
    pub fn copies(&self, module: &str) -> bool {
        match &self.asked {
            Asked::Lora(_) | Asked::Ia3(_) | Asked::Vera(_) | Asked::AdaLora(_) | Asked::Prompt(_) => {
                self.trains_whole(module)
            }
            Asked::LnTuning(ln_tuning) => self.trains_whole(module) || ln_tuning.tunes(module),
            Asked::Full | Asked::Head | Asked::BitFit { .. } | Asked::Bottleneck(_) => false,
        }
    }

    /// What PEFT's files have between a trained module and its parameters' names, where it is no adapter's base layer.
    pub fn part(&self, module: &str) -> Option<&'static str> {
        let is_tuned = matches!(&self.asked, Asked::LnTuning(ln_tuning) if ln_tuning.tunes(module));
        (is_tuned && !self.trains_whole(module)).then_some("ln_tuning_layers")
    }

    /// What a linear layer gets. Modules that are trained whole get nothing (PEFT: `modules_to_save` wins).
    pub fn adaptation(&self, module: &str) -> Option<Adaptation> {
        match &self.asked {
            _ if self.trains_whole(module) => None,
            Asked::Lora(lora) if lora.adapts(module) => Some(Adaptation::Lora(lora.branch(module))),
            Asked::Ia3(ia3) => ia3.vector(module).map(Adaptation::Ia3),
            Asked::Vera(vera) => vera.branch(module).map(Adaptation::Vera),
            Asked::AdaLora(adalora) => adalora.branch(module).map(Adaptation::AdaLora),
            _ => None,
        }
    }

    /// The matrices that all layers' branches share, and the key that they are drawn from.
    pub fn projections(&self) -> Option<(Arc<Projections>, u64)> {
        match &self.asked {
            Asked::Vera(vera) => Some(vera.projections()),
            _ => None,
        }
    }

    /// The adapter that stands in a layer's sublayer.
    pub fn bottleneck(&self, sublayer: Sublayer) -> Option<&Bottleneck> {
        match &self.asked {
            Asked::Bottleneck(bottleneck) => Some(bottleneck).filter(|bottleneck| bottleneck.stands_in(sublayer)),
            _ => None,
        }
    }

    /// The virtual tokens that the method puts before a sequence's, if it does.
    pub fn virtual_tokens(&self) -> Option<VirtualTokens> {
        match &self.asked {
            Asked::Prompt(prompt) => Some(VirtualTokens::clone(prompt)),
            _ => None,
        }
    }

    /// With a target that names nothing, less would be trained than was asked for, silently. BitFit's targets name modules
    /// that have a bias, LN tuning's any, the others' linear layers.
    pub fn check_targets(&self, modules: &Modules) -> Result<()> {
        match &self.asked {
            Asked::Lora(lora) => lora.check_targets(&modules.linear_layers, &modules.all),
            Asked::Ia3(ia3) => ia3.check_targets(&modules.linear_layers, &modules.all),
            Asked::LnTuning(ln_tuning) => ln_tuning.check_targets(modules),
            Asked::Vera(vera) => vera.check_targets(&modules.linear_layers, &modules.all),
            Asked::AdaLora(adalora) => adalora.check_targets(&modules.linear_layers, &modules.all),
            Asked::Prompt(prompt) => prompt.check_targets(modules),
            Asked::BitFit { targets: Some((targets, _)) } => {
                let unmatched = targets.unmatched(modules.biased.iter())?;
                if unmatched.is_empty() && *targets != Targets::Suffixes(Vec::new()) {
                    return Ok(());
                }
                Err(Error::NoTarget {
                    method: "BitFit".into(),
                    targets: unmatched.join(", "),
                    choices: targets::ends(&modules.biased),
                })
            }
            _ => Ok(()),
        }
    }
}

/// The modules of a model, by what a method's targets may name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Modules {
    /// Every module that has a parameter.
    pub all: BTreeSet<String>,
    /// The linear layers that are not trained whole.
    pub linear_layers: BTreeSet<String>,
    /// Those that have a bias.
    pub biased: BTreeSet<String>,
    /// The layer norms.
    pub layer_norms: BTreeSet<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pooler_that_is_trained_whole_gets_no_branch() {
        let lora = Method::Lora(Lora::rank(4).on(Targets::suffixes(["dense"])));
        assert!(Tuner::new(&lora, false).unwrap().adaptation(POOLER).is_some());
        assert!(Tuner::new(&lora, true).unwrap().adaptation(POOLER).is_none());
    }

    #[test]
    fn rank_zero_is_refused() {
        let error = Tuner::new(&Method::lora(0), false).err().unwrap().to_string();
        assert!(error.contains("r is 0"), "{error}");
    }

    #[test]
    fn a_method_reads_back_from_its_json() {
        for method in [
            Method::Full,
            Method::Head,
            Method::bitfit(),
            Method::lora(4),
            Method::Ia3(Ia3::default()),
            Method::LnTuning(LnTuning::default()),
            Method::Bottleneck(Bottleneck::new(AdapterStyle::Parallel)),
            Method::Vera(Vera::default()),
            Method::AdaLora(AdaLora { total_step: Some(10), ..AdaLora::default() }),
            Method::PrefixTuning(PrefixTuning { prefix_projection: true, ..PrefixTuning::default() }),
            Method::PromptTuning(PromptTuning {
                prompt_tuning_init: PromptTuningInit::SampleVocab,
                ..PromptTuning::default()
            }),
            Method::PTuning(PTuning::default()),
        ] {
            let json = serde_json::to_string(&method).unwrap();
            assert_eq!(serde_json::from_str::<Method>(&json).unwrap(), method, "{json}");
        }
        let pattern = r#"{"name":"lora","r":4,"target_modules":".*query"}"#;
        assert!(
            matches!(serde_json::from_str(pattern).unwrap(), Method::Lora(l) if l.target_modules == Targets::pattern(".*query"))
        );
    }

    /// The branches of a LoRA on paths.
    fn adapted(lora: &Lora, paths: &[&str]) -> Vec<bool> {
        let tuner = Tuner::new(&Method::Lora(lora.clone()), false).unwrap();
        paths.iter().map(|path| tuner.adaptation(path).is_some()).collect()
    }

    #[test]
    fn excluded_modules_get_no_branch() {
        let lora = Lora::default().on(Targets::AllLinear);
        let paths = ["bert.encoder.layer.0.output.dense", POOLER, "bert.encoder.layer.0.attention.self.key"];
        let exclude = |targets| Lora { exclude_modules: Some(targets), ..lora.clone() };
        assert_eq!(adapted(&lora, &paths), [true; 3]);
        assert_eq!(adapted(&exclude(Targets::suffixes(["pooler.dense", "key"])), &paths), [true, false, false]);
        assert_eq!(adapted(&exclude(Targets::pattern(r".*\.dense")), &paths), [false, false, true]);
    }

    #[test]
    fn a_layers_number_is_the_first_in_its_path_unless_a_pattern_says_where_it_stands() {
        let paths = ["blocks.1.experts.0.query", "blocks.0.experts.1.query", "pooler.query"];
        let lora = |layers: &[usize], pattern: &[&str]| Lora {
            layers_to_transform: Some(layers.to_vec()),
            layers_pattern: pattern.iter().map(|name| name.to_string()).collect(),
            ..Lora::default()
        };
        // `.blocks.` would be needed before the first number: PEFT's expression wants a name and a dot before it.
        assert_eq!(adapted(&lora(&[1], &["experts"]), &paths), [false, true, false]);
        assert_eq!(adapted(&lora(&[1], &["blocks"]), &paths), [true, false, false]);
        let paths = ["bert.layer.1.experts.0.query", "bert.layer.0.experts.1.query"];
        assert_eq!(adapted(&lora(&[1], &[]), &paths), [true, false]);
        assert_eq!(adapted(&lora(&[], &[]), &paths), [true, true]);
        // A whole path needs no number.
        let named = lora(&[1], &[]).on(Targets::suffixes([paths[1]]));
        assert_eq!(adapted(&named, &paths), [false, true]);
    }

    #[test]
    fn layer_numbers_go_with_a_list_of_targets_only_and_their_pattern_with_numbers_only() {
        let error = |lora| Tuner::new(&Method::Lora(lora), false).err().unwrap().to_string();
        let layers = Lora { layers_to_transform: Some(vec![0]), ..Lora::default().on(Targets::AllLinear) };
        assert!(error(layers).contains("layers_to_transform is [0]"));
        let pattern = Lora { layers_pattern: vec!["layer".into()], ..Lora::default() };
        assert!(error(pattern).contains("layers_pattern is layer"));
    }

    #[test]
    fn a_module_to_save_is_trained_whole_and_so_is_what_lies_in_it() {
        let lora = Lora { modules_to_save: vec!["pooler".into()], ..Lora::default().on(Targets::suffixes(["dense"])) };
        let tuner = Tuner::new(&Method::Lora(lora), false).unwrap();
        assert!(tuner.trains(POOLER, "weight") && tuner.copies(POOLER) && tuner.adaptation(POOLER).is_none());
        assert!(!tuner.trains("bert.encoder.layer.0.output.dense", "weight"));
    }

    #[test]
    fn feed_forward_modules_are_targets_too() {
        let ia3 = Ia3 { feedforward_modules: Targets::suffixes(["intermediate.dense"]), ..Ia3::default() };
        let error = Tuner::new(&Method::Ia3(ia3), false).err().unwrap().to_string();
        assert!(error.contains("feedforward_modules is intermediate.dense"), "{error}");
    }

    #[test]
    fn options_that_are_not_set_are_not_written_so_that_old_records_keep_their_names() {
        let json = serde_json::to_string(&Method::lora(4)).unwrap();
        let old = r#"{"name":"lora","r":4,"lora_alpha":8.0,"lora_dropout":0.0,"target_modules":["query","value"]}"#;
        assert_eq!(json, old);
        let lora = Lora {
            bias: Bias::LoraOnly,
            use_dora: true,
            init_lora_weights: InitLoraWeights::Pissa,
            rank_pattern: [("query".to_string(), 2)].into(),
            ..Lora::default()
        };
        let json = serde_json::to_string(&lora).unwrap();
        assert!(json.contains(r#""bias":"lora_only""#) && json.contains(r#""init_lora_weights":"pissa""#), "{json}");
        assert_eq!(serde_json::from_str::<Lora>(&json).unwrap(), lora);
        let error = serde_json::from_str::<Lora>(r#"{"init_lora_weights":"loftq"}"#).unwrap_err().to_string();
        assert!(error.contains("\"loftq\" is not known"), "{error}");
    }
}
