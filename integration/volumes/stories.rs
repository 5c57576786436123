//! A volume's life: made, attached, a node lost and back, attached elsewhere, the API server away.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sealblk::replication::primary::status::CopyState;
use serde_json::json;

use crate::model::{BLOCK, Model};
use crate::scene::{LONG, NODES, SECRET, Scene, VOLUME, deployed, fail, name, succeed};
use crate::support::cluster::Cluster;
use crate::support::guest::Guest;
use crate::support::nodes::status;
use crate::support::process::Process;
use crate::workload::{Load, Manner};

const BLOCKS: usize = (64 << 20) / BLOCK;

#[test]
fn a_volume_is_attached_by_its_name_and_kubectl_shows_how_it_stands() {
    let mut scene = Scene::with_volume();
    scene.await_column("IN-SYNC", "3/3");
    let writer = scene.serve(0);
    scene.await_column("WRITER", "node-a");
    for (head, value) in [("NAME", VOLUME), ("SIZE", "64Mi"), ("IN-SYNC", "3/3"), ("READY", "True")] {
        scene.await_column(head, value);
    }
    let degraded = scene.condition("Degraded");
    assert_eq!(degraded.0, "False");
    let ready = scene.condition("Ready");

    let load = Load::start(&writer.socket, Model::new(BLOCKS), Manner::usual(61));
    load.await_progress(200);
    scene.kill_replica(2);
    scene.await_column("IN-SYNC", "2/3");
    load.await_progress(200);
    assert_eq!(scene.condition("Degraded").0, "True");
    assert_eq!(scene.condition("Ready"), ready, "it was ready all the time");
    let mut command = scene.command("volume");
    command.args(["status", "--volume", &scene.volume(), "--kubeconfig"]).arg(scene.cluster.admin_kubeconfig());
    let status = status(&mut command);
    assert_eq!((status.in_sync, status.members[2].state), (2, CopyState::Behind));
    assert_eq!(status.writer.as_deref(), Some("node-a"));

    scene.start_replica(2);
    scene.await_column("IN-SYNC", "3/3");
    scene.await_events(&["Attached", "CopyLost", "ResyncStarted", "CopyInSync"]);
    // While nothing changes nobody asks the API server for anything.
    let rested = (0..RESTS_MAX).any(|_| {
        let (view, before) = (scene.view_number(), scene.asked());
        load.await_progress(500);
        thread::sleep(Duration::from_secs(3));
        load.await_progress(500);
        let asked = scene.asked();
        // On a busy machine a copy may have been too slow to stay in sync.
        let nothing_changed = scene.view_number() == view;
        assert!(!nothing_changed || asked == before, "{:?}", scene.requests());
        nothing_changed
    });
    assert!(rested, "the view never stays as it is");
    load.finish();
    writer.process.terminate();
    scene.assert_equal();
    let refused: Vec<_> = scene.requests().into_iter().filter(|request| request.ends_with(" 403")).collect();
    assert_eq!(refused, [] as [String; 0], "deploy/ grants what it takes");
}

#[test]
fn members_come_and_go_and_an_attach_goes_by_the_view() {
    let mut scene = Scene::with_volume();
    let writer = scene.serve(0);
    scene.await_column("IN-SYNC", "3/3");
    let spec = scene.object()["spec"].clone();
    let load = Load::start(&writer.socket, Model::new(BLOCKS), Manner::usual(62));
    load.await_progress(200);

    scene.kill_replica(2);
    fs::remove_dir_all(scene.copy(2)).unwrap();
    scene.await_column("IN-SYNC", "2/3");
    succeed(scene.command("volume").arg("remove-member").arg(scene.copy(0)).arg(name(2)));
    scene.await_column("IN-SYNC", "2/2");
    scene.await_column("READY", "True");
    assert_eq!(scene.condition("Degraded").0, "False");
    assert_eq!(scene.object()["status"]["view"]["members"][2]["state"], "Retired");
    load.await_progress(200);

    scene.start_replica(2);
    let member = format!("{}={}", name(2), scene.address(2));
    succeed(scene.command("volume").arg("add-member").arg(scene.copy(0)).args([&member, "--wait"]));
    scene.await_column("IN-SYNC", "3/3");
    load.await_progress(200);
    assert_eq!(scene.object()["spec"], spec, "the spec is the user's");
    // Nodes may not change it, and whoever may has it changed as well.
    let with_spec = |scene: &Scene, arguments: &[&str], kubeconfig: &Path| {
        let mut command = scene.command("volume");
        command.arg(arguments[0]).arg(scene.copy(0)).args(&arguments[1..]);
        command.args(["--volume", &scene.volume(), "--kubeconfig"]).arg(kubeconfig);
        command
    };
    let node = scene.kubeconfig().to_owned();
    let said = fail(&mut with_spec(&scene, &["remove-member", &name(1)], &node));
    assert!(said.contains("are changed, but its spec is not") && said.contains("set spec.members"), "{said}");
    scene.await_column("IN-SYNC", "2/2");
    let admin = scene.cluster.admin_kubeconfig();
    let member = format!("{}={},zone=a", name(2), scene.address(2));
    let output = succeed(&mut with_spec(&scene, &["add-member", &member], &admin));
    assert!(String::from_utf8_lossy(&output.stdout).contains("its zone is known"), "{output:?}");
    let members = json!([
        {"node": name(0), "address": scene.address(0)},
        {"node": name(2), "address": scene.address(2), "zone": "a"},
    ]);
    assert_eq!(scene.object()["spec"]["members"], members);
    assert_eq!(scene.condition("Spread").0, "Unknown");
    // All in one zone is worth a word.
    let member = format!("{}={},zone=a", name(0), scene.address(0));
    let output = succeed(&mut with_spec(&scene, &["add-member", &member], &admin));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("could be spread better over zones: all 2 copies are in zone a"), "{said}");
    assert_eq!(scene.condition("Spread").0, "False");
    let member = format!("{}={},zone=b", name(0), scene.address(0));
    let output = succeed(&mut with_spec(&scene, &["add-member", &member], &admin));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(scene.condition("Spread").0, "True");
    assert_eq!(scene.object()["spec"]["members"][0]["zone"], "b");
    let model = load.finish();
    writer.process.terminate();

    let writer = scene.serve(2);
    let load = Load::start(&writer.socket, model, Manner::usual(63));
    load.await_progress(200);
    let member = format!("{}={}", name(1), scene.address(1));
    succeed(scene.command("volume").arg("add-member").arg(scene.copy(2)).args([&member, "--wait"]));
    load.finish();
    writer.process.terminate();
    scene.assert_equal();
}

#[test]
fn a_volume_is_made_by_the_command_line_alone() {
    let mut scene = Scene::start();
    let key = format!("kubernetes:{}/{SECRET}", scene.namespace);
    let members: Vec<String> = (0..3).map(|node| format!("--member={}={}", name(node), scene.address(node))).collect();
    let mut arguments = vec!["--size", "64M", "--key", &key, "--failure-mode", "2"];
    arguments.extend(members.iter().map(String::as_str));
    succeed(&mut scene.create(&arguments));
    // A process that ends at once has told its last.
    assert_eq!(scene.events(), ["Created"]);
    let spec = scene.object()["spec"].clone();
    assert_eq!((&spec["size"], &spec["failureMode"]), (&"64Mi".into(), &"2".into()));
    assert_eq!(spec["key"]["secretName"], SECRET);
    let said = fail(&mut scene.create(&arguments));
    assert!(said.contains("exists already"), "{said}");
    let said = fail(&mut scene.create(&[]));
    assert!(said.contains("has its copies already"), "{said}");

    let writer = scene.serve(1);
    let mut guest = Guest::connect(&writer.socket);
    guest.write(0, &[5; BLOCK]);
    guest.flush();
    drop(guest);
    writer.process.terminate();
    assert!(scene.events().iter().any(|reason| reason == "Attached"), "{:?}", scene.events());
    let writer = scene.serve(2);
    assert_eq!(Guest::connect(&writer.socket).read(0, BLOCK), [5; BLOCK]);
    writer.process.terminate();
    scene.assert_equal();
}

#[test]
fn of_two_nodes_that_attach_at_once_one_serves_and_the_other_says_who() {
    let mut scene = Scene::with_volume();
    let mut writers = [scene.begin_to_serve(0), scene.begin_to_serve(1)];
    let deadline = Instant::now() + LONG;
    let loser = loop {
        if let Some(loser) = (0..2).find(|&node| !writers[node].process.is_running()) {
            break loser;
        }
        assert!(Instant::now() < deadline, "both go on");
        thread::sleep(Duration::from_millis(20));
    };
    let winner = 1 - loser;
    let said = writers[loser].process.said();
    assert!(said.contains(&format!("it runs on node {}", name(winner))), "{said}");
    let socket = writers[winner].socket.clone();
    writers[winner].await_socket();
    let mut guest = Guest::connect(&socket);
    guest.write(0, &[1; BLOCK]);
    guest.flush();
    scene.await_column("WRITER", &name(winner));
}

#[test]
fn a_forced_attach_takes_the_volume_over() {
    let mut scene = Scene::with_volume();
    let mut old = scene.serve(0);
    let load = Load::start(&old.socket, Model::new(BLOCKS), Manner::usual(62));
    load.await_progress(500);
    let new = scene.serve(1);
    let model = load.abandon();
    assert!(!old.process.await_end(LONG).success());
    scene.await_column("WRITER", "node-b");
    Load::start(&new.socket, model, Manner::usual(63)).finish();
    scene.await_column("IN-SYNC", "3/3");
    new.process.terminate();
    scene.assert_equal();
}

#[test]
fn while_the_api_server_is_gone_io_goes_on_and_waits_when_a_node_is_lost() {
    without_api_server(Cluster::stop_api_server, Cluster::start_api_server);
}

#[test]
fn while_the_api_server_hangs_io_goes_on_and_waits_when_a_node_is_lost() {
    without_api_server(
        |cluster| cluster.signal_api_server(Signal::STOP),
        |cluster| cluster.signal_api_server(Signal::CONT),
    );
}

fn without_api_server(away: impl Fn(&Cluster), back: impl Fn(&Cluster)) {
    let mut scene = Scene::with_volume();
    let mut writer = scene.serve(0);
    let load = Load::start(&writer.socket, Model::new(BLOCKS), Manner::usual(64));
    load.await_progress(200);
    away(&scene.cluster);
    load.await_progress(1000);
    scene.kill_replica(2);
    writer.process.await_line("the view cannot be changed");
    // No write is acknowledged that the lost copy lacks.
    load.await_standstill("a copy is lost and the view cannot be changed");
    back(&scene.cluster);
    load.await_progress(500);
    scene.await_column("IN-SYNC", "2/3");
    scene.start_replica(2);
    scene.await_column("IN-SYNC", "3/3");
    load.finish();
    writer.process.terminate();
    scene.assert_equal();
}

#[test]
fn a_node_that_is_no_member_attaches_the_volume_by_its_name() {
    let mut scene = Scene::with_volume();
    let home = NODES;
    let mut old = scene.serve(home);
    scene.await_column("WRITER", "node-d");
    scene.await_column("READY", "True");
    let mut load = Load::start(&old.socket, Model::new(BLOCKS), Manner::usual(65));
    load.await_progress(300);
    scene.kill_replica(0);
    scene.await_column("IN-SYNC", "2/3");
    load.await_progress(300);
    scene.start_replica(0);
    scene.await_column("IN-SYNC", "3/3");
    // To a member and back.
    for node in [1, home] {
        load.await_progress(300);
        let new = scene.serve(node);
        let model = load.abandon();
        assert!(!old.process.await_end(LONG).success());
        scene.await_column("WRITER", &name(node));
        load = Load::start(&new.socket, model, Manner::usual(66));
        old = new;
    }
    scene.await_column("IN-SYNC", "3/3");
    load.finish();
    old.process.terminate();
    scene.assert_equal();
    assert!(!scene.has_folder(home), "nothing is stored on the node");
    let refused: Vec<_> = scene.requests().into_iter().filter(|request| request.ends_with(" 403")).collect();
    assert_eq!(refused, [] as [String; 0], "deploy/ grants what it takes");

    // A Volume that says another size than its copies have is not attached.
    let view = scene.view_number();
    let patch = r#"{"spec":{"size":"128Mi"}}"#;
    scene.cluster.kubectl(&[
        "-n",
        &scene.namespace,
        "patch",
        "volumes.sealblk.io",
        VOLUME,
        "--type=merge",
        "-p",
        patch,
    ]);
    let mut writer = scene.begin_to_serve(home);
    assert_eq!(writer.process.await_end(LONG).code(), Some(1));
    let said = writer.process.said();
    assert!(said.contains("its size is 134217728 and that of its copies is 67108864: set it back"), "{said}");
    assert_eq!(scene.view_number(), view);
}

#[test]
fn an_attach_that_waits_for_the_api_server_ends_when_it_is_told_to() {
    let mut scene = Scene::with_volume();
    let ends = |scene: &mut Scene, waits: &dyn Fn(&mut Process)| {
        let mut writer = scene.begin_to_serve(0);
        waits(&mut writer.process);
        writer.process.signal(Signal::TERM);
        let told = Instant::now();
        let status = writer.process.await_end(LONG);
        let (took, said) = (told.elapsed(), writer.process.said());
        assert!(status.success() && said.contains("nothing was served"), "{status}: {said}");
        assert!(took < Duration::from_secs(3), "{took:?}: {said}");
    };
    scene.cluster.signal_api_server(Signal::STOP);
    ends(&mut scene, &|_| thread::sleep(Duration::from_secs(1)));
    scene.cluster.signal_api_server(Signal::CONT);
    let view = scene.view_number();
    scene.cluster.stop_api_server();
    ends(&mut scene, &|process| process.await_line("cannot get volume"));
    scene.cluster.start_api_server();
    assert_eq!(scene.view_number(), view, "nothing was claimed");
    scene.serve(0).process.terminate();
}

/// The server of the tests does not know these rules, but must not trip over them.
#[test]
fn a_server_that_does_not_know_the_rules_leaves_them_out() {
    let scene = Scene::start();
    let rules = std::fs::read_to_string(deployed("volume-rules.yaml")).expect("the rules");
    let rules: serde_json::Value = serde_norway::from_str(&rules).expect("a patch");
    assert!(rules.as_array().is_some_and(|rules| rules.len() >= 9), "{rules}");
    scene.cluster.kubectl(&["patch", "crd", "volumes.sealblk.io", "--type=json", "-p", &rules.to_string()]);
    scene.cluster.apply(&scene.manifest().to_string());
    let mut nonsense = scene.manifest();
    for (field, value) in [("size", "big"), ("failureMode", "9"), ("belowMin", "panic")] {
        nonsense["spec"][field] = value.into();
        nonsense["metadata"]["name"] = "nonsense".into();
        let output = scene.cluster.try_with_manifest("create", &nonsense.to_string());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(field), "{field}: {said}");
        nonsense = scene.manifest();
    }
}

/// How often a time without a change of the view is looked for.
const RESTS_MAX: usize = 10;
