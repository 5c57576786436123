//! The thread that makes rows and views of a copy durable. No connection has to stand still for them: what else came
//! on it goes on meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use super::served::{NOBODY, Served};
use crate::replication::region::{RegionIndex, Row};
use crate::replication::replica::Action;
use crate::replication::view::View;

/// What a replica asks for by [`Action::Persist`], for the copy that it belongs to.
pub struct Wanted {
    /// The copy.
    pub served: Arc<Served>,
    /// The rows.
    pub rows: Vec<(RegionIndex, Row)>,
    /// The view.
    pub view: Option<Box<View>>,
}

/// The thread of a copy.
pub struct Persister {
    wanted: Sender<Wanted>,
    thread: JoinHandle<()>,
}

impl Persister {
    /// Starts it. It ends when this is dropped.
    ///
    /// # Errors
    ///
    /// When there is no thread to be had.
    pub fn start() -> io::Result<Persister> {
        let (wanted, to_do) = channel();
        let thread = thread::Builder::new().name("persist".to_owned()).spawn(move || run(&to_do))?;
        Ok(Persister { wanted, thread })
    }

    /// Does as [`persist`], soon. Given back if the thread has ended.
    pub fn send(&self, wanted: Wanted) -> Result<(), Wanted> {
        self.wanted.send(wanted).map_err(|error| error.0)
    }

    /// Waits until all is done that was asked for.
    pub fn end(self) {
        drop(self.wanted);
        if self.thread.join().is_err() {
            log::error!("a thread that makes rows durable has panicked");
        }
    }
}

/// Makes what is wanted durable and tells the replica, which tells its connections, until it wants nothing more.
pub fn persist(wanted: Wanted) {
    let Wanted { served, mut rows, mut view } = wanted;
    loop {
        let persisted = served.copy().persist(&rows, view.as_deref());
        if let Err(error) = &persisted {
            log::error!("{error}");
        }
        let next = served.with_replica(NOBODY, |replica| replica.persisted(persisted.is_ok()));
        match next.into_iter().next() {
            Some(Action::Persist { rows: more, view: another }) => (rows, view) = (more, another),
            _ => return,
        }
    }
}

fn run(to_do: &Receiver<Wanted>) {
    while let Ok(wanted) = to_do.recv() {
        persist(wanted);
    }
}
