//! The programs as their users run them: the built binary, its lines, its exit codes, and peers that behave badly.
//!
//! Every wait in these tests has a limit, and every program is ended by its number when its test ends.

mod bench;
mod connect;
mod denied;
mod drain;
mod files;
mod hostile;
mod program;
mod serve;
mod starved;
mod usage;
