//! Replies as bytes.

use super::WireError;
use super::body::Body;
use super::header::{Header, Kind, Role};
use crate::replication::message::Reply;
use crate::replication::region::Row;
use crate::replication::view::ViewNumber;

/// A reply, and which request it is to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyFrame {
    /// That of the request.
    pub id: u64,
    /// The answer.
    pub reply: Reply,
}

impl ReplyFrame {
    /// Reads a reply. The body of a `Data` is not read here: give an empty one, see that
    /// [`Header::body_bytes`] is what was asked for, and read as much to where it is wanted.
    ///
    /// # Errors
    ///
    /// [`WireError`] when it is none.
    pub fn decode(header: &Header, body: &[u8]) -> Result<ReplyFrame, WireError> {
        header.expect(Role::Reply)?;
        let mut body = Body::new(header, body)?;
        let reply = match header.kind {
            Kind::Data => Reply::Data,
            Kind::Zeros => Reply::Zeros,
            Kind::DigestOf => Reply::DigestOf(body.array()?),
            Kind::RowList => {
                Reply::Rows(body.arrays().iter().map(|bits| Row::from_bits(u64::from_le_bytes(*bits))).collect())
            }
            Kind::Failed => Reply::Failed(check_error_number(body.u32()? as i32)?),
            Kind::Superseded => Reply::Superseded(header.view),
            // Of the kinds that `expect` lets through, the last.
            _ => Reply::Done,
        };
        body.end()?;
        Ok(ReplyFrame { id: header.id, reply })
    }
}

/// Appends the frame of a reply, but for the payload of a `Data`, which has to follow and is
/// `payload_bytes` long. For other replies that is not looked at.
///
/// # Errors
///
/// [`WireError`] when [`ReplyFrame::decode`] would refuse it; then nothing is appended.
pub fn encode_reply(id: u64, reply: &Reply, payload_bytes: u32, out: &mut Vec<u8>) -> Result<(), WireError> {
    let header = |kind| Header { id, ..Header::of(kind) };
    match reply {
        Reply::Done => header(Kind::Done).append(&[], out),
        Reply::Zeros => header(Kind::Zeros).append(&[], out),
        Reply::Data => Header { body_bytes: payload_bytes, ..header(Kind::Data) }.append(&[], out),
        Reply::DigestOf(digest) => header(Kind::DigestOf).append(digest, out),
        Reply::Rows(rows) => {
            if rows.iter().any(|row| row.written > ViewNumber::MAX) {
                return Err(WireError::Field { kind: Kind::RowList, field: "row" });
            }
            let body: Vec<u8> = rows.iter().flat_map(|row| row.to_bits().to_le_bytes()).collect();
            header(Kind::RowList).append(&body, out)
        }
        Reply::Failed(error) => header(Kind::Failed).append(&check_error_number(*error)?.to_le_bytes(), out),
        Reply::Superseded(view) => Header { view: *view, ..header(Kind::Superseded) }.append(&[], out),
    }
}

/// That a number can be one of errno(3): 0 would be told to people as success.
fn check_error_number(error: i32) -> Result<i32, WireError> {
    if (1..=ERROR_NUMBER_MAX).contains(&error) {
        Ok(error)
    } else {
        Err(WireError::Field { kind: Kind::Failed, field: "error number" })
    }
}

/// The highest that Linux gives out.
const ERROR_NUMBER_MAX: i32 = 4095;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::message::{PAYLOAD_BYTES_MAX, ROWS_MAX};

    fn encode(reply: &Reply, payload_bytes: u32) -> Result<Vec<u8>, WireError> {
        let mut out = Vec::new();
        let result = encode_reply(1, reply, payload_bytes, &mut out);
        assert!(result.is_ok() || out.is_empty(), "what failed left bytes behind: {reply:?}");
        result.map(|()| out)
    }

    #[test]
    fn replies_have_bounds() {
        assert_eq!(encode(&Reply::Data, PAYLOAD_BYTES_MAX).unwrap().len(), 32);
        for payload_bytes in [0, PAYLOAD_BYTES_MAX + 1] {
            assert!(matches!(encode(&Reply::Data, payload_bytes), Err(WireError::BodyLength { .. })));
        }
        let rows = |count: u32| encode(&Reply::Rows(vec![Row::default(); count as usize]), 0);
        assert_eq!(rows(ROWS_MAX).unwrap().len(), 32 + 8 * ROWS_MAX as usize);
        assert!(matches!(rows(ROWS_MAX + 1), Err(WireError::BodyLength { .. })));
        for error in [0, -5, 4096, i32::MIN] {
            assert!(matches!(encode(&Reply::Failed(error), 0), Err(WireError::Field { .. })), "{error}");
        }
        let beyond = ViewNumber::MAX.next();
        assert!(matches!(encode(&Reply::Superseded(beyond), 0), Err(WireError::ViewNumber { .. })));
        let row = Row { written: beyond, intent: false };
        assert!(matches!(encode(&Reply::Rows(vec![row]), 0), Err(WireError::Field { .. })));
    }
}
