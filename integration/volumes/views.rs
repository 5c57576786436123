//! The view in the status of a `Volume` keeps what every home of a view promises, also when others handle the object.

use std::time::Duration;

use sealblk::coordination::kubernetes::ClusterVolume;
use sealblk::coordination::{KubernetesViews, RecordDamage, Swap, ViewStore, ViewStoreError};
use sealblk::kubernetes::Access;
use sealblk::replication::View;
use sealblk::replication::view::{FailureMode, Incarnation, Member, MemberState, ViewNumber};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::scene::{Scene, VOLUME, name};

const ID: Uuid = Uuid::from_bytes([7; 16]);

fn view(scene: &Scene, number: u64) -> View {
    let member = |node: usize| Member {
        node: name(node).parse().expect("a node's name"),
        address: scene.address(node),
        zone: Some(format!("zone-{node}").parse().expect("a zone")),
        state: MemberState::InSync(Incarnation(Uuid::from_u128(number as u128 + node as u128))),
    };
    View {
        volume: ID,
        number: ViewNumber(number),
        writer: None,
        members: (0..3).map(member).collect(),
        failure_mode: FailureMode::Soft,
        lease_ms: 4000,
        writers: vec!["node-w".parse().expect("a node's name")],
    }
}

fn views(scene: &Scene) -> KubernetesViews {
    let access = Access { kubeconfig: Some(scene.cluster.admin_kubeconfig()), context: None };
    let name = format!("{}/{VOLUME}", scene.namespace).parse().expect("a name");
    KubernetesViews::new(ClusterVolume { name, access, patience: Duration::from_secs(5) }, ID)
}

/// Puts a status there as somebody does who may do everything.
fn replace_status(scene: &Scene, change: impl FnOnce(&mut Value)) {
    let mut object = scene.object();
    change(&mut object["status"]);
    let path = format!("/apis/sealblk.io/v1alpha1/namespaces/{}/volumes/{VOLUME}/status", scene.namespace);
    let output = scene.cluster.feed(&["replace", "--raw", &path, "-f", "-"], &object.to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
    assert!(matches!(store.create(&view(&scene, 1)), Err(ViewStoreError::NotFound { .. })));
    scene.cluster.apply(&scene.manifest().to_string());
    assert!(matches!(store.load(), Err(ViewStoreError::NotFound { .. })));
    store.create(&view(&scene, 1)).expect("the first view");
    assert!(matches!(store.create(&view(&scene, 1)), Err(ViewStoreError::Exists { .. })));
    assert_eq!(store.load().expect("the view"), view(&scene, 1));

    let mut other = views(&scene);
    assert_eq!(other.swap(ViewNumber(1), &view(&scene, 2)).expect("a swap"), Swap::Stored);
    assert_eq!(store.swap(ViewNumber(1), &view(&scene, 2)).expect("a swap"), Swap::Conflict(view(&scene, 2)));
    // Somebody who changes something else is in nobody's way.
    let label = ["-n", &scene.namespace, "label", "volumes.sealblk.io", VOLUME, "rack=7"];
    scene.cluster.kubectl(&label);
    assert_eq!(store.swap(ViewNumber(2), &view(&scene, 3)).expect("a swap"), Swap::Stored);
    assert!(matches!(store.swap(ViewNumber(3), &view(&scene, 5)), Err(ViewStoreError::NotNext { .. })));

    // Of many who swap at once one succeeds.
    let results: Vec<Swap> = std::thread::scope(|scope| {
        let scene = &scene;
        // Each is of another writer.
        let next = move |thread: u32| View { lease_ms: 4000 + thread, ..view(scene, 4) };
        let swap = move |thread: u32| views(scene).swap(ViewNumber(3), &next(thread)).expect("a swap");
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
    scene.cluster.apply(&scene.manifest().to_string());
    let mut store = views(&scene);
    store.create(&view(&scene, 7)).expect("a view");

    let backup = scene.object()["status"].clone();
    assert_eq!(store.swap(ViewNumber(7), &view(&scene, 8)).expect("a swap"), Swap::Stored);
    replace_status(&scene, |status| *status = backup.clone());
    let went_back = RecordDamage::WentBack { seen: ViewNumber(8), found: ViewNumber(7) };
    assert_eq!(damage(store.swap(ViewNumber(7), &view(&scene, 8))), went_back);
    assert_eq!(damage(store.load()), went_back);

    let mut store = views(&scene);
    store.load().expect("the view");
    replace_status(&scene, |status| status["view"]["volume"] = Uuid::nil().to_string().into());
    assert_eq!(damage(store.load()), RecordDamage::OtherVolume { found: Uuid::nil() });
    replace_status(&scene, |status| status["view"]["members"][1]["node"] = "node-a".into());
    assert_eq!(damage(store.load()), RecordDamage::Impossible);
    replace_status(&scene, |status| status["view"]["members"][0]["incarnation"] = json!("nonsense"));
    assert!(matches!(damage(store.load()), RecordDamage::Field { .. }));
    replace_status(&scene, |status| *status = backup);
    store.load().expect("the view");

    scene.cluster.kubectl(&["-n", &scene.namespace, "delete", "volumes.sealblk.io", VOLUME]);
    assert!(matches!(store.load(), Err(ViewStoreError::NotFound { .. })));
    scene.cluster.apply(&scene.manifest().to_string());
    assert_eq!(damage(store.swap(ViewNumber(7), &view(&scene, 8))), RecordDamage::OtherObject);
}

#[test]
fn a_server_that_is_away_has_changed_nothing_and_one_that_falls_silent_may_have() {
    let scene = Scene::start();
    scene.cluster.apply(&scene.manifest().to_string());
    let mut store = views(&scene);
    store.create(&view(&scene, 1)).expect("a view");
    scene.cluster.stop_api_server();
    let error = store.swap(ViewNumber(1), &view(&scene, 2)).expect_err("there is no server");
    assert!(matches!(error, ViewStoreError::Unavailable { .. }), "{error}");
    scene.cluster.start_api_server();
    assert_eq!(store.swap(ViewNumber(1), &view(&scene, 2)).expect("a swap"), Swap::Stored);

    // It stands still at some moment of one of these: whatever is said, it must be true.
    let mut number = 2;
    let stopper = std::thread::scope(|scope| {
        let pause = scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            scene.cluster.pause_store(Duration::from_secs(5));
        });
        while !pause.is_finished() {
            let next = view(&scene, number + 1);
            match store.swap(ViewNumber(number), &next) {
                Ok(Swap::Stored) => number += 1,
                Ok(Swap::Conflict(actual)) => {
                    assert_eq!(actual, next, "nobody else changes it");
                    number += 1;
                }
                Err(ViewStoreError::Unavailable { .. } | ViewStoreError::Unknown { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        pause.join()
    });
    stopper.expect("the pause");
    let next = view(&scene, number + 1);
    let last = store.load().expect("the view");
    assert!(last == view(&scene, number) || last == next, "{last:?} after {number}");
}
