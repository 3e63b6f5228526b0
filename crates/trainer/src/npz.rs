//! Arrays in numpy's npz files: zip archives of npy files (numpy's `lib/format.py`, versions 1 to 3). What a header says is compared with the
//! bytes that are there, and these with a limit, before memory is taken.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use zip::ZipArchive;
use zip::result::ZipError;

/// Bytes that all arrays of a file may have together, unpacked.
const MOST_BYTES: u64 = 1 << 28;

/// An npz file.
pub(crate) struct Npz {
    archive: ZipArchive<BufReader<File>>,
    /// Bytes that may still be read.
    left: u64,
}

/// An array: its shape, and its numbers in C order. Whole numbers beyond 2^53 are rounded.
#[derive(Debug, PartialEq)]
pub(crate) struct Array {
    name: String,
    pub shape: Vec<usize>,
    pub numbers: Vec<f64>,
}

impl Npz {
    pub(crate) fn open(path: &Path) -> Result<Self, String> {
        let file = File::open(path).map_err(|error| error.to_string())?;
        let archive = ZipArchive::new(BufReader::new(file)).map_err(|error| error.to_string())?;
        Ok(Self { archive, left: MOST_BYTES })
    }

    /// The array of that name, if there is one; or what is wrong with it.
    pub(crate) fn get(&mut self, name: &str) -> Result<Option<Array>, String> {
        let failed = |reason: String| format!("{name}: {reason}");
        let entry = match self.archive.by_name(&format!("{name}.npy")) {
            Ok(entry) => entry,
            Err(ZipError::FileNotFound) => return Ok(None),
            Err(error) => return Err(failed(error.to_string())),
        };
        if entry.size() > self.left {
            let size = entry.size();
            return Err(failed(format!("{size} bytes, with which the arrays have more than {MOST_BYTES} together")));
        }
        let mut bytes = Vec::new();
        entry.take(self.left + 1).read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            failed(format!("more bytes than it says, with which the arrays have more than {MOST_BYTES} together"))
        })?;
        Array::read(name, &bytes).map(Some).map_err(failed)
    }
}

impl Array {
    /// That of an npy file's bytes.
    fn read(name: &str, bytes: &[u8]) -> Result<Self, String> {
        let (header, data) = parts(bytes).ok_or("no npy file")?;
        let field = |field: &str| {
            let rest = header.split_once(&format!("'{field}':")).map(|(_, rest)| rest.trim_start());
            rest.ok_or_else(|| format!("no {field} in its header"))
        };
        let kind = field("descr")?.strip_prefix('\'').and_then(|rest| rest.split_once('\''));
        let kind = kind.ok_or("a descr that is no number's")?.0;
        let shape = field("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or("no shape")?.0;
        let sizes = shape.split(',').map(str::trim).filter(|size| !size.is_empty());
        let shape: Vec<usize> =
            sizes.map(|size| size.parse().map_err(|_| format!("the shape ({shape})"))).collect::<Result<_, _>>()?;
        if field("fortran_order")?.starts_with("True") && shape.len() > 1 {
            return Err("fortran_order True; write it in C order (numpy.ascontiguousarray)".into());
        }
        let (width, number) = decoder(kind).ok_or_else(|| {
            format!("numbers of the type {kind:?}, expected little-endian ones of 1 to 8 bytes, or truth values")
        })?;
        let count = shape.iter().try_fold(1_usize, |count, &size| count.checked_mul(size));
        if count.and_then(|count| count.checked_mul(width)) != Some(data.len()) {
            return Err(format!("the shape {shape:?} of {width} bytes each, and {} bytes in the file", data.len()));
        }
        Ok(Self { name: name.into(), shape, numbers: data.chunks_exact(width).map(number).collect() })
    }

    /// Its numbers, where all are whole and at most `most`; or the first that is not, with its place.
    pub(crate) fn whole(&self, most: u32) -> Result<Vec<u32>, String> {
        let is_whole = |number: f64| number.fract() == 0.0 && (0.0..=f64::from(most)).contains(&number);
        match self.numbers.iter().position(|number| !is_whole(*number)) {
            Some(place) => Err(self.wrong(place, &format!("a whole number from 0 to {most}"))),
            None => Ok(self.numbers.iter().map(|number| *number as u32).collect()),
        }
    }

    /// Its numbers in f32, where all are finite there; or the first that is not, with its place.
    pub(crate) fn finite(&self) -> Result<Vec<f32>, String> {
        let numbers: Vec<f32> = self.numbers.iter().map(|number| *number as f32).collect();
        match numbers.iter().position(|number| !number.is_finite()) {
            Some(place) => Err(self.wrong(place, "a finite number")),
            None => Ok(numbers),
        }
    }

    /// What is wrong with the number at a place in C order.
    pub(crate) fn wrong(&self, place: usize, expected: &str) -> String {
        let mut rest = place;
        let mut indices: Vec<String> = Vec::new();
        for &size in self.shape.iter().rev() {
            indices.insert(0, (rest % size.max(1)).to_string());
            rest /= size.max(1);
        }
        let at = if indices.is_empty() { String::new() } else { format!("[{}]", indices.join(", ")) };
        format!("{}{at} is {}, expected {expected}", self.name, self.numbers[place])
    }
}

/// An npy file's header, and what comes after it.
fn parts(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (version, rest) = bytes.strip_prefix(b"\x93NUMPY")?.split_first_chunk::<2>()?;
    let (length, rest) = if version[0] == 1 {
        let (length, rest) = rest.split_first_chunk::<2>()?;
        (usize::from(u16::from_le_bytes(*length)), rest)
    } else {
        let (length, rest) = rest.split_first_chunk::<4>()?;
        (usize::try_from(u32::from_le_bytes(*length)).ok()?, rest)
    };
    let (header, data) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(header).ok()?, data))
}

/// How many bytes a number has, and what they are.
type Decoder = (usize, fn(&[u8]) -> f64);

/// That of numbers of a type.
fn decoder(kind: &str) -> Option<Decoder> {
    macro_rules! of {
        ($number:ty) => {
            (size_of::<$number>(), |bytes| {
                bytes.try_into().map_or(f64::NAN, |bytes| <$number>::from_le_bytes(bytes) as f64)
            })
        };
    }
    Some(match kind {
        "<f4" => of!(f32),
        "<f8" => of!(f64),
        "<i2" => of!(i16),
        "<i4" => of!(i32),
        "<i8" => of!(i64),
        "<u2" => of!(u16),
        "<u4" => of!(u32),
        "<u8" => of!(u64),
        "|i1" => of!(i8),
        // Bytes have no order; candle writes one all the same.
        "|u1" | "<u1" | "|b1" => of!(u8),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use candle_core::{DType, Device, Tensor};

    use super::*;

    /// As numpy writes version 1.
    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        let length = (header.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\x00", length.as_slice(), header.as_bytes(), data].concat()
    }

    #[test]
    fn what_candle_writes_is_read_in_every_type() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("some.npz");
        let values = Tensor::new(&[[1_u32, 2, 3], [4, 5, 6]], &Device::Cpu).unwrap();
        for dtype in [DType::U8, DType::U32, DType::I64, DType::F32, DType::F64] {
            let scalar = Tensor::new(7_u32, &Device::Cpu).unwrap();
            Tensor::write_npz(&[("values", values.to_dtype(dtype).unwrap()), ("scalar", scalar)], &path).unwrap();
            let mut npz = Npz::open(&path).unwrap();
            let array = npz.get("values").unwrap().unwrap();
            assert_eq!((array.shape.as_slice(), array.whole(6).unwrap()), (&[2, 3][..], vec![1, 2, 3, 4, 5, 6]));
            assert_eq!(npz.get("scalar").unwrap().unwrap().whole(9).unwrap(), [7]);
            assert_eq!(npz.get("other").unwrap(), None);
        }
    }

    #[test]
    fn a_header_that_says_more_than_the_file_holds_is_refused_before_memory_is_taken() {
        let read = |header: &str, data: &[u8]| Array::read("ids", &npy(header, data));
        let fields =
            |kind: &str, shape: &str| format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
        assert_eq!(read(&fields("<i8", "(1,)"), &7_i64.to_le_bytes()).unwrap().numbers, [7.0]);
        for (kind, shape) in [
            ("<i8", "(2000000000,)"),
            ("<i8", "(4294967296, 4294967296)"),
            ("<i8", "(9223372036854775807,)"),
            ("<i8", "(18446744073709551616,)"),
            ("<i8", "(-1,)"),
            ("<i8", "()"),
            ("|O", "(1,)"),
            (">i8", "(1,)"),
        ] {
            assert!(read(&fields(kind, shape), &[0; 16]).is_err(), "{kind} {shape}");
        }
        assert!(read("{'descr': [('a', '<i8')], 'fortran_order': False, 'shape': (1,)}", &[0; 8]).is_err());
        assert!(read("{'descr': '<i8', 'fortran_order': True, 'shape': (1, 2)}", &[0; 16]).is_err());
        for cut in 0..npy("", b"").len() {
            assert!(Array::read("ids", &npy("", b"")[..cut]).is_err());
        }
    }

    #[test]
    fn a_number_that_is_not_what_it_should_be_is_told_with_its_place() {
        let array = |numbers: Vec<f64>| Array { name: "ids".into(), shape: vec![2, 2], numbers };
        for wrong in [0.7, -1.0, 5.0, f64::NAN, f64::INFINITY, 4_294_967_301.0] {
            let error = array(vec![0.0, 1.0, wrong, 2.0]).whole(4).unwrap_err();
            assert!(
                error.starts_with(&format!("ids[1, 0] is {wrong}, expected a whole number from 0 to 4")),
                "{error}"
            );
        }
        assert!(array(vec![0.0, 1.0, 1e300, 2.0]).finite().unwrap_err().contains("ids[1, 0]"));
    }
}
