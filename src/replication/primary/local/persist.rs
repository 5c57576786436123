//! The thread that makes rows and views of the copy durable: no lane has to stand still for them, which others wait
//! for on every copy.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use super::NOBODY;
use crate::replication::region::{RegionIndex, Row};
use crate::replication::replica::Action;
use crate::replication::server::served::Served;
use crate::replication::view::View;

/// Where to ask it.
#[derive(Clone)]
pub(super) struct Persister {
    wanted: Sender<Option<Wanted>>,
}

/// A [`Persist`](Action::Persist) of a copy.
struct Wanted {
    served: Arc<Served>,
    rows: Vec<(RegionIndex, Row)>,
    view: Option<Box<View>>,
}

impl Persister {
    /// Starts the thread, which [`end`](Self::end) ends.
    ///
    /// # Errors
    ///
    /// When there is no thread to be had.
    pub(super) fn start() -> io::Result<(Persister, JoinHandle<()>)> {
        let (wanted, to_do) = channel();
        let thread = thread::Builder::new().name("persist".to_owned()).spawn(move || run(&to_do))?;
        Ok((Persister { wanted }, thread))
    }

    /// Where there is no copy, and so nothing to make durable.
    pub(super) fn of_no_copy() -> Persister {
        Persister { wanted: channel().0 }
    }

    /// Has the copy told when these are durable, or cannot be.
    pub(super) fn persist(&self, served: &Arc<Served>, rows: Vec<(RegionIndex, Row)>, view: Option<Box<View>>) {
        let wanted = Wanted { served: served.clone(), rows, view };
        if self.wanted.send(Some(wanted)).is_err() {
            log::debug!("the copy is closed, and nobody waits for what it was to make durable");
        }
    }

    /// Nothing more will be wanted.
    pub(super) fn end(&self) {
        let _ = self.wanted.send(None);
    }
}

fn run(to_do: &Receiver<Option<Wanted>>) {
    while let Ok(Some(wanted)) = to_do.recv() {
        let Wanted { served, mut rows, mut view } = wanted;
        loop {
            let persisted = served.copy().persist(&rows, view.as_deref());
            if let Err(error) = &persisted {
                log::error!("{error}");
            }
            // What else it wants is for connections, and is in their mailboxes.
            let next = served.with_replica(NOBODY, |replica| replica.persisted(persisted.is_ok()));
            match next.into_iter().next() {
                Some(Action::Persist { rows: more, view: another }) => (rows, view) = (more, another),
                _ => break,
            }
        }
    }
}
