//! A subscriber of one module's queue.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery as Received;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio_util::task::AbortOnDropHandle;

use super::consuming::Consuming;
use super::refusal::BrokerAct;
use super::{Amqp, Cause, ask_broker, queue_name, with_answer_deadline};
use crate::{Delivery, StoreError, Subscription, Unreadable};

/// A message that the broker waits for an answer to.
struct HeldMessage {
    channel: Channel,
    /// The broker's tag.
    tag: u64,
}

/// A subscription that consumes from the first call of `next` until it is paused.
pub(super) struct AmqpSubscriber {
    bus: Arc<Amqp>,
    module: String,
    prefetch: u16,
    open: Option<Consuming>,
    /// The task that opens a consumer. It outlives the call that began it: otherwise the broker
    /// would send messages to a consumer that nobody reads. It is a task and not a future, because
    /// a task continues without a waiting caller: a future that nobody polls could hold the
    /// connection's lock and keep it from all others.
    opening: Option<AbortOnDropHandle<Result<Consuming, Cause>>>,
    /// The channel of the paused consumer.
    paused: Option<Channel>,
    /// The messages that were delivered and neither acknowledged nor given back yet, by Ion's tag.
    /// When a channel closes, its messages return to the queue.
    held: HashMap<u64, HeldMessage>,
    next_tag: u64,
}

impl AmqpSubscriber {
    pub(super) fn new(bus: Arc<Amqp>, module: &str, prefetch: u16) -> Self {
        Self {
            bus,
            module: module.to_owned(),
            prefetch,
            open: None,
            opening: None,
            paused: None,
            held: HashMap::new(),
            next_tag: 1,
        }
    }

    /// Returns the open consumer, and opens one if there is none.
    async fn get_or_open(&mut self) -> Result<&mut Consumer, StoreError> {
        if self.open.is_none() {
            let (bus, module, prefetch) = (self.bus.clone(), self.module.clone(), self.prefetch);
            let opening = self.opening.get_or_insert_with(|| {
                AbortOnDropHandle::new(tokio::spawn(consume(bus, module, prefetch)))
            });
            let opened = opening.await;
            self.opening = None;
            let opened = opened.map_err(Cause::from).flatten();
            self.open = Some(opened.map_err(|error| self.unavailable(error))?);
        }
        Ok(self.open.as_mut().expect("it was opened just now").consumer())
    }

    fn make_delivery(&mut self, received: Received) -> Delivery {
        let tag = self.next_tag;
        self.next_tag += 1;
        let channel = self.open.as_ref().map(Consuming::channel).or(self.paused.as_ref());
        let held =
            channel.cloned().map(|channel| HeldMessage { channel, tag: received.delivery_tag });
        self.held.extend(held.map(|held| (tag, held)));
        let message = serde_json::from_slice(&received.data)
            .map_err(|error| Unreadable { reason: error.to_string(), body: received.data });
        Delivery { tag, message }
    }

    /// Forgets a message that is about to be acknowledged or given back, and returns it.
    fn forget_held(&mut self, tag: u64) -> Result<HeldMessage, Cause> {
        self.held.remove(&tag).ok_or_else(|| "its channel closed; it is delivered again".into())
    }

    fn unavailable(&self, error: Cause) -> StoreError {
        self.bus.unavailable(format!("receiving for module {:?}", self.module))(error)
    }
}

async fn consume(bus: Arc<Amqp>, module: String, prefetch: u16) -> Result<Consuming, Cause> {
    let channel = bus.consuming.open_channel().await?;
    bus.redeclare(&channel, &module).await?;
    with_answer_deadline(channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
    let consume = channel.basic_consume(
        queue_name(&module).as_str().into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let consumer = ask_broker(BrokerAct::Receive, consume).await?;
    Ok(Consuming::new(channel, consumer))
}

#[async_trait]
impl Subscription for AmqpSubscriber {
    async fn next(&mut self, most: usize) -> Result<Vec<Delivery>, StoreError> {
        loop {
            let consumer = self.get_or_open().await?;
            match consumer.next().await {
                Some(Ok(first)) => {
                    let mut received = vec![first];
                    // A failure or the end behind them is met by the next call.
                    while received.len() < most
                        && let Some(Some(Ok(next))) = consumer.next().now_or_never()
                    {
                        received.push(next);
                    }
                    return Ok(received.into_iter().map(|one| self.make_delivery(one)).collect());
                }
                // The stream ends without an error if the broker cancelled the consumer: its queue
                // was removed, or, from RabbitMQ 4.3, the consumer held a message for too long.
                None => self.open = None,
                Some(Err(error)) => {
                    tracing::warn!(
                        module = self.module,
                        %error,
                        "the broker closed the subscription; opening it again"
                    );
                    self.open = None;
                }
            }
        }
    }

    async fn acknowledge(&mut self, tags: &[u64]) -> Result<(), StoreError> {
        let mut failed = Ok(());
        for tag in tags {
            // A message that fails must not keep the others in the queue.
            let acknowledged = match self.forget_held(*tag) {
                Ok(HeldMessage { channel, tag }) => {
                    with_answer_deadline(channel.basic_ack(tag, BasicAckOptions::default())).await
                }
                Err(error) => Err(error),
            };
            failed = failed.and(acknowledged);
        }
        failed.map_err(|error| self.unavailable(error))
    }

    async fn give_back(&mut self, tag: u64) -> Result<(), StoreError> {
        let held = self.forget_held(tag).map_err(|error| self.unavailable(error))?;
        let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
        let given_back = with_answer_deadline(held.channel.basic_nack(held.tag, requeue)).await;
        given_back.map_err(|error| self.unavailable(error))
    }

    async fn pause(&mut self) -> Result<Vec<Delivery>, StoreError> {
        if self.opening.is_some() {
            self.get_or_open().await?;
        }
        let Some(mut open) = self.open.take() else { return Ok(vec![]) };
        let draining = async {
            let tag = open.consumer().tag();
            with_answer_deadline(open.channel().basic_cancel(tag, BasicCancelOptions::default()))
                .await?;
            let mut rest = Vec::new();
            // The consumer is cancelled, so the stream ends after the messages that had already
            // arrived.
            while let Some(received) =
                with_answer_deadline(async { Ok(open.consumer().next().await) }).await?
            {
                rest.push(received?);
            }
            Ok(rest)
        };
        let rest: Vec<Received> = draining.await.map_err(|error| self.unavailable(error))?;
        self.paused = open.into_channel();
        Ok(rest.into_iter().map(|received| self.make_delivery(received)).collect())
    }
}
