//! The users with a password of their own, and their keys.

use std::collections::HashMap;
use std::sync::Arc;

use rawr_proto::{
    Credentials, IntegrityAttribute, LongTermIntegrity, LongTermKey, PasswordAlgorithm,
    PasswordKey, opaque_string, userhash,
};

use super::config::ServerConfig;

/// Users by name and by USERHASH.
#[derive(Debug)]
pub(super) struct Users {
    accounts: HashMap<Arc<str>, Account>,
    names: HashMap<[u8; 32], Arc<str>>,
}

/// One user's keys.
#[derive(Debug)]
pub(super) struct Account {
    /// For RAWR messages.
    pub(super) rawr: LongTermKey,
    md5: PasswordKey,
    sha256: PasswordKey,
    /// The two that clients use: of RFC 5389, and of RFC 8489.
    ready: [LongTermIntegrity; 2],
}

impl Users {
    pub(super) fn new(config: &ServerConfig) -> Self {
        let realm = config.realm.as_str();
        let named = |user: &Credentials| {
            let username = opaque_string(&user.username).ok()?.into_owned();
            let user = Credentials { username, password: user.password.clone() };
            Some((user.username.as_str().into(), Account::new(&user, realm)))
        };
        let accounts: HashMap<Arc<str>, Account> = config.users.iter().filter_map(named).collect();
        let names = accounts.keys().map(|name| (userhash(name, realm), Arc::clone(name))).collect();
        Self { accounts, names }
    }

    /// Finds a user, in whichever form a client writes the name.
    pub(super) fn find(&self, username: &str) -> Option<(&Arc<str>, &Account)> {
        self.accounts.get_key_value(&*opaque_string(username).ok()?)
    }

    /// Finds the user behind USERHASH (RFC 8489 §14.4).
    pub(super) fn find_hashed(&self, hash: &[u8]) -> Option<(&Arc<str>, &Account)> {
        self.find(self.names.get(hash)?)
    }
}

impl Account {
    fn new(user: &Credentials, realm: &str) -> Self {
        let key = |algorithm| PasswordKey::new(algorithm, &user.username, realm, &user.password);
        let (md5, sha256) = (key(PasswordAlgorithm::Md5), key(PasswordAlgorithm::Sha256));
        let ready = [
            LongTermIntegrity::new(IntegrityAttribute::Sha1, &md5),
            LongTermIntegrity::new(IntegrityAttribute::Sha256, &sha256),
        ];
        Self { rawr: user.key(realm), md5, sha256, ready }
    }

    pub(super) fn integrity(
        &self,
        algorithm: PasswordAlgorithm,
        attribute: IntegrityAttribute,
    ) -> LongTermIntegrity {
        match (algorithm, attribute) {
            (PasswordAlgorithm::Md5, IntegrityAttribute::Sha1) => self.ready[0].clone(),
            (PasswordAlgorithm::Sha256, IntegrityAttribute::Sha256) => self.ready[1].clone(),
            (PasswordAlgorithm::Md5, IntegrityAttribute::Sha256) => {
                LongTermIntegrity::new(attribute, &self.md5)
            }
            (PasswordAlgorithm::Sha256, IntegrityAttribute::Sha1) => {
                LongTermIntegrity::new(attribute, &self.sha256)
            }
        }
    }
}
