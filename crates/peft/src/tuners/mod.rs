//! The fine-tuning methods. Each is a folder with its options, its formula, what it trains, and how it merges; here they stand in
//! one list.

mod adalora;
mod bitfit;
mod bottleneck;
pub(crate) mod combination;
mod compacter;
pub(crate) mod config;
pub(crate) mod config_file;
mod full;
mod head;
mod ia3;
mod ln_tuning;
mod loha;
mod lokr;
mod lora;
mod lycoris;
mod modules_to_save;
mod oft;
mod options;
mod p_tuning;
mod patterns;
mod prefix_tuning;
mod prompt_tuning;
mod selected_layers;
mod selection;
mod task_tensors;
mod vera;
mod virtual_tokens;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::architectures::Architecture;
use crate::error::{ConfigError, Error};
use crate::similar_names::nearest;

pub use adalora::{AdaLora, RankAllocator};
pub use bitfit::BitFit;
pub use bottleneck::{AdapterStyle, Bottleneck, InitWeights};
pub use combination::{Combination, CombinationType};
pub use compacter::{Compacter, PhmCInit};
pub use config::{AfterStep, Bias};
pub use config_file::{FileField, PromptSizes};
pub use ia3::Ia3;
pub use ln_tuning::LnTuning;
pub use loha::LoHa;
pub use lokr::{InitLoKrWeights, LoKr, LycorisInit};
pub(crate) use lora::to_lora;
pub use lora::{ConversionRank, ConvertedLayer, EvaConfig, InitLoraWeights, Lora};
pub use oft::Oft;
pub use options::{MethodOption, OptionKind};
pub use p_tuning::{PTuning, Reparameterization};
pub use prefix_tuning::{PrefixInitWeights, PrefixTuning};
pub use prompt_tuning::{PromptTuning, PromptTuningInit};
pub use task_tensors::MajoritySignMethod;
pub use vera::Vera;

use config::TunerConfig;
use config_file::{ConfigFile, Fields};
use full::Full;
use head::Head;

/// Declares [`Method`] from the list of its kinds: those without options, then those that have some.
macro_rules! methods {
    (
        $($(#[$unit_doc:meta])* $unit:ident = $unit_id:literal,)*
        ;
        $($(#[$doc:meta])* $kind:ident = $id:literal,)*
    ) => {
        /// How a pretrained encoder is fine-tuned. The classifier is always trained.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(tag = "name")]
        pub enum Method {
            $($(#[$unit_doc])* #[serde(rename = $unit_id)] $unit,)*
            $($(#[$doc])* #[serde(rename = $id)] $kind($kind),)*
        }

        impl Method {
            /// Every method's id, in the order of the list.
            pub const IDS: &'static [&'static str] = &[$($unit_id,)* $($id,)*];

            /// Its id, which is its name in records and on the command line.
            pub fn id(&self) -> &'static str {
                match self {
                    $(Self::$unit => $unit_id,)*
                    $(Self::$kind(_) => $id,)*
                }
            }

            /// The method of that id with its default options.
            pub fn of_id(id: &str) -> Option<Self> {
                match id {
                    $($unit_id => Some(Self::$unit),)*
                    $($id => Some(Self::$kind($kind::default())),)*
                    _ => None,
                }
            }

            pub(crate) fn config(&self) -> &dyn TunerConfig {
                match self {
                    $(Self::$unit => &$unit {},)*
                    $(Self::$kind(config) => config,)*
                }
            }

            /// Changes its options, if it has any.
            pub(crate) fn change<R>(&mut self, change: impl FnOnce(&mut dyn TunerConfig) -> R) -> R {
                match self {
                    $(Self::$unit => change(&mut $unit {}),)*
                    $(Self::$kind(config) => change(config),)*
                }
            }

            /// `peft_type`: PEFT's name of the method, or one of this crate's.
            pub(crate) fn peft_type(&self) -> &'static str {
                match self {
                    $(Self::$unit => $unit::PEFT_TYPE,)*
                    $(Self::$kind(_) => $kind::PEFT_TYPE,)*
                }
            }

            /// What the names of its adapters' parameters have behind the path of their layer.
            pub(crate) fn tensor_names(&self) -> &'static [&'static str] {
                match self {
                    $(Self::$unit => $unit::TENSORS,)*
                    $(Self::$kind(_) => $kind::TENSORS,)*
                }
            }

            /// The same of all methods.
            pub(crate) const ALL_TENSOR_NAMES: &'static [&'static [&'static str]] =
                &[$($unit::TENSORS,)* $($kind::TENSORS,)*];

            /// The fields of `adapter_config.json` that a `peft_type` may have; `None` where it is not known.
            pub(crate) fn known_fields(peft_type: &str) -> Option<Vec<(String, FileField)>> {
                $(if peft_type == $unit::PEFT_TYPE { return Some(config_file::known::<$unit>()); })*
                $(if peft_type == $kind::PEFT_TYPE { return Some(config_file::known::<$kind>()); })*
                None
            }

            /// The method of a file's `peft_type` and fields.
            pub(crate) fn read(peft_type: &str, fields: Fields, modules_to_save: &[String]) -> Result<Self, ConfigError> {
                $(if peft_type == $unit::PEFT_TYPE {
                    return config_file::read::<$unit>(fields, modules_to_save).map(|_| Self::$unit);
                })*
                $(if peft_type == $kind::PEFT_TYPE {
                    return config_file::read(fields, modules_to_save).map(Self::$kind);
                })*
                let known = [$($unit::PEFT_TYPE,)* $($kind::PEFT_TYPE,)*];
                let nearest = nearest(peft_type, known);
                Err(ConfigError::UnknownType { found: peft_type.into(), nearest, known: known.join(", ") })
            }

            /// The options of a method on a command line, by its id.
            pub fn options(id: &str) -> Vec<MethodOption> {
                match id {
                    $($unit_id => $unit::OPTIONS.concat(),)*
                    $($id => $kind::OPTIONS.concat(),)*
                    _ => Vec::new(),
                }
            }

            /// The method of an id with these of its options' fields, and the default for every other. Where no layers are named,
            /// they are those that are meant on the model's architecture.
            ///
            /// # Errors
            /// When there is no such method, a value does not fit its field, or the architecture is not known.
            pub fn from_fields(
                id: &str,
                fields: serde_json::Map<String, serde_json::Value>,
                architecture: impl FnOnce() -> Result<Architecture, Error>,
            ) -> Result<Self, ConfigError> {
                match id {
                    $($unit_id => config_file::from_fields::<$unit>(fields, architecture).map(|_| Self::$unit),)*
                    $($id => config_file::from_fields(fields, architecture).map(Self::$kind),)*
                    _ => Err(ConfigError::UnknownType {
                        found: id.into(),
                        nearest: nearest(id, Self::IDS.iter().copied()),
                        known: Self::IDS.join(", "),
                    }),
                }
            }

            /// The fields that its options are in a file.
            pub(crate) fn write(&self, sizes: Option<PromptSizes>) -> Result<Fields, ConfigError> {
                match self {
                    $(Self::$unit => config_file::write(&$unit {}, sizes),)*
                    $(Self::$kind(config) => config_file::write(config, sizes),)*
                }
            }
        }
    };
}

methods! {
    /// Every parameter.
    Full = "full",
    /// The classifier alone.
    Head = "head",
    ;
    /// The encoder's biases.
    BitFit = "bitfit",
    /// A low-rank branch beside chosen linear layers.
    Lora = "lora",
    /// Vectors that scale the outputs or inputs of chosen linear layers.
    Ia3 = "ia3",
    /// The layer norms.
    LnTuning = "ln_tuning",
    /// Small networks within the layers.
    Bottleneck = "bottleneck",
    /// The same with matrices of Kronecker products, of which the layers share a part.
    Compacter = "compacter",
    /// Two vectors beside chosen linear layers, around random matrices that all share.
    Vera = "vera",
    /// A branch beside chosen linear layers, the product number by number of two of low rank.
    LoHa = "loha",
    /// A branch beside chosen linear layers, the Kronecker product of two small matrices.
    LoKr = "lokr",
    /// Rotations of the inputs of chosen linear layers, block by block.
    Oft = "oft",
    /// Branches beside chosen linear layers that share a budget of ranks.
    AdaLora = "adalora",
    /// Keys and values before those of each layer.
    PrefixTuning = "prefix_tuning",
    /// Vectors before the embeddings.
    PromptTuning = "prompt_tuning",
    /// Vectors before the embeddings, made by a network.
    PTuning = "p_tuning",
}

impl Method {
    /// BitFit on all biases.
    pub fn bitfit() -> Self {
        Self::BitFit(BitFit::default())
    }

    /// LoRA of rank `r` on query and value.
    pub fn lora(r: usize) -> Self {
        Self::Lora(Lora::rank(r))
    }

    /// How many of the model's positions virtual tokens take: fewer are left for a sequence's own.
    pub fn virtual_tokens(&self) -> usize {
        self.config().virtual_tokens()
    }

    /// For a run of so many steps: a schedule runs over them, if the options do not say over how many.
    pub fn over(mut self, steps: usize) -> Self {
        self.change(|config| config.set_total_steps(steps));
        self
    }

    /// Whether a schedule of the method waits to be told how many steps there are.
    pub fn needs_total_steps(&self) -> bool {
        self.config().needs_total_steps()
    }

    /// Whether its initial values follow from data, and not from the checkpoint and a seed alone.
    pub fn starts_from_data(&self) -> bool {
        self.config().data_initializer().is_some()
    }

    /// With the layers that are meant on an architecture where none are named.
    pub fn on_architecture(mut self, architecture: Architecture) -> Self {
        self.change(|config| config.set_default_layers(architecture));
        self
    }

    /// A learning rate to begin with, in an encoder of that hidden size.
    pub fn default_learning_rate(&self, hidden_size: usize) -> f64 {
        self.config().learning_rate(hidden_size)
    }

    /// A text whose tokens the initial values are made of, where they are not known yet.
    pub fn text_to_tokenize(&self) -> Option<&str> {
        self.config().text_to_tokenize()
    }

    /// With the tokens of that text, cut by the tokenizer of that name.
    pub fn with_tokens(mut self, tokenizer: &str, token_ids: Vec<u32>) -> Self {
        self.change(|config| config.set_tokens(tokenizer, token_ids));
        self
    }

    /// The same as an adapter holds it: virtual tokens stand without the network that made them.
    pub(crate) fn of_adapter(mut self) -> Self {
        self.change(|config| config.set_inference_mode());
        self
    }
}

impl Default for Method {
    /// No tuner: the classifier alone is trained.
    fn default() -> Self {
        Self::Head
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.config().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;
    use crate::targets::Targets;

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
            Method::Compacter(Compacter { shared_w_phm: true, phm_c_init: PhmCInit::Uniform, ..Compacter::default() }),
            Method::Vera(Vera::default()),
            Method::LoHa(LoHa { rank_dropout: 0.1, ..LoHa::default() }),
            Method::LoKr(LoKr { init_weights: InitLoKrWeights::Named(LycorisInit::Lycoris), ..LoKr::default() }),
            Method::Oft(Oft { r: 4, oft_block_size: 0, bias: Bias::LoraOnly, ..Oft::default() }),
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

    #[test]
    fn a_value_that_makes_no_adapter_is_refused_by_the_name_of_its_field() {
        let error = |method: Method| method.config().tuner().err().unwrap().to_string();
        assert!(error(Method::lora(0)).contains("r is 0"));
        let ia3 = Ia3 { feedforward_modules: Targets::suffixes(["intermediate.dense"]), ..Ia3::default() };
        assert!(error(Method::Ia3(ia3)).contains("feedforward_modules is intermediate.dense"));
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
        let near: Lora = serde_json::from_str(r#"{"init_lora_weights":"pissa_niter_16"}"#).unwrap();
        assert_eq!(near.init_lora_weights, InitLoraWeights::Pissa);
        for wrong in ["pissa_niter_", "pissa_niter_x", "pissa_niter"] {
            assert!(serde_json::from_str::<Lora>(&format!(r#"{{"init_lora_weights":"{wrong}"}}"#)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_option_of_the_command_line_is_a_field_and_each_default_method_is_that_of_no_options() {
        for &id in Method::IDS {
            let method = Method::of_id(id).unwrap();
            let bert = || Ok(Architecture::Bert);
            let without = Method::from_fields(id, Fields::new(), bert).unwrap();
            assert_eq!(without, method, "{id}");
            let known = Method::known_fields(method.peft_type()).unwrap();
            for option in Method::options(id) {
                let field = option.field.split('.').next().unwrap();
                assert!(known.iter().any(|(name, _)| name == field), "{id}: --{} sets {field}", option.name);
            }
        }
    }
}
