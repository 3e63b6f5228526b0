//! Modules by path, as PEFT's `target_modules` names them.

use std::collections::BTreeSet;
use std::fmt;

use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Modules by path, as PEFT's `target_modules`: a list of path ends, one regular expression for the whole path, or
/// `"all-linear"`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum Targets {
    /// A module matches if its path is one of these, or ends in `.` and one of these.
    Suffixes(Vec<String>),
    /// A module matches if this regular expression matches its whole path.
    Pattern(String),
    /// Every linear layer but the head: `"all-linear"` (PEFT `tuners_utils.py`, `_maybe_include_all_linear_layers`).
    AllLinear,
}

/// [`Targets`] in JSON: a list, or a text.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a list of names, a regular expression or null")]
enum Written {
    List(Vec<String>),
    Text(String),
}

/// PEFT's word for every linear layer; written in any case.
const ALL_LINEAR: &str = "all-linear";

impl From<Written> for Targets {
    fn from(written: Written) -> Self {
        match written {
            Written::List(names) => Self::Suffixes(names),
            Written::Text(text) if text.eq_ignore_ascii_case(ALL_LINEAR) => Self::AllLinear,
            Written::Text(pattern) => Self::Pattern(pattern),
        }
    }
}

impl From<Targets> for Written {
    fn from(targets: Targets) -> Self {
        match targets {
            Targets::Suffixes(names) => Self::List(names),
            Targets::Pattern(pattern) => Self::Text(pattern),
            Targets::AllLinear => Self::Text(ALL_LINEAR.into()),
        }
    }
}

impl Targets {
    /// Modules whose path ends in one of `names`.
    pub fn suffixes<S: ToString>(names: impl IntoIterator<Item = S>) -> Self {
        Self::Suffixes(names.into_iter().map(|name| name.to_string()).collect())
    }

    /// Modules whose whole path `pattern` matches; `"all-linear"` means every linear layer, as it does in PEFT.
    pub fn pattern(pattern: impl ToString) -> Self {
        Written::Text(pattern.to_string()).into()
    }

    pub(crate) fn compile(&self) -> Result<Matcher> {
        Ok(match self {
            Self::Suffixes(names) => Matcher::Suffixes(names.clone()),
            Self::Pattern(pattern) => Matcher::Pattern(expression(&format!("^(?:{pattern})$"), pattern)?),
            Self::AllLinear => Matcher::All,
        })
    }

    /// Its parts that name none of `modules`.
    pub(crate) fn unmatched<'a>(&self, modules: impl Iterator<Item = &'a String> + Clone) -> Result<Vec<String>> {
        let each: Vec<Self> = match self {
            Self::Suffixes(names) => names.iter().map(|name| Self::suffixes([name])).collect(),
            other => vec![other.clone()],
        };
        let mut unmatched = Vec::new();
        for target in each {
            let matcher = target.compile()?;
            if !modules.clone().any(|module| matcher.matches(module)) {
                unmatched.push(target.to_string());
            }
        }
        Ok(unmatched)
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Suffixes(names) => write!(f, "{}", names.join(", ")),
            Self::Pattern(pattern) => write!(f, "/{pattern}/"),
            Self::AllLinear => write!(f, "{ALL_LINEAR}"),
        }
    }
}

/// A regular expression in the words of Python's `re`, lookahead and lookbehind among them; errors show it as `asked` for.
pub(crate) fn expression(text: &str, asked: &str) -> Result<Regex> {
    let failed = |source| Error::Pattern { pattern: asked.into(), source: Box::new(source) };
    // Python's end of the text.
    let regex = Regex::new(&text.replace(r"\Z", r"\z")).map_err(failed)?;
    // One that would search for ever stops, and is found here: paths are about as long.
    regex.is_match(LONGEST).map_err(failed)?;
    Ok(regex)
}

/// A path as long as any.
const LONGEST: &str = "deberta.encoder.layer.23.attention.output.LayerNorm.attention.output.dense.weight";

/// Whether an expression matches a path. One that gives up matches nothing; [`expression`] has tried it.
pub(crate) fn is_match(pattern: &Regex, path: &str) -> bool {
    pattern.is_match(path).unwrap_or(false)
}

/// [`Targets`] ready to be asked.
pub(crate) enum Matcher {
    Suffixes(Vec<String>),
    Pattern(Regex),
    All,
}

impl Matcher {
    pub(crate) fn matches(&self, path: &str) -> bool {
        match self {
            // PEFT `tuners_utils.py`, `check_target_module_exists`.
            Self::Suffixes(names) => names
                .iter()
                .any(|name| path.strip_suffix(name.as_str()).is_some_and(|s| s.is_empty() || s.ends_with('.'))),
            Self::Pattern(pattern) => is_match(pattern, path),
            Self::All => true,
        }
    }
}

/// The last names of module paths, for messages.
pub(crate) fn ends(modules: &BTreeSet<String>) -> String {
    let ends: BTreeSet<&str> = modules.iter().filter_map(|path| path.rsplit('.').next()).collect();
    ends.into_iter().collect::<Vec<_>>().join(", ")
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
        let but_first =
            Targets::pattern(r".*\.layer\.(?!0\b)\d+\.attention\.self\.(?:query|value)\Z").compile().unwrap();
        assert!(but_first.matches(QUERY) && !but_first.matches("bert.encoder.layer.0.attention.self.query"));
        let behind = Targets::pattern(r".*(?<!key|pooler\.dense)").compile().unwrap();
        assert!(behind.matches(QUERY) && !behind.matches("bert.pooler.dense"));
        assert!(Targets::pattern("(").compile().err().unwrap().to_string().contains("not a regular expression"));
    }

    #[test]
    fn lists_patterns_and_all_linear_read_as_peft_writes_them() {
        for (json, targets) in [
            (r#"["query","value"]"#, Targets::suffixes(["query", "value"])),
            (r#"".*query""#, Targets::Pattern(".*query".into())),
            (r#""all-linear""#, Targets::AllLinear),
        ] {
            assert_eq!(serde_json::from_str::<Targets>(json).unwrap(), targets);
            assert_eq!(serde_json::to_string(&targets).unwrap(), json);
        }
        assert_eq!(serde_json::from_str::<Targets>(r#""All-Linear""#).unwrap(), Targets::AllLinear);
    }
}
