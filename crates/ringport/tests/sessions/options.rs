//! Socket options, as a handler sets and reads them.

use std::io::ErrorKind;

use ringport::{Client, OptionName, Server, SocketOption};

use crate::stage::{Log, Player, Stage, What, listen_on, stages};

stages!(a_handler_sets_and_reads_options);

/// `IPPROTO_TCP` and `TCP_NODELAY` are the same on every Unix.
const NO_DELAY: (i32, i32) = (6, 1);

fn a_handler_sets_and_reads_options(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let (notes, simulated) = (server.clone(), stage.is_simulated());
    let setter = Player::with(&server, move |conn, what| match what {
        What::Open => {
            conn.set_option(&SocketOption::NoDelay(false)).expect("it can be set");
            assert_eq!(conn.option(OptionName::NoDelay).expect("it can be read"), SocketOption::NoDelay(false));
            let raw = conn.set_raw_option(NO_DELAY.0, NO_DELAY.1, &1_i32.to_ne_bytes());
            if simulated {
                assert_eq!(raw.expect_err("no numbers here").kind(), ErrorKind::Unsupported);
                assert_eq!(conn.tcp_info().expect_err("no TCP here").kind(), ErrorKind::Unsupported);
            } else {
                raw.expect("it can be set");
                let value = conn.raw_option(NO_DELAY.0, NO_DELAY.1).expect("it can be read");
                assert!(value.iter().any(|byte| *byte != 0), "{value:?}");
                assert_eq!(conn.option(OptionName::NoDelay).expect("it can be read"), SocketOption::NoDelay(true));
                assert!(conn.tcp_info().is_ok_and(|info| info.congestion_window > 0));
            }
            notes.see().notes.push("set".to_owned());
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let closer = Player::with(&client, |conn, what| {
        if let What::Open = what {
            conn.close();
        }
    });
    stage.play(
        Server::new().listen(listen_on(stage), setter.make()),
        |to| Client::new().connect(to, 1, closer.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert_eq!(server.see().notes, ["set"]);
    server.no_breaches();
}
