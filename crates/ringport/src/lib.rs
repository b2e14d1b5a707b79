//! ringport: completion-based networking on io_uring, epoll and kqueue behind one contract.
#![forbid(unsafe_code)]

mod worker;
