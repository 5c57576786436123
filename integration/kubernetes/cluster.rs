//! The cluster that all other stories rely on is what they take it for.

use crate::support::cluster::Cluster;

#[test]
fn the_api_server_knows_accounts_and_denies_what_is_not_granted() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("cluster");
    cluster.service_account(&namespace, "nobody");
    cluster.kubectl(&["-n", &namespace, "create", "secret", "generic", "secret", "--from-literal=key=value"]);
    let get = ["-n", &namespace, "get", "secret", "secret"];
    let kubeconfig = cluster.kubeconfig(&namespace, "nobody");
    let denied = cluster.try_kubectl_as(&kubeconfig, &get);
    let reason = String::from_utf8_lossy(&denied.stderr);
    assert!(reason.contains("Forbidden"), "{reason}");

    cluster.kubectl(&["-n", &namespace, "create", "role", "r", "--verb=get", "--resource=secrets"]);
    let account = format!("{namespace}:nobody");
    cluster.kubectl(&["-n", &namespace, "create", "rolebinding", "r", "--role=r", "--serviceaccount", &account]);
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    while !cluster.try_kubectl_as(&kubeconfig, &get).status.success() {
        assert!(std::time::Instant::now() < deadline, "what was granted is still denied");
    }

    let user = format!("system:serviceaccount:{namespace}:nobody");
    let statuses: Vec<_> = cluster.requests().into_iter().filter(|r| r.user == user && r.verb == "get").collect();
    let secrets = statuses.iter().filter(|request| request.uri.contains("/secrets/secret"));
    let secrets: Vec<_> = secrets.map(|request| request.status).collect();
    assert_eq!((secrets.first(), secrets.last()), (Some(&403), Some(&200)), "{secrets:?}");
}

#[test]
fn a_token_whose_time_is_over_is_refused() {
    let cluster = Cluster::shared();
    let namespace = cluster.namespace("expired");
    cluster.service_account(&namespace, "late");
    let kubeconfig = cluster.kubeconfig_with_token(&cluster.expired_token(&namespace, "late"));
    let denied = cluster.try_kubectl_as(&kubeconfig, &["get", "--raw", "/api"]);
    let reason = String::from_utf8_lossy(&denied.stderr);
    assert!(!denied.status.success() && reason.contains("nauthorized"), "{reason}");
    assert!(
        cluster.try_kubectl_as(&cluster.kubeconfig(&namespace, "late"), &["get", "--raw", "/api"]).status.success()
    );
}

#[test]
fn an_api_server_can_be_stopped_and_started_with_what_it_had() {
    let cluster = Cluster::start(&[]);
    let namespace = cluster.namespace("restart");
    cluster.stop_api_server();
    assert!(!cluster.try_kubectl(&["get", "namespace", &namespace]).status.success());
    cluster.start_api_server();
    cluster.kubectl(&["get", "namespace", &namespace]);
}
