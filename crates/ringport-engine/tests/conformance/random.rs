//! Random sequences of everything, with the ledger as the judge.

use std::collections::BTreeMap;

use ringport_engine::engine::sim::Faults;
use ringport_engine::{Close, ConnId, Engine, EngineConfig, PoolConfig, Want};

use crate::subject::Setup;
use crate::system;
use crate::world::{At, Log, World, check_prefix};

/// Any sequence of connect, send, pause, half-close, close and abort keeps the ledger.
pub fn any_sequence_keeps_the_ledger<E: Engine>(setup: &Setup) {
    if setup.sim {
        // Everything may go wrong here, always included.
        play::<E>(setup, setup.config_with(Faults::drawn(setup.seed)), 60);
    } else {
        for seed in 1..=5 {
            let setup = Setup { seed, ..setup.clone() };
            play::<E>(&setup, setup.config(), 300);
        }
    }
}

/// Plays `rounds` random actions and checks every connection afterwards.
pub fn play<E: Engine>(setup: &Setup, config: EngineConfig, rounds: usize) {
    let pool = PoolConfig::default().small_slots(16).large_slots(4).slot_bytes(512, 2048);
    let mut game = Game { world: World::<E>::with(setup, config, pool), finished: [Vec::new(), Vec::new()] };
    for _ in 0..rounds {
        game.act();
        for _ in 0..game.world.dice.below(4) {
            game.world.step();
        }
        game.adopt();
    }
    game.come_to_rest();
    game.judge();
    game.world.finish();
}

struct Game<E> {
    world: World<E>,
    /// Connections whose FIN was asked for, of the server and of the client.
    finished: [Vec<ConnId>; 2],
}

impl<E: Engine> Game<E> {
    fn finished(&mut self, at: At) -> &mut Vec<ConnId> {
        &mut self.finished[usize::from(at == At::Client)]
    }

    /// A live connection and its side.
    fn pick(&mut self) -> Option<(At, ConnId)> {
        let at = if self.world.dice.below(2) == 0 { At::Server } else { At::Client };
        let side = self.world.at(at);
        let usable = |(conn, log): (&ConnId, &Log)| (!log.closing && log.ended.is_none()).then_some(*conn);
        let live: Vec<ConnId> = side.conns.iter().filter_map(usable).collect();
        let index = self.world.dice.below(live.len());
        live.get(index).map(|conn| (at, *conn))
    }

    fn act(&mut self) {
        let action = self.world.dice.below(20);
        if action < 3 {
            let address = self.world.address.clone();
            let conn = self.world.client.connect(&address);
            self.world.client.engine.receive(conn, Want::On);
            return;
        }
        let Some((at, conn)) = self.pick() else { return };
        match action {
            3..=10 => {
                if !self.finished(at).contains(&conn) {
                    let size = [10, 2_000, 100_000][self.world.dice.below(3)];
                    let most = self.world.scaled(size) / 4 + 1;
                    let length = 1 + self.world.dice.below(most);
                    let data = self.world.dice.bytes(length);
                    self.world.at(at).send(conn, data);
                }
            }
            11..=13 => self.world.at(at).engine.receive(conn, Want::Paused),
            14..=16 => self.world.at(at).engine.receive(conn, Want::On),
            17 => {
                let side = self.world.at(at);
                let log = side.log(conn);
                if log.outbox.is_empty() && (at == At::Server || log.connected) {
                    side.engine.shutdown_write(conn);
                    self.finished(at).push(conn);
                }
            }
            18 => self.world.at(at).close(conn, Close::Plain),
            _ => self.world.at(at).close(conn, Close::Abort),
        }
    }

    fn adopt(&mut self) {
        for socket in std::mem::take(&mut self.world.server.accepted) {
            if self.world.dice.below(10) == 0 {
                continue;
            }
            let conn = self.world.server.adopt(socket);
            self.world.server.engine.receive(conn, Want::On);
        }
    }

    /// Everybody reads, and what was sent arrives.
    fn come_to_rest(&mut self) {
        if let Some(network) = &self.world.network {
            network.set_faults(Faults::none());
        }
        for at in [At::Server, At::Client] {
            let side = self.world.at(at);
            let conns: Vec<ConnId> = side.conns.keys().copied().collect();
            conns.into_iter().for_each(|conn| side.engine.receive(conn, Want::On));
        }
        for _ in 0..3 {
            self.world.settle();
            self.adopt();
        }
        self.world.settle();
    }

    /// Compares both directions of every connection whose two ends are known for certain.
    fn judge(&mut self) {
        let World { server, client, .. } = &mut self.world;
        let (servers, clients) = (by_mark(&server.conns), by_mark(&client.conns));
        for (mark, server) in servers {
            let (Some(server), Some(Some(client))) = (server, clients.get(&mark)) else { continue };
            let ends = [(At::Server, server), (At::Client, *client)];
            let open = ends
                .iter()
                .all(|(at, conn)| !self.world.at(*at).log(*conn).closing && !self.world.at(*at).is_closed(*conn));
            for [(from, sender), (to, receiver)] in [[ends[0], ends[1]], [ends[1], ends[0]]] {
                if open {
                    let wanted = self.world.at(from).log(sender).wanted.clone();
                    self.world.expect(to, receiver, &wanted);
                }
                let must_have_fin = open && self.finished(from).contains(&sender);
                if must_have_fin {
                    self.world.until("the FIN arrives", |world| world.at(to).log(receiver).peer_closed);
                }
                let World { server, client, .. } = &self.world;
                let (near, far) = if from == At::Server {
                    (server.conns.get(&sender), client.conns.get(&receiver))
                } else {
                    (client.conns.get(&sender), server.conns.get(&receiver))
                };
                judge_direction(near.expect("known"), far.expect("known"), self.world.setup.sim);
            }
        }
    }
}

/// Connections by the address of the client; `None` where two had the same.
fn by_mark(conns: &BTreeMap<ConnId, Log>) -> BTreeMap<String, Option<ConnId>> {
    let mut found = BTreeMap::new();
    for (conn, log) in conns {
        if let Some(mark) = &log.mark {
            found.entry(mark.clone()).and_modify(|entry| *entry = None).or_insert(Some(*conn));
        }
    }
    found
}

/// Delivered is a prefix of what the kernel took, and all of it where a FIN came.
fn judge_direction(sender: &Log, receiver: &Log, sim: bool) {
    let unsent = sender.ended.as_ref().map_or(0, |end| end.unsent.len());
    let handed = &sender.wanted[..sender.taken as usize - unsent];
    check_prefix(&receiver.received, handed);
    if receiver.peer_closed && receiver.received.len() < handed.len() {
        // A sender that was closed with bytes unread, or by an abort, sent a reset, which takes bytes with it.
        let (received, closing, end) = (receiver.received.len(), sender.closing, &sender.ended);
        assert!(
            !sim && (closing || end.is_some()) && system::loses_resets(),
            "{received} of {} bytes came before the FIN; the sender: closing={closing} {end:?}",
            handed.len()
        );
        eprintln!("skipped: this system turns a reset into a FIN when nobody waits for bytes (Wine 8)");
    }
}
