//! Successive halving (Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization", figure 3):
//! all candidates on a small budget, the best of them on a larger one, until few have the whole.

use std::cmp::Ordering;

use crate::study::Stage;

/// The budgets, and how many go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Halving {
    /// The field that is the budget, such as `settings.train_limit` or `settings.epochs`.
    pub field: String,
    /// The first budget.
    pub least: usize,
    /// The last.
    pub most: usize,
    /// Each budget is so many times the one before, and one in so many candidates goes on to it.
    pub factor: usize,
}

impl Halving {
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { least, most, factor, .. } = *self;
        let is_right = 0 < least && least < most && factor > 1;
        if is_right { Ok(()) } else { Err(format!("search: least = {least}, most = {most}, factor = {factor}")) }
    }

    /// From the last one down, divided by the factor as long as it is not below the least, in rising order.
    pub(crate) fn budgets(&self) -> Vec<usize> {
        let next = |budget: &usize| Some(budget / self.factor).filter(|&budget| budget >= self.least.max(1));
        let mut budgets: Vec<usize> = std::iter::successors(Some(self.most), next).collect();
        budgets.reverse();
        budgets
    }

    /// The points that go on: of each recipe one in `factor`, rounded up, with the highest mean scores; the first of equals. One without a
    /// score comes last.
    pub(crate) fn survivors(&self, points: &[usize], recipes: &[&str], stage: &Stage) -> Vec<usize> {
        let mut survivors = Vec::new();
        let mut names: Vec<&str> = points.iter().map(|&point| recipes[point]).collect();
        names.dedup();
        for name in names {
            let of_recipe = points.iter().zip(&stage.scores).filter(|(point, _)| recipes[**point] == name);
            let mut ranked: Vec<(usize, f64)> = of_recipe.map(|(&point, scores)| (point, scores.mean())).collect();
            ranked.sort_by(|(_, a), (_, b)| match (a.is_nan(), b.is_nan()) {
                (false, false) => b.total_cmp(a),
                (a, b) => a.cmp(&b).then(Ordering::Equal),
            });
            let kept = ranked.len().div_ceil(self.factor);
            survivors.extend(ranked.into_iter().take(kept).map(|(point, _)| point));
        }
        survivors.sort_unstable();
        survivors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::CandidateScores;

    fn halving(least: usize, most: usize, factor: usize) -> Halving {
        Halving { field: "settings.epochs".into(), least, most, factor }
    }

    #[test]
    fn budgets_grow_by_the_factor_to_the_last() {
        assert_eq!(halving(300, 3668, 3).budgets(), [407, 1222, 3668]);
        assert_eq!(halving(1, 9, 3).budgets(), [1, 3, 9]);
        assert_eq!(halving(2, 3, 2).budgets(), [3]);
        assert!(
            halving(0, 3, 2).check().is_err() && halving(3, 3, 2).check().is_err() && halving(1, 3, 1).check().is_err()
        );
    }

    #[test]
    fn the_best_third_of_each_recipe_goes_on_and_what_has_no_score_comes_last() {
        let scores = [0.1, f64::NAN, 0.3, 0.2, 0.9, 0.9, 0.8].map(|score| CandidateScores(vec![score]));
        let stage = Stage { scores: scores.into(), ..Stage::default() };
        let recipes = ["a", "a", "a", "a", "b", "b", "b"];
        assert_eq!(halving(1, 9, 3).survivors(&[0, 1, 2, 3, 4, 5, 6], &recipes, &stage), [2, 3, 4]);
        assert_eq!(halving(1, 9, 4).survivors(&[0, 1, 2, 3, 4, 5, 6], &recipes, &stage), [2, 4]);
    }
}
