//! A real Kubernetes API: etcd and kube-apiserver, over TLS, with RBAC on and every request in the
//! audit log. No controller manager and no nodes: what those would do, a test does itself.

mod audit;
mod certificates;
pub mod kms;
mod programs;
mod tokens;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use audit::Request;
use certificates::Authority;
pub use programs::Program;

/// One cluster. Its processes end with it, or with this process.
pub struct Cluster {
    folder: TempDir,
    port: u16,
    etcd_url: String,
    authority: Authority,
    api_server_flags: Vec<String>,
    api_server: Mutex<Option<Program>>,
    etcd: Program,
}

impl Cluster {
    /// The cluster that the tests of this process share. A test keeps to namespaces of its own.
    pub fn shared() -> &'static Cluster {
        static SHARED: LazyLock<Cluster> = LazyLock::new(|| Cluster::start(&[]));
        &SHARED
    }

    /// A cluster of its own, for a test that stops the API server or starts it with other flags, such
    /// as `--max-requests-inflight=1`.
    pub fn start(api_server_flags: &[&str]) -> Cluster {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the cluster");
        let [port, etcd_port, peer_port] = free_ports();
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let mut etcd = Command::new(binary("etcd"));
        etcd.arg("--data-dir")
            .arg(folder.path().join("etcd"))
            .args(["--listen-client-urls", &etcd_url, "--advertise-client-urls", &etcd_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("default={peer_url}")]);
        let etcd = Program::start("etcd", etcd, folder.path());
        let cluster = Cluster {
            authority: Authority::make(folder.path()),
            port,
            etcd_url,
            api_server_flags: api_server_flags.iter().map(|&flag| flag.to_owned()).collect(),
            api_server: Mutex::new(None),
            etcd,
            folder,
        };
        fs::write(cluster.path("audit-policy.yaml"), AUDIT_POLICY).expect("writing the audit policy");
        let admin = cluster.authority.client("admin", Some("system:masters"));
        cluster.write_kubeconfig(
            &cluster.admin_kubeconfig(),
            &format!("client-certificate: {}, client-key: {}", admin.certificate.display(), admin.key.display()),
        );
        cluster.start_api_server();
        cluster
    }

    /// Starts the API server after [`Cluster::stop_api_server`], and waits until it is ready.
    pub fn start_api_server(&self) {
        let mut command = Command::new(binary("kube-apiserver"));
        command
            .arg(format!("--etcd-servers={}", self.etcd_url))
            .args(["--bind-address=127.0.0.1", &format!("--secure-port={}", self.port)])
            .arg(format!("--cert-dir={}", self.path("generated").display()))
            .arg(format!("--tls-cert-file={}", self.authority.server.certificate.display()))
            .arg(format!("--tls-private-key-file={}", self.authority.server.key.display()))
            .arg(format!("--client-ca-file={}", self.ca().display()))
            .arg(format!("--service-account-issuer={}", tokens::ISSUER))
            .arg(format!("--service-account-key-file={}", self.authority.tokens.public.display()))
            .arg(format!("--service-account-signing-key-file={}", self.authority.tokens.private.display()))
            .arg("--authorization-mode=RBAC")
            // There is no controller manager, which would make each namespace's default account.
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            .arg(format!("--audit-policy-file={}", self.path("audit-policy.yaml").display()))
            .arg(format!("--audit-log-path={}", self.path("audit.log").display()))
            .args(&self.api_server_flags);
        let mut api_server = self.api_server.lock().expect("the API server's state");
        assert!(api_server.is_none(), "the API server runs already");
        let program = api_server.insert(Program::start("kube-apiserver", command, self.folder.path()));
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let output =
                self.kubectl_command().args(["get", "--raw", "/readyz?verbose"]).output().expect("running kubectl");
            if output.status.success() {
                return;
            }
            program.assert_alive();
            let reason = String::from_utf8_lossy(&output.stderr);
            assert!(Instant::now() < deadline, "the API server did not start: {reason}\n{}", program.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Stops the API server; connections to its port are refused from then on.
    pub fn stop_api_server(&self) {
        let program = self.api_server.lock().expect("the API server's state").take();
        drop(program.expect("a running API server"));
    }

    /// Sends the API server a signal, such as to stand still and to go on.
    pub fn signal_api_server(&self, signal: rustix::process::Signal) {
        let api_server = self.api_server.lock().expect("the API server's state");
        let pid = api_server.as_ref().expect("a running API server").pid();
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("a signal to it");
    }

    /// Has the store stand still for a while, so that requests pile up in the API server.
    pub fn pause_store(&self, time: Duration) {
        let pid = i32::try_from(self.etcd.pid()).expect("a process id");
        for (signal, wait) in [(libc::SIGSTOP, time), (libc::SIGCONT, Duration::ZERO)] {
            // SAFETY: no memory is involved; the program has not been waited for, so the id is its own.
            assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "the signal was not sent");
            std::thread::sleep(wait);
        }
    }

    /// What the API server has logged since it was last started.
    pub fn api_server_log(&self) -> String {
        let api_server = self.api_server.lock().expect("the API server's state");
        api_server.as_ref().expect("a running API server").log()
    }

    /// Whether the API server is of an earlier version.
    pub fn is_older_than(major: u32, minor: u32) -> bool {
        let output = Command::new(binary("kube-apiserver")).arg("--version").output().expect("the server's version");
        let text = String::from_utf8(output.stdout).expect("the server's version");
        let version = text.trim().strip_prefix("Kubernetes v").expect("Kubernetes v1.2.3");
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().expect("a number"));
        let mut next = || numbers.next().expect("two numbers");
        (next(), next()) < (major, minor)
    }

    /// Where the API server listens.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// The port of [`Cluster::url`].
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate of the authority that the API server's certificate comes from.
    pub fn ca(&self) -> &Path {
        &self.authority.certificate
    }

    /// The folder where etcd keeps everything.
    pub fn etcd_folder(&self) -> PathBuf {
        self.path("etcd")
    }

    /// Every request that the API server has finished, oldest first.
    pub fn requests(&self) -> Vec<Request> {
        audit::read(&self.path("audit.log"))
    }

    /// The kubeconfig of somebody who may do everything.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.path("admin.kubeconfig")
    }

    /// A new namespace, whose name begins with `prefix`.
    pub fn namespace(&self, prefix: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.kubectl(&["create", "namespace", &name]);
        name
    }

    /// A new ServiceAccount, which may do nothing yet.
    pub fn service_account(&self, namespace: &str, name: &str) {
        self.kubectl(&["-n", namespace, "create", "serviceaccount", name]);
    }

    /// A token of a ServiceAccount, valid for an hour.
    pub fn token(&self, namespace: &str, service_account: &str) -> String {
        tokens::request(self, namespace, service_account)
    }

    /// A token of a ServiceAccount, signed as the API server signs them, that ran out an hour ago.
    pub fn expired_token(&self, namespace: &str, service_account: &str) -> String {
        tokens::expired(self, &self.authority.tokens.private, namespace, service_account)
    }

    /// A kubeconfig with a fresh token of a ServiceAccount.
    pub fn kubeconfig(&self, namespace: &str, service_account: &str) -> PathBuf {
        self.kubeconfig_with_token(&self.token(namespace, service_account))
    }

    /// A kubeconfig with this token.
    pub fn kubeconfig_with_token(&self, token: &str) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = self.path(&format!("token-{}.kubeconfig", COUNT.fetch_add(1, Ordering::Relaxed)));
        self.write_kubeconfig(&path, &format!("token: {token}"));
        path
    }

    /// Runs kubectl as the administrator, and returns what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        succeeded(arguments, self.try_kubectl(arguments))
    }

    /// The same, without an opinion on how it ends.
    pub fn try_kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command().args(arguments).output().expect("running kubectl")
    }

    /// Runs kubectl as a ServiceAccount, without an opinion on how it ends.
    pub fn try_kubectl_as(&self, kubeconfig: &Path, arguments: &[&str]) -> Output {
        kubectl_with(kubeconfig).args(arguments).output().expect("running kubectl")
    }

    /// Creates or changes the objects of a manifest.
    pub fn apply(&self, manifest: &str) -> String {
        succeeded(&["apply"], self.try_with_manifest("apply", manifest))
    }

    /// Runs `kubectl VERB -f` with a manifest, without an opinion on how it ends.
    pub fn try_with_manifest(&self, verb: &str, manifest: &str) -> Output {
        self.feed(&[verb, "-f", "-"], manifest)
    }

    /// Runs kubectl as the administrator with `input` on standard input.
    pub fn feed(&self, arguments: &[&str], input: &str) -> Output {
        use std::io::Write;

        let mut command = self.kubectl_command();
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("running kubectl");
        let mut stdin = child.stdin.take().expect("a piped stdin");
        stdin.write_all(input.as_bytes()).expect("writing to kubectl");
        drop(stdin);
        child.wait_with_output().expect("waiting for kubectl")
    }

    fn kubectl_command(&self) -> Command {
        kubectl_with(&self.admin_kubeconfig())
    }

    fn write_kubeconfig(&self, path: &Path, user: &str) {
        let (url, ca) = (self.url(), self.ca().display());
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters: [{{name: test, cluster: {{server: \"{url}\", certificate-authority: \"{ca}\"}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n\
             users: [{{name: test, user: {{{user}}}}}]\n"
        );
        fs::write(path, text).expect("writing a kubeconfig");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// What a successful run printed; fails the test otherwise.
pub fn succeeded(arguments: &[&str], output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {}: {stderr}", arguments.join(" "));
    String::from_utf8(output.stdout).expect("kubectl prints text")
}

fn kubectl_with(kubeconfig: &Path) -> Command {
    let mut command = Command::new(binary("kubectl"));
    // Its cache of what the server knows would be shared by all clusters of the same port.
    let cache = kubeconfig.with_extension("cache");
    command.arg("--kubeconfig").arg(kubeconfig).arg("--cache-dir").arg(cache).stdin(Stdio::null());
    command
}

/// One of the programs that `.ci/kubernetes` builds or finds.
fn binary(name: &str) -> PathBuf {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/kubernetes"))
            .stderr(Stdio::inherit())
            .output()
            .expect("running .ci/kubernetes");
        assert!(output.status.success(), ".ci/kubernetes failed");
        PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
    });
    FOLDER.join(name)
}

/// Ports that nobody listens on, all different.
fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let listeners: [TcpListener; COUNT] =
        std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("the listener's address").port())
}

/// What the API server may take to start on a machine that is busy.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// Who asked for what, without what was asked or answered.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{level: Metadata}]
";
