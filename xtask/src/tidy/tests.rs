//! Every check on a good repository and on bad ones.

use super::*;

/// A small repository that is as it should be.
fn good() -> Repository {
    let mut repository = Repository::default();
    let forbid = "//! A crate.\n#![forbid(unsafe_code)]\n";
    for (name, dependencies) in [
        ("ringport-engine", "[dependencies]\nlibc = \"0.2\"\n"),
        ("ringport", "[dependencies]\nringport-engine.workspace = true\n[dev-dependencies]\nproptest = \"1\"\n"),
        ("ringport-cli", "[dependencies]\nringport = { workspace = true }\n"),
    ] {
        put(
            &mut repository,
            &format!("crates/{name}/Cargo.toml"),
            &format!("[package]\nname = \"{name}\"\n{dependencies}"),
        );
    }
    put(&mut repository, "Cargo.toml", "[workspace]\n[workspace.dependencies]\nringport = { path = \"x\" }\n");
    put(&mut repository, "crates/ringport-engine/src/lib.rs", "unsafe fn f() {}\n");
    put(&mut repository, "crates/ringport/src/lib.rs", &format!("{forbid}// unsafe\n"));
    put(&mut repository, "crates/ringport-cli/src/main.rs", &format!("{forbid}fn main() {{}}\n"));
    put(&mut repository, "crates/ringport-cli/src/platform.rs", "#[cfg(unix)]\nfn signals() {}\n");
    put(&mut repository, "crates/ringport-engine/src/engine/mod.rs", "#[cfg(target_os = \"linux\")]\nmod uring;\n");
    put(&mut repository, "crates/ringport-engine/src/engine/platform.rs", "#[cfg(windows)]\nfn f() {}\n");
    for engine in ["uring", "readiness", "iocp", "rio", "sim"] {
        for file in ["mod", "accept", "connect", "receive", "send", "close", "wait"] {
            put(&mut repository, &format!("crates/ringport-engine/src/engine/{engine}/{file}.rs"), "");
        }
    }
    put(
        &mut repository,
        "README.md",
        "```sh\ncargo run --release --bin ringport -- bench\ncargo test --workspace\n```\n",
    );
    repository
}

fn put(repository: &mut Repository, path: &str, text: &str) {
    repository.files.insert(path.to_owned(), File::new(path, text.to_owned()));
}

/// What is said about the good repository with one file put in or replaced.
fn said_with(path: &str, text: &str) -> Vec<String> {
    let mut repository = good();
    put(&mut repository, path, text);
    check(&repository).iter().map(ToString::to_string).collect()
}

#[track_caller]
fn refused(path: &str, text: &str, line: usize, message: &str) {
    let said = said_with(path, text);
    let place = format!("{path}:{line}: ");
    assert!(
        said.len() == 1 && said[0].starts_with(&place) && said[0].contains(message),
        "expected one finding `{place}… {message} …`, got {said:?}"
    );
}

#[track_caller]
fn accepted(path: &str, text: &str) {
    assert_eq!(said_with(path, text), [""; 0]);
}

#[test]
fn a_good_repository_passes() {
    assert_eq!(check(&good()), []);
}

#[test]
fn unsafe_outside_the_engine_crate() {
    refused("crates/ringport/src/a.rs", "fn f() {\n    unsafe { g() }\n}\n", 2, "`unsafe`");
    refused("xtask/src/a.rs", "unsafe impl Send for X {}", 1, "`unsafe`");
    accepted("crates/ringport/src/a.rs", "/// unsafe\nconst A: &str = \"unsafe\"; /* unsafe */ fn unsafely() {}");
    accepted("crates/ringport-engine/src/a.rs", "unsafe fn g() {}");
}

#[test]
fn a_root_that_does_not_forbid_unsafe() {
    let root = "crates/ringport/src/lib.rs";
    refused(root, "//! Nothing.\n", 1, "forbid");
    refused(root, "// #![forbid(unsafe_code)]\n", 1, "forbid");
    refused("crates/ringport-cli/src/bin/other.rs", "fn main() {}", 1, "forbid");
    accepted("crates/ringport/src/other.rs", "");
}

#[test]
fn a_platform_chosen_elsewhere() {
    let elsewhere = "crates/ringport-engine/src/socket.rs";
    refused(elsewhere, "\n#[cfg(target_os = \"linux\")]\nfn f() {}", 2, "`target_os`");
    refused(elsewhere, "#[cfg(all(test, not(windows)))]\nfn f() {}", 1, "`windows`");
    refused(elsewhere, "#[cfg_attr(unix, path = \"x.rs\")]\nmod x;", 1, "`unix`");
    refused(elsewhere, "fn f() -> bool { cfg!(target_vendor = \"apple\") }", 1, "`target_vendor`");
    refused("crates/ringport-cli/src/platform.rs", "#[cfg(target_os = \"linux\")]\nfn f() {}", 1, "`target_os`");
    accepted(elsewhere, "fn f(cfg: u8) { cfg.unix(1); cfg (2) }");
    accepted(elsewhere, "#[cfg(all(test, not(loom)))]\nmod unix;\n// #[cfg(unix)]\nuse std::os::unix;");
    accepted("crates/ringport-engine/tests/conformance/main.rs", "#[cfg(unix)]\nmod unix;");
    accepted("crates/ringport/examples/echo.rs", "#[cfg(target_os = \"linux\")]\nfn f() {}");
    accepted("crates/ringport/build.rs", "#[cfg(unix)]\nfn f() {}");
}

#[test]
fn something_left_to_do() {
    let note = concat!("TO", "DO");
    refused("crates/ringport/src/a.rs", &format!("\n// {note}: later"), 2, note);
    refused("scripts/a.py", &format!("# {}(me)", concat!("FIX", "ME")), 1, concat!("FIX", "ME"));
    refused("docs/a.md", concat!("XX", "X"), 1, concat!("XX", "X"));
    refused("crates/ringport/src/a.rs", "fn f() { todo!() }", 1, "`todo!`");
    refused("crates/ringport/src/a.rs", "fn f() { dbg!(1) }", 1, "`dbg!`");
    refused("crates/ringport/src/a.rs", "fn f() { unimplemented!() }", 1, "`unimplemented!`");
    accepted("crates/ringport/src/a.rs", "// todo! is denied by a lint.\nfn todo() { my_todo!() }");
    accepted("scripts/a.sh", "mktemp -d /tmp/x.XXXXXX");
}

#[test]
fn a_file_that_is_too_long() {
    refused("crates/ringport/src/a.rs", &"\n".repeat(700), 700, "700 lines");
    refused("scripts/a.py", &"\n".repeat(900), 900, "900 lines");
    accepted("crates/ringport/src/a.rs", &"\n".repeat(699));
    accepted("docs/a.md", &"\n".repeat(2000));
}

#[test]
fn an_ignored_test_without_a_reason() {
    let test = "crates/ringport/src/a.rs";
    refused(test, "#[test]\n#[ignore]\nfn f() {}", 2, "says why");
    refused(test, "#[test]\n#[ignore = \"\"]\nfn f() {}", 2, "says why");
    refused(test, "#[cfg_attr(miri, ignore)]\nfn f() {}", 1, "says why");
    accepted(test, "#[ignore = \"needs two machines\"]\nfn f() {}\nfn ignore() {}");
    accepted(test, "#[cfg_attr(miri, ignore = \"Miri has no sockets\")]\nfn f() {}");
}

#[test]
fn a_crate_for_tests_in_a_program() {
    let text = |name: &str, table: &str| format!("[package]\nname = \"{name}\"\n[{table}]\nrio-standin = \"1\"\n");
    let message = "may only be a development dependency";
    refused("crates/ringport-engine/Cargo.toml", &text("ringport-engine", "dependencies"), 4, message);
    refused("crates/other/Cargo.toml", &text("other", "target.'cfg(windows)'.dependencies"), 4, message);
    accepted("crates/ringport-engine/Cargo.toml", &text("ringport-engine", "dev-dependencies"));
    let own = "[package]\nname = \"ringport-engine\"\n[dev-dependencies.rio-standin]\npath = \"x\"\n";
    accepted("crates/ringport-engine/Cargo.toml", own);
    let feature = |features: &str| {
        let dependency = "rio-standin = { workspace = true, optional = true }";
        format!("[package]\nname = \"ringport-cli\"\n[dependencies]\n{dependency}\n[features]\n{features}\n")
    };
    let program = "crates/ringport-cli/Cargo.toml";
    accepted(program, &feature("rio-standin = [\"dep:rio-standin\"]"));
    accepted(program, &feature("tests = [\"rio-standin\"]"));
    refused(program, &feature("default = [\"rio-standin\"]"), 4, message);
    refused(program, &text("ringport-cli", "dependencies"), 4, message);
    let elsewhere = feature("").replace("ringport-cli", "ringport");
    refused("crates/ringport/Cargo.toml", &elsewhere, 4, message);
    accepted("crates/rio-standin/src/lib.rs", "#[cfg(windows)]\nunsafe fn f() {}\n");
}

#[test]
fn a_floor_that_looks_up_or_past_the_next() {
    let engine = "crates/ringport-engine/Cargo.toml";
    let package = "[package]\nname = \"ringport-engine\"\n";
    let text = |table: &str, entry: &str| format!("{package}[{table}]\n{entry}\n");
    refused(engine, &text("dependencies", "ringport = { path = \"../ringport\" }"), 4, "`ringport`");
    refused(engine, &text("dev-dependencies", "ringport.workspace = true"), 4, "`ringport`");
    refused(engine, &text("target.'cfg(unix)'.dependencies", "ringport-cli = \"1\""), 4, "`ringport-cli`");
    refused(engine, &text("dependencies", "other = { package = \"ringport\", path = \"x\" }"), 4, "`ringport`");
    refused(engine, &format!("{package}[dependencies.ringport]\npath = \"x\"\n"), 3, "`ringport`");
    let program = "[package]\nname = \"ringport-cli\"\n[dependencies]\nringport-engine.workspace = true\n";
    refused("crates/ringport-cli/Cargo.toml", program, 4, "`ringport-engine`");
    accepted(engine, &text("dependencies", "# ringport = \"1\"\nringport-like = \"1\""));
    let tool = "[package]\nname = \"tool\"\n[dependencies]\nringport-engine = \"1\"\n";
    accepted("tool/Cargo.toml", tool);
}

#[test]
fn an_engine_without_its_twin() {
    let mut repository = good();
    repository.files.remove("crates/ringport-engine/src/engine/sim/send.rs");
    let said = check(&repository);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].path, "crates/ringport-engine/src/engine/sim/send.rs");
    repository.files.retain(|path, _| !path.contains("/uring/"));
    assert_eq!(check(&repository).len(), 1 + 7);
    let new = said_with("crates/ringport-engine/src/engine/another/mod.rs", "");
    assert_eq!(new.len(), 6, "a new engine needs the same files: {new:?}");
    accepted("crates/ringport-engine/src/engine/uring/ring.rs", "");
}

#[test]
fn a_readme_without_its_commands() {
    refused("README.md", "cargo test --workspace\n", 1, "cargo run");
    refused("README.md", "cargo run --release\nuse cargo test --workspace\n", 1, "cargo test --workspace");
    let mut repository = good();
    repository.files.remove("README.md");
    assert_eq!(check(&repository), [Finding::new("README.md", 1, "missing")]);
}

#[test]
fn reads_what_is_ours_from_a_folder() {
    let root = std::env::temp_dir().join(format!("ringport-tidy-{}", std::process::id()));
    for (path, text) in [("crates/a.rs", "x"), ("target/b.rs", "x"), (".ci/run", "x"), ("image.png", "x")] {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let repository = Repository::load(&root).unwrap();
    fs::remove_dir_all(&root).unwrap();
    assert_eq!(repository.files.keys().collect::<Vec<_>>(), [".ci/run", "crates/a.rs"]);
}
