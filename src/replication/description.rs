//! What a volume is, by those who have a copy: for a node that is to serve it and has none.
//!
//! Every copy in sync is asked at once, and has the same time. One answer is enough; of several, all have to be the
//! same. An answer is a member's word: with it a key can be checked, but a node that lies about the size or the
//! sectors of a volume is only found out by another member's answer, or by who knows what the volume is to be.

use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::transport::{self, OpenError};
use super::view::{Member, NodeName, View};
use crate::store::{Superblock, SuperblockError};
use crate::tls::Configs;

/// Asks the copies in sync what the volume is.
///
/// # Errors
///
/// [`DescriptionError`]: nobody says it, or not all say the same.
pub fn ask(view: &View, configs: &Configs, time: Duration) -> Result<Superblock, DescriptionError> {
    let (volume, deadline) = (view.volume, Instant::now() + time);
    let asked: Vec<&Member> = view.in_sync().map(|index| &view.members[usize::from(index.0)]).collect();
    let answers: Vec<_> = thread::scope(|scope| {
        let ask = |member: &'_ Member| ask_one(member, volume, configs, deadline);
        // What is collected runs at the same time.
        let asking: Vec<_> = asked.iter().map(|&member| scope.spawn(move || ask(member))).collect();
        asking.into_iter().map(|thread| thread.join().unwrap_or(Err(NoAnswer::Panicked))).collect()
    });
    let mut said: Option<(&NodeName, Superblock)> = None;
    let mut failures = Vec::new();
    for (member, answer) in asked.into_iter().zip(answers) {
        match (answer, &said) {
            (Ok(superblock), None) => said = Some((&member.node, superblock)),
            (Ok(superblock), Some((_, first))) if superblock == *first => {}
            (Ok(_), Some((first, _))) => {
                return Err(DescriptionError::Disagreement { volume, nodes: [(*first).clone(), member.node.clone()] });
            }
            (Err(failure), _) => failures.push(failure.to_string()),
        }
    }
    match said {
        Some((_, superblock)) => {
            failures.iter().for_each(|failure| log::warn!("volume {volume}: {failure}"));
            Ok(superblock)
        }
        None => Err(DescriptionError::Nobody { volume, failures: failures.join("; ") }),
    }
}

fn ask_one(member: &Member, volume: Uuid, configs: &Configs, deadline: Instant) -> Result<Superblock, NoAnswer> {
    let Member { node, address, .. } = member;
    let content = transport::describe(address, node, configs, volume, deadline)?;
    let superblock =
        Superblock::parse(&content).map_err(|source| NoAnswer::Superblock { node: node.clone(), source })?;
    if superblock.id != volume {
        return Err(NoAnswer::OtherVolume { node: node.clone(), found: superblock.id });
    }
    Ok(superblock)
}

/// A member did not say what the volume is.
#[derive(Debug, thiserror::Error)]
enum NoAnswer {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the volume.json of node {node} cannot be used: {source}")]
    Superblock { node: NodeName, source: SuperblockError },
    #[error("node {node} says what volume {found} is, which it was not asked")]
    OtherVolume { node: NodeName, found: Uuid },
    #[error("the thread that asks has panicked")]
    Panicked,
}

/// It is not known what a volume is.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// No member says it.
    #[error("no node with a copy in sync says what volume {volume} is: {failures}")]
    Nobody {
        /// The volume.
        volume: Uuid,
        /// Why each of them does not.
        failures: String,
    },
    /// Two members say different things.
    #[error(
        "nodes {} and {} say different things of volume {volume}, one of them wrongly: compare the volume.json of its copies",
        nodes[0], nodes[1]
    )]
    Disagreement {
        /// The volume.
        volume: Uuid,
        /// Which two.
        nodes: [NodeName; 2],
    },
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;
    use crate::replication::transport::Connection;
    use crate::replication::view::{FailureMode, Incarnation, MemberState, ViewNumber};
    use crate::replication::wire::{Answer, ProtocolVersion, Refusal, RefusalCode};
    use crate::store::SectorSize;
    use crate::tls;
    use crate::tls::fixture::{Fixture, configs};

    /// What node-x hears from members that answer so; none of them does more than take the connection.
    fn hear(answers: Vec<Option<Answer>>) -> Result<Superblock, DescriptionError> {
        let fixture = Fixture::new();
        let names: Vec<String> = (0..answers.len()).map(|index| format!("node-{index}")).collect();
        let listeners: Vec<_> = names.iter().map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let members = names.iter().zip(&listeners).map(|(name, listener)| Member {
            node: name.parse().unwrap(),
            address: listener.local_addr().unwrap().to_string(),
            zone: None,
            state: MemberState::InSync(Incarnation(Uuid::nil())),
        });
        let mut view = View {
            volume: VOLUME,
            number: ViewNumber(3),
            writer: None,
            members: members.collect(),
            failure_mode: FailureMode::AlwaysOn,
            lease_ms: 1000,
            writers: Vec::new(),
        };
        // Nobody asks a copy that is behind.
        view.members.push(Member {
            node: "node-9".parse().unwrap(),
            address: "no address".to_owned(),
            zone: None,
            state: MemberState::Behind,
        });
        let time = if answers.contains(&None) { Duration::from_millis(500) } else { Duration::from_secs(30) };
        thread::scope(|scope| {
            for ((name, listener), answer) in names.iter().zip(&listeners).zip(answers) {
                let configs = configs(&fixture.node(name));
                scope.spawn(move || {
                    let (stream, _) = listener.accept().unwrap();
                    let deadline = Instant::now() + Duration::from_secs(30);
                    let Ok(established) = tls::accept(stream, configs.server.clone(), deadline) else { return };
                    let mut connection = Connection::new(established).unwrap();
                    let mut frame = Vec::new();
                    match answer {
                        Some(answer) => answer.encode(&mut frame).unwrap(),
                        // Silent until the other end has gone.
                        None => {
                            while connection.receive().is_ok() {
                                thread::sleep(Duration::from_millis(10));
                            }
                        }
                    }
                    connection.queue(&frame, &[]);
                    while let Ok(false) = connection.send() {}
                    while connection.receive().is_ok() {
                        thread::sleep(Duration::from_millis(10));
                    }
                });
            }
            ask(&view, &configs(&fixture.node("node-x")), time)
        })
    }

    fn superblock(volume: Uuid, size_bytes: u64) -> Superblock {
        Superblock::plain(volume, size_bytes, SectorSize::Bytes512).unwrap()
    }

    fn saying(superblock: &Superblock) -> Option<Answer> {
        Some(Answer::Description { version: ProtocolVersion::V1, superblock: superblock.render() })
    }

    #[test]
    fn one_answer_is_enough_and_others_may_be_silent_or_refuse() {
        let right = superblock(VOLUME, 1 << 20);
        let refusal = Some(Answer::Refused(Refusal::new(RefusalCode::Busy, "later")));
        let damaged = Answer::Description { version: ProtocolVersion::V1, superblock: b"{}".to_vec() };
        let heard = hear(vec![None, refusal, Some(damaged), saying(&right)]).unwrap();
        assert_eq!(heard, right);
    }

    #[test]
    fn answers_have_to_be_the_same() {
        let right = superblock(VOLUME, 1 << 20);
        assert_eq!(hear(vec![saying(&right), saying(&right)]).unwrap(), right);
        let error = hear(vec![saying(&right), saying(&superblock(VOLUME, 2 << 20))]).unwrap_err();
        let DescriptionError::Disagreement { nodes, .. } = &error else { panic!("{error}") };
        assert_eq!(nodes, &["node-0".parse().unwrap(), "node-1".parse().unwrap()]);
    }

    #[test]
    fn where_nobody_says_it_every_reason_is_in_one_line() {
        let refusal = Some(Answer::Refused(Refusal::new(RefusalCode::NoSuchVolume, "lost\nit")));
        let other = superblock(Uuid::from_u128(8), 1 << 20);
        let text = hear(vec![refusal, saying(&other)]).unwrap_err().to_string();
        assert!(text.contains("node-0 refuses: no copy of this volume: lost it; node node-1 says"), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    const VOLUME: Uuid = Uuid::from_u128(7);
}
