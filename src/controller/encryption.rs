//! Whether a claim asks for encryption, and in which form its key is to be kept.
//!
//! The claim's labels decide; what they leave open its StorageClass's parameters decide; what those
//! leave open too is not encrypted. Claims of storage that is not ours are left alone.

use std::collections::BTreeMap;

use crate::keys::names::{ENCRYPTION, KEY_FORM, KEY_FORM_CLEAR, KEY_FORM_WRAPPED};

/// What is known of a StorageClass.
#[derive(Clone, Debug, Default)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// Who makes its volumes.
    pub provisioner: String,
    /// What they are to be like.
    pub parameters: BTreeMap<String, String>,
}

/// In which form a volume's Secret holds its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// In the clear and wrapped, as StorageOS does.
    Clear,
    /// Wrapped under the namespace's key only.
    Wrapped,
}

/// What a claim asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing that is for us to do.
    Nothing,
    /// Encryption, of storage that is not ours: whoever made the claim should know.
    NotOurs {
        /// Who makes the volume.
        provisioner: String,
    },
    /// A key.
    Key(Form),
}

/// A value that means nothing. Guessing could leave a volume in the clear.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place} `{name}` is `{value}`, which is none of {allowed}: correct it")]
pub struct BadValue {
    place: String,
    name: &'static str,
    value: String,
    allowed: &'static str,
}

/// Decides for a claim with these labels and this class, where volumes of `provisioners` are ours. A
/// claim without a class is bound to a volume that is there already, and asks by its label only.
///
/// # Errors
///
/// [`BadValue`].
pub fn wish(
    labels: &BTreeMap<String, String>,
    class: Option<&Class>,
    provisioners: &[String],
) -> Result<Wish, BadValue> {
    let foreign = class.filter(|class| !provisioners.contains(&class.provisioner));
    let ours = class.filter(|class| provisioners.contains(&class.provisioner));
    let labelled = value(labels, ENCRYPTION, "label", None);
    if foreign.is_some() && labelled.is_none() {
        return Ok(Wish::Nothing);
    }
    let asked = labelled.or_else(|| ours.and_then(|class| parameter(class, ENCRYPTION)));
    let Some((place, text)) = asked else {
        return Ok(Wish::Nothing);
    };
    let bad = |place, name, text: &str, allowed| BadValue { place, name, value: text.to_owned(), allowed };
    let wanted = parse_bool(&text).ok_or_else(|| bad(place, ENCRYPTION, &text, BOOLEANS))?;
    match (wanted, foreign) {
        (false, _) => return Ok(Wish::Nothing),
        (true, Some(class)) => return Ok(Wish::NotOurs { provisioner: class.provisioner.clone() }),
        (true, None) => {}
    }
    let form = value(labels, KEY_FORM, "label", None).or_else(|| ours.and_then(|class| parameter(class, KEY_FORM)));
    match form {
        None => Ok(Wish::Key(Form::Clear)),
        Some((_, text)) if text == KEY_FORM_CLEAR => Ok(Wish::Key(Form::Clear)),
        Some((_, text)) if text == KEY_FORM_WRAPPED => Ok(Wish::Key(Form::Wrapped)),
        Some((place, text)) => Err(bad(place, KEY_FORM, &text, FORMS)),
    }
}

fn parameter(class: &Class, name: &str) -> Option<(String, String)> {
    value(&class.parameters, name, "parameter", Some(&class.name))
}

fn value(map: &BTreeMap<String, String>, name: &str, kind: &str, class: Option<&str>) -> Option<(String, String)> {
    let place = match class {
        Some(class) => format!("the {kind} of StorageClass {class},"),
        None => format!("the claim's {kind}"),
    };
    map.get(name).map(|text| (place, text.clone()))
}

/// The spellings of Go's `strconv.ParseBool`.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

const BOOLEANS: &str = "true, false, and the other spellings of Go's ParseBool";
const FORMS: &str = "clear and wrapped";

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn class(provisioner: &str, parameters: &[(&str, &str)]) -> Class {
        Class { name: "c".into(), provisioner: provisioner.into(), parameters: map(parameters) }
    }

    fn decide(labels: &[(&str, &str)], class: Option<&Class>) -> Result<Wish, BadValue> {
        wish(&map(labels), class, &["ours".to_owned()])
    }

    #[test]
    fn go_spells_truth_in_six_ways_and_falsehood_in_six() {
        let plain = class("ours", &[]);
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(decide(&[(ENCRYPTION, text)], Some(&plain)), Ok(Wish::Key(Form::Clear)), "{text}");
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(decide(&[(ENCRYPTION, text)], Some(&plain)), Ok(Wish::Nothing), "{text}");
        }
        for text in ["", "yes", "on", "tRUE", "true ", "2"] {
            assert!(decide(&[(ENCRYPTION, text)], Some(&plain)).is_err(), "{text}");
            assert!(decide(&[], Some(&class("ours", &[(ENCRYPTION, text)]))).is_err(), "{text}");
        }
    }

    #[test]
    fn the_claim_wins_over_its_class() {
        let encrypted = class("ours", &[(ENCRYPTION, "true"), (KEY_FORM, "wrapped")]);
        assert_eq!(decide(&[], Some(&encrypted)), Ok(Wish::Key(Form::Wrapped)));
        assert_eq!(decide(&[(ENCRYPTION, "false")], Some(&encrypted)), Ok(Wish::Nothing));
        assert_eq!(decide(&[(KEY_FORM, "clear")], Some(&encrypted)), Ok(Wish::Key(Form::Clear)));
        let plain = class("ours", &[(ENCRYPTION, "nonsense")]);
        assert_eq!(decide(&[(ENCRYPTION, "true")], Some(&plain)), Ok(Wish::Key(Form::Clear)));
    }

    #[test]
    fn storage_of_others_is_left_alone() {
        let foreign = class("theirs", &[(ENCRYPTION, "true")]);
        assert_eq!(decide(&[], Some(&foreign)), Ok(Wish::Nothing));
        let nonsense = class("theirs", &[(ENCRYPTION, "nonsense")]);
        assert_eq!(decide(&[], Some(&nonsense)), Ok(Wish::Nothing));
        let not_ours = Wish::NotOurs { provisioner: "theirs".into() };
        assert_eq!(decide(&[(ENCRYPTION, "true")], Some(&foreign)), Ok(not_ours));
        assert_eq!(decide(&[(ENCRYPTION, "false")], Some(&foreign)), Ok(Wish::Nothing));
    }

    #[test]
    fn a_claim_without_a_class_asks_by_its_label() {
        assert_eq!(decide(&[], None), Ok(Wish::Nothing));
        assert_eq!(decide(&[(ENCRYPTION, "true"), (KEY_FORM, "wrapped")], None), Ok(Wish::Key(Form::Wrapped)));
    }

    #[test]
    fn a_bad_value_is_named_with_its_place() {
        let error = decide(&[], Some(&class("ours", &[(ENCRYPTION, "yes")]))).unwrap_err().to_string();
        for part in ["StorageClass c", "storageos.com/encryption", "`yes`"] {
            assert!(error.contains(part), "{error}");
        }
        let error = decide(&[(ENCRYPTION, "true"), (KEY_FORM, "both")], None).unwrap_err().to_string();
        assert!(error.contains("sealblk.io/key-form") && error.contains("`both`"), "{error}");
    }
}
