//! A consumer together with its channel.

use lapin::{Channel, Consumer};
use tokio::runtime::Handle;

use super::{Cause, with_answer_deadline};

/// A consumer and its channel, which are closed together.
///
/// If both were dropped separately, the consumer would send a cancel and the channel a close, from
/// two independent tasks. When the cancel comes late, lapin takes the resulting error for an error
/// of the whole connection, and ends the connection for everybody. So this type first closes the
/// channel, which ends the consumer too, and only then drops the consumer.
pub(super) struct Consuming(Option<(Channel, Consumer)>);

impl Consuming {
    pub(super) fn new(channel: Channel, consumer: Consumer) -> Self {
        Self(Some((channel, consumer)))
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.0.as_ref().expect("channel and consumer are there until `close` or `into_channel`").0
    }

    pub(super) fn consumer(&mut self) -> &mut Consumer {
        &mut self
            .0
            .as_mut()
            .expect("channel and consumer are there until `close` or `into_channel`")
            .1
    }

    /// Closes the channel: its unacknowledged messages go back to the queue.
    pub(super) async fn close(mut self) -> Result<(), Cause> {
        match self.0.take() {
            Some(both) => close_channel(both).await,
            None => Ok(()),
        }
    }

    /// Returns the channel of a consumer that has been cancelled.
    pub(super) fn into_channel(mut self) -> Option<Channel> {
        self.0.take().map(|(channel, _)| channel)
    }
}

async fn close_channel((channel, _consumer): (Channel, Consumer)) -> Result<(), Cause> {
    with_answer_deadline(channel.close(200, "done".into())).await
}

impl Drop for Consuming {
    fn drop(&mut self) {
        let Some(both) = self.0.take() else { return };
        // Without a runtime the connection is ending too.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async {
                if let Err(error) = close_channel(both).await {
                    tracing::debug!(%error, "the channel of a subscription was closed already");
                }
            });
        }
    }
}
