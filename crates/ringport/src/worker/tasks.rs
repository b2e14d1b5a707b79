//! Tasks on a worker: polling those that are ready, and carrying out what they left.

use std::hint::cold_path;
use std::io;
use std::rc::Rc;

use ringport_engine::{ConnId, Engine, Socket, Want};

use super::context::{Context, Facts};
use super::timers::Timer;
use super::{Listening, Worker};
use crate::aio::{ListenerCell, Request, Runtime, StreamCell, Todo};
use crate::session::{ConnectionOptions, Phase};

impl Context {
    /// The tasks of this worker.
    #[inline]
    pub(crate) fn aio(&self) -> &Rc<Runtime> {
        &self.aio
    }

    /// The options of a connection that has a session.
    pub(crate) fn options_of(&self, conn: ConnId) -> &ConnectionOptions {
        &self.options[self.session(conn.slot()).service as usize]
    }

    /// As [`Self::carry_out`], after `first`, which belongs to the current connection and is in no list.
    #[inline]
    pub(crate) fn carry_out_first(&mut self, facts: &dyn Facts, first: Option<&Rc<StreamCell>>, current: ConnId) {
        if let Some(stream) = first {
            self.hand_over(facts, stream, Some(current));
        }
        if self.aio.is_stirred() {
            cold_path();
            self.carry_out(facts, Some(current));
        }
    }

    /// Carries out what polls have left, up to what the engine is needed for. The session of `current` is settled by the
    /// caller, all others at the end of the turn.
    pub(crate) fn carry_out(&mut self, facts: &dyn Facts, current: Option<ConnId>) {
        while let Some(stream) = self.aio.next_touched() {
            self.hand_over(facts, &stream, current);
        }
        if !self.aio.is_settled() {
            self.set_sleeps();
        }
    }

    #[inline]
    fn hand_over(&mut self, facts: &dyn Facts, stream: &Rc<StreamCell>, current: Option<ConnId>) {
        let Some(conn) = stream.conn.get() else { return };
        let Some(session) = self.sessions.get_mut(conn.slot()).and_then(Option::as_mut) else { return };
        if session.conn != conn || session.phase == Phase::Ended {
            cold_path();
            return;
        }
        let options = &self.options[session.service as usize];
        let todo = stream.hand_over(session, options, &mut self.account);
        if current != Some(conn) {
            self.mark_dirty(conn);
        }
        if let Some(todo) = todo {
            self.do_rest(facts, stream, conn, todo);
        }
    }

    #[cold]
    fn do_rest(&mut self, facts: &dyn Facts, stream: &StreamCell, conn: ConnId, todo: Todo) {
        for (delay, token) in todo.timers.into_iter().flatten() {
            self.set_timer(conn, delay, None, token);
        }
        if todo.info {
            stream.informed(facts.info(conn));
        }
    }

    fn set_sleeps(&mut self) {
        while let Some(change) = self.aio.next_timer_change() {
            if let Some(key) = change.cancel {
                self.timers.cancel(key);
            }
            if let Some((sleep, at)) = change.set {
                let key = self.timers.insert(at, Timer::Sleep(sleep));
                self.aio.timer_set(sleep, at, key);
            }
        }
    }
}

impl<E: Engine> Worker<E> {
    /// Polls the tasks that are ready now. What gets ready meanwhile has its turn in the next one, so that a task that
    /// wakes itself does not keep the worker from its connections.
    pub(super) fn run_tasks(&mut self) {
        if !self.has_ready_tasks() {
            return;
        }
        let runtime = Rc::clone(&self.context.aio);
        for _ in 0..runtime.collect() {
            runtime.poll_ready();
        }
        self.context.carry_out(&self.engine, None);
        while let Some(request) = runtime.next_request() {
            self.carry_out_request(&runtime, request);
        }
        self.context.counters.panics.add(runtime.take_panics());
    }

    fn carry_out_request(&mut self, runtime: &Rc<Runtime>, request: Request) {
        match request {
            Request::Connect { stream, .. } if stream.is_abandoned() => stream.failed(&abandoned()),
            Request::Connect { stream, .. } if self.drain.is_some() => stream.failed(&shutting_down()),
            Request::Connect { stream, whither } => match self.engine.connect(&whither.0, &whither.1) {
                Ok(conn) => {
                    self.insert_connecting(conn, self.task_service);
                    self.deadline(conn);
                    runtime.attach(conn, stream);
                }
                Err(error) => stream.failed(&error),
            },
            Request::BindDatagrams { cell, .. } if self.drain.is_some() => cell.end(&shutting_down()),
            Request::BindDatagrams { cell, socket } => self.bind_for_task(socket, &cell),
            Request::Datagrams(cell) => self.carry_out_datagrams(&cell),
            Request::Listen { listener, .. } if listener.is_gone() => {}
            Request::Listen { listener, .. } if self.drain.is_some() => listener.closed(shutting_down()),
            Request::Listen { listener, socket } => self.listen_for(listener, socket),
            Request::AcceptMore(listener) => self.engine.accept(listener, Want::On),
            Request::Unlisten(listener) => self.engine.unlisten(listener),
        }
    }

    fn listen_for(&mut self, listener: Rc<ListenerCell>, socket: Socket) {
        match self.engine.listen(socket) {
            Ok(id) => {
                if listener.opened(id) {
                    self.engine.accept(id, Want::On);
                } else {
                    self.engine.unlisten(id);
                }
                let service = self.task_service;
                self.listeners.push(Listening { id, service, hand_over: false, queue: Some(listener) });
            }
            Err(error) => listener.closed(error),
        }
    }

    /// Whether a task has something to do before the worker may sleep.
    #[inline]
    pub(super) fn has_ready_tasks(&self) -> bool {
        !self.context.aio.is_quiet()
    }
}

fn abandoned() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "nobody waits for this connection any more")
}

fn shutting_down() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the worker is shutting down")
}
