//! ringport.
#![forbid(unsafe_code)]
