//! What there is: claims, the Secrets that they name, and the Roles by which Secrets are known; and
//! from that, which Secret lacks its finalizer and which has one too many.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{Duration, SystemTime};

/// An object of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What a watch tells of objects, each known by its key.
#[derive(Debug)]
pub enum Seen<T> {
    /// What is listed from here until the list ends is all there is.
    ListBegins,
    /// One of a list.
    Listed(Key, T),
    /// The list is whole.
    ListEnds,
    /// New, or changed.
    There(Key, T),
    /// Deleted.
    Gone(Key),
}

/// What has to be done to one Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The Secret.
    pub secret: Key,
    /// Whether it is to have the finalizer.
    pub protected: bool,
}

/// What there is, and what has been done about it.
pub struct Inventory {
    orphan_grace: Duration,
    /// When each Role was made; a Secret has its Role's name.
    roles: Listing<SystemTime>,
    /// The Secret that each claim names, if it names one.
    claims: Listing<Option<String>>,
    /// How many claims name each Secret that any names. There may be very many claims, and they are looked
    /// through for no single change.
    named: BTreeMap<Key, usize>,
    /// The Secrets whose Role went before their finalizer was taken away, as when all of a namespace is
    /// deleted at once. Nothing else tells of them any more.
    bereft: BTreeSet<Key>,
    /// The Secrets that have to be looked at.
    open: BTreeSet<Key>,
    /// What was last done to each Secret.
    done: BTreeMap<Key, bool>,
}

impl Inventory {
    /// Knows of nothing yet.
    pub fn new(orphan_grace: Duration) -> Inventory {
        Inventory {
            orphan_grace,
            roles: Listing::default(),
            claims: Listing::default(),
            named: BTreeMap::new(),
            bereft: BTreeSet::new(),
            open: BTreeSet::new(),
            done: BTreeMap::new(),
        }
    }

    /// Takes note of Roles, each with the time it was made.
    pub fn see_role(&mut self, seen: Seen<SystemTime>) {
        for Difference { key, is, .. } in self.roles.see(seen) {
            if is.is_some() {
                self.bereft.remove(&key);
            } else {
                self.bereft.insert(key.clone());
            }
            self.open.insert(key);
        }
    }

    /// Takes note of claims, each with the name of the Secret that it names.
    pub fn see_claim(&mut self, seen: Seen<Option<String>>) {
        for Difference { key, was, is } in self.claims.see(seen) {
            let secret = |name| Key { namespace: key.namespace.clone(), name };
            if let Some(secret) = is.flatten().map(secret) {
                *self.named.entry(secret.clone()).or_default() += 1;
                self.open.insert(secret);
            }
            if let Some(secret) = was.flatten().map(secret) {
                if let Entry::Occupied(mut count) = self.named.entry(secret.clone()) {
                    *count.get_mut() -= 1;
                    if *count.get() == 0 {
                        count.remove();
                    }
                }
                self.open.insert(secret);
            }
        }
    }

    /// What has to be done now. Nothing, until all claims and Roles are known.
    pub fn due(&mut self, now: SystemTime) -> Vec<Change> {
        if !(self.roles.is_whole && self.claims.is_whole) {
            return Vec::new();
        }
        let mut due = Vec::new();
        let mut later = BTreeSet::new();
        for secret in std::mem::take(&mut self.open) {
            let protected = self.named.contains_key(&secret);
            let Some(&made) = self.roles.objects.get(&secret) else {
                self.done.remove(&secret);
                // While a claim names it, it stays as it is; the end of that claim opens it again.
                if self.bereft.contains(&secret) && !protected {
                    later.insert(secret.clone());
                    due.push(Change { secret, protected });
                }
                continue;
            };
            if self.done.get(&secret) == Some(&protected) {
                continue;
            }
            later.insert(secret.clone());
            // A clock that was set back makes nothing look old.
            let is_young = now.duration_since(made).is_ok_and(|age| age < self.orphan_grace) || made > now;
            if protected || !is_young {
                due.push(Change { secret, protected });
            }
        }
        // What is due stays open until it is done.
        self.open = later;
        due
    }

    /// Takes note that a change was made, or that its Secret is gone.
    pub fn done(&mut self, change: Change) {
        self.open.remove(&change.secret);
        if self.bereft.remove(&change.secret) {
            return;
        }
        self.done.insert(change.secret, change.protected);
    }
}

/// All objects of one kind.
struct Listing<T> {
    objects: BTreeMap<Key, T>,
    /// Those of a list that is being read.
    listed: BTreeMap<Key, T>,
    is_whole: bool,
}

impl<T> Default for Listing<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listed: BTreeMap::new(), is_whole: false }
    }
}

/// What an object was and what it is; nothing where it was or is not there.
struct Difference<T> {
    key: Key,
    was: Option<T>,
    is: Option<T>,
}

impl<T: Clone + PartialEq> Listing<T> {
    /// Takes note, and returns what is different.
    fn see(&mut self, seen: Seen<T>) -> Vec<Difference<T>> {
        match seen {
            Seen::ListBegins => {
                self.listed.clear();
                Vec::new()
            }
            Seen::Listed(key, value) => {
                self.listed.insert(key, value);
                Vec::new()
            }
            Seen::ListEnds => {
                self.is_whole = true;
                let mut before = std::mem::replace(&mut self.objects, std::mem::take(&mut self.listed));
                let there = self.objects.iter().map(|(key, is)| Difference {
                    key: key.clone(),
                    was: before.remove(key),
                    is: Some(is.clone()),
                });
                let mut differences: Vec<_> = there.filter(|difference| difference.was != difference.is).collect();
                let gone = before.into_iter().map(|(key, was)| Difference { key, was: Some(was), is: None });
                differences.extend(gone);
                differences
            }
            Seen::There(key, value) => {
                let was = self.objects.insert(key.clone(), value.clone());
                vec![Difference { key, was, is: Some(value) }]
            }
            Seen::Gone(key) => {
                let was = self.objects.remove(&key);
                vec![Difference { key, was, is: None }]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(300);

    fn key(name: &str) -> Key {
        Key { namespace: "vms".into(), name: name.into() }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn named(secret: &str) -> Option<String> {
        Some(secret.into())
    }

    fn change(secret: &str, protected: bool) -> Change {
        Change { secret: key(secret), protected }
    }

    /// Lists what is given, as after a start.
    fn started(claims: &[(&str, &str)], roles: &[&str]) -> Inventory {
        let mut inventory = Inventory::new(GRACE);
        list(&mut inventory, claims, roles);
        inventory
    }

    fn list(inventory: &mut Inventory, claims: &[(&str, &str)], roles: &[&str]) {
        inventory.see_claim(Seen::ListBegins);
        for (claim, secret) in claims {
            inventory.see_claim(Seen::Listed(key(claim), named(secret)));
        }
        inventory.see_claim(Seen::ListEnds);
        inventory.see_role(Seen::ListBegins);
        for role in roles {
            inventory.see_role(Seen::Listed(key(role), at(0)));
        }
        inventory.see_role(Seen::ListEnds);
    }

    /// Everything that is due, and done at once.
    fn settle(inventory: &mut Inventory, now: SystemTime) -> Vec<Change> {
        let due = inventory.due(now);
        for change in &due {
            inventory.done(change.clone());
        }
        due
    }

    #[test]
    fn a_secret_is_protected_as_long_as_a_claim_names_it() {
        let mut inventory = started(&[("disk", "a"), ("same-disk", "a")], &["a"]);
        assert_eq!(settle(&mut inventory, at(0)), [change("a", true)]);
        inventory.see_claim(Seen::Gone(key("disk")));
        assert_eq!(settle(&mut inventory, at(1000)), []);
        inventory.see_claim(Seen::Gone(key("same-disk")));
        assert_eq!(settle(&mut inventory, at(1000)), [change("a", false)]);
        inventory.see_claim(Seen::There(key("again"), named("a")));
        assert_eq!(settle(&mut inventory, at(1000)), [change("a", true)]);
        assert_eq!(settle(&mut inventory, at(2000)), []);
    }

    #[test]
    fn a_claim_that_turns_to_another_secret_lets_the_first_go() {
        let mut inventory = started(&[("disk", "a")], &["a", "b"]);
        assert_eq!(settle(&mut inventory, at(1000)), [change("a", true), change("b", false)]);
        for _ in 0..2 {
            inventory.see_claim(Seen::There(key("disk"), named("b")));
        }
        assert_eq!(settle(&mut inventory, at(1000)), [change("a", false), change("b", true)]);
        inventory.see_claim(Seen::There(key("disk"), None));
        assert_eq!(settle(&mut inventory, at(1000)), [change("b", false)]);
    }

    #[test]
    fn a_young_secret_waits_for_its_claim() {
        let mut inventory = started(&[], &["a"]);
        assert_eq!(settle(&mut inventory, at(299)), []);
        assert_eq!(settle(&mut inventory, at(300)), [change("a", false)]);
        let mut inventory = started(&[], &["a"]);
        assert_eq!(settle(&mut inventory, at(299)), []);
        inventory.see_claim(Seen::There(key("disk"), named("a")));
        assert_eq!(settle(&mut inventory, at(299)), [change("a", true)]);
        // A clock that was set back.
        let mut inventory = started(&[], &["a"]);
        assert_eq!(settle(&mut inventory, at(0) - Duration::from_secs(5)), []);
    }

    #[test]
    fn nothing_is_done_before_everything_is_known() {
        let mut inventory = Inventory::new(GRACE);
        inventory.see_role(Seen::ListBegins);
        inventory.see_role(Seen::Listed(key("a"), at(0)));
        inventory.see_role(Seen::ListEnds);
        inventory.see_claim(Seen::ListBegins);
        assert_eq!(settle(&mut inventory, at(1000)), []);
        inventory.see_claim(Seen::Listed(key("disk"), named("a")));
        assert_eq!(settle(&mut inventory, at(1000)), []);
        inventory.see_claim(Seen::ListEnds);
        assert_eq!(settle(&mut inventory, at(1000)), [change("a", true)]);
    }

    #[test]
    fn a_list_after_a_lost_watch_tells_what_is_gone() {
        let mut inventory = started(&[("one", "a"), ("two", "b")], &["a", "b", "c"]);
        let all = [change("a", true), change("b", true), change("c", false)];
        assert_eq!(settle(&mut inventory, at(1000)), all);
        list(&mut inventory, &[("two", "b")], &["a", "b", "c"]);
        assert_eq!(settle(&mut inventory, at(1000)), [change("a", false)]);
        // Of a Secret whose Role is gone nobody knows whether it still has the finalizer.
        list(&mut inventory, &[("two", "b")], &["b"]);
        assert_eq!(settle(&mut inventory, at(1000)), [change("a", false), change("c", false)]);
        list(&mut inventory, &[("two", "b")], &["b"]);
        assert_eq!(settle(&mut inventory, at(1000)), []);
    }

    /// Prevents a namespace from being stuck in its deletion, which takes Roles before claims.
    #[test]
    fn a_secret_that_outlives_its_role_is_let_go_with_its_claim() {
        let mut inventory = started(&[("disk", "a")], &["a"]);
        assert_eq!(settle(&mut inventory, at(0)), [change("a", true)]);
        inventory.see_role(Seen::Gone(key("a")));
        assert_eq!(settle(&mut inventory, at(0)), []);
        inventory.see_claim(Seen::Gone(key("disk")));
        assert_eq!(inventory.due(at(0)), [change("a", false)]);
        assert_eq!(settle(&mut inventory, at(0)), [change("a", false)]);
        assert_eq!(settle(&mut inventory, at(1000)), []);
        // Made again under the same name, it is a Secret like any other.
        inventory.see_claim(Seen::There(key("disk"), named("a")));
        inventory.see_role(Seen::There(key("a"), at(1000)));
        assert_eq!(settle(&mut inventory, at(1000)), [change("a", true)]);
    }

    #[test]
    fn only_secrets_with_a_role_are_touched_and_only_those_of_the_claims_namespace() {
        let mut inventory = started(&[("disk", "somebody-elses")], &["a"]);
        let elsewhere = Key { namespace: "other".into(), name: "disk".into() };
        inventory.see_claim(Seen::There(elsewhere, named("a")));
        assert_eq!(settle(&mut inventory, at(1000)), [change("a", false)]);
    }

    #[test]
    fn what_failed_is_due_again() {
        let mut inventory = started(&[("disk", "a")], &["a"]);
        assert_eq!(inventory.due(at(0)), [change("a", true)]);
        assert_eq!(inventory.due(at(0)), [change("a", true)]);
        inventory.see_claim(Seen::Gone(key("disk")));
        assert_eq!(inventory.due(at(1000)), [change("a", false)]);
    }
}
