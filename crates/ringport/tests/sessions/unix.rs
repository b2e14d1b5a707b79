//! What only Unix has: socket files.

use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use ringport::{Address, Server};

use crate::real::{Named, ask, ip};
use crate::stage::each_engine;

#[test]
fn a_socket_file_is_one_more_listener() {
    each_engine(|kind| {
        let folder = std::env::temp_dir().join(format!("ringport-{}-{kind}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("makes a folder");
        let file = folder.join("socket");
        // A file left over from a server that was killed is no obstacle.
        drop(UnixListener::bind(&file).expect("binds"));
        let server = Server::new()
            .engine(Some(kind))
            .workers(2)
            .listen("127.0.0.1:0", || Named("four"))
            .listen(Address::Unix(file.clone()), || Named("unix"))
            .start()
            .expect("the server starts");
        for _ in 0..4 {
            let mut peer = UnixStream::connect(&file).expect("connects");
            assert_eq!(ask(&mut peer), "unix");
        }
        let mut peer = TcpStream::connect(ip(&server.addresses()[0])).expect("connects");
        assert!(ask(&mut peer).starts_with("four "));
        server.handle().shutdown(Duration::from_secs(1));
        server.join().expect("ends");
        assert!(!file.exists(), "the socket file is removed");
        std::fs::remove_dir(&folder).expect("the folder is empty");
    });
}
