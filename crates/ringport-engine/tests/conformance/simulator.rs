//! What only the simulator can show.

use ringport_engine::EngineConfig;
use ringport_engine::engine::sim::{Faults, Network, Oddity, Personality, SimEngine};

use crate::subject::{Setup, Sim, regressions, run};

/// One run of a seed.
fn played(setup: &Setup, faults: &Faults) -> Network {
    let network = Network::with_faults(setup.seed, faults.clone());
    let mut config = EngineConfig::default();
    config.network = Some(network.clone());
    crate::random::play::<SimEngine>(setup, config, 30);
    network
}

/// The hash of everything that happened in one run of a seed.
fn trace(setup: &Setup, faults: &Faults) -> u64 {
    played(setup, faults).trace()
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
    let rates: [fn(&Faults) -> u16; 10] = [
        |faults| faults.partial,
        |faults| faults.delay,
        |faults| faults.reorder,
        |faults| faults.queued_send,
        |faults| faults.nobufs,
        |faults| faults.reset,
        |faults| faults.emfile,
        |faults| faults.accept_reset,
        |faults| faults.connect_refused,
        |faults| faults.odd,
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

/// Four seeds in a row have all personalities, each does all that is peculiar to it, and nothing else.
#[test]
fn every_personality_shows_itself() {
    for (seed, personality) in (0..).zip(Personality::ALL) {
        let mut faults = Faults::drawn(seed).harmless();
        assert_eq!(faults.personality, personality);
        faults.odd = 300;
        faults.buffer_max = 1 << 14;
        let mut happened = [0; Oddity::ALL.len()];
        for seed in 0..30 {
            let setup = Setup::simulated(seed);
            let network = played(&setup, &faults);
            happened.iter_mut().zip(Oddity::ALL).for_each(|(sum, oddity)| *sum += network.happened(oddity));
        }
        for (count, oddity) in happened.into_iter().zip(Oddity::ALL) {
            assert_eq!(count > 0, oddity.belongs_to(personality), "{personality:?}: {oddity:?} happened {count} times");
        }
    }
}

/// The file of regression seeds is read as its comment says.
#[test]
fn regression_seeds_are_read() {
    let text = "# a comment\n\nsim::one 5 # why\n* 7\nsim::other 9\nsim::one\t11";
    assert_eq!(regressions("sim::one", text), [5, 7, 11]);
    assert_eq!(regressions("sim::none", text), [7]);
}
