//! `ringport`: server, client and benchmark.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod connect;
mod connect_udp;
mod engines;
mod files;
mod serve;
mod services;
mod tasks;
mod units;

use std::fmt::Display;
use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::filter::LevelFilter;

/// Why a command failed: one line.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl<E: Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

fn main() -> ExitCode {
    // For tests alone, see Cargo.toml.
    #[cfg(feature = "rio-standin")]
    rio_standin::install();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let outcome = match cli.command {
        Command::Serve(options) => {
            if let Some(why) = options.contradiction() {
                eprintln!("ringport: {why}; see `ringport --help`");
                return ExitCode::from(2);
            }
            log_to_stderr(options.log);
            serve::run(options)
        }
        Command::Connect(options) => {
            log_to_stderr(options.log);
            if options.udp { connect_udp::run(&options) } else { connect::run(&options) }
        }
        Command::Bench(options) => {
            log_to_stderr(options.log);
            bench::run(&options)
        }
        Command::Engines(options) => engines::run(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(Failure(message)) => {
            eprintln!("ringport: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Help and version go to standard output; a mistake is one line on standard error.
fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nobody may be reading; there is nobody else to tell.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        eprintln!("ringport: a command is missing: serve, connect, bench or engines; see `ringport --help`");
        return ExitCode::from(2);
    }
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.split_whitespace().collect();
    let line = words.join(" ");
    eprintln!("ringport: {}; see `ringport --help`", line.strip_prefix("error: ").unwrap_or(&line));
    ExitCode::from(2)
}

fn log_to_stderr(level: LevelFilter) {
    tracing_subscriber::fmt().with_max_level(level).with_target(false).with_writer(std::io::stderr).init();
}
