//! What a user could build from Debian's packages: `qemu-storage-daemon` with LUKS (aes-256, xts, plain64) over
//! `quorum` over three NBD servers, each a `qemu-storage-daemon` over a raw file, with TLS and certificates on both
//! sides.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::backend::{certificates, free_port};
use super::harness::scratch::{Program, finish};
use super::harness::{Outcome, listening};

/// Starts it: the daemon with the disk, and the three behind it.
pub fn start(folder: &Path, socket: &Path, size: u64) -> Outcome<Vec<Program>> {
    let nodes: Vec<String> = (0..COPIES).map(|index| format!("node-{index}")).collect();
    certificates(folder, &nodes)?;
    let image = folder.join("image");
    let options = "key-secret=s,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,iter-time=500";
    let create = || {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "--object", SECRET, "-f", "luks", "-o", options]);
        finish(command.arg(&image).arg(size.to_string()), "qemu-utils")
    };
    // It sometimes fails to time its key derivation; the next try succeeds.
    (0..TRIES).map(|_| create()).find(Result::is_ok).ok_or("qemu-img cannot make a LUKS image")??;

    let mut programs = Vec::new();
    let mut children = String::new();
    for (index, node) in nodes.iter().enumerate() {
        let copy = folder.join(node);
        fs::copy(&image, &copy)?;
        let tls = credentials(folder, node, "server")?;
        let port = free_port()?;
        let mut server = Command::new("qemu-storage-daemon");
        let file = format!("driver=file,node-name=f,filename={},cache.direct=on,aio=native", copy.display());
        let address = format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=tls");
        server.args(["--object", &tls, "--blockdev", &file, "--nbd-server", &address]);
        server.args(["--export", "nbd,id=e,node-name=f,name=disk,writable=on"]);
        let mut program = Program::start(node, server, folder, "qemu-system-common")?;
        await_port(port, &mut program)?;
        programs.push(program);
        children += &format!(
            ",children.{index}.driver=nbd,children.{index}.server.type=inet,children.{index}.server.host=127.0.0.1,\
             children.{index}.server.port={port},children.{index}.export=disk,children.{index}.tls-creds=tls,\
             children.{index}.tls-hostname={node}"
        );
    }
    let mut daemon = Command::new("qemu-storage-daemon");
    let quorum = format!("driver=quorum,node-name=q,vote-threshold=2{children}");
    let export =
        format!("vhost-user-blk,id=e,node-name=disk,addr.type=unix,addr.path={},writable=on", socket.display());
    daemon.args(["--object", SECRET, "--object", &credentials(folder, &nodes[0], "client")?]);
    daemon.args(["--blockdev", &quorum, "--blockdev", "driver=luks,file=q,node-name=disk,key-secret=s"]);
    daemon.args(["--export", &export]);
    programs.insert(0, listening::start("quorum", daemon, socket, folder, "qemu-system-common")?);
    Ok(programs)
}

/// A node's certificate under the names that QEMU looks for.
fn credentials(folder: &Path, node: &str, endpoint: &str) -> Outcome<String> {
    let own = folder.join("tls").join(node);
    let theirs = folder.join(format!("{node}-{endpoint}"));
    fs::create_dir(&theirs)?;
    fs::copy(folder.join("tls").join("ca.pem"), theirs.join("ca-cert.pem"))?;
    fs::copy(own.join("cert.pem"), theirs.join(format!("{endpoint}-cert.pem")))?;
    fs::copy(own.join("key.pem"), theirs.join(format!("{endpoint}-key.pem")))?;
    Ok(format!("tls-creds-x509,id=tls,endpoint={endpoint},dir={},verify-peer=on", theirs.display()))
}

fn await_port(port: u16, program: &mut Program) -> Outcome<()> {
    let start = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if program.has_ended() || start.elapsed() > PATIENCE {
            return Err(program.told("it does not listen"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

const COPIES: usize = 3;
const SECRET: &str = "secret,id=s,data=benchmark";
const TRIES: usize = 5;
const PATIENCE: Duration = Duration::from_secs(20);
