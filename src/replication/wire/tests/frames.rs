//! The frames that the tests are about: one of each kind with its bytes, and any.

use proptest::prelude::*;
use uuid::Uuid;

use super::Frame;
use crate::replication::View;
use crate::replication::message::{Hello, PAYLOAD_BYTES_MAX, ROWS_MAX, Reply, Request, Welcome};
use crate::replication::region::{RegionIndex, Row};
use crate::replication::view::{
    FailureMode, Incarnation, LEASE_MS_MAX, MEMBERS_MAX, Member, MemberState, ViewNumber, WriterId,
};
use crate::replication::wire::{Answer, Opening, ProtocolVersion, Refusal, RefusalCode, ReplyFrame, RequestFrame};

/// One frame of each kind and its bytes in hexadecimal, also found in the fuzzing corpus by its name.
pub(super) fn pinned() -> Vec<(&'static str, Frame, String)> {
    let view = Box::new(pinned_view());
    let view_hex: String = PINNED_VIEW.bytes().map(|byte| format!("{byte:02x}")).collect();
    let welcome = Welcome { incarnation: INCARNATION, accepted: ViewNumber(4) };
    let rows = vec![Row { written: ViewNumber(5), intent: true }, Row { written: ViewNumber(3), intent: false }];
    let reply = |reply, payload_bytes| Frame::Reply(ReplyFrame { id: ID, reply }, payload_bytes);
    vec![
        (
            "hello",
            Frame::Opening(Opening::Hello(hello(3, Some([0x44; 64])))),
            "01 00 0000 7e000000 0500000000000000 0000000000000000 0000000000000000 \
                7365616c626c6b00010001000300010009000000000000001111111111111111 \
                1111111111111111222222222222222222222222222222224444444444444444 \
                4444444444444444444444444444444444444444444444444444444444444444 \
                4444444444444444444444444444444444444444444444446e6f64652d61"
                .to_owned(),
        ),
        (
            "hello-without-proof",
            Frame::Opening(Opening::Hello(hello(0, None))),
            "01 00 0000 3e000000 0500000000000000 0000000000000000 0000000000000000 \
                7365616c626c6b00010001000000000009000000000000001111111111111111 \
                1111111111111111222222222222222222222222222222226e6f64652d61"
                .to_owned(),
        ),
        (
            "create",
            Frame::Opening(Opening::Create {
                superblock: b"{}\n".to_vec(),
                view: view.clone(),
                proof: Some([0x44; 64]),
            }),
            format!(
                "02 00 0000 b8010000 0500000000000000 0000000000000000 0000000000000000 \
                7365616c626c6b00010001000100000003000000444444444444444444444444 \
                4444444444444444444444444444444444444444444444444444444444444444 \
                44444444444444444444444444444444444444447b7d0a {view_hex}"
            ),
        ),
        (
            "accept",
            Frame::Request(request(Request::Accept(view))),
            format!("03 00 0000 61010000 0500000000000000 0807060504030201 0000000000000000 {view_hex}"),
        ),
        (
            "write",
            Frame::Request(request(Request::Write { offset: 1 << 20, len: 4096, durable: true, sparse: true })),
            "04 03 0000 00100000 0500000000000000 0807060504030201 0000100000000000".to_owned(),
        ),
        (
            "zero",
            Frame::Request(request(Request::Zero { offset: 512, len: 1 << 32, durable: false })),
            "05 00 0000 08000000 0500000000000000 0807060504030201 0002000000000000 \
                0000000001000000"
                .to_owned(),
        ),
        (
            "flush",
            Frame::Request(request(Request::Flush)),
            "06 00 0000 00000000 0500000000000000 0807060504030201 0000000000000000".to_owned(),
        ),
        (
            "read",
            Frame::Request(request(Request::Read { offset: 1 << 40, len: 8192 })),
            "07 00 0000 04000000 0500000000000000 0807060504030201 0000000000010000 \
                00200000"
                .to_owned(),
        ),
        (
            "rows",
            Frame::Request(request(Request::Rows { first: RegionIndex(7), count: 65536 })),
            "08 00 0000 04000000 0500000000000000 0807060504030201 0700000000000000 \
                00000100"
                .to_owned(),
        ),
        (
            "settle",
            Frame::Request(request(Request::Settle(vec![
                (RegionIndex(2), ViewNumber(4)),
                (RegionIndex(1048575), ViewNumber(0)),
            ]))),
            "09 00 0000 18000000 0500000000000000 0807060504030201 0000000000000000 \
                020000000400000000000000ffff0f000000000000000000"
                .to_owned(),
        ),
        (
            "ping",
            Frame::Request(request(Request::Ping)),
            "0a 00 0000 00000000 0500000000000000 0807060504030201 0000000000000000".to_owned(),
        ),
        (
            "describe",
            Frame::Opening(Opening::Describe { volume: VOLUME }),
            "0b 00 0000 1c000000 0000000000000000 0000000000000000 0000000000000000 \
                7365616c626c6b000100010011111111111111111111111111111111"
                .to_owned(),
        ),
        (
            "digest",
            Frame::Request(request(Request::Digest { offset: 1 << 40, len: 262144 })),
            "0c 00 0000 04000000 0500000000000000 0807060504030201 0000000000010000 \
                00000400"
                .to_owned(),
        ),
        (
            "welcome",
            Frame::Answer(Answer::Welcome { version: ProtocolVersion::V1, welcome }),
            "81 00 0000 12000000 0400000000000000 0000000000000000 0000000000000000 \
                010033333333333333333333333333333333"
                .to_owned(),
        ),
        (
            "refused",
            Frame::Answer(Answer::Refused(Refusal::superseded(ViewNumber(6), "view 6 is accepted…"))),
            "82 00 0000 17000000 0600000000000000 0000000000000000 0000000000000000 \
                0400766965772036206973206163636570746564e280a6"
                .to_owned(),
        ),
        (
            "done",
            reply(Reply::Done, 0),
            "83 00 0000 00000000 0000000000000000 0807060504030201 0000000000000000".to_owned(),
        ),
        (
            "data",
            reply(Reply::Data, 8192),
            "84 00 0000 00200000 0000000000000000 0807060504030201 0000000000000000".to_owned(),
        ),
        (
            "row-list",
            reply(Reply::Rows(rows), 0),
            "85 00 0000 10000000 0000000000000000 0807060504030201 0000000000000000 \
                0b000000000000000600000000000000"
                .to_owned(),
        ),
        (
            "failed",
            reply(Reply::Failed(5), 0),
            "86 00 0000 04000000 0000000000000000 0807060504030201 0000000000000000 \
                05000000"
                .to_owned(),
        ),
        (
            "superseded",
            reply(Reply::Superseded(ViewNumber(6)), 0),
            "87 00 0000 00000000 0600000000000000 0807060504030201 0000000000000000".to_owned(),
        ),
        (
            "zeros",
            reply(Reply::Zeros, 0),
            "88 00 0000 00000000 0000000000000000 0807060504030201 0000000000000000".to_owned(),
        ),
        (
            "description",
            Frame::Answer(Answer::Description { version: ProtocolVersion::V1, superblock: b"{}\n".to_vec() }),
            "89 00 0000 05000000 0000000000000000 0000000000000000 0000000000000000 \
                01007b7d0a"
                .to_owned(),
        ),
        (
            "digest-of",
            reply(Reply::DigestOf([0x55; 32]), 0),
            "8a 00 0000 20000000 0000000000000000 0807060504030201 0000000000000000 \
                5555555555555555555555555555555555555555555555555555555555555555"
                .to_owned(),
        ),
    ]
}

/// The bytes that hexadecimal digits are; spaces do not count.
pub(super) fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|char| char.to_digit(16)).collect();
    digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

pub(super) fn pinned_view() -> View {
    let member = |node: &str, address: &str, state| Member {
        node: node.parse().unwrap(),
        address: address.to_owned(),
        zone: None,
        state,
    };
    View {
        volume: VOLUME,
        number: ViewNumber(5),
        writer: Some(writer()),
        members: vec![
            member("node-a", "10.0.0.1:7420", MemberState::InSync(INCARNATION)),
            member("node-b", "10.0.0.2:7420", MemberState::Behind),
        ],
        failure_mode: FailureMode::Soft,
        lease_ms: 2000,
        writers: Vec::new(),
    }
}

pub(super) fn request(request: Request) -> RequestFrame {
    RequestFrame { view: ViewNumber(5), id: ID, request }
}

fn hello(lane: u16, proof: Option<[u8; 64]>) -> Hello {
    Hello { volume: VOLUME, view: ViewNumber(5), writer: writer(), session: 9, lane, proof }
}

fn writer() -> WriterId {
    WriterId { node: "node-a".parse().unwrap(), attachment: Uuid::from_bytes([0x22; 16]) }
}

/// Any frame that may be sent.
pub(super) fn any_frame() -> impl Strategy<Value = Frame> {
    let hello = (any_uuid(), any_number(), any_writer(), any::<u64>(), any::<u16>(), any_proof()).prop_map(
        |(volume, view, writer, session, lane, proof)| {
            Opening::Hello(Hello { volume, view, writer, session, lane, proof })
        },
    );
    let superblock = || prop::collection::vec(any::<u8>(), 1..600);
    let create = (superblock(), any_view(), any_proof()).prop_map(|(superblock, view, proof)| Opening::Create {
        superblock,
        view,
        proof,
    });
    let describe = any_uuid().prop_map(|volume| Opening::Describe { volume });
    let description =
        superblock().prop_map(|superblock| Answer::Description { version: ProtocolVersion::V1, superblock });
    let welcome = (any_uuid(), any_number()).prop_map(|(incarnation, accepted)| Answer::Welcome {
        version: ProtocolVersion::V1,
        welcome: Welcome { incarnation: Incarnation(incarnation), accepted },
    });
    let code = (1..=10u16).prop_map(|code| RefusalCode::try_from(code).unwrap());
    let refused = prop_oneof![
        (code, any::<String>()).prop_map(|(code, text)| Refusal::new(code, &text)),
        (any_number(), any::<String>()).prop_map(|(view, text)| Refusal::superseded(view, &text)),
    ]
    .prop_map(Answer::Refused);
    let request =
        (any_number(), any::<u64>(), any_request()).prop_map(|(view, id, request)| RequestFrame { view, id, request });
    let reply = (any::<u64>(), any_reply())
        .prop_map(|(id, (reply, payload_bytes))| Frame::Reply(ReplyFrame { id, reply }, payload_bytes));
    prop_oneof![
        prop_oneof![hello, create, describe].prop_map(Frame::Opening),
        prop_oneof![welcome, description, refused].prop_map(Frame::Answer),
        request.prop_map(Frame::Request),
        reply,
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let payload =
        (any::<u64>(), 1..=PAYLOAD_BYTES_MAX).prop_map(|(offset, len)| (offset.min(u64::MAX - u64::from(len)), len));
    let write = (payload.clone(), any::<bool>(), any::<bool>())
        .prop_map(|((offset, len), durable, sparse)| Request::Write { offset, len, durable, sparse });
    let zero = (any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(offset, len, durable)| {
        let offset = offset.min(u64::MAX - 1);
        Request::Zero { offset, len: len.clamp(1, u64::MAX - offset), durable }
    });
    let rows = (any::<u32>(), 1..=ROWS_MAX)
        .prop_map(|(first, count)| Request::Rows { first: RegionIndex(first.min(u32::MAX - count)), count });
    prop_oneof![
        any_view().prop_map(Request::Accept),
        write,
        zero,
        Just(Request::Flush),
        payload.clone().prop_map(|(offset, len)| Request::Read { offset, len }),
        payload.prop_map(|(offset, len)| Request::Digest { offset, len }),
        rows,
        prop::collection::vec((any::<u32>().prop_map(RegionIndex), any_number()), 0..100).prop_map(Request::Settle),
        Just(Request::Ping),
    ]
}

fn any_reply() -> impl Strategy<Value = (Reply, u32)> {
    let row = (any_number(), any::<bool>()).prop_map(|(written, intent)| Row { written, intent });
    let without_payload = prop_oneof![
        Just(Reply::Done),
        Just(Reply::Zeros),
        any::<[u8; 32]>().prop_map(Reply::DigestOf),
        prop::collection::vec(row, 0..100).prop_map(Reply::Rows),
        (1..=4095).prop_map(Reply::Failed),
        any_number().prop_map(Reply::Superseded),
    ];
    prop_oneof![
        (1..=PAYLOAD_BYTES_MAX).prop_map(|payload_bytes| (Reply::Data, payload_bytes)),
        without_payload.prop_map(|reply| (reply, 0)),
    ]
}

fn any_view() -> impl Strategy<Value = Box<View>> {
    let state = prop_oneof![
        any_uuid().prop_map(|uuid| MemberState::InSync(Incarnation(uuid))),
        Just(MemberState::Behind),
        Just(MemberState::Added),
        Just(MemberState::Retired),
    ];
    let zone = prop::option::of("[a-zA-Z0-9]{1,10}");
    let member = ("[a-z0-9]{1,20}", "[!-~]{1,100}", 1..=u16::MAX, zone, state);
    let members = prop::collection::vec(member, 1..=MEMBERS_MAX).prop_map(|members| {
        let member =
            |(index, (node, host, port, zone, state)): (usize, (String, String, u16, Option<String>, _))| Member {
                node: format!("{node}-{index}").parse().unwrap(),
                address: format!("{host}:{port}"),
                zone: zone.map(|zone| zone.parse().unwrap()),
                state,
            };
        members.into_iter().enumerate().map(member).collect()
    });
    let failure_mode = prop_oneof![
        Just(FailureMode::Hard),
        Just(FailureMode::Soft),
        Just(FailureMode::AlwaysOn),
        (1..=MEMBERS_MAX as u8).prop_map(FailureMode::AtLeast),
    ];
    let number = (1..=ViewNumber::MAX.0).prop_map(ViewNumber);
    let writers = prop::collection::vec("[a-z0-9]{1,20}", 0..3)
        .prop_map(|nodes| nodes.iter().map(|node| node.parse().unwrap()).collect());
    (any_uuid(), number, prop::option::of(any_writer()), members, failure_mode, 1..=LEASE_MS_MAX, writers).prop_map(
        |(volume, number, writer, members, failure_mode, lease_ms, writers)| {
            Box::new(View { volume, number, writer, members, failure_mode, lease_ms, writers })
        },
    )
}

fn any_writer() -> impl Strategy<Value = WriterId> {
    ("[a-z0-9]{1,63}(\\.[a-z0-9]{1,40}){0,3}", any_uuid())
        .prop_map(|(node, attachment)| WriterId { node: node.parse().unwrap(), attachment })
}

fn any_number() -> impl Strategy<Value = ViewNumber> {
    (0..=ViewNumber::MAX.0).prop_map(ViewNumber)
}

fn any_uuid() -> impl Strategy<Value = Uuid> {
    any::<[u8; 16]>().prop_map(Uuid::from_bytes)
}

fn any_proof() -> impl Strategy<Value = Option<[u8; 64]>> {
    prop::option::of(prop::collection::vec(any::<u8>(), 64).prop_map(|bytes| bytes.try_into().unwrap()))
}

const VOLUME: Uuid = Uuid::from_bytes([0x11; 16]);
const INCARNATION: Incarnation = Incarnation(Uuid::from_bytes([0x33; 16]));
const ID: u64 = 0x0102_0304_0506_0708;
const PINNED_VIEW: &str = concat!(
    r#"{"volume":"11111111-1111-1111-1111-111111111111","number":5,"#,
    r#""writer":{"node":"node-a","attachment":"22222222-2222-2222-2222-222222222222"},"#,
    r#""members":[{"node":"node-a","address":"10.0.0.1:7420","#,
    r#""state":{"in-sync":"33333333-3333-3333-3333-333333333333"}},"#,
    r#"{"node":"node-b","address":"10.0.0.2:7420","state":"behind"}],"#,
    r#""failure_mode":"soft","lease_ms":2000}"#
);
