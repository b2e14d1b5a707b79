//! Socket options, urgent data and files, as a handler uses them.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringport::{Client, CloseReason, FileRange, OptionName, Server, SocketOption};

use crate::stage::{Log, Player, Stage, What, listen_on, pattern, stages};

stages!(a_handler_sets_and_reads_options, urgent_data_arrives_in_its_place, a_file_is_sent_or_says_why_not);

/// `IPPROTO_TCP` and `TCP_NODELAY` are the same on every Unix.
const NO_DELAY: (i32, i32) = (6, 1);

fn a_handler_sets_and_reads_options(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    // Neither knows options by number, nor what TCP knows.
    let (notes, simulated) = (server.clone(), stage.is_simulated() || stage.is_windows());
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

fn urgent_data_arrives_in_its_place(stage: &Stage) {
    if stage.is_windows() {
        println!("skipped: the engines of Windows have no mark of urgent data");
        return;
    }
    let (server, client) = (Log::default(), Log::default());
    let watcher = Player::with(&server, |conn, what| match what {
        What::Open => conn.watch_urgent().expect("TCP has it"),
        What::Data(_) => drop(conn.at_mark().expect("TCP has it")),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let sender = Player::with(&client, |conn, what| {
        if let What::Open = what {
            conn.write(b"before");
            assert!(conn.send_urgent(b'!').is_queued());
            conn.write(b"behind");
            conn.close();
        }
    });
    stage.play(
        Server::new().listen(listen_on(stage), watcher.make()),
        |to| Client::new().connect(to, 1, sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert_eq!(server.see().received, b"before!behind");
    assert_eq!(client.see().closed[0].handed, 13);
    server.no_breaches();
}

/// The ledger counts a file as any other data, and a file that is too short is a reason to close.
fn a_file_is_sent_or_says_why_not(stage: &Stage) {
    static FILES: AtomicU64 = AtomicU64::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("ringport-session-{}-{number}", std::process::id()));
    let data = pattern(200_000);
    std::fs::write(&path, &data).expect("the folder for temporary files takes it");
    let file = Arc::new(std::fs::File::open(&path).expect("it is there"));
    std::fs::remove_file(&path).expect("it is there");
    for missing in [0, 1000] {
        let (server, client) = (Log::default(), Log::default());
        let (file, length) = (Arc::clone(&file), data.len() + missing);
        let sender = Player::with(&server, move |conn, what| {
            if let What::Open = what {
                conn.write(b"a file: ");
                assert!(conn.send(FileRange::new(Arc::clone(&file), 0, length)).is_queued());
                conn.close();
            }
        });
        stage.play(
            Server::new().listen(listen_on(stage), sender.make()),
            |to| Client::new().connect(to, 1, Player::new(&client).make()),
            || server.all_closed(1) && client.all_closed(1),
        );
        assert!(client.see().received == [b"a file: ", &data[..]].concat(), "{stage:?}");
        let closed = server.see().closed[0].clone();
        assert_eq!((closed.accepted, closed.handed), (8 + length as u64, 8 + data.len() as u64));
        let reason = if missing == 0 { CloseReason::Local } else { CloseReason::System };
        assert_eq!((closed.reason, closed.failed), (reason, missing > 0));
        server.no_breaches();
    }
}
