//! The fields of `adapter_config.json` that are a method's own, read and written by its options' serde derive.

use serde::de::value::Error as Unread;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, forward_to_deserialize_any};
use serde_json::{Map, Value, json};

use super::config::TunerConfig;
use super::options::MethodOption;
use crate::architectures::Architecture;
use crate::error::{ConfigError, Error};

/// Fields of a JSON object.
pub(crate) type Fields = Map<String, Value>;

/// The sizes of the base model, which the configurations of prompt learning hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptSizes {
    /// The width of virtual tokens: that of the embeddings, or of the hidden states in prefix tuning.
    pub token_dim: usize,
    /// Layers.
    pub num_layers: usize,
    /// Heads of a layer.
    pub num_attention_heads: usize,
}

/// How a method's options stand in PEFT's files. The fields are those of the options; what a file has besides is said here.
pub(crate) trait ConfigFile: TunerConfig + Clone + Serialize + DeserializeOwned {
    /// PEFT's name of the method, or one of this crate's.
    const PEFT_TYPE: &'static str;

    /// Fields that PEFT has for itself, and that change nothing for an encoder's linear layers or whose effect is in the tensors.
    const WITHOUT_EFFECT: &'static [&'static [&'static str]] = &[];

    /// Fields that change what is computed, in ways that this crate does not do: they must be null, false or empty.
    const NOT_SUPPORTED: &'static [&'static [&'static str]] = &[];

    /// A field that must say something, and what to do where it does not.
    const REQUIRED: Option<(&'static str, &'static str)> = None;

    /// What the names of its adapters' parameters have behind the path of their layer.
    const TENSORS: &'static [&'static str] = &[];

    /// The options on a command line, in the order of its help.
    const OPTIONS: &'static [&'static [MethodOption]] = &[];

    /// PEFT's values for fields that a file need not have. They are written where the options say nothing else.
    fn peft_defaults() -> Value {
        json!({})
    }

    /// Adds to the fields that were given on a command line those that follow from them.
    ///
    /// # Errors
    /// When fields do not go together.
    fn complete(_given: &mut Fields) -> Result<(), ConfigError> {
        Ok(())
    }

    /// Changes a file's fields into those of the options.
    ///
    /// # Errors
    /// When a value means nothing.
    fn prepare(_fields: &mut Fields) -> Result<(), ConfigError> {
        Ok(())
    }

    /// Changes the fields of the options into a file's.
    fn finish(&self, _fields: &mut Fields, _sizes: Option<PromptSizes>) {}
}

/// What becomes of a field of `adapter_config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileField {
    /// It says what the adapter is.
    Used,
    /// It changes nothing that a loaded adapter computes on an encoder.
    WithoutEffect,
    /// It changes what is computed, in a way that this crate does not do: it must be null, false or empty.
    NotSupported,
}

/// The fields that a file of this method may have.
pub(super) fn known<C: ConfigFile>() -> Vec<(String, FileField)> {
    let defaults = C::peft_defaults();
    let written = defaults.as_object().into_iter().flat_map(Fields::keys).map(String::as_str);
    let of = |lists: &[&[&'static str]]| lists.concat();
    let refused = of(C::NOT_SUPPORTED).into_iter().map(|name| (name, FileField::NotSupported));
    let without = of(C::WITHOUT_EFFECT).into_iter().map(|name| (name, FileField::WithoutEffect));
    let used = field_names::<C>().iter().copied().chain(written).map(|name| (name, FileField::Used));
    let mut fields: Vec<(String, FileField)> = Vec::new();
    for (name, field) in refused.chain(without).chain(used) {
        if !fields.iter().any(|(other, _)| other == name) {
            fields.push((name.into(), field));
        }
    }
    fields
}

/// A method's options from a file's fields. `modules_to_save` are those of the file, without heads.
pub(super) fn read<C: ConfigFile>(mut fields: Fields, modules_to_save: &[String]) -> Result<C, ConfigError> {
    for &field in C::NOT_SUPPORTED.iter().copied().flatten() {
        if let Some(value) = fields.get(field).filter(|value| !is_empty(value)) {
            return Err(ConfigError::NotSupported { field: field.into(), value: value.clone() });
        }
    }
    if let Some((field, advice)) = C::REQUIRED.filter(|(field, _)| fields.get(*field).is_none_or(is_empty)) {
        return Err(ConfigError::Missing { field, advice });
    }
    C::prepare(&mut fields)?;
    let names = field_names::<C>();
    let mut given: Fields =
        fields.into_iter().filter(|(field, value)| !value.is_null() && names.contains(&field.as_str())).collect();
    if let Value::Object(defaults) = C::peft_defaults() {
        let absent = |(field, value): &(String, Value)| {
            !value.is_null() && names.contains(&field.as_str()) && !given.contains_key(field)
        };
        let absent: Fields = defaults.into_iter().filter(absent).collect();
        given.extend(absent);
    }
    if names.contains(&"modules_to_save") {
        given.insert("modules_to_save".into(), json!(modules_to_save));
    }
    let mut config: C = parse(given)?;
    config.set_inference_mode();
    config.tuner().map_err(|error| ConfigError::Options(Box::new(error)))?;
    Ok(config)
}

/// Options from fields, each of which is one of theirs.
pub(super) fn parse<C: ConfigFile>(given: Fields) -> Result<C, ConfigError> {
    // Serde names a field that is not known, but not the one whose value does not fit.
    for (field, value) in &given {
        let one = Value::Object(Fields::from_iter([(field.clone(), value.clone())]));
        serde_json::from_value::<C>(one).map_err(|source| ConfigError::Value {
            field: field.clone(),
            value: value.clone(),
            source,
        })?;
    }
    Ok(serde_json::from_value(Value::Object(given))?)
}

/// A method's options from the fields that were given. Where no layers are named, they are those of the architecture.
pub(super) fn from_fields<C: ConfigFile + Default>(
    mut given: Fields,
    architecture: impl FnOnce() -> Result<Architecture, Error>,
) -> Result<C, ConfigError> {
    C::complete(&mut given)?;
    if !field_names::<C>().contains(&"target_modules") || given.contains_key("target_modules") {
        return parse(given);
    }
    let mut meant = C::default();
    meant.set_default_layers(architecture().map_err(|error| ConfigError::Options(Box::new(error)))?);
    let Value::Object(mut fields) = serde_json::to_value(meant)? else { return parse(given) };
    fields.extend(given);
    parse(fields)
}

/// A file's fields of a method's options.
pub(super) fn write<C: ConfigFile>(config: &C, sizes: Option<PromptSizes>) -> Result<Fields, ConfigError> {
    let (Value::Object(mut fields), Value::Object(own)) = (C::peft_defaults(), serde_json::to_value(config)?) else {
        return Ok(Fields::new());
    };
    fields.extend(own);
    config.finish(&mut fields, sizes);
    // PEFT's alphas are whole numbers without a point.
    for (_, value) in
        fields.iter_mut().filter(|(field, _)| ["lora_alpha", "alpha", "alpha_pattern"].contains(&field.as_str()))
    {
        *value = whole(value.take());
    }
    Ok(fields)
}

/// Numbers without a point where they are whole.
fn whole(value: Value) -> Value {
    match value {
        Value::Object(values) => Value::Object(values.into_iter().map(|(name, value)| (name, whole(value))).collect()),
        value => match value.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e15) {
            Some(number) => json!(number as i64),
            None => value,
        },
    }
}

/// Whether a field says nothing.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

/// One value, or a list of them, as PEFT takes both.
pub(super) fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected one value or a list of them")]
    enum Values<T> {
        Many(Vec<T>),
        One(T),
    }
    Ok(match Values::deserialize(deserializer)? {
        Values::Many(values) => values,
        Values::One(value) => vec![value],
    })
}

/// The same of a field that may be absent.
pub(super) fn some_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    one_or_many(deserializer).map(Some)
}

/// The names of the fields that serde reads into a type.
pub(super) fn field_names<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
    let mut names: &[&str] = &[];
    let _stops_at_the_names = T::deserialize(FieldNames(&mut names));
    names
}

/// Takes down the names of a struct's fields, and reads nothing.
struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = Unread;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Unread> {
        *self.0 = fields;
        Err(Unread::custom("only the names were wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Unread> {
        Err(Unread::custom("no struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}
