//! Checks Ion's own queues and rights: what somebody changed about them, and what that costs.
//!
//! # How it works
//! The checks use AMQP alone. A passive declare tells whether a queue exists and how long it is. A
//! declare with Ion's arguments changes nothing if they agree with the queue's, and otherwise is
//! refused with the difference. A message for which there is no queue comes back, unless the user
//! may not write. AMQP does not show policies, but it shows their effects: a message that the
//! broker took off a queue is among the dead letters, with the broker's reason.
//!
//! # What it never does
//! It never changes anything, and never takes a message away from its consumer.

use std::collections::BTreeMap;

use ion_model::errors::error_chain;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use uuid::Uuid;

use super::refusal::{BrokerAct, broker_error, is_missing, lacks_right};
use super::{
    Amqp, Cause, DEAD, EVENTS, QUEUE_PREFIX, ask_broker, dead, module_arguments, queue_name,
    with_answer_deadline,
};
use crate::{BusReport, QueueLength};

/// The number of dead letters that are searched for messages that the broker took off a queue.
const LETTERS_MAX: u16 = 1000;

pub(super) async fn inspect(bus: &Amqp, modules: &[String]) -> Result<BusReport, Cause> {
    let mut report = BusReport::default();
    for module in modules {
        match queue_length(bus, module).await {
            Ok(Some(length)) => report.queues.push(length),
            Ok(None) => report.complaints.push(format!(
                "queue {:?} of module {module:?} is missing: somebody removed it, or a policy with \
                 expires did; restart a dispatcher that serves it, which declares it again",
                queue_name(module)
            )),
            Err(error) if broker_error(&error).is_some() => {
                report.complaints.push(error_chain(&*error))
            }
            Err(error) => return Err(error),
        }
    }
    report.complaints.extend(find_missing_rights(bus).await?);
    report.complaints.extend(find_taken_messages(bus, modules).await?);
    // A user who lacks a right gets the same complaint for every queue.
    report.complaints.sort();
    report.complaints.dedup();
    Ok(report)
}

/// Returns the length of a module's queue, or `None` if it is missing.
///
/// # Errors
/// The broker's refusal if the queue is not as Ion declares it.
async fn queue_length(bus: &Amqp, module: &str) -> Result<Option<QueueLength>, Cause> {
    let queue = queue_name(module);
    let channel = bus.publishing.open_channel().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let there = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default());
    let there = match ask_broker(BrokerAct::Other, there).await {
        Err(error) if is_missing(&error) => return Ok(None),
        there => there?,
    };
    let declare = channel.queue_declare(
        queue.as_str().into(),
        QueueDeclareOptions::durable(),
        module_arguments(),
    );
    ask_broker(BrokerAct::DeclareQueue, declare).await?;
    with_answer_deadline(channel.close(200, "done".into())).await?;
    Ok(Some(QueueLength { module: module.to_owned(), messages: there.message_count() }))
}

/// Returns the rights that the user lacks on the exchanges and the queue that all modules share.
/// The rights to configure are not checked: the connection has already needed them.
async fn find_missing_rights(bus: &Amqp) -> Result<Vec<String>, Cause> {
    let mut missing = Vec::new();
    // No queue has this name, and nobody subscribes to this type.
    let nobody = format!("{QUEUE_PREFIX}doctor-{}", Uuid::new_v4());
    // The exchange of dead letters is left out, because each message published to it is kept.
    for exchange in [EVENTS, ""] {
        let properties = lapin::BasicProperties::default();
        if let Err(error) = bus.publish_to_exchange(exchange, &nobody, b"{}", properties).await {
            missing.push(refusal_text(error)?);
        }
    }
    let channel = bus.publishing.open_channel().await?;
    let get = channel.basic_get(DEAD.into(), BasicGetOptions::default());
    match ask_broker(BrokerAct::Receive, get).await {
        // When the channel is closed, the message returns to its place in the queue.
        Ok(_) => with_answer_deadline(channel.close(200, "done".into())).await?,
        Err(error) if lacks_right(&error) => missing.push(error_chain(&*error)),
        // Another reader has the dead letters at this moment, which takes the same right.
        Err(_) => {}
    }
    Ok(missing)
}

/// Returns the text of a refusal for want of a right. Other errors say nothing about rights and are
/// returned as errors.
fn refusal_text(error: Cause) -> Result<String, Cause> {
    if lacks_right(&error) { Ok(error_chain(&*error)) } else { Err(error) }
}

/// Returns complaints about messages that the broker itself took off these modules' queues, one for
/// each queue and reason.
async fn find_taken_messages(bus: &Amqp, modules: &[String]) -> Result<Vec<String>, Cause> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let taken = dead::list_taken_by_broker(bus, LETTERS_MAX).await?;
    for taken in taken
        .into_iter()
        .filter(|(queue, _)| modules.iter().any(|module| queue_name(module) == *queue))
    {
        *counts.entry(taken).or_default() += 1;
    }
    let words = counts.into_iter().filter_map(|((queue, reason), count)| {
        let setting = match reason.as_str() {
            "expired" => "message-ttl",
            "maxlen" => "max-length",
            // A message that was returned too often does not point to a fault of its queue.
            _ => return None,
        };
        Some(format!(
            "a policy with {setting} takes messages off queue {queue:?}, {count} so far: no policy \
             may match Ion's queues (rabbitmqctl list_policies); `ion dead list` shows the \
             messages"
        ))
    });
    Ok(words.collect())
}
