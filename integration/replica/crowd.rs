//! Ten thousand connections from one address: they get in each other's way, and a writer's goes on.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sealblk::replication::message::Reply;

use crate::node::{Cluster, Node};
use crate::writer::Writer;

#[test]
fn ten_thousand_connections_of_one_address_do_not_keep_a_writer_out() {
    allow_descriptors(CROWD as u64 + 1000);
    let (cluster, writer) = (Cluster::new(), Writer::new());
    let node = Node::start(&cluster);
    writer.create(&cluster, node.address()).unwrap();
    let mut session = writer.open(&cluster, node.address(), 1, 1, true).unwrap();
    assert_eq!(session.accept(writer.view(2)), Reply::Done);
    let (resident, descriptors) = node.footprint();

    // Some say nothing, others begin to and stop: as a TLS record that announces more than ever comes.
    let crowd: Vec<TcpStream> = (0..CROWD).filter_map(|index| knock(node.address(), index % 4 == 0)).collect();
    assert!(crowd.len() > CROWD / 2, "only {} got as far as the kernel", crowd.len());
    let data = vec![7; 65536];
    for round in 0..20 {
        assert_eq!(session.write(round * 65536, &data), Reply::Done, "of a session that was there before");
    }
    let mut late = writer.open(&cluster, node.address(), 2, 2, true).expect("a session in the middle of the crowd");
    assert_eq!(late.accept(writer.view(3)), Reply::Done);
    assert_eq!(late.read(19 * 65536, 65536), data);

    let (now_resident, now_descriptors) = node.footprint();
    assert!(now_resident < resident + RESIDENT_MAX, "{resident} bytes have become {now_resident}");
    assert!(now_descriptors < descriptors + DESCRIPTORS_MAX, "{descriptors} descriptors: {now_descriptors}");
    drop(crowd);
    assert_eq!(node.terminate().0.code(), Some(0));
}

/// A connection from an address that no writer has.
fn knock(to: SocketAddr, speaks: bool) -> Option<TcpStream> {
    let SocketAddr::V4(to) = to else { panic!("{to} is no IPv4 address") };
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 66), 0)).unwrap();
    connect(&socket, &to).ok()?;
    let mut stream = TcpStream::from(socket);
    if speaks {
        // It may have been shown the door already.
        let _ = stream.write_all(&[0x16, 0x03, 0x01, 0x40]);
    }
    Some(stream)
}

/// As many descriptors as the test takes itself.
fn allow_descriptors(count: u64) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < count) {
        let maximum = maximum.map(|maximum| maximum.max(count));
        setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum }).expect("a higher limit: needs root");
    }
}

const CROWD: usize = 10_000;
/// Each thread at the door takes a little; the bytes of the crowd stay with the kernel.
const RESIDENT_MAX: usize = 64 << 20;
/// Those who wait, those at the door, and a writer's.
const DESCRIPTORS_MAX: usize = 1024 + 4 * 64 + 64;
