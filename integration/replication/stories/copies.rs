//! What a guest writes is on every copy, and nothing of it can be read there.

use std::fs;

use crate::cluster::{Cluster, Plan};
use crate::model::{BLOCK, MARK, Model};
use crate::support::search::Traces;
use crate::workload::{Load, Manner};

#[test]
fn what_a_guest_writes_is_on_every_copy_and_only_as_ciphertext() {
    let mut cluster = Cluster::start(&Plan::USUAL);
    let writer = cluster.serve(0, &[]);
    cluster.await_in_sync(0);
    let model = Model::new(Plan::USUAL.size_bytes as usize / BLOCK);
    let load = Load::start(&writer.socket, model, Manner::usual(1));
    load.await_progress(3000);
    let model = load.finish();
    assert!(model.written() > 1000, "{} blocks were written", model.written());
    writer.process.terminate();
    cluster.assert_equal();

    let mark = MARK.to_le_bytes();
    let traces = Traces::of(&[&cluster.key()]);
    for node in 0..Plan::USUAL.nodes {
        for file in fs::read_dir(cluster.copy(node)).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                let bytes = fs::read(&path).unwrap();
                let found = bytes.windows(mark.len()).position(|window| window == mark);
                assert_eq!(found, None, "plaintext lies in {}", path.display());
                assert_eq!(traces.count(&bytes), 0, "the key lies in {}", path.display());
            }
        }
        assert!(fs::read(cluster.copy(node).join("data")).unwrap().iter().any(|&byte| byte != 0));
    }
}
