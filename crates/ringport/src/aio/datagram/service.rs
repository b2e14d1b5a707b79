//! How a datagram socket of a task looks from its worker: as one more handler.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ringport_engine::UdpId;

use super::{DatagramCell, DatagramSocket};
use crate::aio::task::BoxFuture;
use crate::datagram::{Datagram, Datagrams};
use crate::worker::{Context, DatagramFactory, DatagramService, Incident};

/// The task of a socket that a server has bound.
type Serve = Box<dyn FnOnce(DatagramSocket) -> BoxFuture>;

enum Tasked {
    /// Bound by the server, and not open yet.
    Bound(Option<Serve>),
    Open(Rc<DatagramCell>),
}

/// The service of a socket that a task has bound.
pub(crate) fn receiving(cell: &Rc<DatagramCell>) -> Box<dyn DatagramService> {
    Box::new(Tasked::Open(Rc::clone(cell)))
}

/// The service of a socket that a server has bound: a task of `serve` on each worker.
pub(crate) fn serving<F>(serve: F) -> DatagramFactory
where
    F: AsyncFn(DatagramSocket) -> io::Result<()> + Clone + Send + Sync + 'static,
{
    Arc::new(move |_| {
        let serve = serve.clone();
        let start = move |socket: DatagramSocket| -> BoxFuture {
            let runtime = Rc::clone(&socket.receiver.handle.cell.runtime);
            Box::pin(async move {
                if let Err(error) = serve(socket).await {
                    runtime.tell_of_end("a datagram socket's task", &error);
                }
            })
        };
        Box::new(Tasked::Bound(Some(Box::new(start))))
    })
}

impl DatagramService for Tasked {
    fn opened(&mut self, context: &mut Context, id: UdpId, local: SocketAddr) {
        match self {
            Self::Open(cell) => cell.opened(id),
            Self::Bound(serve) => {
                let cell = DatagramCell::new(context.aio());
                cell.opened(id);
                if let Some(serve) = serve.take() {
                    context.aio().start(serve(DatagramSocket::new(Rc::clone(&cell), local)));
                }
                *self = Self::Open(cell);
            }
        }
    }

    #[inline]
    fn datagram(&mut self, _: &mut Datagrams<'_>, datagram: Datagram) {
        if let Self::Open(cell) = self {
            let waiting = cell.receive(datagram);
            cell.runtime.poll_now(waiting);
        }
    }

    fn on(&mut self, socket: &mut Datagrams<'_>, what: Incident<'_>) {
        let Self::Open(cell) = self else { return };
        match what {
            Incident::Failed(to, error) => cell.fail(to, error),
            Incident::Writable => cell.set_left(socket.queued()),
            Incident::Open | Incident::Tick | Incident::Sweep(_) => {}
        }
    }

    fn closed(&mut self) {
        if let Self::Open(cell) = self {
            cell.end(&io::Error::new(io::ErrorKind::ConnectionAborted, "the worker has closed this socket"));
        }
    }
}
