//! The program `ringport`.
#![forbid(unsafe_code)]
fn main() {}
