//! The queue of dead letters, which people look at.
//!
//! To read the queue, a reader holds its messages for a moment. Two concurrent readers would each
//! see only a part, so a reader consumes exclusively, and a second reader waits.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use ion_model::clock::{self, Millis};
use ion_model::event::Message;
use ion_system::patience::Retry;
use lapin::BasicProperties;
use lapin::message::Delivery as Received;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::consuming::Consuming;
use super::refusal::{BrokerAct, lacks_right};
use super::{
    Amqp, Cause, DEAD, QUEUE_PREFIX, ask_broker, header, to_short_string, with_answer_deadline,
};
use crate::DeadLetter;

/// The tries to consume from the queue while another reader has it. Readers hold it for less than a
/// second, so that several may come first.
const TURN: Retry = Retry::times(101).waiting(Duration::from_millis(50));

/// How long no letter may arrive before the queue counts as read. Longer makes people wait; shorter
/// misses letters of a slow broker.
const QUIET: Duration = Duration::from_millis(250);

/// The number of letters that are read at most. Of a longer queue the oldest are read.
const LOOKED_AT: u16 = 10_000;

pub(super) async fn add_dead_letter(bus: &Amqp, letter: DeadLetter) -> Result<(), Cause> {
    let mut headers = FieldTable::default();
    let text = |text: &str| AMQPValue::LongString(text.into());
    headers.insert(header::MODULE.into(), text(&letter.module));
    headers.insert(header::EVENT.into(), text(&letter.event_id));
    headers.insert(header::REASON.into(), text(&letter.reason));
    headers.insert(header::AT.into(), AMQPValue::LongLongInt(letter.at));
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_message_id(to_short_string(&letter.event_id))
        .with_headers(headers);
    bus.publish_to_exchange(DEAD, &letter.module, letter.body.as_bytes(), properties).await?;
    Ok(())
}

/// Reads at most `most` letters, oldest first, and holds their messages. They return to the queue
/// when the channel is closed.
async fn hold_letters(bus: &Amqp, most: u16) -> Result<(Consuming, Vec<Received>), Cause> {
    let mut looking = consume_exclusively(bus, most).await?;
    let mut letters = Vec::new();
    // The queue's own count is not used, because it lags: it may miss letters that were returned
    // just now. The queue is read when nothing arrives for [`QUIET`].
    while letters.len() < usize::from(most) {
        match tokio::time::timeout(QUIET, looking.consumer().next()).await {
            Ok(Some(received)) => letters.push(received?),
            Ok(None) => return Err("the broker closed the subscription".into()),
            Err(_) => break,
        }
    }
    Ok((looking, letters))
}

/// Makes a consumer that has the queue exclusively. Waits while another reader has it.
async fn consume_exclusively(bus: &Amqp, most: u16) -> Result<Consuming, Cause> {
    let consume = async |_| {
        let channel = bus.publishing.open_channel().await.map_err(ConsumeFailure::Channel)?;
        let qos = with_answer_deadline(channel.basic_qos(most, BasicQosOptions::default()));
        qos.await.map_err(ConsumeFailure::Channel)?;
        let exclusive = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
        let consume =
            channel.basic_consume(DEAD.into(), "".into(), exclusive, FieldTable::default());
        let consumer = ask_broker(BrokerAct::Receive, consume).await;
        Ok(Consuming::new(channel, consumer.map_err(ConsumeFailure::Queue)?))
    };
    let is_taken = |error: &ConsumeFailure| match error {
        ConsumeFailure::Queue(cause) => !lacks_right(cause),
        ConsumeFailure::Channel(_) => false,
    };
    let consuming = TURN.run(consume, |failed| is_taken(failed.error)).await;
    consuming.map_err(|(ConsumeFailure::Queue(cause) | ConsumeFailure::Channel(cause))| cause)
}

/// Why no consumer of the queue could be made.
enum ConsumeFailure {
    /// No channel could be prepared.
    Channel(Cause),
    /// The broker refused the consumer: another reader may have the queue.
    Queue(Cause),
}

pub(super) async fn list(bus: &Amqp, limit: usize) -> Result<Vec<DeadLetter>, Cause> {
    let (looking, held) = hold_letters(bus, LOOKED_AT).await?;
    // A letter that was added more than once counts as one letter, with its latest content.
    let mut letters: BTreeMap<(String, String), DeadLetter> = BTreeMap::new();
    for received in &held {
        let letter = to_dead_letter(received);
        letters.insert((letter.module.clone(), letter.event_id.clone()), letter);
    }
    looking.close().await?;
    let mut letters: Vec<DeadLetter> = letters.into_values().collect();
    letters.sort_by_key(|letter| letter.at);
    letters.truncate(limit);
    Ok(letters)
}

pub(super) async fn remove_dead_letters(
    bus: &Amqp,
    letters: &[(String, String)],
) -> Result<usize, Cause> {
    if letters.is_empty() {
        return Ok(0);
    }
    let wanted: HashSet<&(String, String)> = letters.iter().collect();
    let (looking, held) = hold_letters(bus, LOOKED_AT).await?;
    // The same letter may have been added more than once.
    let mut found = HashSet::new();
    for received in held {
        let letter = to_dead_letter(&received);
        let letter = (letter.module, letter.event_id);
        if wanted.contains(&letter) {
            with_answer_deadline(received.acker.ack(BasicAckOptions::default())).await?;
            found.insert(letter);
        }
    }
    looking.close().await?;
    Ok(found.len())
}

/// Reads at most `most` dead letters. Returns, for each one that the broker itself took off a
/// queue, the queue's name and the broker's reason.
pub(super) async fn list_taken_by_broker(
    bus: &Amqp,
    most: u16,
) -> Result<Vec<(String, String)>, Cause> {
    let (looking, held) = hold_letters(bus, most).await?;
    let taken = held.iter().filter_map(|received| {
        let headers = received.properties.headers().as_ref()?.inner();
        let header = |key: &str| header_text(headers.get(&ShortString::from(key)));
        Some((header("x-first-death-queue")?, header("x-first-death-reason")?))
    });
    let taken = taken.collect();
    looking.close().await?;
    Ok(taken)
}

fn header_text(value: Option<&AMQPValue>) -> Option<String> {
    match value? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

fn to_dead_letter(received: &Received) -> DeadLetter {
    let headers = received.properties.headers().clone().unwrap_or_default();
    let header = |key: &str| headers.inner().get(&ShortString::from(key));
    let body = String::from_utf8_lossy(&received.data).into_owned();
    if let Some(module) = header_text(header(header::MODULE)) {
        let at: Millis = match header(header::AT) {
            Some(AMQPValue::LongLongInt(at)) => *at,
            _ => 0,
        };
        let event_id = header_text(header(header::EVENT)).unwrap_or_default();
        let reason = header_text(header(header::REASON)).unwrap_or_default();
        return DeadLetter { module, event_id, body, reason, at };
    }
    // A letter of the broker's own: a message that was returned more often than its queue allows.
    let queue = header_text(header("x-first-death-queue")).unwrap_or_default();
    let reason = header_text(header("x-first-death-reason")).unwrap_or_else(|| "unknown".into());
    let event_id = serde_json::from_slice::<Message>(&received.data)
        .map_or_else(|_| String::new(), |message| message.context.event_id.to_string());
    DeadLetter {
        module: queue.strip_prefix(QUEUE_PREFIX).unwrap_or(&queue).to_owned(),
        event_id,
        body,
        reason: format!("the broker gave it up: {reason}"),
        at: received.properties.timestamp().map_or_else(clock::now, |seconds| {
            Millis::try_from(seconds).unwrap_or(0).saturating_mul(1000)
        }),
    }
}
