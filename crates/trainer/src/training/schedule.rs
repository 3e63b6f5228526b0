//! The learning-rate schedule: linear warm-up, then linear decay.

/// A linear rise from 0, then a linear fall to 0, as transformers' `get_linear_schedule_with_warmup`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Schedule {
    steps: usize,
    warmup: usize,
}

impl Schedule {
    /// A schedule over `steps` steps, the first `warmup_ratio` of them rising, rounded down. A ratio above 0 gives at least one, but that a
    /// run's only step is none: at a rate of 0 it would train nothing.
    pub(super) fn new(steps: usize, warmup_ratio: f64) -> Self {
        let rises = warmup_ratio > 0.0 && steps > 1;
        let warmup = if rises { ((warmup_ratio * steps as f64) as usize).max(1) } else { 0 };
        Self { steps, warmup }
    }

    /// What the learning rate is multiplied by at `step`, counted from 0.
    pub(super) fn factor(self, step: usize) -> f64 {
        if step < self.warmup {
            step as f64 / self.warmup as f64
        } else {
            self.steps.saturating_sub(step) as f64 / self.steps.saturating_sub(self.warmup).max(1) as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn the_rate_rises_from_zero_to_one_and_falls_towards_zero() {
        // transformers.get_linear_schedule_with_warmup(num_warmup_steps=2, num_training_steps=10)
        let expected = [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125];
        let schedule = Schedule::new(10, 0.2);
        assert_eq!(expected, std::array::from_fn(|step| schedule.factor(step)));
        assert_eq!(schedule.factor(10), 0.0);
    }

    #[test]
    fn the_only_step_of_a_run_has_the_full_rate() {
        assert_eq!(Schedule::new(1, 0.06).factor(0), 1.0);
        assert_eq!([0, 1].map(|step| Schedule::new(2, 0.06).factor(step)), [0.0, 1.0]);
    }

    #[test]
    fn without_warm_up_the_first_step_has_the_full_rate() {
        assert_eq!(Schedule::new(4, 0.0).factor(0), 1.0);
    }
}
