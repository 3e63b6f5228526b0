//! Learning rates: how the score of each method depends on its rate, and on how far that rate moves the model.

use std::collections::BTreeSet;

use glue::{Metric, Task};
use trainer::numbers::{count, points, score};
use trainer::statistics::mean_and_deviation;
use trainer::{Movement, Record};

use crate::chart::{Axis, Chart, Figure, Mark, Point, Series};
use crate::groups::{Group, by_method, caveats, main_metric, tasks};
use crate::palette::Style;
use crate::table::Table;
use crate::text;

/// How much score a rate may cost and still be one that serves.
const TOLERANCE: f64 = 0.02;

/// The score of each method against the learning rate, and the same scores against how far the runs moved the function: the relative
/// change of the last layer's output ([`trainer::Movement`]). Two panels for each task.
pub fn response(records: &[Record]) -> Figure {
    let mut figure = Figure::new("The score against the learning rate, and against how far it moves the model");
    for task in tasks(records) {
        let metric = main_metric(task);
        let score = || Axis::new(format!("validation {metric}"));
        let mut by_rate = Chart::new(task.name(), Axis::log("learning rate"), score());
        let mut by_movement = Chart::new(task.name(), Axis::log(FUNCTION), score());
        for curve in curves(records, task) {
            let places = |at: fn(&Place) -> f64| {
                curve.series(|place| Point::new(at(place), place.score).deviation(place.deviation))
            };
            by_rate = by_rate.series(places(|place| place.rate));
            by_movement = by_movement.series(places(|place| place.function));
        }
        figure = figure.panel(by_rate).panel(by_movement);
    }
    noted(figure, records)
}

/// How far each learning rate moves what is trained, and what the model computes. Two panels for each task.
pub fn movement(records: &[Record]) -> Figure {
    let mut figure = Figure::new("How far a learning rate moves the parameters, and the function");
    for task in tasks(records) {
        let chart = |what: &str| Chart::new(task.name(), Axis::log("learning rate"), Axis::log(what));
        let (mut of_parameters, mut of_function) = (chart("change of a trained parameter"), chart(FUNCTION));
        for curve in curves(records, task) {
            of_parameters = of_parameters.series(curve.series(|place| Point::new(place.rate, place.parameters)));
            of_function = of_function.series(curve.series(|place| Point::new(place.rate, place.function)));
        }
        figure = figure.panel(of_parameters).panel(of_function);
    }
    noted(figure, records)
}

/// What the last layer's output has moved by, as axes call it.
const FUNCTION: &str = "relative change of the last layer's output";

/// For each method on each task its best rate, how far that moved the model, and the range of rates that cost little; below it, for each
/// task, whether the methods are nearer together by movement than by rate.
pub fn best(records: &[Record]) -> Table {
    let mut table = Table::new([
        "task",
        "method",
        "best rate",
        "score",
        "change of a parameter",
        "change of the function",
        "rates that serve",
        "their changes of the function",
    ]);
    for task in tasks(records) {
        let curves = curves(records, task);
        for curve in &curves {
            let Some(Serving { best, lowest, highest }) = curve.serving() else { continue };
            table.push([
                task.to_string(),
                curve.group.name(),
                text::small(best.rate),
                format!("{} ± {}", score(best.score), score(best.deviation)),
                format!("{:.1e}", best.parameters),
                format!("{:.2}", best.function),
                format!("{} to {}", text::small(lowest.rate), text::small(highest.rate)),
                format!("{:.2} to {:.2}", lowest.function, highest.function),
            ]);
        }
        spread(task, &curves).into_iter().for_each(|sentence| table.note(sentence));
    }
    table.note(format!(
        "rates that serve: the range around the best in which the mean over seeds is at most {} points below it",
        points(TOLERANCE)
    ));
    caveats(records).into_iter().for_each(|caveat| table.note(caveat));
    table
}

/// Whether the methods' rates lie farther apart than what they move: the lowest that serve, the best and the highest that serve.
fn spread(task: Task, curves: &[Curve]) -> Option<String> {
    let serving: Vec<Serving> = curves.iter().filter_map(Curve::serving).collect();
    if serving.len() < 2 {
        return None;
    }
    let places: [(&str, Vec<&Place>); 3] = [
        ("the lowest rates that serve", serving.iter().map(|serving| serving.lowest).collect()),
        ("the best rates", serving.iter().map(|serving| serving.best).collect()),
        ("the highest rates that serve", serving.iter().map(|serving| serving.highest).collect()),
    ];
    let factors = places.map(|(name, places)| {
        (name, factor(places.iter().map(|place| place.rate)), factor(places.iter().map(|place| place.function)))
    });
    let parts = factors.map(|(name, rate, function)| format!("{name} {rate:.0} and {function:.1}"));
    let nearer = match factors.iter().filter(|(_, rate, function)| function < rate).count() {
        3 => "The methods are nearer together by what they move than by their rates",
        0 => "The methods are no nearer together by what they move than by their rates",
        _ => "Whether the methods are nearer together by what they move than by their rates depends on where one looks",
    };
    Some(format!(
        "On {task}, of {} methods the rates and their changes of the function lie these factors apart: {}. {nearer}.",
        count(serving.len()),
        text::list(&parts)
    ))
}

/// The highest of some numbers over the lowest.
fn factor(values: impl Iterator<Item = f64> + Clone) -> f64 {
    values.clone().fold(0.0, f64::max) / values.fold(f64::INFINITY, f64::min)
}

/// A method at one learning rate: means over its seeds.
struct Place {
    rate: f64,
    score: f64,
    deviation: f64,
    /// The relative change of the last layer's output.
    function: f64,
    /// The root mean square of the trained parameters' changes.
    parameters: f64,
}

/// The rates of a method that serve.
struct Serving<'a> {
    best: &'a Place,
    lowest: &'a Place,
    highest: &'a Place,
}

/// A method on a task, at each of its rates in rising order.
struct Curve<'a> {
    group: Group<'a>,
    places: Vec<Place>,
}

fn curves(records: &[Record], task: Task) -> Vec<Curve<'_>> {
    let metric = main_metric(task);
    let of_task = by_method(records).into_iter().filter(|group| group.task == task);
    of_task
        .map(|group| {
            let mut rates: Vec<f64> = group.records.iter().map(|record| record.run.settings.learning_rate).collect();
            rates.sort_by(f64::total_cmp);
            rates.dedup();
            let places = rates.into_iter().map(|rate| Place::of(&group, rate, metric)).collect();
            Curve { group, places }
        })
        .collect()
}

impl Place {
    fn of(group: &Group, rate: f64, metric: Metric) -> Self {
        let seeds = || group.records.iter().filter(|record| record.run.settings.learning_rate == rate);
        let moved = |value: fn(&Movement) -> f64| {
            let values = seeds().map(|record| record.movement.as_ref().map_or(f64::NAN, value));
            over_all(&values.collect::<Vec<_>>()).0
        };
        let (score, deviation) = over_all(&seeds().map(|record| record.best_metric(metric)).collect::<Vec<_>>());
        let function = moved(|movement| movement.layers.last().copied().unwrap_or(f64::NAN));
        Self { rate, score, deviation, function, parameters: moved(|movement| movement.change) }
    }
}

/// Mean and deviation; not a number where one of the values is none: a rate that fails with one seed is no better for the others.
fn over_all(values: &[f64]) -> (f64, f64) {
    if values.iter().all(|value| value.is_finite()) { mean_and_deviation(values) } else { (f64::NAN, f64::NAN) }
}

impl Curve<'_> {
    fn series(&self, point: impl Fn(&Place) -> Point) -> Series {
        let style: Style = self.group.style.clone();
        Series::new(self.group.name(), Mark::LineAndMarkers, style, self.places.iter().map(point).collect())
    }

    /// The rate with the highest mean, and the range around it in which no rate costs more than the tolerance; `None` without a score.
    fn serving(&self) -> Option<Serving<'_>> {
        let scored = self.places.iter().enumerate().filter(|(_, place)| place.score.is_finite());
        let (at, best) = scored.max_by(|(_, a), (_, b)| a.score.total_cmp(&b.score))?;
        let serves = |place: &&Place| place.score >= best.score - TOLERANCE;
        let lowest = self.places[..=at].iter().rev().take_while(serves).last()?;
        let highest = self.places[at..].iter().take_while(serves).last()?;
        Some(Serving { best, lowest, highest })
    }
}

fn noted(figure: Figure, records: &[Record]) -> Figure {
    let seeds: BTreeSet<u64> = records.iter().map(|record| record.run.seed).collect();
    let figure = figure.note(format!("a point is the mean over seeds, of which there are {}", count(seeds.len())));
    caveats(records).into_iter().fold(figure, Figure::note)
}

#[cfg(test)]
mod tests {
    use peft::Method;

    use super::*;
    use crate::groups::tests::record;
    use crate::tables::tests::column;

    /// Two methods with the same score for the same movement, which the second needs a hundredfold rate for.
    fn records() -> Vec<Record> {
        let mut records = Vec::new();
        for (method, rates) in [(Method::Full, [1e-5, 1e-4, 3e-4, 1e-3]), (Method::bitfit(), [1e-3, 1e-2, 3e-2, 0.1])] {
            for (rate, (moved, score)) in rates.into_iter().zip([(0.01, 0.6), (0.1, 0.89), (0.3, 0.9), (1.0, 0.7)]) {
                for seed in [1, 2] {
                    let mut made = record(Task::Sst2, method.clone(), seed, score + 0.01 * (seed as f64 - 1.5));
                    made.run.settings.learning_rate = rate;
                    made.movement = Some(Movement { layers: vec![9.0, moved], change: rate, count: 1, before: 1.0 });
                    records.push(made);
                }
            }
        }
        records
    }

    #[test]
    fn methods_that_differ_in_rate_alone_fall_together_by_movement() {
        let records = records();
        let figure = response(&records);
        let places = |panel: usize, series: usize| {
            figure.panels[panel].series[series].points.iter().map(|point| (point.x, point.y)).collect::<Vec<_>>()
        };
        assert_eq!(places(1, 0), places(1, 1));
        assert_ne!(places(0, 0), places(0, 1));
        let table = best(&records);
        assert_eq!(column(&table, "best rate"), ["3e-4", "0.03"]);
        assert_eq!(column(&table, "rates that serve"), ["1e-4 to 3e-4", "0.01 to 0.03"]);
        assert_eq!(column(&table, "their changes of the function"), ["0.10 to 0.30", "0.10 to 0.30"]);
        let text = table.to_text();
        assert!(
            text.contains("the lowest rates that serve 100 and 1.0, the best rates 100 and 1.0 and the highest"),
            "{text}"
        );
        assert!(text.contains("The methods are nearer together by what they move"), "{text}");
    }

    #[test]
    fn a_rate_at_which_a_seed_diverged_is_left_out_and_counted() {
        let mut records = records();
        (records[5].best, records[5].movement) = (None, None);
        let figure = response(&records);
        assert!(
            figure.all_notes().iter().any(|note| note.contains("2 values are left out")),
            "{:?}",
            figure.all_notes()
        );
        assert_eq!(column(&best(&records), "best rate")[0], "1e-4");
    }

    #[test]
    fn a_method_alone_is_compared_with_none() {
        let records: Vec<Record> = records().into_iter().filter(|record| record.run.method == Method::Full).collect();
        assert!(!best(&records).to_text().contains("apart"));
    }
}
