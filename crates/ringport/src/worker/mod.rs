//! The parts of a worker that need no engine.
#![cfg_attr(not(test), expect(dead_code, reason = "the worker itself stands elsewhere"))]

mod mailbox;
mod wheel;
