//! What every backend promises, checked once for all of them: a backend is one line in [`each_blobs`] and the like.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::json;

use super::object::ObjectBlobs;
use super::sqlite::Sqlite;
use super::{Blobs, Bus, Collection, DeadLetter, Documents, Guard, Inserted, Query, Routed, StoreError};
use crate::event::{Context, DocumentType, Message};
use crate::id::{CorrelationId, EventId};

const DEADLINE: Duration = Duration::from_secs(20);

async fn put(blobs: &dyn Blobs, key: &str, body: Vec<u8>) {
    let pieces: Vec<std::io::Result<Bytes>> =
        body.chunks(300_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let stored = blobs.put(key, stream::iter(pieces).boxed()).await.unwrap();
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
    assert_eq!(blobs.get_range("c/long", 9_999_990..10_000_010).await.unwrap(), &long[9_999_990..10_000_010]);
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
        assert!(blobs.put("x/cut", body.boxed()).await.is_err());
        assert_eq!(blobs.size("x/cut").await.unwrap(), None);
        assert_eq!(blobs.list("x").await.unwrap().count().await, 0);
    }
}

#[tokio::test]
async fn each_blobs() {
    let folder = tempfile::tempdir().unwrap();
    let local = ObjectBlobs::local(&folder.path().join("blobs")).unwrap();
    for blobs in [&local as &dyn Blobs, &ObjectBlobs::memory()] {
        blobs_keep_what_they_were_given(blobs).await;
        a_body_that_fails_leaves_no_blob(blobs).await;
    }
    put(&local, "a/b", b"here".to_vec()).await;
    assert_eq!(std::io::read_to_string(local.open_local("a/b").unwrap()).unwrap(), "here");
    assert!(local.open_local("a/none").is_none());
}

fn guard(attempt: u32) -> Option<Guard> {
    Some(Guard { collection: Collection::Jobs, id: "job".into(), equals: vec![("attempt", json!(attempt))] })
}

async fn documents_are_inserted_once_and_replaced_by_condition(documents: &dyn Documents) {
    let one = json!({"id": "1", "type": "a", "n": 1, "flag": true, "context": {"correlationId": "c"}});
    assert_eq!(documents.insert(Collection::Events, one.clone(), None).await.unwrap(), Inserted::New);
    let other = json!({"id": "1", "type": "b"});
    assert_eq!(
        documents.insert(Collection::Events, other, None).await.unwrap(),
        Inserted::Existing(one.clone())
    );
    let changed = json!({"id": "1", "type": "a", "n": 2, "context": {"correlationId": "c"}});
    let replace = |expect| documents.replace(Collection::Events, changed.clone(), expect, None);
    assert!(!replace(vec![("n", json!(7))]).await.unwrap());
    assert!(!replace(vec![("n", json!(1)), ("missing", json!("x"))]).await.unwrap());
    assert!(replace(vec![("n", json!(1)), ("flag", json!(true)), ("missing", json!(null))]).await.unwrap());
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
        documents.insert(Collection::Jobs, job, None).await.unwrap();
    }
    let query = Query {
        at_most: Some(("due", 4)),
        ..Query::equal(Collection::Jobs, vec![("state", json!("queued"))]).order_by("due").limit(3)
    };
    let found = documents.find(query).await.unwrap();
    assert_eq!(found.iter().map(|job| job["due"].as_i64().unwrap()).collect::<Vec<_>>(), [1, 2, 3]);
}

async fn a_guard_that_does_not_hold_writes_nothing(documents: &dyn Documents) {
    let event = json!({"id": "guarded"});
    assert!(matches!(
        documents.insert(Collection::Events, event.clone(), guard(1)).await,
        Err(StoreError::Fenced)
    ));
    documents.insert(Collection::Jobs, json!({"id": "job", "attempt": 2}), None).await.unwrap();
    assert!(matches!(
        documents.insert(Collection::Events, event.clone(), guard(1)).await,
        Err(StoreError::Fenced)
    ));
    assert!(matches!(
        documents.replace(Collection::Events, event.clone(), vec![], guard(1)).await,
        Err(StoreError::Fenced)
    ));
    assert_eq!(documents.get(Collection::Events, "guarded").await.unwrap(), None);
    assert_eq!(documents.insert(Collection::Events, event, guard(2)).await.unwrap(), Inserted::New);
}

/// Several tasks over two handles of one store, as two processes, claim each document exactly once.
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
                    documents.insert(Collection::Jobs, claim, None).await.unwrap() == Inserted::New,
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

async fn messages_reach_each_bound_queue_until_acknowledged(bus: Arc<dyn Bus>) {
    assert_eq!(bus.publish(&message("a", "0")).await.unwrap(), Routed::Nowhere);
    bus.declare("m", &["a".into(), "b".into()], &[]).await.unwrap();
    bus.declare("n", &["a".into()], &[]).await.unwrap();
    bus.declare("m", &["a".into(), "b".into()], &[]).await.unwrap();
    assert_eq!(bus.publish(&message("a", "1")).await.unwrap(), Routed::To(2));
    assert_eq!(bus.publish(&message("b", "2")).await.unwrap(), Routed::To(1));
    assert_eq!(bus.peek("m", 10).await.unwrap(), [message("a", "1"), message("b", "2")]);
    let mut first = bus.clone().subscribe("m", 1).await.unwrap();
    let delivery = first.next().await.unwrap();
    assert_eq!(delivery.message, Ok(message("a", "1")));
    // One held, prefetch one: the second waits until the first is settled.
    assert!(tokio::time::timeout(Duration::from_millis(120), first.next()).await.is_err());
    first.acknowledge(delivery.tag).await.unwrap();
    let second = first.next().await.unwrap();
    assert_eq!(second.message, Ok(message("b", "2")));
    first.give_back(second.tag).await.unwrap();
    let again = first.next().await.unwrap();
    assert_eq!(again.message, Ok(message("b", "2")));
    drop(first);
    let mut heir = bus.clone().subscribe("m", 1).await.unwrap();
    let inherited = tokio::time::timeout(DEADLINE, heir.next()).await.unwrap().unwrap();
    assert_eq!(inherited.message, Ok(message("b", "2")));
    heir.acknowledge(inherited.tag).await.unwrap();
    bus.retire("n").await.unwrap();
    assert!(bus.peek("n", 10).await.unwrap().is_empty());
}

/// A message published through one handle wakes the subscriber of another, as of another process.
async fn another_process_is_heard(publisher: Arc<dyn Bus>, subscriber: Arc<dyn Bus>) {
    subscriber.declare("heard", &["x".into()], &[]).await.unwrap();
    let mut subscription = subscriber.subscribe("heard", 1).await.unwrap();
    let waiting = tokio::spawn(async move { subscription.next().await.map(|delivery| delivery.message) });
    publisher.publish(&message("x", "9")).await.unwrap();
    let heard = tokio::time::timeout(DEADLINE, waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(heard, Ok(message("x", "9")));
}

async fn dead_letters_are_kept_until_exhumed(bus: &dyn Bus) {
    let letter = |at| DeadLetter {
        module: "m".into(),
        event_id: "1".into(),
        body: "{}".into(),
        reason: "exit status 1".into(),
        at,
    };
    bus.bury(letter(1)).await.unwrap();
    bus.bury(letter(2)).await.unwrap();
    assert_eq!(bus.dead_letters(10).await.unwrap(), [letter(2)]);
    assert!(bus.exhume("m", "1").await.unwrap());
    assert!(!bus.exhume("m", "1").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_documents_and_bus() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Arc::new(Sqlite::open(&folder.path().join("deep/ion.db")).unwrap());
    let (one, two) = (open(), open());
    documents_are_inserted_once_and_replaced_by_condition(&*one).await;
    documents_are_found_in_order_and_within_bounds(&*one).await;
    a_guard_that_does_not_hold_writes_nothing(&*one).await;
    a_claim_is_won_once([one.clone(), two.clone()]).await;
    messages_reach_each_bound_queue_until_acknowledged(one.clone()).await;
    another_process_is_heard(one.clone(), two.clone()).await;
    dead_letters_are_kept_until_exhumed(&*one).await;
}

#[tokio::test]
async fn what_is_no_database_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ion.db");
    std::fs::write(&path, "this is a text, and a rather long one, that is no database at all".repeat(30))
        .unwrap();
    let error = Sqlite::open(&path).unwrap_err().to_string();
    assert!(error.contains("ion.db"), "{error}");
}
