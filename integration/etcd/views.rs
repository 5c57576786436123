//! The view under a key keeps what every home of a view promises, also when others handle the key.

use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use rustix::process::Signal;
use sealblk::coordination::etcd::EtcdTls;
use sealblk::coordination::{EtcdViews, RecordDamage, Swap, ViewStore, ViewStoreError};
use sealblk::replication::View;
use sealblk::replication::view::{FailureMode, Incarnation, Member, MemberState, ViewNumber};
use uuid::Uuid;

use crate::scene::{Scene, name};

const ID: Uuid = Uuid::from_bytes([7; 16]);
const PREFIX: &str = "/tests";

fn view(number: u64) -> View {
    let member = |node: usize| Member {
        node: name(node).parse().expect("a node's name"),
        address: format!("{}:7420", name(node)),
        zone: None,
        state: MemberState::InSync(Incarnation(Uuid::from_u128(number as u128 + node as u128))),
    };
    View {
        volume: ID,
        number: ViewNumber(number),
        writer: None,
        members: (0..3).map(member).collect(),
        failure_mode: FailureMode::Soft,
        lease_ms: 4000,
        writers: Vec::new(),
    }
}

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

fn damage(result: Result<impl std::fmt::Debug, ViewStoreError>) -> RecordDamage {
    match result {
        Err(ViewStoreError::Damaged { reason, .. }) => reason,
        other => panic!("not damaged: {other:?}"),
    }
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
    let results: Vec<Swap> = std::thread::scope(|scope| {
        let scene = &scene;
        // Each is of another writer.
        let next = |thread: u32| View { lease_ms: 4000 + thread, ..view(3) };
        let swap = move |thread: u32| views(scene).swap(ViewNumber(2), &next(thread)).expect("a swap");
        let threads: Vec<_> = (0..6).map(|thread| scope.spawn(move || swap(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
    });
    assert_eq!(results.iter().filter(|result| **result == Swap::Stored).count(), 1, "{results:?}");
    let last = other.load().expect("the view");
    let others = results.into_iter().filter(|result| *result != Swap::Stored);
    others.for_each(|result| assert_eq!(result, Swap::Conflict(last.clone())));
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
    let mut number = 1;
    std::thread::scope(|scope| {
        let pause = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            scene.signal_etcd(Signal::STOP);
            // Longer than anybody waits for an answer.
            std::thread::sleep(Duration::from_secs(10));
            scene.signal_etcd(Signal::CONT);
        });
        while !pause.is_finished() {
            match store.swap(ViewNumber(number), &view(number + 1)) {
                Ok(Swap::Stored) => number += 1,
                Ok(Swap::Conflict(stored)) => {
                    assert_eq!(stored, view(number + 1), "nobody else changes it");
                    number += 1;
                }
                Err(ViewStoreError::Unavailable { .. } | ViewStoreError::Unknown { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let last = views(&scene).load().expect("the view").number.0;
    assert!(last == number || last == number + 1, "{last} is stored and {number} was told");
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
