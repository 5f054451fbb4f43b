//! The id of a document: the same item of the same source always has the same one.
//!
//! This is what makes it safe to send an item again: the server recognizes it.

use sha2::{Digest as _, Sha256};

/// The bytes of the hash that are kept. 20: the ids of a billion items differ with a probability
/// of almost one, and nobody can make two items of the same id; more would only take room in the
/// index.
const ID_BYTES: usize = 20;

/// Returns the id of the document of an item, in hexadecimal digits.
pub(crate) fn document_id(source: &str, item: &str) -> String {
    let mut hash = Sha256::new();
    // The length separates the two texts: "ab" and "c" are not "a" and "bc".
    hash.update((source.len() as u64).to_be_bytes());
    hash.update(source);
    hash.update(item);
    to_hex(&hash.finalize()[..ID_BYTES])
}

/// Returns the bytes in hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |four_bits: u8| char::from(DIGITS[usize::from(four_bits)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Documents that are in an index are found again by later versions only if ids never change.
    #[test]
    fn an_id_never_changes() {
        assert_eq!(document_id("bbc", "1"), "84c857d1e42bc43f684896bd05a1d615a6c463eb");
    }

    #[test]
    fn ids_differ_by_source_and_by_item() {
        let ids = [
            document_id("a", "bc"),
            document_id("ab", "c"),
            document_id("", "abc"),
            document_id("abc", ""),
            document_id("a", "bd"),
        ];
        for (n, id) in ids.iter().enumerate() {
            assert_eq!(id.len(), 2 * ID_BYTES);
            assert!(!ids[..n].contains(id), "{id} is there twice");
        }
    }
}
