//! A stand-in for `FramedRead` that measures the memory that the decoder causes
//! to be allocated and copied.

use bytes::{BufMut, BytesMut};
use tokio_util::codec::Decoder;

/// A buffer, and the decoder that is called after every read into it.
pub(crate) struct Reader<D> {
    pub(crate) decoder: D,
    pub(crate) buffer: BytesMut,
    /// Largest capacity of the buffer so far, in bytes.
    pub(crate) capacity_max: usize,
    /// Bytes that were copied because the buffer was reallocated.
    pub(crate) moved: usize,
}

impl<D: Decoder> Reader<D> {
    pub(crate) fn new(decoder: D) -> Self {
        Self {
            decoder,
            buffer: BytesMut::with_capacity(8 * 1024),
            capacity_max: 0,
            moved: 0,
        }
    }

    /// Passes `bytes` to the decoder, in one read, or in several if the buffer
    /// has less room, and returns the decoded items.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<Vec<D::Item>, D::Error> {
        let mut items = Vec::new();
        self.read_into(bytes, &mut items)?;
        Ok(items)
    }

    /// As [`Self::read`], but keeps the items that precede an error.
    pub(crate) fn read_into(
        &mut self,
        mut bytes: &[u8],
        items: &mut Vec<D::Item>,
    ) -> Result<(), D::Error> {
        while !bytes.is_empty() {
            self.account(|reader| reader.buffer.reserve(1));
            let room = self.buffer.capacity() - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.put_slice(now);
            bytes = later;
            self.decode_into(items)?;
        }
        Ok(())
    }

    /// Calls the decoder until it returns `None`.
    pub(crate) fn decode(&mut self) -> Result<Vec<D::Item>, D::Error> {
        let mut items = Vec::new();
        self.decode_into(&mut items)?;
        Ok(items)
    }

    fn decode_into(&mut self, items: &mut Vec<D::Item>) -> Result<(), D::Error> {
        while let Some(item) = self.account(|reader| reader.decoder.decode(&mut reader.buffer))? {
            items.push(item);
        }
        Ok(())
    }

    fn account<R>(&mut self, step: impl FnOnce(&mut Self) -> R) -> R {
        let end = self.buffer.as_ptr_range().end;
        let result = step(self);
        if self.buffer.as_ptr_range().end != end {
            self.moved += self.buffer.len();
        }
        self.capacity_max = self.capacity_max.max(self.buffer.capacity());
        result
    }
}

/// Splits `bytes` at the given offsets, which may be in any order.
pub(crate) fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|&cut| cut.min(bytes.len())).collect();
    cuts.sort_unstable();
    let mut pieces = Vec::new();
    let mut start = 0;
    for cut in cuts.into_iter().chain([bytes.len()]) {
        pieces.extend(bytes.get(start..cut).filter(|piece| !piece.is_empty()));
        start = cut;
    }
    pieces
}
