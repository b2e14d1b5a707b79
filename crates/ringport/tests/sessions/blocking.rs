//! Blocking work off the worker, and its results.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, mpsc};

use ringport::{Client, JobPanicked, Server};

use crate::stage::{LIMIT, Log, Player, Stage, What, each_engine, listen_on, stages};

stages!(results_come_back_as_messages, a_job_that_panics_says_so);

fn results_come_back_as_messages(stage: &Stage) {
    const CONNECTIONS: usize = 20;
    let (server, client) = (Log::default(), Log::default());
    let worker = Player::with(&server, |conn, what| match what {
        What::Data(data) => {
            let data = data.take().expect("there is data").to_vec();
            conn.spawn_blocking(move || data.iter().map(u8::to_ascii_uppercase).collect::<Vec<u8>>()).expect("room");
        }
        What::Message(message) => {
            conn.send(*message.downcast::<Vec<u8>>().expect("the result of the job"));
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let asker = Player::with(&client, |conn, what| match what {
        What::Open => drop(conn.write(b"hello")),
        What::Data(_) if conn.state.received == 5 => conn.close(),
        _ => {}
    });
    stage.play(
        Server::new().blocking_threads(3).listen(listen_on(stage), worker.make()),
        |to| Client::new().connect(to, CONNECTIONS, asker.make()),
        || server.all_closed(CONNECTIONS) && client.all_closed(CONNECTIONS),
    );
    let mut received = client.see().received.clone();
    received.sort_unstable();
    let mut expected = b"HELLO".repeat(CONNECTIONS);
    expected.sort_unstable();
    assert_eq!(received, expected);
    server.no_breaches();
}

fn a_job_that_panics_says_so(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let worker = Player::with(&server, |conn, what| match what {
        What::Open => {
            conn.spawn_blocking(|| -> u8 { std::panic::resume_unwind(Box::new("a panic of the test's")) })
                .expect("room");
        }
        What::Message(message) if message.is::<JobPanicked>() => {
            conn.spawn_blocking(|| "all is well").expect("room");
        }
        What::Message(message) => {
            conn.send(*message.downcast::<&str>().expect("the second result"));
            conn.close();
        }
        _ => {}
    });
    stage.play(
        Server::new().blocking_threads(1).listen(listen_on(stage), worker.make()),
        |to| Client::new().connect(to, 1, Player::new(&client).make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert_eq!(client.see().received, b"all is well");
}

#[test]
fn a_blocked_job_stops_no_other_connection() {
    each_engine(|kind| {
        let log = Log::default();
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let player = Player::with(&log, move |conn, what| match what {
            What::Data(data) if data.as_ref().is_some_and(|data| data[0] == b'b') => {
                let gate = gate.clone();
                let job = move || gate.lock().expect("no test panicked").recv_timeout(LIMIT).is_ok();
                conn.spawn_blocking(job).expect("there is room");
            }
            What::Data(data) => drop(conn.send(data.take().expect("there is data"))),
            What::Message(message) => {
                let opened = *message.downcast::<bool>().expect("the result of the job");
                conn.send(if opened { &b"opened"[..] } else { &b"late"[..] });
                conn.close();
            }
            _ => {}
        });
        let server =
            Server::new().engine(Some(kind)).listen("127.0.0.1:0", player.make()).start().expect("the server starts");
        let to: SocketAddr = server.addresses()[0].to_string().parse().expect("an IP address");
        let connect = || {
            let stream = TcpStream::connect(to).expect("connects");
            stream.set_read_timeout(Some(LIMIT)).expect("sets a timeout");
            stream
        };
        let (mut blocked, mut other) = (connect(), connect());
        blocked.write_all(b"b").expect("sends");
        for _ in 0..100 {
            other.write_all(b"ping").expect("sends");
            other.read_exact(&mut [0; 4]).expect("the worker goes on");
        }
        open.send(()).expect("the job waits, or will");
        let mut answer = String::new();
        blocked.read_to_string(&mut answer).expect("answers and closes");
        assert_eq!(answer, "opened", "{kind}");
    });
}
