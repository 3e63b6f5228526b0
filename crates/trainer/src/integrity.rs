//! What shows that a file of a run is that run's, and whole: the version of its format, the run's key, the digests of what it was made
//! from, and a digest of all of it.
//!
//! Tensors lie in a safetensors file, whose header says the first three as JSON. Its last tensor, `sha256`, is the SHA-256 digest of
//! every byte before it. A record says the same of its text (see [`Record::to_json`](crate::Record::to_json)).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::files;
use crate::inputs::Inputs;
use crate::run::Run;

/// The version of the format that this program writes; files of before it said one are of version 1.
pub(crate) const FORMAT: u64 = 2;
/// The name of the tensor that is the digest. It is the only one of bytes, which safetensors puts behind those of larger numbers.
const DIGEST: &str = "sha256";
/// The name in the file's metadata under which the header is.
const HEADER: &str = "peft-glue";

/// Which run a file is of, and what that is made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The key of the run.
    pub run: String,
    /// The digests of what it is made from.
    pub inputs: Inputs,
}

impl Origin {
    pub(crate) fn new(run: &Run, inputs: &Inputs) -> Self {
        Self { run: run.key(), inputs: inputs.clone() }
    }

    /// Fails if `found` is another run's, or made from other inputs; of what is known of one side alone nothing is said.
    fn check(&self, found: &Self) -> std::result::Result<(), Fault> {
        if self.run != found.run {
            return Err(Fault::Damaged(format!("one of the run {}", found.run)));
        }
        match self.inputs.changed_since(&found.inputs).as_slice() {
            [] => Ok(()),
            changed => Err(Fault::Damaged(format!("one that was made from another {}", changed.join(" and ")))),
        }
    }
}

/// Why a file is not taken.
#[derive(Debug, PartialEq)]
pub(crate) enum Fault {
    /// It has a version that this program does not know.
    Later(u64),
    /// It is not whole, or not what it should be: what was found instead.
    Damaged(String),
}

impl Fault {
    /// The fault of a file whose digest is not that of its content.
    pub(crate) fn changed() -> Self {
        Self::Damaged("content that has not the SHA-256 digest it says: it was edited or damaged".into())
    }

    /// As an error of the file in `path`, where `expected` was looked for.
    pub(crate) fn at(self, path: &Path, expected: &'static str) -> Error {
        let path = path.into();
        match self {
            Self::Later(found) => Error::LaterFormat { path, expected, found, known: FORMAT },
            Self::Damaged(found) => Error::Content { path, expected, found },
        }
    }
}

/// Numbers of a tensor as they stand in a file.
pub(crate) struct Numbers {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Numbers {
    pub(crate) fn f32(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.into(), bytes }
    }

    pub(crate) fn f64(values: impl ExactSizeIterator<Item = f64>) -> Self {
        let (shape, mut bytes) = (vec![values.len()], Vec::with_capacity(8 * values.len()));
        values.for_each(|value| bytes.extend(value.to_le_bytes()));
        Self { dtype: Dtype::F64, shape, bytes }
    }
}

/// Tensors by their names.
pub(crate) type Tensors = BTreeMap<String, Numbers>;

/// The header of a file, with what stands in it besides.
#[derive(Serialize, Deserialize)]
struct Header<T> {
    format: u64,
    #[serde(flatten)]
    origin: Origin,
    content: T,
}

/// Writes tensors as a file of `origin`, with `content` in its header.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write<T: Serialize>(path: &Path, origin: &Origin, content: &T, tensors: Tensors) -> Result<()> {
    let unwritable =
        |found: String| Error::Content { path: path.into(), expected: "tensors that fit their shapes", found };
    files::write_atomically(path, &sealed(origin, content, tensors).map_err(unwritable)?)
}

/// The bytes of such a file.
pub(crate) fn sealed<T: Serialize>(
    origin: &Origin,
    content: &T,
    mut tensors: Tensors,
) -> std::result::Result<Vec<u8>, String> {
    let header = Header { format: FORMAT, origin: origin.clone(), content };
    let header = serde_json::to_string(&header).map_err(|error| error.to_string())?;
    tensors.insert(DIGEST.into(), Numbers { dtype: Dtype::U8, shape: vec![32], bytes: vec![0; 32] });
    let views = tensors
        .iter()
        .map(|(name, numbers)| Ok((name, TensorView::new(numbers.dtype, numbers.shape.clone(), &numbers.bytes)?)))
        .collect::<std::result::Result<Vec<_>, _>>();
    let serialize = |views| safetensors::serialize(views, Some(HashMap::from([(HEADER.to_string(), header)])));
    let mut bytes = views.and_then(serialize).map_err(|error: safetensors::SafeTensorError| error.to_string())?;
    if let Some((content, digest)) = bytes.split_last_chunk_mut() {
        *digest = sha256(content);
    }
    Ok(bytes)
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// A file of tensors that was read.
pub(crate) struct Opened<'a> {
    pub tensors: SafeTensors<'a>,
    /// The header; a file of before there was one has none.
    header: Option<String>,
    /// The file's metadata.
    pub metadata: HashMap<String, String>,
}

impl<'a> Opened<'a> {
    /// A file of tensors, after a look at its version and its digest.
    pub(crate) fn new(bytes: &'a [u8]) -> std::result::Result<Self, Fault> {
        let broken = |error: safetensors::SafeTensorError| Fault::Damaged(error.to_string());
        let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let mut metadata = header.metadata().clone().unwrap_or_default();
        let header = metadata.remove(HEADER);
        if let Some(header) = &header {
            check_version(header)?;
            if bytes.split_last_chunk().is_none_or(|(content, digest)| sha256(content) != *digest) {
                return Err(Fault::changed());
            }
        }
        Ok(Self { tensors, header, metadata })
    }

    /// Which run a file says that it is of.
    pub(crate) fn origin(&self) -> Option<Origin> {
        let header: Header<serde::de::IgnoredAny> = serde_json::from_str(self.header.as_ref()?).ok()?;
        Some(header.origin)
    }

    /// What stands in the header of a file that must be of `origin`; nothing in one of before there was a header.
    pub(crate) fn content<T: DeserializeOwned>(&self, origin: &Origin) -> std::result::Result<Option<T>, Fault> {
        let Some(header) = &self.header else { return Ok(None) };
        let header: Header<T> = serde_json::from_str(header).map_err(|error| Fault::Damaged(error.to_string()))?;
        origin.check(&header.origin)?;
        Ok(Some(header.content))
    }

    /// The values of a tensor of that shape; else what was found instead.
    pub(crate) fn f32(&self, name: &str, shape: &[usize]) -> std::result::Result<Vec<f32>, String> {
        let view = self.tensors.tensor(name).map_err(|error| format!("{name}: {error}"))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            return Err(format!("{name} of {} and shape {:?}", view.dtype(), view.shape()));
        }
        Ok(view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    /// The values of a vector.
    pub(crate) fn f64(&self, name: &str) -> std::result::Result<Vec<f64>, String> {
        let view = self.tensors.tensor(name).map_err(|error| format!("{name}: {error}"))?;
        if view.dtype() != Dtype::F64 || view.shape().len() != 1 {
            return Err(format!("{name} of {} and shape {:?}", view.dtype(), view.shape()));
        }
        Ok(view.data().as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect())
    }
}

/// Fails if this program does not know the version that a JSON object says.
fn check_version(json: &str) -> std::result::Result<(), Fault> {
    #[derive(Deserialize)]
    struct Version {
        format: u64,
    }
    match serde_json::from_str(json) {
        Ok(Version { format }) => known(format),
        Err(error) => Err(Fault::Damaged(error.to_string())),
    }
}

/// Fails if this program does not know a version that is said.
pub(crate) fn known(format: u64) -> std::result::Result<(), Fault> {
    match format {
        FORMAT => Ok(()),
        later if later > FORMAT => Err(Fault::Later(later)),
        other => Err(Fault::Damaged(format!("the version {other} of a format, which no program wrote"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)] // A test fails by panicking.

    use super::*;

    #[test]
    fn the_digest_is_that_of_every_byte_before_it() {
        let tensors = Tensors::from([("a".into(), Numbers::f32(&[2], &[1.0, 2.0]))]);
        let bytes = sealed(&Origin::default(), &(), tensors).unwrap();
        let (content, digest) = bytes.split_at(bytes.len() - 32);
        assert_eq!(digest, &Sha256::digest(content)[..]);
        assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor(DIGEST).unwrap().data(), digest);
        assert_eq!(Opened::new(&bytes).unwrap().f32("a", &[2]).unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn a_version_that_is_not_known_is_told_apart_from_damage() {
        assert_eq!(known(FORMAT), Ok(()));
        assert_eq!(known(FORMAT + 1), Err(Fault::Later(FORMAT + 1)));
        assert!(matches!(known(0), Err(Fault::Damaged(_))));
    }

    #[test]
    fn of_inputs_that_are_known_of_one_side_alone_nothing_is_said() {
        let of = |data: Option<&str>| Origin {
            run: "a".into(),
            inputs: Inputs { data: data.map(String::from), ..Inputs::default() },
        };
        assert!(of(Some("x")).check(&of(None)).is_ok() && of(None).check(&of(Some("x"))).is_ok());
        let Err(Fault::Damaged(found)) = of(Some("x")).check(&of(Some("y"))) else { panic!("taken") };
        assert!(found.contains("made from another data"), "{found}");
    }
}
