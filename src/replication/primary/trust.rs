//! Whether the members' certificates are still good, and sessions that are made anew before they are not.
//!
//! A session begins with what both ends show at that moment. When this node has a new certificate, or trusts others
//! than before, every session is made anew, one after another, so that no copy leaves for that. So is one whose
//! member's certificate has lived through half of what it still had when the session began: by then the node may
//! have another, and if not, half of the rest remains for the next attempt. A session whose member's certificate was
//! revoked, has expired or is not trusted any more is ended at once, as if its connections had broken.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::shared::Shared;
use crate::replication::view::MemberIndex;
use crate::replication::writer::Lane;
use crate::tls::error::Peer;
use crate::tls::{Configs, Credential, Reason, Reloading, Standing, TlsError};

/// What the member of a session has shown on each of its connections.
#[derive(Debug)]
pub(super) struct Trusted {
    session: u64,
    since: SystemTime,
    standings: Vec<Standing>,
}

impl Trusted {
    /// Of a session that begins now.
    pub(super) fn new(session: u64, standings: Vec<Standing>) -> Trusted {
        Trusted { session, since: SystemTime::now(), standings }
    }

    /// One more connection.
    pub(super) fn add(&mut self, standing: Standing) {
        self.standings.push(standing);
    }

    /// The moment from which something that was shown is no longer good.
    #[cfg(test)]
    pub(super) fn end(&self) -> Option<SystemTime> {
        self.standings.iter().map(|standing| standing.credential().end()).min()
    }

    /// Whether the session is to be made anew.
    fn is_old(&self, current: &Arc<Configs>, now: SystemTime) -> bool {
        let is_over_half = |standing: &Standing| {
            let left = standing.credential().end().duration_since(self.since).unwrap_or_default();
            now >= self.since + (left / 2).max(RENEW_INTERVAL_MIN)
        };
        self.standings.iter().any(|standing| !standing.is_by(current) || is_over_half(standing))
    }

    /// Whether everything that was shown is still good.
    fn check(&mut self, current: &Arc<Configs>, now: SystemTime) -> Result<(), Reason> {
        // Its connections have the same, as a rule.
        let mut good: Option<Arc<Credential>> = None;
        for standing in self.standings.iter_mut().filter(|standing| standing.is_due(current, now)) {
            let credential = standing.credential().clone();
            if good.as_ref() != Some(&credential) {
                credential.check(current, now)?;
                good = Some(credential);
            }
            standing.passed(current);
        }
        Ok(())
    }
}

/// What the lane for control does about certificates.
pub(super) struct Trust {
    shared: Arc<Shared>,
    tls: Arc<Reloading>,
    looked: Instant,
    /// Members whose sessions are to be made anew.
    to_renew: VecDeque<MemberIndex>,
}

impl Trust {
    /// Of a primary that has no sessions yet.
    pub(super) fn new(shared: Arc<Shared>, tls: Arc<Reloading>) -> Trust {
        Trust { shared, tls, looked: Instant::now(), to_renew: VecDeque::new() }
    }

    /// Looks at what has changed, and does the next of what there is to do.
    pub(super) fn tick(&mut self) {
        if self.looked.elapsed() >= INTERVAL {
            self.looked = Instant::now();
            self.look();
        }
        if let Some(&member) = self.to_renew.front()
            && self.shared.with_writer(Some(Lane::CONTROL), |state, now| state.writer.renew_session(now, member))
        {
            self.to_renew.pop_front();
        }
    }

    fn look(&mut self) {
        let (current, now) = (self.tls.current(), SystemTime::now());
        let (mut due, mut failed) = (Vec::new(), Vec::new());
        self.shared.with_trusted(|member, trusted| {
            if trusted.is_old(&current, now) {
                due.push(member);
            }
            if let Err(reason) = trusted.check(&current, now) {
                failed.push((member, trusted.session, reason));
            }
        });
        for (member, session, reason) in failed {
            due.retain(|other| *other != member);
            let peer = Peer { node: Some(self.shared.look(|state| state.node(member).to_string())), address: None };
            self.shared.note_failure(member, session, &TlsError { peer, reason });
            self.shared.disconnected(Some(Lane::CONTROL), member, session, None);
        }
        due.retain(|member| !self.to_renew.contains(member));
        self.to_renew.extend(due);
    }
}

/// How often it is looked at what time and files have changed.
const INTERVAL: Duration = Duration::from_secs(1);
/// The least time from one session to the next that is made for the sake of certificates.
const RENEW_INTERVAL_MIN: Duration = Duration::from_secs(2);
