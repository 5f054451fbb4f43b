//! Block checksums: made while a file becomes a blob, checked before a module sees a byte of it.
//!
//! Each block has its CRC-32C. A block is 1 MiB, so that a read of 1 MiB from a blob of any size
//! fetches no more than the one or two blocks it touches and can still be checked. The block size
//! is stored with the sums, so that blobs written with another block size stay readable.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};

/// Bytes in a block. A smaller block lengthens event documents (4 bytes for each block before
/// encoding); a larger one makes a small random read fetch more than it needs.
pub const BLOCK_BYTES: u64 = 1 << 20;

/// Returns a digest as lowercase hexadecimal digits.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The checksums of one blob.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Checksums {
    /// The algorithm: `crc32c`, the only one so far.
    pub algorithm: String,
    /// Bytes in each block except the last, which may be shorter.
    pub block: u64,
    /// The blocks' sums, four bytes each, big endian, in base64 without padding.
    sums: String,
}

impl Checksums {
    /// Returns the sum of block `index`; `None` when there is no such block or the stored text is
    /// not valid.
    pub fn block_sum(&self, index: u64) -> Option<u32> {
        // Four bytes are not a whole number of base64 quanta, but twelve (three sums) are: only the
        // group of sixteen characters that holds the sum is decoded.
        let group = usize::try_from(index / 3).ok()?.checked_mul(16)?;
        let end = self.sums.len().min(group.checked_add(16)?);
        let bytes = STANDARD_NO_PAD.decode(self.sums.get(group..end)?).ok()?;
        let at = usize::try_from(index % 3).ok()? * 4;
        Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    }

    /// Whether `bytes` match the checksum of block `index`.
    pub fn block_matches(&self, index: u64, bytes: &[u8]) -> bool {
        self.block_sum(index) == Some(crc32c::crc32c(bytes))
    }
}

/// Computes the checksums of a file that arrives in pieces of any size.
#[derive(Clone, Debug, Default)]
pub struct BlockChecksummer {
    sums: Vec<u8>,
    current: u32,
    filled: u64,
    total: u64,
}

impl BlockChecksummer {
    /// Adds the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = usize::try_from(BLOCK_BYTES - self.filled).unwrap_or(usize::MAX);
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            self.current = crc32c::crc32c_append(self.current, now);
            self.filled += now.len() as u64;
            self.total += now.len() as u64;
            if self.filled == BLOCK_BYTES {
                self.end_block();
            }
            bytes = rest;
        }
    }

    /// Returns the number of bytes added so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns the checksums of all bytes added.
    pub fn finish(mut self) -> Checksums {
        if self.filled > 0 {
            self.end_block();
        }
        Checksums {
            algorithm: "crc32c".into(),
            block: BLOCK_BYTES,
            sums: STANDARD_NO_PAD.encode(&self.sums),
        }
    }

    fn end_block(&mut self) {
        self.sums.extend_from_slice(&self.current.to_be_bytes());
        self.current = 0;
        self.filled = 0;
    }
}

/// Returns the checksums of bytes that are all in memory.
pub fn of(bytes: &[u8]) -> Checksums {
    let mut summer = BlockChecksummer::default();
    summer.update(bytes);
    summer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_block_is_found_and_a_flipped_bit_is_noticed() {
        let block = usize::try_from(BLOCK_BYTES).expect("a block fits memory");
        let mut bytes: Vec<u8> =
            (0..block * 7 + 5).map(|i| u8::try_from(i % 251).expect("below 251")).collect();
        let sums = of(&bytes);
        for (index, chunk) in bytes.chunks(block).enumerate() {
            assert!(sums.block_matches(index as u64, chunk), "block {index}");
        }
        assert_eq!(sums.block_sum(8), None);
        bytes[block * 4 + 17] ^= 1;
        assert!(!sums.block_matches(4, &bytes[block * 4..block * 5]));
    }

    #[test]
    fn pieces_of_any_size_give_the_same_sums() {
        let bytes = vec![7u8; 3_000_001];
        let mut summer = BlockChecksummer::default();
        for piece in bytes.chunks(65_537) {
            summer.update(piece);
        }
        assert_eq!(summer.finish(), of(&bytes));
        assert_eq!(of(b"").block_sum(0), None);
    }
}
