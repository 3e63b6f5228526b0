//! The fields that a study varies, and the points that are tried: all of a grid, or drawn at random.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use toml::{Table, Value};

/// The varied fields, in the order of their names.
#[derive(Debug)]
pub(crate) struct Space {
    pub fields: Vec<Field>,
}

#[derive(Debug)]
pub(crate) struct Field {
    /// Such as `settings.learning_rate`.
    pub name: String,
    choices: Choices,
}

#[derive(Debug)]
enum Choices {
    Listed(Vec<Value>),
    Between(Range),
}

/// Numbers from one to another; whole ones where both are.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    from: Value,
    to: Value,
    #[serde(default)]
    scale: Scale,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Scale {
    /// Each number is as likely as each other.
    #[default]
    Linear,
    /// Each power is.
    Log,
}

impl Space {
    /// What a table says; or what is wrong with it.
    pub(crate) fn new(vary: &Table) -> Result<Self, String> {
        let mut fields = Vec::new();
        add(&mut fields, "", vary)?;
        Ok(Self { fields })
    }

    /// Each value with each other.
    pub(crate) fn grid(&self) -> Result<Vec<Vec<Value>>, String> {
        let mut points = vec![Vec::new()];
        for field in &self.fields {
            let Choices::Listed(values) = &field.choices else { return Err(format!("vary: {}: a range", field.name)) };
            let with = |point: &Vec<Value>, value: &Value| point.iter().chain([value]).cloned().collect();
            points = points
                .iter()
                .flat_map(|point| values.iter().map(|value| with(point, value)).collect::<Vec<_>>())
                .collect();
        }
        Ok(points)
    }

    /// So many points, each value drawn by itself; none twice, where there are as many.
    pub(crate) fn drawn(&self, count: usize, seed: u64) -> Vec<Vec<Value>> {
        /// Draws for each point before it is given up: there may be fewer different ones than are asked for.
        const TRIES: usize = 100;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut points: Vec<Vec<Value>> = Vec::new();
        for _ in 0..count {
            for _ in 0..TRIES {
                let point = self.fields.iter().map(|field| field.choices.draw(&mut random)).collect();
                if !points.contains(&point) {
                    points.push(point);
                    break;
                }
            }
        }
        points
    }
}

/// Adds the fields of a table and of the tables in it.
fn add(fields: &mut Vec<Field>, before: &str, table: &Table) -> Result<(), String> {
    for (key, value) in table {
        let name = format!("{before}{key}");
        let choices = match value {
            Value::Array(values) if values.is_empty() => return Err(format!("vary: {name}: an empty list")),
            Value::Array(values) => Choices::Listed(values.clone()),
            Value::Table(range) if range.contains_key("from") || range.contains_key("to") => {
                let range: Range = range.clone().try_into().map_err(|error| format!("vary: {name}: {error}"))?;
                range.check().map_err(|found| format!("vary: {name}: {found}"))?;
                Choices::Between(range)
            }
            Value::Table(inner) => {
                add(fields, &format!("{name}."), inner)?;
                continue;
            }
            other => return Err(format!("vary: {name} = {other}")),
        };
        fields.push(Field { name, choices });
    }
    Ok(())
}

impl Choices {
    fn draw(&self, random: &mut ChaCha8Rng) -> Value {
        match self {
            Self::Listed(values) => values[random.random_range(0..values.len())].clone(),
            Self::Between(range) => range.draw(random),
        }
    }
}

fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|number| number as f64)).filter(|number| number.is_finite())
}

impl Range {
    fn check(&self) -> Result<(), String> {
        match (number(&self.from), number(&self.to)) {
            (Some(from), Some(to)) if from < to && (self.scale == Scale::Linear || from > 0.0) => Ok(()),
            (Some(from), Some(_)) if from <= 0.0 && self.scale == Scale::Log => {
                Err("a log scale from 0 or below".into())
            }
            _ => Err(format!("from {} to {}", self.from, self.to)),
        }
    }

    fn draw(&self, random: &mut ChaCha8Rng) -> Value {
        let (from, to) = (number(&self.from).unwrap_or(0.0), number(&self.to).unwrap_or(0.0));
        let share: f64 = random.random();
        let drawn = match self.scale {
            Scale::Linear => from + share * (to - from),
            Scale::Log => (from.ln() + share * (to.ln() - from.ln())).exp(),
        };
        match (&self.from, &self.to) {
            (Value::Integer(_), Value::Integer(_)) => Value::Integer(drawn.round() as i64),
            // Three digits, so that a value reads and is typed as what it is.
            _ => Value::Float(format!("{drawn:.2e}").parse().unwrap_or(drawn)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    fn space(text: &str) -> Result<Space, String> {
        Space::new(&toml::from_str(text).unwrap())
    }

    #[test]
    fn a_grid_has_each_value_with_each_other() {
        let space = space("settings.learning_rate = [1e-4, 1e-3]\nmethod.r = [1, 8, 64]").unwrap();
        let names: Vec<&str> = space.fields.iter().map(|field| field.name.as_str()).collect();
        assert_eq!(names, ["method.r", "settings.learning_rate"]);
        let grid = space.grid().unwrap();
        assert_eq!(grid.len(), 6);
        assert_eq!(grid[1], [Value::Integer(1), Value::Float(1e-3)]);
    }

    #[test]
    fn drawn_points_lie_in_their_ranges_differ_and_are_the_same_for_a_seed() {
        let space = space(
            "method.r = { from = 1, to = 64, scale = \"log\" }\nsettings.learning_rate = { from = 1e-5, to = 1e-2, scale = \"log\" }",
        );
        let space = space.unwrap();
        let points = space.drawn(200, 7);
        assert_eq!(points, space.drawn(200, 7));
        assert_ne!(points, space.drawn(200, 8));
        assert!(points.iter().enumerate().all(|(index, point)| !points[..index].contains(point)));
        let rates: Vec<f64> = points.iter().map(|point| point[1].as_float().unwrap()).collect();
        assert!(rates.iter().all(|rate| (1e-5..=1e-2).contains(rate)));
        // A third of a log scale is a power of ten: as many points within the binomial's four deviations, 4 sqrt(200 / 3 * 2 / 3) = 27.
        let lowest = rates.iter().filter(|&&rate| rate < 1e-4).count();
        assert!((40..=94).contains(&lowest), "{lowest}");
        assert!(points.iter().all(|point| (1..=64).contains(&point[0].as_integer().unwrap())));
    }

    #[test]
    fn fewer_points_than_are_asked_for_are_all_there_are() {
        assert_eq!(space("settings.epochs = [1, 2, 3]").unwrap().drawn(10, 0).len(), 3);
        assert_eq!(space("").unwrap().grid().unwrap(), [Vec::<Value>::new()]);
    }

    #[test]
    fn what_is_no_list_and_no_range_is_told_by_its_name() {
        for (text, part) in [
            ("settings.epochs = 3", "settings.epochs = 3"),
            ("settings.epochs = []", "settings.epochs: an empty list"),
            ("method.r = { from = 8, to = 8 }", "method.r: from 8 to 8"),
            ("method.r = { from = 0, to = 8, scale = \"log\" }", "log scale from 0"),
            ("method.r = { from = 1, to = 8, step = 2 }", "step"),
            ("method.r = { from = 1 }", "to"),
        ] {
            let error = space(text).err().unwrap();
            assert!(error.contains(part), "{error}");
        }
    }
}
