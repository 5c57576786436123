//! What `deploy/volume-rules.yaml` lets a server refuse: each rule is put where the patch puts it in the schema of
//! `deploy/volumes.yaml`, and asked about changes of a Volume as a server from 1.25 on asks.
//!
//! The server of these tests is older. In its place is an interpreter of CEL that shares nothing with Kubernetes', and
//! what is around it is done here: defaults, and that a rule about `oldSelf` is asked only where there was a value
//! before and is one now. A server also checks types and bounds what a rule may cost; that is not tried here.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use cel::{Context, Env};
use serde_json::{Value, json};

use crate::controller::DEPLOY;

#[test]
fn what_may_change_is_let_through() {
    let schema = schema();
    let volume = volume();
    for (what, change) in [
        ("nothing", json!({})),
        ("below the minimum", json!({ "spec": { "belowMin": "error" } })),
        ("another place of the key", json!({ "spec": { "key": { "secretName": null, "claimName": "disk-0" } } })),
        ("a later view", json!({ "status": { "view": { "number": 8 } } })),
        ("the same view once more", json!({ "status": { "inSync": "1/2" } })),
        ("labels", json!({ "metadata": { "labels": { "a": "b" } } })),
    ] {
        assert_eq!(refusals(&schema, Some(&volume), &changed(&volume, &change)), [""; 0], "{what}");
    }
    let mut new = volume.clone();
    new.as_object_mut().expect("an object").remove("status");
    assert_eq!(refusals(&schema, None, &new), [""; 0], "a new volume");
    assert_eq!(refusals(&schema, Some(&new), &volume), [""; 0], "its first view");
    let plain = changed(&volume, &json!({ "spec": { "encrypted": false, "key": null } }));
    assert_eq!(refusals(&schema, Some(&plain), &plain), [""; 0], "one without a key");
}

#[test]
fn what_must_not_change_is_refused_and_said() {
    let schema = schema();
    let volume = volume();
    for (change, message) in [
        (json!({ "spec": { "size": "20Gi" } }), "a volume keeps its size"),
        (json!({ "spec": { "size": 5 } }), "a volume keeps its size"),
        (json!({ "spec": { "sectorSize": 4096 } }), "a volume keeps its sector size"),
        (json!({ "spec": { "encrypted": false } }), "a volume stays encrypted or not"),
        (json!({ "spec": { "key": null } }), "an encrypted volume keeps its key"),
        (json!({ "spec": { "failureMode": "hard" } }), "a volume keeps its failure mode"),
        (json!({ "spec": { "failureMode": null } }), "a volume keeps its failure mode"),
        (json!({ "spec": { "leaseMilliseconds": 1 } }), "a volume keeps its lease"),
        (json!({ "spec": { "writers": ["node-b"] } }), "a volume keeps its writers"),
        (json!({ "spec": { "writers": null } }), "a volume keeps its writers"),
        (
            json!({ "spec": { "members": [{ "node": "node-a", "address": "10.0.0.1:7420" }] } }),
            "the members are changed by sealblk volume add-member, remove-member and move, with --volume",
        ),
        (json!({ "status": { "view": { "number": 6 } } }), "the number of a view never goes down"),
        (json!({ "status": { "view": { "volume": "another" } } }), "a volume keeps its id"),
        (json!({ "status": { "view": null } }), "a view is followed by another"),
        (json!({ "status": null }), "a view is followed by another"),
    ] {
        assert_eq!(refusals(&schema, Some(&volume), &changed(&volume, &change)), [message], "{change}");
    }
    let without = changed(&volume, &json!({ "spec": { "writers": null } }));
    assert_eq!(refusals(&schema, Some(&without), &volume), ["a volume keeps its writers"], "none before");
    assert_eq!(refusals(&schema, Some(&without), &without), [""; 0], "none at all");
}

/// A volume that has been served. The failure mode is none that is the default.
fn volume() -> Value {
    let members = json!([
        { "node": "node-a", "address": "10.0.0.1:7420" }, { "node": "node-b", "address": "10.0.0.2:7420" },
    ]);
    json!({
        "apiVersion": "sealblk.io/v1alpha1", "kind": "Volume", "metadata": { "namespace": "vms", "name": "disk-0" },
        "spec": {
            "size": "10Gi", "key": { "secretName": "disk-0-key" }, "failureMode": "alwayson", "members": members,
            "writers": ["node-w"],
        },
        "status": {
            "inSync": "2/2",
            "view": {
                "volume": "c7b2d2a2-59f3-4bd1-a2ac-9d4a4a8ee6d4", "number": 7, "members": [],
                "failureMode": "alwayson", "leaseMilliseconds": 4000,
            },
        },
    })
}

/// With a merge patch (RFC 7386) applied.
fn changed(value: &Value, patch: &Value) -> Value {
    let Value::Object(patch) = patch else { return patch.clone() };
    let mut result = value.as_object().cloned().unwrap_or_default();
    for (key, change) in patch {
        match change {
            Value::Null => _ = result.remove(key),
            change => _ = result.insert(key.clone(), changed(result.get(key).unwrap_or(&Value::Null), change)),
        }
    }
    Value::Object(result)
}

/// The schema of a Volume with the rules in it.
fn schema() -> Value {
    let read = |file: &str| -> Value {
        let text = fs::read_to_string(Path::new(DEPLOY).join(file)).expect("a manifest");
        serde_norway::from_str(&text).expect("YAML")
    };
    let mut definition = read("volumes.yaml");
    for step in read("volume-rules.yaml").as_array().expect("a JSON patch") {
        assert_eq!(step["op"], "add", "{step}");
        let path = step["path"].as_str().expect("a path");
        let (parent, name) = path.rsplit_once('/').expect("a pointer");
        let parent = definition.pointer_mut(parent).and_then(Value::as_object_mut);
        let before =
            parent.unwrap_or_else(|| panic!("{path} is nowhere")).insert(name.to_owned(), step["value"].clone());
        assert_eq!((name, before), ("x-kubernetes-validations", None), "{path}");
    }
    definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take()
}

/// What a server says against a change.
fn refusals(schema: &Value, old: Option<&Value>, new: &Value) -> Vec<String> {
    let [old, new] = [old, Some(new)].map(|value| {
        let mut value = value.cloned();
        value.iter_mut().for_each(|value| fill(schema, value));
        value
    });
    let mut refusals = Vec::new();
    judge(schema, old.as_ref(), &new.expect("a value"), &mut refusals);
    refusals
}

/// Puts in what is left out and has a default.
fn fill(schema: &Value, value: &mut Value) {
    let (Some(properties), Some(object)) = (schema["properties"].as_object(), value.as_object_mut()) else { return };
    for (name, property) in properties {
        if let (false, Some(default)) = (object.contains_key(name), property.get("default")) {
            object.insert(name.clone(), default.clone());
        }
        if let Some(value) = object.get_mut(name) {
            fill(property, value);
        }
    }
}

fn judge(schema: &Value, old: Option<&Value>, new: &Value, refusals: &mut Vec<String>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let text = rule["rule"].as_str().expect("a rule");
        if old.is_none() && text.contains("oldSelf") {
            continue;
        }
        if !holds(text, old, new) {
            refusals.push(rule["message"].as_str().expect("a message").to_owned());
        }
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(new) = new.get(name) {
            judge(property, old.and_then(|old| old.get(name)), new, refusals);
        }
    }
}

fn holds(rule: &str, old: Option<&Value>, new: &Value) -> bool {
    let env = Arc::new(Env::stdlib());
    let program = env.compile(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
    let mut context = Context::with_env(env);
    context.add_variable_from_value("self", to_cel(new));
    if let Some(old) = old {
        context.add_variable_from_value("oldSelf", to_cel(old));
    }
    match program.execute(&context) {
        Ok(cel::Value::Bool(holds)) => holds,
        other => panic!("{rule}: {other:?}"),
    }
}

/// Numbers of a Volume are integers.
fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => number.as_i64().expect("an integer").into(),
        Value::String(text) => text.as_str().into(),
        Value::Array(items) => items.iter().map(to_cel).collect::<Vec<_>>().into(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), to_cel(value))).collect::<HashMap<_, _>>().into()
        }
    }
}
