//! How a system asks a program to end.

use std::time::Duration;

use crate::Failure;

/// Calls `asked` in a thread of its own each time that the system or the user asks the program to end: SIGINT, SIGTERM or
/// SIGHUP. There is no time limit.
#[cfg(unix)]
pub(crate) fn on_request_to_end(mut asked: impl FnMut(Option<Duration>) + Send + 'static) -> Result<(), Failure> {
    ctrlc::set_handler(move || asked(None))?;
    Ok(())
}

/// What is left of the 5 s that Windows gives a program whose console is closed, or that a shutdown ends (Microsoft
/// Learn: "HandlerRoutine callback function"), when a second is kept for connections whose peers do not answer.
#[cfg(windows)]
const LAST_SECONDS: Duration = Duration::from_secs(3);

/// Calls `asked` in a thread of its own each time that the system or the user asks the program to end: Ctrl-C,
/// Ctrl-Break, the console is closed or the machine shuts down. In the last two cases Windows ends the program when the
/// time that `asked` is told is over, and some.
///
/// A logoff is none of these: only services hear of it, of any user's, and go on.
#[cfg(windows)]
pub(crate) fn on_request_to_end(mut asked: impl FnMut(Option<Duration>) + Send + 'static) -> Result<(), Failure> {
    use std::task::{Context, Poll, Waker};
    use tokio::signal::windows;

    let (mut interrupt, mut pause) = (windows::ctrl_c()?, windows::ctrl_break()?);
    let (mut close, mut shutdown) = (windows::ctrl_close()?, windows::ctrl_shutdown()?);
    let wait = move || {
        let waker = Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        // Each is asked until it has nothing more to say, because only then it remembers the waker.
        loop {
            while let Poll::Ready(Some(())) = interrupt.poll_recv(&mut context) {
                asked(None);
            }
            while let Poll::Ready(Some(())) = pause.poll_recv(&mut context) {
                asked(None);
            }
            while let Poll::Ready(Some(())) = close.poll_recv(&mut context) {
                asked(Some(LAST_SECONDS));
            }
            while let Poll::Ready(Some(())) = shutdown.poll_recv(&mut context) {
                asked(Some(LAST_SECONDS));
            }
            std::thread::park();
        }
    };
    std::thread::Builder::new().name("console".to_owned()).spawn(wait)?;
    Ok(())
}

/// Wakes a thread that polls by hand.
#[cfg(windows)]
struct Unpark(std::thread::Thread);

#[cfg(windows)]
impl std::task::Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}
