//! The contract of the stores, on every backend: on real servers. `ION_TEST_MONGODB`,
//! `ION_TEST_AMQP`, `ION_TEST_S3` and `ION_TEST_AZURE` point it at servers of one's own, by the
//! URLs that `ion` takes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::json;

use ionfs::id::EventId;
use ionfs::stores::amqp::Amqp;
use ionfs::stores::mongo::Mongo as MongoDocuments;
use ionfs::stores::object::ObjectBlobs;
use ionfs::stores::sqlite::Sqlite;
use ionfs::stores::testing::{
    blobs_contract, bus_beside_documents_contract, bus_contract, documents_contract, message,
};
use ionfs::stores::{
    Blobs, Bus, Collection, Documents, Durability, Routed, UnfinishedUploads, known_queries,
};

use crate::support::servers::{Azure, Env, Mongo, Rabbit, S3, Server};

const DEADLINE: Duration = Duration::from_secs(20);

async fn put(blobs: &dyn Blobs, key: &str, body: Vec<u8>) {
    let pieces: Vec<std::io::Result<Bytes>> =
        body.chunks(300_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let stored = blobs.put(key, stream::iter(pieces).boxed(), Durability::Now).await.unwrap();
    assert_eq!(stored, body.len() as u64);
}

/// The process of an upload dies in the middle. No listing shows the upload, and `end_unfinished_uploads`
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
            blobs.end_unfinished_uploads(long_ago, UnfinishedUploads::End).await.unwrap(),
            0,
            "the upload may still be under way"
        );
        assert_eq!(blobs.end_unfinished_uploads(later, UnfinishedUploads::Count).await.unwrap(), 1);
        assert_eq!(blobs.end_unfinished_uploads(later, UnfinishedUploads::End).await.unwrap(), 1);
        assert_eq!(blobs.end_unfinished_uploads(later, UnfinishedUploads::Count).await.unwrap(), 0);
    });
}

#[tokio::test]
async fn blobs_on_files_and_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let local = ObjectBlobs::local(&folder.path().join("blobs")).unwrap();
    blobs_contract(&local).await;
    blobs_contract(&ObjectBlobs::in_memory()).await;
    put(&local, "a/b", b"here".to_vec()).await;
    assert_eq!(std::io::read_to_string(local.open_local("a/b").unwrap()).unwrap(), "here");
    assert!(local.open_local("a/none").is_none());
    // A killed `put` leaves this file: the backend writes beside the name and then renames.
    std::fs::write(folder.path().join("blobs/a/c#1"), "half").unwrap();
    assert_eq!(local.list("a").await.unwrap().count().await, 1);
    assert_eq!(
        local
            .end_unfinished_uploads(ionfs::clock::now() + 60_000, UnfinishedUploads::End)
            .await
            .unwrap(),
        1
    );
    assert!(!folder.path().join("blobs/a/c#1").exists());
}

fn fresh(what: &str) -> String {
    format!("{what}-{}", EventId::random())
}

/// Returns the URL in the environment variable `variable`. If the variable is not set, starts the
/// server, runs the test `name` again with the server's URL in it, and returns none.
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
        assert_eq!(blobs.canonical_key("one"), "one");
        let mut kept = blobs.list("").await.unwrap();
        while let Some(info) = kept.try_next().await.unwrap() {
            blobs.delete_listed(&info).await.unwrap();
        }
        assert_eq!(blobs.list("").await.unwrap().count().await, 0);
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_bus_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let open = || Arc::new(Sqlite::open(&folder.path().join("deep/ion.db")).unwrap());
    let (one, two) = (open(), open());
    documents_contract(one.clone(), two.clone()).await;
    bus_beside_documents_contract(one.clone(), &*one, "sqlite").await;
    bus_contract(one, two).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_and_bus_in_memory() {
    let one = Arc::new(Sqlite::in_memory().unwrap());
    documents_contract(one.clone(), one.clone()).await;
    bus_beside_documents_contract(one.clone(), &*one, "memory").await;
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
