//! A pretrained encoder with a classifier on top, fine-tuned by one method.

mod checkpoint;
mod initialization;
mod merging;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use ops::Precision;

use crate::architectures::Config;
use crate::batch::Batch;
use crate::builder::{Builder, Tuner};
use crate::checkpoint::Remark;
use crate::encoder::{Encoder, Head, Wanted};
use crate::error::{Error, Result};
use crate::layers::{AdaptedLayer, ForwardPass, VirtualTokens};
use crate::parameters::{Modules, POOLER, Parameters, TrainableReport, TrainableTree};
use crate::pooling::Pooling;
use crate::pretrained::Pretrained;
use crate::sizes::{Allowance, new_numbers};
use crate::tuners::{AfterStep, Method};

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
    /// Pass over the method's names that match no module, as long as its tensors are all there in the adapter that is loaded next. What
    /// is to be trained must be there.
    pub passes_over_names: bool,
    /// How many numbers may be new in the model, those of adapters among them; `None`: five times as many as the checkpoint has, and
    /// 4,194,304. [`Adapter::options`](crate::Adapter::options) says fewer: what the adapter's file has room for.
    pub new_numbers: Option<usize>,
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
            passes_over_names: false,
            new_numbers: None,
            dropout: None,
            seed: 1,
            dtype: DType::F32,
            precision: Precision::F32,
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
    tuner: Arc<dyn Tuner>,
    base_model: String,
    base_sha256: Arc<str>,
    base_pooling: Pooling,
    /// What should be known of how the checkpoint was used.
    remarks: Vec<Remark>,
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
    /// position for a sequence's own, or more numbers would be new than [`ModelOptions::new_numbers`].
    pub fn new(pretrained: &Pretrained, options: &ModelOptions) -> Result<Self> {
        let config = pretrained.config.clone();
        let virtual_tokens = options.method.virtual_tokens();
        if virtual_tokens >= pretrained.max_length() {
            return Err(Error::VirtualTokens { found: virtual_tokens, positions: pretrained.max_length() });
        }
        let layout = pretrained.layout.clone().with_dropout(options.dropout);
        let mut builder = Builder {
            pretrained,
            tuner: options.method.config().tuner()?,
            modules_to_save: options.method.config().modules_to_save(),
            train_pooler: options.train_pooler,
            passes_over_names: options.passes_over_names,
            dtype: options.dtype,
            precision: options.precision,
            device: &options.device,
            seed: options.seed,
            allowance: Allowance::new(
                options.new_numbers.unwrap_or_else(|| new_numbers(pretrained, None)),
                &options.method,
            ),
            parameters: Parameters::default(),
            modules: Default::default(),
            adapted: Vec::new(),
            new_layers: Default::default(),
        };
        let encoder = Encoder::new(&mut builder, &config, &layout)?;
        builder.precision = builder.precision.of_f32();
        let head = Head::new(&mut builder, &config, &layout.head, options.pooling, options.num_labels)?;
        let shared = builder.tuner.shared_tensors().map_or_else(Vec::new, |shared| shared.shapes());
        shared.iter().try_for_each(|(name, shape)| builder.allowance.take(name, shape))?;
        let Builder { tuner, parameters, modules, adapted, new_layers, .. } = builder;
        let mut remarks = remarks(pretrained, &parameters, new_layers);
        remarks.extend(pretrained.configuration().other_pooling(options.pooling));
        if let (Some(shared), Some(key)) = (tuner.shared_tensors(), options.method.config().shared_tensors_key()) {
            shared.draw(key, options.dtype, &options.device)?;
        }
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
            tuner,
            base_model: pretrained.name().into(),
            base_sha256: pretrained.sha256().into(),
            base_pooling: pretrained.pooling(),
            remarks,
            output: pretrained.layout.head.output,
            unloaded: false,
            dtype: options.dtype,
            device: options.device.clone(),
        })
    }

    /// The linear layers that have an adapter.
    pub(crate) fn adapted(&self) -> &[AdaptedLayer] {
        &self.adapted
    }

    /// Whether its adapters were merged for good.
    pub(crate) fn is_unloaded(&self) -> bool {
        self.unloaded
    }

    /// What should be known of how the checkpoint was used, besides [`Pretrained::remarks`]: which parameters are new since it lacks
    /// them, and which of its tensors nothing takes.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// The logits, `(sequences, num_labels)`.
    ///
    /// # Errors
    /// When a sequence, with the method's virtual tokens, is longer than the model has positions, or is empty, or the pass is one of
    /// training and the model is merged.
    pub fn forward(&self, batch: &Batch, pass: &ForwardPass) -> Result<Tensor> {
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

    /// What goes into the first layer and what comes out of each, without dropout, as transformers' `output_hidden_states` gives them:
    /// `(tokens, hidden)` each, of virtual tokens too.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn hidden_states(&self, batch: &Batch) -> Result<Vec<Tensor>> {
        batch.check(self.positions, self.method.virtual_tokens())?;
        ops::on_workers(self.device(), || {
            ops::without_gradients(|| {
                let encoder = &self.network.encoder;
                let lengthened = encoder.lengthened(&batch.segments);
                let pass = ForwardPass::evaluation(lengthened.as_ref().unwrap_or(&batch.segments));
                let mut states = Vec::new();
                let last =
                    encoder.forward_observed(batch, &pass, Wanted::AllTokens, |state| states.push(state.clone()))?;
                states.push(last);
                states.iter().map(|state| Ok(ops::to_f32(state)?)).collect()
            })
        })
    }

    /// What flows into each layer that has an adapter, `(tokens, in)`, by its path; one tensor for all that it flows into.
    fn adapted_inputs(&self, batch: &Batch) -> Result<BTreeMap<String, Tensor>> {
        batch.check(self.positions, self.method.virtual_tokens())?;
        ops::on_workers(self.device(), || {
            ops::without_gradients(|| -> Result<_> {
                let inputs = RefCell::new(Vec::new());
                let observer = |path: &str, x: &Tensor| inputs.borrow_mut().push((path.to_string(), x.clone()));
                let pass = ForwardPass::observed(&batch.segments, &observer);
                // Of the last layer too, all tokens count, not the first alone.
                let Network { encoder, head } = &self.network;
                let hidden = encoder.forward(batch, &pass, Wanted::AllTokens)?;
                head.forward(&ops::first_tokens(&hidden, pass.segments)?, &pass)?;
                Ok(inputs.take().into_iter().collect())
            })
        })
    }

    /// The logits without dropout, `(sequences, num_labels)`.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn predict(&self, batch: &Batch) -> Result<Tensor> {
        ops::on_workers(self.device(), || {
            ops::without_gradients(|| self.forward(batch, &ForwardPass::evaluation(&batch.segments)))
        })
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
        let forward = |tokens: &VirtualTokens| ops::without_gradients(|| tokens.forward());
        self.network.encoder.virtual_tokens().map(forward).transpose()
    }

    /// Whether a parameter is of the layer that the logits come from.
    pub(crate) fn is_output(&self, name: &str) -> bool {
        name.rsplit_once('.').is_some_and(|(module, _)| module == self.output)
    }

    /// What a method adds to the loss of a training step, as a scalar; `None` for most.
    ///
    /// # Errors
    /// When the tensor library fails.
    pub fn regularization(&self) -> Result<Option<Tensor>> {
        self.method.config().regularization(&self.parameters)
    }

    /// What the method does after each step of the optimizer; `None` for most.
    ///
    /// # Errors
    /// When an option that it needs is missing.
    pub fn after_step(&self) -> Result<Option<Box<dyn AfterStep>>> {
        self.method.config().after_step(&self.parameters)
    }

    pub(crate) fn tuner(&self) -> &dyn Tuner {
        &*self.tuner
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

    /// The digest of the checkpoint's encoder.
    pub(crate) fn base_sha256(&self) -> &str {
        &self.base_sha256
    }

    /// The pooling that the checkpoint asks for.
    pub(crate) fn base_pooling(&self) -> Pooling {
        self.base_pooling
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

/// What should be known of how a checkpoint was used for a model of these parameters.
fn remarks(pretrained: &Pretrained, parameters: &Parameters, new_layers: BTreeSet<String>) -> Vec<Remark> {
    let folder = || pretrained.folder().to_path_buf();
    let used: BTreeSet<&str> = parameters.shapes().iter().map(|(name, _)| name.as_str()).collect();
    let of_encoder = pretrained.layout.path("");
    // Without a use where the vector is a mean.
    let is_pooler = |name: &str| name.starts_with(&pretrained.layout.path("pooler."));
    let is_unused = |name: &&String| name.starts_with(&of_encoder) && !used.contains(name.as_str()) && !is_pooler(name);
    let unused: Vec<&String> = pretrained.tensors().keys().filter(is_unused).collect();
    let unused = unused.first().map(|example| Remark::UnusedTensors {
        folder: folder(),
        count: unused.len(),
        example: example.to_string(),
    });
    let names: Vec<String> = new_layers.into_iter().collect();
    let new = (!names.is_empty()).then(|| Remark::NewParameters { folder: folder(), names });
    unused.into_iter().chain(new).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use std::path::Path;

    use super::*;
    use crate::targets::Targets;
    use crate::tuners::Lora;

    fn model(lora: Lora, train_pooler: bool) -> Model {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle/tiny-bert");
        let options = ModelOptions { train_pooler, ..ModelOptions::new(Method::Lora(lora), 2) };
        Model::new(&Pretrained::from_folder(&folder).unwrap(), &options).unwrap()
    }

    fn adapts_the_pooler(model: &Model) -> bool {
        model.adapted().iter().any(|layer| layer.path == POOLER)
    }

    #[test]
    fn a_pooler_that_is_trained_whole_gets_no_branch() {
        let dense = Lora::default().on(Targets::suffixes(["dense"]));
        assert!(adapts_the_pooler(&model(dense.clone(), false)));
        assert!(!adapts_the_pooler(&model(dense, true)));
    }

    #[test]
    fn a_module_to_save_is_trained_whole_and_so_is_what_lies_in_it() {
        let dense = Lora::default().on(Targets::suffixes(["dense"]));
        let model = model(Lora { modules_to_save: vec!["pooler".into()], ..dense }, false);
        assert!(!adapts_the_pooler(&model) && model.parameters().get(&format!("{POOLER}.weight")).is_some());
        assert!(model.parameters().get("bert.encoder.layer.0.output.dense.weight").is_none());
    }
}
