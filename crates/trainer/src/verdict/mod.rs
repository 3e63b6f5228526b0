//! Verdicts: what the runs that there are allow to say of two methods on a task, or of a method and a baseline. A verdict is a sentence
//! that follows from a test; where there is nothing to test it says so.
//!
//! Runs are compared by seed where both methods have it (the paired t test), else seeds against seeds (Welch's). Where the predictions of all of
//! them are there, they must differ over seeds and examples too (the multi-bootstrap). Of one seed each nothing can be said of the
//! methods, and with predictions something of this one pair of models (McNemar's test).

mod baseline;
mod evidence;
mod sentence;

pub use baseline::AgainstBaseline;
pub use evidence::{Evidence, OverSeeds, PairTest, Reason};

use glue::{Metric, Split, Task};

use crate::predictions::Predictions;
use crate::statistics::{LEVEL, holm};
use crate::summary::Summary;

/// What can be said of two methods on a task. As text it is a sentence without its full stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The task.
    pub task: Task,
    /// The names of the methods.
    pub methods: [String; 2],
    /// What their scores are compared in: the metric of the task's first baseline, on its split.
    pub metric: Metric,
    /// The validation split of the scores.
    pub split: Split,
    /// What there is to judge by.
    pub evidence: Evidence,
    /// Where it is one of several verdicts.
    pub correction: Option<Correction>,
    /// What must stand beside a score of these runs, such as how partial their data is.
    pub caveat: Option<String>,
}

/// Holm's correction of one p-value among several.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correction {
    /// The p-value after it.
    pub p_value: f64,
    /// Of so many comparisons.
    pub comparisons: usize,
}

impl Verdict {
    /// Of the runs of two methods on one task, by itself. Predictions that are not of these runs' best evaluations are not used.
    pub fn new(first: &Summary, second: &Summary, predictions: &[Predictions]) -> Self {
        let task = first.records[0].run.task;
        let measure = task.baselines().first().map(|baseline| (baseline.split, baseline.metric));
        let (split, metric) = measure.unwrap_or((Split::Validation, task.metrics()[0]));
        let caveats = [first, second].map(|summary| summary.records[0].data.caveat());
        Self {
            task,
            methods: [first, second].map(Summary::name),
            metric,
            split,
            evidence: Evidence::new([first, second], split, metric, predictions),
            correction: None,
            caveat: caveats.into_iter().flatten().next(),
        }
    }

    /// Of each two methods on each task, in the order of these runs. They are corrected together, by Holm: a verdict that found a difference
    /// found it beside all others.
    pub fn of_all(summaries: &[Summary], predictions: &[Predictions]) -> Vec<Self> {
        let mut verdicts = Vec::new();
        for (index, first) in summaries.iter().enumerate() {
            let same_task = |other: &&Summary| other.records[0].run.task == first.records[0].run.task;
            let others = summaries[index + 1..].iter().filter(same_task);
            verdicts.extend(others.map(|second| Self::new(first, second, predictions)));
        }
        let p_values: Vec<f64> = verdicts.iter().filter_map(|verdict| verdict.evidence.p_value()).collect();
        let comparisons = p_values.len();
        if comparisons > 1 {
            let tested = verdicts.iter_mut().filter(|verdict| verdict.evidence.p_value().is_some());
            for (verdict, p_value) in tested.zip(holm(&p_values)) {
                verdict.correction = Some(Correction { p_value, comparisons });
            }
        }
        verdicts
    }

    /// The p-value that it rests on: after Holm's correction where there is one, of the test where it stands alone.
    pub fn p_value(&self) -> Option<f64> {
        self.correction.map(|correction| correction.p_value).or_else(|| self.evidence.p_value())
    }

    /// The smallest difference of the means that these seeds would show in four of five cases; beside other comparisons as Holm's strictest step
    /// has it, with [`LEVEL`] divided by their number. `None` where seeds were not compared.
    pub fn smallest_visible(&self) -> Option<f64> {
        let Evidence::Seeds(OverSeeds { difference, .. }) = &self.evidence else { return None };
        let comparisons = self.correction.map_or(1, |correction| correction.comparisons);
        Some(difference.smallest_visible(LEVEL / comparisons as f64))
    }

    /// Which of the two is the better one, 0 or 1; `None` where they cannot be told apart, or nothing can be said.
    pub fn better(&self) -> Option<usize> {
        (self.p_value()? < LEVEL).then(|| usize::from(self.evidence.difference() < 0.0))
    }
}

#[cfg(test)]
mod tests {
    use glue::{Completeness, Targets};
    use peft::Method;

    use super::*;
    use crate::predictions::tests::with_predictions;
    use crate::record::Record;
    use crate::submission::tests::record;

    /// A run for each score, with seeds from `first_seed` on.
    fn runs(task: Task, method: &Method, first_seed: u64, scores: &[f64]) -> Vec<Record> {
        let seeds = first_seed..;
        seeds.zip(scores).map(|(seed, &score)| record(task, method.clone(), seed, score)).collect()
    }

    fn summary(records: &[Record]) -> Summary<'_> {
        Summary { records: records.iter().collect() }
    }

    fn verdict(first: &[Record], second: &[Record]) -> Verdict {
        Verdict::new(&summary(first), &summary(second), &[])
    }

    fn of_lora(scores: &[f64]) -> Vec<Record> {
        runs(Task::Mrpc, &Method::lora(8), 1, scores)
    }

    fn of_bitfit(scores: &[f64]) -> Vec<Record> {
        runs(Task::Mrpc, &Method::bitfit(), 1, scores)
    }

    #[test]
    fn the_better_method_is_named_with_its_lead_interval_and_seeds_in_whatever_order_they_are_given() {
        let lora = of_lora(&[0.80, 0.81, 0.79, 0.80, 0.82]);
        let bitfit = of_bitfit(&[0.79, 0.80, 0.77, 0.79, 0.80]);
        // Differences 1, 1, 2, 1, 2: mean 1.4, deviation sqrt(0.3); t(0.975, 4) = 2.776.
        let expected =
            "On MRPC LoRA r=8 is better than BitFit: +1.4 points of accuracy, 95 % interval 0.7 to 2.1, five seeds";
        assert_eq!(verdict(&lora, &bitfit).to_string(), expected);
        let turned = verdict(&bitfit, &lora);
        assert_eq!((turned.to_string().as_str(), turned.better()), (expected, Some(1)));
    }

    #[test]
    fn methods_that_cannot_be_told_apart_are_said_to_be_so_with_the_difference_that_could_be_seen() {
        let lora = of_lora(&[0.82, 0.79, 0.81, 0.78, 0.82]);
        let bitfit = of_bitfit(&[0.80, 0.80, 0.80, 0.80, 0.80]);
        // Mean 0.4, deviation sqrt(3.3); by statsmodels' TTestPower five pairs show 1.683 deviations with a power of 0.8.
        assert_eq!(
            verdict(&lora, &bitfit).to_string(),
            "On MRPC LoRA r=8 and BitFit cannot be told apart with these seeds (difference +0.4 points of accuracy, 95 % interval \
             -1.9 to 2.7, five seeds); the smallest difference that could be seen is 3.1"
        );
    }

    #[test]
    fn seeds_that_only_one_method_has_and_runs_without_a_score_are_left_out_and_counted() {
        let lora = of_lora(&[0.80, 0.81, f64::NAN, 0.80, 0.82, 0.90]);
        let bitfit = of_bitfit(&[0.79, 0.80, 0.77, 0.79, 0.80]);
        let Evidence::Seeds(seeds) = verdict(&lora, &bitfit).evidence else { panic!("no seeds") };
        assert_eq!((seeds.paired, seeds.left_out), (true, 3));
        assert_eq!(seeds.scores, [vec![0.80, 0.81, 0.80, 0.82], vec![0.79, 0.80, 0.79, 0.80]]);
    }

    #[test]
    fn methods_without_a_seed_in_common_are_compared_seeds_against_seeds() {
        let lora = of_lora(&[0.90, 0.91, 0.92]);
        let bitfit = runs(Task::Mrpc, &Method::bitfit(), 11, &[0.80, 0.82]);
        let text = verdict(&lora, &bitfit).to_string();
        assert!(
            text.contains("is better than BitFit: +10.0 points")
                && text.contains("three and two seeds that are no pairs"),
            "{text}"
        );
    }

    #[test]
    fn of_one_seed_of_different_settings_or_data_or_of_no_spread_nothing_can_be_said() {
        let said = |first: &[Record], second: &[Record]| verdict(first, second).to_string();
        let nothing = "On MRPC nothing can be said of LoRA r=8 and BitFit";
        let (lora, bitfit) = (of_lora(&[0.8, 0.9]), of_bitfit(&[0.7, 0.75]));
        assert_eq!(said(&lora[..1], &bitfit[..1]), format!("{nothing} from one seed each"));
        assert_eq!(said(&lora, &bitfit[..1]), format!("{nothing} from one seed of BitFit"));
        assert_eq!(said(&of_lora(&[f64::NAN]), &bitfit), format!("{nothing}: no run of LoRA r=8 has a score"));
        let mut other = bitfit.clone();
        other[1].run.settings.epochs += 1;
        assert_eq!(said(&lora, &other), format!("{nothing}: the runs of BitFit differ in more than their seeds"));
        other = bitfit.clone();
        other.iter_mut().for_each(|record| record.data.train = Completeness { found: 9, official: None, extra: None });
        assert_eq!(said(&lora, &other), format!("{nothing}: their runs were trained or measured on different data"));
        let same = said(&of_lora(&[0.75, 0.5]), &of_bitfit(&[0.5, 0.25]));
        assert_eq!(
            same,
            format!(
                "{nothing}: their difference is the same with every seed, +25.0 points of accuracy, and leaves nothing to test"
            )
        );
    }

    /// A run of RTE that is right on as many of 40 examples, from this one on, round about.
    fn right_on(method: Method, seed: u64, from: usize, count: usize) -> (Record, Predictions) {
        let labels = vec![1; 40];
        let predicted = (0..40).map(|row| usize::from((row + 40 - from) % 40 < count)).collect();
        with_predictions(Task::Rte, method, seed, Targets::Classes(predicted), Targets::Classes(labels))
    }

    #[test]
    fn of_one_seed_each_with_predictions_one_pair_of_models_is_compared_and_nothing_said_of_others() {
        let (lora, of_lora) = right_on(Method::lora(8), 1, 0, 30);
        let (bitfit, of_bitfit) = right_on(Method::bitfit(), 1, 0, 20);
        let compared = |predictions: &[Predictions]| {
            Verdict::new(&summary(std::slice::from_ref(&bitfit)), &summary(std::slice::from_ref(&lora)), predictions)
        };
        // 2 * 0.5^10 = 0.00195
        assert_eq!(
            compared(&[of_lora.clone(), of_bitfit.clone()]).to_string(),
            "On RTE, of this one pair of models (seed 1), LoRA r=8 is better than BitFit: on 10 examples the first alone is right, on 0 \
             the second alone (McNemar's exact test, p 0.002); of other seeds nothing can be said"
        );
        assert_eq!(compared(&[of_lora]).evidence, Evidence::Nothing(Reason::FewRuns([1, 1])));
    }

    #[test]
    fn of_scores_one_pair_of_models_is_compared_over_resampled_examples() {
        let labels: Vec<f64> = (0..60).map(|row| f64::from(row % 6)).collect();
        let noisy = |noise: f64| {
            let off = |(row, label): (usize, &f64)| label + noise * f64::from((row as u32 * 7919) % 13) - 6.0 * noise;
            Targets::Values(labels.iter().enumerate().map(off).collect())
        };
        let of = |method, noise| with_predictions(Task::StsB, method, 3, noisy(noise), Targets::Values(labels.clone()));
        let ((lora, of_lora), (bitfit, of_bitfit)) = (of(Method::lora(8), 0.1), of(Method::bitfit(), 0.5));
        let found = Verdict::new(&summary(&[lora]), &summary(&[bitfit]), &[of_lora, of_bitfit]);
        let text = found.to_string();
        assert_eq!(found.better(), Some(0), "{text}");
        assert!(text.contains("points of Pearson, 95 % interval over examples") && text.contains("(seed 3)"), "{text}");
    }

    #[test]
    fn what_differs_over_seeds_must_differ_over_examples_too_where_predictions_are_there() {
        // Two more of 40 are right with every seed, or one: clear over seeds, and by chance over examples.
        let counts = [(30, 28), (31, 30), (29, 27), (30, 29)];
        let seeded = counts.into_iter().enumerate().map(|(index, (lora, bitfit))| {
            let seed = index as u64 + 1;
            [right_on(Method::lora(8), seed, 0, lora), right_on(Method::bitfit(), seed, 12, bitfit)]
        });
        let (lora, bitfit): (Vec<_>, Vec<_>) = seeded.map(|[lora, bitfit]| (lora, bitfit)).unzip();
        let (lora, mut predictions): (Vec<Record>, Vec<Predictions>) = lora.into_iter().unzip();
        let (bitfit, more): (Vec<Record>, Vec<Predictions>) = bitfit.into_iter().unzip();
        predictions.extend(more);
        let compared = |predictions: &[Predictions]| Verdict::new(&summary(&lora), &summary(&bitfit), predictions);
        assert_eq!(compared(&[]).better(), Some(0));
        let with_examples = compared(&predictions);
        let text = with_examples.to_string();
        assert_eq!(with_examples.better(), None, "{text}");
        assert!(text.contains(", over seeds and examples -"), "{text}");
        // Without the predictions of one run the seeds alone are left.
        assert_eq!(compared(&predictions[1..]).better(), Some(0));
    }

    #[test]
    fn several_verdicts_are_corrected_together_and_say_so() {
        let (lora, bitfit) = ([0.80, 0.81, 0.79, 0.80, 0.82], [0.79, 0.80, 0.77, 0.79, 0.80]);
        let mut groups = Vec::new();
        for task in [Task::Mrpc, Task::Rte, Task::Cola, Task::Sst2] {
            groups.push(runs(task, &Method::lora(8), 1, &lora));
            groups.push(runs(task, &Method::bitfit(), 1, &bitfit));
        }
        groups.push(runs(Task::Wnli, &Method::bitfit(), 1, &[0.5]));
        groups.push(runs(Task::Wnli, &Method::lora(8), 1, &[0.6]));
        let summaries: Vec<Summary> = groups.iter().map(|records| summary(records)).collect();
        let verdicts = Verdict::of_all(&summaries, &[]);
        assert_eq!(verdicts.len(), 5);
        // t = 5.7155 with 4 degrees of freedom: p 0.00464, times 4.
        assert!(
            verdicts[0].to_string().ends_with("five seeds, p 0.005, 0.019 after Holm's correction for 4 comparisons")
        );
        assert_eq!((verdicts[0].better(), verdicts[4].correction), (Some(0), None));
        // Sixteen together: what each finds alone is found no more.
        let many = Verdict::of_all(&[&summaries[..8], &summaries[..8]].concat(), &[]);
        assert!(many[0].to_string().contains("cannot be told apart beside the other comparisons"), "{}", many[0]);
        let alone = Verdict::of_all(&summaries[..2], &[]);
        assert_eq!(alone[0].correction, None);
    }

    #[test]
    fn a_method_is_above_a_baseline_where_the_whole_interval_is() {
        let said = |scores: &[f64]| {
            let records = of_lora(scores);
            let against = AgainstBaseline::of(&summary(&records)).remove(0);
            (against.is_above(), against.to_string())
        };
        let baseline = "the baseline of 80.0 points of accuracy";
        // Deviation 1, t(0.975, 2) = 4.303.
        let above = format!("On MRPC LoRA r=8 is above {baseline}: mean 85.0, 95 % interval 82.5 to 87.5, three seeds");
        assert_eq!(said(&[0.85, 0.86, 0.84]), (Some(true), above));
        let open = format!(
            "On MRPC LoRA r=8 is not shown to be above {baseline}: mean 81.0, 95 % interval 78.5 to 83.5, three seeds"
        );
        assert_eq!(said(&[0.81, 0.82, 0.80]), (Some(false), open));
        assert!(said(&[0.71, 0.72, 0.70]).1.contains("is below the baseline"));
        let one =
            format!("On MRPC it cannot be said whether LoRA r=8 is above {baseline}: there is one seed, with 85.0");
        assert_eq!(said(&[0.85]), (None, one));
    }
}
