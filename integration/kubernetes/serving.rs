//! The webhook's server turns away what is no review, and leaves no review unanswered when it ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::certificates::while_claims_are_created;
use crate::controller::{Certificate, Controller, encrypted};
use crate::https;
use crate::support::cluster::Cluster;
use crate::support::wait_until;

#[test]
fn what_is_no_review_is_turned_away_with_a_reason() {
    let controller = Controller::start(Cluster::shared(), &[]);
    let port = controller.replicas()[0].port;
    let post = |kind: &str, body: &str| {
        let length = body.len();
        https::request(
            port,
            &format!(
                "POST /mutate HTTP/1.1\r\nHost: h\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
                 Connection: close\r\n\r\n{body}"
            ),
        )
    };
    let json = "application/json";
    for (answer, expected) in [
        (https::get(port, "/"), "404"),
        (https::get(port, "/mutate"), "405"),
        (https::get(port, "/healthz"), "200"),
        (https::get(port, "/readyz"), "200"),
        (post("text/plain", "{}"), "415"),
        (post(json, ""), "400"),
        (post(json, "nonsense"), "400"),
        (post(json, "[]"), "400"),
        (post(json, "{}"), "400"),
        (post(json, r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#), "400"),
        (post(json, r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{}}"#), "400"),
        (post(json, &format!("\"{}\"", "x".repeat(3 << 20))), "413"),
    ] {
        let answer = answer.expect("an answer");
        let (status, body) = answer.split_once("\r\n").expect("a status line");
        assert_eq!(status.split(' ').nth(1), Some(expected), "{answer}");
        assert!(body.trim_end().lines().last().is_some_and(|line| !line.is_empty()), "no reason: {answer}");
    }
    let namespace = controller.namespace("reviews");
    let output = controller.try_claim(&namespace, "disk", &encrypted(), Some(""));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Prevents somebody who opens connections and says nothing from keeping API servers out.
#[test]
fn silent_clients_keep_nobody_out() {
    let controller = Controller::start(Cluster::shared(), &[]);
    let port = controller.replicas()[0].port;
    let namespace = controller.namespace("silent");
    let plain: Vec<_> = (0..100).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("a connection")).collect();
    let mut half: Vec<_> = (0..40).map(|_| https::connect(port, None).expect("a handshake")).collect();
    for stream in &mut half {
        let head = "POST /mutate HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{";
        stream.write_all(head.as_bytes()).expect("writing");
    }
    // Those that have begun a review hold its place for a few seconds only.
    let begin = Instant::now();
    for stream in &mut half {
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let is_late = ["408", "504"].iter().any(|status| answer.starts_with(&format!("HTTP/1.1 {status}")));
        assert!(is_late || answer.is_empty(), "{answer}");
    }
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
    let output = controller.try_claim(&namespace, "disk", &encrypted(), Some(""));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    drop(plain);
}

/// As when a new version of the controller is rolled out.
#[test]
fn claims_are_admitted_while_the_processes_are_replaced_one_by_one() {
    let mut controller = Controller::start_with(Cluster::shared(), 2, Certificate::Own("1h"), &[]);
    let namespace = controller.namespace("rollout");
    while_claims_are_created(controller.cluster, &namespace, |claims| {
        for _ in 0..4 {
            controller.add_replica();
            let log = controller.remove_replica();
            assert!(log.contains("told to end") && log.trim_end().ends_with("stopped"), "{log}");
            // One may have begun before.
            let enough = claims.load(Ordering::Relaxed) + 2;
            wait_until("two more claims", || claims.load(Ordering::Relaxed) >= enough);
        }
    });
}

#[test]
fn a_claim_without_the_label_is_created_while_nobody_serves_and_one_with_it_is_not() {
    let mut controller = Controller::start(Cluster::shared(), &[]);
    let namespace = controller.namespace("down");
    controller.remove_replica();
    let plain = controller.try_claim(&namespace, "plain", &serde_json::json!({}), None);
    assert!(plain.status.success(), "{}", String::from_utf8_lossy(&plain.stderr));
    let refused = controller.try_claim(&namespace, "disk", &encrypted(), Some(""));
    let reason = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && reason.contains("labelled.encryption.sealblk.io"), "{reason}");
    controller.add_replica();
    let output = controller.try_claim(&namespace, "disk", &encrypted(), Some(""));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
