//! Recipes. What is taken makes a run that reads back from its JSON, and its method a model of the smallest checkpoint or an error.

use anyhow::Result;
use peft::{Architecture, Model, ModelOptions, Pretrained};
use tempfile::TempDir;
use trainer::{Recipe, Run};

use super::{Outcome, Target, logits, tiny};
use crate::input::{Input, repository};

const FILE: &str = "a-recipe.toml";

/// Options of methods that the project's own recipes have not.
const METHODS: [&str; 10] = [
    "name = \"adalora\"\ninit_r = 4\ntarget_r = 2\ntinit = 1\ntfinal = 1\ndeltaT = 1",
    "name = \"vera\"\nr = 16\nprojection_prng_key = 3",
    "name = \"loha\"\nr = 4\nrank_pattern = { query = 2 }",
    "name = \"lokr\"\nr = 4\ndecompose_both = true\ndecompose_factor = 4",
    "name = \"oft\"\nr = 0\noft_block_size = 4\nnum_cayley_neumann_terms = 5",
    "name = \"bottleneck\"\nadapter_style = \"houlsby\"\nbottleneck_size = 8",
    "name = \"compacter\"\nreduction_factor = 4\nphm_dim = 4\nphm_rank = 2",
    "name = \"prefix_tuning\"\nnum_virtual_tokens = 4\nprefix_projection = true\nencoder_hidden_size = 8",
    "name = \"prompt_tuning\"\nnum_virtual_tokens = 4\nprompt_tuning_init = \"SAMPLE_VOCAB\"",
    "name = \"lora\"\nr = 4\nlora_alpha = 8.0\nuse_dora = true\ninit_lora_weights = \"pissa\"\nlayers_to_transform = [0]",
];

pub(super) struct Recipes {
    pretrained: Pretrained,
    seeds: Vec<Input>,
    folder: TempDir,
}

impl Recipes {
    pub(super) fn new() -> Result<Self> {
        let mut seeds = Vec::new();
        for name in ["cola-lora", "mnli-bitfit", "rte-lora"] {
            seeds.push(Input::file(FILE, std::fs::read(repository("recipes").join(format!("{name}.toml")))?));
        }
        for method in METHODS {
            let text = format!(
                "about = \"A test.\"\ntask = \"mrpc\"\nmodel = \"m\"\nseeds = [3, 4]\n[method]\n{method}\n[settings]\n\
                 learning_rate = 5e-4\nepochs = 2\nbatch_size = 8\nwarmup_ratio = 0.1\nevaluate = {{ steps = 10 }}\ntrain_limit = 64\n"
            );
            seeds.push(Input::file(FILE, text));
        }
        Ok(Self { pretrained: tiny()?, seeds, folder: tempfile::tempdir()? })
    }
}

impl Target for Recipes {
    fn seeds(&self) -> &[Input] {
        &self.seeds
    }

    fn run(&mut self, input: &Input) -> Result<Outcome> {
        input.put_into(self.folder.path())?;
        let refused = |error: &dyn std::fmt::Display| Ok(Outcome::Refused(error.to_string()));
        let recipe = match Recipe::load(&self.folder.path().join(FILE).to_string_lossy()) {
            Ok(recipe) => recipe,
            Err(error) => return refused(&error),
        };
        for run in recipe.runs().iter().take(2) {
            let text = serde_json::to_string(run)?;
            let again: Run = match serde_json::from_str(&text) {
                Ok(again) => again,
                Err(error) => return Ok(Outcome::Wrong(format!("written, it cannot be read: {error}: {text}"))),
            };
            if again.key() != run.key() {
                return Ok(Outcome::Wrong(format!("written and read, it is another run: {text}")));
            }
        }
        let run = &recipe.run;
        if let Err(error) = run.check() {
            return refused(&error);
        }
        let steps = match run.settings.steps(1000) {
            Ok(steps) => steps,
            Err(error) => return refused(&error),
        };
        let method = run.method.clone().over(steps).on_architecture(Architecture::Bert);
        let options = ModelOptions { dropout: run.settings.dropout, ..ModelOptions::new(method, 2) };
        match Model::new(&self.pretrained, &options) {
            Ok(model) => match logits(&model) {
                Ok(_) => Ok(Outcome::Accepted),
                Err(error) => refused(&error),
            },
            Err(error) => refused(&error),
        }
    }
}
