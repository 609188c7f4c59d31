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

/// A list without the range of a merged block.
#[derive(Debug, Default)]
pub(super) struct CutRuns {
    pub(super) list: RunList,
    /// The runs all of whose live blocks were merged.
    pub(super) dropped: Vec<BlockRun>,
    /// The run that was split in two. Since the units of the parts are unknown, both have
    /// all of them.
    pub(super) split: Option<BlockRun>,
}

impl RunList {
    /// Removes the blocks of a merged one from the runs, except from the beginning of a
    /// run: there, they are hidden by the merged block.
    pub(super) fn cut(self, first: u64, last: u64) -> CutRuns {
        let mut cut = CutRuns {
            list: Self {
                start: self.start,
                runs: Vec::with_capacity(self.runs.len() + 1),
            },
            ..CutRuns::default()
        };
        let mut before = self.start;
        for run in self.runs {
            let start = std::mem::replace(&mut before, run.last);
            let is_apart = run.last < first || last <= start;
            let begins_earlier = !is_apart && start + 1 < first;
            let ends_later = is_apart || last < run.last;
            if begins_earlier {
                cut.list.runs.push(BlockRun {
                    last: first - 1,
                    ..run
                });
            }
            match (begins_earlier, ends_later) {
                (true, true) => cut.split = Some(run),
                (false, false) => cut.dropped.push(run),
                _ => {}
            }
            if ends_later {
                cut.list.runs.push(run);
            }
        }
        cut
    }

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

    fn run(segment: SegmentId, last: u64) -> BlockRun {
        BlockRun {
            segment,
            last,
            units: last,
        }
    }

    #[track_caller]
    fn check_cut(
        range: (u64, u64),
        left: &[BlockRun],
        dropped: &[BlockRun],
        split: Option<BlockRun>,
    ) {
        let list = RunList {
            start: 10,
            runs: vec![run(3, 20), run(4, 30), run(5, 40)],
        };
        let cut = list.cut(range.0, range.1);
        let found = (cut.list.start, cut.list.runs, cut.dropped, cut.split);
        assert_eq!(found, (10, left.to_vec(), dropped.to_vec(), split));
    }

    #[test]
    fn merged_block_cuts_the_runs_in_its_range() {
        let part = |run: BlockRun, last| BlockRun { last, ..run };
        let (one, two, three) = (run(3, 20), run(4, 30), run(5, 40));
        check_cut((11, 20), &[two, three], &[one], None);
        check_cut((11, 15), &[one, two, three], &[], None);
        check_cut((11, 35), &[three], &[one, two], None);
        check_cut((15, 20), &[part(one, 14), two, three], &[], None);
        check_cut((15, 18), &[part(one, 14), one, two, three], &[], Some(one));
        check_cut((15, 30), &[part(one, 14), three], &[two], None);
        check_cut((21, 40), &[one], &[two, three], None);
        check_cut((41, 50), &[one, two, three], &[], None);
        check_cut((5, 9), &[one, two, three], &[], None);
    }

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
