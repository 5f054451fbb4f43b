//! Read-ahead: predicts the bytes that a reader will ask for next.
//!
//! A file is read in sequential streams: one for most programs, several where threads share a
//! handle or where a format keeps an index at its end. Each stream that continues gets a window
//! ahead of it that doubles. Random reads get only the blocks they ask for.

use std::ops::Range;

/// The number of streams that are tracked in one open file.
const STREAMS_MAX: usize = 8;

/// How far the start of a read may be before or after the end of a stream, in bytes, and still
/// continue it: the kernel's own read-ahead sends requests concurrently, and they arrive in any
/// order.
const SLACK: u64 = 2 << 20;

/// The number of bytes that the first read of a file fetches in all. A larger number delays a
/// program that reads only a header.
const WINDOW_FIRST: u64 = 1 << 20;

/// The number of bytes that are in flight ahead of a stream at most: what a link of 10 Gbit/s
/// carries in 25 ms.
const WINDOW_MAX: u64 = 32 << 20;

/// The streams of one open file.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    streams: Vec<Stream>,
    clock: u64,
}

#[derive(Debug)]
struct Stream {
    /// The offset at which the next read is expected.
    next: u64,
    /// The offset up to which blocks have been requested.
    ahead: u64,
    window: u64,
    used: u64,
}

impl ReadAhead {
    /// Returns the bytes that should be fetched in addition to the read from `start` to `end`.
    /// Returns `None` if enough bytes are on their way, or if the read continues no stream and is
    /// not at the start of the file.
    pub(super) fn note_read(&mut self, start: u64, end: u64) -> Option<Range<u64>> {
        self.clock += 1;
        let used = self.clock;
        let goes_on = |stream: &&mut Stream| {
            start.saturating_add(SLACK) >= stream.next && start <= stream.next.saturating_add(SLACK)
        };
        let Some(stream) = self.streams.iter_mut().find(goes_on) else {
            if self.streams.len() == STREAMS_MAX {
                let oldest = (0..STREAMS_MAX).min_by_key(|at| self.streams[*at].used).unwrap_or(0);
                self.streams.swap_remove(oldest);
            }
            // Most files are read from the start to the end.
            let window = if start == 0 { WINDOW_FIRST } else { 0 };
            let ahead = end.max(start.saturating_add(window));
            self.streams.push(Stream { next: end, ahead, window: WINDOW_FIRST, used });
            return (ahead > end).then_some(end..ahead);
        };
        stream.used = used;
        stream.next = stream.next.max(end);
        // The window is not extended for every read, only when half of it is used up.
        if stream.ahead >= stream.next.saturating_add(stream.window / 2) {
            return None;
        }
        stream.window = (stream.window * 2).min(WINDOW_MAX);
        let from = stream.ahead.max(end);
        stream.ahead = stream.next.saturating_add(stream.window).max(from);
        Some(from..stream.ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const READ: u64 = 128 << 10;

    #[test]
    fn a_stream_gets_a_window_that_doubles_and_is_asked_for_once() {
        let mut ahead = ReadAhead::default();
        let mut asked = Vec::new();
        let mut last = 0;
        for at in (0..200 * MIB).step_by(READ as usize) {
            if let Some(range) = ahead.note_read(at, at + READ) {
                assert!(range.start >= last, "{range:?} twice");
                last = range.end;
                asked.push(range.end - at);
            }
        }
        assert_eq!(asked[0], MIB, "a header costs a megabyte");
        assert!(
            asked.windows(2).all(|pair| pair[1] >= pair[0] || pair[1] > WINDOW_MAX / 2),
            "{asked:?}"
        );
        assert!(*asked.iter().max().unwrap_or(&0) <= WINDOW_MAX + MIB, "{asked:?}");
        assert!(
            asked.len() < 40,
            "windows are asked for in pieces worth a request: {}",
            asked.len()
        );
    }

    #[test]
    fn requests_side_by_side_and_several_streams_go_on() {
        let mut ahead = ReadAhead::default();
        let (mut first, mut second) = (0, 0);
        for step in 0..100 {
            // The reads come in swapped pairs, as the kernel's workers send them.
            let at = (step ^ 1) * READ;
            first += u64::from(ahead.note_read(at, at + READ).is_some());
            let at = (5 << 30) + step * READ;
            second += u64::from(ahead.note_read(at, at + READ).is_some());
        }
        assert!(first > 3 && second > 3, "{first} {second}");
    }

    #[test]
    fn what_jumps_about_gets_nothing_more() {
        let mut ahead = ReadAhead::default();
        for step in 1..1000_u64 {
            let at = step * 7919 % 1000 * 10 * MIB + MIB;
            assert_eq!(ahead.note_read(at, at + 4096), None);
        }
    }
}
