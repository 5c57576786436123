//! How bytes leave: few records, few at rest, and none that was not asked for.

use std::io::Read;

use super::*;

/// The lengths of the TLS records in the bytes that a socket received, headers not counted.
fn records(mut bytes: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<5>() {
        assert_eq!(header[..3], [0x17, 3, 3], "application data");
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        lengths.push(len);
        bytes = &rest[len..];
    }
    assert!(bytes.is_empty());
    lengths
}

/// What a connection sends when it sends all it has, the last of it in a record that is made then.
fn sent(connection: &mut Connection, peer: &mut Established) -> Vec<u8> {
    let mut bytes = vec![0; connection.outbound_bytes() + 22];
    thread::scope(|scope| {
        scope.spawn(|| send_all(connection));
        peer.stream.read_exact(&mut bytes).unwrap();
    });
    assert_eq!(connection.outbound_bytes(), 0);
    bytes
}

#[test]
fn small_frames_share_records() {
    let (mut connection, mut peer) = with_raw_peer();
    for id in 0..5000 {
        connection.queue(&reply(id, &Reply::Done), &[]);
    }
    peer.stream.set_nonblocking(true).unwrap();
    assert!(peer.stream.read(&mut [0]).is_err(), "nothing is sent before it is time");
    peer.stream.set_nonblocking(false).unwrap();
    assert_eq!(connection.outbound_bytes(), 5000 * 32 + 9 * 22);
    let lengths = records(&sent(&mut connection, &mut peer));
    assert_eq!(lengths, [[16384 + 17; 9].as_slice(), &[(5000 * 32) % 16384 + 17]].concat());
}

#[test]
fn a_small_write_is_in_one_record_with_its_header_and_a_large_one_in_full_ones() {
    let (mut connection, mut peer) = with_raw_peer();
    let payload = pattern(7, 4096);
    for id in 0..7 {
        connection.queue(&write(id, 4096), &payload);
    }
    assert_eq!(connection.outbound_bytes(), 7 * 4128 + 2 * 22);
    connection.queue(&write(7, 1 << 17), &pattern(8, 1 << 17));
    let lengths = records(&sent(&mut connection, &mut peer));
    assert_eq!(lengths[..2], [3 * 4128 + 17; 2]);
    assert_eq!(lengths[2..10], [16384 + 17; 8]);
    assert_eq!(lengths[10..], [4128 + 32 + 17]);
}

#[test]
fn a_peer_that_does_not_read_makes_nobody_wait() {
    let (mut client, mut server) = pair();
    let payload = pattern(9, 1 << 18);
    let mut queued = 0;
    while client.send().unwrap() {
        assert!(queued < 256, "the kernel takes 64 MiB");
        client.queue(&write(queued, 1 << 18), &payload);
        queued += 1;
    }
    let stuck = client.outbound_bytes();
    assert!(stuck > 0);
    for _ in 0..10 {
        assert!(!client.send().unwrap());
    }
    assert_eq!(client.outbound_bytes(), stuck);
    client.queue(&write(queued, 4096), &payload[..4096]);
    assert_eq!(client.outbound_bytes(), stuck + 4128);
    // It can still be heard.
    server.queue(&reply(1, &Reply::Done), &[]);
    send_all(&mut server);
    assert_eq!(next(&mut client).unwrap().0, header_of(&reply(1, &Reply::Done)));

    let sender = thread::spawn(move || {
        send_all(&mut client);
        assert_eq!(client.outbound_bytes(), 0);
        client
    });
    for id in 0..=queued {
        let (header, taken) = next(&mut server).unwrap();
        assert_eq!(header, header_of(&write(id, taken.len() as u32)));
        assert!(taken == payload[..taken.len()], "payload {id}");
    }
    drop(sender.join().unwrap());
}

#[test]
fn an_owner_that_takes_nothing_is_sent_no_more_than_its_buffer() {
    let (mut client, mut server) = pair();
    let payload = pattern(2, 1 << 18);
    for id in 0..64 {
        client.queue(&write(id, 1 << 18), &payload);
    }
    let sender = thread::spawn(move || {
        send_all(&mut client);
        client
    });
    // Until the buffer is full.
    loop {
        await_bytes(&server);
        if !server.receive().unwrap() {
            break;
        }
    }
    for _ in 0..3 {
        await_bytes(&server);
        assert!(!server.receive().unwrap());
    }
    for id in 0..64 {
        let (header, taken) = next(&mut server).unwrap();
        assert_eq!(header, header_of(&write(id, 1 << 18)));
        assert!(taken == payload, "payload {id}");
    }
    drop(sender.join().unwrap());
}

#[cfg(feature = "bench-plaintext")]
#[test]
fn without_tls_frames_travel_the_same_way() {
    let (client, server) = established();
    let mut server = Connection::without_tls(server).unwrap();
    let mut client = Connection::without_tls(client).unwrap();
    assert!(server.peer().has("node-a") && client.exporter() == server.exporter());
    let payload = pattern(6, 1 << 17);
    client.queue(&write(1, 1 << 17), &payload);
    client.queue(&request(2, &Request::Ping), &[]);
    assert_eq!(client.outbound_bytes(), 32 + (1 << 17) + 32);
    let sender = thread::spawn(move || send_all(&mut client));
    assert!(next(&mut server).unwrap() == (header_of(&write(1, 1 << 17)), payload));
    assert_eq!(next(&mut server).unwrap().0, header_of(&request(2, &Request::Ping)));
    sender.join().unwrap();
    assert!(matches!(next(&mut server), Err(TransportError::Closed { .. })));
}

#[test]
fn keys_may_change_on_the_way() {
    let (mut connection, mut peer) = with_raw_peer();
    for id in 0..3 {
        peer.connection.refresh_traffic_keys().unwrap();
        std::io::Write::write_all(&mut peer.connection.writer(), &request(id, &Request::Ping)).unwrap();
        peer.connection.write_tls(&mut &peer.stream).unwrap();
        assert_eq!(next(&mut connection).unwrap().0, header_of(&request(id, &Request::Ping)));
        connection.queue(&reply(id, &Reply::Done), &[]);
        send_all(&mut connection);
        let mut answer = [0; HEADER_BYTES];
        while peer.connection.reader().read_exact(&mut answer).is_err() {
            assert_ne!(peer.connection.read_tls(&mut &peer.stream).unwrap(), 0);
            peer.connection.process_new_packets().unwrap();
        }
        assert_eq!(answer[..], reply(id, &Reply::Done)[..]);
    }
}
