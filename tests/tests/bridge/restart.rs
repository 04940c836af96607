//! What is remembered, and a server that starts again with it.

use std::collections::BTreeMap;

use rawr_proto::{BridgeName, ErrorCode};
use rawr_userspace::control::{Command, NameRecord, Server};

use super::direct::{Direct, at};
use super::{identity, name, root, secs};

const HERE: &str = "192.0.2.10:5000";
const FAR: &str = "203.0.113.20:6000";

/// What a shell that remembers would know by now, and how often it would have written.
#[derive(Default)]
struct Memory {
    names: BTreeMap<BridgeName, NameRecord>,
    writes: usize,
}

impl Memory {
    fn take(&mut self, direct: &mut Direct) {
        for command in direct.commands.drain(..) {
            self.writes += 1;
            match command {
                Command::Remember(record) => {
                    self.names.insert(record.name.clone(), *record);
                }
                Command::Forget(name) => {
                    assert!(self.names.remove(&name).is_some(), "{name} was not known");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// The server's successor, with other keys.
    fn restart(&self, direct: &mut Direct) {
        direct.server = Server::new(root(), [4; 32], direct.now);
        direct.server.restore_names(direct.now, self.names.values().cloned());
        assert!(direct.drain().is_empty());
    }
}

#[test]
fn names_are_there_after_a_restart_and_belong_to_whom_they_did() {
    let (mut direct, mut memory) = (Direct::new(root()), Memory::default());
    let (holder, other) = (identity(1), identity(2));
    direct.register_with(HERE, &holder, "alice", 5, Some(600)).unwrap();
    direct.register_with(FAR, &other, "bob", 1, Some(60)).unwrap();
    memory.take(&mut direct);
    assert_eq!(memory.names.len(), 2);
    let record = &memory.names[&name("alice")];
    assert_eq!((record.public, record.epoch), (*holder.public().as_bytes(), 5));
    assert_eq!((record.remote, record.over_udp), (at(HERE), true));

    direct.advance(secs(100));
    memory.restart(&mut direct);
    memory.take(&mut direct);
    assert_eq!(memory.names.len(), 1, "what expired meanwhile is forgotten");
    let found = direct.look_up(FAR, &other, "alice");
    assert_eq!(found, Ok((holder.public(), "192.0.2.10".to_owned(), 500)));
    assert_eq!(direct.look_up(FAR, &other, "bob"), Err(ErrorCode::UnknownName));
    assert_eq!(direct.register(FAR, &other, "alice"), Err(ErrorCode::NameTaken));
    let older = direct.register_with(HERE, &holder, "alice", 4, None);
    assert_eq!(older, Err(ErrorCode::RoleTaken));

    // The holder can be reached before it has come back, and answers.
    direct.introduce(FAR, &other, "alice", 1, b"hello").unwrap();
    assert_eq!(direct.indication(&holder).0.to, at(HERE));
    direct.answer(HERE, &holder, 1, b"welcome").unwrap();
    direct.indication(&other);
    direct.register_with(HERE, &holder, "alice", 5, Some(600)).unwrap();
}

#[test]
fn refreshes_are_written_rarely_and_changes_at_once() {
    let (mut direct, mut memory) = (Direct::new(root()), Memory::default());
    let holder = identity(1);
    for _ in 0..240 {
        direct.register_with(HERE, &holder, "alice", 5, Some(3600)).unwrap();
        direct.advance(secs(15));
    }
    memory.take(&mut direct);
    assert!((4..=5).contains(&memory.writes), "{} writes in an hour", memory.writes);
    let before = memory.writes;
    direct.register_with(FAR, &holder, "alice", 5, Some(3600)).unwrap();
    memory.take(&mut direct);
    assert_eq!((memory.writes, memory.names[&name("alice")].remote), (before + 1, at(FAR)));
    direct.register_with(FAR, &holder, "alice", 6, Some(60)).unwrap();
    memory.take(&mut direct);
    let ends = memory.names[&name("alice")].expires;
    assert_eq!(u128::from(ends), (direct.now.unix + secs(60)).as_millis());
    direct.register_with(FAR, &holder, "alice", 6, Some(0)).unwrap();
    memory.take(&mut direct);
    assert!(memory.names.is_empty());
}

#[test]
fn what_expires_is_forgotten() {
    let (mut direct, mut memory) = (Direct::new(root()), Memory::default());
    for number in 1..20 {
        let text = format!("name-{number}");
        direct.register_with(HERE, &identity(number), &text, 1, Some(number.into())).unwrap();
    }
    direct.pass(secs(10));
    memory.take(&mut direct);
    assert_eq!(memory.names.len(), direct.server.name_count());
    direct.pass(secs(10));
    memory.take(&mut direct);
    assert!(memory.names.is_empty());
}
