//! What the conformance suite cannot bring about for datagrams: a system without room, and receives that are refused.

use std::time::Duration;

use super::*;
use crate::buffer::PoolConfig;
use crate::engine::contract::{Engine, EngineConfig};
use crate::engine::datagram_windows::stage::{bind, events};

fn engine(skip: bool) -> IocpEngine {
    let mut config = EngineConfig::default();
    config.features.skip_on_success = skip;
    IocpEngine::open(&config, Pool::new(PoolConfig::default())).unwrap()
}

/// A full system is nothing that can be brought about here: so the way that is taken then is called by itself.
#[test]
fn what_found_no_room_is_sent_before_the_others() {
    for skip in [true, false] {
        let mut engine = engine(skip);
        let (near, _) = bind(&mut engine);
        let (far, to) = bind(&mut engine);
        for number in 0..4_u8 {
            assert!(matches!(engine.send_to(near, to, vec![number].into()), SendTo::Taken));
        }
        let IocpEngine { udp, port, stats, .. } = &mut engine;
        let outlet = udp.outlets.table.get_mut(near).unwrap();
        let (address, data) = outlet.mail.take().unwrap();
        outlet.send_later(near, address, data, port, stats);
        assert_eq!(outlet.sending, !skip, "without a packet it is over at once");
        let mut received = Vec::new();
        events(&mut engine, Duration::from_secs(10), |event| {
            if let Event::Datagram { udp, buf, .. } = event {
                assert_eq!(*udp, far);
                received.extend_from_slice(buf);
            }
            received.len() == 4
        });
        assert_eq!(received, [0, 1, 2, 3]);
        assert_eq!((engine.stats().datagrams_sent, engine.stats().datagrams_failed), (4, 0));
        engine.close_udp(near);
        let closed = |event: &Event| matches!(event, Event::UdpClosed { unsent: 0, .. });
        assert!(events(&mut engine, Duration::from_secs(10), closed).iter().any(closed));
    }
}

/// A socket on which no receive can be started is tried again, without spinning, and closes as any other.
#[test]
fn receives_that_cannot_start_are_tried_again() {
    let mut engine = engine(true);
    let (id, _) = bind(&mut engine);
    engine.receive_datagrams(id, Want::Paused);
    let wrong = winsock::stream_socket(socket2::Domain::IPV4, false).unwrap();
    engine.port.attach(&wrong).unwrap();
    let IocpEngine { udp, .. } = &mut engine;
    let outlet = udp.outlets.table.get_mut(id).unwrap();
    let right = outlet.socket.replace(wrong).unwrap();
    winsock::cancel(&right);
    outlet.cancelled = false;
    events(&mut engine, Duration::from_millis(20), |_| false);
    engine.receive_datagrams(id, Want::On);
    let before = engine.stats();
    let failures = events(&mut engine, Duration::from_millis(200), |_| false);
    let after = engine.stats();
    assert!(failures.iter().all(|event| matches!(event, Event::DatagramFailed { to: None, .. })), "{failures:?}");
    let tries = after.receives - before.receives;
    assert!((2..40).contains(&tries), "{tries} tries");
    assert_eq!(after.datagrams_failed, failures.len() as u64);
    engine.close_udp(id);
    let closed = |event: &Event| matches!(event, Event::UdpClosed { .. });
    assert!(events(&mut engine, Duration::from_secs(10), closed).iter().any(closed));
}
