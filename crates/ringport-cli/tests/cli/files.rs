//! `ringport serve files`, asked by other people's clients.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::program::{Program, Server, engines, pattern, run, temporary};

/// A folder of the test's own, with a secret beside it. Removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let outer = PathBuf::from(temporary(name));
        let root = outer.join("root");
        fs::create_dir_all(root.join("sub")).expect("the folder for temporary files takes it");
        let write = |path: &Path, data: &[u8]| fs::write(path, data).expect("it can be written");
        write(&outer.join("secret.txt"), b"the secret");
        write(&root.join("index.html"), b"<!doctype html><title>here</title>");
        write(&root.join("sub/a b.txt"), b"a name with a space\n");
        write(&root.join("empty"), b"");
        write(&root.join("large.bin"), &pattern(24 << 20));
        for (target, link) in [
            ("../secret.txt", "link.txt"),
            ("..", "linked"),
            ("/etc/passwd", "absolute.txt"),
            ("loop", "loop"),
            ("index.html", "inside"),
        ] {
            symlink(target, root.join(link)).expect("a link can be made");
        }
        let made = Command::new("mkfifo").arg(root.join("pipe")).status();
        assert!(made.is_ok_and(|status| status.success()), "a pipe can be made");
        Self(outer)
    }

    fn root(&self) -> String {
        self.0.join("root").display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn python_gets_files_and_nothing_else() {
    let folder = Folder::new("files");
    for engine in engines() {
        let mut server = Server::start(&["files", &folder.root(), "--engine", engine, "--send-limit", "1MiB"]);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/files.py");
        let port = server.address().port().to_string();
        let mut python = Program::start(Command::new("python3").args([script, &port, &folder.root()]));
        let code = python.exit_code();
        assert_eq!(code, 0, "{engine}: {}", python.errors());
        assert_eq!(server.stop(), 0, "{engine}: {}", server.program.errors());
    }
}

#[test]
fn curl_gets_files() {
    let folder = Folder::new("curl");
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("skipped: there is no curl");
        return;
    }
    for engine in engines() {
        let server = Server::start(&["files", &folder.root(), "--engine", engine]);
        let (url, out) = (format!("http://{}/large.bin", server.address()), folder.0.join(format!("out-{engine}")));
        // A first part, then the rest behind it.
        for range in [&["--range", "0-999999"][..], &["--continue-at", "-"]] {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--fail", "--max-time", "15"]).args(range).arg("--output").arg(&out);
            let mut curl = Program::start(curl.arg(&url));
            assert_eq!(curl.exit_code(), 0, "{engine}: {}", curl.errors());
        }
        assert!(fs::read(&out).expect("it was written") == pattern(24 << 20), "{engine}: the copy differs");
    }
}

/// A request that never ends is answered and closed, and others are served meanwhile.
#[test]
fn a_slow_request_has_a_deadline() {
    let folder = Folder::new("slow");
    let server = Server::start(&["files", &folder.root()]);
    let mut slow = server.connect();
    slow.write_all(b"GET / HTTP/1.1\r\n").expect("it takes data");
    let mut quick = server.connect();
    quick.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("it takes data");
    let mut answer = String::new();
    quick.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let mut late = String::new();
    slow.set_read_timeout(Some(Duration::from_secs(19))).expect("a timeout can be set");
    slow.read_to_string(&mut late).expect("it answers, then closes");
    assert!(late.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{late}");
}

#[test]
fn a_file_cut_while_it_is_sent_closes_the_connection() {
    let folder = Folder::new("cut");
    for engine in engines() {
        let path = folder.0.join("root/cut.bin");
        fs::write(&path, pattern(64 << 20)).expect("it can be written");
        let server = Server::start(&["files", &folder.root(), "--engine", engine]);
        let mut stream = server.connect();
        stream.write_all(b"GET /cut.bin HTTP/1.1\r\nHost: x\r\n\r\n").expect("it takes data");
        let mut begin = [0; 1000];
        stream.read_exact(&mut begin).expect("it answers");
        let file = fs::OpenOptions::new().write(true).open(&path).expect("it is there");
        file.set_len(1000).expect("it can be cut");
        let mut rest = Vec::new();
        // The promised length never comes: an end, and not a wait.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 64 << 20, "{engine}: {} bytes", rest.len());
    }
}

#[test]
fn a_folder_is_needed() {
    for (args, code, words) in [
        (&["serve", "files"][..], 2, "<DIR>"),
        (&["serve", "files", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        (&["serve", "files", "/etc/passwd"], 1, "/etc/passwd"),
        (&["serve", "echo", "/etc"], 2, "only files"),
    ] {
        let output = run(args);
        let errors = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(code), "{args:?}: {errors}");
        assert!(errors.contains(words), "{args:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{args:?}: {errors}");
    }
}
