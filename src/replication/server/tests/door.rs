//! Peers that say nothing, too little, too slowly or nonsense, and the end of service.

use std::io::{Read, Write};

use super::*;
use crate::replication::wire::{Answer, HEADER_BYTES, Opening};
use crate::store::{Access, Store, once_free};
use crate::tls;

/// A connection on which TLS is done and nothing has been said.
fn established(scene: &Scene, replica: &Running) -> Connection {
    let stream = TcpStream::connect(&replica.address).unwrap();
    let established = tls::connect(stream, scene.node("node-a").client.clone(), "node-b", deadline()).unwrap();
    Connection::new(established).unwrap()
}

/// Sends bytes in place of a frame; the answer, or none if the connection just ends.
fn say(mut connection: Connection, bytes: &[u8]) -> Option<Answer> {
    connection.queue(bytes, &[]);
    connection.send().unwrap();
    let (header, body) = next(&mut connection).ok()?;
    Some(Answer::decode(&header, &body).unwrap())
}

fn header(kind: u8, body_bytes: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0] = kind;
    header[4..8].copy_from_slice(&body_bytes.to_le_bytes());
    // A view and an id that could be.
    (header[8], header[16]) = (1, 99);
    header
}

/// Reads until the other end has gone, and fails if it does not go.
fn await_end(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = [0; 512];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn nonsense_is_answered_with_a_refusal_or_an_end() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();

    let mut plain = TcpStream::connect(&replica.address).unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    await_end(&plain);

    let mut hello = Vec::new();
    Opening::Hello(scene.hello(1, 2)).encode(&mut hello).unwrap();
    let mut magic = hello.clone();
    magic[HEADER_BYTES] ^= 1;
    let mut opening = header(0x01, u32::MAX);
    opening[16] = 0;
    for (what, bytes) in [
        ("no frame", vec![0x55; 64]),
        ("an absurd length", opening.to_vec()),
        ("a request before the hello", header(0x0a, 0).to_vec()),
        ("another protocol", magic),
    ] {
        match say(established(&scene, &replica), &bytes) {
            Some(Answer::Refused(refusal)) => assert_eq!(refusal.code(), RefusalCode::Malformed, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    assert_eq!(client.reply(&Request::Ping), Reply::Done, "others are not concerned");

    // Once in, a writer that breaks the rules is cut off.
    for (session, bytes) in [(2, header(0x04, u32::MAX)), (3, header(0x81, 18)), (4, [0xff; HEADER_BYTES])] {
        let mut client = scene.open(&replica, &scene.hello(1, session)).unwrap();
        client.connection.queue(&bytes, &[]);
        let _ = client.connection.send();
        client.await_end();
    }
    let mut client = scene.open(&replica, &scene.hello(1, 5)).unwrap();
    client.send(&write(0, 4096), &[7; 100]).unwrap();
    drop(client);
    let mut client = scene.open(&replica, &scene.hello(1, 6)).unwrap();
    assert_eq!(client.read(0, 4096), [0; 4096], "half a write is none");
}

#[test]
fn an_id_that_is_in_use_ends_the_connection() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    // In one piece, so that the first cannot have been answered when the second is read.
    let mut frames = Vec::new();
    for _ in 0..2 {
        encode_request(ViewNumber(1), 7, &Request::Read { offset: 0, len: 4096 }, &mut frames).unwrap();
    }
    client.connection.queue(&frames, &[]);
    client.connection.send().unwrap();
    let ended = (0..2).map(|_| client.receive()).find(Result::is_err);
    assert!(ended.is_some(), "both were answered");
    assert_eq!(scene.open(&replica, &scene.hello(1, 2)).unwrap().reply(&Request::Ping), Reply::Done);
}

#[test]
fn those_who_say_nothing_keep_nobody_out() {
    let scene = Scene::new();
    let replica = scene.run();
    let idle: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(&replica.address).unwrap()).collect();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(client.write(0, &[1; 512]), Reply::Done);
    for mut stream in &idle {
        stream.set_nonblocking(true).unwrap();
        let error = stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "they were waiting all the time");
    }
}

#[test]
fn an_opening_has_its_time() {
    let scene = Scene::new();
    let settings = Settings { opening_time: Duration::from_millis(500), ..Settings::default() };
    let replica = Running::start(&scene, settings);
    let begin = Instant::now();
    let silent = TcpStream::connect(&replica.address).unwrap();
    let mut slow = TcpStream::connect(&replica.address).unwrap();
    // The beginning of a TLS record that does not go on.
    slow.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
    await_end(&silent);
    await_end(&slow);
    assert!(begin.elapsed() >= settings.opening_time, "{:?}", begin.elapsed());
}

#[test]
fn a_hello_that_comes_in_part_is_cut_off() {
    let scene = Scene::new();
    let settings = Settings { opening_time: Duration::from_secs(3), ..Settings::default() };
    let replica = Running::start(&scene, settings);
    let connection = established(&scene, &replica);
    let mut hello = Vec::new();
    Opening::Hello(scene.hello(1, 1)).encode(&mut hello).unwrap();
    assert_eq!(say(connection, &hello[..HEADER_BYTES + 20]), None);
}

#[test]
fn a_copy_is_given_up_for_who_asks_on_the_node() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(client.write(0, &[1; 512]), Reply::Done);
    assert!(Store::open(&scene.dir(), Access::Exclusive).is_err(), "the replica holds it");
    let ask = |line: String| {
        let mut control = UnixStream::connect(replica.root.join(".control")).unwrap();
        control.write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        control.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(ask("release nonsense\n".to_owned()).starts_with("error: "));
    assert_eq!(ask(format!("release {}\n", scene.volume)), "ok\n");
    client.await_end();
    let error = scene.open(&replica, &scene.hello(1, 2)).unwrap_err();
    assert_eq!(code(&error), Some(RefusalCode::InUse), "it is reserved for a moment: {error}");
    // Also a writer in a later view must not be quicker than who has asked.
    let (held, error) = thread::scope(|scope| {
        let later = scope.spawn(|| scene.open(&replica, &scene.hello(2, 2)).unwrap_err());
        thread::sleep(Duration::from_millis(300));
        let held = once_free(|| Store::open(&scene.dir(), Access::Exclusive));
        (held, later.join().unwrap())
    });
    assert_eq!(code(&error), Some(RefusalCode::InUse), "{error}");
    drop(held);
    let mut client = scene.open(&replica, &scene.hello(2, 2)).unwrap();
    assert_eq!(client.accept(scene.view(2)), Reply::Done);
    assert_eq!(client.read(0, 512), [1; 512]);
}

#[test]
fn when_it_is_told_to_end_everything_is_finished() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(client.write(0, &[1; 512]), Reply::Done);
    let idle = TcpStream::connect(&replica.address).unwrap();
    let root = replica.root.clone();
    replica.end().unwrap();
    client.await_end();
    await_end(&idle);
    assert!(!root.join(".control").exists());
    once_free(|| Store::open(&scene.dir(), Access::Exclusive));
}

#[test]
fn a_folder_has_one_replica() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let second = Running::start(&scene, Settings::default());
    let error = second.end().unwrap_err();
    assert!(matches!(error, ServerError::InUse { .. }), "{error}");
    assert_eq!(scene.open(&replica, &scene.hello(1, 1)).unwrap().reply(&Request::Ping), Reply::Done);
}
