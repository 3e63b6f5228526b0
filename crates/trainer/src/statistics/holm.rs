//! Holm's correction of the p-values of several tests.

/// The p-values after Holm's correction, in their order: the k-th smallest of m, times m - k + 1, but never below a smaller one's and never
/// above 1 (Holm 1979; statsmodels' `multipletests(method="holm")`). Where all of those below a level are called differences, the
/// probability that even one of them is none is at most the level.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&i, &j| p_values[i].total_cmp(&p_values[j]));
    let mut corrected = vec![0.0; p_values.len()];
    let mut highest = 0.0f64;
    for (place, &index) in order.iter().enumerate() {
        highest = highest.max(p_values[index] * (p_values.len() - place) as f64).min(1.0);
        corrected[index] = highest;
    }
    corrected
}
