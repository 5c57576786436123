//! The bytes of every frame, what becomes of damaged ones, and round trips.

mod frames;

use proptest::prelude::*;

use super::*;
use crate::corpus;
use crate::replication::message::Request;
use crate::replication::view::ViewNumber;
use frames::{any_frame, bytes, pinned, pinned_view, request};

/// Any frame, by the decoder that takes it.
#[derive(Clone, Debug, PartialEq)]
enum Frame {
    Opening(Opening),
    Answer(Answer),
    Request(RequestFrame),
    Reply(ReplyFrame, u32),
}

impl Frame {
    fn encode(&self) -> Result<Vec<u8>, WireError> {
        let mut out = Vec::new();
        match self {
            Self::Opening(opening) => opening.encode(&mut out),
            Self::Answer(answer) => answer.encode(&mut out),
            Self::Request(frame) => encode_request(frame.view, frame.id, &frame.request, &mut out),
            Self::Reply(frame, payload_bytes) => encode_reply(frame.id, &frame.reply, *payload_bytes, &mut out),
        }?;
        Ok(out)
    }

    /// Reads a frame as a connection would: the header first, and then as many bytes as it announces.
    fn decode(bytes: &[u8]) -> Result<Frame, WireError> {
        let header = Header::parse(bytes.first_chunk().expect("a whole header"))?;
        let body = &bytes[HEADER_BYTES..];
        match header.kind().role() {
            Role::Opening => Opening::decode(&header, body).map(|(opening, version)| {
                assert_eq!(version, ProtocolVersion::V1);
                Frame::Opening(opening)
            }),
            Role::Answer => Answer::decode(&header, body).map(Frame::Answer),
            Role::Request => RequestFrame::decode(&header, body).map(Frame::Request),
            Role::Reply => {
                let payload_bytes = if header.is_payload() { header.body_bytes() } else { 0 };
                ReplyFrame::decode(&header, body).map(|frame| Frame::Reply(frame, payload_bytes))
            }
        }
    }
}

#[test]
fn every_frame_has_its_bytes() {
    let mut kinds = Vec::new();
    for (name, frame, hex) in pinned() {
        let bytes = bytes(&hex);
        assert_eq!(frame.encode().unwrap(), bytes, "{name} encoded");
        assert_eq!(Frame::decode(&bytes).unwrap(), frame, "{name} decoded");
        corpus::assert_seed("replication", name, &bytes);
        kinds.push(bytes[0]);
    }
    let known: Vec<u8> = (0..=u8::MAX).filter(|byte| Kind::try_from(*byte).is_ok()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(kinds, known, "a kind has no pinned frame");
}

#[test]
fn a_truncated_frame_is_refused() {
    for (name, _, hex) in pinned() {
        let bytes = bytes(&hex);
        for len in HEADER_BYTES..bytes.len() {
            // The connection ended within the body.
            let cut = Frame::decode(&bytes[..len]);
            assert!(matches!(cut, Err(WireError::BodyMismatch { .. })), "{name} cut to {len}: {cut:?}");
            // The body is announced as short as it is.
            let mut honest = bytes[..len].to_vec();
            honest[4..8].copy_from_slice(&((len - HEADER_BYTES) as u32).to_le_bytes());
            check_accepted(&honest);
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(Frame::decode(&longer), Err(WireError::BodyMismatch { .. })), "{name}");
    }
}

#[test]
fn a_flipped_bit_makes_an_error_or_another_frame() {
    for (name, frame, hex) in pinned() {
        let whole = bytes(&hex);
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Some(other) = check_accepted(&flipped) {
                // An offer of more versions is the only thing of a frame that decoding does not give back.
                assert!(other != frame || matches!(frame, Frame::Opening(_)), "{name}: bit {bit} says nothing");
            }
            decode_hostile(&flipped);
        }
    }
}

#[test]
fn unused_fields_are_zero() {
    let parse = |change: &dyn Fn(&mut [u8; HEADER_BYTES])| {
        let mut header = [0; HEADER_BYTES];
        header[0] = Kind::Done as u8;
        change(&mut header);
        Header::parse(&header)
    };
    assert!(parse(&|_| ()).is_ok());
    assert!(matches!(parse(&|header| header[0] = 0x7f), Err(WireError::UnknownKind { kind: 0x7f })));
    assert!(matches!(parse(&|header| header[1] = 1), Err(WireError::UnknownFlags { flags: 1, .. })));
    assert!(matches!(parse(&|header| header[3] = 1), Err(WireError::NotZero { field: "reserved", .. })));
    assert!(matches!(parse(&|header| header[8] = 1), Err(WireError::NotZero { field: "view", .. })));
    assert!(matches!(parse(&|header| header[31] = 1), Err(WireError::NotZero { field: "offset", .. })));
    let opened = parse(&|header| (header[0], header[4], header[16]) = (Kind::Hello as u8, 64, 1));
    assert!(matches!(opened, Err(WireError::NotZero { field: "id", .. })));
    let asked = parse(&|header| (header[0], header[4], header[8]) = (Kind::Describe as u8, 28, 1));
    assert!(matches!(asked, Err(WireError::NotZero { field: "view", .. })));
    let flagged = |kind, flags, bytes| {
        parse(&|header| (header[0], header[1], header[4]) = (kind as u8, flags, bytes)).map_err(|error| match error {
            WireError::UnknownFlags { flags, .. } => flags,
            error => panic!("{error}"),
        })
    };
    assert!(flagged(Kind::Write, 3, 1).is_ok() && flagged(Kind::Zero, 1, 8).is_ok());
    assert_eq!(flagged(Kind::Write, 4, 1), Err(4));
    assert_eq!(flagged(Kind::Zero, 2, 8), Err(2));
    assert_eq!(flagged(Kind::Data, 2, 1), Err(2));
}

#[test]
fn a_refusal_names_a_view_only_when_a_view_is_why() {
    let refused = |code: u16| {
        let mut frame = vec![Kind::Refused as u8, 0, 0, 0, 2, 0, 0, 0, 6];
        frame.resize(HEADER_BYTES, 0);
        frame.extend_from_slice(&code.to_le_bytes());
        Frame::decode(&frame)
    };
    let Ok(Frame::Answer(Answer::Refused(refusal))) = refused(4) else { panic!("{:?}", refused(4)) };
    assert_eq!(refusal.accepted(), Some(ViewNumber(6)));
    assert!(matches!(refused(8), Err(WireError::NotZero { field: "view", .. })));
}

/// The largest body of each kind, as `docs/protocol.md` has it.
#[test]
fn bodies_have_bounds() {
    for (kind, bytes_min, bytes_max, unit) in [
        (Kind::Hello, 12, 1024, 1),
        (Kind::Create, 12, 82_944, 1),
        (Kind::Accept, 1, 65_536, 1),
        (Kind::Write, 1, 1 << 18, 1),
        (Kind::Zero, 8, 8, 1),
        (Kind::Flush, 0, 0, 1),
        (Kind::Read, 4, 4, 1),
        (Kind::Rows, 4, 4, 1),
        (Kind::Settle, 0, 196_608, 12),
        (Kind::Ping, 0, 0, 1),
        (Kind::Describe, 12, 1024, 1),
        (Kind::Digest, 4, 4, 1),
        (Kind::Welcome, 18, 18, 1),
        (Kind::Refused, 2, 1026, 1),
        (Kind::Done, 0, 0, 1),
        (Kind::Data, 1, 1 << 18, 1),
        (Kind::RowList, 0, 524_288, 8),
        (Kind::Failed, 4, 4, 1),
        (Kind::Superseded, 0, 0, 1),
        (Kind::Zeros, 0, 0, 1),
        (Kind::Description, 3, 16_386, 1),
        (Kind::DigestOf, 32, 32, 1),
    ] {
        let parse = |bytes: u32| {
            let mut header = [0; HEADER_BYTES];
            header[0] = kind as u8;
            header[4..8].copy_from_slice(&bytes.to_le_bytes());
            Header::parse(&header)
        };
        for good in [bytes_min, bytes_max] {
            assert_eq!(parse(good).unwrap().body_bytes(), good, "{kind}");
        }
        for bad in [bytes_min.checked_sub(1), Some(bytes_max + unit), (unit > 1).then_some(1), Some(u32::MAX)] {
            let refused = bad.map(parse).map(|result| matches!(result, Err(WireError::BodyLength { .. })));
            assert_ne!(refused, Some(false), "{kind} with {bad:?} bytes");
        }
    }
}

#[test]
fn a_frame_is_read_only_where_it_belongs() {
    for (name, _, hex) in pinned() {
        let bytes = bytes(&hex);
        let header = Header::parse(bytes.first_chunk().unwrap()).unwrap();
        let body = &bytes[HEADER_BYTES..];
        let taken = [
            (Role::Opening, Opening::decode(&header, body).map(drop)),
            (Role::Answer, Answer::decode(&header, body).map(drop)),
            (Role::Request, RequestFrame::decode(&header, body).map(drop)),
            (Role::Reply, ReplyFrame::decode(&header, body).map(drop)),
        ];
        for (role, result) in taken {
            let belongs = header.expect(role).is_ok();
            assert_eq!(result.is_ok(), belongs, "{name} as {role}");
            assert!(belongs || matches!(result, Err(WireError::Misplaced { .. })), "{name} as {role}");
        }
    }
}

#[test]
fn an_opening_says_what_it_lacks() {
    let (_, _, hex) = pinned().swap_remove(0);
    let open = |at: usize, change: &[u8]| {
        let mut bytes = bytes(&hex);
        bytes[HEADER_BYTES + at..][..change.len()].copy_from_slice(change);
        Frame::decode(&bytes)
    };
    let refusal = |result: Result<Frame, WireError>| result.unwrap_err().refusal_code();
    assert!(matches!(open(0, b"S"), Err(WireError::Magic)));
    assert_eq!(refusal(open(0, b"S")), RefusalCode::Malformed);
    assert!(open(10, &[9, 0]).is_ok(), "versions 1 to 9 have one in common with us");
    assert!(matches!(open(8, &[2, 0, 9, 0]), Err(WireError::NoCommonVersion { lowest: 2, highest: 9 })));
    assert_eq!(refusal(open(8, &[2, 0, 9, 0])), RefusalCode::Version);
    assert_eq!(refusal(open(8, &[2, 0, 1, 0])), RefusalCode::Malformed);
    assert!(matches!(open(14, &[2]), Err(WireError::Field { field: "proof", .. })));
    assert!(matches!(open(56 + 64, b"N"), Err(WireError::Node { .. })));
    assert!(matches!(open(56 + 64, b"\xff"), Err(WireError::Field { field: "node name", .. })));
}

/// What comes before the versions are known must be understood from a version that is not known yet.
#[test]
fn an_opening_of_a_later_version_is_refused_for_its_version() {
    let mut frame = vec![Kind::Hello as u8, 0, 0, 0];
    frame.extend_from_slice(&700u32.to_le_bytes());
    frame.extend_from_slice(&[0; 24]);
    frame.extend_from_slice(b"sealblk\0\x02\0\x03\0");
    frame.resize(HEADER_BYTES + 700, 0xee);
    assert!(matches!(Frame::decode(&frame), Err(WireError::NoCommonVersion { lowest: 2, highest: 3 })));
}

#[test]
fn a_view_is_checked_before_it_is_sent_and_when_it_comes() {
    let mut view = pinned_view();
    view.lease_ms = 0;
    let encoded = Frame::Request(request(Request::Accept(Box::new(view.clone())))).encode();
    assert!(matches!(encoded, Err(WireError::View { .. })));
    let accept = |json: &str| {
        let mut frame = vec![Kind::Accept as u8, 0, 0, 0];
        frame.extend_from_slice(&(json.len() as u32).to_le_bytes());
        frame.extend_from_slice(&[0; 24]);
        frame.extend_from_slice(json.as_bytes());
        Frame::decode(&frame)
    };
    let json = serde_json::to_string(&view).unwrap();
    assert!(matches!(accept(&json), Err(WireError::View { .. })));
    let json = serde_json::to_string(&pinned_view()).unwrap();
    assert!(accept(&json).is_ok());
    for broken in [
        json.replace("number", "digit"),
        format!("{json}{{"),
        json.replace("node-a", "Node"),
        json.replace("\"attachment", "\"age\":1,\"attachment"),
        "[".repeat(60_000),
    ] {
        assert!(matches!(accept(&broken), Err(WireError::ViewSyntax { .. })));
    }
}

#[test]
fn a_copy_is_made_only_in_the_view_of_its_header() {
    let (name, _, hex) = pinned().swap_remove(2);
    assert_eq!(name, "create");
    let mut bytes = bytes(&hex);
    bytes[8] = 6;
    assert!(matches!(Frame::decode(&bytes), Err(WireError::ViewNumber { view: ViewNumber(6), .. })));
    for superblock in [vec![], vec![b' '; SUPERBLOCK_BYTES_MAX + 1]] {
        let opening = Opening::Create { superblock, view: Box::new(pinned_view()), proof: None };
        let mut out = Vec::new();
        assert!(matches!(opening.encode(&mut out), Err(WireError::Field { field: "superblock", .. })));
        assert!(out.is_empty());
    }
}

#[test]
fn a_description_has_bounds_and_a_version_that_was_offered() {
    let describe = |superblock: Vec<u8>| Answer::Description { version: ProtocolVersion::V1, superblock };
    for superblock in [vec![], vec![b' '; SUPERBLOCK_BYTES_MAX + 1]] {
        let mut out = Vec::new();
        assert!(matches!(describe(superblock).encode(&mut out), Err(WireError::BodyLength { .. })));
        assert!(out.is_empty());
    }
    let largest = Frame::Answer(describe(vec![b' '; SUPERBLOCK_BYTES_MAX]));
    let mut bytes = largest.encode().unwrap();
    assert_eq!(Frame::decode(&bytes).unwrap(), largest);
    bytes[HEADER_BYTES] = 2;
    assert!(matches!(Frame::decode(&bytes), Err(WireError::UnknownVersion { number: 2 })));
}

#[test]
fn the_fuzzing_corpus_passes() {
    assert!(corpus::taken("replication", decode_hostile) >= 23);
}

proptest! {
    #[test]
    fn frames_survive_their_bytes(frame in any_frame()) {
        let bytes = frame.encode().unwrap();
        prop_assert_eq!(Frame::decode(&bytes).unwrap(), frame);
        decode_hostile(&bytes);
    }

    #[test]
    fn any_bytes_are_read_without_panic(
        kind in prop::sample::select((0..=u8::MAX).filter(|byte| Kind::try_from(*byte).is_ok()).collect::<Vec<_>>()),
        body in prop::collection::vec(any::<u8>(), 0..200),
        rest in any::<[u64; 3]>(),
        sparse in any::<[bool; 3]>(),
    ) {
        let mut frame = vec![kind, 0, 0, 0];
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        for (value, used) in rest.into_iter().zip(sparse) {
            frame.extend_from_slice(&if used { value } else { 0 }.to_le_bytes());
        }
        frame.extend_from_slice(&body);
        decode_hostile(&frame);
    }
}

/// Decodes what may be no frame. One that is must be encoded and decoded again to the same.
fn check_accepted(bytes: &[u8]) -> Option<Frame> {
    if bytes.len() < HEADER_BYTES {
        return None;
    }
    let frame = Frame::decode(bytes).ok()?;
    let again = frame.encode().expect("what can be read can be sent");
    assert_eq!(Frame::decode(&again).unwrap(), frame);
    Some(frame)
}
