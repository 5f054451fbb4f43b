//! Unpacking a body, to a bound.
//!
//! The header says how a body is packed, and is often wrong. So what begins like gzip is unpacked,
//! and what cannot be unpacked but begins like a document is one.

use std::io::{self, Read};

use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

/// Why a body cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It has too many bytes.
    #[error("it has more than {most} bytes; --max-bytes allows more")]
    TooLarge {
        /// How many it may have.
        most: usize,
    },
    /// It is packed in a way that this program does not know.
    #[error("it is packed with {0:?}, which nobody asked for")]
    UnknownCoding(String),
    /// It is damaged or was cut off.
    #[error("it is not {coding}, or was cut off")]
    Damaged {
        /// How it says that it is packed.
        coding: &'static str,
        /// What the unpacker says.
        #[source]
        source: io::Error,
    },
}

/// Returns the body unpacked, if it has at most `most` bytes then. `coding` is the header
/// `Content-Encoding`.
///
/// # Errors
///
/// It is too large, damaged, or packed in an unknown way.
pub fn unpack(packed: Vec<u8>, coding: &str, most: usize) -> Result<Vec<u8>, BodyError> {
    let mut body = packed;
    // Several codings are undone from the last to the first. Nobody needs more than two.
    let codings: Vec<&str> =
        coding.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if codings.len() > 2 {
        return Err(BodyError::UnknownCoding(coding.to_owned()));
    }
    for coding in codings.iter().rev() {
        body = match &*coding.to_ascii_lowercase() {
            "identity" => body,
            "gzip" | "x-gzip" => gzip(body, most)?,
            "deflate" => deflate(body, most)?,
            "br" => brotli(body, most)?,
            other => return Err(BodyError::UnknownCoding(other.to_owned())),
        };
    }
    // A file feed.xml.gz arrives packed and without the header.
    if codings.is_empty() && body.starts_with(&[0x1F, 0x8B]) {
        body = gzip(body, most)?;
    }
    Ok(body)
}

fn gzip(packed: Vec<u8>, most: usize) -> Result<Vec<u8>, BodyError> {
    if looks_like_text(&packed) {
        return Ok(packed);
    }
    read_up_to(MultiGzDecoder::new(&*packed), most, "gzip")
}

fn brotli(packed: Vec<u8>, most: usize) -> Result<Vec<u8>, BodyError> {
    if looks_like_text(&packed) {
        return Ok(packed);
    }
    read_up_to(brotli_decompressor::Decompressor::new(&*packed, 4096), most, "brotli")
}

/// Unpacks deflate with the header that the rules ask for, or without it, as many servers send it.
fn deflate(packed: Vec<u8>, most: usize) -> Result<Vec<u8>, BodyError> {
    if looks_like_text(&packed) {
        return Ok(packed);
    }
    match read_up_to(ZlibDecoder::new(&*packed), most, "deflate") {
        Err(BodyError::Damaged { .. }) => {
            read_up_to(DeflateDecoder::new(&*packed), most, "deflate")
        }
        result => result,
    }
}

/// Whether a body that claims to be packed is not.
fn looks_like_text(body: &[u8]) -> bool {
    let start = body.trim_ascii_start();
    let start = start.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(start);
    start.is_empty()
        || [&b"<?xml"[..], b"<rss", b"<feed", b"<rdf", b"<!", b"<html", b"{\""].iter().any(|text| {
            start.get(..text.len()).is_some_and(|found| found.eq_ignore_ascii_case(text))
        })
}

fn read_up_to(from: impl Read, most: usize, coding: &'static str) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    let read = from.take(most as u64 + 1).read_to_end(&mut body);
    if body.len() > most {
        return Err(BodyError::TooLarge { most });
    }
    match read {
        Ok(_) => Ok(body),
        Err(source) => Err(BodyError::Damaged { coding, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::{BodyError, unpack};

    const TEXT: &[u8] = b"<rss>some text, some text, some text</rss>";

    /// The text as another program packed it with brotli.
    const BROTLI: &[u8] = &[
        27, 41, 0, 248, 197, 109, 108, 93, 249, 65, 227, 72, 239, 57, 35, 200, 70, 37, 201, 82, 21,
        0, 13, 149, 107, 151, 167, 133, 211, 95, 0, 102,
    ];

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_body_is_unpacked_as_it_was_packed_whatever_the_header_says() {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(TEXT).unwrap();
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(TEXT).unwrap();
        for (packed, coding) in [
            (TEXT.to_vec(), ""),
            (TEXT.to_vec(), "gzip"),
            (TEXT.to_vec(), "br"),
            (BROTLI.to_vec(), "br"),
            (gzip(TEXT), "gzip"),
            (gzip(TEXT), ""),
            (gzip(&gzip(TEXT)), "gzip, gzip"),
            (zlib.finish().unwrap(), "deflate"),
            (deflate.finish().unwrap(), "deflate"),
        ] {
            assert_eq!(unpack(packed, coding, 1000).unwrap(), TEXT, "{coding}");
        }
    }

    #[test]
    fn what_comes_out_has_a_bound() {
        let bomb = gzip(&vec![0; 10_000_000]);
        assert!(bomb.len() < 20_000);
        assert!(matches!(
            unpack(bomb, "gzip", 100_000),
            Err(BodyError::TooLarge { most: 100_000 })
        ));
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_an_error() {
        let packed = gzip(TEXT);
        let cut = packed[..packed.len() - 12].to_vec();
        assert!(matches!(unpack(cut, "gzip", 1000), Err(BodyError::Damaged { .. })));
        assert!(matches!(unpack(packed.clone(), "zstd", 1000), Err(BodyError::UnknownCoding(_))));
        assert!(unpack(packed, "gzip,gzip,gzip", 1000).is_err());
    }
}
