//! The places of one inbox in sealed segments, in a few bytes for each segment.

use super::format::SegmentId;
use super::varint;
use crate::log::InboxId;

/// The low bits of a packed number of units: the difference of the segment to the one
/// before, or zero if that does not fit and follows.
const STEP_BITS: u32 = 2;
const STEP_MAX: u64 = (1 << STEP_BITS) - 1;

/// Consecutive blocks of an inbox in one segment: those with a last number above
/// the previous run's, up to its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlockRun {
    pub(super) segment: SegmentId,
    /// The last number of the last block.
    pub(super) last: u64,
    /// Units of its blocks. The parts of a run that was cut have estimates: from any run
    /// on, those of a segment have at least their live units.
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
    /// Runs whose units their segments get, and those whose units they lose after that.
    pub(super) added: Vec<BlockRun>,
    pub(super) removed: Vec<BlockRun>,
}

impl RunList {
    /// Removes the blocks of a merged one from the runs, except from the beginning of a
    /// run: there, they are hidden by the merged block. They have at least `units`.
    ///
    /// Of a split run, only the sum of the units is known. The second part gets them,
    /// because it is released last; the first part gets one.
    pub(super) fn cut(self, first: u64, last: u64, units: u64) -> CutRuns {
        let is_apart = |start: u64, run: &BlockRun| run.last < first || last <= start;
        let starts = std::iter::once(self.start).chain(self.runs.iter().map(|run| run.last));
        let cut_count = starts
            .zip(&self.runs)
            .filter(|(start, run)| !is_apart(*start, run))
            .count();
        // Among several runs, the distribution of the units is unknown.
        let dead = if cut_count == 1 { units } else { 0 };
        let mut cut = CutRuns::default();
        cut.list.start = self.start;
        let runs = &mut cut.list.runs;
        let mut before = self.start;
        for run in self.runs {
            let start = std::mem::replace(&mut before, run.last);
            if is_apart(start, &run) {
                runs.push(run);
                continue;
            }
            let left = run.units.saturating_sub(dead);
            let part = |last, units| BlockRun { last, units, ..run };
            let (begins_earlier, ends_later) = (start + 1 < first, last < run.last);
            let parts = match (begins_earlier, ends_later) {
                (true, true) => vec![part(first - 1, 1), part(run.last, left.max(1))],
                (true, false) => vec![part(first - 1, left.max(1))],
                (false, true) => vec![part(run.last, left.max(1))],
                (false, false) => {
                    // An earlier part of the run has only an estimate.
                    let earlier = runs.iter_mut().rfind(|part| part.segment == run.segment);
                    if let Some(earlier) = earlier {
                        earlier.units += left;
                        cut.added.push(part(run.last, left));
                    }
                    Vec::new()
                }
            };
            cut.removed.push(run);
            cut.added.extend(&parts);
            runs.extend(parts);
        }
        cut
    }

    /// Packs the list of an inbox into a buffer, in place of its content.
    pub(super) fn pack(&self, inbox: InboxId, buffer: &mut Vec<u8>) {
        buffer.clear();
        // The numbers of an inbox begin after that of its account.
        varint::put_difference(buffer, self.start, inbox);
        let (mut number, mut segment) = (self.start, 0);
        for run in &self.runs {
            let id = u64::from(run.segment);
            let step = id.checked_sub(segment).filter(|step| *step <= STEP_MAX);
            let step = step.unwrap_or(0);
            varint::put(buffer, (run.units << STEP_BITS) | step);
            if step == 0 {
                varint::put_difference(buffer, id, segment);
            }
            varint::put(buffer, run.last.wrapping_sub(number));
            (number, segment) = (run.last, id);
        }
    }

    /// Unpacks the list of an inbox.
    pub(super) fn unpack(inbox: InboxId, packed: &[u8]) -> Self {
        Self {
            start: packed_start(inbox, packed),
            runs: packed_runs(inbox, packed).map(|(_, run)| run).collect(),
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

/// Returns the start of the packed list of an inbox.
pub(super) fn packed_start(inbox: InboxId, mut packed: &[u8]) -> u64 {
    varint::take_difference(&mut packed, inbox).unwrap_or(0)
}

/// Returns the runs of the packed list of an inbox, each with the number above which it
/// begins.
pub(super) fn packed_runs(inbox: InboxId, packed: &[u8]) -> impl Iterator<Item = (u64, BlockRun)> {
    let mut rest = packed;
    let start = varint::take_difference(&mut rest, inbox);
    let (mut number, mut segment) = (start.unwrap_or(0), 0);
    std::iter::from_fn(move || {
        let start = number;
        let units = varint::take(&mut rest)?;
        segment = match units & STEP_MAX {
            0 => varint::take_difference(&mut rest, segment)?,
            step => segment + step,
        };
        number = number.wrapping_add(varint::take(&mut rest)?);
        Some((
            start,
            BlockRun {
                segment: segment as SegmentId,
                last: number,
                units: units >> STEP_BITS,
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

    /// Cuts the runs 3, 4 and 5, which end at 20, 30 and 40 and have as many units, and
    /// compares the list, and the change of the units of all segments.
    #[track_caller]
    fn check_cut(range: (u64, u64), units: u64, left: &[BlockRun]) {
        let list = RunList {
            start: 10,
            runs: vec![run(3, 20), run(4, 30), run(5, 40)],
        };
        let cut = list.clone().cut(range.0, range.1, units);
        assert_eq!((cut.list.start, &*cut.list.runs), (10, left));
        check_units(&list, &cut);
    }

    /// The units of each segment are those of its runs.
    #[track_caller]
    fn check_units(before: &RunList, cut: &CutRuns) {
        for segment in 3..6 {
            let sum = |runs: &[BlockRun]| {
                let runs = runs.iter().filter(|run| run.segment == segment);
                runs.map(|run| run.units).sum::<u64>()
            };
            let after = sum(&before.runs) + sum(&cut.added) - sum(&cut.removed);
            assert_eq!(after, sum(&cut.list.runs), "segment {segment}");
        }
    }

    #[test]
    fn merged_block_cuts_the_runs_in_its_range() {
        let part = |segment, last, units| BlockRun {
            segment,
            last,
            units,
        };
        let (one, two, three) = (run(3, 20), run(4, 30), run(5, 40));
        check_cut((11, 20), 5, &[two, three]);
        check_cut((11, 15), 5, &[part(3, 20, 15), two, three]);
        check_cut((11, 35), 5, &[three]);
        check_cut((15, 20), 5, &[part(3, 14, 15), two, three]);
        check_cut((15, 20), 50, &[part(3, 14, 1), two, three]);
        let split = [part(3, 14, 1), part(3, 20, 16)];
        check_cut((15, 18), 4, &[&split[..], &[two, three]].concat());
        check_cut((15, 30), 5, &[part(3, 14, 20), three]);
        check_cut((21, 40), 5, &[one]);
        check_cut((41, 50), 5, &[one, two, three]);
        check_cut((5, 9), 5, &[one, two, three]);
    }

    #[test]
    fn units_of_a_merged_part_are_kept_by_the_part_before() {
        let list = RunList {
            start: 10,
            runs: vec![run(3, 20)],
        };
        let split = list.cut(15, 18, 4).list;
        let cut = split.clone().cut(15, 20, 3);
        let first = BlockRun {
            last: 14,
            units: 1 + 16 - 3,
            ..run(3, 20)
        };
        assert_eq!(cut.list.runs, [first]);
        check_units(&split, &cut);
    }

    proptest! {
        #[test]
        fn packed_runs_are_unpacked_as_they_were(
            inbox in 0u64..1 << 53,
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
            list.pack(inbox, &mut packed);
            prop_assert_eq!(packed_start(inbox, &packed), start);
            let starts = std::iter::once(start).chain(list.runs.iter().map(|run| run.last));
            prop_assert!(packed_runs(inbox, &packed).eq(starts.zip(list.runs.iter().copied())));
            prop_assert_eq!(RunList::unpack(inbox, &packed), list);
        }
    }
}
