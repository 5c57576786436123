//! The back ends: how each is made, started, filled and asked.
//!
//! How fast a disk is depends on where a file lies on it and on what was written there before, by half and more. So
//! all whose disk is the bare bytes, encrypted or not, have one file, each by a name of its own, and a server runs only
//! while it is measured. An image with a header, LUKS, is another file.
//!
//! `qemu-storage-daemon` has three I/O engines, and which is best depends on the file system and
//! on the image's format. So each is tried for a moment on the filled image, and the best stays.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::fio::{self, Fio};
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

/// All of them. The first is what ratios are about.
pub const KINDS: [Kind; 5] = [
    Kind { id: "sealblk-xts", name: "sealblk", make: Make::Sealblk { encrypted: true, binary: None } },
    Kind {
        id: "sealblk-plain",
        name: "sealblk, not encrypted",
        make: Make::Sealblk { encrypted: false, binary: None },
    },
    Kind { id: "qsd-luks", name: "QSD, LUKS", make: Make::Qsd { luks: true } },
    Kind { id: "qsd-raw", name: "QSD, raw", make: Make::Qsd { luks: false } },
    Kind { id: "fio", name: "fio, raw file", make: Make::Fio },
];

impl Kind {
    /// Another `sealblk`, with encryption; `index` tells it from others of its kind.
    pub fn baseline(index: usize, binary: &Path) -> Self {
        let make = Make::Sealblk { encrypted: true, binary: Some(binary.to_owned()) };
        let name = format!("baseline {}", binary.display());
        // There are few, and they are needed to the end.
        Self { id: format!("baseline-{index}").leak(), name: name.leak(), make }
    }

    /// Whether what it stores is encrypted.
    pub fn is_encrypted(&self) -> bool {
        matches!(self.make, Make::Sealblk { encrypted: true, .. } | Make::Qsd { luks: true })
    }

    /// Whether it works on the file that is everybody's.
    pub fn shares_the_disk(&self) -> bool {
        !matches!(self.make, Make::Qsd { luks: true })
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
    Server(Server),
    Fio(Fio),
}

/// A program that serves a disk, when it is started.
struct Server {
    id: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
    socket: PathBuf,
    folder: PathBuf,
    package: &'static str,
}

impl Backend {
    /// Starts all that are wanted.
    pub fn start_all(scratch: &Scratch, setting: &Setting) -> Outcome<Vec<Self>> {
        fs::write(scratch.path().join("key"), (0..64).collect::<Vec<u8>>())?;
        let disk = scratch.path().join("disk");
        if setting.backends.iter().any(Kind::shares_the_disk) {
            eprintln!("  filling {} MiB in {}", setting.size >> 20, scratch.place().display());
            fio::fill(&disk, setting.size, !scratch.tmpfs, scratch.path())?;
        }
        setting.backends.iter().map(|kind| Self::start(kind, &disk, scratch, setting)).collect()
    }

    fn start(kind: &Kind, disk: &Path, scratch: &Scratch, setting: &Setting) -> Outcome<Self> {
        eprintln!("  starting {}", kind.name);
        let size = setting.size;
        let (running, how) = match &kind.make {
            Make::Sealblk { encrypted, binary } => {
                let binary = binary.as_deref().unwrap_or(Path::new(env!("CARGO_BIN_EXE_sealblk")));
                (sealblk(kind.id, binary, *encrypted, disk, scratch, setting)?, setting.sealblk_args.join(" "))
            }
            Make::Qsd { luks } => Image::create(kind.id, *luks, disk, scratch, size)?.start_best(size)?,
            Make::Fio => {
                let fio = Fio::new(disk, size, !scratch.tmpfs, scratch.path())?;
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
    fn run(&self, size: u64, workload: &Workload, seconds: f64) -> Outcome<Sample> {
        match self {
            Self::Server(server) => server.run(size, workload, seconds),
            Self::Fio(fio) => fio.run(workload, seconds),
        }
    }
}

impl Server {
    fn fill(&self, size: u64) -> Outcome<()> {
        let program = self.start()?;
        load::fill(&self.socket, size).map_err(|error| program.told(error))?;
        program.stop()
    }

    fn run(&self, size: u64, workload: &Workload, seconds: f64) -> Outcome<Sample> {
        let program = self.start()?;
        let sample = load::run(&self.socket, size, workload, seconds, || machine::cpu_seconds(program.id()))
            .map_err(|error| program.told(error))?;
        program.stop()?;
        Ok(sample)
    }

    fn start(&self) -> Outcome<Program> {
        // A daemon before this one may have left its own.
        let _ = fs::remove_file(&self.socket);
        let mut command = Command::new(&self.program);
        // Errors only: what sealblk says of every connection would be read by nobody.
        command.args(&self.arguments).env("RUST_LOG", "error");
        listening::start(self.id, command, &self.socket, &self.folder, self.package)
    }
}

fn sealblk(
    id: &'static str,
    binary: &Path,
    encrypted: bool,
    disk: &Path,
    scratch: &Scratch,
    setting: &Setting,
) -> Outcome<Running> {
    let volume = scratch.path().join(id);
    let key = match encrypted {
        true => vec!["--key".to_owned(), format!("file:{}", scratch.path().join("key").display())],
        false => vec!["--no-encryption".to_owned()],
    };
    let size = setting.size.to_string();
    let mut create = Command::new(binary);
    create.args(["volume", "create"]).arg(&volume).args(["--size", &size, "--sector-size", "512"]).args(&key);
    finish(&mut create, "none: build sealblk")?;
    let data = volume.join("data");
    fs::remove_file(&data)?;
    fs::hard_link(disk, &data)?;
    let socket = scratch.path().join(format!("{id}.sock"));
    let mut arguments: Vec<OsString> = vec!["serve".into(), volume.into(), "--socket".into(), socket.clone().into()];
    arguments.extend(key.iter().chain(&setting.sealblk_args).map(Into::into));
    Ok(Running::Server(Server {
        id,
        program: binary.to_owned(),
        arguments,
        socket,
        folder: scratch.path().to_owned(),
        package: "none: build sealblk",
    }))
}

/// An image that `qemu-storage-daemon` serves.
struct Image<'a> {
    id: &'static str,
    luks: bool,
    path: PathBuf,
    folder: &'a Path,
}

impl<'a> Image<'a> {
    fn create(id: &'static str, luks: bool, disk: &Path, scratch: &'a Scratch, size: u64) -> Outcome<Self> {
        let mut path = disk.to_owned();
        if luks {
            path = scratch.path().join(id);
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
        }
        Ok(Self { id, luks, path, folder: scratch.path() })
    }

    /// Serves it, filled, with the engine that does best.
    fn start_best(&self, size: u64) -> Outcome<(Running, String)> {
        if self.luks {
            self.server(ENGINES[0]).fill(size)?;
        }
        let mut scores = ENGINES.map(|engine| (engine, 1.0));
        // In turn, as the machine drifts.
        for _ in 0..TRIALS {
            for (engine, score) in &mut scores {
                *score *= trial(&self.server(engine), size).unwrap_or_else(|error| {
                    eprintln!("  {}: no {engine}: {error}", self.id);
                    0.0
                });
            }
        }
        let (engine, score) = scores.into_iter().max_by(|one, other| one.1.total_cmp(&other.1)).unwrap_or_default();
        if score == 0.0 {
            return Err(format!("{}: no engine works", self.id).into());
        }
        Ok((Running::Server(self.server(engine)), engine.to_owned()))
    }

    fn server(&self, engine: &str) -> Server {
        let socket = self.folder.join(format!("{}.sock", self.id));
        let path = self.path.display();
        let file = format!("driver=file,node-name=file,filename={path},cache.direct=on,{engine}");
        let format = match self.luks {
            true => "driver=luks,file=file,node-name=disk,key-secret=s",
            false => "driver=raw,file=file,node-name=disk",
        };
        let address = format!("addr.type=unix,addr.path={}", socket.display());
        let export = format!("vhost-user-blk,id=e,node-name=disk,{address},writable=on,num-queues={QUEUES}");
        let arguments = ["--object", SECRET, "--blockdev", &file, "--blockdev", format, "--export", &export];
        Server {
            id: self.id,
            program: "qemu-storage-daemon".into(),
            arguments: arguments.iter().map(Into::into).collect(),
            socket,
            folder: self.folder.to_owned(),
            package: "qemu-system-common",
        }
    }
}

/// How well it does, for comparing it with itself.
fn trial(server: &Server, size: u64) -> Outcome<f64> {
    let mut product = 1.0;
    for workload in WORKLOADS.iter().filter(|workload| TRIED.contains(&workload.id)) {
        product *= server.run(size, workload, TRIAL_SECONDS)?.operations;
    }
    Ok(product)
}

const SECRET: &str = "secret,id=s,data=benchmark";
/// The first is the one that always works.
const ENGINES: [&str; 3] = ["aio=threads", "aio=native", "aio=io_uring"];
const TRIED: [&str; 3] = ["randread-32", "randwrite-32", "seqread-16"];
const TRIALS: usize = 3;
const TRIAL_SECONDS: f64 = 0.2;
const TRIES: usize = 5;
const QUEUES: usize = 2;
