//! The binary as people run it: what it prints, where, and with which exit code.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod admin;
mod audit;
mod check;
mod demo;
mod gateway;
mod held_stream;
mod key_offline;
mod key_trail;
mod key_waits;
mod logs;
mod logs_unread;
mod pipes;
mod plan;
mod process;
mod run;
mod run_breaks;
mod run_goes_on;
mod secrets;
mod serve;
mod sharing;
mod sim;
mod usage;
