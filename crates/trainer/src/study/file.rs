//! Studies as files, such as `studies/rates.toml`: recipes whose runs are made with other values of some fields.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::record::Record;
use crate::run::Run;
use crate::study::halving::Halving;
use crate::study::space::{Field, Space};
use crate::study::{Candidate, Stage, over_seeds};

/// Recipes, the fields that are varied, and which of all values are tried. It has no state but the records of its runs: asked again, it
/// goes on where it was, in one process or in several on one folder.
#[derive(Clone, Debug)]
pub struct Study {
    /// What is asked, in a sentence or two.
    pub about: String,
    /// The names of the fields that are varied, such as `settings.learning_rate`.
    pub fields: Vec<String>,
    points: Vec<Point>,
    halving: Option<Halving>,
    seeds: Option<Vec<u64>>,
    path: PathBuf,
}

/// A recipe with one value for each varied field.
#[derive(Clone, Debug)]
struct Point {
    /// The recipe's name.
    recipe: String,
    /// As the recipe's file is, the values put in.
    table: Table,
    /// Of each varied field.
    values: Vec<Value>,
}

/// What stands in the file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    about: String,
    recipes: Vec<Base>,
    seeds: Option<Vec<u64>>,
    #[serde(default)]
    settings: Table,
    #[serde(default)]
    vary: Table,
    #[serde(default)]
    search: Strategy,
}

/// A recipe, by its name or path; or one with some fields changed, such as `{ recipe = "mrpc-lora", method = { r = 1 } }`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Base {
    Recipe(String),
    Changed {
        recipe: String,
        #[serde(flatten)]
        changes: Table,
    },
}

/// Which points are tried.
#[derive(Default, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Strategy {
    /// Each value with each other.
    #[default]
    Grid,
    /// So many, each value drawn by itself.
    Random {
        points: usize,
        #[serde(default)]
        seed: u64,
    },
    /// So many to begin with, on a small budget; the best go on with a larger one.
    Halving {
        points: usize,
        #[serde(default)]
        seed: u64,
        /// The field that is small at first, such as `settings.train_limit` or `settings.epochs`.
        budget: String,
        least: usize,
        most: usize,
        #[serde(default = "three")]
        factor: usize,
    },
}

fn three() -> usize {
    3
}

const EXPECTED: &str = "recipes, and what to [vary]; docs/studies.md shows all there is";

impl Study {
    /// The study in a file.
    ///
    /// # Errors
    /// When the file or a recipe cannot be read, or a value does not fit its field; the message names both.
    pub fn load(path: &Path) -> Result<Self> {
        let wrong =
            |found: String, expected: &str| Error::Recipe { path: path.into(), found, expected: expected.into() };
        let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.into(), source })?;
        let written: Written = toml::from_str(&text).map_err(|error| wrong(error.to_string(), EXPECTED))?;
        if written.recipes.is_empty() {
            return Err(wrong("recipes = []".into(), "at least one recipe"));
        }
        if written.seeds.as_ref().is_some_and(Vec::is_empty) {
            return Err(wrong("seeds = []".into(), "at least one seed, or no such line"));
        }
        let space =
            Space::new(&written.vary).map_err(|found| wrong(found, "lists of values, or { from = ..., to = ... }"))?;
        let (values, halving) = match written.search {
            Strategy::Grid => (space.grid(), None),
            Strategy::Random { points, seed } => (Ok(space.drawn(points, seed)), None),
            Strategy::Halving { points, seed, budget: field, least, most, factor } => {
                let halving = Halving { field, least, most, factor };
                halving.check().map_err(|found| wrong(found, "least < most, factor of at least 2"))?;
                (Ok(space.drawn(points, seed)), Some(halving))
            }
        };
        let values = values.map_err(|found| wrong(found, "lists of values; ranges are for random and halving"))?;
        let mut points = Vec::new();
        for base in &written.recipes {
            let (recipe, table) = base.table(path)?;
            for values in &values {
                let mut table = table.clone();
                merge(&mut table, &Table::from_iter([("settings".into(), Value::Table(written.settings.clone()))]));
                for (Field { name, .. }, value) in space.fields.iter().zip(values) {
                    set(&mut table, name, value.clone());
                }
                points.push(Point { recipe: recipe.clone(), table, values: values.clone() });
            }
        }
        let fields = space.fields.into_iter().map(|field| field.name).collect();
        let study = Self { about: written.about, fields, points, halving, seeds: written.seeds, path: path.into() };
        // Whatever is wrong with one of the runs is told now.
        let budgets = study.halving.as_ref().map(Halving::budgets);
        for budget in budgets.map_or(vec![None], |budgets| budgets.into_iter().map(Some).collect()) {
            for point in 0..study.points.len() {
                study.candidate(point, budget)?.runs.iter().try_for_each(Run::check)?;
            }
        }
        Ok(study)
    }

    /// The names of the varied fields without the tables they are in, such as `learning_rate`.
    pub fn short_names(&self) -> Vec<&str> {
        self.fields.iter().map(|name| name.rsplit('.').next().unwrap_or(name)).collect()
    }

    /// How far the study is, by the records there are: the candidates that are compared now, and the runs of theirs that have none. Of
    /// halving the candidates of each stage follow from the records of the one before.
    ///
    /// # Errors
    /// As `record`.
    pub fn stage(&self, mut record: impl FnMut(&Run) -> Result<Option<Record>>) -> Result<Stage> {
        let Some(halving) = &self.halving else {
            let all = (0..self.points.len()).map(|point| self.candidate(point, None)).collect::<Result<_>>()?;
            return Stage::new(all, &mut record);
        };
        let recipes: Vec<&str> = self.points.iter().map(|point| point.recipe.as_str()).collect();
        let mut left: Vec<usize> = (0..self.points.len()).collect();
        let budgets = halving.budgets();
        for (number, &budget) in budgets.iter().enumerate() {
            let all = left.iter().map(|&point| self.candidate(point, Some(budget))).collect::<Result<_>>()?;
            let stage = Stage::new(all, &mut record)?.numbered(number + 1, budgets.len());
            if !stage.missing.is_empty() || number + 1 == budgets.len() {
                return Ok(stage);
            }
            left = halving.survivors(&left, &recipes, &stage);
        }
        Stage::new(Vec::new(), &mut record)
    }

    /// The runs of a point, at a budget where there is one.
    fn candidate(&self, point: usize, budget: Option<usize>) -> Result<Candidate> {
        let Point { recipe, table, values } = &self.points[point];
        let mut table = table.clone();
        if let (Some(halving), Some(budget)) = (&self.halving, budget) {
            set(&mut table, &halving.field, Value::Integer(budget as i64));
        }
        let made = Recipe::from_table(&self.path.with_file_name(format!("{recipe}.toml")), table, Recipe::load)?;
        let runs = self.seeds.as_ref().map_or_else(|| made.runs(), |seeds| over_seeds(&made.run, seeds));
        let written = |value: &Value| value.as_str().map_or_else(|| value.to_string(), String::from);
        Ok(Candidate {
            recipe: recipe.clone(),
            values: values.iter().map(written).collect(),
            starts_from: made.starts_from,
            runs,
        })
    }
}

impl Base {
    /// How it is called, and what stands in its file with the changes made. A path is meant from the study's own folder.
    fn table(&self, study: &Path) -> Result<(String, Table)> {
        let (name, changes) = match self {
            Self::Recipe(name) => (name, &Table::new()),
            Self::Changed { recipe, changes } => (recipe, changes),
        };
        let beside = study.with_file_name(name);
        let found = if name.ends_with(".toml") { beside.to_string_lossy().into_owned() } else { name.clone() };
        let mut table = Recipe::table(&found)?;
        merge(&mut table, changes);
        let stem = Path::new(name).file_stem().map_or(name.clone(), |stem| stem.to_string_lossy().into_owned());
        let mut said = Vec::new();
        say(&mut said, changes);
        let name = if said.is_empty() { stem } else { format!("{stem} ({})", said.join(", ")) };
        Ok((name, table))
    }
}

/// Each value of a table and of the tables in it, as `name = value`.
fn say(said: &mut Vec<String>, table: &Table) {
    for (name, value) in table {
        match value {
            Value::Table(inner) => say(said, inner),
            value => said.push(format!("{name} = {value}")),
        }
    }
}

/// Puts each value of a table into its place in another.
fn merge(table: &mut Table, changes: &Table) {
    for (name, value) in changes {
        match (table.get_mut(name), value) {
            (Some(Value::Table(inner)), Value::Table(changes)) => merge(inner, changes),
            _ => {
                table.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Puts a value into the place of a dotted name, whose tables are made where they are missing.
fn set(table: &mut Table, name: &str, value: Value) {
    match name.split_once('.') {
        None => {
            table.insert(name.into(), value);
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use std::collections::BTreeMap;

    use super::*;
    use crate::record::{Evaluation, Stop};

    fn load(text: &str) -> Result<Study> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("study.toml");
        std::fs::write(&path, text).unwrap();
        Study::load(&path)
    }

    /// The record of a run with that score.
    fn record(run: &Run, score: f64) -> Record {
        let folder = glue::project_root().join("results");
        let any = crate::results::load(&folder).unwrap().swap_remove(0);
        let best = any.best.clone().map(|best| Evaluation {
            scores: glue::Scores(best.scores.0.keys().map(|metric| (*metric, score)).collect()),
            ..best
        });
        Record { run: run.clone(), best, stop: Stop::Finished, ..any }
    }

    #[test]
    fn a_grid_makes_each_recipe_with_each_value_and_seed_and_the_settings_of_all() {
        let study = load(
            "recipes = [\"mrpc-bitfit\", { recipe = \"mrpc-lora\", method = { r = 2, lora_alpha = 4 } }]\nseeds = [1, 2]\n\
             [settings]\nheld_out = true\n[vary]\nsettings.learning_rate = [1e-4, 1e-3, 1e-2]",
        );
        let stage = study.unwrap().stage(|_| Ok(None)).unwrap();
        assert_eq!((stage.candidates.len(), stage.missing.len(), stage.of), (6, 12, 1));
        let last = &stage.candidates[5];
        assert_eq!(
            (last.recipe.as_str(), last.values.as_slice()),
            ("mrpc-lora (lora_alpha = 4, r = 2)", &["0.01".to_string()][..])
        );
        let peft::Method::Lora(lora) = &last.runs[1].method else { panic!("LoRA") };
        let settings = &last.runs[1].settings;
        assert_eq!((lora.r, settings.learning_rate, settings.held_out, last.runs[1].seed), (2, 1e-2, true, 2));
        let whole = Recipe::load("mrpc-lora").unwrap().run;
        assert_eq!(settings.epochs, whole.settings.epochs);
    }

    #[test]
    fn halving_goes_on_with_the_best_third_on_three_times_the_budget_by_the_records_alone() {
        let study = load(
            "recipes = [\"mrpc-bitfit\"]\nseeds = [1, 2]\n[vary]\nsettings.learning_rate = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.3]\n\
             [search]\nkind = \"halving\"\npoints = 9\nbudget = \"settings.train_limit\"\nleast = 100\nmost = 900",
        );
        let study = study.unwrap();
        // The nearer to 1e-3, the better.
        let score = |run: &Run| 1.0 - (run.settings.learning_rate.log10() + 3.0).abs() / 10.0;
        let mut records: BTreeMap<String, Record> = BTreeMap::new();
        let mut made = Vec::new();
        loop {
            let stage = study.stage(|run| Ok(records.get(&run.key()).cloned())).unwrap();
            made.push((stage.number, stage.missing.len()));
            if stage.missing.is_empty() {
                assert_eq!(stage.ranking()[0].0.values, ["0.001"]);
                break;
            }
            for (_, run) in stage.missing {
                assert_eq!(run.settings.train_limit, Some(100 * 3_usize.pow(stage.number as u32 - 1)));
                records.insert(run.key(), record(&run, score(&run)));
            }
        }
        assert_eq!(made, [(1, 18), (2, 6), (3, 2), (3, 0)]);
    }

    #[test]
    fn what_a_study_says_wrong_is_told_when_it_is_loaded() {
        for (text, part) in [
            ("recipes = []", "at least one recipe"),
            ("recipes = [\"mrpc-bitfit\"]\nseeds = []", "at least one seed"),
            ("recipes = [\"mrpc-bitfit\"]\n[vary]\nsettings.learning_rte = [1]", "learning_rte"),
            ("recipes = [\"mrpc-bitfit\"]\n[vary]\nmethod.r = [1]", "r, which bitfit has not"),
            ("recipes = [\"mrpc-bitfit\"]\n[vary]\nsettings.learning_rate = [0.0]", "learning_rate"),
            (
                "recipes = [\"mrpc-bitfit\"]\n[vary]\nsettings.learning_rate = { from = 1, to = 2 }",
                "ranges are for random",
            ),
            ("recipes = [\"mrpc-bitfit\"]\nvarry = 3", "varry"),
            ("recipes = [\"no-such\"]", "no-such"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn the_text_of_a_run_is_a_recipe_of_the_same_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one.toml");
        for recipe in Recipe::all().unwrap() {
            let text = Recipe::text(&recipe.run, recipe.starts_from.as_deref()).unwrap();
            std::fs::write(&path, text).unwrap();
            let again = Recipe::load(&path.to_string_lossy()).unwrap();
            assert_eq!((again.run.key(), again.runs().len()), (recipe.run.key(), 1), "{}", recipe.name);
        }
    }
}
