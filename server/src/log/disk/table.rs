//! The index frame of a sealed segment: the locations of its blocks, sorted by inbox and
//! number, in pages that are read one at a time.
//!
//! It is derived from the frames: if it is missing or a page is damaged, an open reads
//! the frames instead.

use std::io;

use super::file::{StorageFile, read_exact};
use super::format::{DOMAIN_INDEX, Extent, Salt, SegmentId, take_u64};
use super::recent::BlockRef;
use super::varint;
use crate::log::InboxId;

/// Bytes of a page: a checksum, then entries, then zeros.
pub(super) const PAGE_BYTES: usize = 4096;
const PAGE_HEAD: usize = 8 + 2;
/// The longest entry.
const ENTRY_MAX: usize = 5 * varint::MAX_BYTES;
/// Bytes of the footer, at the end of the segment.
pub(super) const FOOTER_BYTES: usize = 48;
const FOOTER_MAGIC: u64 = u64::from_le_bytes(*b"harkidx3");

/// A block in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BlockEntry {
    pub(super) inbox: InboxId,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) extent: Extent,
}

/// Returns the maximum size of an index frame, given the sum of [`max_entry_bytes`] of
/// its entries.
pub(super) fn max_bytes(entries: usize) -> usize {
    let pages = entries.div_ceil(PAGE_BYTES - PAGE_HEAD - ENTRY_MAX);
    // One page for the alignment of the first.
    (pages + 1) * PAGE_BYTES + FOOTER_BYTES
}

/// Returns the maximum size of an entry, with some margin.
pub(super) fn max_entry_bytes(inbox: InboxId) -> usize {
    let inbox = (71 - (inbox | 1).leading_zeros() as usize) / 7;
    // First, last - first, offset, and length.
    inbox + varint::MAX_BYTES + 3 + 6 + 5
}

/// An index frame in memory: the location and the first key of each page.
#[derive(Debug)]
pub(super) struct Table {
    offset: u64,
    fences: Vec<(InboxId, u64)>,
}

/// An encoded index frame.
#[derive(Debug)]
pub(super) struct EncodedTable {
    pub(super) table: Table,
    pub(super) pages: Vec<u8>,
    pub(super) footer: Vec<u8>,
}

impl Table {
    /// Encodes the index frame of a segment whose frames end at `end`, from
    /// entries that are sorted.
    pub(super) fn encode(entries: &[BlockEntry], salt: Salt, end: u64) -> EncodedTable {
        let mut table = Self {
            offset: end.next_multiple_of(PAGE_BYTES as u64),
            fences: Vec::new(),
        };
        let mut pages = Vec::new();
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let begin = pages.len();
            pages.resize(begin + PAGE_HEAD, 0);
            let mut before = BlockEntry::ZERO;
            let mut count = 0;
            for entry in rest {
                if pages.len() - begin > PAGE_BYTES - ENTRY_MAX {
                    break;
                }
                entry.encode(&before, &mut pages);
                (before, count) = (*entry, count + 1);
            }
            rest = rest.get(count..).unwrap_or_default();
            pages.resize(begin + PAGE_BYTES, 0);
            let number = table.fences.len() as u64;
            if let Some((check, content)) = pages
                .get_mut(begin..)
                .and_then(|page| page.split_first_chunk_mut::<8>())
            {
                if let Some(slot) = content.first_chunk_mut::<2>() {
                    *slot = (count as u16).to_le_bytes();
                }
                *check = salt.check(DOMAIN_INDEX + number, content).to_le_bytes();
            }
            table.fences.push((first.inbox, first.first));
        }
        let footer = table.encode_footer(salt, end, entries.len() as u64);
        EncodedTable {
            table,
            pages,
            footer,
        }
    }

    fn encode_footer(&self, salt: Salt, end: u64, entries: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(FOOTER_BYTES);
        for value in [
            FOOTER_MAGIC,
            end,
            self.offset,
            self.fences.len() as u64,
            entries,
        ] {
            bytes.extend(value.to_le_bytes());
        }
        bytes.extend(salt.check(DOMAIN_INDEX - 1, &bytes).to_le_bytes());
        bytes
    }

    /// Returns the offset of the pages.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the number of pages.
    pub(super) fn page_count(&self) -> usize {
        self.fences.len()
    }

    /// Loads and verifies the index frame of a segment of `size` bytes whose frames end
    /// at `end`. Returns `None` if there is no intact one.
    pub(super) fn load(
        file: &dyn StorageFile,
        salt: Salt,
        size: u64,
        end: u64,
    ) -> io::Result<Option<Self>> {
        let Some(footer) = size.checked_sub(FOOTER_BYTES as u64) else {
            return Ok(None);
        };
        let bytes = match read_exact(file, footer, FOOTER_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            bytes => bytes?,
        };
        let Some((offset, count)) = decode_footer(&bytes, salt, size, end) else {
            return Ok(None);
        };
        let mut table = Self {
            offset,
            fences: Vec::with_capacity(count),
        };
        for begin in (0..count).step_by(CHUNK_PAGES) {
            let length = PAGE_BYTES * CHUNK_PAGES.min(count - begin);
            let chunk = read_exact(file, offset + (begin * PAGE_BYTES) as u64, length)?;
            for (page, number) in chunk.chunks(PAGE_BYTES).zip(begin..) {
                let first = verify_page(page, salt, number)
                    .and_then(|(_, mut rest)| BlockEntry::decode(&BlockEntry::ZERO, &mut rest));
                let Some(first) = first else { return Ok(None) };
                table.fences.push((first.inbox, first.first));
            }
        }
        Ok(Some(table))
    }

    /// Returns the inbox and the first number of the first entry of each page.
    pub(super) fn fences(&self) -> &[(InboxId, u64)] {
        &self.fences
    }

    /// Reads one page; `None` if it is damaged.
    pub(super) fn page(
        &self,
        file: &dyn StorageFile,
        salt: Salt,
        number: usize,
    ) -> io::Result<Option<Vec<BlockEntry>>> {
        let page = read_exact(file, self.offset + (number * PAGE_BYTES) as u64, PAGE_BYTES)?;
        let mut entries = Vec::new();
        Ok(decode_page(&page, salt, number, &mut entries).map(|()| entries))
    }

    /// Returns the page with the first entry of `inbox` above `after`, if there is one.
    pub(super) fn find(&self, inbox: InboxId, after: u64) -> usize {
        let key = (inbox, after.saturating_add(1));
        self.fences
            .partition_point(|fence| *fence <= key)
            .saturating_sub(1)
    }

    /// Returns whether a page may hold an entry of `inbox`.
    pub(super) fn may_hold(&self, number: usize, inbox: InboxId) -> bool {
        self.fences
            .get(number)
            .is_some_and(|fence| fence.0 <= inbox)
    }
}

/// Pages read at once from an index frame that is read as a whole; and from all index
/// frames together, if many are read in parallel. The entries of a page take up to
/// 20 KiB in memory.
const CHUNK_PAGES: usize = 32;
const CHUNK_PAGES_OF_ALL: usize = 128;

/// Reads an index frame as a whole, in order.
#[derive(Debug)]
pub(super) struct TableReader<'a> {
    table: Option<&'a Table>,
    file: &'a dyn StorageFile,
    salt: Salt,
    /// Pages that are read at once.
    chunk_pages: usize,
    /// The next page.
    page: usize,
    entries: Vec<BlockEntry>,
    /// The next entry.
    entry: usize,
}

impl<'a> TableReader<'a> {
    /// Returns one of `readers` readers that work in parallel.
    pub(super) fn new(
        table: Option<&'a Table>,
        file: &'a dyn StorageFile,
        salt: Salt,
        readers: usize,
    ) -> Self {
        let chunk_pages = (CHUNK_PAGES_OF_ALL / readers.max(1)).clamp(1, CHUNK_PAGES);
        Self {
            table,
            file,
            salt,
            chunk_pages,
            page: 0,
            entries: Vec::new(),
            entry: 0,
        }
    }

    /// Continues with the first entry that is not below a key.
    pub(super) fn skip_below(&mut self, key: (InboxId, u64)) -> io::Result<()> {
        let page = |table: &Table| {
            table
                .fences
                .partition_point(|fence| *fence <= key)
                .saturating_sub(1)
        };
        self.page = self.table.map_or(0, page);
        self.take_below(Some(key), &mut |_| {})
    }

    /// Takes the entries below a key, or all if there is none.
    pub(super) fn take_below(
        &mut self,
        bound: Option<(InboxId, u64)>,
        take: &mut dyn FnMut(BlockEntry),
    ) -> io::Result<()> {
        loop {
            let rest = self.entries.get(self.entry..).unwrap_or_default();
            for entry in rest {
                if bound.is_some_and(|bound| (entry.inbox, entry.first) >= bound) {
                    return Ok(());
                }
                take(*entry);
                self.entry += 1;
            }
            if !self.read()? {
                return Ok(());
            }
        }
    }

    /// Reads the next pages. Returns whether there are any.
    fn read(&mut self) -> io::Result<bool> {
        self.entry = 0;
        self.entries.clear();
        let Some(table) = self.table.filter(|table| self.page < table.page_count()) else {
            return Ok(false);
        };
        let count = self.chunk_pages.min(table.page_count() - self.page);
        let offset = table.offset + (self.page * PAGE_BYTES) as u64;
        let chunk = read_exact(self.file, offset, count * PAGE_BYTES)?;
        for (page, number) in chunk.chunks(PAGE_BYTES).zip(self.page..) {
            // The page was intact when it was loaded.
            decode_page(page, self.salt, number, &mut self.entries)
                .ok_or(io::ErrorKind::InvalidData)?;
        }
        self.page += count;
        Ok(true)
    }
}

impl BlockEntry {
    /// Returns the location of the block in a segment.
    pub(super) fn place(self, segment: SegmentId) -> BlockRef {
        BlockRef {
            first: self.first,
            last: self.last,
            segment,
            extent: self.extent,
        }
    }

    const ZERO: Self = Self {
        inbox: 0,
        first: 0,
        last: 0,
        extent: Extent {
            offset: 0,
            length: 0,
        },
    };

    fn encode(&self, before: &Self, bytes: &mut Vec<u8>) {
        varint::put(bytes, self.inbox.wrapping_sub(before.inbox));
        varint::put_difference(bytes, self.first, before.last);
        varint::put(bytes, self.last.wrapping_sub(self.first));
        varint::put_difference(bytes, self.extent.offset.into(), before.extent.end());
        varint::put(bytes, self.extent.length.into());
    }

    fn decode(before: &Self, bytes: &mut &[u8]) -> Option<Self> {
        let inbox = before.inbox.checked_add(varint::take(bytes)?)?;
        let first = varint::take_difference(bytes, before.last)?;
        let last = first.checked_add(varint::take(bytes)?)?;
        let offset = varint::take_difference(bytes, before.extent.end())?
            .try_into()
            .ok()?;
        let length = varint::take_u32(bytes)?;
        Some(Self {
            inbox,
            first,
            last,
            extent: Extent { offset, length },
        })
    }
}

impl Extent {
    /// Returns the end of the block in the segment.
    pub(super) fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }
}

fn decode_footer(bytes: &[u8], salt: Salt, size: u64, end: u64) -> Option<(u64, usize)> {
    let (body, check) = bytes.split_last_chunk::<8>()?;
    if salt.check(DOMAIN_INDEX - 1, body) != u64::from_le_bytes(*check) {
        return None;
    }
    let rest = &mut { body };
    let (magic, frames_end, offset, count) = (
        take_u64(rest)?,
        take_u64(rest)?,
        take_u64(rest)?,
        take_u64(rest)?,
    );
    let pages_end = count.checked_mul(PAGE_BYTES as u64)?.checked_add(offset)?;
    let is_valid = magic == FOOTER_MAGIC && frames_end == end && offset >= end && pages_end <= size;
    is_valid.then_some((offset, usize::try_from(count).ok()?))
}

/// Returns the number of entries of a page and their bytes, if it is intact.
fn verify_page(page: &[u8], salt: Salt, number: usize) -> Option<(u16, &[u8])> {
    let (check, content) = page.split_first_chunk::<8>()?;
    if salt.check(DOMAIN_INDEX + number as u64, content) != u64::from_le_bytes(*check) {
        return None;
    }
    let (count, entries) = content.split_first_chunk::<2>()?;
    Some((u16::from_le_bytes(*count), entries))
}

fn decode_page(
    page: &[u8],
    salt: Salt,
    number: usize,
    entries: &mut Vec<BlockEntry>,
) -> Option<()> {
    let (count, mut rest) = verify_page(page, salt, number)?;
    let mut before = BlockEntry::ZERO;
    for _ in 0..count {
        before = BlockEntry::decode(&before, &mut rest)?;
        entries.push(before);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pages_are_read_as_written(
            raw in prop::collection::vec((0u64..50, 0u64..1 << 53, 0u64..1000, any::<u32>(), any::<u32>()), 0..900),
        ) {
            let mut entries: Vec<_> = raw
                .into_iter()
                .map(|(inbox, first, span, offset, length)| BlockEntry {
                    inbox: inbox << 40, first, last: first + span, extent: Extent { offset, length },
                })
                .collect();
            entries.sort_unstable();
            let salt = Salt::random();
            let encoded = Table::encode(&entries, salt, 9000);
            let bound: usize = entries.iter().map(|entry| max_entry_bytes(entry.inbox)).sum();
            prop_assert!(encoded.pages.len() + FOOTER_BYTES <= max_bytes(bound));
            let mut read = Vec::new();
            for (number, page) in encoded.pages.chunks(PAGE_BYTES).enumerate() {
                prop_assert!(decode_page(page, salt, number, &mut read).is_some());
                prop_assert!(decode_page(page, salt, number + 1, &mut Vec::new()).is_none());
            }
            prop_assert_eq!(read, entries);
            let size = 1 << 30;
            let footer = decode_footer(&encoded.footer, salt, size, 9000);
            prop_assert_eq!(footer, Some((12288, encoded.table.page_count())));
            prop_assert_eq!(decode_footer(&encoded.footer, Salt::random(), size, 9000), None);
            prop_assert_eq!(decode_footer(&encoded.footer, salt, size, 9008), None);
        }
    }
}
