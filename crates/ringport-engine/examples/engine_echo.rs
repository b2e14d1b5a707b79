//! An echo server straight on an engine, without sessions: to measure an engine by itself.
//!
//! ```sh
//! cargo run --release -p ringport-engine --example engine_echo -- --port=7000 --engine=epoll
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use ringport_engine::engine::{UseEngine, with_engine};
use ringport_engine::{
    Close, ConnId, Engine, EngineConfig, Event, ListenOptions, Pool, PoolConfig, Selection, SendQueue, Socket, Want,
};

fn main() -> io::Result<()> {
    let port = number("port").unwrap_or(7000) as u16;
    let mut pool = PoolConfig::default();
    if let Some(slots) = number("small-slots") {
        pool = pool.small_slots(slots);
    }
    if let Some(bytes) = number("small-bytes") {
        pool.small_slot_bytes = bytes;
    }
    let config = EngineConfig::default();
    let wanted = text("engine").map(|name| name.parse()).transpose()?;
    let selection = Selection::choose(wanted, &config)?;
    for candidate in &selection.candidates {
        eprintln!("{}: {:?}", candidate.kind, candidate.verdict);
    }
    with_engine(selection.kind, Echo { config, pool, address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)) })?
}

/// The value of `--name=value`.
fn text(name: &str) -> Option<String> {
    std::env::args()
        .find_map(|argument| Some(argument.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
}

fn number(name: &str) -> Option<u32> {
    text(name)?.parse().ok()
}

/// What the server is made of, once an engine is chosen.
struct Echo {
    config: EngineConfig,
    pool: PoolConfig,
    address: SocketAddr,
}

impl UseEngine for Echo {
    type Output = io::Result<()>;

    fn run<E: Engine>(self) -> io::Result<()> {
        serve::<E>(&self.config, self.pool, self.address)
    }
}

#[derive(Default)]
struct Session {
    queue: SendQueue,
    ended: bool,
    busy: bool,
}

fn serve<E: Engine>(config: &EngineConfig, pool: PoolConfig, address: SocketAddr) -> io::Result<()> {
    let mut engine = E::open(config, Pool::new(pool))?;
    let listener = engine.listen(Socket::listen(&address.into(), &ListenOptions::default(), None)?)?;
    engine.accept(listener, Want::On);
    let mut sessions: Vec<Session> = Vec::new();
    loop {
        engine.wait(None)?;
        while let Some(event) = engine.next() {
            match event {
                Event::Received { conn, buf } => {
                    sessions[conn.slot()].queue.push(buf);
                    pump(&mut engine, conn, &mut sessions[conn.slot()]);
                }
                Event::Sent { conn, idle, .. } => {
                    let session = &mut sessions[conn.slot()];
                    session.busy = !idle;
                    if idle {
                        pump(&mut engine, conn, session);
                    }
                }
                Event::PeerClosed { conn } => {
                    sessions[conn.slot()].ended = true;
                    pump(&mut engine, conn, &mut sessions[conn.slot()]);
                }
                Event::Accepted { socket, .. } => {
                    let conn = engine.adopt(socket)?;
                    if sessions.len() <= conn.slot() {
                        sessions.resize_with(conn.slot() + 1, Session::default);
                    }
                    sessions[conn.slot()] = Session::default();
                    engine.receive(conn, Want::On);
                }
                _ => {}
            }
        }
    }
}

#[inline]
fn pump<E: Engine>(engine: &mut E, conn: ConnId, session: &mut Session) {
    if !session.busy && !session.queue.is_empty() {
        session.busy = !engine.send(conn, &mut session.queue).idle;
    }
    if session.ended && !session.busy && session.queue.is_empty() {
        engine.close(conn, Close::Plain);
    }
}
