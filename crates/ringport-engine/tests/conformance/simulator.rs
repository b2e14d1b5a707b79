//! What only the simulator can show.

use ringport_engine::EngineConfig;
use ringport_engine::engine::sim::{Faults, Network, SimEngine};

use crate::subject::{Setup, Sim, run};

/// One run of a seed, and the hash of everything that happened in it.
fn trace(setup: &Setup, faults: &Faults) -> u64 {
    let network = Network::with_faults(setup.seed, faults.clone());
    let mut config = EngineConfig::default();
    config.network = Some(network.clone());
    crate::random::play::<SimEngine>(setup, config, 30);
    network.trace()
}

/// Two runs of one seed are the same run; two seeds are not.
#[test]
fn a_seed_repeats_exactly() {
    run::<Sim>("simulator::a_seed_repeats_exactly", |setup| {
        let faults = Faults::drawn(setup.seed);
        let first = trace(setup, &faults);
        assert_eq!(first, trace(setup, &faults), "two runs of one seed differ");
        let other = Setup { seed: setup.seed ^ (1 << 40), ..setup.clone() };
        assert_ne!(first, trace(&other, &faults), "the seed has no effect");
    });
}

/// Seeds reach both ends of each rate.
#[test]
fn rates_are_never_sometimes_and_always() {
    let drawn: Vec<Faults> = (0..500).map(Faults::drawn).collect();
    let rates: [fn(&Faults) -> u16; 9] = [
        |faults| faults.partial,
        |faults| faults.delay,
        |faults| faults.reorder,
        |faults| faults.queued_send,
        |faults| faults.nobufs,
        |faults| faults.reset,
        |faults| faults.emfile,
        |faults| faults.accept_reset,
        |faults| faults.connect_refused,
    ];
    for (index, rate) in rates.iter().enumerate() {
        for wanted in [|rate| rate == 0, |rate| (1..1000).contains(&rate), |rate| rate == 1000] as [fn(u16) -> bool; 3]
        {
            assert!(drawn.iter().any(|faults| wanted(rate(faults))), "rate {index} is always the same");
        }
    }
    assert!(
        drawn.iter().any(|faults| faults.buffer_max == 1) && drawn.iter().any(|faults| faults.buffer_max == 1 << 18)
    );
}
