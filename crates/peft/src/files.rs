//! The bytes of safetensors files, and folders of files.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Tensor};
use safetensors::tensor::{Dtype, TensorView};

use crate::error::{Error, Result};

/// Tensors as the bytes of a safetensors file, in f32, with this metadata and what PEFT and transformers look for in it. The path is for
/// messages.
///
/// # Errors
/// When a number is not finite.
pub(crate) fn tensor_file(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for (key, tensor) in tensors {
        let values: Vec<f32> = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        if !values.iter().all(|value| value.is_finite()) {
            return Err(Error::NotWritten { path: path.into(), key: key.clone() });
        }
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        bytes.push((key, tensor.dims().to_vec(), data));
    }
    let failed = |source| Error::Weights { path: path.into(), source };
    let views = bytes
        .iter()
        .map(|(key, shape, data)| Ok((key, TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect::<std::result::Result<Vec<_>, _>>()
        .map_err(failed)?;
    let mut metadata: HashMap<String, String> = metadata.clone().into_iter().collect();
    metadata.insert("format".into(), "pt".into());
    let mut file = safetensors::serialize(views, Some(metadata)).map_err(failed)?;
    order_header(&mut file);
    Ok(file)
}

/// Brings the header's names into the order of the alphabet: equal adapters have equal bytes, and the order of a hash map is another each
/// time.
fn order_header(file: &mut [u8]) {
    let Some(length) = file.first_chunk().map(|length| u64::from_le_bytes(*length) as usize) else { return };
    let Some(header) = file.get_mut(8..8 + length) else { return };
    let ordered = serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(header)
        .and_then(|fields| serde_json::to_vec(&fields))
        .unwrap_or_default();
    // The same names and values are as long in any order; blanks fill the rest, as before.
    if (1..=header.len()).contains(&ordered.len()) {
        header.fill(b' ');
        header[..ordered.len()].copy_from_slice(&ordered);
    }
}

/// Writes files, as names and bytes, to `folder`, of which the last makes it what it is, and further ones before that; as the
/// crate `files` does.
pub(crate) fn write_folder<'a>(
    folder: &Path,
    further: &[(&'a str, &'a [u8])],
    own: &[(&'a str, &'a [u8])],
) -> Result<()> {
    ::files::write_folder(folder, &[further, own].concat())
        .map_err(|source| Error::AdapterWrite { path: folder.into(), source })
}
