//! Recipes: runs as files, `recipes/*.toml`, one for each task and method.

use std::path::{Path, PathBuf};

use glue::{Task, project_root};
use peft::Method;
use serde::Deserialize;
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::run::{Run, Settings, StartsFrom};
use crate::study::over_seeds;

/// How a task is trained by a method: a run, and the seeds that it is to be made with.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// That of its file, such as `cola-lora`.
    pub name: String,
    /// Why it is as it is, in a sentence or two.
    pub about: String,
    /// With the first of the seeds.
    pub run: Run,
    /// The recipe that it starts from, if it starts from one.
    pub starts_from: Option<String>,
    /// At least one.
    pub seeds: Vec<u64>,
    /// The names of the settings that its file has; all others are defaults.
    pub settings_given: Vec<String>,
}

/// What stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    about: String,
    task: Task,
    model: String,
    /// Another recipe: the run starts from what that one's first seed has trained.
    starts_from: Option<String>,
    seeds: Vec<u64>,
    method: Table,
    settings: Settings,
}

impl Recipe {
    /// The recipe of that name in the project's `recipes`, or in the file of that path.
    ///
    /// # Errors
    /// When there is none, or a field of it is missing, unknown or wrong.
    pub fn load(name: &str) -> Result<Self> {
        Self::load_after(name, &[])
    }

    /// All recipes in the project's `recipes`, in the order of GLUE's tasks and then of their names.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn all() -> Result<Vec<Self>> {
        let mut recipes = names()?.iter().map(|name| Self::load(name)).collect::<Result<Vec<_>>>()?;
        recipes.sort_by(|a, b| (a.run.task, &a.name).cmp(&(b.run.task, &b.name)));
        Ok(recipes)
    }

    /// A run with each seed.
    pub fn runs(&self) -> Vec<Run> {
        over_seeds(&self.run, &self.seeds)
    }

    /// The same, when these recipes are to start from it.
    fn load_after(name: &str, after: &[&str]) -> Result<Self> {
        Ok(Self::read(name, after)?.0)
    }

    /// What stands in the file of a recipe, which is one.
    pub(crate) fn table(name: &str) -> Result<Table> {
        Ok(Self::read(name, &[])?.1)
    }

    /// The recipe, and what stands in its file.
    fn read(name: &str, after: &[&str]) -> Result<(Self, Table)> {
        let path = path(name);
        let wrong =
            |found: String, expected: &str| Error::Recipe { path: path.clone(), found, expected: expected.into() };
        if after.contains(&name) {
            return Err(wrong(format!("starts_from {name:?}, which starts from it"), "a start that comes before it"));
        }
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let known = names().unwrap_or_default().join(", ");
                return Err(wrong("no such file".into(), &format!("a .toml file or one of the recipes {known}")));
            }
            Err(source) => return Err(Error::File { path, source }),
        };
        let table: Table = toml::from_str(&text).map_err(|error| wrong(error.to_string(), EXPECTED))?;
        let start = |start: &str| Self::load_after(start, &[after, &[name]].concat());
        Ok((Self::from_table(&path, table.clone(), start)?, table))
    }

    /// The recipe that a table describes, as one of that file; `start` finds what it starts from.
    pub(crate) fn from_table(path: &Path, table: Table, start: impl FnOnce(&str) -> Result<Self>) -> Result<Self> {
        let wrong =
            |found: String, expected: &str| Error::Recipe { path: path.into(), found, expected: expected.into() };
        if let Some(field) = not_finite(&table) {
            return Err(wrong(format!("{field}, which is no finite number"), "finite numbers"));
        }
        let settings_given = table.get("settings").and_then(Value::as_table);
        let settings_given = settings_given.into_iter().flat_map(Table::keys).cloned().collect();
        let written: Written = table.try_into().map_err(|error| wrong(error.to_string(), EXPECTED))?;
        let Some(&seed) = written.seeds.first() else { return Err(wrong("seeds = []".into(), "at least one seed")) };
        let method = method(&written.method).map_err(|found| wrong(found, "a method and options of its own"))?;
        let starts_from = match &written.starts_from {
            Some(name) => Some(StartsFrom::Run(Box::new(start(name)?.run))),
            None => None,
        };
        let Written { about, task, model, seeds, settings, starts_from: start, .. } = written;
        let model = peft::model_name(&model);
        Ok(Self {
            name: path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
            about,
            run: Run { task, model, method, settings, seed, starts_from },
            starts_from: start,
            seeds,
            settings_given,
        })
    }

    /// A run as the text of a recipe; `starts_from` is the recipe that it starts from, if it starts from one.
    ///
    /// # Errors
    /// When the run starts from something that no recipe names.
    pub fn text(run: &Run, starts_from: Option<&str>) -> Result<String> {
        let wrong = |found: String| Error::Recipe {
            path: run.key().into(),
            found,
            expected: "a run that starts from nothing or from a recipe".into(),
        };
        if run.starts_from.is_some() && starts_from.is_none() {
            return Err(wrong("a start that is no recipe".into()));
        }
        let mut file = serde_json::json!({
            "task": run.task,
            "model": run.model,
            "starts_from": starts_from,
            "seeds": [run.seed],
            "method": run.method,
            "settings": run.settings,
        });
        remove_nulls(&mut file);
        toml::to_string_pretty(&file).map_err(|error| wrong(error.to_string()))
    }
}

/// TOML has no null: what is absent has its default.
fn remove_nulls(value: &mut serde_json::Value) {
    if let serde_json::Value::Object(fields) = value {
        fields.retain(|_, value| !value.is_null());
        fields.values_mut().for_each(remove_nulls);
    }
}

const EXPECTED: &str = "task, model, seeds, a [method] and [settings], as in the other recipes";

/// The first field that is infinite or no number, which TOML has words for.
fn not_finite(table: &Table) -> Option<String> {
    fn is_wrong(value: &Value) -> bool {
        match value {
            Value::Float(number) => !number.is_finite(),
            Value::Array(values) => values.iter().any(is_wrong),
            Value::Table(table) => not_finite(table).is_some(),
            _ => false,
        }
    }
    table.iter().find(|(_, value)| is_wrong(value)).map(|(field, value)| match value {
        Value::Table(inner) => format!("{field}.{}", not_finite(inner).unwrap_or_default()),
        value => format!("{field} = {value}"),
    })
}

/// The names of the project's recipes.
fn names() -> Result<Vec<String>> {
    let folder = project_root().join("recipes");
    let failed = |source| Error::File { path: folder.clone(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let (Some("toml"), Some(stem)) = (path.extension().and_then(|end| end.to_str()), path.file_stem()) {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// A path where it ends in `.toml`, else a file in the project's `recipes`.
fn path(name: &str) -> PathBuf {
    match Path::new(name).extension() {
        Some(end) if end == "toml" => name.into(),
        _ => project_root().join("recipes").join(format!("{name}.toml")),
    }
}

/// The method that a table describes; or what is wrong with it.
fn method(table: &Table) -> std::result::Result<Method, String> {
    let parsed = |table: &Table| table.clone().try_into::<Method>();
    let method = parsed(table).map_err(|error| format!("[method]: {}", error.message()))?;
    for name in table.keys().filter(|name| *name != "name") {
        // No option can be a list of lists: one that can is not read.
        let mut other = table.clone();
        other.insert(name.clone(), Value::Array(vec![Value::Array(Vec::new())]));
        if parsed(&other).is_ok() {
            return Err(format!("[method]: {name}, which {} has not", method.id()));
        }
    }
    Ok(method)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    const WHOLE: &str = r#"
        about = "A test."
        task = "mrpc"
        model = "all-MiniLM-L6-v2"
        seeds = [3, 4]
        [method]
        name = "lora"
        r = 4
        target_modules = "all-linear"
        [settings]
        learning_rate = 5e-4
        epochs = 2
    "#;

    fn load(text: &str) -> Result<Recipe> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a-test.toml");
        std::fs::write(&path, text).unwrap();
        Recipe::load(&path.to_string_lossy())
    }

    #[test]
    fn a_recipe_is_a_run_for_each_seed_and_what_it_does_not_say_is_the_default() {
        let recipe = load(WHOLE).unwrap();
        assert_eq!((recipe.name.as_str(), recipe.runs().len()), ("a-test", 2));
        let run = &recipe.runs()[1];
        assert_eq!((run.seed, run.settings.epochs, run.settings.batch_size), (4, 2, Settings::default().batch_size));
        assert!(matches!(&run.method, Method::Lora(lora) if lora.r == 4), "{:?}", run.method);
    }

    #[test]
    fn what_a_recipe_says_and_nobody_reads_is_an_error_that_names_it() {
        for (find, put, named) in [
            ("epochs = 2", "epoch = 2", "epoch"),
            ("r = 4", "r = 4\nlora_alpha = inf", "method.lora_alpha = inf, which is no finite number"),
            ("learning_rate = 5e-4", "learning_rate = nan", "settings.learning_rate = nan"),
            ("r = 4", "rank = 4", "rank, which lora has not"),
            ("seeds = [3, 4]", "seeds = []", "at least one seed"),
            ("task = \"mrpc\"", "task = \"mrpc\"\nlearning_rate = 1e-3", "learning_rate"),
            ("name = \"lora\"", "name = \"bitfit\"", "r, which bitfit has not"),
        ] {
            let error = load(&WHOLE.replace(find, put)).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("a-test.toml"), "{put}: {error}");
        }
    }

    #[test]
    fn a_recipe_that_is_not_there_is_an_error_that_lists_those_that_are() {
        let error = Recipe::load("no-such").unwrap_err().to_string();
        assert!(error.contains("no-such.toml") && error.contains("cola-lora"), "{error}");
    }

    #[test]
    fn every_task_with_labels_has_a_recipe_for_bitfit_and_for_lora_that_trains_from_the_same_model() {
        let recipes = Recipe::all().unwrap();
        for task in Task::ALL.into_iter().filter(|&task| task != Task::Ax) {
            for method in ["bitfit", "lora"] {
                let of_both =
                    recipes.iter().filter(|recipe| recipe.run.task == task && recipe.run.method.id() == method);
                let found: Vec<&Recipe> = of_both.collect();
                assert_eq!(found.len(), 1, "{task}, {method}");
                assert_eq!(found[0].run.model, recipes[0].run.model);
            }
        }
    }
}
