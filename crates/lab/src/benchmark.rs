//! Tables and the chart of GLUE's ten rows, from the records of the recipes' runs; a run without a record is a gap that says so.

use glue::{Baseline, Glue, Overlap, PublishedModel, Split, Task};
use peft::thousands;
use trainer::{Recipe, Record, Run, Stop};

use crate::chart::{Axis, Chart, Figure, Mark, Point, Series};
use crate::groups::{Group, baseline, by_method, caveats};
use crate::palette::Style;
use crate::table::Table;
use crate::text;

/// The runs of the recipes that have no record.
pub fn missing(recipes: &[Recipe], records: &[Record]) -> Vec<Run> {
    let runs = recipes.iter().flat_map(Recipe::runs);
    runs.filter(|run| records.iter().all(|record| record.run != *run)).collect()
}

/// The recipes, and the seeds of each that have no record.
pub fn recipes(recipes: &[Recipe], records: &[Record]) -> Table {
    let mut table = Table::new(["recipe", "learning rate", "epochs", "batch", "seeds", "without a record", "why so"]);
    for recipe in recipes {
        let settings = &recipe.run.settings;
        let missing: Vec<u64> = missing(std::slice::from_ref(recipe), records).iter().map(|run| run.seed).collect();
        table.push_long([
            recipe.name.clone(),
            text::small(settings.learning_rate),
            settings.epochs.to_string(),
            settings.batch_size.to_string(),
            seeds(&recipe.seeds),
            if missing.is_empty() { "none".into() } else { seeds(&missing) },
            recipe.about.clone(),
        ]);
    }
    match missing(recipes, records).len() {
        0 => table.note("Every run has its record."),
        1 => table.note("1 run has no record."),
        count => table.note(format!("{count} runs have no record.")),
    }
    table
}

fn seeds(seeds: &[u64]) -> String {
    seeds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One row for each labeled set, method and metric: the score against its baseline, what was trained, and how long it took.
pub fn scores(recipes: &[Recipe], records: &[Record]) -> Table {
    let mut table = Table::new([
        "task",
        "method",
        "metric",
        "score",
        "baseline",
        "above",
        "seeds",
        "starts from",
        "trained",
        "time",
    ]);
    let groups = by_method(records);
    for (task, split) in sets() {
        for run in methods(recipes, records).into_iter().filter(|run| run.task == task) {
            let group = of(&groups, task, run);
            for &metric in task.metrics() {
                let baseline = baseline(task, split, metric);
                let has_score = |group: &&Group| group.mean_and_deviation_on(split, metric).0.is_finite();
                let above = group.filter(has_score).zip(baseline).map(|(group, baseline)| group.is_above(baseline));
                table.push([
                    set_name(task, split).to_string(),
                    run.method_name(),
                    metric.to_string(),
                    group.map_or(NO_RECORD.into(), |group| group.score_on(split, metric)),
                    baseline.map_or("–".into(), |baseline| baseline.value.to_string()),
                    above.map_or("–", text::yes_or_no).into(),
                    group.map_or("–".into(), |group| group.seeds()),
                    start(group.map_or(run, |group| &group.records[0].run)),
                    group.map_or("–".into(), |group| group.share_of_model(group.records[0].parameters.trainable)),
                    group.map_or("–".into(), |group| group.training_time()),
                ]);
            }
        }
    }
    table.note("score: mean ± standard deviation over the seeds; time: of training, for a run on average");
    table.note("trained: share of the model's numbers, the classifier's among them");
    noted(table, records)
}

/// One row for each labeled set and metric: the scores of the methods beside published ones of full fine-tuning.
pub fn published(recipes: &[Recipe], records: &[Record]) -> Table {
    let methods = across_tasks(methods(recipes, records));
    let groups = by_method(records);
    let names = methods.iter().map(|run| run.method_name());
    let columns = ["task", "metric", "baseline"].map(String::from).into_iter();
    let models = PublishedModel::ALL.map(|model| model.to_string());
    let mut table = Table::new(columns.chain(names).chain(models).chain(["our data".into()]));
    for (task, split) in sets() {
        let of_task: Vec<&Record> = records.iter().filter(|record| record.run.task == task).collect();
        let data = match of_task.iter().find_map(|record| record.data.caveat()) {
            _ if of_task.is_empty() => "–",
            Some(_) => "partial",
            None => "whole",
        };
        for &metric in task.metrics() {
            let baseline = baseline(task, split, metric);
            let mut row = vec![set_name(task, split).to_string(), metric.to_string()];
            row.push(baseline.map_or("–".into(), |baseline| baseline.value.to_string()));
            row.extend(methods.iter().map(|run| {
                let score = |group: &Group| text::score(group.mean_and_deviation_on(split, metric).0);
                by_name(&groups, task, &run.method_name()).map_or("–".into(), score)
            }));
            row.extend(PublishedModel::ALL.map(|model| {
                let mut published = task.published().iter();
                let found = published.find(|found| (found.model, found.split, found.metric) == (model, split, metric));
                found.map_or("–".into(), |found| found.value.to_string())
            }));
            row.push(data.into());
            table.push(row);
        }
    }
    table.note("–: no record, or nothing published");
    table.note(PUBLISHED);
    noted(table, records)
}

/// Each method's score at every baseline, with the published ones.
pub fn chart(records: &[Record]) -> Figure {
    let places: Vec<(Task, Baseline)> =
        Task::ALL.into_iter().flat_map(|task| task.baselines().iter().map(move |&baseline| (task, baseline))).collect();
    let (groups, methods) = (by_method(records), across_tasks(methods(&[], records)));
    let names = places.iter().map(|(task, b)| format!("{}\n{}", set_name(*task, b.split), b.metric));
    let mut chart = Chart::new("", Axis::categories("", names), Axis::new("validation score"));
    // Beside each other: one's own, then the published ones.
    let marks = methods.len() + PublishedModel::ALL.len();
    let x = |place: usize, mark: usize| place as f64 + 0.18 * (mark as f64 - (marks - 1) as f64 / 2.0);
    for (mark, run) in methods.iter().enumerate() {
        let point = |(place, (task, b)): (usize, &(Task, Baseline))| {
            let (mean, deviation) =
                by_name(&groups, *task, &run.method_name())?.mean_and_deviation_on(b.split, b.metric);
            Some(Point::new(x(place, mark), mean).deviation(deviation))
        };
        let points = places.iter().enumerate().filter_map(point).collect();
        let group = groups.iter().find(|group| group.name() == run.method_name());
        let style = group.map_or_else(|| Style::of(&run.method), |group| group.style.clone());
        chart = chart.series(Series::new(run.method_name(), Mark::Markers, style, points));
    }
    for (index, model) in PublishedModel::ALL.into_iter().enumerate() {
        let point = |(place, (task, b)): (usize, &(Task, Baseline))| {
            let mut published = task.published().iter();
            let found = published.find(|found| (found.model, found.split, found.metric) == (model, b.split, b.metric));
            found.map(|found| Point::new(x(place, methods.len() + index), found.value))
        };
        let points = places.iter().enumerate().filter_map(point).collect();
        chart =
            chart.series(Series::new(format!("{model}, published"), Mark::Markers, Style::published(index), points));
    }
    for (place, (_, baseline)) in places.iter().enumerate() {
        chart = chart.reference("baseline", baseline.value, Some((place as f64 - 0.42, place as f64 + 0.42)));
    }
    let mut figure = Figure::new("GLUE: every task against its baseline").panel(chart).note(PUBLISHED);
    let absent = Task::ALL.into_iter().filter(|task| records.iter().all(|record| record.run.task != *task));
    let absent: Vec<String> = absent.filter(|task| *task != Task::Ax).map(|task| task.to_string()).collect();
    if !absent.is_empty() {
        figure = figure.note(format!("no record yet: {}", text::list(&absent)));
    }
    let figure = groups.iter().filter_map(|group| group.mixture()).fold(figure, Figure::note);
    let figure = groups.iter().filter_map(|group| group.gap()).fold(figure, Figure::note);
    caveats(records).into_iter().fold(figure, Figure::note)
}

/// Why WNLI's score is what it is: what its sets share, and what answers that understand nothing score on its validation set.
///
/// # Errors
/// When a file of it is broken.
pub fn wnli(glue: &Glue, records: &[Record]) -> glue::Result<Table> {
    let task = Task::Wnli;
    let mut table = Table::new(["WNLI", "share"]);
    let here = glue.splits(task);
    let overlap = match here.contains(&Split::Train) && here.contains(&Split::Validation) {
        true => Some(Overlap::of(glue, task)?),
        false => None,
    };
    let mut push = |what: &str, value: Option<f64>| {
        if let Some(value) = value {
            table.push([what.into(), text::score(value)]);
        }
    };
    let of = |value: fn(&Overlap) -> Option<f64>| overlap.as_ref().and_then(value);
    push("validation pairs whose first sentence is in the training set", of(|o| Some(o.shared_first_sentence)));
    push("of their twins there, with the same first sentence: those with the opposite label", of(|o| o.opposite_label));
    push("right on the validation set: always the training set's more frequent label", of(|o| Some(o.majority)));
    for group in by_method(records).iter().filter(|group| group.task == task) {
        let what = format!("right on the validation set: {}, fine-tuned", group.name());
        push(&what, Some(group.mean_and_deviation(task.metrics()[0]).0));
    }
    for published in task.published() {
        push(&format!("right on the validation set: {}, as published", published.model), Some(published.value));
    }
    push("right on the validation set: the label of the nearest training pair", of(|o| Some(o.nearest_neighbor)));
    push("right on the validation set: the opposite of that label", of(|o| o.inverted_nearest_neighbor));
    for baseline in task.baselines() {
        push("the baseline", Some(baseline.value));
    }
    if here.contains(&Split::Train) && here.contains(&Split::Test) {
        let (shared, all) = Overlap::shared_first_sentences(glue, task, Split::Test)?;
        table.push(["test pairs whose first sentence is in the training set", &format!("{shared} of {all}")]);
    }
    if overlap.is_none() {
        table.note("WNLI's training and validation sets are not here: what they share cannot be counted.");
    }
    if records.iter().all(|record| record.run.task != task) {
        table.note("no record yet of a model fine-tuned on WNLI");
    }
    Ok(table)
}

/// One row per method: what it trains, and what that took over all tasks.
pub fn costs(records: &[Record]) -> Table {
    let mut table = Table::new([
        "method",
        "trained, without the classifier",
        "share of the model",
        "with the classifier",
        "share",
        "tasks",
        "runs",
        "training in all",
        "tokens/s",
    ]);
    let groups = by_method(records);
    for run in across_tasks(methods(&[], records)) {
        let of_method: Vec<&Group> = groups.iter().filter(|group| group.name() == run.method_name()).collect();
        let runs: Vec<&Record> = of_method.iter().flat_map(|group| group.records.iter().copied()).collect();
        // The classifier has as many outputs as the task has labels; the task with the most stands for all.
        let Some(largest) = of_method.iter().max_by_key(|group| group.records[0].parameters.trainable) else {
            continue;
        };
        let trainable = largest.records[0].parameters.trainable;
        let seconds: f64 = runs.iter().map(|record| record.train_seconds).sum();
        let tokens: usize = runs.iter().map(|record| record.tokens).sum();
        table.push([
            run.method_name(),
            thousands(largest.parameters()),
            largest.share_of_model(largest.parameters()),
            thousands(trainable),
            largest.share_of_model(trainable),
            of_method.len().to_string(),
            runs.len().to_string(),
            text::duration(seconds),
            format!("{:.0}", tokens as f64 / seconds),
        ]);
        table.note("with the classifier: of the task with the most labels");
    }
    if records.is_empty() {
        table.note("no record yet");
    }
    table
}

/// Where the records come from: one row for each commit and machine.
pub fn conditions(records: &[Record]) -> Table {
    let mut table = Table::new(["commit", "processor", "threads", "runs", "training"]);
    let conditions = |record: &Record| {
        let environment = &record.environment;
        let processor = environment.gpu.as_ref().unwrap_or(&environment.processor).clone();
        [environment.commit.clone().unwrap_or("–".into()), processor, environment.threads.to_string()]
    };
    let mut rows: Vec<([String; 3], Vec<&Record>)> = Vec::new();
    for record in records {
        let here = conditions(record);
        match rows.iter_mut().find(|(there, _)| *there == here) {
            Some((_, of_row)) => of_row.push(record),
            None => rows.push((here, vec![record])),
        }
        if let Some(at_once) = record.environment.at_once {
            table.note(format!("{at_once} runs were under way at once: their times are not their own alone"));
        }
    }
    for ([commit, processor, threads], of_row) in rows {
        let seconds = of_row.iter().map(|record| record.train_seconds).sum();
        table.push([commit, processor, threads, of_row.len().to_string(), text::duration(seconds)]);
    }
    if records.is_empty() {
        table.note("no record yet");
    }
    table
}

const NO_RECORD: &str = "– (no record)";
const PUBLISHED: &str =
    "published: full fine-tuning on whole sets; where our data is partial, the scores do not compare";

/// GLUE's ten rows: the labeled sets that are not for training.
fn sets() -> impl Iterator<Item = (Task, Split)> {
    Task::ALL.into_iter().flat_map(|task| task.validation_splits().iter().map(move |&split| (task, split)))
}

/// As GLUE's table names it: `MNLI-m`, `MNLI-mm`.
fn set_name(task: Task, split: Split) -> &'static str {
    match (task, split) {
        (Task::Mnli, Split::ValidationMismatched) => "MNLI-mm",
        (Task::Mnli, _) => "MNLI-m",
        _ => task.name(),
    }
}

/// A run of each task and method, of the recipes and of the records, by the methods' names.
fn methods<'a>(recipes: &'a [Recipe], records: &'a [Record]) -> Vec<&'a Run> {
    let mut methods: Vec<&Run> = Vec::new();
    for run in recipes.iter().map(|recipe| &recipe.run).chain(records.iter().map(|record| &record.run)) {
        if !methods.iter().any(|other| other.task == run.task && other.has_method_of(run)) {
            methods.push(run);
        }
    }
    methods.sort_by_key(|run| run.method.id());
    methods
}

/// The first of each method by its name: its options may differ from task to task, such as dropout.
fn across_tasks(methods: Vec<&Run>) -> Vec<&Run> {
    let mut first: Vec<&Run> = Vec::new();
    for run in methods {
        if !first.iter().any(|other| other.method_name() == run.method_name()) {
            first.push(run);
        }
    }
    first
}

/// The records of a task with a method of that name.
fn by_name<'a>(groups: &'a [Group], task: Task, name: &str) -> Option<&'a Group<'a>> {
    groups.iter().find(|group| group.task == task && group.name() == name)
}

/// The records of a task with a run's method.
fn of<'a>(groups: &'a [Group], task: Task, run: &Run) -> Option<&'a Group<'a>> {
    groups.iter().find(|group| group.task == task && group.records[0].run.has_method_of(run))
}

/// The task that a run goes on from.
fn start(run: &Run) -> String {
    match &run.starts_from {
        Some(start) => start.run().map_or_else(|| start.to_string(), |first| first.task.to_string()),
        None => "–".into(),
    }
}

/// With what must stand beside the scores.
fn noted(mut table: Table, records: &[Record]) -> Table {
    by_method(records).iter().filter_map(|group| group.mixture()).for_each(|mixture| table.note(mixture));
    for Record { run, .. } in records.iter().filter(|record| record.stop == Stop::Diverged) {
        table.note(format!("{}, {}, seed {}: {}", run.task, run.method_name(), run.seed, Stop::Diverged));
    }
    caveats(records).into_iter().for_each(|caveat| table.note(caveat));
    table
}

#[cfg(test)]
mod tests {
    use glue::{Completeness, Metric, Scores};
    use peft::Method;
    use trainer::StartsFrom;

    use super::*;
    use crate::groups::tests::record;
    use crate::tables::tests::column;

    fn recipe(task: Task, method: Method, seeds: &[u64]) -> Recipe {
        let run = record(task, method, seeds[0], 0.5).run;
        let name = format!("{}-{}", task.id(), run.method.id());
        Recipe {
            name,
            about: "A <test>.".into(),
            run,
            starts_from: None,
            seeds: seeds.to_vec(),
            settings_given: Vec::new(),
        }
    }

    /// BitFit and LoRA on every task with labels.
    fn all_recipes() -> Vec<Recipe> {
        let tasks = Task::ALL.into_iter().filter(|task| *task != Task::Ax);
        tasks.flat_map(|task| [Method::bitfit(), Method::lora(8)].map(|method| recipe(task, method, &[1]))).collect()
    }

    #[test]
    fn without_a_record_every_row_is_there_and_says_so() {
        let table = scores(&all_recipes(), &[]);
        let mut tasks = column(&table, "task");
        tasks.dedup();
        let names = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI"];
        assert_eq!(tasks, names);
        assert!(column(&table, "score").iter().all(|score| score == "– (no record)"));
        assert!(column(&table, "above").iter().all(|above| above == "–"));
    }

    #[test]
    fn a_record_fills_its_rows_and_leaves_the_others_as_they_were() {
        let records = [(1, 0.89), (2, 0.91)].map(|(seed, score)| record(Task::Sst2, Method::bitfit(), seed, score));
        let recipes = [Method::lora(8), Method::bitfit()].map(|method| recipe(Task::Sst2, method, &[1, 2]));
        let table = scores(&recipes, &records);
        assert_eq!(column(&table, "method"), ["BitFit", "LoRA r=8"]);
        assert_eq!(column(&table, "score"), ["0.900 ± 0.014", "– (no record)"]);
        assert_eq!((column(&table, "above")[0].as_str(), column(&table, "seeds")[0].as_str()), ("yes", "2"));
        assert_eq!(column(&table, "time"), ["60 s", "–"]);
    }

    #[test]
    fn a_method_without_a_recipe_has_a_row_where_it_has_a_record() {
        let table = scores(&all_recipes(), &[record(Task::Rte, Method::Full, 1, 0.72)]);
        let full: Vec<usize> = (0..column(&table, "method").len())
            .filter(|&row| column(&table, "method")[row] == "Full fine-tuning")
            .collect();
        assert_eq!(full.len(), 1);
        assert_eq!(column(&table, "task")[full[0]], "RTE");
    }

    #[test]
    fn mnlis_sets_are_two_rows_with_scores_of_their_own() {
        let mut record = record(Task::Mnli, Method::bitfit(), 1, 0.85);
        if let Some(best) = &mut record.best {
            best.other_scores =
                vec![(Split::ValidationMismatched, Scores([(Metric::Accuracy, 0.75)].into_iter().collect()))];
        }
        let table = scores(&[], std::slice::from_ref(&record));
        assert_eq!(column(&table, "task"), ["MNLI-m", "MNLI-mm"]);
        assert_eq!(column(&table, "score"), ["0.850", "0.750"]);
        let heights: Vec<f64> = chart(&[record]).panels[0].series[0].points.iter().map(|point| point.y).collect();
        assert_eq!(heights, [0.85, 0.75]);
    }

    #[test]
    fn what_a_run_goes_on_from_is_named_by_its_task() {
        let mut run = record(Task::Rte, Method::bitfit(), 1, 0.8);
        run.run.starts_from = Some(StartsFrom::Run(Box::new(record(Task::Mnli, Method::bitfit(), 1, 0.8).run)));
        assert_eq!(column(&scores(&[], &[run]), "starts from"), ["MNLI"]);
    }

    #[test]
    fn published_scores_stand_beside_those_of_the_methods_whose_data_is_whole_or_not() {
        let mut partial = record(Task::Rte, Method::bitfit(), 1, 0.8);
        partial.data.train = Completeness { found: 100, official: Some(2490), extra: None };
        let table = published(&[], &[partial, record(Task::Cola, Method::bitfit(), 1, 0.5)]);
        let (tasks, ours) = (column(&table, "task"), column(&table, "BitFit"));
        let row = |name: &str| tasks.iter().position(|task| task == name).unwrap();
        assert_eq!((ours[row("CoLA")].as_str(), ours[row("WNLI")].as_str()), ("0.500", "–"));
        let data = column(&table, "our data");
        assert_eq!([&data[row("CoLA")], &data[row("RTE")], &data[row("WNLI")]], ["whole", "partial", "–"]);
        assert_eq!(column(&table, "BERT-base")[row("CoLA")], "0.5653");
        assert_eq!(column(&table, "RoBERTa-base")[row("MNLI-mm")], "–");
        assert!(table.to_text().contains("RTE: train 100 of 2490 (partial)") && table.to_text().contains(PUBLISHED));
    }

    #[test]
    fn the_chart_has_a_place_for_every_baseline_and_names_what_has_no_record() {
        let figure = chart(&[record(Task::Sst2, Method::lora(8), 1, 0.9)]);
        let chart = &figure.panels[0];
        assert_eq!((chart.x.ticks.len(), chart.references.len()), (12, 12));
        assert_eq!(chart.x.ticks[1].1, "SST-2\naccuracy");
        let names: Vec<&str> = chart.series.iter().map(|series| series.name.as_str()).collect();
        assert_eq!(names, ["LoRA r=8", "BERT-base, published", "RoBERTa-base, published"]);
        assert!((chart.series[0].points[0].x - 1.0).abs() < 0.5);
        assert!(figure.all_notes().iter().any(|note| note.starts_with("no record yet: CoLA, MRPC, ")));
        let layout = &figure.plotly_json().unwrap()["layout"];
        assert!(layout["title"]["subtitle"]["text"].to_string().contains("no record yet: CoLA"));
        assert_eq!(layout["xaxis"]["ticktext"][3], "STS-B<br>Pearson");
    }

    #[test]
    fn a_method_whose_options_differ_from_task_to_task_is_one_column_and_one_series() {
        let with_dropout = Method::Lora(peft::Lora { lora_dropout: 0.1, ..peft::Lora::rank(8) });
        let records = [record(Task::Cola, with_dropout, 1, 0.6), record(Task::Rte, Method::lora(8), 1, 0.8)];
        let table = published(&[], &records);
        let (tasks, ours) = (column(&table, "task"), column(&table, "LoRA r=8"));
        let row = |name: &str| tasks.iter().position(|task| task == name).unwrap();
        assert_eq!((ours[row("CoLA")].as_str(), ours[row("RTE")].as_str()), ("0.600", "0.800"));
        assert_eq!(chart(&records).panels[0].series[0].points.len(), 2);
        assert_eq!(column(&costs(&records), "tasks"), ["2"]);
    }

    #[test]
    fn a_diverged_run_is_a_gap_with_its_reason() {
        let mut diverged = record(Task::Cola, Method::bitfit(), 1, 0.5);
        (diverged.best, diverged.stop) = (None, Stop::Diverged);
        let table = scores(&[], &[diverged]);
        assert_eq!((column(&table, "score"), column(&table, "above")), (vec!["–".into()], vec!["–".into()]));
        assert!(table.to_text().contains("CoLA, BitFit, seed 1: diverged"), "{}", table.to_text());
    }

    #[test]
    fn a_recipe_lists_the_seeds_without_a_record() {
        let recipe = recipe(Task::Cola, Method::bitfit(), &[1, 2, 3]);
        let records = [record(Task::Cola, Method::bitfit(), 2, 0.5)];
        assert_eq!(missing(std::slice::from_ref(&recipe), &records).len(), 2);
        let table = recipes(&[recipe], &records);
        assert_eq!(column(&table, "without a record"), ["1, 3"]);
        assert!(table.to_text().contains("2 runs have no record.") && table.to_html().contains("A &lt;test&gt;."));
    }

    #[test]
    fn what_wnlis_sets_share_is_counted_where_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("WNLI");
        std::fs::create_dir(&place).unwrap();
        for (file, columns, rows) in [
            ("train.tsv", "\tlabel", "0\tJohn saw Bill.\tJohn ran.\t0\n"),
            ("dev.tsv", "\tlabel", "0\tJohn saw Bill.\tBill ran.\t1\n"),
            ("test.tsv", "", "0\tJohn saw Bill.\tBill ran.\n1\tAnn met Sue.\tAnn sang.\n"),
        ] {
            std::fs::write(place.join(file), format!("index\tsentence1\tsentence2{columns}\n{rows}")).unwrap();
        }
        let records = [record(Task::Wnli, Method::lora(8), 1, 0.563)];
        let table = wnli(&Glue::at(folder.path()).unwrap(), &records).unwrap();
        let shares = ["1.000", "1.000", "0.000", "0.563", "0.563", "0.000", "1.000", "0.800", "1 of 2"];
        assert_eq!(column(&table, "share"), shares);
    }

    #[test]
    fn without_wnli_its_table_says_so() {
        let text = wnli(&Glue::synthetic("a test"), &[]).unwrap().to_text();
        assert!(text.contains("are not here") && text.contains("no record yet"), "{text}");
    }

    #[test]
    fn a_methods_costs_are_over_all_its_tasks() {
        let records = [Task::Cola, Task::Rte].map(|task| record(task, Method::bitfit(), 1, 0.5));
        let table = costs(&records);
        assert_eq!(
            (column(&table, "tasks"), column(&table, "training in all")),
            (vec!["2".into()], vec!["2.0 min".into()])
        );
        assert_eq!(column(&table, "trained, without the classifier"), ["42,000"]);
    }

    #[test]
    fn records_of_one_commit_and_machine_are_one_row() {
        let mut records = [1, 2, 3].map(|seed| record(Task::Cola, Method::bitfit(), seed, 0.5));
        records[2].environment.commit = Some("abc".into());
        let table = conditions(&records);
        assert_eq!(
            (column(&table, "commit"), column(&table, "runs")),
            (vec!["–".into(), "abc".into()], vec!["2".into(), "1".into()])
        );
    }
}
