//! The view in the status of a `Volume` keeps what every home of a view promises, also when others handle the object.

use std::time::Duration;

use sealblk::coordination::kubernetes::ClusterVolume;
use sealblk::coordination::{KubernetesViews, RecordDamage, Swap, ViewStore, ViewStoreError};
use sealblk::kubernetes::Access;
use sealblk::replication::view::ViewNumber;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::scene::{Scene, VOLUME};
use crate::support::views::{ID, assert_one_swaps, damage, swap_through, view};

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

#[test]
fn a_view_changes_by_compare_and_swap() {
    let scene = Scene::start();
    let mut store = views(&scene);
    assert!(matches!(store.create(&view(1)), Err(ViewStoreError::NotFound { .. })));
    scene.cluster.apply(&scene.manifest().to_string());
    assert!(matches!(store.load(), Err(ViewStoreError::NotFound { .. })));
    store.create(&view(1)).expect("the first view");
    assert!(matches!(store.create(&view(1)), Err(ViewStoreError::Exists { .. })));
    assert_eq!(store.load().expect("the view"), view(1));

    let mut other = views(&scene);
    assert_eq!(other.swap(ViewNumber(1), &view(2)).expect("a swap"), Swap::Stored);
    assert_eq!(store.swap(ViewNumber(1), &view(2)).expect("a swap"), Swap::Conflict(view(2)));
    // Somebody who changes something else is in nobody's way.
    let label = ["-n", &scene.namespace, "label", "volumes.sealblk.io", VOLUME, "rack=7"];
    scene.cluster.kubectl(&label);
    assert_eq!(store.swap(ViewNumber(2), &view(3)).expect("a swap"), Swap::Stored);
    assert!(matches!(store.swap(ViewNumber(3), &view(5)), Err(ViewStoreError::NotNext { .. })));

    // Of many who swap at once one succeeds.
    assert_one_swaps(|| views(&scene), 3);
}

#[test]
fn a_past_that_the_copies_do_not_share_is_found_out() {
    let scene = Scene::start();
    scene.cluster.apply(&scene.manifest().to_string());
    let mut store = views(&scene);
    store.create(&view(7)).expect("a view");

    let backup = scene.object()["status"].clone();
    assert_eq!(store.swap(ViewNumber(7), &view(8)).expect("a swap"), Swap::Stored);
    replace_status(&scene, |status| *status = backup.clone());
    let went_back = RecordDamage::WentBack { seen: ViewNumber(8), found: ViewNumber(7) };
    assert_eq!(damage(store.swap(ViewNumber(7), &view(8))), went_back);
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
    assert_eq!(damage(store.swap(ViewNumber(7), &view(8))), RecordDamage::OtherObject);
}

#[test]
fn a_server_that_is_away_has_changed_nothing_and_one_that_falls_silent_may_have() {
    let scene = Scene::start();
    scene.cluster.apply(&scene.manifest().to_string());
    let mut store = views(&scene);
    store.create(&view(1)).expect("a view");
    scene.cluster.stop_api_server();
    let error = store.swap(ViewNumber(1), &view(2)).expect_err("there is no server");
    assert!(matches!(error, ViewStoreError::Unavailable { .. }), "{error}");
    scene.cluster.start_api_server();
    assert_eq!(store.swap(ViewNumber(1), &view(2)).expect("a swap"), Swap::Stored);

    swap_through(&mut store, 2, || {
        std::thread::sleep(Duration::from_millis(50));
        scene.cluster.pause_store(Duration::from_secs(5));
    });
}
