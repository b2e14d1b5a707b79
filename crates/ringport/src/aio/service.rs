//! How streams and tasks look from their worker: as one more handler.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use ringport_engine::{Buf, ConnId};

use super::cell::StreamCell;
use super::runtime::Runtime;
use super::stream::Stream;
use super::task::BoxFuture;
use crate::worker::{Call, Context, Factory, Happening, Service};

/// What to do with an accepted connection.
type Accept = Box<dyn Fn(Stream) -> BoxFuture>;

/// The connections of one async listener, or of the tasks of a worker.
pub(crate) struct Streams {
    accept: Option<Accept>,
    /// Started when the worker starts.
    main: Option<BoxFuture>,
}

impl Streams {
    /// For connections that tasks open themselves.
    pub(crate) fn of_tasks() -> Box<dyn Service> {
        Box::new(Self { accept: None, main: None })
    }
}

/// A listener's service: a task of `serve` for each connection.
pub(crate) fn serving<F>(serve: F) -> Factory
where
    F: AsyncFn(Stream) -> io::Result<()> + Clone + Send + Sync + 'static,
{
    Arc::new(move || {
        let serve = Rc::new(serve.clone());
        let accept = move |stream| -> BoxFuture {
            let serve = Rc::clone(&serve);
            Box::pin(async move {
                if let Err(error) = serve(stream).await {
                    tracing::debug!(%error, "a connection's task ended with an error");
                }
            })
        };
        Box::new(Streams { accept: Some(Box::new(accept)), main: None })
    })
}

/// A service that runs a task on each worker.
pub(crate) fn running<F>(main: F) -> Factory
where
    F: AsyncFn() -> io::Result<()> + Clone + Send + Sync + 'static,
{
    Arc::new(move || {
        let main = main.clone();
        let main: BoxFuture = Box::pin(async move {
            if let Err(error) = main().await {
                Runtime::with("task", |runtime| runtime.tell_of_end("a worker's task", &error));
            }
        });
        Box::new(Streams { accept: None, main: Some(main) })
    })
}

impl Service for Streams {
    fn new_state(&mut self) -> u32 {
        0 // What belongs to a connection is found by its id.
    }

    fn drop_state(&mut self, _: u32) {}

    #[inline]
    fn data(&mut self, call: Call<'_>, buf: Buf) {
        let runtime = Rc::clone(call.context.aio());
        if let Some(stream) = runtime.stream(call.conn) {
            let waiting = stream.receive(buf);
            let wanted = runtime.poll_at_hand(waiting, &stream);
            call.context.carry_out_first(call.facts, wanted.then_some(&stream), call.conn);
        }
    }

    fn on(&mut self, call: Call<'_>, what: Happening<'_>) {
        let Call { context, facts, conn, .. } = call;
        let runtime = Rc::clone(context.aio());
        if let Happening::Open = what {
            self.opened(&runtime, context, conn);
        } else if let Happening::Close(report) = what {
            if let Some(stream) = runtime.detach(conn) {
                stream.closed(report);
            }
        } else if let Some(stream) = runtime.stream(conn) {
            let queued = context.session(conn.slot()).queued();
            let waiting = match what {
                Happening::PeerClosed => stream.peer_finished(),
                Happening::Writable => stream.writable(queued),
                Happening::Flushed(token) => stream.flushed(token, queued),
                Happening::Timer(_, token) => stream.timer(token),
                _ => return,
            };
            runtime.poll_now(waiting);
        }
        context.carry_out(facts, Some(conn));
    }

    fn connect_failed(&mut self, context: &mut Context, conn: Option<ConnId>, error: &io::Error) {
        if let Some(stream) = conn.and_then(|conn| context.aio().detach(conn)) {
            stream.failed(error);
        }
    }

    fn tick(&mut self, _: &mut Context) {}

    fn start(&mut self, context: &mut Context) {
        if let Some(main) = self.main.take() {
            context.aio().start(main);
        }
    }
}

impl Streams {
    /// A connection is there: one that a task connected, one for a listener of a task, or one for a task of its own.
    fn opened(&self, runtime: &Rc<Runtime>, context: &Context, conn: ConnId) {
        if let Some(stream) = runtime.stream(conn) {
            let waiting = stream.connected();
            // Its session may have something to carry out already, such as an end that was asked for meanwhile.
            runtime.touch(&stream);
            runtime.poll_now(waiting);
            return;
        }
        let cell = StreamCell::new(Rc::clone(runtime), true, context.options_of(conn));
        runtime.attach(conn, Rc::clone(&cell));
        let stream = Stream::new(cell);
        if let Some(listener) = runtime.take_accepting() {
            let waiting = listener.push(stream);
            runtime.notify(waiting);
        } else if let Some(accept) = &self.accept {
            runtime.start_now(accept(stream));
        }
    }
}
