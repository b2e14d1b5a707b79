//! Handlers of different types behind one face: one indirect call an event.

use std::io;

use ringport_engine::{Buf, ConnId};

use super::context::{Context, Facts};
use super::timers::TimerId;
use crate::handler::{Connection, Handler, Message};
use crate::session::CloseReport;

/// What a callback needs from the worker.
pub(crate) struct Call<'a> {
    pub(crate) context: &'a mut Context,
    pub(crate) facts: &'a mut dyn Facts,
    pub(crate) conn: ConnId,
    /// Where the user's state lies.
    pub(crate) state: u32,
}

/// What happened, apart from received bytes.
pub(crate) enum Happening<'a> {
    Open,
    PeerClosed,
    Full,
    Writable,
    Flushed(u64),
    Heartbeat,
    Timer(TimerId, u64),
    Message(Message),
    Close(&'a CloseReport),
}

/// What a session hears of its queue, after the events of the turn.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Later {
    Full,
    Writable,
    Flushed(u64),
}

impl From<Later> for Happening<'_> {
    fn from(later: Later) -> Self {
        match later {
            Later::Full => Self::Full,
            Later::Writable => Self::Writable,
            Later::Flushed(token) => Self::Flushed(token),
        }
    }
}

/// A handler with the states of its connections.
pub(crate) trait Service {
    /// Makes a state for a new connection.
    fn new_state(&mut self) -> u32;
    /// Drops the state of a connection that is gone.
    fn drop_state(&mut self, state: u32);
    /// The hot one.
    fn data(&mut self, call: Call<'_>, buf: Buf);
    /// All others.
    fn on(&mut self, call: Call<'_>, what: Happening<'_>);
    fn connect_failed(&mut self, context: &mut Context, conn: Option<ConnId>, error: &io::Error);
    fn tick(&mut self, context: &mut Context);
    /// The worker starts.
    fn start(&mut self, _: &mut Context) {}
}

/// A factory of services, one for each worker.
pub(crate) type Factory = std::sync::Arc<dyn Fn() -> Box<dyn Service> + Send + Sync>;

pub(crate) fn factory<H: Handler>(make: impl Fn() -> H + Send + Sync + 'static) -> Factory {
    std::sync::Arc::new(move || Box::new(Typed { handler: make(), states: Vec::new(), free: Vec::new() }))
}

struct Typed<H: Handler> {
    handler: H,
    states: Vec<Option<H::State>>,
    free: Vec<u32>,
}

impl<H: Handler> Typed<H> {
    #[inline]
    fn parts<'a, 'c: 'a>(&'a mut self, call: Call<'c>) -> (&'a mut H, Connection<'a, H::State>) {
        let Call { context, facts, conn, state } = call;
        let state = self.states[state as usize].as_mut().expect("a live session has a state");
        (&mut self.handler, Connection { context, facts, slot: conn.slot(), state })
    }
}

impl<H: Handler> Service for Typed<H> {
    fn new_state(&mut self) -> u32 {
        let state = Some(H::State::default());
        if let Some(index) = self.free.pop() {
            self.states[index as usize] = state;
            return index;
        }
        self.states.push(state);
        self.states.len() as u32 - 1
    }

    fn drop_state(&mut self, state: u32) {
        self.states[state as usize] = None;
        self.free.push(state);
    }

    #[inline]
    fn data(&mut self, call: Call<'_>, buf: Buf) {
        let (handler, mut conn) = self.parts(call);
        handler.data(&mut conn, buf);
    }

    fn on(&mut self, call: Call<'_>, what: Happening<'_>) {
        let (handler, mut conn) = self.parts(call);
        let conn = &mut conn;
        match what {
            Happening::Open => handler.open(conn),
            Happening::PeerClosed => handler.peer_closed(conn),
            Happening::Full => handler.full(conn),
            Happening::Writable => handler.writable(conn),
            Happening::Flushed(token) => handler.flushed(conn, token),
            Happening::Heartbeat => handler.heartbeat(conn),
            Happening::Timer(timer, token) => handler.timer(conn, timer, token),
            Happening::Message(message) => handler.message(conn, message),
            Happening::Close(report) => handler.close(conn, report),
        }
    }

    fn connect_failed(&mut self, context: &mut Context, _: Option<ConnId>, error: &io::Error) {
        self.handler.connect_failed(context, error);
    }

    fn tick(&mut self, context: &mut Context) {
        self.handler.tick(context);
    }
}
