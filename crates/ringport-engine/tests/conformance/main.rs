//! The laws of `engine/contract.rs`, each tested on every engine of this machine.
//!
//! A test is a function generic over the engine, named once in [`each_test`]. It runs as `ENGINE::test`: once on a
//! real engine, with many seeds on the simulator: first those of `seeds.txt`, which once found something. Environment:
//! `RINGPORT_SEEDS=N` asks for N more, `RINGPORT_SEED=N` replays one alone,
//! `RINGPORT_CHURN=N` asks `one_after_another` for N connections.

#![expect(unreachable_pub, reason = "a test binary has no public interface")]

mod accepting;
mod calls;
mod churn;
mod closing;
mod data;
mod datagram_extras;
mod datagram_port;
mod datagrams;
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
#[cfg_attr(unix, path = "system/unix.rs")]
#[cfg_attr(windows, path = "system/windows.rs")]
mod system;
mod urgent;
mod world;
mod zero_copy;

/// Hands the list of tests to `$suite`.
macro_rules! each_test {
    ($suite:ident, $subject:ty) => {
        $suite! { $subject;
            accepting: accepting_pauses_and_goes_on, unlisten_ends_with_listener_closed, reset_before_accept_is_skipped,
                another_engine_may_adopt, a_second_bind_fails, out_of_descriptors_backs_off, ipv6_addresses_work, unix_addresses_work;
            calls: an_echo_takes_no_needless_call, a_loaded_wait_brings_many_events;
            churn: thousands_at_once, one_after_another;
            closing: closed_is_the_last_event, half_close_lets_data_pass_both_ways, orderly_close_destroys_nothing,
                abort_resets_the_peer, plain_close_with_unread_input_resets, bytes_before_a_failure_arrive_first,
                refused_connect_closes_with_an_error, close_cancels_a_connect, close_in_flight_leaks_no_bytes,
                close_twice_is_one_event, a_failure_while_paused_is_noticed_in_time;
            data: every_size_arrives_exactly, vectored_sends_arrive_exactly, large_messages_stream_both_ways,
                one_send_is_in_flight, sent_says_what_the_kernel_took, unsent_comes_back, sent_bytes_need_no_caller,
                received_buffers_are_sent_on, small_writes_coalesce, sending_waits_for_connected;
            datagrams: datagrams_arrive_whole_and_once, truncation_is_flagged, bursts_are_split_again,
                a_full_datagram_queue_says_so, a_turn_of_datagrams_has_an_end, a_dry_datagram_pool_is_transient,
                few_buffers_serve_many_sockets, paused_datagrams_stay_in_the_kernel, drops_are_counted, an_unreachable_peer_kills_nothing,
                a_datagram_too_large_kills_nothing, many_peers_are_told_apart, closing_a_datagram_socket_returns_all,
                stale_datagram_ids_do_nothing, an_engine_with_datagrams_under_way_is_dropped,
                                datagrams_over_ipv6, streams_and_datagrams_share_a_port, lossy_networks_lose_whole_datagrams;
            datagram_extras: what_is_no_bytes_fails, bytes_of_datagrams_are_counted, options_of_datagram_sockets,
                changes_of_load_lose_nothing, slots_of_answers_feed_the_next_receive;
            fast_open: without_the_system_it_is_an_ordinary_connect, the_first_data_goes_with_the_syn,
                a_refused_fast_open_closes;
            files: a_large_file_arrives_between_other_chunks, ranges_and_offsets, many_files_in_one_queue,
                a_disconnect_midway_gives_the_rest_back, a_file_that_is_too_short_closes, a_fin_follows_a_file,
                a_large_file_starves_nobody;
            flow: pausing_loses_nothing, pause_then_fin, idle_connections_pin_no_buffer, a_dry_pool_is_transient,
                one_slot_feeds_many, low_slots_are_copied, addresses_match,
                a_slot_from_another_thread_ends_the_sleep;
            identity: stale_ids_do_nothing, slots_are_reused_with_new_generations, churn_returns_everything;
            lifetime: an_engine_dropped_in_flight, buffers_outlive_the_engine, a_forgotten_engine_is_harmless,
                the_pool_may_go_first, a_panic_in_a_turn_is_survived;
            limits: a_turn_has_an_end, a_busy_connection_starves_nobody, a_large_slot_widens_no_share,
                leftovers_keep_wait_from_blocking,
                a_waker_ends_a_wait, wakes_may_be_joined, a_deadline_ends_a_wait;
            options: options_round_trip, options_at_creation, raw_options_round_trip, tcp_info_knows_the_connection,
                stale_ids_have_no_options;
            spin: a_spinning_engine_serves_all, a_spinning_engine_comes_to_rest, a_spinning_engine_keeps_deadlines,
                an_engine_tries_polling_for_single_messages, an_idle_engine_polls_for_nothing;
            urgent: the_mark_is_where_the_urgent_byte_is, urgent_bytes_keep_their_place,
                unwatched_it_is_not_in_the_stream;
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

/// A module of the same tests for each engine and configuration in the list of `subject.rs`.
macro_rules! engines {
    ($($(#[$system:meta])* $module:ident: $engine:ty, $kind:ident $(, -$masked:ident)* $(, completions = $how:ident)? $(, zero_copy_above = $least:literal)?;)+) => {
        $($(#[$system])*
        mod $module {
            use ringport_engine::{EngineKind, Features};

            /// The engine without what is masked.
            struct Here;

            impl crate::subject::Subject for Here {
                type Engine = $engine;
                const KIND: Option<EngineKind> = Some(EngineKind::$kind);
                #[allow(unused_mut, reason = "not every subject masks something")]
                fn features() -> Features {
                    let mut features = Features::default();
                    $(features.$masked = false;)*
                    features
                }
                $(fn completions() -> ringport_engine::RioCompletions {
                    ringport_engine::RioCompletions::$how
                })?
                $(fn zero_copy_above() -> Option<usize> {
                    Some($least)
                })?
            }

            each_test!(suite, Here);
        })+
    };
}

mod sim {
    each_test!(suite, crate::subject::Sim);
}

subject::each_subject!(engines);
