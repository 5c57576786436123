//! The back ends: what each is made of.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::harness::load::{self, Sample};
use super::harness::scratch::{Program, Scratch, finish};
use super::harness::workload::Workload;
use super::harness::{Outcome, listening, machine};
use super::quorum;

/// One of those that are compared.
#[derive(Clone, Copy)]
pub struct Kind {
    /// What `BACKENDS` picks it by.
    pub id: &'static str,
    /// What reports call it.
    pub name: &'static str,
    /// It is measured without being picked.
    pub usual: bool,
    make: Make,
}

#[derive(Clone, Copy)]
enum Make {
    /// With so many copies.
    Sealblk {
        copies: usize,
        tls: bool,
        /// Flags of the replicas, and of the writer and the replicas.
        replicas: &'static [&'static str],
        all: &'static [&'static str],
    },
    Quorum,
}

/// All of them. The first is what ratios are about.
pub const KINDS: [Kind; 6] = [
    Kind { id: "three-copies", name: "sealblk, 3 copies", usual: true, make: THREE_COPIES },
    Kind {
        id: "plaintext",
        name: "the same without TLS",
        usual: true,
        make: Make::Sealblk { copies: 3, tls: false, replicas: &[], all: &[] },
    },
    Kind {
        id: "one-copy",
        name: "sealblk, not replicated",
        usual: true,
        make: Make::Sealblk { copies: 1, tls: true, replicas: &[], all: &[] },
    },
    Kind { id: "qsd-quorum", name: "QSD: LUKS, quorum, NBD+TLS", usual: true, make: Make::Quorum },
    Kind {
        id: "write-through",
        name: "3 copies, no write-behind",
        usual: false,
        make: Make::Sealblk { copies: 3, tls: true, replicas: &["--write-behind", "0"], all: &[] },
    },
    Kind {
        id: "sleeping",
        name: "3 copies, no watching",
        usual: false,
        make: Make::Sealblk { copies: 3, tls: true, replicas: &[], all: &["--poll-us", "0"] },
    },
];

const THREE_COPIES: Make = Make::Sealblk { copies: 3, tls: true, replicas: &[], all: &[] };

/// A back end with a full disk.
pub struct Backend {
    /// Which.
    pub kind: Kind,
    size: u64,
    socket: PathBuf,
    /// The one that serves, and those behind it.
    programs: Vec<Program>,
}

impl Backend {
    /// Makes its disk and starts it.
    pub fn start(kind: Kind, scratch: &Scratch, size: u64) -> Outcome<Backend> {
        eprintln!("  {}: filling {} MiB in {}", kind.name, size >> 20, scratch.place().display());
        let folder = scratch.path().join(kind.id);
        fs::create_dir(&folder)?;
        let socket = folder.join("blk.sock");
        let programs = match kind.make {
            Make::Sealblk { copies: 1, .. } => one_copy(&folder, &socket, size)?,
            Make::Sealblk { copies, tls, replicas, all } => {
                several_copies(&folder, &socket, size, copies, tls, [replicas, all])?
            }
            Make::Quorum => quorum::start(&folder, &socket, size)?,
        };
        let backend = Backend { kind, size, socket, programs };
        load::fill(&backend.socket, size).map_err(|error| backend.told(error))?;
        Ok(backend)
    }

    /// Asks `workload` of it for some seconds. CPU time is that of all its programs.
    pub fn run(&self, workload: &Workload, seconds: f64) -> Outcome<Sample> {
        let cpu = || self.programs.iter().map(|program| machine::cpu_seconds(program.id())).sum();
        load::run(&self.socket, self.size, workload, seconds, cpu).map_err(|error| self.told(error))
    }

    fn told(&self, error: impl std::fmt::Display) -> Box<dyn std::error::Error + Send + Sync> {
        let text = error.to_string();
        self.programs
            .iter()
            .fold(text.into(), |text: Box<dyn std::error::Error + Send + Sync>, program| program.told(text))
    }
}

/// Makes certificates for the nodes.
pub fn certificates(folder: &Path, nodes: &[String]) -> Outcome<()> {
    let mut command = Command::new(SEALBLK);
    command.args(["tls", "bootstrap"]).arg(folder.join("tls"));
    nodes.iter().for_each(|node| _ = command.args(["--node", node]));
    finish(&mut command, "none: build sealblk")
}

/// A port of the loopback interface that nobody uses.
pub fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn one_copy(folder: &Path, socket: &Path, size: u64) -> Outcome<Vec<Program>> {
    let volume = folder.join("volume");
    let mut create = Command::new(SEALBLK);
    create.args(["volume", "create", "--size", &size.to_string()]).arg(&volume).args(key(folder)?);
    finish(&mut create, "none: build sealblk")?;
    let mut serve = Command::new(SEALBLK);
    serve.arg("serve").arg(&volume).arg("--socket").arg(socket).args(key(folder)?).env("RUST_LOG", "error");
    Ok(vec![listening::start("serve", serve, socket, folder, "none: build sealblk")?])
}

fn several_copies(
    folder: &Path,
    socket: &Path,
    size: u64,
    copies: usize,
    tls: bool,
    [of_replicas, of_all]: [&[&str]; 2],
) -> Outcome<Vec<Program>> {
    let nodes: Vec<String> = (0..copies).map(|index| format!("node-{index}")).collect();
    certificates(folder, &nodes)?;
    let command = || {
        let mut command = Command::new(SEALBLK);
        if !tls {
            command.env("SEALBLK_BENCH_PLAINTEXT", "1");
        }
        command.env("RUST_LOG", "warn");
        command
    };
    let files = |node: &str| {
        let file = |name: &str| folder.join("tls").join(node).join(name);
        [
            ("--tls-cert", file("cert.pem")),
            ("--tls-key", file("key.pem")),
            ("--tls-ca", folder.join("tls").join("ca.pem")),
        ]
    };
    let mut programs = Vec::new();
    let mut members = Vec::new();
    for node in &nodes {
        let root = folder.join(node);
        fs::create_dir(&root)?;
        let address = format!("127.0.0.1:{}", free_port()?);
        let mut replica = command();
        replica.arg("replica").arg("--root").arg(&root).args(["--listen", &address]);
        files(node).iter().for_each(|(flag, file)| _ = replica.arg(flag).arg(file));
        replica.args(of_replicas).args(of_all);
        let control = root.join(".control");
        programs.push(listening::start(node, replica, &control, folder, "none: build sealblk")?);
        members.push(format!("{node}={address}"));
    }
    let views = folder.join("views");
    fs::create_dir(&views)?;
    let view = format!("file:{}", views.display());
    let mut create = command();
    create.args(["volume", "create", "--size", &size.to_string(), "--view", &view]).args(key(folder)?);
    members.iter().for_each(|member| _ = create.args(["--member", member]));
    files(&nodes[0]).iter().for_each(|(flag, file)| _ = create.arg(flag).arg(file));
    finish(&mut create, "none: build sealblk")?;
    let mut serve = command();
    serve.arg("serve").arg(only_copy(&folder.join(&nodes[0]))?).arg("--socket").arg(socket);
    serve.args(["--view", &view]).args(key(folder)?);
    files(&nodes[0]).iter().for_each(|(flag, file)| _ = serve.arg(flag).arg(file));
    serve.args(of_all);
    programs.insert(0, listening::start("serve", serve, socket, folder, "none: build sealblk")?);
    Ok(programs)
}

/// The folder of the only copy below `root`.
fn only_copy(root: &Path) -> Outcome<PathBuf> {
    let folders = fs::read_dir(root)?.filter_map(Result::ok).map(|entry| entry.path());
    folders.into_iter().find(|path| path.join("volume.json").exists()).ok_or_else(|| "no copy was made".into())
}

fn key(folder: &Path) -> Outcome<[String; 2]> {
    let path = folder.join("key");
    fs::write(&path, (0..64).collect::<Vec<u8>>())?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(["--key".to_owned(), format!("file:{}", path.display())])
}

const SEALBLK: &str = env!("CARGO_BIN_EXE_sealblk");
