//! Certificates that cease to be good while connections last.

use super::lines::Lines;
use super::*;
use crate::tls::authority::{Issued, Life};
use crate::tls::fixture::life;

/// Opens a lane of one session as node-a, which has shown this certificate.
fn open_showing(scene: &Scene, replica: &Running, issued: &Issued, lane: u16) -> Client {
    let configs = configs(&scene.tls.write_issued("node-a", issued));
    let hello = Hello { lane, ..scene.hello(1, 1) };
    let opened = open(&replica.address, &node("node-b"), &configs, &hello, scene.signer().as_ref(), deadline());
    let (connection, welcome, _) = opened.unwrap();
    Client { connection, welcome, view: hello.view, next_id: 0 }
}

/// Three connections of which the second has another certificate, and a replica that has no reason against either.
fn three(scene: &Scene, odd: &Issued) -> (Running, [Client; 3]) {
    let mut paths = scene.tls.node("node-b");
    paths.crl = Some(scene.tls.write("crl", scene.tls.revoke(&[])));
    let replica = Running::start_with(scene, Reloading::open(paths).unwrap(), Settings::default());
    scene.create(&replica).unwrap();
    let usual = scene.tls.issue("node-a");
    let clients =
        [(0, &usual), (1, odd), (2, &usual)].map(|(lane, issued)| open_showing(scene, &replica, issued, lane));
    (replica, clients)
}

/// That only the one in the middle is ended, and the others are of use.
fn assert_middle_ends([first, middle, last]: &mut [Client; 3]) {
    middle.await_end();
    for client in [first, last] {
        assert_eq!(client.write(0, &[1; 512]), Reply::Done);
    }
}

#[test]
fn who_is_revoked_is_sent_away_and_nobody_else() {
    let lines = Lines::listen();
    let scene = Scene::new();
    let revoked = scene.tls.issue("node-a");
    let (_replica, mut clients) = three(&scene, &revoked);
    assert_eq!(clients[1].write(512, &[7; 512]), Reply::Done);
    scene.tls.write("crl", scene.tls.revoke(&[&revoked]));
    assert_middle_ends(&mut clients);
    let is_it =
        |line: &str| line.starts_with("ended 1 connections") && line.contains("node-a") && line.contains("revoked");
    lines.await_one(is_it);
    assert_eq!(clients[0].read(512, 512), [7; 512], "what was acknowledged to it stays");
}

#[test]
fn a_connection_does_not_outlive_its_certificate() {
    let scene = Scene::new();
    let end = std::time::SystemTime::now() + Duration::from_secs(5);
    let short = scene.tls.authority.issue(&["node-a".to_owned()], Life { end, ..life() }).unwrap();
    let (_replica, mut clients) = three(&scene, &short);
    assert_middle_ends(&mut clients);
    assert!(std::time::SystemTime::now() > end - Duration::from_secs(2), "it was still good");
}

#[test]
fn who_has_only_an_authority_that_is_trusted_no_more_is_sent_away() {
    let lines = Lines::listen();
    let scene = Scene::new();
    let (_replica, mut clients) = three(&scene, &scene.tls.issue("node-a"));
    let others = Fixture::new();
    // Its lists go first: a list of an authority that is not trusted is of no use to anybody.
    scene.tls.write("crl", scene.tls.revoke(&[]) + &others.revoke(&[]));
    scene.tls.write("ca", others.authority.certificate());
    for client in &mut clients {
        client.await_end();
    }
    lines.await_one(|line| line.starts_with("ended 2 connections") && line.contains("not from our authority"));
}
