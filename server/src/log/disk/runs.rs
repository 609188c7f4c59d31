//! The places of one inbox in sealed segments, in a few bytes for each segment.

use super::format::SegmentId;
use super::varint;

/// Consecutive blocks of an inbox in one segment: those with a last number above
/// the previous run's, up to its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockRun {
    pub(super) segment: SegmentId,
    /// The last number of the last block.
    pub(super) last: u64,
    /// Units of its blocks.
    pub(super) units: u64,
}

/// The runs of an inbox in order of their numbers, unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RunList {
    /// Blocks up to this number are dead.
    pub(super) start: u64,
    pub(super) runs: Vec<BlockRun>,
}

impl RunList {
    /// Packs the list into a buffer, in place of its content.
    pub(super) fn pack(&self, buffer: &mut Vec<u8>) {
        buffer.clear();
        varint::put(buffer, self.start);
        let (mut number, mut segment) = (self.start, 0);
        for run in &self.runs {
            varint::put_difference(buffer, run.segment.into(), segment);
            varint::put(buffer, run.last.wrapping_sub(number));
            varint::put(buffer, run.units);
            (number, segment) = (run.last, run.segment.into());
        }
    }

    /// Unpacks a list.
    pub(super) fn unpack(packed: &[u8]) -> Self {
        Self {
            start: packed_start(packed),
            runs: packed_runs(packed).map(|(_, run)| run).collect(),
        }
    }

    /// Appends a block that follows all others. It extends the last run if that
    /// is in the same segment and `is_adjacent`: no block of another segment,
    /// not even a recent one, lies between them.
    pub(super) fn push_block(&mut self, block: BlockRun, is_adjacent: bool) {
        match self.runs.last_mut() {
            Some(run) if is_adjacent && run.segment == block.segment => {
                run.last = block.last;
                run.units += block.units;
            }
            _ => self.runs.push(block),
        }
    }
}

/// Returns the start of a packed list.
pub(super) fn packed_start(mut packed: &[u8]) -> u64 {
    varint::take(&mut packed).unwrap_or(0)
}

/// Returns the runs of a packed list, each with the number above which it begins.
pub(super) fn packed_runs(packed: &[u8]) -> impl Iterator<Item = (u64, BlockRun)> {
    let mut rest = packed;
    let (mut number, mut segment) = (varint::take(&mut rest).unwrap_or(0), 0);
    std::iter::from_fn(move || {
        let start = number;
        segment = varint::take_difference(&mut rest, segment)?;
        number = number.wrapping_add(varint::take(&mut rest)?);
        let units = varint::take(&mut rest)?;
        Some((
            start,
            BlockRun {
                segment: segment as SegmentId,
                last: number,
                units,
            },
        ))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packed_runs_are_unpacked_as_they_were(
            start in 0u64..1 << 53,
            raw in prop::collection::vec((1u32..2000, 1u64..1 << 40, 1u64..5000), 0..20),
        ) {
            let mut list = RunList { start, runs: Vec::new() };
            let mut last = start;
            for (segment, step, units) in raw {
                last += step;
                list.push_block(BlockRun { segment, last, units }, units % 2 == 0);
            }
            let mut packed = Vec::new();
            list.pack(&mut packed);
            prop_assert_eq!(packed_start(&packed), start);
            let starts = std::iter::once(start).chain(list.runs.iter().map(|run| run.last));
            prop_assert!(packed_runs(&packed).eq(starts.zip(list.runs.iter().copied())));
            prop_assert_eq!(RunList::unpack(&packed), list);
        }
    }
}
