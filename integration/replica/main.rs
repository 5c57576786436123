//! `sealblk replica` as a node runs it: its certificates are made by `sealblk tls bootstrap`, and a writer
//! on another node speaks to it over real TLS.

mod crowd;
mod node;
mod writer;

use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::process::Command;

use node::{Cluster, Node};
use sealblk::replication::message::{Reply, Request};
use sealblk::replication::transport::OpenError;
use sealblk::replication::view::ViewNumber;
use writer::Writer;

#[test]
fn a_copy_outlives_the_process_that_keeps_it() {
    let (cluster, writer) = (Cluster::new(), Writer::new());
    let mut node = Node::start(&cluster);
    assert_ne!(node.address().port(), 0);
    let made = writer.create(&cluster, node.address()).unwrap();
    let mut session = writer.open(&cluster, node.address(), 1, 1, true).unwrap();
    assert_eq!(session.welcome, made);
    assert_eq!(session.accept(writer.view(2)), Reply::Done);
    let data: Vec<u8> = (0..16384_u32).map(|index| (index % 251) as u8 + 1).collect();
    assert_eq!(session.write(4096, &data), Reply::Done);
    assert_eq!(session.ask(&Request::Flush, &[]).0, Reply::Done);
    assert_eq!(session.read(4096, 16384), data);
    assert_eq!(session.read(0, 4096), [0; 4096]);

    let error = writer.open(&cluster, node.address(), 2, 2, false).unwrap_err();
    assert!(matches!(error, OpenError::Refused { .. }), "{error}");
    let line = node.await_line("refused ");
    assert!(line.contains("node-a") && line.contains(&writer.volume().to_string()), "{line}");

    let (status, said) = node.terminate();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("everything is durable"), "{said}");
    let mut stored = vec![0; data.len()];
    let file = cluster.copies().join(writer.volume().to_string()).join("data");
    std::fs::File::open(file).unwrap().read_exact_at(&mut stored, 4096).unwrap();
    assert_eq!(stored, data, "the very bytes lie where they belong");

    let node = Node::start(&cluster);
    let mut session = writer.open(&cluster, node.address(), 2, 1, true).unwrap();
    assert_eq!(session.welcome.accepted, ViewNumber(2));
    assert_ne!(session.welcome.incarnation, made.incarnation, "it may have lost what was not flushed");
    assert_eq!(session.read(4096, 16384), data);
}

#[test]
fn what_it_cannot_start_with_is_said_in_one_line() {
    let cluster = Cluster::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = port.local_addr().unwrap().to_string();
    fails(cluster.command(&taken), 1, &[&taken, "in use", "port that is free"]);
    fails(cluster.command("nowhere"), 2, &["nowhere", "--listen"]);

    std::fs::remove_dir(cluster.copies()).unwrap();
    fails(cluster.command("127.0.0.1:0"), 1, &["copies", "No such file", "check the folder"]);
    std::fs::write(cluster.copies(), "a file").unwrap();
    fails(cluster.command("127.0.0.1:0"), 1, &["copies", "check the folder"]);
    std::fs::remove_file(cluster.copies()).unwrap();
    std::fs::create_dir(cluster.copies()).unwrap();

    let node = Node::start(&cluster);
    fails(cluster.command("127.0.0.1:0"), 1, &["another replica", "copies", "stop that one first"]);
    assert_eq!(node.terminate().0.code(), Some(0));

    let mut other = cluster.command("127.0.0.1:0");
    other.args(["--node", "node-z"]);
    fails(other, 1, &["certificate is of node-b", "node node-z", "of its own name"]);
    let mut without = cluster.command("127.0.0.1:0");
    without.args(["--tls-crl", "nothing.pem"]);
    fails(without, 1, &["nothing.pem", "No such file"]);
    let certificate = cluster.files("node-b").cert;
    std::fs::write(&certificate, "no certificate").unwrap();
    fails(cluster.command("127.0.0.1:0"), 1, &[certificate.to_str().unwrap()]);
    std::fs::copy(cluster.files("node-a").cert, &certificate).unwrap();
    fails(cluster.command("127.0.0.1:0"), 1, &[certificate.to_str().unwrap(), "key"]);
}

#[test]
fn its_state_can_be_asked_for_where_it_runs_and_nowhere_else() {
    let cluster = Cluster::new();
    fails(cluster.status(&[]), 1, &["no replica has its copies in", "copies", "--root"]);
    let node = Node::start(&cluster);
    let output = cluster.status(&["--ready"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[2]), ("node          node-b", "copies        0 in use"));
    assert!(lines[1].starts_with("certificate   good for ") && lines.len() == 3, "{text}");
    let mut both = cluster.status(&[]);
    both.args(["--listen", "127.0.0.1:0"]);
    fails(both, 2, &["--listen"]);
    assert_eq!(node.terminate().0.code(), Some(0));
    fails(cluster.status(&[]), 1, &["no replica has its copies in"]);
}

/// Runs a command that must fail with this status and one line that has all of `parts`.
fn fails(mut command: Command, status: i32, parts: &[&str]) {
    let output = command.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{error}");
    let own: Vec<&str> = error.lines().filter(|line| line.starts_with("sealblk: ")).collect();
    assert_eq!(own.len(), 1, "{error}");
    assert!(parts.iter().all(|part| own[0].contains(part)), "{parts:?} are not in {error}");
}
