//! Anything in the place of a review.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{AdmissionReview, Claim, Verdict};
use crate::controller::encryption::{self, Class, Storage};
use crate::keys::Namespace;

/// Reads `bytes` as a review and answers it as if the cluster had whatever there is to have: a part of the fuzz target
/// `cluster`. Whether it is one of a new claim.
///
/// # Panics
///
/// When the claim lacks what was patched into it.
pub fn answer_hostile(bytes: &[u8]) -> bool {
    let request = match AdmissionReview::parse(bytes) {
        Ok(review) => review.request,
        Err(_) => return false,
    };
    let Some(claim) = request.object.as_ref().filter(|_| request.is_new_claim()) else { return false };
    // The claim's labels serve as the parameters of its class, too.
    let name = claim.class_name().unwrap_or_default().to_owned();
    let class = Class { name: name.clone(), provisioner: "ours".to_owned(), parameters: claim.metadata.labels.clone() };
    for storage in [Storage::Present, Storage::Class(class), Storage::Unknown(name)] {
        for provisioners in [vec!["ours".to_owned()], Vec::new()] {
            let _ = encryption::wish(&claim.metadata.labels, &storage, &provisioners);
        }
    }
    let (_, _) = (claim.pvc(), request.claim_name());
    let namespace = request.namespace.as_deref().unwrap_or_default().parse::<Namespace>();
    if let Ok(namespace) = namespace
        && let Ok(secret) = claim.secret(&namespace, &request.uid)
    {
        let response = Verdict { patch: claim.annotate(&namespace, &secret) }.allow(&request.uid);
        // What is left unread of a review may be more than the reader of any value takes.
        let Ok(mut review) = serde_json::from_slice::<Value>(bytes) else { return true };
        let mut object = review["request"]["object"].take();
        patch(&mut object, &response["patch"]);
        let patched: Claim = serde_json::from_value(object).expect("a patched claim is a claim");
        assert!(patched.annotate(&namespace, &secret).is_empty(), "a claim lacks what was patched into it");
        assert!(patched.secret(&namespace, &request.uid).is_ok_and(|again| again == secret));
    }
    true
}

/// As the API server does it.
fn patch(object: &mut Value, patch: &Value) {
    let Some(text) = patch.as_str() else { return };
    let text = STANDARD.decode(text).expect("a patch is in base64");
    for operation in serde_json::from_slice::<Vec<Value>>(&text).expect("a patch is a list") {
        let path = operation["path"].as_str().expect("an operation has a path");
        let (place, name) = path.rsplit_once('/').expect("a path has parts");
        let name = name.replace("~1", "/").replace("~0", "~");
        object.pointer_mut(place).expect("the place is there")[name] = operation["value"].clone();
    }
}

/// Reviews of claims that ask for encryption, in their labels and by their annotations.
#[cfg(test)]
pub fn seeds() -> [(&'static str, Value); 4] {
    use serde_json::json;

    use super::{KIND, VERSION};
    use crate::keys::names::{ENCRYPTION, KEY_FORM, SECRET_NAME_ANNOTATION, SECRET_NAMESPACE_ANNOTATION};

    let review = |metadata: Value| {
        json!({"apiVersion": VERSION, "kind": KIND, "request": {
            "uid": "5b8e7ad0-1c41-4d1e-9a53-f1f3a2ab3f10",
            "operation": "CREATE",
            "resource": {"group": "", "version": "v1", "resource": "persistentvolumeclaims"},
            "namespace": "vms",
            "dryRun": false,
            "object": {"metadata": metadata, "spec": {"storageClassName": "fast"}},
        }})
    };
    let annotations = json!({SECRET_NAME_ANNOTATION: "key", SECRET_NAMESPACE_ANNOTATION: "vms"});
    let other = json!({"volume.beta.kubernetes.io/storage-class": "old"});
    [
        ("claim", review(json!({"name": "disk", "labels": {ENCRYPTION: "true", KEY_FORM: "wrapped"}}))),
        ("claim-annotated", review(json!({"generateName": "disk-", "annotations": annotations}))),
        ("claim-half-annotated", review(json!({"name": "disk", "annotations": other}))),
        ("claim-unlabelled", review(json!({"name": "disk", "labels": {}}))),
    ]
}
