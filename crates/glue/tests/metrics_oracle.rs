//! The metrics against scikit-learn's and scipy's values, stored by `metrics_oracle.py`.

use glue::metrics::{accuracy, f1, matthews, pearson, spearman};
use serde::Deserialize;

#[derive(Deserialize)]
struct Oracle {
    classes: Vec<Classes>,
    values: Vec<Values>,
}

#[derive(Deserialize)]
struct Classes {
    predicted: Vec<usize>,
    gold: Vec<usize>,
    accuracy: f64,
    matthews: f64,
    f1: Option<f64>,
}

#[derive(Deserialize)]
struct Values {
    predicted: Vec<f64>,
    gold: Vec<f64>,
    /// None where scipy gives NaN.
    pearson: Option<f64>,
    spearman: Option<f64>,
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} against {b}");
}

#[test]
fn every_metric_equals_the_reference_librarys() {
    let oracle: Oracle = serde_json::from_str(include_str!("metrics_oracle.json")).unwrap();
    for case in &oracle.classes {
        close(accuracy(&case.predicted, &case.gold), case.accuracy);
        close(matthews(&case.predicted, &case.gold), case.matthews);
        if let Some(expected) = case.f1 {
            close(f1(&case.predicted, &case.gold), expected);
        }
    }
    for case in &oracle.values {
        for (ours, theirs) in [
            (pearson(&case.predicted, &case.gold), case.pearson),
            (spearman(&case.predicted, &case.gold), case.spearman),
        ] {
            match theirs {
                Some(expected) => close(ours, expected),
                None => assert!(ours.is_nan(), "{ours} against NaN"),
            }
        }
    }
}
