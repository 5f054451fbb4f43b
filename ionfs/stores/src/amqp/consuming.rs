//! A consumer together with the channel it is on.

use lapin::{Channel, Consumer};
use tokio::runtime::Handle;

use super::{Cause, within};

/// A consumer that goes with its channel.
///
/// Dropped as they are, one asks for a cancel and the other for a close, from two tasks that know
/// nothing of each other; where the cancel comes late, lapin takes the error for one of the whole
/// connection, and ends it for everybody. So the channel is closed, which ends the consumer too,
/// and only then is the consumer dropped.
pub(super) struct Consuming(Option<(Channel, Consumer)>);

impl Consuming {
    pub(super) fn new(channel: Channel, consumer: Consumer) -> Self {
        Self(Some((channel, consumer)))
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.0.as_ref().expect("taken only by what ends it").0
    }

    pub(super) fn consumer(&mut self) -> &mut Consumer {
        &mut self.0.as_mut().expect("taken only by what ends it").1
    }

    /// Closes the channel: what came by it and is not settled goes back to its queue.
    pub(super) async fn close(mut self) -> Result<(), Cause> {
        match self.0.take() {
            Some(both) => close(both).await,
            None => Ok(()),
        }
    }

    /// The channel of a consumer that was cancelled.
    pub(super) fn cancelled(mut self) -> Option<Channel> {
        self.0.take().map(|(channel, _)| channel)
    }
}

async fn close((channel, _consumer): (Channel, Consumer)) -> Result<(), Cause> {
    within(channel.close(200, "done".into())).await
}

impl Drop for Consuming {
    fn drop(&mut self) {
        let Some(both) = self.0.take() else { return };
        // Without a runtime the connection is going too.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async {
                if let Err(error) = close(both).await {
                    tracing::debug!(%error, "the channel of a subscription was closed already");
                }
            });
        }
    }
}
