//! Wrong usage exits 2, failures 1, each with one line on standard error; `engines` says what there is.

use std::net::TcpListener;

use crate::program::{engines, run};
use crate::system::FOREIGN_ENGINE;

#[test]
fn wrong_usage_exits_2_with_one_line() {
    for (args, words) in [
        (&[][..], "a command is missing"),
        (&["serve"], "<SERVICE>"),
        (&["serve", "echo", "--listen", "nonsense"], "there is no port"),
        (&["serve", "echo", "--listen", "127.0.0.1:99999"], "not a port number"),
        (&["serve", "echo", "--engine", "nonsense"], "no engine is called \"nonsense\""),
        (&["serve", "echo", "--workers", "0"], "0 is not in"),
        (&["serve", "echo", "--send-limit", "1"], "at least 1KiB"),
        (&["serve", "echo", "--idle-timeout", "soon"], "a number is missing"),
        (&["serve", "echo", "--log", "loud"], "the levels are"),
        (&["serve", "echo", "--spin", "1s"], "at most 10ms"),
        (&["serve", "echo", "--spin", "always"], "or \"auto\""),
        (&["serve", "echo", "--share", "128X"], "no unit of size"),
        (&["serve", "generate", "--piece", "1000"], "a multiple of 256"),
        (&["serve", "generate", "--piece", "2MiB"], "a multiple of 256"),
        (&["serve", "dance"], "dance"),
        (&["serve", "echo", "."], "only files serves a folder"),
        (&["serve", "files", ".", "--api", "async"], "handlers only"),
        (&["connect"], "<ADDR>"),
        (&["connect", "here"], "there is no port"),
        (&["bench", "--size", "9..1"], "9 is more than 1"),
        (&["bench", "--connections", "0"], "0 is not in"),
        (&["bench", "--iterations", "5", "--duration", "1s"], "cannot be used with"),
        (&["bench", "127.0.0.1:1", "--api", "async"], "cannot be used with"),
        (&["bench", "127.0.0.1:1", "--share", "0"], "cannot be used with"),
        (&["engines", "--loudly"], "--loudly"),
    ] {
        let output = run(args);
        let errors = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {errors}");
        assert!(errors.contains(words) && errors.starts_with("ringport: "), "{args:?}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{args:?}: {errors}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn failures_exit_1_and_say_why() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let taken = taken.local_addr().expect("it has an address").to_string();
    let (foreign, home) = FOREIGN_ENGINE;
    for (args, words) in [
        (&["serve", "echo", "--listen", &taken][..], &[taken.as_str(), "choose another port"][..]),
        (&["serve", "echo", "--workers", "2", "--listen", &taken], &[&taken, "choose another port"]),
        (&["serve", "echo", "--listen", "192.0.2.1:7"], &["192.0.2.1:7", "no such address"]),
        (&["serve", "echo", "--engine", foreign], &[foreign, home, "--engine auto"]),
        (&["serve", "echo", "--engine", "sim"], &["sim", "tests"]),
        (&["connect", "127.0.0.1:1", "--engine", foreign], &[foreign, home]),
        (&["bench", "--engine", foreign], &[foreign, home]),
    ] {
        let output = run(args);
        let errors = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{args:?}: {errors}");
        let last = errors.lines().last().unwrap_or_default();
        assert!(last.starts_with("ringport: ") && words.iter().all(|word| last.contains(word)), "{args:?}: {errors}");
    }
}

#[test]
fn help_and_version_exit_0() {
    for args in
        [&["--help"][..], &["serve", "--help"], &["connect", "--help"], &["bench", "--help"], &["engines", "--help"]]
    {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let text = String::from_utf8(output.stdout).expect("text");
        assert!(text.contains("Usage: ringport"), "{args:?}: {text}");
        assert!(args[0] == "engines" || text.contains("Examples:"), "{args:?}: {text}");
    }
    let version = run(&["--version"]);
    assert_eq!(String::from_utf8_lossy(&version.stdout).trim(), format!("ringport {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn engines_lists_every_name_and_marks_one() {
    let output = run(&["engines", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = rows.as_array().expect("a list");
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["io_uring", "epoll", "kqueue", "iocp", "rio", "sim"]);
    assert!(rows.iter().all(|row| row["detail"].as_str().is_some_and(|detail| !detail.is_empty())));
    let marked: Vec<&str> =
        rows.iter().filter(|row| row["auto"] == true).filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(marked, [engines()[0].as_str()]);

    let table = run(&["engines"]);
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(table.lines().any(|line| line.starts_with(&format!("* {}", engines()[0]))), "{table}");
    let (foreign, home) = FOREIGN_ENGINE;
    assert!(table.contains(&format!("{foreign:<10} unavailable  exists {home}")), "{table}");
}

/// What stands in for Registered I/O in tests is in no program that does not ask for it.
#[test]
fn the_stand_in_is_only_where_it_was_asked_for() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_ringport")).expect("it can be read");
    let mark = rio_standin::BREACH.as_bytes();
    let found = (0..program.len()).any(|at| program[at..].starts_with(mark));
    let wanted = cfg!(windows) && cfg!(feature = "rio-standin");
    assert_eq!(found, wanted);
    if wanted && std::env::var_os("RINGPORT_REAL_RIO").is_none() {
        assert_eq!(engines(), ["iocp", "rio"]);
    }
}

/// An engine that this platform knows and this machine refuses (`rio` under Wine is one) says why, and what to do.
#[test]
fn a_refused_engine_says_why() {
    let output = run(&["engines", "--json"]);
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for row in rows.as_array().expect("a list") {
        let (name, detail) = (row["name"].as_str().expect("a name"), row["detail"].as_str().expect("a reason"));
        if row["available"] == true || detail.starts_with("exists only") {
            continue;
        }
        let output = run(&["serve", "echo", "--listen", "127.0.0.1:0", "--engine", name]);
        let errors = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(&format!("engine {name} is not available: ")) && errors.contains(detail), "{errors}");
        assert!(name != "rio" || detail.contains("Windows 8"), "{detail}");
    }
}
