//! Requests as bytes.

use super::body::Body;
use super::header::{Header, Kind, Role};
use super::{WireError, view};
use crate::replication::message::{PAYLOAD_BYTES_MAX, ROWS_MAX, Request};
use crate::replication::region::RegionIndex;
use crate::replication::view::ViewNumber;

/// A request, with what its header says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFrame {
    /// The view in which the writer asks.
    pub view: ViewNumber,
    /// What the reply will be known by.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

impl RequestFrame {
    /// Reads a request. The body of a `Write` is not read here: give an empty one, and read
    /// [`Header::body_bytes`] into an aligned buffer afterwards.
    ///
    /// Ranges are checked not to be empty and not to overflow; whether they lie in the volume, and on
    /// its sectors, is for those to check who know the volume.
    ///
    /// # Errors
    ///
    /// [`WireError`] when it is none.
    pub fn decode(header: &Header, body: &[u8]) -> Result<RequestFrame, WireError> {
        header.expect(Role::Request)?;
        let mut body = Body::new(header, body)?;
        let &Header { kind, durable, sparse, offset, .. } = header;
        let request = match kind {
            Kind::Accept => Request::Accept(view::decode(kind, body.remainder())?),
            Kind::Write => Request::Write { offset, len: header.body_bytes, durable, sparse },
            Kind::Zero => Request::Zero { offset, len: body.u64()?, durable },
            Kind::Flush => Request::Flush,
            Kind::Read => Request::Read { offset, len: body.u32()? },
            Kind::Digest => Request::Digest { offset, len: body.u32()? },
            Kind::Rows => {
                let count = body.u32()?;
                let first = u32::try_from(offset);
                let first = first.map_err(|_| WireError::Range { kind, offset, len: count.into() })?;
                Request::Rows { first: RegionIndex(first), count }
            }
            Kind::Settle => decode_settle(&mut body)?,
            // Of the kinds that `expect` lets through, the last.
            _ => Request::Ping,
        };
        body.end()?;
        check_range(kind, &request)?;
        Ok(RequestFrame { view: header.view, id: header.id, request })
    }
}

/// Appends the frame of a request, but for the payload of a `Write`, which has to follow.
///
/// # Errors
///
/// [`WireError`] when [`RequestFrame::decode`] would refuse it; then nothing is appended.
pub fn encode_request(view: ViewNumber, id: u64, request: &Request, out: &mut Vec<u8>) -> Result<(), WireError> {
    let header = |kind| Header { view, id, ..Header::of(kind) };
    match request {
        Request::Accept(accepted) => header(Kind::Accept).append(&view::encode(Kind::Accept, accepted)?, out),
        &Request::Write { offset, len, durable, sparse } => {
            check_range(Kind::Write, request)?;
            Header { offset, durable, sparse, body_bytes: len, ..header(Kind::Write) }.append(&[], out)
        }
        &Request::Zero { offset, len, durable } => {
            check_range(Kind::Zero, request)?;
            Header { offset, durable, ..header(Kind::Zero) }.append(&len.to_le_bytes(), out)
        }
        Request::Flush => header(Kind::Flush).append(&[], out),
        &Request::Read { offset, len } => {
            check_range(Kind::Read, request)?;
            Header { offset, ..header(Kind::Read) }.append(&len.to_le_bytes(), out)
        }
        &Request::Digest { offset, len } => {
            check_range(Kind::Digest, request)?;
            Header { offset, ..header(Kind::Digest) }.append(&len.to_le_bytes(), out)
        }
        Request::Rows { first, count } => {
            check_range(Kind::Rows, request)?;
            Header { offset: first.0.into(), ..header(Kind::Rows) }.append(&count.to_le_bytes(), out)
        }
        Request::Settle(regions) => {
            let mut body = Vec::with_capacity(regions.len() * SETTLED_BYTES);
            for (region, written) in regions {
                check_written(*written)?;
                body.extend_from_slice(&region.0.to_le_bytes());
                body.extend_from_slice(&written.0.to_le_bytes());
            }
            header(Kind::Settle).append(&body, out)
        }
        Request::Ping => header(Kind::Ping).append(&[], out),
    }
}

fn decode_settle(body: &mut Body<'_>) -> Result<Request, WireError> {
    let entries = body.arrays::<SETTLED_BYTES>().iter().map(|entry| {
        let [r0, r1, r2, r3, written @ ..] = *entry;
        let written = check_written(ViewNumber(u64::from_le_bytes(written)))?;
        Ok((RegionIndex(u32::from_le_bytes([r0, r1, r2, r3])), written))
    });
    entries.collect::<Result<_, _>>().map(Request::Settle)
}

/// That there can be such a view, or that it is none.
fn check_written(view: ViewNumber) -> Result<ViewNumber, WireError> {
    if view <= ViewNumber::MAX { Ok(view) } else { Err(WireError::ViewNumber { kind: Kind::Settle, view }) }
}

/// That a range has something in it, no more than a reply can hold, and an end that can be said.
fn check_range(kind: Kind, request: &Request) -> Result<(), WireError> {
    let (offset, len, len_max, end_max) = match *request {
        Request::Write { offset, len, .. } | Request::Read { offset, len } | Request::Digest { offset, len } => {
            (offset, len.into(), PAYLOAD_BYTES_MAX.into(), u64::MAX)
        }
        Request::Zero { offset, len, .. } => (offset, len, u64::MAX, u64::MAX),
        Request::Rows { first, count } => (first.0.into(), count.into(), ROWS_MAX.into(), u32::MAX.into()),
        _ => return Ok(()),
    };
    let possible = (1..=len_max).contains(&len) && offset.checked_add(len).is_some_and(|end| end <= end_max);
    if possible { Ok(()) } else { Err(WireError::Range { kind, offset, len }) }
}

/// Bytes of a region and a view in a settlement.
const SETTLED_BYTES: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::message::SETTLED_MAX;

    fn encode(request: &Request) -> Result<Vec<u8>, WireError> {
        let mut out = b"before".to_vec();
        let result = encode_request(ViewNumber(1), 2, request, &mut out);
        assert!(result.is_ok() || out == b"before", "what failed left bytes behind: {request:?}");
        result.map(|()| out.split_off(6))
    }

    #[test]
    fn impossible_ranges_are_neither_sent_nor_read() {
        let (durable, sparse) = (false, false);
        let first = RegionIndex(u32::MAX - 1);
        for request in [
            Request::Write { offset: 0, len: 0, durable, sparse },
            Request::Write { offset: 0, len: PAYLOAD_BYTES_MAX + 1, durable, sparse },
            Request::Write { offset: u64::MAX - 511, len: 512, durable, sparse },
            Request::Zero { offset: 1, len: u64::MAX, durable },
            Request::Zero { offset: 0, len: 0, durable },
            Request::Read { offset: u64::MAX, len: 512 },
            Request::Read { offset: 0, len: PAYLOAD_BYTES_MAX + 1 },
            Request::Read { offset: 0, len: 0 },
            Request::Digest { offset: u64::MAX, len: 512 },
            Request::Digest { offset: 0, len: PAYLOAD_BYTES_MAX + 1 },
            Request::Digest { offset: 0, len: 0 },
            Request::Rows { first, count: 2 },
            Request::Rows { first: RegionIndex(0), count: ROWS_MAX + 1 },
            Request::Rows { first: RegionIndex(0), count: 0 },
        ] {
            assert!(matches!(encode(&request), Err(WireError::Range { .. })), "{request:?}");
            let frame = raw(&request);
            let header = Header::parse(frame.first_chunk().unwrap());
            let decoded = header.and_then(|header| RequestFrame::decode(&header, &frame[32..]));
            assert!(
                matches!(decoded, Err(WireError::Range { .. } | WireError::BodyLength { .. })),
                "{request:?}: {decoded:?}"
            );
        }
        for request in [
            Request::Write { offset: u64::MAX - 512, len: 512, durable, sparse },
            Request::Zero { offset: 0, len: u64::MAX, durable },
            Request::Rows { first, count: 1 },
        ] {
            encode(&request).unwrap();
        }
    }

    #[test]
    fn a_settlement_has_a_bound() {
        let settle = |written, count| encode(&Request::Settle(vec![(RegionIndex(7), written); count]));
        assert_eq!(settle(ViewNumber::MAX, SETTLED_MAX).unwrap().len(), 32 + 12 * SETTLED_MAX);
        assert!(matches!(settle(ViewNumber(1), SETTLED_MAX + 1), Err(WireError::BodyLength { .. })));
        assert!(matches!(settle(ViewNumber::MAX.next(), 1), Err(WireError::ViewNumber { .. })));
        let mut frame = settle(ViewNumber::MAX, 1).unwrap();
        frame[43] = 0x80;
        let header = Header::parse(frame.first_chunk().unwrap()).unwrap();
        let decoded = RequestFrame::decode(&header, &frame[32..]);
        assert!(matches!(decoded, Err(WireError::ViewNumber { kind: Kind::Settle, .. })), "{decoded:?}");
    }

    /// The frame that a peer without these checks would send.
    fn raw(request: &Request) -> Vec<u8> {
        let (kind, offset, body_bytes, body) = match *request {
            Request::Write { offset, len, .. } => (Kind::Write, offset, len, vec![]),
            Request::Zero { offset, len, .. } => (Kind::Zero, offset, 8, len.to_le_bytes().to_vec()),
            Request::Read { offset, len } => (Kind::Read, offset, 4, len.to_le_bytes().to_vec()),
            Request::Digest { offset, len } => (Kind::Digest, offset, 4, len.to_le_bytes().to_vec()),
            Request::Rows { first, count } => (Kind::Rows, first.0.into(), 4, count.to_le_bytes().to_vec()),
            _ => unreachable!("requests without a range"),
        };
        let mut frame = vec![kind as u8, 0, 0, 0];
        frame.extend_from_slice(&body_bytes.to_le_bytes());
        frame.extend_from_slice(&[0; 16]);
        frame.extend_from_slice(&offset.to_le_bytes());
        frame.extend_from_slice(&body);
        frame
    }
}
