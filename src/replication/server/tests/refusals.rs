//! Whom a replica refuses, and what it says.

use super::*;
use crate::replication::copy::OpenCopy;
use crate::replication::proof;
use crate::replication::wire::{Answer, Opening};
use crate::store::{Store, once_free};
use crate::tls;

/// The refusal that a writer on node `name` gets.
fn refused(scene: &Scene, replica: &Running, name: &str, hello: &Hello) -> (RefusalCode, String) {
    match scene.open_as(name, replica, hello) {
        Err(OpenError::Refused { refusal, .. }) => (refusal.code(), refusal.text().to_owned()),
        other => panic!("{other:?}"),
    }
}

/// What is answered to a hello with a proof that `sign` makes from the exporter of its connection.
fn answer(scene: &Scene, replica: &Running, hello: &Hello, sign: impl FnOnce(&[u8; 32]) -> [u8; 64]) -> Answer {
    let stream = TcpStream::connect(&replica.address).unwrap();
    let established = tls::connect(stream, scene.node("node-a").client.clone(), "node-b", deadline()).unwrap();
    let proof = Some(sign(&established.exporter));
    let mut connection = Connection::new(established).unwrap();
    let mut frame = Vec::new();
    Opening::Hello(Hello { proof, ..hello.clone() }).encode(&mut frame).unwrap();
    connection.queue(&frame, &[]);
    assert!(connection.send().unwrap());
    let (header, body) = next(&mut connection).unwrap();
    Answer::decode(&header, &body).unwrap()
}

fn is_refused(answer: &Answer, code: RefusalCode) -> bool {
    matches!(answer, Answer::Refused(refusal) if refusal.code() == code)
}

#[test]
fn a_certificate_alone_opens_nothing() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let hello = scene.hello(1, 1);

    let (code, text) = refused(&scene, &replica, "node-c", &hello);
    assert_eq!(code, RefusalCode::NotPermitted);
    assert!(text.contains("node-a") && text.contains("certificate"), "{text}");

    let keyless = Scene { key: None, ..scene };
    let (code, text) = refused(&keyless, &replica, "node-a", &hello);
    assert_eq!(code, RefusalCode::NotPermitted);
    assert!(text.contains("does not prove"), "{text}");

    let thief = Scene { key: Some(key(1)), ..keyless };
    let (code, text) = refused(&thief, &replica, "node-a", &hello);
    assert_eq!(code, RefusalCode::NotPermitted);
    assert!(text.contains("does not hold"), "{text}");

    let owner = Scene { key: Some(key(0)), ..thief };
    assert_eq!(owner.open(&replica, &hello).unwrap().welcome.accepted, ViewNumber(1), "and nothing was disturbed");
}

#[test]
fn a_proof_is_of_no_use_on_another_connection_or_for_another_view() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let hello = scene.hello(1, 1);
    let signer = scene.signer().unwrap();
    let sign = |exporter: &[u8; 32], view| {
        signer.sign(&proof::message(exporter, scene.volume, view, hello.lane, hello.session))
    };
    let mut heard = None;
    let answered = answer(&scene, &replica, &hello, |exporter| *heard.insert(sign(exporter, hello.view)));
    assert!(matches!(answered, Answer::Welcome { .. }), "{answered:?}");
    let replayed = answer(&scene, &replica, &hello, |_| heard.unwrap());
    assert!(is_refused(&replayed, RefusalCode::NotPermitted), "{replayed:?}");
    let other_view = answer(&scene, &replica, &hello, |exporter| sign(exporter, ViewNumber(2)));
    assert!(is_refused(&other_view, RefusalCode::NotPermitted), "{other_view:?}");
}

#[test]
fn an_older_view_is_told_the_newer_one() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(client.accept(scene.view(5)), Reply::Done);
    let error = scene.open(&replica, &scene.hello(4, 2)).unwrap_err();
    assert_eq!(code(&error), Some(RefusalCode::Superseded));
    assert_eq!(error.superseded(), Some(ViewNumber(5)));
    assert_eq!(client.reply(&Request::Ping), Reply::Done, "the session in force is left alone");

    let stranger = Scene { writer: WriterId { attachment: Uuid::new_v4(), ..scene.writer.clone() }, ..scene };
    let (code, _) = refused(&stranger, &replica, "node-a", &stranger.hello(5, 9));
    assert_eq!(code, RefusalCode::NotPermitted, "the view is that of another attachment");
}

#[test]
fn a_key_opens_its_own_volume_only() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let own = scene.hello(1, 1);
    let mut client = scene.open(&replica, &own).unwrap();
    assert_eq!(client.write(0, &[1; 512]), Reply::Done);

    // Another volume of the same cluster, with a key of its own.
    let mine = scene.volume;
    let theirs = Scene { volume: Uuid::new_v4(), key: Some(key(1)), ..scene };
    theirs.create(&replica).unwrap();
    let intruder = Scene { volume: mine, ..theirs };
    let (code, text) = refused(&intruder, &replica, "node-a", &intruder.hello(1, 2));
    assert_eq!(code, RefusalCode::NotPermitted);
    assert!(text.contains("does not hold"), "{text}");
    assert_eq!(client.read(0, 512), [1; 512], "the session in force is left alone");
}

#[test]
fn a_volume_without_a_copy_here_is_unknown() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let unknown = Scene { volume: Uuid::new_v4(), ..scene };
    let (code, text) = refused(&unknown, &replica, "node-a", &unknown.hello(1, 1));
    assert_eq!(code, RefusalCode::NoSuchVolume);
    assert!(text.contains(&unknown.volume.to_string()), "{text}");
    assert!(!unknown.dir().exists(), "asking makes nothing");
}

#[test]
fn a_folder_under_another_name_is_no_copy() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let misnamed = Uuid::new_v4();
    let dir = replica.root.join(misnamed.to_string());
    std::fs::create_dir(&dir).unwrap();
    for file in ["volume.json", "data", "regions", "view.json"] {
        std::fs::copy(scene.dir().join(file), dir.join(file)).unwrap();
    }
    let lost = Scene { volume: misnamed, ..scene };
    assert_eq!(refused(&lost, &replica, "node-a", &lost.hello(1, 1)).0, RefusalCode::NoSuchVolume);
}

#[test]
fn a_volume_without_encryption_is_for_its_members() {
    let scene = Scene::plain();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let hello = scene.hello(1, 1);
    assert_eq!(scene.open(&replica, &hello).unwrap().write(0, &[1; 512]), Reply::Done);

    let outsider = WriterId { node: node("node-c"), attachment: Uuid::new_v4() };
    let outside = Hello { writer: outsider, ..scene.hello(2, 1) };
    let (code, text) = refused(&scene, &replica, "node-c", &outside);
    assert_eq!(code, RefusalCode::NotPermitted);
    assert!(text.contains("not a member"), "{text}");
    let keyed = Scene { key: Some(key(0)), ..scene };
    let (code, text) = refused(&keyed, &replica, "node-a", &hello);
    assert_eq!(code, RefusalCode::NotPermitted);
    assert!(text.contains("not encrypted"), "{text}");
}

#[test]
fn copies_are_made_by_those_who_may_and_once() {
    let scene = Scene::new();
    // What a crash may have left of a creation is no obstacle.
    let draft = scene.root.path().join(format!(".new-{}", scene.volume));
    std::fs::create_dir(&draft).unwrap();
    std::fs::write(draft.join("data"), b"half").unwrap();
    let replica = scene.run();
    let attempt = |name: &str, superblock: Vec<u8>, view: &View, key: Option<&XtsKey>| {
        let signer = key.map(|key| WriterKey::derive(key, scene.volume).unwrap());
        let made =
            create(&replica.address, &node("node-b"), &scene.node(name), superblock, view, signer.as_ref(), deadline());
        made.map_err(|error| code(&error).unwrap())
    };
    let (superblock, view) = (scene.superblock().render(), scene.view(1));
    let (own, other) = (key(0), key(1));
    let malformed = Err(RefusalCode::Malformed);
    assert_eq!(attempt("node-a", superblock.clone(), &view, None), Err(RefusalCode::NotPermitted));
    assert_eq!(attempt("node-a", superblock.clone(), &view, Some(&other)), Err(RefusalCode::NotPermitted));
    assert_eq!(attempt("node-c", superblock.clone(), &view, Some(&own)), malformed, "not the writer of the view");
    assert_eq!(attempt("node-a", b"{}".to_vec(), &view, Some(&own)), malformed);
    let elsewhere = View { members: vec![view.members[0].clone()], ..view.clone() };
    assert_eq!(attempt("node-a", superblock.clone(), &elsewhere, Some(&own)), malformed, "no copy belongs here");
    let mixed = View { volume: Uuid::new_v4(), ..view.clone() };
    assert!(attempt("node-a", superblock.clone(), &mixed, Some(&own)).is_err(), "of two volumes");
    let left: Vec<_> = std::fs::read_dir(&replica.root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".control"], "refusals leave nothing behind");

    assert_eq!(attempt("node-a", superblock.clone(), &view, Some(&own)).unwrap().accepted, ViewNumber(1));
    assert_eq!(attempt("node-a", superblock, &view, Some(&own)), Err(RefusalCode::Exists));
    assert!(Store::open(&scene.dir(), crate::store::Access::Inspect).is_ok());
}

#[test]
fn a_copy_that_another_process_holds_is_left_to_it() {
    let scene = Scene::new();
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(client.accept(scene.view(5)), Reply::Done);
    drop(client);
    replica.end().unwrap();

    // The lock and the note are as another process would have them.
    let held = once_free(|| OpenCopy::open(&scene.dir(), None));
    let replica = scene.run();
    let error = scene.open(&replica, &scene.hello(4, 2)).unwrap_err();
    assert_eq!(error.superseded(), Some(ViewNumber(5)), "{error}");
    for view in [5, 6] {
        let (code, text) = refused(&scene, &replica, "node-a", &scene.hello(view, 2));
        assert_eq!(code, RefusalCode::InUse);
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    }
    drop(held);
    assert_eq!(scene.open(&replica, &scene.hello(5, 2)).unwrap().welcome.accepted, ViewNumber(5));
}
