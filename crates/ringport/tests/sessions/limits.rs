//! Limits on connections.

use std::time::Duration;

use ringport::{Client, CloseReason, Server};

use crate::stage::{Log, Player, Stage, What, listen_on, stages};

stages!(one_connection_too_many_is_refused_and_no_other_is_harmed);

fn one_connection_too_many_is_refused_and_no_other_is_harmed(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let sender = Player::with(&client, |conn, what| match what {
        What::Open => drop(conn.set_timer(Duration::from_millis(100), 0)),
        What::Timer(_) => drop(conn.write(b"ping")),
        What::Data(_) if conn.state.received == 4 => conn.close(),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    stage.play(
        Server::new().max_connections(5).listen(listen_on(stage), Player::echo(&server).make()),
        |to| Client::new().connect(to, 8, sender.make()),
        || client.all_closed(8),
    );
    let reasons = client.reasons();
    assert_eq!(reasons.iter().filter(|reason| **reason == CloseReason::Local).count(), 5, "{reasons:?}");
    assert_eq!(client.see().received.len(), 5 * 4);
    assert_eq!(server.see().opened, 5);
}
