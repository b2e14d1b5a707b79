//! The laws of `engine/contract.rs`, each tested on every engine of this machine.
//!
//! A test is a function generic over the engine, named once in [`each_test`]. It runs as `ENGINE::test`: once on a
//! real engine, with many seeds on the simulator. Environment: `RINGPORT_SEEDS=N` asks for N seeds,
//! `RINGPORT_SEED=N` replays one.

#![expect(unreachable_pub, reason = "a test binary has no public interface")]

mod accepting;
mod closing;
mod data;
mod fast_open;
mod files;
mod flow;
mod identity;
mod lifetime;
mod limits;
mod options;
mod random;
mod simulator;
mod spin;
mod subject;
mod urgent;
mod world;
mod zero_copy;

/// Hands the list of tests to `$suite`.
macro_rules! each_test {
    ($suite:ident, $subject:ty) => {
        $suite! { $subject;
            accepting: accepting_pauses_and_goes_on, unlisten_ends_with_listener_closed, reset_before_accept_is_skipped,
                a_second_bind_fails, out_of_descriptors_backs_off, unix_and_ipv6_addresses_work;
            closing: closed_is_the_last_event, half_close_lets_data_pass_both_ways, orderly_close_destroys_nothing,
                abort_resets_the_peer, plain_close_with_unread_input_resets, bytes_before_a_failure_arrive_first,
                refused_connect_closes_with_an_error, close_cancels_a_connect, close_in_flight_leaks_no_bytes,
                close_twice_is_one_event;
            data: every_size_arrives_exactly, vectored_sends_arrive_exactly, large_messages_stream_both_ways,
                one_send_is_in_flight, sent_says_what_the_kernel_took, unsent_comes_back, sent_bytes_need_no_caller,
                received_buffers_are_sent_on, small_writes_coalesce;
            fast_open: without_the_system_it_is_an_ordinary_connect, the_first_data_goes_with_the_syn,
                a_refused_fast_open_closes;
            files: a_large_file_arrives_between_other_chunks, ranges_and_offsets, many_files_in_one_queue,
                a_disconnect_midway_gives_the_rest_back, a_file_that_is_too_short_closes, a_fin_follows_a_file,
                a_large_file_starves_nobody;
            flow: pausing_loses_nothing, pause_then_fin, idle_connections_pin_no_buffer, a_dry_pool_is_transient,
                one_slot_feeds_many, low_slots_are_copied, addresses_match;
            identity: stale_ids_do_nothing, slots_are_reused_with_new_generations, churn_returns_everything;
            lifetime: an_engine_dropped_in_flight, buffers_outlive_the_engine, a_forgotten_engine_is_harmless,
                the_pool_may_go_first, a_panic_in_a_turn_is_survived;
            limits: a_turn_has_an_end, a_busy_connection_starves_nobody, leftovers_keep_wait_from_blocking,
                a_waker_ends_a_wait, wakes_may_be_joined, a_deadline_ends_a_wait;
            options: options_round_trip, options_at_creation, raw_options_round_trip, tcp_info_knows_the_connection,
                stale_ids_have_no_options;
            spin: a_spinning_engine_serves_all, a_spinning_engine_comes_to_rest, a_spinning_engine_keeps_deadlines;
            urgent: the_mark_is_where_the_urgent_byte_is, urgent_bytes_keep_their_place;
            zero_copy: pieces_are_in_use_until_sent, masked_it_is_an_ordinary_send,
                closing_with_pieces_on_loan_loses_nothing, a_unix_socket_falls_back;
            random: any_sequence_keeps_the_ledger;
        }
    };
}

macro_rules! suite {
    ($subject:ty; $($topic:ident: $($name:ident),+;)+) => {
        $($(
            #[test]
            fn $name() {
                let path = concat!(module_path!(), "::", stringify!($name));
                $crate::subject::run::<$subject>(path, $crate::$topic::$name::<<$subject as $crate::subject::Subject>::Engine>);
            }
        )+)+
    };
}

/// Every engine under test: a module of the same tests for each.
macro_rules! engines {
    ($($module:ident: $subject:ty;)+) => {
        $(mod $module { each_test!(suite, $subject); })+
    };
}

engines! {
    sim: crate::subject::Sim;
    epoll: crate::subject::Epoll;
    epoll_plain: crate::subject::EpollPlain;
    uring: crate::subject::Uring;
    uring_no_multishot: crate::subject::UringNoMultishot;
    uring_no_direct: crate::subject::UringNoDirect;
    uring_not_measured: crate::subject::UringNotMeasured;
    uring_no_defer: crate::subject::UringNoDefer;
    uring_plain: crate::subject::UringPlain;
    uring_zero_copy: crate::subject::UringZeroCopy;
}
