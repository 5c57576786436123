//! Anything in the place of a `Volume`.

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::object::Object;
use super::spec::Spec;
use super::status::Status;

/// Reads `bytes` as an API server's answer. Whether it is a `Volume` with a spec or a status that can be used.
///
/// # Panics
///
/// When what was taken is not what it would be written as again.
pub fn read_hostile(bytes: &[u8]) -> bool {
    let Some(object) = Object::parse(bytes) else { return false };
    let spec = object.spec();
    if let Ok(spec) = &spec {
        let again: Spec = serde_json::from_value(json!(spec)).expect("a spec that was read can be read again");
        assert_eq!(again, *spec);
    }
    let status = object.status();
    let view = status.as_ref().ok().and_then(|status| status.view.as_ref()?.view());
    if let (Ok(status), Some(view)) = (&status, &view) {
        let next = status.next(view, object.generation, Timestamp::UNIX_EPOCH);
        let again: Status = serde_json::from_value(json!(next)).expect("a status that was read can be read again");
        assert_eq!(again, next);
        assert_eq!(again.view.and_then(|stored| stored.view()).as_ref(), Some(view));
    }
    spec.is_ok() || view.is_some()
}

/// A `Volume` before its copies are made, and one with a view.
#[cfg(test)]
pub fn seeds(view: &crate::replication::View) -> [(&'static str, serde_json::Value); 2] {
    use serde_json::Value;

    let volume = |status: Value| {
        json!({
            "apiVersion": "sealblk.io/v1alpha1",
            "kind": "Volume",
            "metadata": {"namespace": "vms", "name": "disk", "uid": "u", "resourceVersion": "7", "generation": 3},
            "spec": {
                "size": "10Gi",
                "key": {"claimName": "disk"},
                "members": [{"node": "node-1", "address": "10.0.0.1:7420"}],
                "failureMode": "2",
                "belowMin": "error",
            },
            "status": status,
        })
    };
    let status = Status::default().next(view, Some(3), Timestamp::UNIX_EPOCH);
    [("volume-new", volume(Value::Null)), ("volume", volume(json!(status)))]
}
