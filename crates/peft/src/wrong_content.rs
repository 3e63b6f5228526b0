//! Files that are not what their names say: what a download, a clone or a full disk leaves behind.

use std::fmt;

/// What lies in the place of a file that was expected. Prints as what it is and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrongContent {
    /// Nothing.
    Empty,
    /// The pointer of Git LFS to a file that was not fetched.
    LfsPointer,
    /// A page, such as a hub's answer to somebody who is not logged in.
    Html,
    /// A pickle of torch's, or the zip archive that it lies in.
    Pickle,
    /// A model in llama.cpp's format.
    Gguf,
    /// A tensor file of HDF5, as TensorFlow's and Keras's are.
    Hdf5,
}

impl WrongContent {
    /// What a file holds, by its first bytes, if it is one of these.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let text = bytes.trim_ascii_start();
        let begins = |start: &[u8]| text.len() >= start.len() && text[..start.len()].eq_ignore_ascii_case(start);
        match bytes {
            _ if text.is_empty() || bytes.iter().all(|byte| *byte == 0) => Some(Self::Empty),
            _ if begins(b"version https://git-lfs") => Some(Self::LfsPointer),
            _ if begins(b"<!doctype") || begins(b"<html") || begins(b"<?xml") => Some(Self::Html),
            // The length of a safetensors header may begin so, but its JSON follows.
            [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] if bytes.get(8) != Some(&b'{') => Some(Self::Pickle),
            [b'G', b'G', b'U', b'F', ..] => Some(Self::Gguf),
            [0x89, b'H', b'D', b'F', ..] => Some(Self::Hdf5),
            _ => None,
        }
    }
}

impl fmt::Display for WrongContent {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty file, as a download that broke off leaves it; download it again",
            Self::LfsPointer => {
                "a pointer of Git LFS in the place of the file; type `git lfs pull` in that folder, or download the file itself"
            }
            Self::Html => "a web page, such as a hub's answer without a login; download the file itself",
            Self::Pickle => {
                "a pickle of torch's, which is not read since loading one can run any program; convert it where you trust it, with \
                 save_pretrained of transformers or of peft"
            }
            Self::Gguf => "a GGUF file, which holds no model that can be trained; take the original checkpoint",
            Self::Hdf5 => {
                "an HDF5 file of TensorFlow's; convert it with transformers, from_pretrained(..., from_tf=True) and save_pretrained"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_something_else_are_recognized_by_their_first_bytes() {
        for (bytes, expected) in [
            (&b""[..], Some(WrongContent::Empty)),
            (b" \n", Some(WrongContent::Empty)),
            (&[0; 64], Some(WrongContent::Empty)),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n", Some(WrongContent::LfsPointer)),
            (b"\n<!DOCTYPE html><html>", Some(WrongContent::Html)),
            (b"<HTML><head>", Some(WrongContent::Html)),
            (b"PK\x03\x04archive/data.pkl", Some(WrongContent::Pickle)),
            (b"\x80\x02}q\x00", Some(WrongContent::Pickle)),
            (b"GGUF\x03", Some(WrongContent::Gguf)),
            (b"\x89HDF\r\n", Some(WrongContent::Hdf5)),
            (b"{\"model_type\": \"bert\"}", None),
            // The length of a safetensors header, 0x80 bytes, and the header.
            (b"\x80\x00\x00\x00\x00\x00\x00\x00{\"a\":", None),
            (b"\x80\x04\x00\x00\x00\x00\x00\x00{\"a\":", None),
        ] {
            assert_eq!(WrongContent::of(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
