//! What lies between sealblk and the API server: a relay of bytes on which a test may hold back what
//! sealblk sends, or count its connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// A relay. Its thread ends with the test program.
pub struct Proxy {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// Relays to the API server at `port`. Before every piece that sealblk sends is passed on, `before`
    /// is called; it may take its time.
    pub fn start(port: u16, before: impl Fn() + Send + Sync + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let own_port = listener.local_addr().expect("the listener's address").port();
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, before) = (connections.clone(), Arc::new(before));
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a connection");
                count.fetch_add(1, Ordering::Relaxed);
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                let (client_end, server_end) = (client.try_clone(), server.try_clone());
                let (client_end, server_end) = (client_end.expect("a socket"), server_end.expect("a socket"));
                let before = before.clone();
                thread::spawn(move || relay(client, server, &*before));
                thread::spawn(move || relay(server_end, client_end, &|| {}));
            }
        });
        Proxy { port: own_port, connections }
    }

    /// What stands in a kubeconfig in place of the API server's address.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// How often sealblk has connected.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// What holds back all that sealblk sends until it is opened.
#[derive(Default)]
pub struct Gate {
    opened: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    /// Waits until it is open.
    pub fn pass(&self) {
        let opened = self.opened.lock().expect("the gate");
        drop(self.changed.wait_while(opened, |opened| !*opened).expect("the gate"));
    }

    /// Lets everything through, from now on.
    pub fn open(&self) {
        *self.opened.lock().expect("the gate") = true;
        self.changed.notify_all();
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, before: &dyn Fn()) {
    let mut piece = [0; 16384];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        before();
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
