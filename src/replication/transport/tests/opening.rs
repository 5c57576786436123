//! Openings, against a replica that does what a test wants.

use std::io::Write;

use uuid::Uuid;

use super::*;
use crate::crypto::derive::{WriterKey, verify_writer, writer_public_key};
use crate::crypto::xts::XtsKey;
use crate::replication::View;
use crate::replication::message::{Hello, Welcome};
use crate::replication::proof;
use crate::replication::view::{FailureMode, Incarnation, Member, MemberState, WriterId};
use crate::replication::wire::{Answer, Kind, Opening, ProtocolVersion, Refusal, RefusalCode, WireError};
use crate::tls::{Configs, Reason};

/// What node a gets from `attempt` at the address of node b, which does `serve` with the connection.
fn meet<T>(
    serve: impl FnOnce(Established) + Send,
    attempt: impl FnOnce(&str, &Configs) -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    let fixture = Fixture::new();
    let (a, b) = (configs(&fixture.node("node-a")), configs(&fixture.node("node-b")));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::scope(|scope| {
        scope.spawn(|| {
            let stream = listener.accept().unwrap().0;
            if let Ok(established) = tls::accept(stream, b.server.clone(), deadline()) {
                serve(established);
            }
        });
        attempt(&address, &a)
    })
}

/// The same for a hello without signer.
fn greet(serve: impl FnOnce(Established) + Send, deadline: Instant) -> Result<Welcome, OpenError> {
    meet(serve, |address, a| open(address, &"node-b".parse().unwrap(), a, &hello(), None, deadline))
        .map(|(_, welcome, _)| welcome)
}

/// Reads an opening and gives this answer to it.
fn answering(answer: Answer) -> impl FnOnce(Established) + Send {
    move |established| {
        let mut connection = Connection::new(established).unwrap();
        next(&mut connection).unwrap();
        let mut frame = Vec::new();
        answer.encode(&mut frame).unwrap();
        connection.queue(&frame, &[]);
        send_all(&mut connection);
        connection.close();
    }
}

fn hello() -> Hello {
    let writer = WriterId { node: "node-a".parse().unwrap(), attachment: Uuid::from_u128(2) };
    Hello { volume: VOLUME, view: ViewNumber(5), writer, session: 9, lane: 3, proof: None }
}

fn view() -> View {
    let member =
        Member { node: "node-b".parse().unwrap(), address: "b:1".to_owned(), zone: None, state: MemberState::Behind };
    View {
        volume: VOLUME,
        number: ViewNumber(5),
        writer: None,
        members: vec![member],
        failure_mode: FailureMode::Hard,
        lease_ms: 1000,
        writers: Vec::new(),
    }
}

fn welcome() -> Answer {
    Answer::Welcome { version: ProtocolVersion::V1, welcome: WELCOME }
}

#[test]
fn a_hello_is_signed_for_its_connection_and_welcomed() {
    let key = XtsKey::from_bytes(&std::array::from_fn::<u8, 64, _>(|index| index as u8)).unwrap();
    let signer = WriterKey::derive(&key, VOLUME).unwrap();
    let public = writer_public_key(&key, VOLUME);
    let node = "node-b".parse().unwrap();
    let serve = |established: Established| {
        let mut connection = Connection::new(established).unwrap();
        let (header, body) = next(&mut connection).unwrap();
        let (Opening::Hello(heard), _) = Opening::decode(&header, &body).unwrap() else { panic!("a hello") };
        let message = proof::message(connection.exporter(), VOLUME, ViewNumber(5), 3, 9);
        assert!(verify_writer(&public, &message, &heard.proof.unwrap()));
        assert_eq!(Hello { proof: None, ..heard }, hello());
        let mut frame = Vec::new();
        welcome().encode(&mut frame).unwrap();
        // What comes right behind it is not lost.
        connection.queue(&[frame, reply(1, &Reply::Done)].concat(), &[]);
        send_all(&mut connection);
        connection.close();
    };
    let opened = meet(serve, |address, a| open(address, &node, a, &hello(), Some(&signer), deadline()));
    let (mut connection, welcome, version) = opened.unwrap();
    assert_eq!((welcome, version), (WELCOME, ProtocolVersion::V1));
    assert_eq!(next(&mut connection).unwrap().0, header_of(&reply(1, &Reply::Done)));
    assert!(matches!(next(&mut connection), Err(TransportError::Closed { .. })));

    let serve = |established: Established| {
        let mut connection = Connection::new(established).unwrap();
        let (header, body) = next(&mut connection).unwrap();
        let (opening, _) = Opening::decode(&header, &body).unwrap();
        let Opening::Create { superblock, view: made, proof: Some(proof) } = opening else { panic!("{opening:?}") };
        let message = proof::message(connection.exporter(), VOLUME, ViewNumber(5), 0, 0);
        assert!(verify_writer(&public, &message, &proof));
        assert_eq!((superblock, *made), (b"{}".to_vec(), view()));
        let mut frame = Vec::new();
        Answer::encode(&self::welcome(), &mut frame).unwrap();
        connection.queue(&frame, &[]);
        send_all(&mut connection);
    };
    let created =
        meet(serve, |address, a| create(address, &node, a, b"{}".to_vec(), &view(), Some(&signer), deadline()));
    assert_eq!(created.unwrap(), WELCOME);
}

#[test]
fn who_asks_what_a_volume_is_gets_its_superblock_and_nothing_else_for_it() {
    let node = "node-b".parse().unwrap();
    let ask = |answer: Answer| {
        let serve = move |established: Established| {
            let mut connection = Connection::new(established).unwrap();
            let (header, body) = next(&mut connection).unwrap();
            let (opening, _) = Opening::decode(&header, &body).unwrap();
            assert_eq!(opening, Opening::Describe { volume: VOLUME });
            let mut frame = Vec::new();
            answer.encode(&mut frame).unwrap();
            connection.queue(&frame, &[]);
            send_all(&mut connection);
            connection.close();
        };
        meet(serve, |address, a| describe(address, &node, a, VOLUME, deadline()))
    };
    let description = || Answer::Description { version: ProtocolVersion::V1, superblock: b"{}".to_vec() };
    assert_eq!(ask(description()).unwrap(), b"{}");
    let refused = ask(Answer::Refused(Refusal::new(RefusalCode::NoSuchVolume, "not here"))).unwrap_err();
    assert!(matches!(refused, OpenError::Refused { .. }), "{refused}");
    let error = ask(welcome()).unwrap_err();
    let OpenError::Protocol { source: WireError::WrongAnswer { kind }, .. } = error else { panic!("{error}") };
    assert_eq!(kind, Kind::Welcome);
    // Nor is a description a welcome.
    let error = greet(answering(description()), deadline()).unwrap_err();
    assert!(matches!(error, OpenError::Protocol { source: WireError::WrongAnswer { .. }, .. }), "{error}");
}

#[test]
fn a_refusal_says_why_and_which_view() {
    let refused = |refusal: Refusal| greet(answering(Answer::Refused(refusal)), deadline()).unwrap_err();
    let error = refused(Refusal::superseded(ViewNumber(8), "the writer has been replaced"));
    assert_eq!(error.superseded(), Some(ViewNumber(8)));
    let error = refused(Refusal::new(RefusalCode::Busy, "64 sessions are open"));
    assert_eq!(error.superseded(), None);
    assert_eq!(
        error.to_string(),
        "the replica on node node-b refuses: too busy, try again later: 64 sessions are open"
    );
}

#[test]
fn what_is_no_answer_is_told_apart() {
    let raw = |bytes: &'static [u8]| {
        greet(
            |mut peer| {
                peer.connection.writer().write_all(bytes).unwrap();
                peer.connection.write_tls(&mut &peer.stream).unwrap();
                // Until the other end has gone.
                let _ = std::io::Read::read_to_end(&mut &peer.stream, &mut Vec::new());
            },
            deadline(),
        )
        .unwrap_err()
    };
    assert!(matches!(raw(&[0x55; 32]), OpenError::Protocol { .. }));
    // A reply is a frame, but no answer to an opening.
    let mut done = [0; 32];
    done[0] = 0x83;
    assert!(matches!(raw(Vec::from(done).leak()), OpenError::Protocol { .. }));
    assert!(matches!(greet(drop, deadline()), Err(OpenError::Lost(TransportError::Closed { .. }))));
    let silent = |peer: Established| drop(std::io::Read::read_to_end(&mut &peer.stream, &mut Vec::new()));
    let error = greet(silent, Instant::now() + Duration::from_millis(300)).unwrap_err();
    assert!(matches!(error, OpenError::Timeout { .. }), "{error}");
}

#[test]
fn a_replica_that_is_not_there_or_another_is_told_apart() {
    let other = "node-c".parse().unwrap();
    let error = meet(drop, |address, a| open(address, &other, a, &hello(), None, deadline())).unwrap_err();
    let OpenError::Tls(error) = error else { panic!("{error}") };
    assert!(matches!(error.reason, Reason::WrongName { .. }), "{error}");

    let fixture = Fixture::new();
    let a = configs(&fixture.node("node-a"));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    for address in [&address, "no port"] {
        let error = open(address, &other, &a, &hello(), None, deadline()).unwrap_err();
        assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    }
    let error = open(&address, &other, &a, &hello(), None, Instant::now()).unwrap_err();
    assert!(matches!(error, OpenError::Timeout { .. }), "{error}");
}

const VOLUME: Uuid = Uuid::from_u128(1);
const WELCOME: Welcome = Welcome { incarnation: Incarnation(Uuid::from_u128(3)), accepted: ViewNumber(4) };
