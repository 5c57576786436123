//! A folder as the kubelet and cert-manager's CSI driver mount one: each version of the files is in a folder of its
//! own, `..data` is a link to the newest, and every file is a link through that. One rename changes all files.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The folder.
#[derive(Clone, Debug)]
pub struct Mounted {
    path: PathBuf,
}

impl Mounted {
    /// One with nothing in it.
    pub fn create(path: PathBuf) -> Mounted {
        fs::create_dir(&path).expect("the mounted folder");
        Mounted { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Puts these files in the place of all that are there.
    pub fn write(&self, files: &[(&str, Vec<u8>)]) {
        static VERSIONS: AtomicU32 = AtomicU32::new(0);
        let version = format!("..2026_11_28_{:09}", VERSIONS.fetch_add(1, Ordering::Relaxed));
        let folder = self.path.join(&version);
        fs::create_dir(&folder).expect("a folder for a version");
        for (name, content) in files {
            fs::write(folder.join(name), content).expect("a file of the version");
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o440)).expect("its mode");
        }
        let data = self.path.join(DATA);
        let before = fs::read_link(&data).ok();
        let next = self.path.join(NEXT);
        symlink(&version, &next).expect("a link to the version");
        fs::rename(&next, &data).expect("the version takes its place");
        for (name, _) in files.iter().filter(|(name, _)| fs::symlink_metadata(self.file(name)).is_err()) {
            symlink(Path::new(DATA).join(name), self.file(name)).expect("a link to the file");
        }
        if let Some(before) = before {
            fs::remove_dir_all(self.path.join(before)).expect("the version of before");
        }
    }
}

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";
