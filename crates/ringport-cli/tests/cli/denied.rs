//! A machine that forbids io_uring, as container runtimes do.

use std::process::Command;

use crate::program::{Program, Server, check_echo};

/// `ringport` with every io_uring call answered by `error`. `None` where that cannot be arranged.
fn without_io_uring(error: &str, args: &[&str]) -> Option<Command> {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/deny_io_uring.py");
    if !Command::new("python3").args([tool, error, "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: {tool} does not work on this machine");
        return None;
    }
    let mut command = Command::new("python3");
    command.args([tool, error, env!("CARGO_BIN_EXE_ringport")]).args(args);
    Some(command)
}

#[test]
fn auto_serves_on_epoll_and_says_why() {
    for (error, words) in [("EPERM", "denied"), ("ENOSYS", "ENOSYS"), ("ENOMEM", "memory")] {
        let args = ["serve", "echo", "--listen", "127.0.0.1:0"];
        let Some(mut command) = without_io_uring(error, &args) else { return };
        let mut server = Server::start_command(&mut command, 1);
        assert!(server.lines[0].ends_with(" engine=epoll workers=1"), "{error}: {:?}", server.lines);
        check_echo(&mut server.connect(), b"all the same");
        assert_eq!(server.stop(), 0);
        let errors = server.program.errors();
        assert!(errors.contains("io_uring: ") && errors.contains(words), "{error}: {errors}");
    }
}

#[test]
fn the_named_engine_fails_and_says_why() {
    let args = ["serve", "echo", "--listen", "127.0.0.1:0", "--engine", "io_uring"];
    let Some(mut command) = without_io_uring("EPERM", &args) else { return };
    let mut program = Program::start(&mut command);
    assert_eq!(program.exit_code(), 1);
    let errors = program.errors();
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.starts_with("ringport: engine io_uring is not available: denied"), "{errors}");
    assert!(last.contains("use epoll"), "it says what to do: {errors}");
}
