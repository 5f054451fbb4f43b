//! What every document store promises.

use std::sync::Arc;

use serde_json::{Value, json};

use super::queries::queries_find_and_count_what_they_say;
use crate::{Collection, Documents, Durability, Guard, Inserted, Pages, Query, StoreError};

/// Tries what every document store promises. `one` and `two` are two handles of one store, as two
/// processes have them, or the same handle twice. The store must be empty; the documents of the
/// contract stay in it.
///
/// # Panics
/// When the store breaks a promise, or fails.
pub async fn documents_contract(one: Arc<dyn Documents>, two: Arc<dyn Documents>) {
    documents_are_inserted_once_and_replaced_by_condition(&*one).await;
    documents_are_found_in_order_and_within_bounds(&*one).await;
    pages_give_each_document_once(&*one).await;
    many_documents_are_one_call(&*one).await;
    queries_find_and_count_what_they_say(&*one).await;
    a_guard_of_two_tells_which_does_not_hold(&*one).await;
    a_guard_that_does_not_hold_writes_nothing(&*one).await;
    for durability in [Durability::BeforeNextMessage, Durability::WithNextSync] {
        what_is_written_soon_is_there_now(&*one, &*two, durability).await;
    }
    a_claim_is_won_once([one, two]).await;
}

fn job_guard(attempt: u32) -> Option<Guard> {
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
    let present = documents.find_existing_ids(Collection::Jobs, some).await.unwrap();
    assert_eq!(present, ["page-0001", "page-0003"].map(str::to_owned).into());
}

/// Documents are read and replaced together, each by its own condition.
async fn many_documents_are_one_call(documents: &dyn Documents) {
    let job = |n: usize, version: usize| json!({"id": format!("many-{n}"), "version": version});
    let all: Vec<_> = (0..3).map(|n| (Collection::Jobs, job(n, n))).collect();
    let insert = async |all: &[(Collection, Value)]| {
        documents.insert_all(all.to_vec(), None, Durability::WithNextSync).await.unwrap()
    };
    assert_eq!(insert(&all[1..2]).await, [Inserted::New]);
    let outcomes = [Inserted::New, Inserted::Existing(job(1, 1)), Inserted::New];
    assert_eq!(insert(&all).await, outcomes);
    // The second one has another version, and the last one is missing.
    let changes = [(0, 0), (1, 7), (2, 2), (3, 3)]
        .map(|(n, version)| (job(n, version + 10), vec![("version", json!(version))]));
    let replaced =
        documents.replace_all(Collection::Jobs, changes.into(), Durability::WithNextSync).await;
    assert_eq!(replaced.unwrap(), [true, false, true, false]);
    let ids = (0..4).map(|n| format!("many-{n}")).collect();
    let found = documents.get_all(Collection::Jobs, ids).await.unwrap();
    let expected =
        [(0, 10), (1, 1), (2, 12)].map(|(n, version)| (format!("many-{n}"), job(n, version)));
    assert_eq!(found, expected.into());
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
        documents.insert(Collection::Events, event.clone(), job_guard(1), Durability::Now).await,
        Err(StoreError::Fenced(Collection::Jobs))
    ));
    documents
        .insert(Collection::Jobs, json!({"id": "job", "attempt": 2}), None, Durability::Now)
        .await
        .unwrap();
    assert!(matches!(
        documents.insert(Collection::Events, event.clone(), job_guard(1), Durability::Now).await,
        Err(StoreError::Fenced(Collection::Jobs))
    ));
    assert!(matches!(
        documents
            .replace(Collection::Events, event.clone(), vec![], job_guard(1), Durability::Now)
            .await,
        Err(StoreError::Fenced(Collection::Jobs))
    ));
    assert_eq!(documents.get(Collection::Events, "guarded").await.unwrap(), None);
    assert_eq!(
        documents.insert(Collection::Events, event, job_guard(2), Durability::Now).await.unwrap(),
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
    assert!(matches!(insert(job_guard(99)).await, Err(StoreError::Fenced(Collection::Jobs))));
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
