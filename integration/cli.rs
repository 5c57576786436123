//! The command as its users run it: what it prints, how it fails, and what it leaves on the disk.
//!
//! The disk format is checked against OpenSSL through the mapping rule of dm-crypt's plain format as
//! it is documented, written here a second time and sharing nothing with the code under test.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openssl::symm::{Cipher, Crypter, Mode};
use sealblk::store::{Access, Store};
use serde_json::Value;

/// A folder to work in, with a raw key in it.
struct Bench {
    root: tempfile::TempDir,
    key: Vec<u8>,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { root: tempfile::tempdir().unwrap(), key: random(64) };
        bench.write("key", &bench.key);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes a file that only its owner can read.
    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// The command with arguments separated by spaces, run in the folder.
    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command.args(arguments.split_whitespace()).current_dir(self.root.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed, and returns what it printed.
    fn run(&self, arguments: &str) -> Vec<u8> {
        let output = self.command(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {error}");
        assert_eq!(error, "", "{arguments}");
        output.stdout
    }

    /// Runs a command that must fail with this status and one line that has all of `parts`.
    fn fails(&self, status: i32, arguments: &str, parts: &[&str]) {
        let output = self.command(arguments).output().unwrap();
        self.check_failure(&output, status, arguments, parts);
    }

    fn check_failure(&self, output: &Output, status: i32, arguments: &str, parts: &[&str]) {
        let error = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments}: {error}");
        assert_eq!(output.stdout, b"", "{arguments}");
        assert!(error.starts_with("sealblk: "), "{arguments}: {error}");
        assert_eq!(error.lines().count(), 1, "{arguments}: {error}");
        for part in parts {
            assert!(error.contains(part), "{arguments}: no {part:?} in {error}");
        }
        for piece in STANDARD.encode(&self.key).as_bytes().chunks_exact(8) {
            assert!(!error.contains(std::str::from_utf8(piece).unwrap()), "{arguments}: {error}");
        }
    }

    fn info(&self, dir: &str) -> Value {
        serde_json::from_slice(&self.run(&format!("volume info {dir} --json"))).unwrap()
    }
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    openssl::rand::rand_bytes(&mut bytes).unwrap();
    bytes
}

/// Runs a whole disk through dm-crypt's plain format `aes-xts-plain64` with a 512-bit key: each
/// `sector_size` bytes are one XTS unit, whose IV is a sector number in 64 bits, little endian,
/// padded with zeros to 16 bytes. Sectors are numbered in 512 bytes, or in `sector_size` with
/// `iv_large_sectors`.
fn dm_crypt(mode: Mode, key: &[u8], sector_size: usize, iv_large_sectors: bool, disk: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(disk.len());
    for (index, sector) in disk.chunks_exact(sector_size).enumerate() {
        let position = index * sector_size;
        let number = if iv_large_sectors { position / sector_size } else { position / 512 } as u64;
        let mut iv = [0; 16];
        iv[..8].copy_from_slice(&number.to_le_bytes());
        let mut crypter = Crypter::new(Cipher::aes_256_xts(), mode, key, Some(&iv)).unwrap();
        let mut output = vec![0; sector_size + 16];
        let length = crypter.update(sector, &mut output).unwrap();
        assert_eq!(length + crypter.finalize(&mut output[length..]).unwrap(), sector_size);
        result.extend_from_slice(&output[..sector_size]);
    }
    result
}

#[test]
fn the_data_file_is_what_dm_crypt_and_openssl_would_write() {
    for sector_size in [512, 4096] {
        let bench = Bench::new();
        let image = random(8 << 20);
        bench.write("image", &image);
        bench.run(&format!("volume create disk --size 8M --key file:key --sector-size {sector_size}"));
        bench.run("volume import disk image --key file:key");

        let data = bench.read("disk/data");
        assert_eq!(data.len(), image.len());
        assert!(dm_crypt(Mode::Decrypt, &bench.key, sector_size, true, &data) == image);
        assert!(dm_crypt(Mode::Encrypt, &bench.key, sector_size, true, &image) == data);
        // Without `iv_large_sectors` larger sectors are numbered otherwise: the option matters.
        let small_numbers = dm_crypt(Mode::Decrypt, &bench.key, sector_size, false, &data);
        assert_eq!(small_numbers == image, sector_size == 512);

        bench.run("volume export disk out --key file:key");
        assert!(bench.read("out") == image);
    }
}

#[test]
fn a_disk_written_by_openssl_is_read() {
    for sector_size in [512, 4096] {
        let bench = Bench::new();
        let image = random(2 << 20);
        bench.run(&format!("volume create disk --size 2M --key file:key --sector-size {sector_size}"));
        bench.write("disk/data", dm_crypt(Mode::Encrypt, &bench.key, sector_size, true, &image));
        assert!(bench.run("volume export disk - --key file:key") == image);
    }
}

#[test]
fn zeros_become_holes_and_holes_read_as_zeros() {
    for sector_size in [512, 4096] {
        let bench = Bench::new();
        let mut image = random(8 << 20);
        image[1 << 20..7 << 20].fill(0);
        bench.write("image", &image);
        bench.run(&format!("volume create disk --size 16M --key file:key --sector-size {sector_size}"));
        assert_eq!(bench.info("disk")["allocated_bytes"], 0);
        assert!(bench.run("volume export disk - --key file:key") == vec![0; 16 << 20]);

        bench.run("volume import disk image --key file:key");
        let allocated = bench.info("disk")["allocated_bytes"].as_u64().unwrap();
        assert!((2 << 20..3 << 20).contains(&allocated), "{allocated}");
        let data = bench.read("disk/data");
        assert!(data[1 << 20..7 << 20].iter().all(|byte| *byte == 0));
        assert!(data[8 << 20..].iter().all(|byte| *byte == 0));

        bench.run("volume export disk out --key file:key");
        image.resize(16 << 20, 0);
        assert!(bench.read("out") == image);
        let out = fs::metadata(bench.path("out")).unwrap();
        assert!(out.blocks() * 512 < 3 << 20);
        assert_eq!(out.permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn images_go_through_pipes() {
    let bench = Bench::new();
    let image = random(3 << 20);
    bench.run("volume create disk --size 4M --key file:key");
    let mut import = bench.command("volume import disk - --key file:key");
    let mut import = import.stdin(Stdio::piped()).spawn().unwrap();
    import.stdin.take().unwrap().write_all(&image).unwrap();
    assert!(import.wait().unwrap().success());
    let exported = bench.run("volume export disk - --key file:key");
    assert!(exported[..3 << 20] == image);
    assert!(exported[3 << 20..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_generated_key_serves_a_volume_in_the_clear_and_wrapped() {
    let bench = Bench::new();
    let both = bench.run("key generate --namespace vms --pvc disk-0");
    bench.write("both.yaml", &both);
    let both = String::from_utf8(both).unwrap();
    let (volume, namespace) = both.split_once("---\n").unwrap();
    bench.write("volume.yaml", volume);
    bench.write("namespace.yaml", namespace);
    let mut manifest: Value = serde_norway::from_str(volume).unwrap();
    bench.write("volume.json", manifest.to_string());
    manifest["data"].as_object_mut().unwrap().remove("key").unwrap();
    bench.write("wrapped.json", manifest.to_string());

    let image = random(1 << 20);
    bench.write("image", &image);
    bench.run("volume create disk --size 1M --key file:both.yaml");
    bench.run("volume import disk image --key file:volume.json");
    for key in [
        "file:volume.yaml",
        "file:both.yaml --namespace-key file:both.yaml",
        "file:wrapped.json --namespace-key file:namespace.yaml",
        "file:wrapped.json --namespace-key both.yaml",
    ] {
        assert!(bench.run(&format!("volume export disk - --key {key}")) == image, "{key}");
    }
    bench.fails(1, "volume export disk - --key file:wrapped.json", &["no clear field `key`", "--namespace-key"]);
}

#[test]
fn a_wrapped_only_key_needs_its_namespace_key() {
    let bench = Bench::new();
    bench.write("namespace", random(32));
    bench.write("other", random(32));
    bench.write("key.yaml", bench.run("key generate --wrapped-only --namespace-key namespace"));
    assert!(!String::from_utf8(bench.read("key.yaml")).unwrap().contains("  key:"));
    bench.run("volume create disk --size 1M --key file:key.yaml --namespace-key file:namespace");
    bench.run("volume export disk out --key file:key.yaml --namespace-key file:namespace");
    let other = "volume export disk out --key file:key.yaml --namespace-key file:other";
    bench.fails(1, other, &["Secret storageos-volume-key-", "`vuk`", "key of the Secret's own namespace"]);
    bench.fails(2, "key generate --wrapped-only", &["--namespace-key"]);
}

#[test]
fn info_tells_what_a_volume_is() {
    let bench = Bench::new();
    let created = bench.run("volume create sealed --size 10G --key file:key --sector-size 4096");
    let info = bench.info("sealed");
    let id = info["id"].as_str().unwrap();
    assert!(String::from_utf8(created).unwrap().contains(id));
    assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 4);
    assert_eq!(info["size_bytes"], 10u64 << 30);
    assert_eq!(info["sector_size_bytes"], 4096);
    assert_eq!(info["cipher"], "aes-xts-plain64");
    assert_eq!(info["key_check_present"], true);
    assert_eq!(info["allocated_bytes"], 0);
    let text = String::from_utf8(bench.run("volume info sealed")).unwrap();
    assert!(text.contains("10737418240 bytes (10G)") && text.contains("aes-xts-plain64"), "{text}");

    bench.run("volume create plain --size 1M --no-encryption");
    let info = bench.info("plain");
    assert_eq!(info["cipher"], "none");
    assert_eq!(info["sector_size_bytes"], 512);
    assert_eq!(info["key_check_present"], false);
    let text = String::from_utf8(bench.run("volume info plain")).unwrap();
    assert!(text.contains("none (not encrypted)"), "{text}");
}

#[test]
fn a_plain_volume_keeps_what_is_written_as_it_is() {
    let bench = Bench::new();
    let image = random(1 << 20);
    bench.write("image", &image);
    bench.run("volume create disk --size 1M --no-encryption");
    bench.run("volume import disk image --no-encryption");
    assert!(bench.read("disk/data") == image);
    assert!(bench.run("volume export disk - --no-encryption") == image);
}

#[test]
fn a_volume_can_live_on_a_device() {
    let bench = Bench::new();
    let image = random(1 << 20);
    bench.write("image", &image);
    bench.write("device", vec![0xff; 2 << 20]);
    bench.run("volume create disk --size 1M --key file:key --device device");
    bench.run("volume import disk image --key file:key");
    assert!(bench.run("volume export disk - --key file:key") == image);
    let device = bench.read("device");
    assert!(dm_crypt(Mode::Decrypt, &bench.key, 512, true, &device[..1 << 20]) == image);
    assert!(device[1 << 20..].iter().all(|byte| *byte == 0xff));
    bench.fails(1, "volume create other --size 4M --key file:key --device device", &["device", "2097152", "4194304"]);
}

#[test]
fn keys_that_are_not_right_are_refused_by_name() {
    let bench = Bench::new();
    let text = String::from_utf8(bench.run("key generate")).unwrap();
    let good: Value = serde_norway::from_str(text.split("---\n").next().unwrap()).unwrap();
    let name = good["metadata"]["name"].as_str().unwrap();
    let key = STANDARD.decode(good["data"]["key"].as_str().unwrap()).unwrap();
    let with = |field: &str, value: Option<&[u8]>| {
        let mut secret = good.clone();
        let data = secret["data"].as_object_mut().unwrap();
        match value {
            Some(bytes) => data.insert(field.to_owned(), STANDARD.encode(bytes).into()),
            None => data.remove(field),
        };
        secret.to_string()
    };

    bench.write("no-key", with("key", None));
    bench.write("short-secret", with("key", Some(&key[..63])));
    bench.write("other-hmac", with("hmac", Some(&random(32))));
    bench.write("no-iv", with("iv", None));
    bench.write("bad-base64", good.to_string().replace("\"key\":\"", "\"key\":\"*"));
    bench.write("short-raw", random(63));
    bench.write("equal-halves", [7; 64]);
    bench.write("config-map", "kind: ConfigMap\ndata: {}\n");
    bench.write("no-manifest", "just some text");
    let cases: [(&str, &[&str]); 10] = [
        ("missing", &["cannot read key file missing", "check its path"]),
        ("no-key", &[name, "no-key", "`key`", "--namespace-key"]),
        ("short-secret", &[name, "`key`", "63 bytes", "64", "restore the Secret"]),
        ("other-hmac", &[name, "`hmac`", "restore the Secret"]),
        ("no-iv", &[name, "no field `iv`", "restore the Secret"]),
        ("bad-base64", &[name, "`key`", "base64", "encode it again"]),
        ("short-raw", &["key file short-raw has 63 bytes", "64 raw bytes"]),
        ("equal-halves", &["key file equal-halves", "halves are equal", "make another key"]),
        ("config-map", &["config-map", "ConfigMap", "Secret"]),
        ("no-manifest", &["no-manifest", "manifest", "64 raw bytes"]),
    ];
    bench.run("volume create disk --size 1M --key file:key");
    let before = (bench.read("disk/volume.json"), fs::metadata(bench.path("disk/data")).unwrap().modified().unwrap());
    for (file, parts) in cases {
        bench.fails(1, &format!("volume create other --size 1M --key file:{file}"), parts);
        bench.fails(1, &format!("volume import disk key --key file:{file}"), parts);
    }
    assert!(!bench.path("other").exists());

    // Of the right form, and not the volume's.
    bench.write("wrong", random(64));
    let id = bench.info("disk")["id"].as_str().unwrap().to_owned();
    bench.fails(1, "volume import disk key --key file:wrong", &["disk", &id, "nothing was written"]);
    bench.fails(1, "volume export disk out --key file:wrong", &["disk", &id]);
    bench.fails(1, "volume import disk key --no-encryption", &["disk", "is encrypted", "--key"]);
    assert!(!bench.path("out").exists());
    let after = (bench.read("disk/volume.json"), fs::metadata(bench.path("disk/data")).unwrap().modified().unwrap());
    assert_eq!(before, after);

    bench.run("volume create plain --size 1M --no-encryption");
    bench.fails(1, "volume import plain key --key file:key", &["plain", "not encrypted", "--no-encryption"]);
}

#[test]
fn volumes_that_are_not_right_are_refused_by_name() {
    let bench = Bench::new();
    bench.fails(1, "volume info nowhere", &["nowhere is not a volume", "volume create"]);
    bench.run("volume create disk --size 1M --key file:key");
    bench.fails(1, "volume create disk --size 1M --key file:key", &["disk is already a volume", "another folder"]);

    let held = Store::open(&bench.path("disk"), Access::Exclusive).unwrap();
    for command in ["import", "export"] {
        let arguments = format!("volume {command} disk key --key file:key");
        bench.fails(1, &arguments, &["disk is in use by another sealblk process", "stop"]);
    }
    assert_eq!(bench.info("disk")["size_bytes"], 1 << 20);
    drop(held);

    let superblock = bench.read("disk/volume.json");
    for position in (0..superblock.len()).step_by(37) {
        let mut damaged = superblock.clone();
        damaged[position] ^= 0x04;
        bench.write("disk/volume.json", damaged);
        bench.fails(1, "volume info disk", &["disk/volume.json", "damaged", "restore it"]);
    }
    bench.write("disk/volume.json", superblock);

    fs::File::options().write(true).open(bench.path("disk/data")).unwrap().set_len((1 << 20) - 512).unwrap();
    let export = "volume export disk - --key file:key";
    bench.fails(1, export, &["disk/data", "1048064", "1048576", "restore"]);
    fs::remove_file(bench.path("disk/data")).unwrap();
    bench.fails(1, export, &["disk/data does not exist", "restore it"]);
}

#[test]
fn images_that_do_not_fit_are_refused_before_anything_is_written() {
    let bench = Bench::new();
    bench.run("volume create disk --size 1M --key file:key");
    bench.write("image", random((1 << 20) + 1));
    bench.fails(1, "volume import disk image --key file:key", &["image", "1048577", "1048576", "nothing was written"]);
    let mut import = bench.command("volume import disk - --key file:key");
    let output = import.stdin(fs::File::open(bench.path("image")).unwrap()).output().unwrap();
    bench.check_failure(&output, 1, "redirected", &["1048577", "nothing was written"]);
    assert_eq!(bench.info("disk")["allocated_bytes"], 0);
    bench.fails(1, "volume export disk disk/data --key file:key", &["disk/data", "own data"]);
    bench.fails(1, "volume import disk missing --key file:key", &["cannot open missing", "check its path"]);
}

#[test]
fn wrong_usage_has_exit_status_2_and_one_line() {
    let bench = Bench::new();
    let cases: [(&str, &[&str]); 16] = [
        ("", &["subcommand", "volume"]),
        ("nonsense", &["nonsense"]),
        ("volume create disk", &["--size"]),
        ("volume create disk --size 1M", &["--key", "--no-encryption"]),
        ("volume create disk --size 1M --key file:key --no-encryption", &["--key", "--no-encryption"]),
        ("volume create disk --size 1M --no-encryption --namespace-key file:key", &["--namespace-key"]),
        ("volume create disk --size 1Q --no-encryption", &["1Q", "--size", "10G"]),
        ("volume create disk --size 513 --no-encryption", &["513", "512", "multiple"]),
        ("volume create disk --size 4608 --sector-size 4096 --no-encryption", &["4608", "4096", "multiple"]),
        ("volume create disk --size 0 --no-encryption", &["0 bytes"]),
        ("volume create disk --size 1M --sector-size 1024 --no-encryption", &["1024", "512, 4096"]),
        ("volume create disk --size 1M --key elsewhere:key", &["file:PATH"]),
        ("key generate --namespace a_b", &["a_b", "namespace"]),
        ("serve --socket s --key file:key --id 11111111-1111-4111-8111-111111111111", &["--view"]),
        ("serve disk --socket s --key file:key --root copies", &["--volume", "--id"]),
        ("serve --socket s --key file:key --view file:views --id nonsense", &["nonsense", "--id"]),
    ];
    for (arguments, parts) in cases {
        bench.fails(2, arguments, parts);
    }
    // What is no source may be a key: it is not repeated.
    let pasted = bench.command(&format!("volume create disk --size 1M --key {}", STANDARD.encode(&bench.key)));
    let output = { pasted }.output().unwrap();
    bench.check_failure(&output, 2, "pasted", &["file:PATH"]);
    assert!(!bench.path("disk").exists());
}

#[test]
fn a_socket_that_nobody_serves_without_a_copy_says_nothing_of_a_volume() {
    let bench = Bench::new();
    for command in ["status disk.sock", "verify disk.sock", "remove-member disk.sock node-a"] {
        bench.fails(1, &format!("volume {command}"), &["nobody serves", "disk.sock", "name the folder"]);
    }
}

#[test]
fn a_key_file_that_others_can_read_is_warned_of() {
    let bench = Bench::new();
    fs::set_permissions(bench.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    let output = bench.command("volume create disk --size 1M --key file:key").output().unwrap();
    assert!(output.status.success());
    let warning = String::from_utf8(output.stderr).unwrap();
    assert!(warning.contains("WARN") && warning.contains("key file key") && warning.contains("chmod"), "{warning}");
}

/// Holds a command at work, by a pipe that is not closed, to look at its process.
#[test]
fn a_process_that_holds_a_key_writes_no_core_dump() {
    let bench = Bench::new();
    bench.run("volume create disk --size 4M --key file:key");
    let mut import = bench.command("volume import disk - --key file:key");
    let mut import = import.stdin(Stdio::piped()).spawn().unwrap();
    // More than a pipe holds: once it is written, the command is past its start and reading.
    import.stdin.as_mut().unwrap().write_all(&vec![1; 2 << 20]).unwrap();
    let limits = fs::read_to_string(Path::new("/proc").join(import.id().to_string()).join("limits")).unwrap();
    drop(import.stdin.take());
    assert!(import.wait().unwrap().success());
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
}

#[test]
fn the_benchmark_reports_four_numbers() {
    let bench = Bench::new();
    let report: Value = serde_json::from_slice(&bench.run("benchmark --json")).unwrap();
    assert_eq!(report.as_object().unwrap().len(), 1);
    let results = report["results"].as_array().unwrap();
    let kinds: Vec<_> = results.iter().map(|result| (&result["unit"], &result["operation"])).collect();
    let expected = [(512, "encrypt"), (512, "decrypt"), (4096, "encrypt"), (4096, "decrypt")];
    assert_eq!(kinds.len(), 4);
    for ((unit, operation), expected) in kinds.into_iter().zip(expected) {
        assert_eq!((unit.as_u64(), operation.as_str()), (Some(expected.0), Some(expected.1)));
    }
    for result in results {
        assert_eq!(result.as_object().unwrap().len(), 3);
        assert!(result["bytes_per_second"].as_u64().unwrap() > 0);
    }
}
