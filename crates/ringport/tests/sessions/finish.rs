//! Half-close by the handler: sending ends, receiving goes on. And a client that reads whatever waits to be sent.

use ringport::{Client, CloseReason, ConnectionOptions, ListenOptions, Refusal, SendOutcome, Server, SocketOptions};

use crate::stage::{Log, Player, Stage, What, listen_on, pattern, stages};

stages!(
    a_finished_side_still_receives_everything,
    after_finish_nothing_is_sent,
    a_client_that_does_not_rest_gets_a_whole_echo,
);

fn a_finished_side_still_receives_everything(stage: &Stage) {
    // The answer begins only after the client's FIN, so that nothing of it could arrive if that closed both directions.
    let (server, client) = (Log::default(), Log::default());
    let answer = pattern(300_000);
    let data = answer.clone();
    let answerer = Player::with(&server, move |conn, what| {
        if let What::PeerClosed = what {
            conn.send(data.clone());
            conn.close();
        }
    });
    let asker = Player::with(&client, |conn, what| match what {
        What::Open => {
            conn.send(pattern(200_000));
            conn.finish();
            conn.finish();
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    stage.play(
        Server::new().listen(listen_on(stage), answerer.make()),
        |to| Client::new().connect(to, 1, asker.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert!(server.see().received == pattern(200_000), "{} bytes", server.see().received.len());
    assert!(client.see().received == answer, "{} bytes", client.see().received.len());
    assert_eq!(client.reasons(), [CloseReason::PeerClosed]);
    assert_eq!(server.reasons(), [CloseReason::PeerClosed]);
    server.no_breaches();
    client.no_breaches();
}

fn after_finish_nothing_is_sent(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let sender = Player::with(&client, |conn, what| match what {
        What::Open => {
            conn.send(&b"all"[..]);
            conn.finish();
            match conn.send(&b"more"[..]) {
                SendOutcome::Refused { data, why } => {
                    assert_eq!((data.as_slice(), why), (&b"more"[..], Refusal::Closing))
                }
                outcome => panic!("{outcome:?}"),
            }
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    stage.play(
        Server::new().listen(listen_on(stage), Player::echo(&server).make()),
        |to| Client::new().connect(to, 1, sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert_eq!(server.see().received, b"all");
    assert_eq!(client.see().received, b"all");
    assert_eq!(client.see().closed[0].accepted, 3);
    assert_eq!(client.reasons(), [CloseReason::PeerClosed]);
    client.no_breaches();
}

fn a_client_that_does_not_rest_gets_a_whole_echo(stage: &Stage) {
    // More than the network's buffers of both sides and both high marks together.
    let bytes = if stage.is_simulated() { 100_000 } else { 8_000_000 };
    let (low, high) = if stage.is_simulated() { (1_000, 4_000) } else { (64 << 10, 256 << 10) };
    let common = ConnectionOptions::default().marks(low, high).idle_timeout(None);
    let (server, client) = (Log::default(), Log::default());
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            conn.send(pattern(bytes));
            conn.finish();
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let options = common.clone().rest_when_full(false);
    stage.play(
        Server::new().listen_with(listen_on(stage), ListenOptions::default(), common, Player::echo(&server).make()),
        |to| Client::new().connect_with(to, 1, SocketOptions::default(), options, sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert!(client.see().received == pattern(bytes), "{} bytes", client.see().received.len());
}
