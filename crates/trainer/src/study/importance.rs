//! Which of the varied fields the scores depend on.

use std::collections::BTreeMap;

/// Values of a number field are compared in so many groups of equally many, where more different ones were drawn.
const GROUPS: usize = 4;

/// For each field the share of the scores' variance that the field's values alone explain: epsilon squared of a one-way analysis of variance
/// (Kelley 1935, "An unbiased correlation ratio measure"), `(SSb - dfb MSw) / SSt`, and 0 where that is below. Unlike the correlation ratio it
/// does not grow with the number of values. `None` where too few scores differ to tell.
///
/// `points` are the candidates' values, one for each field, and their scores; those without a score do not count.
pub fn importance(fields: usize, points: &[(&[String], f64)]) -> Vec<Option<f64>> {
    let points: Vec<_> = points.iter().filter(|(_, score)| score.is_finite()).collect();
    (0..fields)
        .map(|field| {
            let values: Vec<&str> = points.iter().map(|(values, _)| values[field].as_str()).collect();
            let scores: Vec<f64> = points.iter().map(|(_, score)| *score).collect();
            explained(&groups(&values), &scores)
        })
        .collect()
}

/// The number of each value's group.
fn groups(values: &[&str]) -> Vec<usize> {
    let numbers: Option<Vec<f64>> = values.iter().map(|value| value.parse().ok()).collect();
    let mut different = values.to_vec();
    different.sort_unstable();
    different.dedup();
    match numbers {
        Some(numbers) if different.len() > 2 * GROUPS => {
            let mut sorted = numbers.clone();
            sorted.sort_by(f64::total_cmp);
            numbers
                .iter()
                .map(|number| sorted.partition_point(|other| other < number) * GROUPS / sorted.len())
                .collect()
        }
        _ => values.iter().map(|value| different.partition_point(|other| other < value)).collect(),
    }
}

fn explained(groups: &[usize], scores: &[f64]) -> Option<f64> {
    let mut by_group: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (group, score) in groups.iter().zip(scores) {
        by_group.entry(*group).or_default().push(*score);
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let of_all = mean(scores);
    let total: f64 = scores.iter().map(|score| (score - of_all).powi(2)).sum();
    let between: f64 = by_group.values().map(|scores| scores.len() as f64 * (mean(scores) - of_all).powi(2)).sum();
    let (between_freedom, within_freedom) = (by_group.len().checked_sub(1)?, scores.len().checked_sub(by_group.len())?);
    if between_freedom == 0 || within_freedom == 0 || total <= 0.0 {
        return None;
    }
    let within = (total - between) / within_freedom as f64;
    Some(((between - between_freedom as f64 * within) / total).max(0.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    /// From F = 9.635927303233924, which SciPy 1.17's `f_oneway` gives: (F - 1) 2 / (2 F + 9).
    #[test]
    fn the_share_is_that_of_an_analysis_of_variance() {
        let weights = [
            ("casein", [368.0, 390.0, 379.0, 260.0]),
            ("horsebean", [179.0, 160.0, 136.0, 227.0]),
            ("linseed", [309.0, 229.0, 181.0, 141.0]),
        ];
        let values: Vec<(Vec<String>, f64)> = weights
            .iter()
            .flat_map(|(feed, weights)| weights.map(|weight| (vec![feed.to_string(), "same".into()], weight)))
            .collect();
        let points: Vec<(&[String], f64)> = values.iter().map(|(values, score)| (values.as_slice(), *score)).collect();
        let found = importance(2, &points);
        assert!((found[0].unwrap() - 0.6109204665517949).abs() < 1e-12, "{found:?}");
        assert_eq!(found[1], None);
    }

    #[test]
    fn many_numbers_are_compared_in_quarters_and_a_run_without_a_score_does_not_count() {
        let values: Vec<(Vec<String>, f64)> = (0..40)
            .map(|n| (vec![format!("{}", f64::from(n) * 0.5), format!("{}", n % 2)], if n < 20 { 0.5 } else { 0.8 }))
            .chain([(vec!["3".into(), "1".into()], f64::NAN)])
            .collect();
        let points: Vec<(&[String], f64)> = values.iter().map(|(values, score)| (values.as_slice(), *score)).collect();
        let found = importance(2, &points);
        assert!((found[0].unwrap() - 1.0).abs() < 1e-9 && found[1].unwrap() < 0.01, "{found:?}");
    }
}
