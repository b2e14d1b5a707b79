//! One engine with one datagram socket, for the tests of laws 13 to 17.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringport_engine::engine::sim::{Faults, Network};
use ringport_engine::{Buf, Engine, EngineConfig, Event, Pool, PoolConfig, SendTo, Socket, UdpId, UdpOptions, Want};

use crate::subject::Setup;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// One engine with one datagram socket, and what it saw.
pub struct Port<E> {
    pub engine: E,
    pub udp: UdpId,
    pub address: SocketAddr,
    pub received: Vec<(SocketAddr, Vec<u8>, bool)>,
    pub kept: Vec<Buf>,
    pub keep: bool,
    pub echo: bool,
    /// Datagrams of an echo that the engine did not take yet.
    pub outbox: Vec<(SocketAddr, Buf)>,
    pub writable: usize,
    pub failed: Vec<(Option<SocketAddr>, io::ErrorKind)>,
    pub closed: Option<usize>,
    pub events_max: usize,
    pub sim: bool,
}

pub fn bind(address: &str, network: Option<&Network>) -> (Socket, SocketAddr) {
    let mut options = UdpOptions::default();
    options.receive_buffer = Some(1 << 20);
    let address = address.parse().expect("an address");
    let socket = Socket::bind_udp(address, &options, network).expect("a free port");
    let address = socket.local_addr().expect("it is bound").as_socket().expect("an IP address");
    (socket, address)
}

/// Gives `engine` a socket of its own at `address`. Registered I/O has to make it anew, and in between somebody else may take a
/// port that the system chose (`AddrInUse`): then another one will do.
pub fn take<E: Engine>(engine: &mut E, address: &str, network: Option<&Network>) -> (UdpId, SocketAddr) {
    let mut others = if address.ends_with(":0") { 4 } else { 0 };
    loop {
        let (socket, bound) = bind(address, network);
        match engine.bind_udp(socket) {
            Ok(udp) => return (udp, bound),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && others > 0 => others -= 1,
            Err(error) => panic!("the engine does not take the socket: {error}"),
        }
    }
}

impl<E: Engine> Port<E> {
    pub fn open(config: &EngineConfig) -> Self {
        Self::open_at(config, "127.0.0.1:0")
    }

    pub fn open_at(config: &EngineConfig, address: &str) -> Self {
        let mut engine = E::open(config, Pool::new(PoolConfig::default())).expect("the probe said that it opens");
        let (udp, address) = take(&mut engine, address, config.network.as_ref());
        engine.receive_datagrams(udp, Want::On);
        Self {
            engine,
            udp,
            address,
            received: Vec::new(),
            kept: Vec::new(),
            keep: false,
            echo: false,
            outbox: Vec::new(),
            writable: 0,
            failed: Vec::new(),
            closed: None,
            events_max: 0,
            sim: config.network.is_some(),
        }
    }

    pub fn turn(&mut self, pause: Duration) -> bool {
        let now = if self.sim { self.engine.now() } else { Instant::now() };
        self.engine.wait(Some(now + pause)).expect("the engine goes on");
        let mut events = 0;
        while let Some(event) = self.engine.next() {
            events += 1;
            self.apply(event);
        }
        self.events_max = self.events_max.max(events);
        for (to, buf) in std::mem::take(&mut self.outbox) {
            self.reply(to, buf);
        }
        events > 0
    }

    pub fn apply(&mut self, event: Event) {
        assert!(self.closed.is_none(), "{event:?} after UdpClosed");
        match event {
            Event::Datagram { udp, from, buf, truncated } => {
                assert_eq!(udp, self.udp);
                self.received.push((from, buf.to_vec(), truncated));
                if self.echo {
                    self.reply(from, buf);
                } else if self.keep {
                    self.kept.push(buf);
                }
            }
            Event::DatagramsWritable { .. } => self.writable += 1,
            Event::DatagramFailed { to, error, .. } => self.failed.push((to, error.kind())),
            Event::UdpClosed { udp, unsent } => {
                assert_eq!(udp, self.udp);
                self.closed = Some(unsent);
            }
            Event::Woken => {}
            other => panic!("{other:?}"),
        }
    }

    pub fn reply(&mut self, to: SocketAddr, buf: Buf) {
        match self.engine.send_to(self.udp, to, buf.into()) {
            SendTo::Taken => {}
            SendTo::Full(ringport_engine::buffer::Chunk::Buf(buf)) => self.outbox.push((to, buf)),
            other => panic!("{other:?}"),
        }
    }

    /// Sends, which is taken.
    pub fn send(&mut self, to: SocketAddr, data: Vec<u8>) {
        let outcome = self.engine.send_to(self.udp, to, data.into());
        assert!(matches!(outcome, SendTo::Taken), "{outcome:?}");
    }

    pub fn close(mut self) {
        self.kept.clear();
        self.outbox.clear();
        self.engine.close_udp(self.udp);
        let start = Instant::now();
        while self.closed.is_none() {
            let was_closed = self.received.len();
            self.turn(Duration::from_millis(1));
            assert_eq!(self.received.len(), was_closed, "a datagram after close");
            assert!(start.elapsed() < PATIENCE, "it never closes");
        }
    }
}

/// Goes on with all until `done`.
pub fn until<E: Engine, const N: usize>(
    ports: [&mut Port<E>; N],
    what: &str,
    mut done: impl FnMut(&mut [&mut Port<E>; N]) -> bool,
) {
    let (mut ports, start, mut still) = (ports, Instant::now(), 0_u32);
    let mut first = 0;
    while !done(&mut ports) {
        let mut moved = false;
        for port in &mut ports {
            moved |= port.turn(Duration::ZERO);
        }
        still = if moved { 0 } else { still + 1 };
        if still > 0 {
            first = (first + 1) % N;
            ports[first].turn(Duration::from_micros(300));
        }
        let over = if ports[0].sim { still > 5_000 } else { start.elapsed() > PATIENCE };
        assert!(
            !over,
            "waited in vain until {what}: {:?}",
            ports.map(|port| (port.received.len(), port.engine.stats()))
        );
    }
}

/// Lets everything that can happen happen.
pub fn settle<E: Engine, const N: usize>(ports: [&mut Port<E>; N]) {
    let (start, mut steps) = (Instant::now(), 0);
    until(ports, "it settles", |ports| {
        steps += 1;
        if ports[0].sim { steps > 300 } else { start.elapsed() > Duration::from_millis(40) }
    });
}

/// A network with room for what a test sends before anybody reads.
pub fn config(setup: &Setup) -> EngineConfig {
    let mut faults = Faults::drawn(setup.seed).harmless();
    faults.buffer_max = 1 << 20;
    setup.config_with(faults)
}

pub fn pair<E: Engine>(config: &EngineConfig) -> (Port<E>, Port<E>) {
    (Port::open(config), Port::open(config))
}

pub fn sorted(datagrams: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut sorted: Vec<_> = datagrams.into_iter().collect();
    sorted.sort();
    sorted
}

pub fn data_of<E>(port: &Port<E>) -> Vec<Vec<u8>> {
    port.received.iter().map(|(_, data, _)| data.clone()).collect()
}
