//! Copies that another process of the node holds, and writers that replace it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;

use super::*;
use crate::replication::region::Regions;
use crate::store::RegionTable;

/// A process that has the lock of a folder, or none, and does nothing. Killed on drop.
struct Process(Child);

impl Process {
    /// One that holds the copy in `dir`, and has noted that.
    fn holding(dir: &Path) -> Process {
        let holder = Process::locking(dir);
        holder.note(dir);
        holder
    }

    fn locking(dir: &Path) -> Process {
        let mut command = Command::new("flock");
        command.args(["--no-fork", "--nonblock"]).arg(dir).arg("sh");
        Process::spawn(command)
    }

    fn innocent() -> Process {
        Process::spawn(Command::new("sh"))
    }

    /// Once it is what it is to be.
    fn spawn(mut shell: Command) -> Process {
        shell.args(["-c", "echo there; exec sleep 600"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "there\n");
        Process(child)
    }

    /// Notes it in a folder as the holder.
    fn note(&self, dir: &Path) {
        note(dir, self.0.id(), self.started());
    }

    fn started(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().parse().unwrap()
    }

    fn signal(&self, signal: i32) {
        // SAFETY: no memory is involved; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, signal) }, 0);
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// The signal that has ended it.
    fn ended_by(&mut self) -> Option<i32> {
        self.0.try_wait().unwrap().expect("it is still there").signal()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Of one that has had the time to claim the volume.
fn note(dir: &Path, pid: u32, started: u64) {
    let mut note = File::create(dir.join("holder")).unwrap();
    writeln!(note, "{pid} {started}").unwrap();
    note.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
}

/// A copy in view 5 that nobody holds.
fn with_copy(scene: Scene) -> Scene {
    let replica = scene.run();
    scene.create(&replica).unwrap();
    let mut client = scene.open(&replica, &scene.hello(1, 1)).unwrap();
    assert_eq!(client.accept(scene.view(5)), Reply::Done);
    assert_eq!(client.write(0, &[1; 512]), Reply::Done);
    drop(client);
    replica.end().unwrap();
    scene
}

/// The text with which the copy is refused as in use.
fn in_use(scene: &Scene, replica: &Running, view: u64) -> String {
    match scene.open(replica, &scene.hello(view, 2)) {
        Err(OpenError::Refused { refusal, .. }) => {
            assert_eq!(refusal.code(), RefusalCode::InUse, "{refusal}");
            refusal.text().to_owned()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_holder_is_ended_for_a_later_view_and_a_proof_only() {
    let scene = with_copy(Scene::new());
    let mut holder = Process::holding(&scene.dir());
    let replica = scene.run();
    let older = scene.open(&replica, &scene.hello(4, 2)).unwrap_err();
    assert_eq!(older.superseded(), Some(ViewNumber(5)));
    let text = in_use(&scene, &replica, 5);
    assert!(text.contains(&format!("process {}", holder.0.id())), "{text}");
    let keyless = Scene { key: None, ..scene };
    assert_eq!(code(&keyless.open(&replica, &keyless.hello(6, 2)).unwrap_err()), Some(RefusalCode::NotPermitted));
    let thief = Scene { key: Some(key(1)), ..keyless };
    assert_eq!(code(&thief.open(&replica, &thief.hello(6, 2)).unwrap_err()), Some(RefusalCode::NotPermitted));
    assert!(holder.is_running());

    let owner = Scene { key: Some(key(0)), ..thief };
    let mut client = owner.open(&replica, &owner.hello(6, 2)).unwrap();
    assert_eq!(holder.ended_by(), Some(libc::SIGTERM), "it was asked, and that was enough");
    assert_eq!(client.accept(owner.view(6)), Reply::Done);
    assert_eq!(client.read(0, 512), [1; 512]);
}

/// An attach takes the copy first, then claims the volume, and then has the copy accept that: a writer whose view
/// was changed just before must not end it in between.
#[test]
fn a_holder_that_is_about_to_claim_the_volume_is_left_the_time() {
    let scene = with_copy(Scene::new());
    let mut holder = Process::holding(&scene.dir());
    File::open(scene.dir().join("holder")).unwrap().set_modified(SystemTime::now()).unwrap();
    let replica = scene.run();
    let claimed = thread::scope(|scope| {
        let writer = scope.spawn(|| scene.open(&replica, &scene.hello(6, 2)).unwrap_err());
        thread::sleep(Duration::from_millis(300));
        assert!(holder.is_running());
        let regions = Regions::of(SIZE_BYTES);
        let (bytes, count) = (regions.region_bytes(), regions.count());
        let mut table = RegionTable::open(&scene.dir(), scene.volume, bytes, count).unwrap();
        table.set_accepted(7, &[]).unwrap();
        writer.join().unwrap()
    });
    assert_eq!(claimed.superseded(), Some(ViewNumber(7)));
    assert!(holder.is_running());
}

#[test]
fn a_holder_that_does_not_claim_the_volume_in_time_is_ended() {
    let scene = with_copy(Scene::new());
    let mut holder = Process::holding(&scene.dir());
    File::open(scene.dir().join("holder")).unwrap().set_modified(SystemTime::now() - Duration::from_secs(4)).unwrap();
    let replica = scene.run();
    scene.open(&replica, &scene.hello(6, 2)).unwrap();
    assert_eq!(holder.ended_by(), Some(libc::SIGTERM));
}

#[test]
fn a_holder_that_is_stopped_is_killed() {
    let scene = with_copy(Scene::new());
    let mut holder = Process::holding(&scene.dir());
    holder.signal(libc::SIGSTOP);
    let replica = scene.run();
    let mut client = scene.open(&replica, &scene.hello(6, 2)).unwrap();
    assert_eq!(holder.ended_by(), Some(libc::SIGKILL));
    assert_eq!(client.accept(scene.view(6)), Reply::Done);
    assert_eq!(client.read(0, 512), [1; 512]);
}

#[test]
fn whom_a_note_names_wrongly_is_left_alone() {
    let scene = with_copy(Scene::new());
    let (mut holder, mut innocent) = (Process::locking(&scene.dir()), Process::innocent());
    let replica = scene.run();
    assert!(in_use(&scene, &replica, 6).contains("has not noted its number"));

    innocent.note(&scene.dir());
    let text = in_use(&scene, &replica, 6);
    assert!(text.contains("does not hold its lock"), "{text}");

    // The number is the holder's, and was another process's when the note was written.
    note(&scene.dir(), holder.0.id(), holder.started() - 1);
    let text = in_use(&scene, &replica, 6);
    assert!(text.contains("not process"), "{text}");
    note(&scene.dir(), std::process::id(), 1);
    in_use(&scene, &replica, 6);
    assert!(holder.is_running() && innocent.is_running());

    // The holder has gone, and left a note that has become another's.
    innocent.note(&scene.dir());
    drop(holder);
    scene.open(&replica, &scene.hello(6, 2)).unwrap();
    assert!(innocent.is_running());
}

#[test]
fn a_stale_note_is_no_obstacle_and_no_help() {
    let scene = with_copy(Scene::new());
    let gone = Process::innocent();
    let (pid, started) = (gone.0.id(), gone.started());
    drop(gone);
    note(&scene.dir(), pid, started);
    let mut holder = Process::locking(&scene.dir());
    let replica = scene.run();
    let text = in_use(&scene, &replica, 6);
    assert!(text.contains(&format!("not process {pid}")), "{text}");
    assert!(holder.is_running());
    drop(holder);
    scene.open(&replica, &scene.hello(6, 2)).unwrap();
}

#[test]
fn nobody_is_ended_for_a_volume_without_a_key() {
    let scene = with_copy(Scene::plain());
    let mut holder = Process::holding(&scene.dir());
    let replica = scene.run();
    in_use(&scene, &replica, 6);
    assert!(holder.is_running());
}
