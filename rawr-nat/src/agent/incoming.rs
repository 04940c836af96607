//! What comes to an agent.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Instant;

use super::control::Control;
use super::frame::{self, Frame, Tag};
use super::select::Choice;
use super::signal::Signal;
use super::{Agent, AgentPathKind, AgentSocket};
use crate::attachment::Via;
use crate::socket_id::SocketId;

/// How a control datagram came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// Over RAWR.
    Rawr,
    /// Straight.
    Direct(SocketId, SocketAddr),
    /// Through the application.
    Application,
}

impl Agent {
    /// Takes a datagram. Returns where in it the other agent's data is, if it has any that is to be passed on
    /// now, after what [`Agent::poll_output`] has already.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        socket: AgentSocket,
        from: SocketAddr,
        bytes: &[u8],
    ) -> Option<Range<usize>> {
        let is_data = match socket {
            AgentSocket::Rawr(Via::Control) => {
                self.rawr.handle_control(now, from, bytes);
                false
            }
            AgentSocket::Rawr(Via::Data) => {
                self.rawr.handle_data(now, from, bytes)
                    && self.handle_framed(now, From::Rawr, bytes)
            }
            AgentSocket::Own(socket) => self.handle_direct(now, socket, from, bytes),
        };
        if !is_data {
            self.settle(now);
            return None;
        }
        self.release();
        Some(frame::LENGTH..bytes.len())
    }

    /// Takes what the other agent's [`super::AgentOutput::Signal`] had.
    pub fn handle_signal(&mut self, now: Instant, bytes: &[u8]) {
        if frame::parse(bytes) == Some(Frame::Control) {
            self.handle_control(now, From::Application, bytes);
        }
        self.settle(now);
    }

    fn handle_direct(
        &mut self,
        now: Instant,
        socket: SocketId,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        if self.punch.handle_datagram(now, socket, from, bytes) {
            return false;
        }
        if frame::parse(bytes).is_some() {
            return self.handle_framed(now, From::Direct(socket, from), bytes);
        }
        if let Some(mapped) = self.gather.handle(now, socket, from, bytes) {
            self.handle_mapped(now, socket, mapped);
        } else if let Some(local) = self.local_address(socket) {
            self.ice.handle(now, local, from, bytes);
        }
        false
    }

    /// A STUN server has said what it sees.
    fn handle_mapped(&mut self, now: Instant, socket: SocketId, mapped: Option<SocketAddr>) {
        let Some(mapped) = mapped else { return };
        self.punch.handle_sample(now, socket, mapped);
        if let Some(base) = self.local_address(socket) {
            self.add_reflexive(mapped, base);
        }
    }

    /// Returns whether it is data that is to be passed on now.
    fn handle_framed(&mut self, now: Instant, from: From, bytes: &[u8]) -> bool {
        match frame::parse(bytes) {
            Some(Frame::Data(tag)) => self.handle_payload(now, from, tag, &bytes[frame::LENGTH..]),
            Some(Frame::Control) => {
                self.handle_control(now, from, bytes);
                false
            }
            None => false,
        }
    }

    /// Data counts on every path that is known, whichever the other agent has chosen by now, and from all
    /// addresses that have passed a check: the other agent may have found a path before we have.
    fn handle_payload(&mut self, now: Instant, from: From, tag: Tag, data: &[u8]) -> bool {
        if let From::Direct(socket, remote) = from {
            let path = self.paths.iter_mut().find(|it| (it.socket, it.remote) == (socket, remote));
            match path {
                Some(path) => path.note_heard(now),
                None if self.ice.is_remote(remote) => {}
                None => return false,
            }
        }
        let old_rtt = self.selection.slowest_rtt(self.path().map(|path| path.rtt));
        self.inbox.take(now, tag, data, old_rtt)
    }

    fn handle_control(&mut self, now: Instant, from: From, bytes: &[u8]) {
        let Some(opened) = self.sealer.open(bytes) else { return };
        if opened.is_new_run {
            self.begin_again(now);
        }
        if let From::Direct(socket, remote) = from {
            self.note_direct(now, socket, remote);
        }
        match Control::decode(&opened.message) {
            Some(Control::Ping(id)) => self.reply(from, &Control::Pong(id)),
            Some(Control::Pong(id)) => self.handle_pong(now, from, id),
            Some(Control::Select(generation)) => self.handle_select(now, from, generation),
            Some(Control::Selected(generation)) => self.handle_selected(now, generation),
            Some(Control::Lost(generation)) => self.handle_lost(now, generation),
            Some(Control::Marker(handover)) => self.inbox.handle_marker(handover),
            Some(Control::Signal { sequence, body }) => {
                if let Some(body) = self.mailbox.handle_signal(sequence, body) {
                    self.take_signal(now, &body);
                }
            }
            Some(Control::Ack(next)) => self.mailbox.handle_ack(now, next),
            Some(Control::Punching { attempt, message }) => {
                self.handle_punch_message(now, attempt, message);
            }
            None => {}
        }
    }

    /// The other agent reaches us by this path, so we may reach it the same way.
    fn note_direct(&mut self, now: Instant, socket: SocketId, remote: SocketAddr) {
        match self.paths.iter_mut().find(|it| (it.socket, it.remote) == (socket, remote)) {
            Some(path) => path.note_heard(now),
            None => {
                let is_host = self.ice.is_remote_host(remote);
                let kind = if is_host { AgentPathKind::Host } else { AgentPathKind::Reflexive };
                self.add_path(now, socket, remote, kind);
            }
        }
    }

    /// A path may have been found before the candidate that it leads to was named.
    pub(super) fn name_paths(&mut self) {
        for path in self.paths.iter_mut().filter(|it| it.kind == AgentPathKind::Reflexive) {
            if self.ice.is_remote_host(path.remote) {
                path.kind = AgentPathKind::Host;
            }
        }
    }

    /// Counts only where it came by the path that was pinged.
    fn handle_pong(&mut self, now: Instant, from: From, id: u64) {
        let From::Direct(socket, remote) = from else { return };
        let path = self.paths.iter_mut().find(|it| (it.socket, it.remote) == (socket, remote));
        if let Some(path) = path {
            path.handle_pong(now, id);
        }
    }

    pub(super) fn reply(&mut self, from: From, control: &Control) {
        match from {
            From::Rawr => self.send_on(Choice::Rawr, control),
            From::Direct(socket, remote) => {
                self.send_control(AgentSocket::Own(socket), remote, control);
            }
            From::Application => {}
        }
    }

    fn take_signal(&mut self, now: Instant, body: &[u8]) {
        match Signal::decode(body) {
            Some(Signal::Credentials { fragment, password }) => {
                self.ice.set_remote(fragment, password);
                self.ice.handle_timeout(now);
                self.open_since.get_or_insert(now);
            }
            Some(Signal::Candidate(sdp)) => self.take_candidate(now, sdp),
            Some(Signal::Behaviour(behaviour)) => self.punch.theirs = Some(behaviour),
            Some(Signal::Recheck) if !self.is_controlling() => self.check_again(now),
            Some(Signal::Punch(attempt)) if !self.is_controlling() => {
                self.start_punching(now, attempt);
            }
            Some(Signal::Recheck | Signal::Punch(_)) | None => {}
        }
    }
}
