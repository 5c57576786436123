//! What a Service is to an API server: an address behind which every connection goes to the next of
//! several processes.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A balancer. Its threads end with the test program.
pub struct Balancer {
    port: u16,
    backends: Arc<Mutex<Vec<u16>>>,
}

impl Balancer {
    /// Starts one with nobody behind it: connections are closed at once.
    pub fn start() -> Balancer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("the listener's address").port();
        let backends = Arc::new(Mutex::new(Vec::new()));
        let shared = backends.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let Some(server) = connect(&shared) else { continue };
                relay(client.expect("a connection"), server);
            }
        });
        Balancer { port, backends }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets a process take part.
    pub fn add(&self, port: u16) {
        self.backends.lock().expect("the processes").push(port);
    }

    /// Gives a process no more connections; those that it has stay.
    pub fn remove(&self, port: u16) {
        self.backends.lock().expect("the processes").retain(|&backend| backend != port);
    }
}

fn connect(backends: &Mutex<Vec<u16>>) -> Option<TcpStream> {
    let mut backends = backends.lock().expect("the processes");
    let port = *backends.first()?;
    backends.rotate_left(1);
    TcpStream::connect(("127.0.0.1", port)).ok()
}

fn relay(client: TcpStream, server: TcpStream) {
    let ends = (client.try_clone().expect("a socket"), server.try_clone().expect("a socket"));
    for (mut from, mut to) in [(client, server), (ends.1, ends.0)] {
        thread::spawn(move || {
            // However it ends, the other side is told that nothing more comes.
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}
