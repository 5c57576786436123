//! Reading a body from its first byte to its last, with no byte missing and none left over.

use uuid::Uuid;

use super::WireError;
use super::header::{Header, Kind};

/// The part of a body that is still to be read.
pub(super) struct Body<'a> {
    kind: Kind,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    /// The body that came after a header; empty when it is payload.
    ///
    /// # Errors
    ///
    /// [`WireError::BodyMismatch`] when it does not have the length that the header announces.
    pub(super) fn new(header: &Header, bytes: &'a [u8]) -> Result<Body<'a>, WireError> {
        let announced = if header.is_payload() { 0 } else { header.body_bytes as usize };
        if bytes.len() == announced {
            Ok(Body { kind: header.kind, rest: bytes })
        } else {
            Err(WireError::BodyMismatch { kind: header.kind })
        }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(WireError::BodyMismatch { kind: self.kind })?;
        self.rest = rest;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let bytes = self.bytes(N)?;
        Ok(std::array::from_fn(|index| bytes[index]))
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn uuid(&mut self) -> Result<Uuid, WireError> {
        self.array().map(Uuid::from_bytes)
    }

    /// Everything that is left.
    pub(super) fn remainder(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// What is left, cut into arrays. Its length is a multiple of `N` by the rules of the header; what
    /// would be left over is refused by [`end`](Self::end).
    pub(super) fn arrays<const N: usize>(&mut self) -> &'a [[u8; N]] {
        let (arrays, rest) = self.rest.as_chunks();
        self.rest = rest;
        arrays
    }

    /// That nothing is left.
    pub(super) fn end(&self) -> Result<(), WireError> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::BodyMismatch { kind: self.kind }) }
    }
}
