//! The examples run and do what they say.

use std::env::consts::{EXE_EXTENSION, EXE_SUFFIX};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

/// An example that was built together with this test, else built now: `--test` alone builds no examples, or leaves old ones.
/// `None` if it is missing and the compiler belongs to another system than this test.
fn example(name: &str) -> Option<PathBuf> {
    let this = std::env::current_exe().expect("this test is a file");
    let folder = this.parent().and_then(|deps| deps.parent()).expect("it lies in target/PROFILE/deps");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(other) => other,
    };
    let path = folder.join("examples").join(name).with_extension(EXE_EXTENSION);
    if !env!("CARGO").ends_with(EXE_SUFFIX) {
        return path.exists().then_some(path);
    }
    if path.metadata().and_then(|example| example.modified()).is_ok_and(|built| built > last_change()) {
        return Some(path);
    }
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--quiet",
            "--package",
            "ringport",
            "--profile",
            profile,
            "--features",
            "hyper",
            "--example",
            name,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.is_ok_and(|status| status.success()) || path.exists(), "the example {name} does not build");
    Some(path)
}

/// When what the examples are made of was changed last.
fn last_change() -> SystemTime {
    fn newest(path: &Path) -> SystemTime {
        let metadata = path.metadata().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let inside =
            path.read_dir().into_iter().flatten().map(|entry| newest(&entry.expect("it can be listed").path()));
        let own = metadata.modified().expect("this system notes when a file was changed");
        inside.fold(own, SystemTime::max)
    }
    let this = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = [
        "src",
        "examples",
        "Cargo.toml",
        "../ringport-engine/src",
        "../ringport-engine/Cargo.toml",
        "../../Cargo.toml",
        "../../Cargo.lock",
    ];
    all.map(|path| newest(&this.join(path))).into_iter().fold(SystemTime::UNIX_EPOCH, SystemTime::max)
}

/// Killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts an example and returns where it says that it listens: the third word of its first line. `None` if there is no
/// such program here.
fn start(name: &str, arguments: &[&str]) -> Option<(Running, String)> {
    let Some(example) = example(name) else {
        println!("skipped: the example {name} was not built, and cannot be built from here");
        return None;
    };
    let mut command = Command::new(example);
    let child = command.args(arguments).stdout(Stdio::piped()).spawn().expect("the example starts");
    let mut running = Running(child);
    let mut line = String::new();
    let stdout = running.0.stdout.take().expect("its output is piped");
    BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
    let address = line.split_whitespace().nth(2).expect("`NAME on ADDRESS`").to_owned();
    Some((running, address))
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("it accepts");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
    stream
}

#[test]
fn echo() {
    let Some((_running, address)) = start("echo", &["127.0.0.1:0"]) else { return };
    let mut stream = connect(&address);
    for message in [&b"hello"[..], &[7; 100_000]] {
        stream.write_all(message).expect("it takes data");
        let mut back = vec![0; message.len()];
        stream.read_exact(&mut back).expect("the data comes back");
        assert!(back == message);
    }
}

#[test]
fn udp() {
    let Some((_running, address)) = start("udp", &["127.0.0.1:0"]) else { return };
    for _ in 0..2 {
        let peer = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        peer.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
        for count in ["1\n", "2\n", "3\n"] {
            peer.send_to(b"hello", &address).expect("it is sent");
            let mut answer = [0; 16];
            let length = loop {
                // A signal ends a wait that has a limit, see signal(7).
                match peer.recv(&mut answer) {
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    answer => break answer.expect("it is answered"),
                }
            };
            assert_eq!(&answer[..length], count.as_bytes(), "each peer has a count of its own");
        }
    }
}

#[test]
fn chat() {
    let Some((_running, address)) = start("chat", &["127.0.0.1:0"]) else { return };
    let mut guests: Vec<BufReader<TcpStream>> = (0..3).map(|_| BufReader::new(connect(&address))).collect();
    let line = |guest: &mut BufReader<TcpStream>| {
        let mut line = String::new();
        guest.read_line(&mut line).expect("a line comes");
        line
    };
    for number in 0..3 {
        guests[number].get_mut().write_all(format!("guest{number}\n").as_bytes()).expect("it takes data");
        for earlier in &mut guests[..number] {
            assert_eq!(line(earlier), format!("* guest{number} is here\n"));
        }
        // Those who come later learn of this one only by what it says, once it is surely there.
        if number == 0 {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    // A line may come in pieces and with others.
    guests[1].get_mut().write_all(b"hel").expect("it takes data");
    guests[1].get_mut().write_all(b"lo\nagain\n").expect("it takes data");
    for listener in [0, 2] {
        assert_eq!(line(&mut guests[listener]), "guest1: hello\n");
        assert_eq!(line(&mut guests[listener]), "guest1: again\n");
    }
    drop(guests.remove(1));
    assert_eq!(line(&mut guests[0]), "* guest1 has left\n");
}

#[test]
fn proxy() {
    let Some((_echo, behind)) = start("echo", &["127.0.0.1:0"]) else { return };
    let Some((_proxy, address)) = start("proxy", &["127.0.0.1:0", &behind]) else { return };
    for size in [0, 5, 3_000_000] {
        let stream = connect(&address);
        let data: Vec<u8> = (0..size).map(|at: usize| (at.wrapping_mul(31) ^ (at >> 8)) as u8).collect();
        let (mut writer, sent) = (stream.try_clone().expect("a second handle"), data.clone());
        let sending = std::thread::spawn(move || {
            writer.write_all(&sent).expect("it takes data");
            writer.shutdown(std::net::Shutdown::Write).expect("a half-close");
        });
        let (mut back, mut reader) = (Vec::new(), stream);
        reader.read_to_end(&mut back).expect("it comes back, then the end");
        sending.join().expect("all was sent");
        assert!(back == data, "{} of {size} bytes", back.len());
    }
    // A reader that rests makes the sender wait, and loses nothing.
    let mut stream = connect(&address);
    stream.set_nonblocking(true).expect("a call that does not wait");
    let (piece, mut taken, mut full) = (vec![3; 64 * 1024], 0, 0);
    while full < 20 {
        match stream.write(&piece) {
            Ok(count) => (taken, full) = (taken + count, 0),
            Err(_) => {
                full += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        assert!(taken < 200_000_000, "the proxy takes without end");
    }
    stream.set_nonblocking(false).expect("calls that wait");
    let mut back = vec![0; taken];
    stream.read_exact(&mut back).expect("all that was taken comes back");
}

#[test]
fn pool() {
    let Some((_echo, behind)) = start("echo", &["127.0.0.1:0"]) else { return };
    let Some((_pool, address)) = start("pool", &["127.0.0.1:0", &behind]) else { return };
    let clients: Vec<_> = (0..12)
        .map(|client| {
            let address = address.clone();
            std::thread::spawn(move || {
                let mut stream = BufReader::new(connect(&address));
                for number in 0..50 {
                    let question = format!("{client} asks {}\n", "x".repeat(number * 100));
                    stream.get_mut().write_all(question.as_bytes()).expect("it takes data");
                    let mut answer = String::new();
                    stream.read_line(&mut answer).expect("it answers");
                    assert_eq!(answer, question, "the answer of another client");
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("each has its answers");
    }
    let mut stream = BufReader::new(connect(&address));
    stream.get_mut().write_all(b"?\n").expect("it takes data");
    let mut counters = String::new();
    stream.read_line(&mut counters).expect("it answers");
    let counter = |name: &str| -> Option<u64> {
        let (_, rest) = counters.split_once(&format!(" {name}: "))?;
        rest.split([',', ' ']).next()?.parse().ok()
    };
    let (created, reused) = (counter("created"), counter("reused"));
    assert!(created.is_some_and(|created| (1..=4).contains(&created)), "{counters}");
    assert_eq!(created.zip(reused).map(|(created, reused)| created + reused), Some(600), "{counters}");
}

/// Asks an HTTP server with Python's client, on one connection and on several.
const ASK: &str = r#"
import http.client, sys, threading
host, port = sys.argv[1].rsplit(":", 1)
def ask(connection, method, path, body=None):
    connection.request(method, path, body)
    answer = connection.getresponse()
    return answer.status, answer.read()
def session():
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    assert ask(connection, "GET", "/") == (200, b"hello from ringport\n")
    for size in (0, 1, 1000, 300_000):
        body = (bytes(range(256)) * (size // 256 + 1))[:size]
        if sys.argv[2] == "text":
            body = body.hex().encode()
        assert ask(connection, "POST", "/echo", body) == (200, body), size
    assert ask(connection, "GET", "/nothing")[0] == 404
    if sys.argv[2] == "text":
        assert ask(connection, "GET", "/greet/you") == (200, b"hello, you\n")
    connection.close()
session()
failed = []
def run():
    try:
        session()
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=run) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
"#;

fn ask_http(address: &str, bodies: &str) {
    let mut python = Command::new("python3");
    match python.args(["-c", ASK, address, bodies]).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => println!("skipped: there is no Python: {error}"),
    }
}

#[test]
fn http() {
    let Some((_running, address)) = start("http", &["127.0.0.1:0"]) else { return };
    ask_http(&address, "bytes");
    // A request in pieces, and one that is none.
    let mut stream = connect(&address);
    for piece in [&b"GET / HT"[..], b"TP/1.1\r\nHost: x\r\nConnec", b"tion: close\r\n\r\n"] {
        stream.write_all(piece).expect("it takes data");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello from ringport\n"), "{answer}");
    let mut stream = connect(&address);
    stream.write_all(b"nonsense\r\n\r\n").expect("it takes data");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers and closes");
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[test]
fn router() {
    let Some((_running, address)) = start("router", &["127.0.0.1:0"]) else { return };
    ask_http(&address, "text");
}
