//! The examples run and do what they say.

use std::env::consts::{EXE_EXTENSION, EXE_SUFFIX};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// An example that was built together with this test, else built now: `--test` alone builds no examples. `None` if it is
/// missing and the compiler belongs to another system than this test.
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
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "ringport", "--profile", profile, "--example", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.is_ok_and(|status| status.success()) || path.exists(), "the example {name} does not build");
    Some(path)
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

#[test]
fn echo() {
    let Some(example) = example("echo") else {
        println!("skipped: the example was not built, and cannot be built from here");
        return;
    };
    let mut command = Command::new(example);
    let child = command.arg("127.0.0.1:0").stdout(Stdio::piped()).spawn().expect("the example starts");
    let mut running = Running(child);
    let mut line = String::new();
    let stdout = running.0.stdout.take().expect("its output is piped");
    BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
    let address = line.split(' ').nth(2).expect("`echo on ADDRESS with ENGINE`");
    let mut stream = TcpStream::connect(address).expect("it accepts");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
    for message in [&b"hello"[..], &[7; 100_000]] {
        stream.write_all(message).expect("it takes data");
        let mut back = vec![0; message.len()];
        stream.read_exact(&mut back).expect("the data comes back");
        assert!(back == message);
    }
}
