//! Shows that every backend keeps the promises of its trait. Each trait has one contract, which is
//! checked for all its backends: files, memory, SQLite, S3, Azure Blob, a MongoDB-compatible store
//! and RabbitMQ.
//!
//! `ION_TEST_MONGODB`, `ION_TEST_AMQP`, `ION_TEST_S3` and `ION_TEST_AZURE` point the tests at
//! servers of one's own, by the URLs that `ion` takes.

mod queries;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};

use ionfs::event::{Context, DocumentType, Message};
use ionfs::id::{CorrelationId, EventId};
use ionfs::stores::amqp::Amqp;
use ionfs::stores::mongo::Mongo as MongoDocuments;
use ionfs::stores::object::ObjectBlobs;
use ionfs::stores::sqlite::Sqlite;
use ionfs::stores::{
    Blobs, Bus, Collection, DeadLetter, Delivery, Documents, Durability, Guard, Inserted, Pages,
    Query, Routed, StoreError, Subscription, UnfinishedUploads, known_queries,
};

use crate::support::servers::{Azure, Env, Mongo, Rabbit, S3, Server};

const DEADLINE: Duration = Duration::from_secs(20);

async fn put(blobs: &dyn Blobs, key: &str, body: Vec<u8>) {
    let pieces: Vec<std::io::Result<Bytes>> =
        body.chunks(300_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let stored = blobs.put(key, stream::iter(pieces).boxed(), Durability::Now).await.unwrap();
    assert_eq!(stored, body.len() as u64);
}

async fn blobs_keep_what_they_were_given(blobs: &dyn Blobs) {
    let long: Vec<u8> = (0..20_000_000u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
    let odd = "c/j/1.0/a b%#?*\n\u{e9}\u{1f600}\\\u{7f}";
    let endless = format!("c/j/1.1/{}", "n".repeat(255));
    let cases = [
        ("c/empty", vec![]),
        ("c/long", long.clone()),
        (odd, b"odd".to_vec()),
        (&endless, b"endless".to_vec()),
    ];
    for (key, body) in &cases {
        put(blobs, key, body.clone()).await;
        assert_eq!(blobs.size(key).await.unwrap(), Some(body.len() as u64), "{key:?}");
        assert_eq!(blobs.get_range(key, 0..body.len() as u64).await.unwrap(), body, "{key:?}");
    }
    assert_eq!(
        blobs.get_range("c/long", 9_999_990..10_000_010).await.unwrap(),
        &long[9_999_990..10_000_010]
    );
    let listed: BTreeSet<String> =
        blobs.list("c").await.unwrap().map_ok(|info| info.key).try_collect().await.unwrap();
    assert_eq!(listed, cases.iter().map(|(key, _)| blobs.canonical(key)).collect());
    let listed: Vec<_> = blobs.list("c/j").await.unwrap().try_collect().await.unwrap();
    assert_eq!(listed.len(), 2);
    for info in &listed {
        blobs.delete_listed(info).await.unwrap();
    }
    assert_eq!(blobs.size(odd).await.unwrap(), None);
    blobs.delete("c/long").await.unwrap();
    blobs.delete("c/long").await.unwrap();
    assert!(matches!(blobs.get_range("c/long", 0..1).await, Err(StoreError::NoSuchBlob(_))));
}

async fn a_body_that_fails_leaves_no_blob(blobs: &dyn Blobs) {
    for good_pieces in [0, 30] {
        let good = (0..good_pieces).map(|_| Ok(Bytes::from(vec![1; 1 << 20])));
        let body = stream::iter(good.chain([Err(std::io::Error::other("cut"))]));
        assert!(blobs.put("x/cut", body.boxed(), Durability::Now).await.is_err());
        assert_eq!(blobs.size("x/cut").await.unwrap(), None);
        assert_eq!(blobs.list("x").await.unwrap().count().await, 0);
    }
}

/// The process of an upload dies in the middle. No listing shows the upload, and `abandon_uploads`
/// ends it.
fn an_upload_left_behind_is_found(open: impl Fn() -> ObjectBlobs) {
    let dying = tokio::runtime::Runtime::new().unwrap();
    dying.block_on(async {
        let blobs = open();
        let begun = (0..20).map(|_| Ok(Bytes::from(vec![1; 1 << 20])));
        let (all_taken, taken) = tokio::sync::oneshot::channel();
        let stands = stream::once(async move {
            let _ = all_taken.send(());
            std::future::pending().await
        });
        let body = stream::iter(begun).chain(stands);
        let blobs: &'static ObjectBlobs = Box::leak(Box::new(blobs));
        let mut put = Box::pin(blobs.put("dead/upload", body.boxed(), Durability::Now));
        tokio::select! {
            done = &mut put => panic!("{done:?}"),
            told = taken => told.unwrap(),
        }
        // The upload's tasks and destructors do not run any more, as after a kill.
        std::mem::forget(put);
    });
    dying.shutdown_background();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let blobs = open();
        assert_eq!(blobs.list("dead").await.unwrap().count().await, 0);
        let later = ionfs::clock::now() + 60_000;
        let long_ago = later - 3_600_000;
        assert_eq!(
            blobs.abandon_uploads(long_ago, UnfinishedUploads::End).await.unwrap(),
            0,
            "the upload may still be under way"
        );
        assert_eq!(blobs.abandon_uploads(later, UnfinishedUploads::Count).await.unwrap(), 1);
        assert_eq!(blobs.abandon_uploads(later, UnfinishedUploads::End).await.unwrap(), 1);
        assert_eq!(blobs.abandon_uploads(later, UnfinishedUploads::Count).await.unwrap(), 0);
    });
}

async fn blobs_contract(blobs: &dyn Blobs) {
    blobs_keep_what_they_were_given(blobs).await;
    a_body_that_fails_leaves_no_blob(blobs).await;
}

#[tokio::test]
async fn blobs_on_files_and_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let local = ObjectBlobs::local(&folder.path().join("blobs")).unwrap();
    blobs_contract(&local).await;
    blobs_contract(&ObjectBlobs::memory()).await;
    put(&local, "a/b", b"here".to_vec()).await;
    assert_eq!(std::io::read_to_string(local.open_local("a/b").unwrap()).unwrap(), "here");
    assert!(local.open_local("a/none").is_none());
    // A killed `put` leaves this file: the backend writes beside the name and then renames.
    std::fs::write(folder.path().join("blobs/a/c#1"), "half").unwrap();
    assert_eq!(local.list("a").await.unwrap().count().await, 1);
    assert_eq!(
        local.abandon_uploads(ionfs::clock::now() + 60_000, UnfinishedUploads::End).await.unwrap(),
        1
    );
    assert!(!folder.path().join("blobs/a/c#1").exists());
}

fn fresh(what: &str) -> String {
    format!("{what}-{}", EventId::random())
}

/// Returns the URL in `variable`. If there is none, starts the server, runs the test `name` again
/// with the server's URL in `variable`, and returns none.
fn served(
    name: &str,
    variable: &str,
    start: impl FnOnce() -> (String, Env, Server),
) -> Option<String> {
    if let Ok(url) = std::env::var(variable) {
        return Some(url);
    }
    let (url, mut env, _server) = start();
    env.push((variable.to_owned(), url));
    crate::support::passes_again(&[], name, &env);
    None
}

#[test]
fn blobs_on_s3() {
    let start = || {
        let s3 = S3::start();
        (s3.url, s3.env, s3.server)
    };
    let Some(url) = served("blobs_on_s3", "ION_TEST_S3", start) else { return };
    cloud_contract(&url);
    let left_behind = format!("{url}/{}", fresh("left"));
    an_upload_left_behind_is_found(|| ObjectBlobs::cloud(&left_behind).unwrap());
}

#[test]
fn blobs_on_azure() {
    let start = || {
        let azure = Azure::start();
        azure.make_container("ion");
        ("az://ion".to_owned(), azure.env, azure.server)
    };
    if let Some(url) = served("blobs_on_azure", "ION_TEST_AZURE", start) {
        cloud_contract(&url);
    }
}

/// Checks the contract below a prefix. A blob below another prefix is not listed.
fn cloud_contract(url: &str) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let blobs = ObjectBlobs::cloud(&format!("{url}/{}", fresh("contract"))).unwrap();
        blobs_contract(&blobs).await;
        let beside = ObjectBlobs::cloud(&format!("{url}/{}", fresh("beside"))).unwrap();
        put(&blobs, "one", b"1".to_vec()).await;
        assert_eq!(beside.list("").await.unwrap().count().await, 0);
        assert_eq!(blobs.canonical("one"), "one");
        let mut kept = blobs.list("").await.unwrap();
        while let Some(info) = kept.try_next().await.unwrap() {
            blobs.delete_listed(&info).await.unwrap();
        }
        assert_eq!(blobs.list("").await.unwrap().count().await, 0);
    });
}

fn guard(attempt: u32) -> Option<Guard> {
    Some(Guard::new(Collection::Jobs, "job", vec![("attempt", json!(attempt))]))
}

async fn documents_are_inserted_once_and_replaced_by_condition(documents: &dyn Documents) {
    let one =
        json!({"id": "1", "type": "a", "n": 1, "flag": true, "context": {"correlationId": "c"}});
    assert_eq!(
        documents.insert(Collection::Events, one.clone(), None, Durability::Now).await.unwrap(),
        Inserted::New
    );
    let other = json!({"id": "1", "type": "b"});
    assert_eq!(
        documents.insert(Collection::Events, other, None, Durability::Now).await.unwrap(),
        Inserted::Existing(one.clone())
    );
    let changed = json!({"id": "1", "type": "a", "n": 2, "context": {"correlationId": "c"}});
    let replace = |expect| {
        documents.replace(Collection::Events, changed.clone(), expect, None, Durability::Now)
    };
    assert!(!replace(vec![("n", json!(7))]).await.unwrap());
    assert!(!replace(vec![("n", json!(1)), ("missing", json!("x"))]).await.unwrap());
    assert!(
        replace(vec![("n", json!(1)), ("flag", json!(true)), ("missing", json!(null))])
            .await
            .unwrap()
    );
    assert_eq!(documents.get(Collection::Events, "1").await.unwrap(), Some(changed.clone()));
    assert_eq!(documents.get(Collection::Jobs, "1").await.unwrap(), None);
    let found = documents
        .find(Query::equal(Collection::Events, vec![("context.correlationId", json!("c"))]))
        .await
        .unwrap();
    assert_eq!(found, [changed]);
    assert!(!documents.delete(Collection::Events, "1", vec![("n", json!(1))]).await.unwrap());
    assert!(documents.delete(Collection::Events, "1", vec![("n", json!(2))]).await.unwrap());
}

async fn documents_are_found_in_order_and_within_bounds(documents: &dyn Documents) {
    for n in [3, 1, 2, 5, 4] {
        let job = json!({"id": format!("j{n}"), "state": "queued", "due": n});
        documents.insert(Collection::Jobs, job, None, Durability::Now).await.unwrap();
    }
    let query =
        Query::equal(Collection::Jobs, vec![("state", json!("queued"))]).order_by("due").limit(3);
    let dues = async |query| {
        let found = documents.find(query).await.unwrap();
        found.iter().map(|job| job["due"].as_i64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(dues(query).await, [1, 2, 3]);
    let latest = Query::equal(Collection::Jobs, vec![("state", json!("queued"))])
        .order_by("due")
        .descending();
    assert_eq!(dues(latest.limit(3)).await, [5, 4, 3]);
    let all = Query::equal(Collection::Jobs, vec![]).order_by("due").descending();
    assert_eq!(dues(all.limit(2)).await, [5, 4]);
}

/// Pages return each document once, however many there are, and whatever comes and goes meanwhile.
async fn pages_give_each_document_once(documents: &dyn Documents) {
    const MANY: usize = 1_300;
    let job =
        |n: usize, due: usize| json!({"id": format!("page-{n:04}"), "state": "paged", "due": due});
    // Many documents have the same value in the field that orders them, also where one page ends.
    let all: Vec<_> = (0..MANY).map(|n| (Collection::Jobs, job(n * 7 % MANY, n / 400))).collect();
    documents.insert_all(all, None, Durability::WithNextSync).await.unwrap();
    let paged = || Query::equal(Collection::Jobs, vec![("state", json!("paged"))]);
    for query in [paged(), paged().descending()] {
        let mut pages = Pages::new(query.clone(), "due");
        let (mut places, mut asked) = (Vec::new(), 0);
        while let Some(page) = pages.next(documents).await.unwrap() {
            asked += 1;
            let place = |job: &Value| {
                (job["due"].as_i64().unwrap(), job["id"].as_str().unwrap().to_owned())
            };
            places.extend(page.iter().map(place));
            // The document behind which the next page begins is deleted, and another one is
            // inserted where the walk began.
            documents.delete(Collection::Jobs, &places.last().unwrap().1, vec![]).await.unwrap();
            let comes = job(MANY + asked, if query.descending { 9 } else { 0 });
            documents.insert(Collection::Jobs, comes, None, Durability::Now).await.unwrap();
        }
        assert!(asked >= 3);
        let rises =
            |pair: &[_]| if query.descending { pair[0] > pair[1] } else { pair[0] < pair[1] };
        assert!(
            places.windows(2).all(rises),
            "the pages are in order, and no document comes twice"
        );
        let old = places.iter().filter(|(_, id)| **id < *format!("page-{MANY}")).count();
        let gone = if query.descending { asked } else { 0 };
        assert!(old + gone >= MANY, "{old}: each document that was there all the time comes");
    }
    let some: Vec<String> = ["page-0003", "page-0001", "nobody's"].map(str::to_owned).into();
    let present = documents.present(Collection::Jobs, some).await.unwrap();
    assert_eq!(present, ["page-0001", "page-0003"].map(str::to_owned).into());
    let changed: Vec<Value> =
        present.iter().map(|id| json!({"id": id, "state": "changed"})).collect();
    let replace = || {
        documents.replace_all(
            Collection::Jobs,
            changed.clone(),
            vec![("state", json!("paged"))],
            Durability::WithNextSync,
        )
    };
    assert_eq!((replace().await.unwrap(), replace().await.unwrap()), (2, 0));
}

async fn a_guard_of_two_tells_which_does_not_hold(documents: &dyn Documents) {
    let both = |version: u32| {
        let plane = Guard::new(Collection::Plane, "two", vec![("version", json!(version))]);
        Some(Guard::new(Collection::Jobs, "of-two", vec![("attempt", json!(1))]).and(plane))
    };
    let insert = |version| {
        documents.insert(Collection::Events, json!({"id": "two"}), both(version), Durability::Now)
    };
    assert!(matches!(insert(1).await, Err(StoreError::Fenced(Collection::Jobs))));
    documents
        .insert(Collection::Jobs, json!({"id": "of-two", "attempt": 1}), None, Durability::Now)
        .await
        .unwrap();
    documents
        .insert(Collection::Plane, json!({"id": "two", "version": 2}), None, Durability::Now)
        .await
        .unwrap();
    assert!(matches!(insert(1).await, Err(StoreError::Fenced(Collection::Plane))));
    assert_eq!(documents.get(Collection::Events, "two").await.unwrap(), None);
    assert_eq!(insert(2).await.unwrap(), Inserted::New);
}

async fn a_guard_that_does_not_hold_writes_nothing(documents: &dyn Documents) {
    let event = json!({"id": "guarded"});
    assert!(matches!(
        documents.insert(Collection::Events, event.clone(), guard(1), Durability::Now).await,
        Err(StoreError::Fenced(Collection::Jobs))
    ));
    documents
        .insert(Collection::Jobs, json!({"id": "job", "attempt": 2}), None, Durability::Now)
        .await
        .unwrap();
    assert!(matches!(
        documents.insert(Collection::Events, event.clone(), guard(1), Durability::Now).await,
        Err(StoreError::Fenced(Collection::Jobs))
    ));
    assert!(matches!(
        documents
            .replace(Collection::Events, event.clone(), vec![], guard(1), Durability::Now)
            .await,
        Err(StoreError::Fenced(Collection::Jobs))
    ));
    assert_eq!(documents.get(Collection::Events, "guarded").await.unwrap(), None);
    assert_eq!(
        documents.insert(Collection::Events, event, guard(2), Durability::Now).await.unwrap(),
        Inserted::New
    );
}

/// Several tasks claim documents through two handles of one store, as two processes do. Each
/// document is claimed exactly once.
async fn a_claim_is_won_once(handles: [Arc<dyn Documents>; 2]) {
    const CLAIMS: usize = 200;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let documents = handles[task % 2].clone();
        tasks.spawn(async move {
            let mut won = 0;
            for n in 0..CLAIMS {
                let claim = json!({"id": format!("claim-{n}"), "by": task});
                won += usize::from(
                    documents.insert(Collection::Jobs, claim, None, Durability::Now).await.unwrap()
                        == Inserted::New,
                );
            }
            won
        });
    }
    assert_eq!(tasks.join_all().await.into_iter().sum::<usize>(), CLAIMS);
}

fn message(event_type: &str, id: &str) -> Message {
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
    let delivery = next(&mut first).await;
    assert_eq!(delivery.message, Ok(message(&a, "1")));
    // The subscription holds one message and has a prefetch of one, so the second message waits
    // until the first one is acknowledged.
    assert!(tokio::time::timeout(Duration::from_millis(120), first.next()).await.is_err());
    first.acknowledge(delivery.tag).await.unwrap();
    let second = next(&mut first).await;
    assert_eq!(second.message, Ok(message(&b, "2")));
    first.give_back(second.tag).await.unwrap();
    let again = next(&mut first).await;
    assert_eq!(again.message, Ok(message(&b, "2")));
    drop(first);
    let mut heir = bus.clone().subscribe(&m, 1).await.unwrap();
    let inherited = next(&mut heir).await;
    assert_eq!(inherited.message, Ok(message(&b, "2")));
    heir.acknowledge(inherited.tag).await.unwrap();
    bus.send(&m, &message(&a, "3")).await.unwrap();
    let sent = next(&mut heir).await;
    assert_eq!(sent.message, Ok(message(&a, "3")));
    heir.acknowledge(sent.tag).await.unwrap();
    for module in [&n, &m] {
        bus.retire(module).await.unwrap();
        assert!(bus.peek(module, 10).await.unwrap().is_empty());
    }
    assert_eq!(bus.publish(&message(&a, "4")).await.unwrap(), Routed::Nowhere);
}

async fn next(subscription: &mut Box<dyn Subscription>) -> Delivery {
    tokio::time::timeout(DEADLINE, subscription.next()).await.unwrap().unwrap()
}

async fn a_binding_that_is_gone_brings_no_more(bus: &dyn Bus, tag: &str) {
    let (old, new, module) = (format!("old.{tag}"), format!("new.{tag}"), format!("rebound-{tag}"));
    bus.declare(&module, std::slice::from_ref(&old), &[]).await.unwrap();
    bus.declare(&module, std::slice::from_ref(&new), std::slice::from_ref(&old)).await.unwrap();
    assert_eq!(bus.publish(&message(&old, "1")).await.unwrap(), Routed::Nowhere);
    assert!(matches!(bus.publish(&message(&new, "2")).await.unwrap(), Routed::To(_)));
    bus.retire(&module).await.unwrap();
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
        if let Ok(delivery) = tokio::time::timeout(wait, subscription.next()).await {
            given.push(delivery.unwrap());
        }
        if round % 9 == 0 {
            given.extend(subscription.pause().await.unwrap());
        }
        for delivery in given {
            seen.push(
                delivery.message.unwrap().context.event_id.to_string().parse::<usize>().unwrap(),
            );
            subscription.acknowledge(delivery.tag).await.unwrap();
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..MESSAGES).collect::<Vec<_>>());
    bus.retire(&module).await.unwrap();
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
        assert!(subscription.next().now_or_never().is_none());
    }
    let read = documents.get(Collection::Events, "none");
    assert_eq!(
        tokio::time::timeout(DEADLINE, read).await.expect("a read is answered").unwrap(),
        None
    );
    bus.publish(&message(&format!("alone.{tag}"), "1")).await.unwrap();
    for (mut subscription, module) in waits {
        let delivery = next(&mut subscription).await;
        subscription.acknowledge(delivery.tag).await.unwrap();
        drop(subscription);
        bus.retire(&module).await.unwrap();
    }
}

/// A message that is published through one handle wakes the subscriber of another handle, as in
/// another process.
async fn another_process_is_heard(publisher: Arc<dyn Bus>, subscriber: Arc<dyn Bus>, tag: &str) {
    let (kind, module) = (format!("x.{tag}"), format!("heard-{tag}"));
    subscriber.declare(&module, std::slice::from_ref(&kind), &[]).await.unwrap();
    let mut subscription = subscriber.clone().subscribe(&module, 1).await.unwrap();
    let waiting = tokio::spawn(async move { next(&mut subscription).await.message });
    publisher.publish(&message(&kind, "9")).await.unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(message(&kind, "9")));
    subscriber.retire(&module).await.unwrap();
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
    let held = next(&mut stays).await;
    for _ in 0..500 {
        let mut goes = bus.clone().subscribe(&others, 1).await.unwrap();
        let delivery = next(&mut goes).await;
        goes.acknowledge(delivery.tag).await.unwrap();
        bus.send(&others, &message(&kind, "2")).await.unwrap();
    }
    stays.acknowledge(held.tag).await.unwrap();
    for module in [&module, &others] {
        bus.retire(module).await.unwrap();
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
    bus.retire(&module).await.unwrap();
}

async fn dead_letters_are_kept_until_exhumed(bus: &dyn Bus, tag: &str) {
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
            let mut letters = bus.dead_letters(1000).await.unwrap();
            letters.retain(|letter| letter.module == module);
            if letters == expected || Instant::now() > deadline {
                assert_eq!(letters, expected);
                return;
            }
        }
    };
    bus.bury(letter("1", 1)).await.unwrap();
    bus.bury(letter("2", 2)).await.unwrap();
    bus.bury(letter("1", 3)).await.unwrap();
    for _ in 0..3 {
        mine(&[letter("2", 2), letter("1", 3)]).await;
    }
    let exhume = async |events: &[&str]| {
        let letters: Vec<_> =
            events.iter().map(|event| (module.clone(), (*event).to_owned())).collect();
        bus.exhume(&letters).await.unwrap()
    };
    assert_eq!(exhume(&["1"]).await, 1);
    assert_eq!(exhume(&["1"]).await, 0);
    mine(&[letter("2", 2)]).await;
    bus.bury(letter("3", 4)).await.unwrap();
    assert_eq!(exhume(&["2", "none", "3"]).await, 2);
    mine(&[]).await;
}

/// A write that need not be on the disk at once is visible to everybody at once, and obeys the same
/// conditions as other writes.
async fn what_is_written_soon_is_there_now(
    one: &dyn Documents,
    two: &dyn Documents,
    durability: Durability,
) {
    let id = format!("{durability:?}");
    let document = json!({"id": id, "n": 1});
    let insert = |guard| one.insert(Collection::Events, document.clone(), guard, durability);
    assert!(matches!(insert(guard(99)).await, Err(StoreError::Fenced(Collection::Jobs))));
    assert_eq!(insert(None).await.unwrap(), Inserted::New);
    assert_eq!(insert(None).await.unwrap(), Inserted::Existing(document.clone()));
    let changed = json!({"id": id, "n": 2});
    let replace = |n| {
        let expect = vec![("n", json!(n))];
        one.replace(Collection::Events, changed.clone(), expect, None, durability)
    };
    assert!(!replace(7).await.unwrap() && replace(1).await.unwrap());
    one.sync().await.unwrap();
    assert_eq!(two.get(Collection::Events, &id).await.unwrap(), Some(changed));
}

async fn documents_contract(one: Arc<dyn Documents>, two: Arc<dyn Documents>) {
    documents_are_inserted_once_and_replaced_by_condition(&*one).await;
    documents_are_found_in_order_and_within_bounds(&*one).await;
    pages_give_each_document_once(&*one).await;
    queries::queries_find_and_count_what_they_say(&*one).await;
    a_guard_of_two_tells_which_does_not_hold(&*one).await;
    a_guard_that_does_not_hold_writes_nothing(&*one).await;
    for durability in [Durability::BeforeNextMessage, Durability::WithNextSync] {
        what_is_written_soon_is_there_now(&*one, &*two, durability).await;
    }
    a_claim_is_won_once([one, two]).await;
}

async fn bus_contract(one: Arc<dyn Bus>, two: Arc<dyn Bus>) {
    let tag = fresh("t");
    messages_reach_each_bound_queue_until_acknowledged(one.clone(), &tag).await;
    a_binding_that_is_gone_brings_no_more(&*one, &tag).await;
    a_dropped_wait_and_a_pause_lose_nothing(one.clone(), &tag).await;
    another_process_is_heard(one.clone(), two.clone(), &tag).await;
    subscribers_that_go_disturb_nobody(one.clone(), &tag).await;
    looking_uses_nothing_up(&*one, &tag).await;
    dead_letters_are_kept_until_exhumed(&*one, &tag).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_bus_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Arc::new(Sqlite::open(&folder.path().join("deep/ion.db")).unwrap());
    let (one, two) = (open(), open());
    documents_contract(one.clone(), two.clone()).await;
    waits_left_alone_hold_up_nobody(one.clone(), &*one, "sqlite").await;
    bus_contract(one, two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_bus_in_memory() {
    let one = Arc::new(Sqlite::in_memory().unwrap());
    documents_contract(one.clone(), one.clone()).await;
    waits_left_alone_hold_up_nobody(one.clone(), &*one, "memory").await;
    bus_contract(one.clone(), one).await;
}

#[test]
fn documents_on_mongodb() {
    let start = || {
        let mongo = Mongo::start();
        (mongo.url, vec![], mongo.server)
    };
    let Some(url) = served("documents_on_mongodb", "ION_TEST_MONGODB", start) else { return };
    let url = format!("{url}/{}", fresh("ion").replace('-', "_"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let open = async || Arc::new(MongoDocuments::open(&url).await.unwrap());
        let (one, two) = (open().await, open().await);
        documents_contract(one.clone(), two.clone()).await;
        for query in known_queries() {
            let plan = one.explain(&query).await.unwrap()["queryPlanner"]["winningPlan"].to_string();
            assert!(plan.contains("IXSCAN") && !plan.contains("COLLSCAN"), "{query:?}: {plan}");
        }
        // Keys that mean something to MongoDB are values like any others.
        let odd = json!({"id": "odd", "data": [{"key": "$where", "value": "{\"$oid\": 1}"}], "n": 1.5, "none": null});
        one.insert(Collection::Events, odd.clone(), None, Durability::Now).await.unwrap();
        assert_eq!(two.get(Collection::Events, "odd").await.unwrap(), Some(odd));
        one.drop_database().await.unwrap();
    });
}

/// People make indexes too: in shells whose numbers are floating-point, and under names of their
/// own or of Ion's.
#[test]
fn an_index_of_the_same_keys_under_another_name_is_used_as_it_is() {
    use mongodb::bson::{Document, doc};
    let mongo = Mongo::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = mongodb::Client::with_uri_str(&mongo.url).await.unwrap();
        let database = client.database("ion");
        let make = async |keys: Document, name: &str| {
            let indexes = vec![doc! {"key": keys, "name": name}];
            database.run_command(doc! {"createIndexes": "jobs", "indexes": indexes}).await.unwrap();
        };
        make(doc! {"eventId": 1.0, "_id": 1.0}, "of_a_person").await;
        make(doc! {"elsewhere": 1}, "ion_outbox").await;
        let url = mongo.database("ion");
        let mut home = crate::support::Home::new();
        home.env.push(("ION_DOCUMENTS".into(), url.clone()));
        home.run(["job", "list"]).well();
        for _ in 0..2 {
            let documents = MongoDocuments::open(&url).await.unwrap();
            for query in known_queries() {
                let plan = documents.explain(&query).await.unwrap()["queryPlanner"]["winningPlan"]
                    .to_string();
                assert!(plan.contains("IXSCAN") && !plan.contains("COLLSCAN"), "{query:?}: {plan}");
            }
            documents.close().await;
        }
        let names = database.collection::<Document>("jobs").list_index_names().await.unwrap();
        assert!(names.contains(&"of_a_person".to_owned()), "{names:?}");
        assert!(!names.contains(&"ion_eventId".to_owned()), "{names:?}");
    });
}

#[test]
fn bus_on_rabbitmq() {
    let start = || {
        let rabbit = Rabbit::start();
        let url = rabbit.url.clone();
        (url, vec![], rabbit.into_server())
    };
    let Some(url) = served("bus_on_rabbitmq", "ION_TEST_AMQP", start) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let open = || Arc::new(Amqp::open(&url).unwrap());
        bus_contract(open(), open()).await;
    });
}

#[test]
fn bus_over_tls_with_a_clients_certificate() {
    let (rabbit, parameters) = Rabbit::start_with_tls();
    let url = format!(
        "{}?{parameters}",
        rabbit.url.replace("amqp://", "amqps://").replace("127.0.0.1", "localhost")
    );
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let tried =
            async |url: &str| Amqp::open(url).unwrap().declare("tls", &["tls".into()], &[]).await;
        let begun = Instant::now();
        // The broker's port answers before the broker serves.
        while let Err(error) = tried(&url).await {
            assert!(begun.elapsed() < DEADLINE, "{}", ionfs::errors::error_chain(&error));
        }
        let bus = Arc::new(Amqp::open(&url).unwrap());
        assert!(matches!(bus.publish(&message("tls", "1")).await.unwrap(), Routed::To(_)));
        assert_eq!(bus.peek("tls", 1).await.unwrap(), [message("tls", "1")]);
        let ca_only = url.split("&certfile").next().unwrap();
        assert!(tried(ca_only).await.is_err(), "the broker refuses a client without a certificate");
        let no_ca = url.split('?').next().unwrap();
        let refused = ionfs::errors::error_chain(&tried(no_ca).await.unwrap_err());
        assert!(refused.contains("certificate"), "{refused}");
    });
}

#[tokio::test]
async fn what_is_no_database_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ion.db");
    std::fs::write(
        &path,
        "this is a text, and a rather long one, that is no database at all".repeat(30),
    )
    .unwrap();
    let error = Sqlite::open(&path).unwrap_err().to_string();
    assert!(error.contains("ion.db"), "{error}");
}
