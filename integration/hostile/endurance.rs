//! Front ends that come and go, in any number, leave nothing behind.

use super::scene::Scene;
use crate::support::configuration::Configuration;
use crate::support::guest::Options;
use crate::support::message::Wire;
use crate::support::request::{Layout, Request};

under_every_engine!(thousand_front_ends_leave_nothing_behind);

fn thousand_front_ends_leave_nothing_behind(configuration: Configuration) {
    let mut scene = Scene::new(configuration);
    let cycle = |scene: &Scene, index: usize| match index % 4 {
        0 => drop(Wire::connect(scene.served.socket())),
        1 => drop(Wire::negotiated(scene.served.socket())),
        2 => drop(scene.served.guest_as(Options::CLOUD_HYPERVISOR.queues(3))),
        _ => {
            let mut guest = scene.served.guest();
            guest.read(0, 4096);
            // And one that leaves without waiting for its answers.
            let request = Request::read(0, 65536);
            for _ in 0..10 {
                let _ = guest.submit(0, &request, &Layout::usual(&request));
            }
            guest.kick(0);
        }
    };
    // Pools and arenas grow to their working size first.
    (0..200).for_each(|index| cycle(&scene, index));
    let settle = |scene: &mut Scene| {
        let mut guest = scene.served.guest();
        guest.read(0, 4096);
        (
            scene.served.open_files(),
            scene.served.threads(),
            scene.served.memory_kib("VmRSS"),
            scene.served.memory_kib("VmSize"),
        )
    };
    let before = settle(&mut scene);
    (0..1000).for_each(|index| cycle(&scene, index));
    let after = settle(&mut scene);
    assert_eq!((after.0, after.1), (before.0, before.1), "files, threads");
    // A page a connection would be 4 MiB.
    let grown = |after: u64, before: u64| after.saturating_sub(before);
    assert!(grown(after.2, before.2) < 3 << 10, "{before:?} {after:?}");
    assert!(grown(after.3, before.3) < 64 << 10, "{before:?} {after:?}");
    scene.assert_unharmed();
}
