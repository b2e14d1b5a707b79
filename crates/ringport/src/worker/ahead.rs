//! Having the processor fetch what the next events need, while this one is worked off.
//!
//! What belongs to a connection is found from one thing to the next: its session and stream by the slot, its task's place
//! by the stream, its future by that place. So each event looks at the three after it, one step further for the nearer:
//!
//! ```text
//! event in hand │ next: the future │ after that: the task's place │ then: session, stream, and the engine's record
//! ```

use ringport_engine::{Engine, NEAR_CONNECTIONS, prefetch};

use super::Worker;

impl<E: Engine> Worker<E> {
    #[inline]
    pub(super) fn look_ahead(&self) {
        if self.context.live > NEAR_CONNECTIONS {
            self.fetch_ahead();
        }
    }

    fn fetch_ahead(&self) {
        let aio = &self.context.aio;
        if let Some(later) = self.engine.upcoming(2) {
            self.context.sessions.get(later.slot).into_iter().for_each(prefetch);
            if later.received {
                aio.fetch_stream(later.slot);
            }
        }
        if let Some(soon) = self.engine.upcoming(1).filter(|soon| soon.received) {
            aio.fetch_place(soon.slot);
        }
        if let Some(next) = self.engine.upcoming(0).filter(|next| next.received) {
            aio.fetch_future(next.slot);
        }
    }
}
