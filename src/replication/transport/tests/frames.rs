//! Frames arrive as they were sent, however they are cut; what is none ends the connection.

use std::io::Write;
use std::net::Shutdown;

use super::*;
use crate::replication::message::PAYLOAD_BYTES_MAX;
use crate::tls::Reason;

#[test]
fn frames_of_every_kind_travel_both_ways() {
    let (mut client, mut server) = pair();
    assert!(client.peer().has("node-b") && server.peer().has("node-a"));
    assert_eq!(client.exporter(), server.exporter());
    let mut frames = Vec::new();
    for entry in std::fs::read_dir(CORPUS).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "bin") {
            let frame = std::fs::read(path).unwrap();
            let header = header_of(&frame);
            let payload = if header.is_payload() { pattern(1, header.body_bytes() as usize) } else { vec![] };
            frames.push((frame, payload));
        }
    }
    assert!(frames.len() >= 19);
    for (frame, payload) in &frames {
        client.queue(frame, payload);
        server.queue(frame, payload);
    }
    send_all(&mut client);
    send_all(&mut server);
    for end in [&mut client, &mut server] {
        for (frame, payload) in &frames {
            let (header, body) = next(end).unwrap();
            assert_eq!(header, header_of(frame));
            assert_eq!(body, [&frame[HEADER_BYTES..], payload].concat());
        }
        assert_eq!(end.header().unwrap(), None);
        assert!(!end.receive().unwrap());
    }
}

#[test]
fn a_large_payload_is_taken_in_parts_and_can_be_thrown_away() {
    let (mut client, mut server) = pair();
    let payload = pattern(3, PAYLOAD_BYTES_MAX as usize);
    let sender = thread::spawn(move || {
        for id in 0..3 {
            client.queue(&write(id, PAYLOAD_BYTES_MAX), &pattern(3, PAYLOAD_BYTES_MAX as usize));
        }
        client.queue(&request(3, &Request::Flush), &[]);
        send_all(&mut client);
        client
    });
    for id in 0..3 {
        let header = next_header(&mut server).unwrap();
        assert_eq!(header, header_of(&write(id, PAYLOAD_BYTES_MAX)));
        let mut taken = vec![0; payload.len()];
        let mut parts = 1;
        // The second is begun and then thrown away.
        while !(if id == 1 && parts > 1 { server.skip_payload() } else { server.payload(&mut taken) }) {
            assert_eq!(server.header().unwrap(), Some(header), "the header stays");
            await_bytes(&server);
            server.receive().unwrap();
            parts += 1;
        }
        assert!(parts >= 2, "{parts}: less than a payload with its TLS comes at once");
        assert!(id == 1 || taken == payload, "payload {id}");
    }
    assert_eq!(next(&mut server).unwrap().0, header_of(&request(3, &Request::Flush)));
    drop(sender.join().unwrap());
}

#[test]
fn a_frame_may_come_byte_by_byte() {
    let (mut connection, mut peer) = with_raw_peer();
    let payload = pattern(5, 40);
    let mut sealed = Vec::new();
    for piece in [&write(1, 40)[..], &payload, &reply(2, &Reply::Failed(5))] {
        // A record for every byte, too.
        for byte in piece {
            peer.connection.writer().write_all(&[*byte]).unwrap();
            peer.connection.write_tls(&mut sealed).unwrap();
        }
    }
    peer.stream.set_nodelay(true).unwrap();
    let (mut taken, mut frames) = ([0; 40], 0);
    for (sent, byte) in sealed.iter().enumerate() {
        peer.stream.write_all(&[*byte]).unwrap();
        await_bytes(&connection);
        assert!(connection.receive().unwrap());
        assert!(!connection.receive().unwrap(), "one byte was sent");
        let Some(header) = connection.header().unwrap() else { continue };
        let is_taken = if header.is_payload() {
            connection.payload(&mut taken)
        } else {
            connection.body().map(|body| assert_eq!(body, [5, 0, 0, 0])).is_some()
        };
        frames += usize::from(is_taken);
        let whole = [(32 + 40) * 23, sealed.len()].iter().filter(|end| sent + 1 >= **end).count();
        assert_eq!(frames, whole, "after {sent} bytes");
    }
    assert_eq!(frames, 2);
    assert_eq!(taken, payload[..]);
}

#[test]
fn what_is_not_tls_ends_the_connection_after_the_frames_before_it() {
    for within_payload in [false, true] {
        let (mut connection, mut peer) = with_raw_peer();
        let before = if within_payload { write(1, 4096) } else { request(1, &Request::Ping) };
        peer.connection.writer().write_all(&before).unwrap();
        peer.connection.write_tls(&mut &peer.stream).unwrap();
        peer.stream.write_all(&[b'?'; 5000]).unwrap();
        let header = next_header(&mut connection).unwrap();
        assert_eq!(header, header_of(&before));
        if within_payload {
            // The garbage may still be on its way.
            assert!(!connection.payload(&mut [0; 4096]));
            await_bytes(&connection);
        } else {
            assert_eq!(connection.body(), Some(vec![]));
        }
        let error = loop {
            // The socket is ready until the error has been told.
            await_bytes(&connection);
            match connection.receive().and_then(|_| connection.header()) {
                Ok(None) => {}
                Ok(Some(_)) => assert!(!connection.payload(&mut [0; 4096])),
                Err(error) => break error,
            }
        };
        let TransportError::Tls(error) = error else { panic!("{error}") };
        assert!(matches!(error.reason, Reason::NotTls), "{error}");
        assert!(error.to_string().contains("node node-b"), "{error}");
        assert!(matches!(connection.receive(), Err(TransportError::Closed { .. })));
        assert!(matches!(connection.send(), Ok(true) | Err(TransportError::Closed { .. })));
    }
}

#[test]
fn what_is_no_frame_ends_the_connection() {
    let (mut client, mut server) = pair();
    client.queue(&reply(1, &Reply::Done), &[]);
    client.queue(&[0xff; HEADER_BYTES], &[]);
    send_all(&mut client);
    assert_eq!(next(&mut server).unwrap().0, header_of(&reply(1, &Reply::Done)));
    for _ in 0..2 {
        let error = next(&mut server).unwrap_err();
        assert!(matches!(error, TransportError::Frame { .. }), "{error}");
        assert!(error.to_string().starts_with("node node-a at 127.0.0.1"), "{error}");
    }
}

#[test]
fn an_end_is_told_after_the_frames_before_it() {
    // In good order, without a word, and within a body and a payload.
    for (name, is_orderly, cut) in [
        ("orderly", true, vec![]),
        ("silent", false, vec![]),
        ("in body", false, reply(9, &Reply::Failed(5))),
        ("in payload", false, [write(9, 40), pattern(4, 40)].concat()),
    ] {
        let (mut connection, mut peer) = with_raw_peer();
        let pings = (0..100).flat_map(|id| request(id, &Request::Ping));
        let bytes: Vec<u8> = pings.chain(cut[..cut.len().saturating_sub(1)].iter().copied()).collect();
        peer.connection.writer().write_all(&bytes).unwrap();
        if is_orderly {
            peer.connection.send_close_notify();
        }
        peer.connection.write_tls(&mut &peer.stream).unwrap();
        if !is_orderly {
            peer.stream.shutdown(Shutdown::Write).unwrap();
        }
        for id in 0..100 {
            assert_eq!(next(&mut connection).unwrap().0, header_of(&request(id, &Request::Ping)), "{name}");
        }
        // The peer can still be answered.
        connection.queue(&reply(1, &Reply::Done), &[]);
        send_all(&mut connection);
        let error = next(&mut connection).unwrap_err();
        assert!(matches!(error, TransportError::Closed { .. }), "{name}: {error}");
        assert!(matches!(connection.receive(), Err(TransportError::Closed { .. })), "{name}");
        let mut answer = [0; HEADER_BYTES];
        while let Err(error) = std::io::Read::read_exact(&mut peer.connection.reader(), &mut answer) {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
            assert_ne!(peer.connection.read_tls(&mut &peer.stream).unwrap(), 0);
            peer.connection.process_new_packets().unwrap();
        }
        assert_eq!(answer[..], reply(1, &Reply::Done)[..]);
    }
}

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/replication");
