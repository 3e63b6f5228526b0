//! The adapter that `--adapter` names: what it says of the run that it is for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use trainer::peft::{AdapterConfig, Conditions, ModelFiles, Pooling};
use trainer::{Run, StartsFrom, provenance};

/// An adapter's files without its tensors.
pub(crate) struct GivenAdapter {
    folder: PathBuf,
    pub config: AdapterConfig,
    conditions: Conditions,
    /// The run that made it, if it tells.
    run: Option<Run>,
}

impl GivenAdapter {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let (config, _) = AdapterConfig::read(folder)?;
        let (conditions, run) = (Conditions::read(folder)?, provenance::read(folder)?);
        Ok(Self { folder: folder.into(), config, conditions, run })
    }

    /// The base model that was given, or the one that the adapter names.
    pub(crate) fn base_model(&self, given: Option<&str>) -> Result<String> {
        base_model(&self.folder, &self.config, given)
    }

    /// What is said where that model is not to be had.
    pub(crate) fn about_base_model(&self) -> String {
        format!("the base model that {} names; give --model", self.folder.display())
    }

    /// The pooling that it was trained with, where that is another than the base model's own or its run tells.
    pub(crate) fn pooling(&self) -> Option<Pooling> {
        self.config.pooling.or(self.run.as_ref().map(|run| run.settings.pooling))
    }

    /// The length to which its training's sequences were cut.
    pub(crate) fn max_length(&self) -> Option<usize> {
        self.conditions.max_length.or(self.run.as_ref().map(|run| run.settings.max_length))
    }
}

/// The base model of the adapter in `folder`: the one that was given, or the one that the adapter names.
pub(crate) fn base_model(folder: &Path, config: &AdapterConfig, given: Option<&str>) -> Result<String> {
    let named = || config.base_model_name_or_path.clone().filter(|name| !name.is_empty());
    if let (None, Some(name)) = (given, named()) {
        tell_before_download(&name, &folder.join("adapter_config.json"));
    }
    let name = given.map(String::from).or_else(named);
    name.ok_or_else(|| anyhow!("{} names no base model: give --model", folder.display()))
}

/// The same of the models of some runs, and of the runs that these start from, each once.
pub(crate) fn tell_before_downloads<'a>(runs: impl IntoIterator<Item = &'a Run>, file: &Path) {
    let chain = |run: &'a Run| {
        std::iter::successors(Some(run), |run| match &run.starts_from {
            Some(StartsFrom::Run(first)) => Some(&**first),
            _ => None,
        })
    };
    let models: BTreeSet<&str> = runs.into_iter().flat_map(chain).map(|run| run.model.as_str()).collect();
    models.into_iter().for_each(|model| tell_before_download(model, file));
}

/// Says which name is about to be looked for on the hub, and which file it is from: who wrote the file chose it.
pub(crate) fn tell_before_download(model: &str, file: &Path) {
    if ModelFiles::are_asked_of_the_hub(model) {
        eprintln!(
            "Note: {} names the model {model}, which is not on this machine: it is asked for on Hugging Face's hub (HF_HUB_OFFLINE=1: it is not)",
            file.display()
        );
    }
}
