//! A pretrained encoder with a classifier on top, fine-tuned by one method.

use std::cell::RefCell;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use ops::Precision;
use serde::{Deserialize, Serialize};

use crate::architectures::Config;
use crate::attention::Wanted;
use crate::batch::Batch;
use crate::encoder::Encoder;
use crate::error::{Error, Result};
use crate::head::Head;
use crate::layers::{AdaptedLayer, Pass};
use crate::method::{Method, Modules, POOLER, Projections, PromptEncoder, Tuner};
use crate::parameters::{Builder, Parameters};
use crate::pretrained::Pretrained;
use crate::report::TrainableReport;
use crate::tree::TrainableTree;

/// How a sequence's hidden states become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The first token, under BERT's pooler: a dense layer and tanh. Other architectures have no pooler, or have it in their head.
    #[default]
    Cls,
    /// The mean over all tokens, without BERT's pooler: what sentence encoders such as all-MiniLM-L6-v2 were trained with.
    Mean,
}

/// What a model is built from, besides the checkpoint.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// What is trained.
    pub method: Method,
    /// Outputs of the classifier: classes, or 1 for a score.
    pub num_labels: usize,
    /// From hidden states to one vector.
    pub pooling: Pooling,
    /// Train BERT's pooler whole, whatever the method. PEFT freezes it, BitFit trains its bias. The dense layers of other
    /// architectures' heads are always trained.
    pub train_pooler: bool,
    /// Every dropout probability; `None`: the checkpoint's configuration.
    pub dropout: Option<f64>,
    /// For the parameters that the checkpoint lacks.
    pub seed: u64,
    /// f32 to train; f64 to check gradients.
    pub dtype: DType,
    /// Of the encoder's products; bf16 takes f32 parameters. The head's are always exact.
    pub precision: Precision,
    /// Where the model lives.
    pub device: Device,
}

impl ModelOptions {
    /// The defaults for a method: BERT's pooler, frozen but for what the method says; f32, with exact products,
    /// on the CPU; seed 1.
    pub fn new(method: Method, num_labels: usize) -> Self {
        Self {
            method,
            num_labels,
            pooling: Pooling::Cls,
            train_pooler: false,
            dropout: None,
            seed: 1,
            dtype: DType::F32,
            precision: Precision::Exact,
            device: Device::Cpu,
        }
    }
}

/// A sequence classifier, or a regressor when it has one label.
pub struct Model {
    network: Network,
    /// The network whose adapters stand beside their layers, while the other one's are merged.
    unmerged: Option<Network>,
    pooling: Pooling,
    positions: usize,
    config: Config,
    method: Method,
    parameters: Parameters,
    pub(crate) modules: Modules,
    /// The linear layers that have an adapter.
    adapted: Vec<AdaptedLayer>,
    /// The matrices that VeRA's layers share.
    pub(crate) projections: Option<Arc<Projections>>,
    base_model: String,
    /// The layer that the logits come from.
    output: &'static str,
    /// Adapters were merged into the encoder's weights for good.
    unloaded: bool,
    dtype: DType,
    device: Device,
}

/// What a pass goes through. A clone shares its tensors.
#[derive(Clone)]
struct Network {
    encoder: Encoder,
    head: Head,
}

impl Network {
    /// With each adapter merged into its layer's weight.
    fn merge(self) -> Result<Self> {
        Ok(Self { encoder: self.encoder.merge()?, head: self.head.merge()? })
    }
}

impl Model {
    /// Builds the model on a checkpoint's weights. Parameters that the checkpoint lacks are new: the head starts from
    /// `N(0, initializer_range)` and zeros, as in transformers.
    ///
    /// # Errors
    /// When a tensor is missing or has another shape, the method's targets match no layer, or its virtual tokens leave no
    /// position for a sequence's own.
    pub fn new(pretrained: &Pretrained, options: &ModelOptions) -> Result<Self> {
        let config = pretrained.config.clone();
        let virtual_tokens = options.method.virtual_tokens();
        if virtual_tokens >= pretrained.max_length() {
            return Err(Error::VirtualTokens { found: virtual_tokens, positions: pretrained.max_length() });
        }
        let layout = pretrained.layout.clone().with_dropout(options.dropout);
        let mut builder = Builder {
            pretrained,
            tuner: Tuner::new(&options.method, options.train_pooler)?,
            dtype: options.dtype,
            precision: options.precision,
            device: &options.device,
            seed: options.seed,
            parameters: Parameters::default(),
            modules: Default::default(),
            adapted: Vec::new(),
        };
        let encoder = Encoder::new(&mut builder, &config, &layout)?;
        builder.precision = builder.precision.of_f32();
        let head = Head::new(&mut builder, &config, &layout.head, options)?;
        let projections = match builder.tuner.projections() {
            Some((projections, key)) => {
                projections.draw(key, options.dtype, &options.device)?;
                Some(projections)
            }
            None => None,
        };
        let Builder { parameters, modules, adapted, .. } = builder;
        Ok(Self {
            network: Network { encoder, head },
            unmerged: None,
            pooling: options.pooling,
            positions: pretrained.max_length(),
            config,
            method: options.method.clone(),
            parameters,
            modules,
            adapted,
            projections,
            base_model: pretrained.name().into(),
            output: pretrained.layout.head.output,
            unloaded: false,
            dtype: options.dtype,
            device: options.device.clone(),
        })
    }

    /// Merges each adapter into its layer's weight, LoRA's as `W + scaling * B A`, so that a pass costs what it costs without (Hu et
    /// al. 2021, section 4.1; PEFT's `merge_adapter`). The logits are the same but for rounding; in bf16 that is more, since merged
    /// weights are rounded and branches never are. A model without adapters stays as it is, and so does one that is merged.
    ///
    /// It is for inference: until [`Model::unmerge_adapter`] the model cannot be trained, and values set in its parameters do not
    /// reach what is merged.
    ///
    /// # Errors
    /// When an adapter is none that a weight could hold, such as a prompt. The model is then as it was.
    pub fn merge_adapter(&mut self) -> Result<()> {
        if !self.is_merged() && self.parameters.has_adapters() {
            let merged = self.merged_network()?;
            self.unmerged = Some(std::mem::replace(&mut self.network, merged));
        }
        Ok(())
    }

    /// Takes the adapters out of the weights again (PEFT's `unmerge_adapter`). The weights are those from before, to the bit:
    /// they were kept, where PEFT subtracts what it has added.
    pub fn unmerge_adapter(&mut self) {
        if let Some(network) = self.unmerged.take() {
            self.network = network;
        }
    }

    /// Whether its adapters are merged, and can be unmerged.
    pub fn is_merged(&self) -> bool {
        self.unmerged.is_some()
    }

    /// Merges as [`Model::merge_adapter`], for good: the adapters and the weights from before are given up (PEFT's
    /// `merge_and_unload`).
    ///
    /// What belonged to adapters, such as LoRA's A and B, are then no parameters any more, and the method is [`Method::Head`];
    /// modules and biases that were trained besides stay as they are. The merged weights are frozen: what was trained is loaded
    /// before merging, and saved before merging. A model without adapters stays as it is.
    ///
    /// # Errors
    /// As [`Model::merge_adapter`].
    pub fn merge_and_unload(self) -> Result<Self> {
        if !self.parameters.has_adapters() {
            return Ok(self);
        }
        let network = if self.is_merged() { self.network } else { self.merged_network()? };
        Ok(Self {
            network,
            unmerged: None,
            method: Method::Head,
            parameters: self.parameters.without_adapters(),
            adapted: Vec::new(),
            projections: None,
            unloaded: true,
            ..self
        })
    }

    fn merged_network(&self) -> Result<Network> {
        self.check_mergeable()?;
        self.network.clone().merge()
    }

    /// Fails if a trained parameter of an adapter stands beside no linear layer: no weight could hold it.
    pub(crate) fn check_mergeable(&self) -> Result<()> {
        let is_beside = |name: &str| {
            self.adapted.iter().any(|layer| name.strip_prefix(&layer.path).is_some_and(|rest| rest.starts_with('.')))
        };
        match self.parameters.of_adapters().find(|name| !is_beside(name)) {
            Some(name) => Err(Error::NotMergeable { method: self.method.to_string(), name: name.into() }),
            None => Ok(()),
        }
    }

    /// The linear layers that have an adapter.
    pub(crate) fn adapted(&self) -> &[AdaptedLayer] {
        &self.adapted
    }

    /// Whether its adapters were merged for good.
    pub(crate) fn is_unloaded(&self) -> bool {
        self.unloaded
    }

    /// The logits, `(sequences, num_labels)`.
    ///
    /// # Errors
    /// When a sequence, with the method's virtual tokens, is longer than the model has positions, or is empty, or the pass is one of
    /// training and the model is merged.
    pub fn forward(&self, batch: &Batch, pass: &Pass) -> Result<Tensor> {
        batch.check(self.positions, self.method.virtual_tokens())?;
        if self.is_merged() && pass.is_training() {
            return Err(Error::TrainingMerged);
        }
        let Network { encoder, head } = &self.network;
        let lengthened = encoder.lengthened(pass.segments);
        let lengthened = lengthened.as_ref().map(|segments| pass.over(segments));
        let pass = lengthened.as_ref().unwrap_or(pass);
        let pooled = match self.pooling {
            Pooling::Cls => encoder.forward(batch, pass, Wanted::FirstTokens)?,
            Pooling::Mean => ops::segment_mean(&encoder.forward(batch, pass, Wanted::AllTokens)?, pass.segments)?,
        }; // (sequences, hidden)
        head.forward(&pooled, pass)
    }

    /// What flows into each layer that has an adapter, `(tokens, in)`, by its path; one tensor for all that it flows into.
    pub(crate) fn adapted_inputs(&self, batch: &Batch) -> Result<Vec<(String, Tensor)>> {
        batch.check(self.positions, self.method.virtual_tokens())?;
        ops::on_workers(|| {
            ops::without_gradients(|| -> Result<_> {
                let inputs = RefCell::new(Vec::new());
                let observer = |path: &str, x: &Tensor| inputs.borrow_mut().push((path.to_string(), x.clone()));
                let pass = Pass::observed(&batch.segments, &observer);
                // Of the last layer too, all tokens count, not the first alone.
                let Network { encoder, head } = &self.network;
                let hidden = encoder.forward(batch, &pass, Wanted::AllTokens)?;
                head.forward(&ops::first_tokens(&hidden, pass.segments)?, &pass)?;
                Ok(inputs.take())
            })
        })
    }

    /// The logits without dropout, `(sequences, num_labels)`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn predict(&self, batch: &Batch) -> Result<Tensor> {
        ops::on_workers(|| ops::without_gradients(|| self.forward(batch, &Pass::evaluation(&batch.segments))))
    }

    /// Its parameters.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// What is trained, by name.
    pub fn trainable_report(&self) -> TrainableReport {
        TrainableReport::new(&self.parameters)
    }

    /// Its modules, their parameters and which of them are trained.
    pub fn trainable_tree(&self) -> TrainableTree {
        TrainableTree::new(&self.parameters)
    }

    /// The columns of its embeddings.
    pub(crate) fn embedding_width(&self) -> usize {
        self.network.encoder.embedding_width()
    }

    /// The vectors that the method's virtual tokens are, whatever made them, if it has any.
    pub(crate) fn prompt_embeddings(&self) -> Result<Option<Tensor>> {
        let forward = |encoder: &PromptEncoder| ops::without_gradients(|| encoder.forward());
        self.network.encoder.prompt_encoder().map(forward).transpose()
    }

    /// Whether a parameter is of the layer that the logits come from.
    pub(crate) fn is_output(&self, name: &str) -> bool {
        name.rsplit_once('.').is_some_and(|(module, _)| module == self.output)
    }

    /// How it is fine-tuned.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// From hidden states to one vector.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Whether the pooler is trained whole.
    pub(crate) fn trains_pooler(&self) -> bool {
        self.parameters.get(&format!("{POOLER}.weight")).is_some()
    }

    /// The name that the checkpoint was asked for by.
    pub fn base_model(&self) -> &str {
        &self.base_model
    }

    /// The sizes of the encoder.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The type of its numbers.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
