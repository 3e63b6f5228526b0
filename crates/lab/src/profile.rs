//! Profiles: how much time a study may take, from a smoke test to the whole of it.

use std::path::Path;
use std::str::FromStr;

use glue::variables::variable;
use trainer::{Error, Record, Result, Trainer, results};

use crate::plan::Plan;

/// How much a study may cost. The times are of training, on two processor cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Checks that everything runs: at most 3 minutes. Its scores mean nothing.
    Smoke,
    /// A first look: about 15 minutes on any processor, which is measured first.
    Quick,
    /// The report as it is published: what [`Profile::Standard`] trains, read from its records.
    Published,
    /// The report: the recipes with three seeds, about 100 minutes.
    Standard,
    /// All seeds and epochs, meant for a GPU.
    Full,
}

impl Profile {
    /// All of them, the smallest first.
    pub const ALL: [Self; 5] = [Self::Smoke, Self::Quick, Self::Published, Self::Standard, Self::Full];

    /// The profile that the variable `LAB_PROFILE` names; `quick` if it is not set.
    ///
    /// # Errors
    /// When it names none.
    pub fn from_environment() -> Result<Self> {
        std::env::var("LAB_PROFILE").map_or(Ok(Self::Quick), |name| name.parse())
    }

    /// `smoke`, `quick`, `published`, `standard` or `full`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Quick => "quick",
            Self::Published => "published",
            Self::Standard => "standard",
            Self::Full => "full",
        }
    }

    /// What it is for.
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Smoke => "checks that everything runs; its scores mean nothing",
            Self::Quick => "a first look: what this processor trains in a quarter of an hour",
            Self::Published => "the report from the records that were published of it; it trains nothing",
            Self::Standard => "the report: the recipes of both tasks, with three seeds",
            Self::Full => "whole training sets, all seeds and epochs; meant for a GPU",
        }
    }

    /// Whether it trains what has no record.
    pub fn trains(self) -> bool {
        self != Self::Published || is_fresh()
    }

    /// The records that were published in the folder `results`, of the recipes and of the report; none where the variable `FRESH` is set: then
    /// all of it is trained.
    ///
    /// # Errors
    /// As [`results::load`].
    pub fn records(self, results: &Path) -> Result<Vec<Record>> {
        if is_fresh() {
            return Ok(Vec::new());
        }
        Ok([results::load(results)?, results::study(results, REPORT)?].concat())
    }

    /// The study of this profile, as large as it can be here.
    ///
    /// # Errors
    /// As [`Trainer::run`], where a processor's speed is measured.
    pub fn plan(self, trainer: &mut Trainer) -> Result<Plan> {
        Plan::new(self, trainer)
    }

    /// The study of every method, on one task.
    ///
    /// # Errors
    /// When the model is missing or broken.
    pub fn plan_of_every_method(self, trainer: &mut Trainer) -> Result<Plan> {
        Plan::of_every_method(self, trainer)
    }
}

/// The name that the records of the report are published under.
pub(crate) const REPORT: &str = "report";

fn is_fresh() -> bool {
    variable("FRESH").is_some()
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|profile| profile.name() == name).ok_or_else(|| Error::Setting {
            name: "LAB_PROFILE",
            found: format!("{name:?}"),
            expected: Self::ALL.map(Self::name).join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_profile_is_an_error_that_lists_the_known_ones() {
        let error = "fast".parse::<Profile>().unwrap_err().to_string();
        assert!(error.contains("fast") && error.contains("smoke, quick, published, standard, full"), "{error}");
    }
}
