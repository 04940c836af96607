//! The ways to the other peer, whatever they lead through.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::attachment::{Attachment, AttachmentState};
use crate::path::{Path, PathState, Watch};

/// What a path leads through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathKind {
    /// Nothing: the other peer is on an own subnet.
    Direct,
    /// A gateway that this peer asked.
    Gateway,
    /// A server that asked this peer, on behalf of the other one.
    Offered,
    /// The root.
    Root,
}

impl PathKind {
    /// The name in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Gateway => "gateway",
            Self::Offered => "offered",
            Self::Root => "root",
        }
    }
}

/// How good a way is; less is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(u16);

impl Rank {
    pub(super) const DIRECT: Self = Self(0);
    pub(super) const OFFERED: Self = Self(1);
    pub(super) const ROOT: Self = Self(u16::MAX);

    /// That of the gateway with this position in the list. The first is as good as an offer.
    pub(super) fn gateway(position: usize) -> Self {
        Self(Self::OFFERED.0 + u16::try_from(position).unwrap_or(u16::MAX / 2))
    }
}

/// One way to the other peer, or the attempt to make one.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) id: u32,
    pub(super) kind: PathKind,
    pub(super) rank: Rank,
    pub(super) body: Body,
    /// When it was begun, or last failed.
    pub(super) since: Instant,
    /// It has carried data before.
    pub(super) has_worked: bool,
    /// When it is let go.
    pub(super) retire_at: Option<Instant>,
    /// The neighbour table has been asked about it.
    pub(super) is_checked: bool,
}

#[derive(Debug)]
pub(super) enum Body {
    /// By a leg at the server with this position in the list.
    Attached(usize, Box<Attachment>),
    /// Straight to an address.
    Plain(Box<Path>),
}

impl Way {
    pub(super) fn path(&self) -> Option<&Path> {
        match &self.body {
            Body::Attached(_, attachment) => attachment.path(),
            Body::Plain(path) => Some(path),
        }
    }

    pub(super) fn path_mut(&mut self) -> Option<&mut Path> {
        match &mut self.body {
            Body::Attached(_, attachment) => attachment.path_mut(),
            Body::Plain(path) => Some(path),
        }
    }

    pub(super) const fn attachment(&self) -> Option<&Attachment> {
        match &self.body {
            Body::Attached(_, attachment) => Some(attachment),
            Body::Plain(_) => None,
        }
    }

    pub(super) const fn attachment_mut(&mut self) -> Option<&mut Attachment> {
        match &mut self.body {
            Body::Attached(_, attachment) => Some(attachment),
            Body::Plain(_) => None,
        }
    }

    /// Position of the server that it leads through.
    pub(super) const fn server(&self) -> Option<usize> {
        match &self.body {
            Body::Attached(server, _) => Some(*server),
            Body::Plain(_) => None,
        }
    }

    pub(super) fn remote(&self) -> Option<SocketAddr> {
        self.path().map(|path| path.remote)
    }

    pub(super) fn is_confirmed(&self) -> bool {
        !self.is_closing() && self.path().is_some_and(|path| path.state == PathState::Confirmed)
    }

    /// Whether the server knows our data socket on it.
    pub(super) fn is_bound(&self) -> bool {
        !self.is_closing() && self.path().is_some_and(|path| path.state >= PathState::Waiting)
    }

    /// Whether it is wanted no more, or not for long.
    pub(super) fn is_leaving(&self) -> bool {
        self.retire_at.is_some() || self.is_closing()
    }

    pub(super) fn is_closing(&self) -> bool {
        let state = self.attachment().map(Attachment::state);
        state.is_some_and(|state| state >= AttachmentState::Closing)
    }

    /// Whether it is over, and has nothing more to say.
    pub(super) fn is_closed(&self) -> bool {
        let is_over = |it: &Attachment| it.state() == AttachmentState::Closed && !it.has_output();
        self.attachment().is_some_and(is_over)
    }

    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    pub(super) fn set_watch(&mut self, now: Instant, watch: Watch) {
        match &mut self.body {
            Body::Attached(_, attachment) => attachment.set_watch(now, watch),
            Body::Plain(path) => path.set_watch(watch, now),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let Some(attachment) = self.attachment_mut()
            && attachment.poll_timeout().is_some_and(|at| at <= now)
        {
            attachment.handle_timeout(now);
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.body {
            Body::Attached(_, attachment) => attachment.poll_timeout(),
            Body::Plain(path) => path.poll_timeout(),
        }
    }
}
