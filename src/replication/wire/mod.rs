//! The bytes of replication: what [`message`](super::message) means, as frames. `docs/protocol.md` is the
//! specification.
//!
//! A frame is a [`Header`] of 32 bytes and a body. Whoever reads a connection takes 32 bytes, parses
//! them, asks with [`Header::expect`] whether such a frame may come there, and then takes as many bytes
//! as the header announces: the sectors of a `Write` or a `Data` to an aligned buffer, anything else to
//! a small one that goes to a decoder. No socket is seen here.
//!
//! The peer has a certificate and is not trusted further. Invariants: nothing it sends makes this code
//! panic; nothing is kept that is larger than the bound of the frame's kind; each field has one meaning
//! and each unused one is zero, so that what is decoded and encoded again has the same bytes (the JSON
//! of a view aside). What is not so is a [`WireError`], and the end of the connection.
//!
//! | file | what it is |
//! | --- | --- |
//! | `version` | which protocol is spoken, and what changed in each |
//! | `header` | the 32 bytes, and the rules of each kind |
//! | `opening` | the first frames: hello, create, describe, and their answers |
//! | `refusal` | why a replica lets a writer not in |
//! | `request`, `reply` | all later frames |
//! | `view` | a view as JSON |
//! | `body` | reading a body to its end |

mod body;
mod error;
mod header;
mod opening;
mod refusal;
mod reply;
mod request;
mod version;
mod view;

pub use error::WireError;
pub use header::{HEADER_BYTES, Header, Kind, Role};
pub use opening::{Answer, MAGIC, Opening, SUPERBLOCK_BYTES_MAX};
pub use refusal::{REFUSAL_TEXT_BYTES_MAX, Refusal, RefusalCode};
pub use reply::{ReplyFrame, encode_reply};
pub use request::{RequestFrame, encode_request};
pub use version::ProtocolVersion;
pub use view::VIEW_BYTES_MAX;

/// Reads `bytes` as a header and the body after it, which for payload is what the header says of it: the
/// entry of the fuzz target `replication`. Whether they are a frame.
///
/// # Panics
///
/// When a frame is taken for one that, sent again, would be another; or when more than one of the
/// decoders takes it.
pub fn decode_hostile(bytes: &[u8]) -> bool {
    let Some((head, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return false };
    let Ok(header) = Header::parse(head) else { return false };
    let mut again = Vec::new();
    let mut takers = 0;
    let mut encoded = |result: Result<(), WireError>| {
        result.expect("what can be read can be sent");
        takers += 1;
    };
    if let Ok((opening, _)) = Opening::decode(&header, body) {
        encoded(opening.encode(&mut again));
    }
    if let Ok(answer) = Answer::decode(&header, body) {
        encoded(answer.encode(&mut again));
    }
    if let Ok(RequestFrame { view, id, request }) = RequestFrame::decode(&header, body) {
        encoded(encode_request(view, id, &request, &mut again));
    }
    if let Ok(ReplyFrame { id, reply }) = ReplyFrame::decode(&header, body) {
        encoded(encode_reply(id, &reply, header.body_bytes(), &mut again));
    }
    assert!(takers <= 1, "{:?} is taken {takers} times", header.kind());
    // A view may be written in several ways; an opening offers the versions of whoever sends it.
    let free = matches!(header.kind(), Kind::Accept | Kind::Create | Kind::Hello | Kind::Describe);
    assert!(takers == 0 || free || again == bytes, "{:?} changes when it is sent again", header.kind());
    takers == 1
}

#[cfg(test)]
mod tests;
