//! The options of a method as they are typed on a command line: a name, a field of the method's options, and text turned into JSON.

use serde_json::{Map, Value, json};

/// An option of a method on a command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodOption {
    /// What is typed behind `--`.
    pub name: &'static str,
    /// The field of the method's options; `a.b`: field b of field a.
    pub field: &'static str,
    /// What its text means.
    pub kind: OptionKind,
    /// One sentence, with the default.
    pub help: &'static str,
}

/// What the text of an option means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionKind {
    /// No text: the option says yes.
    Switch,
    /// A number, `true`, `false`, or a word.
    Value,
    /// Values with commas between them.
    List,
    /// Names of modules with commas between them, or `all-linear`.
    Modules,
    /// A text as it is, such as a regular expression.
    Text,
    /// `NAME=VALUE` with commas between them.
    Map,
}

/// What an option stands for in a declaration of several.
pub(super) const fn option(
    name: &'static str,
    field: &'static str,
    kind: OptionKind,
    help: &'static str,
) -> MethodOption {
    MethodOption { name, field, kind, help }
}

/// Which modules are adapted or trained.
pub(super) const TARGETS: &[MethodOption] = &[
    option(
        "target-modules",
        "target_modules",
        OptionKind::Modules,
        "Modules by the end of their path, such as query,value, or all-linear [default: those of the model's architecture]",
    ),
    option("target-pattern", "target_modules", OptionKind::Text, "Modules by a regular expression for the whole path"),
];

/// Which of the targets are left out.
pub(super) const EXCLUDED: &[MethodOption] = &[
    option("exclude-modules", "exclude_modules", OptionKind::Modules, "Targets that are left as they are after all"),
    option(
        "exclude-pattern",
        "exclude_modules",
        OptionKind::Text,
        "The same by a regular expression for the whole path",
    ),
];

/// Which layers of the encoder are adapted.
pub(super) const LAYERS: &[MethodOption] = &[
    option("layers-to-transform", "layers_to_transform", OptionKind::List, "Only layers of these numbers are adapted"),
    option("layers-pattern", "layers_pattern", OptionKind::List, "Names before a layer's number in a path"),
];

/// Ranks and alphas that some layers have for themselves.
pub(super) const PATTERNS: &[MethodOption] = &[
    option("rank-pattern", "rank_pattern", OptionKind::Map, "Ranks of their own, such as query=4,output.dense=16"),
    option("alpha-pattern", "alpha_pattern", OptionKind::Map, "Alphas of their own, such as query=8"),
];

/// What is trained whole.
pub(super) const MODULES_TO_SAVE: &[MethodOption] = &[option(
    "modules-to-save",
    "modules_to_save",
    OptionKind::List,
    "Modules that are trained whole, besides the classifier",
)];

/// Which biases are trained.
pub(super) const BIAS: &[MethodOption] = &[option(
    "bias",
    "bias",
    OptionKind::Value,
    "Biases that are trained besides: none, all or lora_only [default: none]",
)];

/// How many virtual tokens there are.
pub(super) const VIRTUAL_TOKENS: &[MethodOption] = &[option(
    "num-virtual-tokens",
    "num_virtual_tokens",
    OptionKind::Value,
    "Virtual tokens before each sequence [default: 20]",
)];

impl MethodOption {
    /// Puts what was typed into the fields of a method's options.
    ///
    /// # Errors
    /// When the text is not of the option's kind.
    pub fn set(&self, text: &str, fields: &mut Map<String, Value>) -> Result<(), String> {
        let value = match self.kind {
            OptionKind::Switch => json!(true),
            OptionKind::Value => scalar(text),
            OptionKind::Text => json!(text),
            OptionKind::List => text.split(',').map(scalar).collect(),
            OptionKind::Modules if text == "all-linear" => json!(text),
            OptionKind::Modules => text.split(',').collect(),
            OptionKind::Map => {
                let pair = |pair: &str| {
                    let (name, value) =
                        pair.rsplit_once('=').ok_or_else(|| format!("{pair:?}: expected NAME=VALUE"))?;
                    Ok((name.to_string(), scalar(value)))
                };
                Value::Object(text.split(',').map(pair).collect::<Result<_, String>>()?)
            }
        };
        match self.field.split_once('.') {
            Some((outer, inner)) => fields.entry(outer).or_insert_with(|| json!({}))[inner] = value,
            None => _ = fields.insert(self.field.into(), value),
        }
        Ok(())
    }
}

/// A number, a truth value, or the text itself.
fn scalar(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => json!(text),
    }
}
