//! Which parameters a method trains: the choice that a [`crate::Model`] asks for, module by module, as it is built.

use std::collections::BTreeSet;
use std::fmt;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::parameters::is_head;

/// How a pretrained encoder is fine-tuned. The head that stands on it is always trained.
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
}

/// BitFit (Ben Zaken et al. 2022): trains the bias terms of the encoder, those of its layer norms and its pooler among them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BitFit {
    /// The modules whose biases are trained; `None`: all. The pooler's bias is trained in any case, as in the paper's code.
    /// The paper's small subset is `query` and `intermediate.dense`.
    pub target_modules: Option<Targets>,
}

/// LoRA (Hu et al. 2021), in the words of PEFT's `LoraConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lora {
    /// The rank of the branch.
    pub r: usize,
    /// The branch is multiplied by `lora_alpha / r`.
    pub lora_alpha: f64,
    /// Dropout on the branch's input.
    pub lora_dropout: f64,
    /// The linear layers that get a branch.
    pub target_modules: Targets,
}

impl Default for Lora {
    /// PEFT's defaults for BERT but for `lora_alpha`, which is twice the rank: r 8 on query and value.
    fn default() -> Self {
        Self::rank(8)
    }
}

impl Lora {
    /// Rank `r` with `lora_alpha = 2 r`, so that the scaling is the same at every rank.
    pub fn rank(r: usize) -> Self {
        let target_modules = Targets::suffixes(["query", "value"]);
        Self { r, lora_alpha: 2.0 * r as f64, lora_dropout: 0.0, target_modules }
    }

    /// With other target modules.
    pub fn on(mut self, targets: Targets) -> Self {
        self.target_modules = targets;
        self
    }

    /// `lora_alpha / r` (PEFT `tuners/lora/layer.py`, `update_layer`).
    pub fn scaling(&self) -> f64 {
        self.lora_alpha / self.r as f64
    }
}

/// Modules by path, as PEFT's `target_modules`: a list of path ends, or one regular expression for the whole path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// A module matches if its path is one of these, or ends in `.` and one of these.
    Suffixes(Vec<String>),
    /// A module matches if this regular expression matches its whole path.
    Pattern(String),
}

impl Targets {
    /// Modules whose path ends in one of `names`.
    pub fn suffixes<S: ToString>(names: impl IntoIterator<Item = S>) -> Self {
        Self::Suffixes(names.into_iter().map(|name| name.to_string()).collect())
    }

    /// Modules whose whole path `pattern` matches.
    pub fn pattern(pattern: impl ToString) -> Self {
        Self::Pattern(pattern.to_string())
    }

    fn compile(&self) -> Result<Matcher> {
        Ok(match self {
            Self::Suffixes(names) => Matcher::Suffixes(names.clone()),
            Self::Pattern(pattern) => Matcher::Pattern(
                Regex::new(&format!("^(?:{pattern})$"))
                    .map_err(|source| Error::Pattern { pattern: pattern.clone(), source: Box::new(source) })?,
            ),
        })
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Suffixes(names) => write!(f, "{}", names.join(", ")),
            Self::Pattern(pattern) => write!(f, "/{pattern}/"),
        }
    }
}

impl Method {
    /// `full`, `head`, `bitfit` or `lora`.
    pub fn id(&self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Head => "head",
            Self::BitFit(_) => "bitfit",
            Self::Lora(_) => "lora",
        }
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
            Self::Lora(lora) => write!(f, "LoRA r={}", lora.r),
        }
    }
}

enum Matcher {
    Suffixes(Vec<String>),
    Pattern(Regex),
}

impl Matcher {
    fn matches(&self, path: &str) -> bool {
        match self {
            // PEFT `tuners_utils.py`, `check_target_module_exists`.
            Self::Suffixes(names) => names
                .iter()
                .any(|name| path.strip_suffix(name.as_str()).is_some_and(|s| s.is_empty() || s.ends_with('.'))),
            Self::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

/// A [`Method`] ready to be asked.
pub(crate) struct Tuner {
    method: Method,
    targets: Option<Matcher>,
    /// Whether the pooler is trained whole, whatever the method.
    train_pooler: bool,
}

pub(crate) const POOLER: &str = "bert.pooler.dense";
pub(crate) const CLASSIFIER: &str = "classifier";

impl Tuner {
    pub fn new(method: &Method, train_pooler: bool) -> Result<Self> {
        let targets = match method {
            Method::Lora(lora) => {
                check(lora)?;
                Some(lora.target_modules.compile()?)
            }
            Method::BitFit(BitFit { target_modules }) => target_modules.as_ref().map(Targets::compile).transpose()?,
            Method::Full | Method::Head => None,
        };
        Ok(Self { method: method.clone(), targets, train_pooler })
    }

    /// Whether the parameter `{module}.{name}` of the pretrained model is trained.
    pub fn trains(&self, module: &str, name: &str) -> bool {
        if is_head(module) || (self.train_pooler && module == POOLER) {
            return true;
        }
        match &self.method {
            Method::Full => true,
            Method::Head | Method::Lora(_) => false,
            Method::BitFit(_) => {
                name == "bias"
                    && (module == POOLER || self.targets.as_ref().is_none_or(|targets| targets.matches(module)))
            }
        }
    }

    /// The branch that a linear layer gets. Modules that are trained whole get none (PEFT: `modules_to_save` wins).
    pub fn lora(&self, module: &str) -> Option<&Lora> {
        match (&self.method, &self.targets) {
            (Method::Lora(lora), Some(targets)) if targets.matches(module) && !self.trains(module, "weight") => {
                Some(lora)
            }
            _ => None,
        }
    }

    /// With a target that names nothing, less would be trained than was asked for, silently. LoRA's targets name linear layers,
    /// BitFit's name modules that have a bias.
    pub fn check_targets(&self, linear_layers: &BTreeSet<String>, biased_modules: &BTreeSet<String>) -> Result<()> {
        let (targets, modules) = match &self.method {
            Method::Lora(lora) => (&lora.target_modules, linear_layers),
            Method::BitFit(BitFit { target_modules: Some(targets) }) => (targets, biased_modules),
            _ => return Ok(()),
        };
        let each = match targets {
            Targets::Suffixes(names) => names.iter().map(|name| Targets::suffixes([name])).collect(),
            Targets::Pattern(_) => vec![targets.clone()],
        };
        let mut unmatched = Vec::new();
        for target in &each {
            let matcher = target.compile()?;
            if !modules.iter().any(|module| matcher.matches(module)) {
                unmatched.push(target.to_string());
            }
        }
        if unmatched.is_empty() && !each.is_empty() {
            return Ok(());
        }
        let ends: BTreeSet<&str> = modules.iter().filter_map(|path| path.rsplit('.').next()).collect();
        let choices = ends.into_iter().collect::<Vec<_>>().join(", ");
        Err(Error::NoTarget { method: self.method.to_string(), targets: unmatched.join(", "), choices })
    }
}

fn check(lora: &Lora) -> Result<()> {
    let wrong = |field, found, expected| Err(Error::Lora { field, found, expected });
    match lora {
        Lora { r: 0, .. } => wrong("r", 0.0, "at least 1"),
        Lora { lora_alpha, .. } if !lora_alpha.is_finite() || *lora_alpha == 0.0 => {
            wrong("lora_alpha", *lora_alpha, "a finite number other than 0")
        }
        Lora { lora_dropout, .. } if !(0.0..1.0).contains(lora_dropout) => {
            wrong("lora_dropout", *lora_dropout, "at least 0 and below 1")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUERY: &str = "bert.encoder.layer.10.attention.self.query";

    #[test]
    fn a_suffix_matches_whole_names_only() {
        let matcher = Targets::suffixes(["query", "output.dense"]).compile().unwrap();
        assert!(
            matcher.matches(QUERY) && matcher.matches("query") && matcher.matches("bert.encoder.layer.0.output.dense")
        );
        assert!(!matcher.matches("bert.my_query") && !matcher.matches("bert.encoder.layer.0.intermediate.dense"));
    }

    #[test]
    fn a_pattern_matches_whole_paths_only() {
        let matcher = Targets::pattern(r".*\.layer\.1\.attention\.self\.query").compile().unwrap();
        assert!(!matcher.matches(QUERY) && matcher.matches("bert.encoder.layer.1.attention.self.query"));
        assert!(Targets::pattern("(").compile().err().unwrap().to_string().contains("not a regular expression"));
    }

    #[test]
    fn a_pooler_that_is_trained_whole_gets_no_branch() {
        let lora = Method::Lora(Lora::rank(4).on(Targets::suffixes(["dense"])));
        assert!(Tuner::new(&lora, false).unwrap().lora(POOLER).is_some());
        assert!(Tuner::new(&lora, true).unwrap().lora(POOLER).is_none());
    }

    #[test]
    fn rank_zero_is_refused() {
        let error = Tuner::new(&Method::lora(0), false).err().unwrap().to_string();
        assert!(error.contains("r is 0"), "{error}");
    }

    #[test]
    fn a_method_reads_back_from_its_json() {
        for method in [Method::Full, Method::Head, Method::bitfit(), Method::lora(4)] {
            let json = serde_json::to_string(&method).unwrap();
            assert_eq!(serde_json::from_str::<Method>(&json).unwrap(), method, "{json}");
        }
        let pattern = r#"{"name":"lora","r":4,"target_modules":".*query"}"#;
        assert!(
            matches!(serde_json::from_str(pattern).unwrap(), Method::Lora(l) if l.target_modules == Targets::pattern(".*query"))
        );
    }
}
