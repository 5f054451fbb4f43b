//! What every bus promises.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use ion_model::event::{Context, DocumentType, Message};
use ion_model::id::{CorrelationId, EventId};

use crate::{Bus, Collection, DeadLetter, Delivery, Documents, Routed, Subscription};

/// How long a message may take to arrive.
const DEADLINE: Duration = Duration::from_secs(20);

/// Tries what every bus promises. `one` and `two` are two handles of one bus, as two processes have
/// them, or the same handle twice. The bus may be in use: the queues of the contract have new
/// names, and are removed in the end.
///
/// # Panics
/// When the bus breaks a promise, or fails.
pub async fn bus_contract(one: Arc<dyn Bus>, two: Arc<dyn Bus>) {
    let tag = format!("t-{}", EventId::random());
    messages_reach_each_bound_queue_until_acknowledged(one.clone(), &tag).await;
    messages_that_are_there_are_received_together(one.clone(), &tag).await;
    a_binding_that_is_gone_brings_no_more(&*one, &tag).await;
    a_dropped_wait_and_a_pause_lose_nothing(one.clone(), &tag).await;
    another_process_is_heard(one.clone(), two.clone(), &tag).await;
    subscribers_that_go_disturb_nobody(one.clone(), &tag).await;
    looking_uses_nothing_up(&*one, &tag).await;
    dead_letters_are_kept_until_removed(&*one, &tag).await;
}

/// Tries what a bus promises besides that shares its handle with a document store. `tag` makes the
/// names of the queues new.
///
/// # Panics
/// When a store breaks the promise, or fails.
pub async fn bus_beside_documents_contract(
    bus: Arc<dyn Bus>,
    documents: &dyn Documents,
    tag: &str,
) {
    waits_left_alone_hold_up_nobody(bus, documents, tag).await;
}

/// Returns a message of the event `id`, for tests of a bus.
pub fn message(event_type: &str, id: &str) -> Message {
    let context = Context {
        name: "test".into(),
        event_id: EventId::new(id),
        correlation_id: CorrelationId::new("c"),
        parent_event_id: String::new(),
        document_type: DocumentType::EventMeta,
    };
    Message { context, event_type: event_type.into() }
}

async fn messages_reach_each_bound_queue_until_acknowledged(bus: Arc<dyn Bus>, tag: &str) {
    let (a, b) = (format!("a.{tag}"), format!("b.{tag}"));
    let (m, n) = (format!("m-{tag}"), format!("n-{tag}"));
    assert_eq!(bus.publish(&message(&a, "0")).await.unwrap(), Routed::Nowhere);
    bus.declare(&m, &[a.clone(), b.clone()], &[]).await.unwrap();
    bus.declare(&n, std::slice::from_ref(&a), &[]).await.unwrap();
    bus.declare(&m, &[a.clone(), b.clone()], &[]).await.unwrap();
    assert!(matches!(bus.publish(&message(&a, "1")).await.unwrap(), Routed::To(_)));
    assert!(matches!(bus.publish(&message(&b, "2")).await.unwrap(), Routed::To(_)));
    assert_eq!(bus.peek(&m, 10).await.unwrap(), [message(&a, "1"), message(&b, "2")]);
    assert_eq!(bus.peek(&n, 10).await.unwrap(), [message(&a, "1")]);
    let mut first = bus.clone().subscribe(&m, 1).await.unwrap();
    let delivery = next_delivery(&mut first).await;
    assert_eq!(delivery.message, Ok(message(&a, "1")));
    // The subscription holds one message and has a prefetch of one, so the second message waits
    // until the first one is acknowledged.
    assert!(tokio::time::timeout(Duration::from_millis(120), first.next(1)).await.is_err());
    first.acknowledge(&[delivery.tag]).await.unwrap();
    let second = next_delivery(&mut first).await;
    assert_eq!(second.message, Ok(message(&b, "2")));
    first.give_back(second.tag).await.unwrap();
    let again = next_delivery(&mut first).await;
    assert_eq!(again.message, Ok(message(&b, "2")));
    drop(first);
    let mut heir = bus.clone().subscribe(&m, 1).await.unwrap();
    let inherited = next_delivery(&mut heir).await;
    assert_eq!(inherited.message, Ok(message(&b, "2")));
    heir.acknowledge(&[inherited.tag]).await.unwrap();
    bus.send(&m, &message(&a, "3")).await.unwrap();
    let sent = next_delivery(&mut heir).await;
    assert_eq!(sent.message, Ok(message(&a, "3")));
    heir.acknowledge(&[sent.tag]).await.unwrap();
    for module in [&n, &m] {
        bus.remove_queue(module).await.unwrap();
        assert!(bus.peek(module, 10).await.unwrap().is_empty());
    }
    assert_eq!(bus.publish(&message(&a, "4")).await.unwrap(), Routed::Nowhere);
}

async fn next_delivery(subscription: &mut Box<dyn Subscription>) -> Delivery {
    let received = tokio::time::timeout(DEADLINE, subscription.next(1)).await.unwrap().unwrap();
    let [delivery] = <[Delivery; 1]>::try_from(received).unwrap();
    delivery
}

/// A call returns at most as many messages as it asks for, in order, and never more than the
/// prefetch allows.
async fn messages_that_are_there_are_received_together(bus: Arc<dyn Bus>, tag: &str) {
    const MESSAGES: usize = 20;
    let (kind, module) = (format!("many.{tag}"), format!("many-{tag}"));
    bus.declare(&module, std::slice::from_ref(&kind), &[]).await.unwrap();
    for n in 0..MESSAGES {
        bus.publish(&message(&kind, &n.to_string())).await.unwrap();
    }
    let mut subscription = bus.clone().subscribe(&module, 8).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < MESSAGES {
        let mut tags = Vec::new();
        for most in [3, 5] {
            let next = tokio::time::timeout(DEADLINE, subscription.next(most)).await;
            let received = next.unwrap().unwrap();
            assert!((1..=most).contains(&received.len()), "{received:?}");
            tags.extend(received.iter().map(|delivery| delivery.tag));
            seen.extend(received.into_iter().map(|delivery| delivery.message.unwrap()));
            if seen.len() == MESSAGES {
                break;
            }
        }
        subscription.acknowledge(&tags).await.unwrap();
    }
    let sent: Vec<_> = (0..MESSAGES).map(|n| message(&kind, &n.to_string())).collect();
    assert_eq!(seen, sent);
    let more = tokio::time::timeout(Duration::from_millis(120), subscription.next(3)).await;
    assert!(more.is_err(), "all were acknowledged: {more:?}");
    bus.remove_queue(&module).await.unwrap();
}

async fn a_binding_that_is_gone_brings_no_more(bus: &dyn Bus, tag: &str) {
    let (old, new, module) = (format!("old.{tag}"), format!("new.{tag}"), format!("rebound-{tag}"));
    bus.declare(&module, std::slice::from_ref(&old), &[]).await.unwrap();
    bus.declare(&module, std::slice::from_ref(&new), std::slice::from_ref(&old)).await.unwrap();
    assert_eq!(bus.publish(&message(&old, "1")).await.unwrap(), Routed::Nowhere);
    assert!(matches!(bus.publish(&message(&new, "2")).await.unwrap(), Routed::To(_)));
    bus.remove_queue(&module).await.unwrap();
}

/// A subscriber that is paused, and whose waits are dropped again and again, receives every message
/// once.
async fn a_dropped_wait_and_a_pause_lose_nothing(bus: Arc<dyn Bus>, tag: &str) {
    const MESSAGES: usize = 40;
    let (kind, module) = (format!("drop.{tag}"), format!("drop-{tag}"));
    bus.declare(&module, std::slice::from_ref(&kind), &[]).await.unwrap();
    for n in 0..MESSAGES {
        bus.publish(&message(&kind, &n.to_string())).await.unwrap();
    }
    let mut subscription = bus.clone().subscribe(&module, 4).await.unwrap();
    let mut seen = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    let mut round = 0;
    while seen.len() < MESSAGES {
        assert!(
            Instant::now() < deadline,
            "{} of {MESSAGES} messages have come: {seen:?}",
            seen.len()
        );
        round += 1;
        let wait = Duration::from_micros(200 * (round % 50));
        let mut given: Vec<Delivery> = Vec::new();
        let most = 1 + usize::try_from(round % 3).unwrap();
        if let Ok(received) = tokio::time::timeout(wait, subscription.next(most)).await {
            given.extend(received.unwrap());
        }
        if round % 9 == 0 {
            given.extend(subscription.pause().await.unwrap());
        }
        for delivery in given {
            seen.push(
                delivery.message.unwrap().context.event_id.to_string().parse::<usize>().unwrap(),
            );
            subscription.acknowledge(&[delivery.tag]).await.unwrap();
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..MESSAGES).collect::<Vec<_>>());
    bus.remove_queue(&module).await.unwrap();
}

/// A message that is published through one handle wakes the subscriber of another handle, as in
/// another process.
async fn another_process_is_heard(publisher: Arc<dyn Bus>, subscriber: Arc<dyn Bus>, tag: &str) {
    let (kind, module) = (format!("x.{tag}"), format!("heard-{tag}"));
    subscriber.declare(&module, std::slice::from_ref(&kind), &[]).await.unwrap();
    let mut subscription = subscriber.clone().subscribe(&module, 1).await.unwrap();
    let waiting = tokio::spawn(async move { next_delivery(&mut subscription).await.message });
    publisher.publish(&message(&kind, "9")).await.unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(message(&kind, "9")));
    subscriber.remove_queue(&module).await.unwrap();
}

/// Subscribers of a connection come and go. A message that another subscriber of the connection
/// holds stays with that subscriber.
async fn subscribers_that_go_disturb_nobody(bus: Arc<dyn Bus>, tag: &str) {
    let (kind, module, others) =
        (format!("go.{tag}"), format!("stays-{tag}"), format!("goes-{tag}"));
    for module in [&module, &others] {
        bus.declare(module, std::slice::from_ref(&kind), &[]).await.unwrap();
    }
    bus.publish(&message(&kind, "1")).await.unwrap();
    let mut stays = bus.clone().subscribe(&module, 1).await.unwrap();
    let held = next_delivery(&mut stays).await;
    for _ in 0..500 {
        let mut goes = bus.clone().subscribe(&others, 1).await.unwrap();
        let delivery = next_delivery(&mut goes).await;
        goes.acknowledge(&[delivery.tag]).await.unwrap();
        bus.send(&others, &message(&kind, "2")).await.unwrap();
    }
    stays.acknowledge(&[held.tag]).await.unwrap();
    for module in [&module, &others] {
        bus.remove_queue(module).await.unwrap();
    }
}

/// The test looks into a queue more often than a broker returns a message to its queue, and more
/// often than a connection has channel numbers.
async fn looking_uses_nothing_up(bus: &dyn Bus, tag: &str) {
    let (kind, module) = (format!("look.{tag}"), format!("look-{tag}"));
    bus.declare(&module, std::slice::from_ref(&kind), &[]).await.unwrap();
    bus.publish(&message(&kind, "1")).await.unwrap();
    for _ in 0..2100 {
        assert_eq!(bus.peek(&module, 5).await.unwrap(), [message(&kind, "1")]);
    }
    bus.remove_queue(&module).await.unwrap();
}

async fn dead_letters_are_kept_until_removed(bus: &dyn Bus, tag: &str) {
    let module = format!("dead-{tag}");
    let letter = |event: &str, at| DeadLetter {
        module: module.clone(),
        event_id: event.into(),
        body: "{}".into(),
        reason: "exit status 1".into(),
        at,
    };
    // A broker sends dead letters one by one, and one that is slow counts as having no more of
    // them. So the list is read until it is as expected.
    let mine = async |expected: &[DeadLetter]| {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut letters = bus.list_dead_letters(1000).await.unwrap();
            letters.retain(|letter| letter.module == module);
            if letters == expected || Instant::now() > deadline {
                assert_eq!(letters, expected);
                return;
            }
        }
    };
    bus.add_dead_letter(letter("1", 1)).await.unwrap();
    bus.add_dead_letter(letter("2", 2)).await.unwrap();
    bus.add_dead_letter(letter("1", 3)).await.unwrap();
    for _ in 0..3 {
        mine(&[letter("2", 2), letter("1", 3)]).await;
    }
    let remove = async |events: &[&str]| {
        let letters: Vec<_> =
            events.iter().map(|event| (module.clone(), (*event).to_owned())).collect();
        bus.remove_dead_letters(&letters).await.unwrap()
    };
    assert_eq!(remove(&["1"]).await, 1);
    assert_eq!(remove(&["1"]).await, 0);
    mine(&[letter("2", 2)]).await;
    bus.add_dead_letter(letter("3", 4)).await.unwrap();
    assert_eq!(remove(&["2", "none", "3"]).await, 2);
    mine(&[]).await;
}

/// A wait that was begun and is not polled holds up nobody: neither the documents beside the bus
/// nor other subscribers.
async fn waits_left_alone_hold_up_nobody(bus: Arc<dyn Bus>, documents: &dyn Documents, tag: &str) {
    let mut waits = Vec::new();
    for n in 0..20 {
        let module = format!("alone-{tag}-{n}");
        bus.declare(&module, &[format!("alone.{tag}")], &[]).await.unwrap();
        waits.push((bus.clone().subscribe(&module, 1).await.unwrap(), module));
    }
    for (subscription, _) in &mut waits {
        assert!(subscription.next(1).now_or_never().is_none());
    }
    let read = documents.get(Collection::Events, "none");
    assert_eq!(
        tokio::time::timeout(DEADLINE, read).await.expect("a read is answered").unwrap(),
        None
    );
    bus.publish(&message(&format!("alone.{tag}"), "1")).await.unwrap();
    for (mut subscription, module) in waits {
        let delivery = next_delivery(&mut subscription).await;
        subscription.acknowledge(&[delivery.tag]).await.unwrap();
        drop(subscription);
        bus.remove_queue(&module).await.unwrap();
    }
}
