//! What the options of every method can do: make a tuner, describe themselves in files, and answer for what differs by method.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use candle_core::{Tensor, Var};
use serde::{Deserialize, Serialize};

use super::combination::{Combination, refuse};
use crate::architectures::{Architecture, Config};
use crate::builder::Tuner;
use crate::error::{Error, Result};
use crate::parameters::Parameters;
use crate::similar_names::nearest;

/// Which biases are trained besides an adapter (PEFT's `bias`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of the layers that have an adapter: `lora_only`, or `vera_only` and `oft_only` in the files of VeRA and OFT.
    #[serde(alias = "vera_only", alias = "oft_only")]
    LoraOnly,
}

/// The options of a method. Its `Display` is the method's name in charts and tables.
pub(crate) trait TunerConfig: Any + fmt::Display {
    /// The tuner that these options ask for.
    ///
    /// # Errors
    /// When an option has a value that makes no adapter, or options contradict each other.
    fn tuner(&self) -> Result<Arc<dyn Tuner>>;

    /// Names the layers that are meant where none are named, on that architecture.
    fn set_default_layers(&mut self, _architecture: Architecture) {}

    /// The options that the sizes of new parameters follow from, by their names in files.
    fn sizes(&self) -> Vec<(&'static str, usize)> {
        Vec::new()
    }

    /// The learning rate to begin with, in an encoder of that hidden size.
    fn learning_rate(&self, hidden_size: usize) -> f64;

    /// Modules that are trained whole besides the head, by the end of their path.
    fn modules_to_save(&self) -> &[String] {
        &[]
    }

    /// The biases that are trained besides an adapter.
    fn bias(&self) -> Bias {
        Bias::None
    }

    /// Whether every parameter of the encoder is trained.
    fn trains_everything(&self) -> bool {
        false
    }

    /// How many of the model's positions virtual tokens take.
    fn virtual_tokens(&self) -> usize {
        0
    }

    /// The width of virtual tokens, where the embeddings are `width` wide.
    fn token_dim(&self, _config: &Config, width: usize) -> usize {
        width
    }

    /// Turns the options into those of an adapter's files: virtual tokens stand without the network that made them.
    fn set_inference_mode(&mut self) {}

    /// For a run of so many steps, where the options do not say over how many.
    fn set_total_steps(&mut self, _steps: usize) {}

    /// A text whose tokens the initial values are made of, where they are not known yet.
    fn text_to_tokenize(&self) -> Option<&str> {
        None
    }

    /// Takes the tokens of that text, cut by the tokenizer of that name.
    fn set_tokens(&mut self, _tokenizer: &str, _token_ids: Vec<u32>) {}

    /// Whether a schedule waits for [`TunerConfig::set_total_steps`].
    fn needs_total_steps(&self) -> bool {
        false
    }

    /// What works out the initial values from data, where they do not follow from the checkpoint and a seed alone.
    fn data_initializer(&self) -> Option<Box<dyn DataInitializer>> {
        None
    }

    /// Takes over the ranks that a [`DataInitializer`] has chosen.
    ///
    /// # Errors
    /// When a pattern of the options is no regular expression.
    fn set_ranks(&mut self, _ranks: &[LayerRank]) -> Result<()> {
        Ok(())
    }

    /// What is added to the loss of a training step, as a scalar.
    ///
    /// # Errors
    /// When the tensor library fails.
    fn regularization(&self, _parameters: &Parameters) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// What is to be done after each step of the optimizer, if there is anything.
    ///
    /// # Errors
    /// When an option that it needs is missing.
    fn after_step(&self, _parameters: &Parameters) -> Result<Option<Box<dyn AfterStep>>> {
        Ok(None)
    }

    /// The options by which two adapters of this method compute differently from the same trained values.
    fn computed_by(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Notes in the options what training has changed about the adapter, as files say it.
    ///
    /// # Errors
    /// When the tensor library fails.
    fn note_training(&mut self, _parameters: &Parameters, _tuner: &dyn Tuner) -> Result<()> {
        Ok(())
    }

    /// Takes out of the trained tensors what files leave out. They are asked for by parameter.
    ///
    /// # Errors
    /// When the tensor library fails.
    fn leave_out(&self, _tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
        Ok(())
    }

    /// The number in every tensor of an adapter beside a layer with which the layer computes what it does alone, if there is one.
    fn neutral_value(&self) -> Option<f64> {
        None
    }

    /// Puts adapters within modules that were trained whole into these modules' weights, where an early release of PEFT's wrote such
    /// files. They are asked for by key.
    ///
    /// # Errors
    /// When tensors do not fit together.
    fn fold_into_saved(&self, _tensors: &mut BTreeMap<String, Tensor>) -> Result<()> {
        Ok(())
    }

    /// Whether files hold the [`crate::builder::SharedTensors`]. Without, they follow from the options.
    fn saves_shared_tensors(&self) -> bool {
        false
    }

    /// What the tuner's shared tensors are drawn from, if it has any.
    fn shared_tensors_key(&self) -> Option<u64> {
        None
    }

    /// Makes these options, the first part's, those of a weighted combination, and returns its tensors by parameter.
    ///
    /// # Errors
    /// When the parts do not go together, or this method's are not combined.
    fn combine(
        &mut self,
        parts: &[Part],
        _combination: &Combination,
        _modules_to_save: Vec<String>,
    ) -> Result<BTreeMap<String, Tensor>> {
        let name = parts.first().map(|part| part.name.as_str()).unwrap_or_default();
        refuse(format!("{name} is {self}; LoRA and (IA)³ are combined"))
    }
}

impl dyn TunerConfig {
    /// The same as options of one method, if they are.
    pub(crate) fn downcast_ref<C: TunerConfig>(&self) -> Option<&C> {
        (self as &dyn Any).downcast_ref()
    }
}

/// One of the adapters that are combined.
pub(crate) struct Part<'a> {
    /// What messages call it.
    pub name: String,
    pub config: &'a dyn TunerConfig,
    pub weight: f64,
    /// By the parameters' names.
    pub tensors: BTreeMap<&'a str, &'a Tensor>,
}

impl Part<'_> {
    /// The modules that have a tensor of that name, by their paths.
    pub(crate) fn modules_with(&self, last: &str) -> impl Iterator<Item = &str> {
        self.tensors.keys().filter_map(move |name| name.strip_suffix(last))
    }

    /// The tensor of that name.
    pub(crate) fn tensor(&self, name: &str) -> Result<&Tensor> {
        match self.tensors.get(name) {
            Some(tensor) => Ok(tensor),
            None => Err(Error::MissingAdapterTensor {
                path: self.name.clone().into(),
                key: name.into(),
                nearest: nearest(name, self.tensors.keys().copied()),
            }),
        }
    }
}

/// The rank that a layer's adapter is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerRank {
    /// The layer's path.
    pub path: String,
    /// What the options say.
    pub asked: usize,
    /// What it gets; 0: no adapter.
    pub given: usize,
}

/// Works out initial values and ranks from what flows into the layers that are adapted.
pub(crate) trait DataInitializer {
    /// Looks at the inputs of one batch, `(tokens, in)` by the layer's path; one tensor for all layers that it flows into. Returns
    /// whether more batches are wanted.
    fn observe(&mut self, inputs: BTreeMap<String, Tensor>, parameters: &Parameters) -> Result<bool>;

    /// The ranks of all layers.
    fn ranks(&self) -> Vec<LayerRank>;

    /// Sets the parameters of a model that was built with these ranks.
    fn set(&self, parameters: &Parameters) -> Result<()>;
}

/// What a method does after each step of the optimizer.
pub trait AfterStep: Send {
    /// To be called after a step, counted from 0, with the gradient of each trained parameter. Each is meant times `gradient_scale`,
    /// which is below 1 when gradients are clipped.
    ///
    /// # Errors
    /// When a parameter has no gradient.
    fn after_step(&mut self, step: usize, gradient: &dyn Fn(&Var) -> Option<Tensor>, gradient_scale: f64)
    -> Result<()>;

    /// What it remembers from step to step, by name: to be kept with a run that is to go on from here.
    fn state(&mut self) -> Vec<(String, &mut Vec<f32>)>;
}
