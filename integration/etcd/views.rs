//! The view under a key keeps what every home of a view promises, also when others handle the key.

use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use rustix::process::Signal;
use sealblk::coordination::etcd::EtcdTls;
use sealblk::coordination::{EtcdViews, RecordDamage, Swap, ViewStore, ViewStoreError};
use sealblk::replication::view::ViewNumber;

use crate::scene::Scene;
use crate::support::nodes::free_ports;
use crate::support::views::{ID, assert_one_swaps, damage, swap_through, view};

const PREFIX: &str = "/tests";

fn views(scene: &Scene) -> EtcdViews {
    as_whom(scene, scene.tls(0))
}

fn as_whom(scene: &Scene, tls: EtcdTls) -> EtcdViews {
    EtcdViews::new(scene.endpoints(), tls, PREFIX, ID, Duration::ZERO)
}

/// Does something to the key as somebody who may do everything.
fn handle(scene: &Scene, work: impl AsyncFnOnce(&mut Client, String)) {
    let EtcdTls { authorities: Some(ca), identity: Some((certificate, key)) } = scene.tls(1) else { unreachable!() };
    let read = |path| std::fs::read(path).expect("a file in PEM");
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(read(ca)))
        .identity(Identity::from_pem(read(certificate), read(key)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let options = ConnectOptions::new().with_tls(tls);
        let mut client = Client::connect([scene.url()], Some(options)).await.expect("a connection");
        work(&mut client, format!("{PREFIX}/{ID}")).await;
    });
}

#[test]
fn a_view_changes_by_compare_and_swap() {
    let scene = Scene::start();
    let mut store = views(&scene);
    assert!(matches!(store.load(), Err(ViewStoreError::NotFound { .. })));
    assert!(matches!(store.swap(ViewNumber(1), &view(2)), Err(ViewStoreError::NotFound { .. })));
    store.create(&view(1)).expect("a view");
    assert!(matches!(store.create(&view(1)), Err(ViewStoreError::Exists { .. })));
    assert_eq!(store.load().expect("the view"), view(1));
    assert_eq!(store.swap(ViewNumber(1), &view(2)).expect("a swap"), Swap::Stored);
    let mut other = views(&scene);
    assert_eq!(other.swap(ViewNumber(1), &view(2)).expect("an answer"), Swap::Conflict(view(2)));
    assert!(matches!(store.swap(ViewNumber(2), &view(4)), Err(ViewStoreError::NotNext { .. })));

    // Of many who swap at once one succeeds.
    assert_one_swaps(|| views(&scene), 2);
}

#[test]
fn endpoints_that_refuse_connections_are_passed_over() {
    let scene = Scene::start();
    let [dead, other] = free_ports(2)[..] else { unreachable!() };
    let endpoints = format!("https://127.0.0.1:{dead},{},https://127.0.0.1:{other}", scene.url());
    let mut store = EtcdViews::new(endpoints.parse().expect("addresses"), scene.tls(0), PREFIX, ID, Duration::ZERO);
    store.create(&view(1)).expect("a view");
    for number in 1..=30 {
        // A process that starts asks the first of them first; one that has found the one that answers goes on with that.
        let mut other = EtcdViews::new(endpoints.parse().expect("addresses"), scene.tls(0), PREFIX, ID, Duration::ZERO);
        assert_eq!(other.load().expect("the view"), view(number));
        assert_eq!(store.swap(ViewNumber(number), &view(number + 1)).expect("a swap"), Swap::Stored);
    }
}

#[test]
fn a_past_that_the_copies_do_not_share_is_found_out() {
    let scene = Scene::start();
    let mut store = views(&scene);
    store.create(&view(7)).expect("a view");
    let mut backup = Vec::new();
    handle(&scene, async |client, key| {
        backup = client.get(key, None).await.expect("an answer").kvs()[0].value().to_owned();
    });
    assert_eq!(store.swap(ViewNumber(7), &view(8)).expect("a swap"), Swap::Stored);
    let put =
        |value: Vec<u8>| handle(&scene, async |client, key| _ = client.put(key, value, None).await.expect("a put"));
    put(backup.clone());
    let went_back = RecordDamage::WentBack { seen: ViewNumber(8), found: ViewNumber(7) };
    assert_eq!(damage(store.swap(ViewNumber(7), &view(8))), went_back);
    assert_eq!(damage(store.load()), went_back);

    let mut store = views(&scene);
    assert_eq!(store.load().expect("the view"), view(7));
    let mut flipped = backup.clone();
    flipped[20] ^= 1;
    put(flipped);
    assert!(matches!(damage(store.load()), RecordDamage::Checksum(_)));
    put(backup.clone());
    store.load().expect("the view");
    handle(&scene, async |client, key| _ = client.delete(key, None).await.expect("a deletion"));
    assert!(matches!(store.load(), Err(ViewStoreError::NotFound { .. })));
    put(backup);
    assert_eq!(damage(store.swap(ViewNumber(7), &view(8))), RecordDamage::OtherObject);
}

#[test]
fn an_etcd_that_is_away_has_changed_nothing() {
    let mut scene = Scene::start();
    let mut store = views(&scene);
    store.create(&view(1)).expect("a view");
    scene.stop_etcd();
    let error = store.swap(ViewNumber(1), &view(2)).expect_err("there is none");
    assert!(matches!(error, ViewStoreError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    scene.start_etcd();
    assert_eq!(store.swap(ViewNumber(1), &view(2)).expect("a swap"), Swap::Stored);
}

/// It stands still at some moment of one of these: whatever is said of that, it is true.
#[test]
fn an_etcd_that_falls_silent_may_have_changed_something() {
    let scene = Scene::start();
    let mut store = views(&scene);
    store.create(&view(1)).expect("a view");
    let number = swap_through(&mut store, 1, || {
        std::thread::sleep(Duration::from_millis(100));
        scene.signal_etcd(Signal::STOP);
        // Longer than anybody waits for an answer.
        std::thread::sleep(Duration::from_secs(10));
        scene.signal_etcd(Signal::CONT);
    });
    assert!(number > 1, "nothing was ever stored");
}

#[test]
fn who_has_no_certificate_or_trusts_another_authority_gets_no_view() {
    let scene = Scene::start();
    views(&scene).create(&view(1)).expect("a view");
    let tls = scene.tls(0);
    let nobody = EtcdTls { identity: None, ..tls.clone() };
    let distrustful = EtcdTls { authorities: Some(scene.path("pki/node-a/cert.pem")), ..tls.clone() };
    for (tls, reason) in [(nobody, "ertificate"), (distrustful, "ertificate")] {
        let error = as_whom(&scene, tls).load().expect_err("it is not let in");
        assert!(matches!(error, ViewStoreError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
    let lost = EtcdTls { authorities: Some("nowhere.pem".into()), ..tls };
    let error = as_whom(&scene, lost).load().expect_err("there is no such file");
    assert!(error.to_string().contains("cannot read nowhere.pem"), "{error}");
}
