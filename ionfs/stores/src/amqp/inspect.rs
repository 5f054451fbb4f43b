//! A look at Ion's own queues and rights: what somebody changed about them, and what it costs.
//!
//! # How it works
//! By what AMQP itself tells. A passive declare says whether a queue is there and how long it is. A
//! declare with Ion's arguments changes nothing where they agree, and is refused with the
//! difference where they do not. A message that no queue takes comes back, unless its user may not
//! write. A policy does not show, and what it did does: a message that the broker took off a queue
//! is among the dead letters, with the broker's reason.
//!
//! # What it never does
//! Change anything, or take a message from whoever is to have it.

use std::collections::BTreeMap;

use ion_model::errors::chain;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use uuid::Uuid;

use super::refusal::{Act, is_missing, lacks_right, said};
use super::{
    Amqp, Cause, DEAD, EVENTS, QUEUE_PREFIX, asking, dead, module_arguments, queue_of, within,
};
use crate::{BusReport, QueueLength};

/// Dead letters that are looked at for what the broker took off a queue.
const LETTERS_MAX: u16 = 1000;

pub(super) async fn inspect(bus: &Amqp, modules: &[String]) -> Result<BusReport, Cause> {
    let mut report = BusReport::default();
    for module in modules {
        match queue_length(bus, module).await {
            Ok(Some(length)) => report.queues.push(length),
            Ok(None) => report.complaints.push(format!(
                "queue {:?} of module {module:?} is missing: somebody removed it, or a policy with expires did; restart a dispatcher that serves it, which declares it again",
                queue_of(module)
            )),
            Err(error) if said(&error).is_some() => report.complaints.push(chain(&*error)),
            Err(error) => return Err(error),
        }
    }
    report.complaints.extend(missing_rights(bus).await?);
    report.complaints.extend(taken_off(bus, modules).await?);
    // A user without a right has the same said of every queue.
    report.complaints.sort();
    report.complaints.dedup();
    Ok(report)
}

/// The length of a module's queue, none if it is missing; the broker's refusal where it is not as
/// Ion declares it.
async fn queue_length(bus: &Amqp, module: &str) -> Result<Option<QueueLength>, Cause> {
    let queue = queue_of(module);
    let channel = bus.publishing.channel().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
    let there = channel.queue_declare(queue.as_str().into(), passive, FieldTable::default());
    let there = match asking(Act::Other, there).await {
        Err(error) if is_missing(&error) => return Ok(None),
        there => there?,
    };
    let declare = channel.queue_declare(
        queue.as_str().into(),
        QueueDeclareOptions::durable(),
        module_arguments(),
    );
    asking(Act::DeclareQueue, declare).await?;
    within(channel.close(200, "done".into())).await?;
    Ok(Some(QueueLength { module: module.to_owned(), messages: there.message_count() }))
}

/// The rights that the user lacks on what all modules share. Those to configure were needed to come
/// this far.
async fn missing_rights(bus: &Amqp) -> Result<Vec<String>, Cause> {
    let mut missing = Vec::new();
    // Nobody has a queue of this name, and nobody subscribes to this type.
    let nobody = format!("{QUEUE_PREFIX}doctor-{}", Uuid::new_v4());
    // Not to the exchange of dead letters: each one of them is kept.
    for exchange in [EVENTS, ""] {
        let properties = lapin::BasicProperties::default();
        if let Err(error) = bus.put(exchange, &nobody, b"{}", properties).await {
            missing.push(refused(error)?);
        }
    }
    let channel = bus.publishing.channel().await?;
    let get = channel.basic_get(DEAD.into(), BasicGetOptions::default());
    match asking(Act::Receive, get).await {
        // With its channel the message goes back to where it was.
        Ok(_) => within(channel.close(200, "done".into())).await?,
        Err(error) if lacks_right(&error) => missing.push(chain(&*error)),
        // Somebody looks at the dead letters at this moment, which takes the same right.
        Err(_) => {}
    }
    Ok(missing)
}

/// A refusal in words; all other errors say nothing of rights.
fn refused(error: Cause) -> Result<String, Cause> {
    if lacks_right(&error) { Ok(chain(&*error)) } else { Err(error) }
}

/// What the broker took off these modules' queues by itself, by queue and reason.
async fn taken_off(bus: &Amqp, modules: &[String]) -> Result<Vec<String>, Cause> {
    let mut counts: BTreeMap<(String, String), usize> = BTreeMap::new();
    let taken = dead::taken_by_the_broker(bus, LETTERS_MAX).await?;
    for taken in taken
        .into_iter()
        .filter(|(queue, _)| modules.iter().any(|module| queue_of(module) == *queue))
    {
        *counts.entry(taken).or_default() += 1;
    }
    let words = counts.into_iter().filter_map(|((queue, reason), count)| {
        let setting = match reason.as_str() {
            "expired" => "message-ttl",
            "maxlen" => "max-length",
            // A message that came back too often says nothing of its queue.
            _ => return None,
        };
        Some(format!(
            "a policy with {setting} takes messages off queue {queue:?}, {count} so far: no policy may match Ion's queues (rabbitmqctl list_policies); `ion dead list` shows the messages"
        ))
    });
    Ok(words.collect())
}
