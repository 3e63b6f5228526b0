//! Studies as charts and tables: how the candidates rank, what each field does, and which fields matter.

use trainer::study::{Candidate, CandidateScores, Stage, Study, importance};

use crate::chart::{Axis, Chart, Figure, Mark, Point, Series};
use crate::palette::Style;
use crate::table::Table;

/// The candidates that have a score, the best first.
pub fn ranking(study: &Study, stage: &Stage) -> Table {
    let columns = ["place", "recipe"].into_iter().chain(study.short_names()).chain(["score", "deviation", "seeds"]);
    let mut table = Table::new(columns);
    for (place, (candidate, scores)) in scored(stage).into_iter().enumerate() {
        let numbers =
            [format!("{:.4}", scores.mean()), format!("{:.4}", scores.deviation()), scores.0.len().to_string()];
        let row = [(place + 1).to_string(), candidate.recipe.clone()].into_iter().chain(candidate.values.clone());
        table.push(row.chain(numbers));
    }
    table.note(stage.to_string());
    table
}

/// For each field the share of the scores' variance that it alone explains ([`importance`]).
pub fn importance_of_fields(study: &Study, stage: &Stage) -> Figure {
    let scored = scored(stage);
    let points: Vec<_> =
        scored.iter().map(|(candidate, scores)| (candidate.values.as_slice(), scores.mean())).collect();
    let shares = importance(study.fields.len(), &points);
    let bars = shares.iter().enumerate().filter_map(|(index, share)| Some((index, 100.0 * (*share)?)));
    let points = bars.map(|(index, share)| Point::new(index as f64, share).label(format!("{share:.0} %"))).collect();
    let chart =
        Chart::new("", Axis::categories("", study.short_names()), Axis::new("share of the scores' variance (%)"));
    Figure::new("What the score depends on")
        .panel(chart.series(Series::new("", Mark::Bars, Style::indexed(0), points)))
        .note("epsilon squared of each field alone, over all candidates; what fields do together is in none")
        .note(stage.to_string())
}

/// The score of each candidate against the value of each field, one panel per field; a color for each recipe.
pub fn responses(study: &Study, stage: &Stage) -> Figure {
    let mut figure =
        Figure::new("The score against each field").note("a point is a candidate, its score the mean over seeds");
    for (field, name) in study.short_names().into_iter().enumerate() {
        let places = Places::of(stage, field);
        let mut chart = Chart::new(name, places.axis(name), Axis::new("score"));
        for (index, recipe) in recipes(stage).into_iter().enumerate() {
            let of_recipe = scored(stage).into_iter().filter(|(candidate, _)| candidate.recipe == recipe);
            let points =
                of_recipe.map(|(candidate, scores)| Point::new(places.at(&candidate.values[field]), scores.mean()));
            chart = chart.series(Series::new(recipe, Mark::Markers, Style::indexed(index), points.collect()));
        }
        figure = figure.panel(chart);
    }
    figure.note(stage.to_string())
}

/// Parallel coordinates: a line for each candidate through its values, each field's from its lowest at the foot to its highest, and its
/// score; of three colors by the third of the ranking that it is in. The best candidate's values are written beside it.
pub fn parallel_coordinates(study: &Study, stage: &Stage) -> Figure {
    let scored = scored(stage);
    let all: Vec<Places> = (0..study.fields.len()).map(|field| Places::of(stage, field)).collect();
    let means: Vec<f64> = scored.iter().map(|(_, scores)| scores.mean()).collect();
    let (lowest, highest) = (means.last().copied().unwrap_or(0.0), means.first().copied().unwrap_or(1.0));
    let names = study.short_names().into_iter().chain(["score"]);
    let mut chart = Chart::new("", Axis::categories("", names), Axis::new("lowest to highest").marked_at([]));
    // The best are drawn last, above the others.
    for (place, (candidate, scores)) in scored.iter().enumerate().rev() {
        let third = 3 * place / scored.len().max(1);
        let value = |(field, places): (usize, &Places)| {
            let point = Point::new(field as f64, places.share(&candidate.values[field]));
            if place == 0 { point.label(candidate.values[field].clone()) } else { point }
        };
        let mut points: Vec<Point> = all.iter().enumerate().map(value).collect();
        let share = if highest > lowest { (scores.mean() - lowest) / (highest - lowest) } else { 1.0 };
        let end = Point::new(all.len() as f64, share);
        points.push(if place == 0 { end.label(format!("{:.3}", scores.mean())) } else { end });
        let name = ["best third", "middle third", "last third"][third.min(2)];
        chart = chart.series(Series::new(name, Mark::Line, Style::indexed(third.min(2)), points));
    }
    Figure::new("Which values go with a high score").panel(chart).note(stage.to_string())
}

/// The candidates with a score, the best first.
fn scored(stage: &Stage) -> Vec<(&Candidate, &CandidateScores)> {
    stage.ranking().into_iter().filter(|(_, scores)| scores.mean().is_finite()).collect()
}

/// The recipes of a stage, each once, in their order.
fn recipes(stage: &Stage) -> Vec<&str> {
    let mut names: Vec<&str> = stage.candidates.iter().map(|candidate| candidate.recipe.as_str()).collect();
    names.dedup();
    names
}

/// Where the values of a field stand along an axis.
struct Places {
    /// In rising order, each once.
    numbers: Option<Vec<f64>>,
    names: Vec<String>,
}

impl Places {
    fn of(stage: &Stage, field: usize) -> Self {
        let mut names: Vec<String> = stage.candidates.iter().map(|candidate| candidate.values[field].clone()).collect();
        let numbers: Option<Vec<f64>> = names.iter().map(|name| name.parse().ok()).collect();
        let numbers = numbers.map(|mut numbers| {
            numbers.sort_by(f64::total_cmp);
            numbers.dedup();
            numbers
        });
        names.sort();
        names.dedup();
        Self { numbers, names }
    }

    /// Whether the values span so much that their powers are looked at: tenfold.
    fn is_log(&self) -> bool {
        self.ends().is_some_and(|(lowest, highest)| lowest > 0.0 && highest >= 10.0 * lowest)
    }

    fn ends(&self) -> Option<(f64, f64)> {
        let numbers = self.numbers.as_ref()?;
        Some((*numbers.first()?, *numbers.last()?))
    }

    fn axis(&self, name: &str) -> Axis {
        match (&self.numbers, self.is_log()) {
            (None, _) => Axis::categories(name, self.names.clone()),
            (Some(_), true) => Axis::log(name),
            (Some(_), false) => Axis::new(name),
        }
    }

    /// A number by itself, a name by its place.
    fn at(&self, value: &str) -> f64 {
        match &self.numbers {
            Some(_) => value.parse().unwrap_or(f64::NAN),
            None => self.names.iter().position(|name| name == value).map_or(f64::NAN, |place| place as f64),
        }
    }

    /// From 0 for the lowest to 1 for the highest.
    fn share(&self, value: &str) -> f64 {
        let (lowest, highest) = self.ends().unwrap_or((0.0, self.names.len().saturating_sub(1) as f64));
        let scaled = |value: f64| if self.is_log() { value.ln() } else { value };
        if highest > lowest {
            (scaled(self.at(value)) - scaled(lowest)) / (scaled(highest) - scaled(lowest))
        } else {
            0.5
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    /// A grid of three rates and two activations, the middle rate best, one candidate without a score.
    fn study() -> (Study, Stage) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("study.toml");
        let text = "recipes = [\"mrpc-bitfit\"]\nseeds = [1, 2]\n[vary]\nsettings.learning_rate = [1e-4, 1e-3, 1e-2]\nsettings.pooling = [\"cls\", \"mean\"]";
        std::fs::write(&path, text).unwrap();
        let study = Study::load(&path).unwrap();
        let mut stage = study.stage(|_| Ok(None)).unwrap();
        stage.missing.clear();
        let scores = [0.5, 0.6, 0.9, 0.8, 0.7, f64::NAN];
        stage.scores = scores.map(|score| CandidateScores(vec![score, score])).into();
        (study, stage)
    }

    #[test]
    fn the_ranking_has_the_best_first_and_none_without_a_score() {
        let (study, stage) = study();
        let text = ranking(&study, &stage).to_text();
        let rows: Vec<&str> = text.lines().filter(|line| line.contains("mrpc-bitfit")).collect();
        assert_eq!(rows.len(), 5, "{text}");
        assert!(rows[0].contains("0.001") && rows[0].contains("0.9000") && rows[0].contains("cls"), "{text}");
    }

    #[test]
    fn a_candidates_line_goes_through_its_values_and_the_bests_are_written() {
        let (study, stage) = study();
        let chart = parallel_coordinates(&study, &stage).panels.swap_remove(0);
        assert_eq!(chart.series.len(), 5);
        let best = chart.series.last().unwrap();
        let places: Vec<(f64, f64)> = best.points.iter().map(|point| (point.x, point.y)).collect();
        // The rate is in the middle of its powers, cls the first of two names, the score the highest.
        assert_eq!(places.iter().map(|(x, _)| *x).collect::<Vec<_>>(), [0.0, 1.0, 2.0]);
        assert!((places[0].1 - 0.5).abs() < 1e-12 && places[1].1 == 0.0 && places[2].1 == 1.0, "{places:?}");
        assert_eq!((best.name.as_str(), best.points[2].label.as_str()), ("best third", "0.900"));
    }

    #[test]
    fn each_field_has_a_panel_and_names_stand_at_places_of_their_own() {
        let (study, stage) = study();
        let figure = responses(&study, &stage);
        assert_eq!(figure.panels.len(), 2);
        let places: Vec<f64> = figure.panels[1].series[0].points.iter().map(|point| point.x).collect();
        assert!(places.contains(&0.0) && places.contains(&1.0), "{places:?}");
        assert_eq!(importance_of_fields(&study, &stage).panels[0].series[0].points.len(), 2);
    }
}
