//! The back ends: how each is made, started, filled and asked.
//!
//! `qemu-storage-daemon` has three I/O engines, and which is best depends on the file system and
//! on the image's format. So each is tried for a moment on the filled image, and the best stays.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fio::Fio;
use super::harness::load::{self, Sample};
use super::harness::scratch::{Program, Scratch, finish};
use super::harness::workload::Workload;
use super::harness::{Outcome, listening, machine};
use super::setting::Setting;
use super::workload::WORKLOADS;

/// One of those that are compared.
#[derive(Clone, Debug)]
pub struct Kind {
    /// What `BACKENDS` picks it by.
    pub id: &'static str,
    /// What reports call it.
    pub name: &'static str,
    make: Make,
}

#[derive(Clone, Debug)]
enum Make {
    /// This build's binary, or another.
    Sealblk {
        encrypted: bool,
        binary: Option<PathBuf>,
    },
    Qsd {
        luks: bool,
    },
    Fio,
}

const PLAIN: &str = "sealblk-plain";

/// All of them. The first is what ratios are about.
pub const KINDS: [Kind; 5] = [
    Kind { id: "sealblk-xts", name: "sealblk", make: Make::Sealblk { encrypted: true, binary: None } },
    Kind { id: PLAIN, name: "sealblk, not encrypted", make: Make::Sealblk { encrypted: false, binary: None } },
    Kind { id: "qsd-luks", name: "QSD, LUKS", make: Make::Qsd { luks: true } },
    Kind { id: "qsd-raw", name: "QSD, raw", make: Make::Qsd { luks: false } },
    Kind { id: "fio", name: "fio, raw file", make: Make::Fio },
];

impl Kind {
    /// Another `sealblk`, with encryption.
    pub fn baseline(binary: PathBuf) -> Self {
        let make = Make::Sealblk { encrypted: true, binary: Some(binary) };
        Self { id: "baseline", name: "BASELINE", make }
    }

    /// Whether what it stores is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.make, Make::Sealblk { encrypted: true, .. } | Make::Qsd { luks: true })
    }
}

/// A back end with a full disk.
pub struct Backend {
    /// Which.
    pub kind: Kind,
    /// How it does its I/O, for the report.
    pub how: String,
    size: u64,
    running: Running,
}

enum Running {
    Server { program: Program, socket: PathBuf },
    Fio(Fio),
}

impl Backend {
    /// Starts all that are wanted.
    pub fn start_all(scratch: &Scratch, setting: &Setting) -> Outcome<Vec<Self>> {
        fs::write(scratch.path().join("key"), (0..64).collect::<Vec<u8>>())?;
        setting.backends.iter().map(|kind| Self::start(kind, scratch, setting)).collect()
    }

    fn start(kind: &Kind, scratch: &Scratch, setting: &Setting) -> Outcome<Self> {
        eprintln!("  {}: filling {} MiB in {}", kind.name, setting.size >> 20, scratch.place().display());
        let size = setting.size;
        let (running, how) = match &kind.make {
            Make::Sealblk { encrypted, binary } => {
                let binary = binary.as_deref().unwrap_or(Path::new(env!("CARGO_BIN_EXE_sealblk")));
                let running = sealblk(kind.id, binary, *encrypted, scratch, setting)?;
                running.fill(size)?;
                (running, setting.sealblk_args.join(" "))
            }
            Make::Qsd { luks } => Image::create(kind.id, *luks, scratch, size)?.start_best(size)?,
            Make::Fio => {
                // The file of the volume without encryption, where there is one: how fast a disk is
                // depends on where a file lies and on what was written there before.
                let shared = scratch.path().join(PLAIN).join("data");
                let fio = if shared.exists() {
                    Fio::on(shared, size, !scratch.tmpfs, scratch.path())?
                } else {
                    Fio::new(scratch.path().join(kind.id), size, !scratch.tmpfs, scratch.path())?
                };
                let how = fio.how();
                (Running::Fio(fio), how)
            }
        };
        Ok(Self { kind: kind.clone(), how, size, running })
    }

    /// Asks `workload` of it for some seconds.
    pub fn run(&self, workload: &Workload, seconds: f64) -> Outcome<Sample> {
        self.running.run(self.size, workload, seconds)
    }
}

impl Running {
    fn fill(&self, size: u64) -> Outcome<()> {
        match self {
            Self::Server { program, socket } => load::fill(socket, size).map_err(|error| program.told(error)),
            Self::Fio(_) => Ok(()),
        }
    }

    fn run(&self, size: u64, workload: &Workload, seconds: f64) -> Outcome<Sample> {
        match self {
            Self::Server { program, socket } => {
                load::run(socket, size, workload, seconds, || machine::cpu_seconds(program.id()))
                    .map_err(|error| program.told(error))
            }
            Self::Fio(fio) => fio.run(workload, seconds),
        }
    }
}

fn sealblk(id: &str, binary: &Path, encrypted: bool, scratch: &Scratch, setting: &Setting) -> Outcome<Running> {
    let volume = scratch.path().join(id);
    let key = match encrypted {
        true => vec!["--key".to_owned(), format!("file:{}", scratch.path().join("key").display())],
        false => vec!["--no-encryption".to_owned()],
    };
    let size = setting.size.to_string();
    let mut create = Command::new(binary);
    create.args(["volume", "create"]).arg(&volume).args(["--size", &size, "--sector-size", "512"]).args(&key);
    finish(&mut create, "none: build sealblk")?;
    let socket = scratch.path().join(format!("{id}.sock"));
    let mut serve = Command::new(binary);
    serve.arg("serve").arg(&volume).arg("--socket").arg(&socket).args(&key).args(&setting.sealblk_args);
    // Errors only: what it says of every connection would be read by nobody.
    serve.env("RUST_LOG", "error");
    server(id, serve, socket, scratch.path(), "none: build sealblk")
}

/// An image that `qemu-storage-daemon` serves.
struct Image<'a> {
    id: &'a str,
    luks: bool,
    path: PathBuf,
    folder: &'a Path,
}

impl<'a> Image<'a> {
    fn create(id: &'a str, luks: bool, scratch: &'a Scratch, size: u64) -> Outcome<Self> {
        let path = scratch.path().join(id);
        if luks {
            let create = || {
                let options = "key-secret=s,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,iter-time=500";
                let mut command = Command::new("qemu-img");
                command.args(["create", "-q", "--object", SECRET, "-f", "luks", "-o", options]);
                finish(command.arg(&path).arg(size.to_string()), "qemu-utils")
            };
            // It sometimes fails to time its key derivation; the next try succeeds.
            let mut result = create();
            for _ in 1..TRIES {
                result = result.or_else(|_| create());
            }
            result?;
        } else {
            File::create(&path)?.set_len(size)?;
        }
        Ok(Self { id, luks, path, folder: scratch.path() })
    }

    /// Fills it, and serves it with the engine that does best.
    fn start_best(&self, size: u64) -> Outcome<(Running, String)> {
        self.start(ENGINES[0]).and_then(|running| running.fill(size))?;
        let mut best: Option<(f64, &str)> = None;
        for engine in ENGINES {
            match self.start(engine).and_then(|running| trial(&running, size)) {
                Ok(score) if best.is_none_or(|(best, _)| score > best) => best = Some((score, engine)),
                Ok(_) => {}
                Err(error) => eprintln!("  {}: no {engine}: {error}", self.id),
            }
        }
        let (_, engine) = best.ok_or_else(|| format!("{}: no engine works", self.id))?;
        Ok((self.start(engine)?, engine.to_owned()))
    }

    fn start(&self, engine: &str) -> Outcome<Running> {
        let socket = self.folder.join(format!("{}.sock", self.id));
        let path = self.path.display();
        let file = format!("driver=file,node-name=file,filename={path},cache.direct=on,{engine}");
        let format = match self.luks {
            true => "driver=luks,file=file,node-name=disk,key-secret=s",
            false => "driver=raw,file=file,node-name=disk",
        };
        let address = format!("addr.type=unix,addr.path={}", socket.display());
        let export = format!("vhost-user-blk,id=e,node-name=disk,{address},writable=on,num-queues={QUEUES}");
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--object", SECRET, "--blockdev", &file, "--blockdev", format, "--export", &export]);
        // A daemon before this one may have been killed on the same path.
        let _ = fs::remove_file(&socket);
        server(self.id, command, socket, self.folder, "qemu-system-common")
    }
}

/// How well it does, for comparing it with itself.
fn trial(running: &Running, size: u64) -> Outcome<f64> {
    let mut product = 1.0;
    for workload in WORKLOADS.iter().filter(|workload| TRIALS.contains(&workload.id)) {
        product *= running.run(size, workload, TRIAL_SECONDS)?.operations;
    }
    Ok(product)
}

/// Starts a program and waits until it listens.
fn server(id: &str, command: Command, socket: PathBuf, folder: &Path, package: &str) -> Outcome<Running> {
    let program = listening::start(id, command, &socket, folder, package)?;
    Ok(Running::Server { program, socket })
}

const SECRET: &str = "secret,id=s,data=benchmark";
/// The first is the one that always works.
const ENGINES: [&str; 3] = ["aio=threads", "aio=native", "aio=io_uring"];
const TRIALS: [&str; 3] = ["randread-32", "randwrite-32", "seqread-16"];
const TRIAL_SECONDS: f64 = 0.4;
const TRIES: usize = 5;
const QUEUES: usize = 2;
