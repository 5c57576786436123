//! A key management service beside the API server: gRPC on a Unix socket, in both versions that
//! Kubernetes speaks (v1beta1 and v2). It seals with AES-256-GCM under a key that only it has.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use openssl::symm::{Cipher, decrypt_aead, encrypt_aead};
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// A plugin that can be stopped and started again with the same key.
pub struct KmsPlugin {
    socket: String,
    service: Arc<Service>,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl KmsPlugin {
    /// Serves on a socket of its own. The socket has no path but an abstract name: an old API server
    /// names a path as the authority of its requests, which is none, and the `h2` crate refuses it.
    pub fn start() -> KmsPlugin {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let socket = format!("sealblk-kms-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut key = [0; 32];
        openssl::rand::rand_bytes(&mut key).expect("random bytes");
        let service = Arc::new(Service { key, encryptions: AtomicU64::new(0), decryptions: AtomicU64::new(0) });
        let mut plugin = KmsPlugin { socket, service, running: None };
        plugin.resume();
        plugin
    }

    /// Where it listens, as an API server's configuration says it.
    pub fn endpoint(&self) -> String {
        format!("unix:///@{}", self.socket)
    }

    /// The socket's name.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// How many values it has sealed.
    pub fn encryptions(&self) -> u64 {
        self.service.encryptions.load(Ordering::Relaxed)
    }

    /// How many values it has opened.
    pub fn decryptions(&self) -> u64 {
        self.service.decryptions.load(Ordering::Relaxed)
    }

    /// Ends it, with all its connections.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.send(()).expect("a running plugin");
            thread.join().expect("the plugin's end");
        }
    }

    /// Starts it again.
    pub fn resume(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let (socket, service) = (self.socket.clone(), Arc::clone(&self.service));
        let (ready, listening) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let listener = listen(&socket).expect("listening on the plugin's socket");
                ready.send(()).expect("a test that waits");
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, service) => {}
                }
            });
            // Dropping the runtime drops the connections.
        });
        listening.recv().expect("a plugin that listens");
        self.running = Some((stop, thread));
    }
}

impl Drop for KmsPlugin {
    fn drop(&mut self) {
        self.stop();
    }
}

fn listen(name: &str) -> std::io::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

async fn serve(listener: UnixListener, service: Arc<Service>) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let service = Arc::clone(&service);
        let answer = service_fn(move |request| {
            let service = Arc::clone(&service);
            async move { Ok::<_, Infallible>(dispatch(service, request).await) }
        });
        let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer);
        tokio::spawn(connection);
    }
}

async fn dispatch(service: Arc<Service>, request: hyper::Request<Incoming>) -> hyper::Response<Body> {
    match request.uri().path() {
        "/v1beta1.KeyManagementService/Version" => unary(request, |_: v1beta1::VersionRequest| {
            Ok(v1beta1::VersionResponse {
                version: "v1beta1".into(),
                runtime_name: "test".into(),
                runtime_version: "1".into(),
            })
        }),
        "/v1beta1.KeyManagementService/Encrypt" => unary(request, move |request: v1beta1::EncryptRequest| {
            Ok(v1beta1::EncryptResponse { cipher: service.encrypt(&request.plain) })
        }),
        "/v1beta1.KeyManagementService/Decrypt" => unary(request, move |request: v1beta1::DecryptRequest| {
            Ok(v1beta1::DecryptResponse { plain: service.decrypt(&request.cipher)? })
        }),
        "/v2.KeyManagementService/Status" => unary(request, |_: v2::StatusRequest| {
            Ok(v2::StatusResponse { version: "v2".into(), healthz: "ok".into(), key_id: KEY_ID.into() })
        }),
        "/v2.KeyManagementService/Encrypt" => unary(request, move |request: v2::EncryptRequest| {
            Ok(v2::EncryptResponse { ciphertext: service.encrypt(&request.plaintext), key_id: KEY_ID.into() })
        }),
        "/v2.KeyManagementService/Decrypt" => unary(request, move |request: v2::DecryptRequest| {
            Ok(v2::DecryptResponse { plaintext: service.decrypt(&request.ciphertext)? })
        }),
        _ => return Status::unimplemented("no such method").into_http(),
    }
    .await
}

type Answer = std::pin::Pin<Box<dyn Future<Output = hyper::Response<Body>> + Send>>;

fn unary<Q, A>(
    request: hyper::Request<Incoming>,
    answer: impl Fn(Q) -> Result<A, Status> + Send + Sync + 'static,
) -> Answer
where
    Q: Message + Default + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    Box::pin(async move { Grpc::new(ProstCodec::<A, Q>::default()).unary(Method(answer), request).await })
}

/// A function from message to message, as tonic calls it.
struct Method<F>(F);

impl<Q, A, F: Fn(Q) -> Result<A, Status>> UnaryService<Q> for Method<F> {
    type Response = A;
    type Future = Ready<Result<Response<A>, Status>>;

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        ready((self.0)(request.into_inner()).map(Response::new))
    }
}

struct Service {
    key: [u8; 32],
    encryptions: AtomicU64,
    decryptions: AtomicU64,
}

impl Service {
    /// Nonce ‖ tag ‖ ciphertext.
    fn encrypt(&self, plain: &[u8]) -> Vec<u8> {
        self.encryptions.fetch_add(1, Ordering::Relaxed);
        let mut sealed = vec![0; NONCE_BYTES + TAG_BYTES];
        let (nonce, tag) = sealed.split_at_mut(NONCE_BYTES);
        openssl::rand::rand_bytes(nonce).expect("random bytes");
        let cipher = Cipher::aes_256_gcm();
        let ciphertext = encrypt_aead(cipher, &self.key, Some(nonce), &[], plain, tag).expect("a ciphertext");
        sealed.extend(ciphertext);
        sealed
    }

    fn decrypt(&self, sealed: &[u8]) -> Result<Vec<u8>, Status> {
        self.decryptions.fetch_add(1, Ordering::Relaxed);
        let damaged = || Status::invalid_argument("not sealed by this service");
        let (nonce, rest) = sealed.split_at_checked(NONCE_BYTES).ok_or_else(damaged)?;
        let (tag, ciphertext) = rest.split_at_checked(TAG_BYTES).ok_or_else(damaged)?;
        decrypt_aead(Cipher::aes_256_gcm(), &self.key, Some(nonce), &[], ciphertext, tag).map_err(|_| damaged())
    }
}

const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const KEY_ID: &str = "1";

/// The messages of `k8s.io/apiserver/pkg/storage/value/encrypt/envelope/v1beta1`.
mod v1beta1 {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct VersionRequest {
        #[prost(string, tag = "1")]
        pub version: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct VersionResponse {
        #[prost(string, tag = "1")]
        pub version: String,
        #[prost(string, tag = "2")]
        pub runtime_name: String,
        #[prost(string, tag = "3")]
        pub runtime_version: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct EncryptRequest {
        #[prost(bytes = "vec", tag = "2")]
        pub plain: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct EncryptResponse {
        #[prost(bytes = "vec", tag = "1")]
        pub cipher: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct DecryptRequest {
        #[prost(bytes = "vec", tag = "2")]
        pub cipher: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct DecryptResponse {
        #[prost(bytes = "vec", tag = "1")]
        pub plain: Vec<u8>,
    }
}

/// The messages of `k8s.io/kms/apis/v2`, without what this service has no use for.
mod v2 {
    #[derive(Clone, PartialEq, prost::Message)]
    pub struct StatusRequest {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct StatusResponse {
        #[prost(string, tag = "1")]
        pub version: String,
        #[prost(string, tag = "2")]
        pub healthz: String,
        #[prost(string, tag = "3")]
        pub key_id: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct EncryptRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub plaintext: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct EncryptResponse {
        #[prost(bytes = "vec", tag = "1")]
        pub ciphertext: Vec<u8>,
        #[prost(string, tag = "2")]
        pub key_id: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct DecryptRequest {
        #[prost(bytes = "vec", tag = "1")]
        pub ciphertext: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct DecryptResponse {
        #[prost(bytes = "vec", tag = "1")]
        pub plaintext: Vec<u8>,
    }
}
