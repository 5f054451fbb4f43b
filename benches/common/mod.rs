//! Measuring helpers that the benches share.
#![allow(dead_code, unreachable_pub, reason = "each bench uses a part of it")]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

/// Returns the median time of `rounds` runs.
pub fn median(rounds: usize, run: impl FnMut() -> Duration) -> Duration {
    middle(std::iter::repeat_with(run).take(rounds).collect())
}

pub fn middle(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Reads a whole file in blocks of 1 MiB. Returns the time it took.
pub fn read(path: &Path) -> Duration {
    let began = Instant::now();
    read_at_most(path, u64::MAX);
    began.elapsed()
}

pub fn read_at_most(path: &Path, most: u64) {
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut left = most;
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let length = file.read(&mut buffer[..room]).unwrap();
        if length == 0 {
            return;
        }
        left -= length as u64;
    }
}

/// Writes a new file of `mib` MiB and closes it. Returns the time it took.
pub fn write(path: &Path, mib: u64) -> Duration {
    let block: Vec<u8> = (0..1_u64 << 20).map(|at| ((at * 31) >> 3).to_le_bytes()[0]).collect();
    let began = Instant::now();
    let mut file = File::create(path).unwrap();
    for _ in 0..mib {
        file.write_all(&block).unwrap();
    }
    drop(file);
    began.elapsed()
}
