//! Reads the frames of a segment, and distinguishes a torn write from damage at their
//! end.

use super::format::{FRAME_ALIGNMENT, FRAMES_START, FrameHead, FrameLink, FrameView, Salt};
use super::meta::Meta;

/// A frame and its offset.
#[derive(Debug)]
pub(super) struct Placed<'a> {
    /// From the beginning of the segment.
    pub(super) offset: u64,
    pub(super) frame: FrameView<'a>,
    pub(super) meta: Meta,
}

/// Damage of data that was on stable storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damage {
    /// The offset in the segment.
    pub(super) offset: u64,
}

/// The frames of a segment, in order, from the bytes of the whole segment.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    bytes: &'a [u8],
    salt: Salt,
    /// The offset of the next frame.
    pub(super) offset: u64,
    /// The previous frame.
    pub(super) link: FrameLink,
}

impl<'a> Frames<'a> {
    /// Reads from the beginning of a segment, whose first frame follows `link`.
    pub(super) fn new(bytes: &'a [u8], salt: Salt, link: FrameLink) -> Self {
        Self {
            bytes,
            salt,
            offset: FRAMES_START,
            link,
        }
    }

    /// Returns the next frame if it is valid and follows in the chain. Its blocks may be
    /// damaged. Does not advance otherwise.
    pub(super) fn next(&mut self) -> Option<Placed<'a>> {
        let rest = self.bytes.get(usize::try_from(self.offset).ok()?..)?;
        let frame = FrameView::decode(rest, self.salt)?;
        let meta = Meta::decode(frame.meta)?;
        if frame.head.previous != self.link.check
            || frame.head.commit != self.link.commit.wrapping_add(1)
        {
            return None;
        }
        let offset = self.offset;
        self.link = frame.link();
        self.offset += u64::from(frame.head.length);
        Some(Placed {
            offset,
            frame,
            meta,
        })
    }

    /// Returns whether a part of the next frame was written.
    pub(super) fn has_torn_end(&self) -> bool {
        let rest = usize::try_from(self.offset)
            .ok()
            .and_then(|offset| self.bytes.get(offset..));
        rest.and_then(|rest| FrameHead::decode(rest, self.salt))
            .is_some_and(|head| head.commit == self.link.commit.wrapping_add(1))
    }

    /// Returns whether a later frame proves that the frame at this offset was on stable
    /// storage.
    fn is_followed(&self) -> bool {
        let expected = self.link.commit.wrapping_add(1);
        let mut offset = self.offset as usize;
        while let Some(rest) = self.bytes.get(offset..).filter(|rest| !rest.is_empty()) {
            if let Some(head) = FrameHead::decode(rest, self.salt)
                && head.commit > expected
                && head.synced >= expected
                && FrameView::decode(rest, self.salt).is_some_and(|frame| frame.is_intact())
            {
                return true;
            }
            offset += FRAME_ALIGNMENT;
        }
        false
    }
}

/// Visits the frames of a segment whose frames end at `end`.
pub(super) fn scan_known<'a>(
    frames: &mut Frames<'a>,
    end: u64,
    visit: &mut dyn FnMut(Placed<'a>),
) -> Result<(), Damage> {
    while frames.offset < end {
        let damage = Damage {
            offset: frames.offset,
        };
        visit(frames.next().ok_or(damage)?);
    }
    if frames.offset == end {
        Ok(())
    } else {
        Err(Damage { offset: end })
    }
}

/// Returns the frames of the last segment, up to the first that is not valid.
///
/// The invalid frame was torn, or never written, unless a valid frame after it was
/// written when it was already on stable storage. A frame in which only a text is
/// damaged is kept if it is known to have been whole: up to commit `carried`, or
/// because of a later frame.
pub(super) fn scan_tail<'a>(
    frames: &mut Frames<'a>,
    carried: u64,
) -> Result<Vec<Placed<'a>>, Damage> {
    let link = frames.link;
    let mut placed: Vec<_> = std::iter::from_fn(|| frames.next()).collect();
    let torn = placed.iter().enumerate().position(|(number, one)| {
        let mut behind = placed.iter().skip(number + 1);
        let commit = one.frame.head.commit;
        commit > carried
            && !one.frame.is_intact()
            && !behind.any(|other| other.frame.is_intact() && other.frame.head.synced >= commit)
    });
    if let Some(torn) = torn {
        frames.offset = placed.get(torn).map_or(frames.offset, |one| one.offset);
        placed.truncate(torn);
        frames.link = placed.last().map_or(link, |last| last.frame.link());
    }
    if frames.is_followed() {
        Err(Damage {
            offset: frames.offset,
        })
    } else {
        Ok(placed)
    }
}
