//! Decodes request bodies that have a `Content-Encoding`.
//!
//! An event holds the decoded content. `gzip`, `deflate` and `zstd`, also several applied one after
//! the other, are decoded piece by piece. A decoded body has the same size limit as a plain one, so
//! that a few bytes that expand to gigabytes are refused early. Any other encoding is answered as
//! RFC 7694 says: with 415 and the known encodings in `Accept-Encoding`.

use std::io;

use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use axum::http::{HeaderMap, HeaderValue, header};
use futures_util::StreamExt as _;
use ion_model::text::quote;
use tokio::io::{AsyncBufRead, BufReader};
use tokio_util::io::{ReaderStream, StreamReader};

use super::body::{BodyError, BodyMemory, IncomingBody, PieceStream};
use super::problem::{Problem, ProblemKind};

/// The known encodings, as `Accept-Encoding` lists them.
const KNOWN: &str = "gzip, deflate, zstd";

/// The maximum number of encodings of one body. One or two are enough in practice, and each has
/// buffers of its own.
const DEPTH_MAX: usize = 3;

/// Bytes of a decoded piece, and of the buffer between two decoders.
const PIECE: usize = 64 << 10;

/// The largest zstd window, as a power of two: 8 MiB is what RFC 9659 allows in `Content-Encoding`.
/// A larger limit would let a request choose how much memory it takes.
const ZSTD_WINDOW_LOG: u32 = 23;

/// An encoding of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Gzip,
    /// The zlib format, which HTTP calls `deflate`.
    Deflate,
    Zstd,
}

type EncodedReader = Box<dyn AsyncBufRead + Send + Unpin>;

impl Encoding {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// Returns the maximum bytes of memory that a decoder takes.
    fn decoder_bytes_max(self) -> usize {
        match self {
            Self::Gzip | Self::Deflate => 2 * PIECE,
            Self::Zstd => (1 << ZSTD_WINDOW_LOG) + 4 * PIECE,
        }
    }

    /// Wraps a reader in a decoder. Several members or frames one after the other decode to one
    /// whole, as `cat a.gz b.gz` produces them.
    fn decode(self, reader: EncodedReader) -> EncodedReader {
        match self {
            Self::Gzip => {
                let mut decoder = GzipDecoder::new(reader);
                decoder.multiple_members(true);
                Box::new(BufReader::with_capacity(PIECE, decoder))
            }
            Self::Deflate => Box::new(BufReader::with_capacity(PIECE, ZlibDecoder::new(reader))),
            Self::Zstd => {
                let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG)];
                let mut decoder = ZstdDecoder::with_params(reader, &window);
                decoder.multiple_members(true);
                Box::new(BufReader::with_capacity(PIECE, decoder))
            }
        }
    }
}

/// Returns the decoded body of a request. The decoders' memory is reserved in `room`.
pub(super) fn decode_body(
    headers: &HeaderMap,
    body: IncomingBody,
    room: &BodyMemory,
) -> Result<IncomingBody, Problem> {
    let encodings = parse_encodings(headers)?;
    if encodings.is_empty() {
        return Ok(body);
    }
    let mut memory = room.new_reservation();
    memory.add(encodings.iter().map(|encoding| encoding.decoder_bytes_max()).sum())?;
    let decode = |pieces: PieceStream| {
        let mut reader: EncodedReader =
            Box::new(StreamReader::new(pieces.map(|piece| piece.map_err(io::Error::other))));
        // The encoding that was applied last is undone first.
        for encoding in encodings.iter().rev() {
            reader = encoding.decode(reader);
        }
        ReaderStream::with_capacity(reader, PIECE).map(|piece| piece.map_err(body_error)).boxed()
    };
    Ok(body.decode_with(decode, memory))
}

/// Converts a decoder's error: either the body's own error, which decoders pass on, or undecodable
/// bytes.
fn body_error(error: io::Error) -> BodyError {
    match error.downcast::<BodyError>() {
        Ok(error) => error,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            BodyError::Undecodable("it ends too early".into())
        }
        Err(error) => BodyError::Undecodable(error.to_string()),
    }
}

/// Returns the encodings that the headers name, in the order in which they were applied.
fn parse_encodings(headers: &HeaderMap) -> Result<Vec<Encoding>, Problem> {
    let mut encodings = Vec::new();
    for line in headers.get_all(header::CONTENT_ENCODING) {
        let line = String::from_utf8_lossy(line.as_bytes());
        for name in line.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let lower = name.to_ascii_lowercase();
            if lower == "identity" {
                continue;
            }
            let Some(encoding) = Encoding::from_name(&lower) else {
                let detail = format!(
                    "the Content-Encoding {} is not known; send the body plain, or encoded as \
                     {KNOWN}",
                    quote(name)
                );
                return Err(encoding_problem(detail));
            };
            encodings.push(encoding);
        }
    }
    if encodings.len() > DEPTH_MAX {
        return Err(encoding_problem(format!(
            "the body was encoded more than {DEPTH_MAX} times; send it encoded once"
        )));
    }
    Ok(encodings)
}

/// Returns whether the headers name an encoding of the body, known or not.
pub(super) fn is_encoded(headers: &HeaderMap) -> bool {
    parse_encodings(headers).map_or(true, |encodings| !encodings.is_empty())
}

fn encoding_problem(detail: String) -> Problem {
    let known = HeaderValue::from_static(KNOWN);
    Problem::new(ProblemKind::UnknownEncoding, detail).with_header(header::ACCEPT_ENCODING, known)
}

/// Refuses a part of a form that has an encoding of its own, which RFC 7578 advises against: the
/// file would be stored encoded without anyone noticing.
pub(super) fn check_part(headers: &HeaderMap) -> Result<(), Problem> {
    let encoding_in = |name: &str| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase())
    };
    let content = encoding_in("content-encoding").filter(|encoding| encoding != "identity");
    let transfer = encoding_in("content-transfer-encoding")
        .filter(|encoding| !["7bit", "8bit", "binary"].contains(&&**encoding));
    let (name, encoding) = match (content, transfer) {
        (Some(encoding), _) => ("Content-Encoding", encoding),
        (None, Some(encoding)) => ("Content-Transfer-Encoding", encoding),
        (None, None) => return Ok(()),
    };
    let encoding = quote(&encoding);
    let detail = format!(
        "a part of the form has the {name} {encoding}; send the parts plain, or encode the whole \
         form"
    );
    Err(encoding_problem(detail))
}

/// Returns the text of a JSON document, without the byte order mark that some editors put before
/// it.
pub(super) fn json_text(body: &[u8]) -> Result<&[u8], Problem> {
    match body {
        [0xef, 0xbb, 0xbf, text @ ..] => Ok(text),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            Err(Problem::new(ProblemKind::Malformed, "the body is UTF-16; send JSON as UTF-8"))
        }
        text => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn headers(name: HeaderName, lines: &[&'static str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), HeaderValue::from_static(line))).collect()
    }

    #[test]
    fn encodings_are_those_that_are_known_in_their_order() {
        let of = |lines: &[&'static str]| {
            parse_encodings(&headers(header::CONTENT_ENCODING, lines))
                .map_err(|problem| problem.kind())
        };
        assert_eq!(of(&[]), Ok(vec![]));
        assert_eq!(of(&["identity"]), Ok(vec![]));
        assert_eq!(of(&["GZip"]), Ok(vec![Encoding::Gzip]));
        assert_eq!(
            of(&["x-gzip, zstd", "deflate,"]),
            Ok(vec![Encoding::Gzip, Encoding::Zstd, Encoding::Deflate])
        );
        for wrong in
            [&["br"][..], &["gzip, compress"], &["aws-chunked"], &["gzip,gzip", "gzip,gzip"]]
        {
            assert_eq!(of(wrong), Err(ProblemKind::UnknownEncoding), "{wrong:?}");
        }
    }

    #[test]
    fn a_body_that_is_said_to_be_plain_is_not_encoded() {
        let of = |lines: &[&'static str]| is_encoded(&headers(header::CONTENT_ENCODING, lines));
        assert!(!of(&[]) && !of(&["identity"]) && !of(&["Identity, "]));
        assert!(of(&["gzip"]) && of(&["br"]) && of(&["identity", "zstd"]));
    }

    #[test]
    fn a_part_may_say_that_it_is_plain() {
        let transfer = HeaderName::from_static("content-transfer-encoding");
        for plain in ["binary", "8bit", " 7BIT "] {
            assert!(check_part(&headers(transfer.clone(), &[plain])).is_ok(), "{plain}");
        }
        assert!(check_part(&HeaderMap::new()).is_ok());
        assert!(check_part(&headers(transfer, &["base64"])).is_err());
        assert!(check_part(&headers(header::CONTENT_ENCODING, &["gzip"])).is_err());
    }
}
