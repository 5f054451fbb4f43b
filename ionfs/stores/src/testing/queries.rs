//! The contract of queries: ranges, prefixes, projections, counts and tallies, which every document
//! store answers alike.

use std::collections::BTreeMap;

use ion_model::term::IndexRange;
use serde_json::{Value, json};

use crate::{Collection, Documents, Durability, FieldRange, Pages, Query, StartAt};

/// How many documents the contract looks at. More than two pages of every list.
const MANY: usize = 700;

fn ids(found: &[Value]) -> Vec<&str> {
    found.iter().map(|document| document["id"].as_str().unwrap()).collect()
}

/// Inserts jobs whose times rise with their numbers, a few at the same time, and some of which have
/// no module.
async fn insert_jobs(documents: &dyn Documents) {
    let job = |n: usize| {
        let mut job = json!({
            "id": format!("q{n:03}"),
            "state": if n.is_multiple_of(5) { "dead" } else { "succeeded" },
            "created": n / 3, "due": 9_000_000_000_000_000_i64,
            "correlationId": format!("q-{}", n % 4), "long": "x".repeat(1000),
            "attempts": [{"number": 1, "end": {"code": n}}],
        });
        if !n.is_multiple_of(7) {
            job["module"] = json!(format!("queried-{}", n % 2));
        }
        (Collection::Jobs, job)
    };
    let all = (0..MANY).map(job).collect();
    documents.insert_all(all, None, Durability::Now).await.unwrap();
}

/// Checks each kind of query on one store, and removes what it has inserted.
pub(super) async fn queries_find_and_count_what_they_say(documents: &dyn Documents) {
    insert_jobs(documents).await;
    ranges_are_read_in_both_directions(documents).await;
    texts_are_found_by_their_beginnings(documents).await;
    documents_with_one_of_several_values_are_found(documents).await;
    only_the_wanted_fields_are_read(documents).await;
    counts_stop_at_their_limit_and_tallies_are_complete(documents).await;
    pages_have_the_documents_without_the_sort_field(documents).await;
    documents_are_found_by_the_texts_in_their_array(documents).await;
    for n in 0..MANY {
        documents.delete(Collection::Jobs, &format!("q{n:03}"), vec![]).await.unwrap();
    }
}

async fn ranges_are_read_in_both_directions(documents: &dyn Documents) {
    let of_one = || Query::equal(Collection::Jobs, vec![("correlationId", json!("q-1"))]);
    let range = FieldRange::at_least("created", json!(10)).below(json!(20));
    let within = || of_one().within(range.clone()).order_by("created");
    let found = documents.find(within()).await.unwrap();
    let expected: Vec<String> =
        (30..60).filter(|n| n % 4 == 1).map(|n| format!("q{n:03}")).collect();
    assert_eq!(ids(&found), expected);
    let found =
        documents.find(within().descending().start_at(StartAt::Beginning).limit(3)).await.unwrap();
    assert_eq!(ids(&found), ["q057", "q053", "q049"]);
    // The next page begins after a document of this time, and with this id.
    let after = StartAt::After { value: json!(16), id: "q049".into() };
    let found = documents.find(within().descending().start_at(after).limit(3)).await.unwrap();
    assert_eq!(ids(&found), ["q045", "q041", "q037"]);
    let open = of_one().within(FieldRange::at_least("created", json!(230))).order_by("created");
    assert_eq!(ids(&documents.find(open).await.unwrap()), ["q693", "q697"]);
}

async fn texts_are_found_by_their_beginnings(documents: &dyn Documents) {
    let begins = |field, prefix| {
        Query::all(Collection::Jobs).within(FieldRange::prefix(field, prefix)).limit(20)
    };
    let found = documents.find(begins("id", "q12")).await.unwrap();
    assert_eq!(ids(&found), (120..130).map(|n| format!("q{n}")).collect::<Vec<_>>());
    assert_eq!(documents.find(begins("id", "q999")).await.unwrap(), [] as [Value; 0]);
    let first = begins("correlationId", "q-").order_by("correlationId").limit(1);
    let found = documents.find(first.clone().only(&["correlationId"])).await.unwrap();
    assert_eq!(found[0]["correlationId"], "q-0");
    let last = documents.find(first.descending().only(&["correlationId"])).await.unwrap();
    assert_eq!(last[0]["correlationId"], "q-3");
}

async fn documents_with_one_of_several_values_are_found(documents: &dyn Documents) {
    // Each value finds all of its documents, and a value that no document has finds none.
    let wanted = vec![json!("q-1"), json!("q-3"), json!("q-none")];
    let query = Query::one_of(Collection::Jobs, "correlationId", wanted);
    let expected: Vec<String> =
        (0..MANY).filter(|n| n % 2 == 1).map(|n| format!("q{n:03}")).collect();
    let found = documents.find(query.clone().only(&["correlationId"])).await.unwrap();
    assert_eq!(ids(&found), expected);
    assert_eq!(found[0], json!({"id": "q001", "correlationId": "q-1"}));
    assert_eq!(documents.count(query).await.unwrap(), MANY / 2);
    let none = Query::one_of(Collection::Jobs, "correlationId", vec![]);
    assert_eq!(documents.find(none).await.unwrap(), [] as [Value; 0]);
}

async fn only_the_wanted_fields_are_read(documents: &dyn Documents) {
    let seven = Query::all(Collection::Jobs).within(FieldRange::prefix("id", "q00")).limit(8);
    let found = documents.find(seven.only(&["module", "attempts"])).await.unwrap();
    let attempts = |n: usize| json!([{"number": 1, "end": {"code": n}}]);
    assert_eq!(found[1], json!({"id": "q001", "module": "queried-1", "attempts": attempts(1)}));
    // A document without a field has no such field.
    assert_eq!(found[7], json!({"id": "q007", "attempts": attempts(7)}));
    let nested = Query::all(Collection::Events).limit(1).only(&["context.correlationId"]);
    let event = json!({"id": "q", "context": {"correlationId": "c", "name": "n"}, "data": [1]});
    documents.insert(Collection::Events, event, None, Durability::Now).await.unwrap();
    let found = documents.find(nested.within(FieldRange::prefix("id", "q"))).await.unwrap();
    assert_eq!(found, [json!({"id": "q", "context": {"correlationId": "c"}})]);
    documents.delete(Collection::Events, "q", vec![]).await.unwrap();
}

/// Every seventh document has no module. In either direction the pages have each document once.
async fn pages_have_the_documents_without_the_sort_field(documents: &dyn Documents) {
    let of_all = || Query::equal(Collection::Jobs, vec![("due", json!(9_000_000_000_000_000_i64))]);
    for query in [of_all(), of_all().descending()] {
        let mut pages = Pages::new(query.only(&["module"]), "module");
        let mut found = Vec::new();
        while let Some(page) = pages.next(documents).await.unwrap() {
            found.extend(ids(&page).into_iter().map(str::to_owned));
        }
        found.sort_unstable();
        assert_eq!(found, (0..MANY).map(|n| format!("q{n:03}")).collect::<Vec<_>>());
    }
}

async fn counts_stop_at_their_limit_and_tallies_are_complete(documents: &dyn Documents) {
    let of_one = || Query::equal(Collection::Jobs, vec![("correlationId", json!("q-1"))]);
    assert_eq!(documents.count(of_one()).await.unwrap(), MANY / 4);
    assert_eq!(documents.count(of_one().limit(100)).await.unwrap(), 100);
    let early = FieldRange::at_least("created", json!(0)).below(json!(10));
    assert_eq!(documents.count(of_one().within(early)).await.unwrap(), 8);
    let range = FieldRange::prefix("correlationId", "q-");
    let rows = documents
        .tally(Query::all(Collection::Jobs).within(range), &["module", "state"])
        .await
        .unwrap();
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    for n in 0..MANY {
        let module =
            if n.is_multiple_of(7) { Value::Null } else { json!(format!("queried-{}", n % 2)) };
        let state = if n.is_multiple_of(5) { "dead" } else { "succeeded" };
        *expected.entry(json!([module, state]).to_string()).or_default() += 1;
    }
    let counted: BTreeMap<String, u64> =
        rows.into_iter().map(|row| (Value::from(row.values).to_string(), row.count)).collect();
    assert_eq!(counted, expected);
    let none = Query::equal(Collection::Jobs, vec![("correlationId", json!("q-none"))]);
    assert_eq!(documents.count(none.clone()).await.unwrap(), 0);
    assert_eq!(documents.tally(none, &["state"]).await.unwrap(), []);
}

async fn documents_are_found_by_the_texts_in_their_array(documents: &dyn Documents) {
    let document = |n: usize, terms: Vec<String>| {
        json!({"id": format!("t{n:03}"), "created": n / 2, "terms": terms,
            "context": {"correlationId": "q-terms", "documentType": "insight"}})
    };
    // Each document has a text of three, one of all numbers, and some have two of a range.
    let terms = |n: usize| {
        vec![
            format!("q-k\u{1f}{}", n % 3),
            format!("q-n\u{1f}{n:03}"),
            format!("q-n\u{1f}{:03}", n + 1),
        ]
    };
    let all = (0..MANY).map(|n| (Collection::Events, document(n, terms(n)))).collect();
    documents.insert_all(all, None, Durability::Now).await.unwrap();
    let events = || Query::all(Collection::Events).order_by("created").descending();
    let is = |text: &str| IndexRange::Is(text.to_owned());
    let between = |from: &str, below: &str| IndexRange::Between(from.to_owned(), below.to_owned());
    let found = documents
        .find(events().with_term(is("q-k\u{1f}1")).start_at(StartAt::Beginning).limit(3))
        .await
        .unwrap();
    assert_eq!(ids(&found), ["t697", "t694", "t691"]);
    let after = StartAt::After { value: json!(345), id: "t691".into() };
    let found = documents.find(events().with_term(is("q-k\u{1f}1")).start_at(after).limit(2)).await;
    assert_eq!(ids(&found.unwrap()), ["t688", "t685"]);
    let both = events().with_term(is("q-n\u{1f}010")).with_term(is("q-k\u{1f}0"));
    assert_eq!(ids(&documents.find(both).await.unwrap()), ["t009"]);
    // A document that has several texts of a range is found once.
    let range = events().with_term(between("q-n\u{1f}010", "q-n\u{1f}012"));
    let found = documents.find(range.clone().start_at(StartAt::Beginning)).await.unwrap();
    assert_eq!(ids(&found), ["t011", "t010", "t009"]);
    assert_eq!(documents.count(range.limit(2)).await.unwrap(), 2);
    let prefix =
        || Query::all(Collection::Events).with_term(IndexRange::prefix("q-k\u{1f}".into()));
    assert_eq!(documents.count(prefix()).await.unwrap(), MANY);
    let times = FieldRange::at_least("created", json!(5)).below(json!(6));
    let found = documents.find(events().with_term(is("q-k\u{1f}1")).within(times)).await.unwrap();
    assert_eq!(ids(&found), ["t010"]);
    // What is written anew is found by its new texts only, and what is removed not at all.
    let changed = document(1, vec!["q-k\u{1f}9".into()]);
    let written = documents.replace(Collection::Events, changed, vec![], None, Durability::Now);
    assert!(written.await.unwrap());
    let count = async |text: &str| {
        documents.count(Query::all(Collection::Events).with_term(is(text))).await.unwrap()
    };
    assert_eq!((count("q-k\u{1f}9").await, count("q-n\u{1f}001").await), (1, 1));
    let without = json!({"id": "t001", "created": 0, "context": {"correlationId": "q-terms"}});
    let written = documents.replace(Collection::Events, without, vec![], None, Durability::Now);
    assert!(written.await.unwrap());
    assert_eq!(count("q-k\u{1f}9").await, 0);
    for n in 0..MANY {
        documents.delete(Collection::Events, &format!("t{n:03}"), vec![]).await.unwrap();
    }
    assert_eq!(documents.count(prefix()).await.unwrap(), 0);
}
