//! What the guests boot, built by `vm-images/` on first use and shared by all tests.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The files that `vm-images/build` makes, and how this machine can run them.
pub struct Images {
    /// Where `vm-images/build` put its files.
    folder: PathBuf,
    /// The argument of QEMU's `-accel`.
    pub accelerator: String,
}

impl Images {
    /// The images, built if they are missing or older than their inputs.
    pub fn get() -> &'static Images {
        static IMAGES: OnceLock<Images> = OnceLock::new();
        IMAGES.get_or_init(|| {
            let folder = target_folder().join("vm-images");
            script("vm-images/build", &folder);
            let accelerator = script("vm-images/accelerator", &folder).trim().to_owned();
            Images { folder, accelerator }
        })
    }

    /// The Linux kernel.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The initramfs with every tool.
    pub fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs.cpio")
    }

    /// A raw disk that a BIOS boots by itself.
    pub fn boot_disk(&self) -> PathBuf {
        self.folder.join("boot-disk.img")
    }
}

/// Cargo's target folder, of which `CARGO_TARGET_TMPDIR` is the folder `tmp`.
fn target_folder() -> PathBuf {
    let mut folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    folder.pop();
    folder
}

/// Runs a script of this repository; its standard output is the answer.
fn script(path: &str, argument: impl AsRef<OsStr>) -> String {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    let output = Command::new(&script)
        .arg(argument)
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {}: {error}", script.display()));
    assert!(output.status.success(), "{path}: {}", output.status);
    String::from_utf8(output.stdout).expect("a script prints text")
}
