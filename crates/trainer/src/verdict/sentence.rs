//! Verdicts as sentences.

use std::fmt;

use crate::numbers::{count, p_value, points, signed_points};
use crate::statistics::{Bootstrap, Interval, LEVEL, McNemar};
use crate::verdict::evidence::{Evidence, OverSeeds, PairTest, Reason};
use crate::verdict::{Correction, Verdict};

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match &self.evidence {
            Evidence::Seeds(seeds) => self.write_seeds(f, seeds),
            Evidence::Models { seeds, test } => self.write_models(f, *seeds, test),
            Evidence::Nothing(reason) => self.write_nothing(f, *reason),
        }
    }
}

impl Verdict {
    /// The methods, the better one first, and whether that is the second.
    fn ordered(&self) -> ([&str; 2], bool) {
        let [first, second] = self.methods.each_ref().map(String::as_str);
        let swapped = self.better() == Some(1);
        (if swapped { [second, first] } else { [first, second] }, swapped)
    }

    fn write_seeds(&self, f: &mut fmt::Formatter, seeds: &OverSeeds) -> fmt::Result {
        let Self { task, metric, .. } = self;
        let ([first, second], swapped) = self.ordered();
        let turned = |found: Interval| interval(if swapped { found.negative() } else { found });
        let difference = if swapped { -seeds.difference.value } else { seeds.difference.value };
        let runs = match (seeds.paired, seeds.scores.each_ref().map(Vec::len)) {
            (true, [pairs, _]) => format!("{} seeds", count(pairs)),
            (false, [first, second]) => {
                let [first, second] = if swapped { [second, first] } else { [first, second] };
                format!("{} and {} seeds that are no pairs", count(first), count(second))
            }
        };
        let left_out = match seeds.left_out {
            0 => String::new(),
            1 => ", one run without a score or a partner left out".into(),
            runs => format!(", {} runs without a score or a partner left out", count(runs)),
        };
        let over_examples = match &seeds.resampled {
            Some(resampled) => format!(", over seeds and examples {}", turned(resampled.interval)),
            None => String::new(),
        };
        let found = format!(
            "{} points of {metric}, 95 % interval {}{over_examples}, {runs}{left_out}{}",
            signed_points(difference),
            turned(seeds.difference.interval()),
            self.correction_text()
        );
        if self.better().is_some() {
            return write!(f, "On {task} {first} is better than {second}: {found}");
        }
        let is_found_alone = self.evidence.p_value().is_some_and(|p| p < LEVEL);
        let by = if is_found_alone { "beside the other comparisons" } else { "with these seeds" };
        let smallest = points(self.smallest_visible().unwrap_or(f64::NAN));
        write!(
            f,
            "On {task} {first} and {second} cannot be told apart {by} (difference {found}); the smallest difference that could be \
             seen is {smallest}"
        )
    }

    fn write_models(&self, f: &mut fmt::Formatter, seeds: [u64; 2], test: &PairTest) -> fmt::Result {
        let Self { task, metric, .. } = self;
        let ([first, second], swapped) = self.ordered();
        let seeds = match seeds {
            [first, second] if first == second => format!("seed {first}"),
            [first, second] if swapped => format!("seeds {second} and {first}"),
            [first, second] => format!("seeds {first} and {second}"),
        };
        let found = match *test {
            PairTest::McNemar(McNemar { only_first, only_second }) => {
                let [one, other] = if swapped { [only_second, only_first] } else { [only_first, only_second] };
                format!("on {one} examples the first alone is right, on {other} the second alone (McNemar's exact test")
            }
            PairTest::Resampled(Bootstrap { difference, interval: found, .. }) => {
                let (difference, found) = if swapped { (-difference, found.negative()) } else { (difference, found) };
                let (difference, found) = (signed_points(difference), interval(found));
                format!("{difference} points of {metric}, 95 % interval over examples {found} (paired bootstrap")
            }
        };
        let p = self.evidence.p_value().map_or_else(String::new, |p| format!(", p {}", p_value(p)));
        let corrected = self.correction.map_or_else(String::new, corrected);
        let relation = match self.better() {
            Some(_) => format!("{first} is better than {second}"),
            None => format!("{first} and {second} cannot be told apart"),
        };
        write!(
            f,
            "On {task}, of this one pair of models ({seeds}), {relation}: {found}{p}{corrected}); of other seeds nothing can be said"
        )
    }

    fn write_nothing(&self, f: &mut fmt::Formatter, reason: Reason) -> fmt::Result {
        let Self { task, metric, methods: [first, second], .. } = self;
        write!(f, "On {task} nothing can be said of {first} and {second}")?;
        match reason {
            Reason::FewRuns([1, 1]) => f.write_str(" from one seed each"),
            Reason::FewRuns([0, _]) => write!(f, ": no run of {first} has a score"),
            Reason::FewRuns([_, 0]) => write!(f, ": no run of {second} has a score"),
            Reason::FewRuns([1, _]) => write!(f, " from one seed of {first}"),
            Reason::FewRuns(_) => write!(f, " from one seed of {second}"),
            Reason::Settings(side) => write!(f, ": the runs of {} differ in more than their seeds", self.methods[side]),
            Reason::Data => f.write_str(": their runs were trained or measured on different data"),
            Reason::NoSpread(difference) => write!(
                f,
                ": their difference is the same with every seed, {} points of {metric}, and leaves nothing to test",
                signed_points(difference)
            ),
        }
    }

    /// The p-values, where there are several verdicts.
    fn correction_text(&self) -> String {
        match (self.correction, self.evidence.p_value()) {
            (Some(correction), Some(p)) => format!(", p {}{}", p_value(p), corrected(correction)),
            _ => String::new(),
        }
    }
}

fn corrected(Correction { p_value: p, comparisons }: Correction) -> String {
    format!(", {} after Holm's correction for {comparisons} comparisons", p_value(p))
}

/// Its ends in points.
pub(super) fn interval(interval: Interval) -> String {
    format!("{} to {}", points(interval.low), points(interval.high))
}
