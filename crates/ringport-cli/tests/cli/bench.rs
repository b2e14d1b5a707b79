//! `ringport bench`: that it measures, and above all that it finds a server out that lies.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::program::{Server, engines, run, temporary};
use crate::system::FOREIGN_ENGINE;

/// Runs the benchmark with `--json -`, and returns its exit code, its JSON and its errors.
fn bench(args: &[&str]) -> (Option<i32>, Value, String) {
    let mut all = vec!["bench", "--json", "-"];
    all.extend(args);
    let output = run(&all);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {errors}"));
    (output.status.code(), json, errors)
}

#[test]
fn iterations_are_exact_on_each_engine() {
    for engine in engines() {
        let args = ["--engine", engine, "--iterations", "10007", "--connections", "9", "--warmup", "0"];
        let (code, json, errors) = bench(&args);
        assert_eq!(code, Some(0), "{engine}: {errors}");
        let result = &json["results"][0];
        assert_eq!(result["engine"], engine.as_str());
        assert_eq!(result["messages"], 10_007);
        assert_eq!(result["bytes"], 10_007 * 64);
        assert_eq!(result["connections"], 9);
        let latency = &result["latency_microseconds"];
        let quantiles: Vec<f64> = ["p50", "p90", "p99", "p999", "max"]
            .iter()
            .map(|name| latency[*name].as_f64().expect("a number"))
            .collect();
        assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{engine}: {quantiles:?}");
        assert!(result["messages_per_second"].as_f64().is_some_and(|rate| rate > 0.0));
        assert_eq!(json["parameters"]["iterations"], 10_007);
        assert!(json["machine"]["cores"].as_u64().is_some());
    }
}

#[test]
fn sizes_pipeline_and_workers_against_a_server() {
    for engine in engines() {
        let mut server = Server::start(&["echo", "--engine", engine, "--workers", "2"]);
        let address = server.address().to_string();
        let load = ["--size", "1..300k", "--pipeline", "8", "--workers", "2", "--connections", "5"];
        let (code, json, errors) = bench(&[&[&address, "--engine", engine, "--iterations", "600"], &load[..]].concat());
        assert_eq!(code, Some(0), "{engine}: {errors}");
        let result = &json["results"][0];
        assert_eq!(result["messages"], 600);
        let bytes = result["bytes"].as_u64().expect("a number");
        assert!(
            (600 * 75_000..600 * 230_000).contains(&bytes),
            "{engine}: {bytes} bytes are not spread over the range"
        );
        assert_eq!(server.stop(), 0);
    }
}

#[test]
fn every_engine_in_one_table() {
    let path = temporary("bench.json");
    let output = run(&["bench", "--engine", "all", "--duration", "300ms", "--warmup", "50", "--json", &path]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let table = String::from_utf8(output.stdout).expect("text");
    let (foreign, home) = FOREIGN_ENGINE;
    assert!(table.contains("p99.9 us"), "{table}");
    assert!(table.contains(&format!("{foreign:<9} unavailable: exists {home}")), "{table}");
    for engine in engines() {
        assert!(table.lines().any(|line| line.starts_with(engine.as_str())), "{table}");
    }
    let json: Value = serde_json::from_slice(&std::fs::read(&path).expect("the file is there")).expect("JSON");
    std::fs::remove_file(&path).expect("it is ours");
    let results = json["results"].as_array().expect("a list");
    assert_eq!(results.len(), 5);
    assert_eq!(results.iter().filter(|row| row["status"] == "measured").count(), engines().len());
    let measured = results.iter().find(|row| row["status"] == "measured").expect("an engine works here");
    let seconds = measured["seconds"].as_f64().expect("a number");
    assert!((0.29..3.0).contains(&seconds), "{seconds}");
}

/// Both ways to write the own server are measured alike, and the report says which it was.
#[test]
fn the_own_server_can_be_written_in_two_ways() {
    for engine in engines() {
        for (api, share) in [("handler", 131_072), ("async", 0)] {
            let share = format!("{share}");
            let load = ["--engine", engine, "--api", api, "--share", &share, "--iterations", "500", "--size", "1..40k"];
            let (code, json, errors) = bench(&load);
            assert_eq!(code, Some(0), "{engine} {api}: {errors}");
            assert_eq!(json["results"][0]["messages"], 500);
            let parameters = &json["parameters"];
            assert_eq!((&parameters["api"], parameters["share_bytes"].to_string()), (&Value::from(api), share));
        }
    }
    let table = run(&["bench", "--api", "async", "--iterations", "100", "--warmup", "0"]);
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(table.contains("to own server of tasks"), "{table}");
}

#[test]
fn nobody_listens() {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
    let (code, json, errors) = bench(&[&free.to_string(), "--connections", "3", "--duration", "100ms"]);
    assert_eq!(code, Some(1));
    assert_eq!(json["results"][0]["errors"]["failed_connects"], 3);
    assert!(errors.contains("3 failed connects") && errors.contains("refused"), "{errors}");
}

/// A server that echoes 64-byte messages and does `lie` instead with message number 20 of each connection.
fn liar(lie: impl Fn(&mut TcpStream, &[u8; 64]) -> bool + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let lie = lie.clone();
            thread::spawn(move || {
                let mut message = [0; 64];
                let mut number = 0;
                while stream.read_exact(&mut message).is_ok() {
                    number += 1;
                    let goes_on =
                        if number == 20 { lie(&mut stream, &message) } else { stream.write_all(&message).is_ok() };
                    if !goes_on {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// The time for a reply of a liar who keeps one back, in which a busy machine echoes all others.
const SHORT: &str = "1s";

/// The time for a reply where each comes, or something in its place.
const AMPLE: &str = "20s";

/// Two connections with 100 messages each against a liar; returns what was counted.
fn find_out(liar: SocketAddr, pipeline: &str, timeout: &str) -> (Option<i32>, Value, String) {
    let address = liar.to_string();
    let load = ["--connections", "2", "--iterations", "200", "--warmup", "0", "--timeout", timeout];
    let (code, json, errors) = bench(&[&[&address, "--pipeline", pipeline], &load[..]].concat());
    (code, json["results"][0].clone(), errors)
}

#[test]
fn a_damaged_byte_is_found() {
    let (code, result, errors) = find_out(
        liar(|stream, message| {
            let mut damaged = *message;
            damaged[40] ^= 1;
            stream.write_all(&damaged).is_ok()
        }),
        "1",
        AMPLE,
    );
    assert_eq!((code, &result["errors"]["wrong"]), (Some(1), &Value::from(2)), "{result}");
    assert_eq!(result["messages"], 198, "the others are right");
    assert!(errors.contains("2 wrong") && errors.contains("request 19"), "{errors}");
}

#[test]
fn a_swallowed_reply_is_found() {
    let (code, result, errors) = find_out(liar(|_, _| true), "1", SHORT);
    assert_eq!((code, &result["errors"]["missing"]), (Some(1), &Value::from(2)), "{result}");
    assert!(errors.contains("2 missing"), "{errors}");
    // With more under way the next reply comes in its place, and that is wrong.
    let (code, result, _) = find_out(liar(|_, _| true), "4", SHORT);
    assert_eq!(code, Some(1));
    assert!(result["errors"]["wrong"].as_u64() > Some(0) && result["errors"]["missing"].as_u64() > Some(0), "{result}");
}

#[test]
fn swapped_replies_are_found() {
    let (code, result, _) = find_out(
        liar(|stream, message| {
            let mut next = [0; 64];
            stream.read_exact(&mut next).is_ok() && stream.write_all(&next).is_ok() && stream.write_all(message).is_ok()
        }),
        "4",
        AMPLE,
    );
    assert_eq!((code, &result["errors"]["wrong"]), (Some(1), &Value::from(4)), "{result}");
    assert_eq!(result["messages"], 196);
}

#[test]
fn a_connection_that_is_closed_is_found() {
    let (code, result, errors) = find_out(liar(|_, _| false), "1", AMPLE);
    assert_eq!((code, &result["errors"]["missing"]), (Some(1), &Value::from(2)), "{result}");
    assert_eq!(result["errors"]["broken_connections"], 2, "{errors}");
}

#[test]
fn a_reply_too_many_is_found() {
    let twice = |stream: &mut TcpStream, message: &[u8; 64]| stream.write_all(&[*message, *message].concat()).is_ok();
    let (code, result, _) = find_out(liar(twice), "1", AMPLE);
    assert_eq!(code, Some(1));
    assert!(result["errors"]["wrong"].as_u64() > Some(0), "{result}");
}

#[test]
fn a_late_reply_is_found() {
    let (code, result, errors) = find_out(
        liar(|stream, message| {
            thread::sleep(Duration::from_millis(1300));
            stream.write_all(message).is_ok()
        }),
        "1",
        SHORT,
    );
    assert_eq!((code, &result["errors"]["late"]), (Some(1), &Value::from(2)), "{result}");
    assert_eq!(result["messages"], 200, "they are right all the same");
    assert!(
        result["latency_microseconds"]["max"].as_f64() > Some(1_290_000.0),
        "the stall shows in the tail: {result}"
    );
    assert!(errors.contains("2 late"), "{errors}");
}
