//! Who asks what a volume is: any node of the cluster, and nobody notices.

use std::fs;

use super::lines::Lines;
use super::*;
use crate::store::{Access, Holder, Store, once_free};

#[test]
fn any_node_of_the_cluster_is_told_what_a_volume_is() {
    for scene in [Scene::new(), Scene::plain()] {
        let replica = scene.run();
        scene.create(&replica).unwrap();
        assert_eq!(scene.describe_as("node-z", &replica, scene.volume).unwrap(), scene.superblock());
    }
}

#[test]
fn what_is_told_does_not_hold_the_key() {
    let scene = Scene::new();
    let told = scene.superblock().render();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let text = String::from_utf8(told).unwrap();
    let bytes: Vec<u8> = (0..64).collect();
    for window in bytes.windows(8) {
        assert!(!text.contains(&hex(window)), "{text}");
    }
}

#[test]
fn a_copy_is_described_while_its_writer_works_and_while_another_process_holds_it() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(client.accept(scene.view(3)), Reply::Done);
    assert_eq!(scene.describe_as("node-z", &replica, scene.volume).unwrap(), scene.superblock());
    assert_eq!(client.write(0, &[1; 512]), Reply::Done, "the writer has not been replaced");
    drop(client);
    replica.end().unwrap();

    // Held by somebody else than the replica: it stays there, and the copy as it is.
    let held = once_free(|| Store::open(&scene.dir(), Access::Exclusive));
    let replica = scene.run();
    let state = || {
        let files = fs::read_dir(scene.dir()).unwrap().map(|file| file.unwrap());
        let mut files: Vec<_> =
            files.map(|file| (file.file_name(), file.metadata().unwrap().modified().unwrap())).collect();
        files.sort();
        files
    };
    let before = state();
    assert_eq!(scene.describe_as("node-z", &replica, scene.volume).unwrap(), scene.superblock());
    assert_eq!(state(), before, "nothing was written");
    assert!(Store::open(&scene.dir(), Access::Exclusive).is_err(), "it is still held");
    assert!(Holder::read(&scene.dir()).unwrap().is_none_or(|holder| holder.pid() != std::process::id()));
    drop(held);
}

#[test]
fn what_is_not_there_or_damaged_is_refused_and_logged_once() {
    let lines = Lines::listen();
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let unknown = Uuid::new_v4();
    for _ in 0..2 {
        let error = scene.describe_as("node-z", &replica, unknown).unwrap_err();
        assert_eq!(code(&error), Some(RefusalCode::NoSuchVolume), "{error}");
    }
    let is_it = |line: &str| line.contains(&unknown.to_string()) && line.contains("there is no copy of volume");
    let told = lines.await_one(is_it);
    assert!(told.starts_with("refused 127.0.0.1:") && told.contains("node-z"), "{told}");
    assert_eq!(lines.count(is_it), 1);

    let path = scene.dir().join("volume.json");
    let mut content = fs::read(&path).unwrap();
    content[10] ^= 1;
    fs::write(&path, content).unwrap();
    let error = scene.describe_as("node-z", &replica, scene.volume).unwrap_err();
    assert_eq!(code(&error), Some(RefusalCode::Damaged), "{error}");
    assert!(!error.to_string().contains(&*scene.dir().to_string_lossy()), "{error}");

    // The folder of one volume with another in it describes neither.
    let stray = scene.root.path().join(unknown.to_string());
    Store::create(&stray, &scene.superblock(), None).unwrap();
    let error = scene.describe_as("node-z", &replica, unknown).unwrap_err();
    assert_eq!(code(&error), Some(RefusalCode::NoSuchVolume), "{error}");
}

#[test]
fn who_is_no_node_of_the_cluster_is_told_nothing() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let elsewhere = Fixture::new();
    let stranger = configs(&elsewhere.node("node-a"));
    let asked = describe(&replica.address, &node("node-b"), &stranger, scene.volume, deadline());
    assert!(matches!(asked, Err(OpenError::Tls(_))), "{asked:?}");
}
