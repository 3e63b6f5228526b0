//! The options of fine-tuning methods on the command line: each under the heading of the methods that have it, and refused beside
//! any other.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use clap::{Arg, ArgAction, ArgMatches};
use trainer::Tokenizer;
use trainer::glue::Example;
use trainer::peft::{Configuration, Method, MethodOption, OptionKind, Pretrained};

/// The options of all methods, one argument for each name.
pub(crate) fn arguments() -> Vec<Arg> {
    let mut methods: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut options: Vec<MethodOption> = Vec::new();
    for &id in Method::IDS {
        for option in Method::options(id) {
            methods.entry(option.name).or_default().push(id);
            if !options.iter().any(|other| other.name == option.name) {
                options.push(option);
            }
        }
    }
    // Clap shows headings in the order in which they first come.
    options.sort_by_key(|option| std::cmp::Reverse(methods[option.name].len()));
    options.iter().map(|option| argument(option, &methods[option.name])).collect()
}

fn argument(option: &MethodOption, methods: &[&str]) -> Arg {
    let argument = Arg::new(option.name)
        .long(option.name)
        .help(option.help)
        .help_heading(format!("Options of {}", methods.join(", ")));
    match option.kind {
        OptionKind::Switch => argument.action(ArgAction::SetTrue),
        OptionKind::Map => argument.value_name("NAME=VALUE,..."),
        OptionKind::List | OptionKind::Modules => argument.value_name("A,B,..."),
        OptionKind::Text => argument.value_name("TEXT"),
        OptionKind::Value => argument.value_name("VALUE"),
    }
}

/// Of the options that were typed those of methods, each with its text.
pub(crate) fn given(matches: &ArgMatches, typed: &[String]) -> Vec<(String, String)> {
    let is_of_method = |name: &&String| {
        Method::IDS.iter().any(|id| Method::options(id).iter().any(|option| option.name == name.as_str()))
    };
    let text = |name: &String| matches.try_get_one::<String>(name).ok().flatten().cloned().unwrap_or_default();
    typed.iter().filter(is_of_method).map(|name| (name.clone(), text(name))).collect()
}

/// The method of that id with the options that were typed, on that model. `base` is the same method as a file says it.
pub(crate) fn method(id: &str, given: &[(String, String)], base: Option<&Method>, model: &str) -> Result<Method> {
    let known = Method::options(id);
    let mut fields = serde_json::Map::new();
    if let Some(serde_json::Value::Object(base)) = base.map(serde_json::to_value).transpose()? {
        fields.extend(base.into_iter().filter(|(field, _)| field != "name"));
    }
    let mut said: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, text) in given {
        let Some(option) = known.iter().find(|option| option.name == name) else {
            let owners: Vec<&str> =
                Method::IDS.iter().copied().filter(|id| Method::options(id).iter().any(|o| o.name == name)).collect();
            bail!(
                "--{name} is no option of --method {id}, but of {}; leave it out, or choose one of these",
                owners.join(", ")
            );
        };
        if let Some(other) = said.insert(option.field, name) {
            bail!("--{other} and --{name} are given, and say the same thing; leave one out");
        }
        if let Err(found) = option.set(text, &mut fields) {
            bail!("--{name} {text}: {found}");
        }
    }
    let method = Method::from_fields(id, fields, || Ok(Configuration::of_model(model)?.config.architecture));
    let method = method.map_err(|error| {
        // By the option as it is typed.
        let typed = known.iter().find(|option| error.field() == Some(option.field)).map(|option| option.name);
        anyhow!("--{}: {error}", typed.unwrap_or("method"))
    })?;
    match method.text_to_tokenize() {
        Some(text) => {
            let tokens = tokens(model, text)?;
            Ok(method.with_tokens(model, tokens))
        }
        None => Ok(method),
    }
}

/// A text as the model's tokenizer cuts it, `[CLS]` and `[SEP]` among it, as in PEFT.
fn tokens(model: &str, text: &str) -> Result<Vec<u32>> {
    let pretrained = Pretrained::load(model)?;
    let tokenizer = Tokenizer::load(&pretrained, pretrained.max_length())?;
    let sequences = tokenizer.encode(&[Example { first: text.into(), second: None }])?;
    Ok(sequences.into_iter().flat_map(|sequence| sequence.input_ids).collect())
}
