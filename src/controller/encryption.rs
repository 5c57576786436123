//! Whether a claim asks for encryption, and in which form its key is to be kept.
//!
//! The claim's labels decide; what they leave open its StorageClass's parameters decide; what those
//! leave open too is not encrypted. Claims of storage that is not ours are left alone, unless they ask for
//! what they would not get.

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

/// Where a claim's volume comes from.
#[derive(Clone, Debug)]
pub enum Storage {
    /// It is there already: the claim says that it has no class.
    Present,
    /// This class makes it.
    Class(Class),
    /// A class that there is not yet, by what errors call it. Nobody knows who will make the volume.
    Unknown(String),
}

/// A claim that cannot have what it asks for. Guessing could leave a volume in the clear.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadWish {
    /// A value that means nothing.
    #[error("{place} `{name}` is `{value}`, which is none of {allowed}: correct it")]
    Value {
        /// Whose value it is.
        place: String,
        /// The label's or parameter's name.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it could be.
        allowed: &'static str,
    },
    /// Encryption, of a volume that others make.
    #[error(
        "the claim asks for encryption by its label `{ENCRYPTION}`, but StorageClass {class} has its volumes made by {provisioner}, and sealblk does not encrypt those: choose another class, or see `sealblk controller --provisioner`"
    )]
    NotOurs {
        /// The class.
        class: String,
        /// Who makes its volumes.
        provisioner: String,
    },
    /// Encryption, of a volume of which nobody knows who makes it.
    #[error("the claim asks for encryption by its label `{ENCRYPTION}`, and {class}: make the class before the claim")]
    UnknownClass {
        /// What is not there.
        class: String,
    },
}

/// The form of the key that a claim with these labels asks for, if it asks for one, where volumes of
/// `provisioners` are ours.
///
/// # Errors
///
/// [`BadWish`].
pub fn wish(
    labels: &BTreeMap<String, String>,
    storage: &Storage,
    provisioners: &[String],
) -> Result<Option<Form>, BadWish> {
    let ours = match storage {
        Storage::Class(class) if provisioners.contains(&class.provisioner) => Some(class),
        _ => None,
    };
    let label = |name| value(labels, name, "label", None);
    let parameter = |name| ours.and_then(|class| value(&class.parameters, name, "parameter", Some(&class.name)));
    let Some((place, text)) = label(ENCRYPTION).or_else(|| parameter(ENCRYPTION)) else {
        return Ok(None);
    };
    let bad = |place, name, value, allowed| BadWish::Value { place, name, value, allowed };
    if !parse_bool(&text).ok_or_else(|| bad(place, ENCRYPTION, text, BOOLEANS))? {
        return Ok(None);
    }
    match storage {
        Storage::Class(class) if ours.is_none() => {
            let (class, provisioner) = (class.name.clone(), class.provisioner.clone());
            return Err(BadWish::NotOurs { class, provisioner });
        }
        Storage::Unknown(class) => return Err(BadWish::UnknownClass { class: class.clone() }),
        Storage::Class(_) | Storage::Present => {}
    }
    match label(KEY_FORM).or_else(|| parameter(KEY_FORM)) {
        None => Ok(Some(Form::Clear)),
        Some((_, text)) if text == KEY_FORM_CLEAR => Ok(Some(Form::Clear)),
        Some((_, text)) if text == KEY_FORM_WRAPPED => Ok(Some(Form::Wrapped)),
        Some((place, text)) => Err(bad(place, KEY_FORM, text, FORMS)),
    }
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

    fn class(provisioner: &str, parameters: &[(&str, &str)]) -> Storage {
        Storage::Class(Class { name: "c".into(), provisioner: provisioner.into(), parameters: map(parameters) })
    }

    fn decide(labels: &[(&str, &str)], storage: &Storage) -> Result<Option<Form>, BadWish> {
        wish(&map(labels), storage, &["ours".to_owned()])
    }

    #[test]
    fn go_spells_truth_in_six_ways_and_falsehood_in_six() {
        let plain = class("ours", &[]);
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(decide(&[(ENCRYPTION, text)], &plain), Ok(Some(Form::Clear)), "{text}");
        }
        for text in ["0", "f", "F", "FALSE", "false", "False"] {
            assert_eq!(decide(&[(ENCRYPTION, text)], &plain), Ok(None), "{text}");
        }
        for text in ["", "yes", "on", "tRUE", "true ", "2"] {
            assert!(decide(&[(ENCRYPTION, text)], &plain).is_err(), "{text}");
            assert!(decide(&[], &class("ours", &[(ENCRYPTION, text)])).is_err(), "{text}");
        }
    }

    #[test]
    fn the_claim_wins_over_its_class() {
        let encrypted = class("ours", &[(ENCRYPTION, "true"), (KEY_FORM, "wrapped")]);
        assert_eq!(decide(&[], &encrypted), Ok(Some(Form::Wrapped)));
        assert_eq!(decide(&[(ENCRYPTION, "false")], &encrypted), Ok(None));
        assert_eq!(decide(&[(KEY_FORM, "clear")], &encrypted), Ok(Some(Form::Clear)));
        let plain = class("ours", &[(ENCRYPTION, "nonsense")]);
        assert_eq!(decide(&[(ENCRYPTION, "true")], &plain), Ok(Some(Form::Clear)));
    }

    #[test]
    fn storage_of_others_is_left_alone_unless_the_claim_itself_asks() {
        for text in ["true", "nonsense"] {
            let foreign = class("theirs", &[(ENCRYPTION, text)]);
            assert_eq!(decide(&[], &foreign), Ok(None));
            assert_eq!(decide(&[(ENCRYPTION, "false")], &foreign), Ok(None));
            assert!(matches!(decide(&[(ENCRYPTION, "true")], &foreign), Err(BadWish::NotOurs { .. })));
        }
    }

    #[test]
    fn a_claim_of_a_volume_that_is_there_asks_by_its_label() {
        assert_eq!(decide(&[], &Storage::Present), Ok(None));
        let labels = [(ENCRYPTION, "true"), (KEY_FORM, "wrapped")];
        assert_eq!(decide(&labels, &Storage::Present), Ok(Some(Form::Wrapped)));
    }

    #[test]
    fn nobody_promises_encryption_by_a_class_that_is_not_there() {
        let unknown = Storage::Unknown("there is no StorageClass c".into());
        assert_eq!(decide(&[], &unknown), Ok(None));
        assert_eq!(decide(&[(ENCRYPTION, "false")], &unknown), Ok(None));
        assert!(matches!(decide(&[(ENCRYPTION, "true")], &unknown), Err(BadWish::UnknownClass { .. })));
    }

    #[test]
    fn a_bad_value_is_named_with_its_place() {
        let error = decide(&[], &class("ours", &[(ENCRYPTION, "yes")])).unwrap_err().to_string();
        for part in ["StorageClass c", "storageos.com/encryption", "`yes`"] {
            assert!(error.contains(part), "{error}");
        }
        let labels = [(ENCRYPTION, "true"), (KEY_FORM, "both")];
        let error = decide(&labels, &Storage::Present).unwrap_err().to_string();
        assert!(error.contains("sealblk.io/key-form") && error.contains("`both`"), "{error}");
    }
}
