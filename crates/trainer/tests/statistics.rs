//! Statistics against the values of scipy, statsmodels and deepsig, stored by `oracle/make_statistics.py`.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use serde_json::Value;
use trainer::statistics::{
    Bootstrap, Estimate, Interval, LEVEL, McNemar, Sampling, almost_stochastic_order, holm, violation_ratio,
};

fn cases(name: &str) -> Vec<Value> {
    let mut oracle: Value = serde_json::from_str(include_str!("oracle/statistics.json")).unwrap();
    let Value::Array(cases) = oracle[name].take() else { return Vec::new() };
    assert!(!cases.is_empty(), "{name}");
    cases
}

fn number(case: &Value, name: &str) -> f64 {
    case[name].as_f64().unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Equal to a share of 1e-9, or where it is near 0 to 1e-12.
fn close(ours: f64, theirs: f64, case: &Value) {
    assert!((ours - theirs).abs() <= 1e-12 + 1e-9 * theirs.abs(), "{ours} against {theirs}: {case}");
}

fn difference(case: &Value) -> Estimate {
    let (a, b) = (numbers(&case["a"]), numbers(&case["b"]));
    let found = if case["paired"].as_bool().unwrap() { Estimate::paired_difference } else { Estimate::difference };
    found(&a, &b).unwrap()
}

#[test]
fn a_mean_and_its_interval_are_scipys() {
    for case in cases("means") {
        let found = Estimate::mean(&numbers(&case["values"])).unwrap();
        let Interval { low, high } = found.interval();
        close(found.value, number(&case, "mean"), &case);
        close(low, number(&case, "low"), &case);
        close(high, number(&case, "high"), &case);
    }
}

#[test]
fn paired_and_welchs_t_tests_have_scipys_p_values_degrees_of_freedom_and_intervals() {
    for case in cases("differences") {
        let found = difference(&case);
        let Interval { low, high } = found.interval();
        close(found.degrees_of_freedom, number(&case, "degrees_of_freedom"), &case);
        close(found.p_value().unwrap(), number(&case, "p"), &case);
        close(low, number(&case, "low"), &case);
        close(high, number(&case, "high"), &case);
    }
}

#[test]
fn the_smallest_visible_difference_has_the_power_that_statsmodels_and_scipys_quadrature_find() {
    for case in cases("smallest") {
        let (ours, theirs) = (difference(&case).smallest_visible(LEVEL), number(&case, "smallest"));
        assert!((ours - theirs).abs() < 1e-6 * theirs, "{ours} against {theirs}: {case}");
    }
}

#[test]
fn mcnemars_exact_test_has_statsmodels_p_values() {
    for case in cases("mcnemar") {
        let count = |name: &str| case[name].as_u64().unwrap();
        let found = McNemar { only_first: count("only_first"), only_second: count("only_second") };
        close(found.p_value(), number(&case, "p"), &case);
    }
}

#[test]
fn holms_correction_is_that_of_statsmodels() {
    for case in cases("holm") {
        for (ours, theirs) in holm(&numbers(&case["p"])).into_iter().zip(numbers(&case["corrected"])) {
            close(ours, theirs, &case);
        }
    }
}

#[test]
fn violation_ratios_and_bounds_of_almost_stochastic_order_are_deepsigs_up_to_its_steps_and_resamples() {
    for case in cases("orders") {
        let (a, b) = (numbers(&case["a"]), numbers(&case["b"]));
        let ratio = violation_ratio(&a, &b).unwrap();
        assert!((ratio - number(&case, "ratio")).abs() < 2e-4, "{ratio}: {case}");
        let bound = almost_stochastic_order(&a, &b, 1).unwrap();
        assert!((bound - number(&case, "bound")).abs() < 0.03, "{bound}: {case}");
    }
}

#[test]
fn the_multi_bootstrap_draws_from_all_resamples_alike_and_one_way_alone_as_scipy_does() {
    for case in cases("resamples") {
        let sides = ["a", "b"].map(|side| case[side].as_array().unwrap().iter().map(numbers).collect::<Vec<_>>());
        let flag = |name: &str| case[name].as_bool().unwrap();
        let examples = flag("with_examples").then_some(sides[0][0].len());
        let sampling = Sampling { runs: sides.each_ref().map(Vec::len), paired: flag("paired"), examples };
        let score = |side: usize, run: usize, rows: Option<&[usize]>| {
            let values: &[f64] = &sides[side][run];
            match rows {
                Some(rows) => rows.iter().map(|&row| values[row]).sum::<f64>() / rows.len() as f64,
                None => values.iter().sum::<f64>() / values.len() as f64,
            }
        };
        let found = Bootstrap::new(sampling, 1, score).unwrap();
        // Few seeds have few different resamples, and so gaps between them.
        let near = |ours: f64, name: &str| {
            let (theirs, deviation) = (number(&case, name), number(&case, "deviation"));
            assert!((ours - theirs).abs() < 0.25 * deviation, "{name}: {ours} against {theirs}, deviation {deviation}");
        };
        near(found.interval.low, "low");
        near(found.interval.high, "high");
        if let Some(theirs) = case["p"].as_f64() {
            assert!((found.p_value - theirs).abs() < 0.03, "p: {} against {theirs}", found.p_value);
        }
        assert_eq!(Bootstrap::new(sampling, 1, score), Some(found), "the same seed");
    }
}
