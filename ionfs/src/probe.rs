//! Whether each store lets Ion do what it does: found out by doing it, with something of its own that it removes again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;
use uuid::Uuid;

use crate::errors::chain;
use crate::event::{Context, DocumentType, Message};
use crate::id::{CorrelationId, EventId};
use crate::stores::open::{StoreUrls, open_blobs, open_bus, open_documents, without_credentials};
use crate::stores::{Blobs, Bus, Collection, Documents, StoreError, known_plane_id};

/// How long one store may take for all of it.
const WAIT: Duration = Duration::from_secs(30);

/// What was found out about one store.
#[derive(Debug)]
pub struct Probed {
    /// `blobs`, `documents` or `bus`.
    pub store: &'static str,
    /// Its URL without credentials.
    pub url: String,
    /// What it can do, or what is wrong and the way out.
    pub outcome: Result<&'static str, String>,
}

/// Tries all three.
pub async fn probe(urls: &StoreUrls) -> [Probed; 3] {
    let blobs = async { try_blobs(&*open_blobs(&urls.blobs).await?).await };
    let documents = async { try_documents(&*open_documents(&urls.documents).await?).await };
    let bus = async { try_bus(open_bus(&urls.bus, plane_of(urls).await.as_deref()).await?).await };
    let (blobs, documents, bus) = futures_util::join!(
        one("blobs", &urls.blobs, "put, read, list, delete", blobs.boxed()),
        one("documents", &urls.documents, "insert, read, replace, find, delete", documents.boxed()),
        one("bus", &urls.bus, "declare, publish, send, receive, acknowledge, delete", bus.boxed()),
    );
    [blobs, documents, bus]
}

/// The plane that the bus has to belong to; none where the documents cannot be read, which is said of them.
async fn plane_of(urls: &StoreUrls) -> Option<String> {
    if urls.documents == urls.bus {
        return None;
    }
    let documents = open_documents(&urls.documents).await.ok()?;
    let plane = known_plane_id(&*documents).await.ok().flatten();
    documents.close().await;
    plane
}

async fn one(
    store: &'static str,
    url: &str,
    can: &'static str,
    work: impl Future<Output = Result<(), StoreError>>,
) -> Probed {
    let outcome = match tokio::time::timeout(WAIT, work).await {
        Ok(Ok(())) => Ok(can),
        Ok(Err(error)) => {
            let reason = chain(&error);
            Err(match advice(&reason) {
                Some(advice) => format!("{reason}\n{advice}"),
                None => reason,
            })
        }
        Err(_) => Err(format!("no answer within {} s", WAIT.as_secs())),
    };
    Probed { store, url: without_credentials(url), outcome }
}

fn disagrees(what: &str) -> StoreError {
    StoreError::Unavailable {
        store: "the store".into(),
        what: what.into(),
        source: "it does not give back what it was given".into(),
    }
}

async fn try_blobs(blobs: &dyn Blobs) -> Result<(), StoreError> {
    let key = format!(".ion-doctor/{}", Uuid::new_v4());
    let body = stream::once(async { Ok("ion doctor".into()) }).boxed();
    blobs.put(&key, body).await?;
    let read = blobs.get_range(&key, 4..10).await?;
    let listed = blobs.list(".ion-doctor").await?.try_filter(|blob| std::future::ready(blob.key == key));
    let listed = listed.try_collect::<Vec<_>>().await?.len();
    blobs.delete(&key).await?;
    if read == "doctor" && listed == 1 { Ok(()) } else { Err(disagrees("reading a blob")) }
}

async fn try_documents(documents: &dyn Documents) -> Result<(), StoreError> {
    let id = format!("doctor-{}", Uuid::new_v4());
    let at = Collection::Dispatchers;
    documents.insert(at, json!({"id": id, "seen": 0}), None).await?;
    let replaced =
        documents.replace(at, json!({"id": id, "seen": 1}), vec![("seen", json!(0))], None).await?;
    let read = documents.get(at, &id).await?;
    let deleted = documents.delete(at, &id, vec![]).await?;
    let agrees = replaced && deleted && read.is_some_and(|document| document["seen"] == 1);
    if agrees { Ok(()) } else { Err(disagrees("writing a document")) }
}

async fn try_bus(bus: Arc<dyn Bus>) -> Result<(), StoreError> {
    let id = format!("doctor-{}", Uuid::new_v4());
    let context = Context {
        name: "ion doctor".into(),
        event_id: EventId::new(id.clone()),
        correlation_id: CorrelationId::new(id.clone()),
        parent_event_id: String::new(),
        document_type: DocumentType::EventMeta,
    };
    let message = Message { context, event_type: id.clone() };
    bus.declare(&id, std::slice::from_ref(&id), &[]).await?;
    let tried = async {
        bus.publish(&message).await?;
        bus.send(&id, &message).await?;
        let mut subscription = bus.clone().subscribe(&id, 1).await?;
        for _ in 0..2 {
            let delivery = subscription.next().await?;
            subscription.acknowledge(delivery.tag).await?;
            if delivery.message.ok().as_ref() != Some(&message) {
                return Ok(false);
            }
        }
        Ok(true)
    };
    let tried = tried.await;
    bus.retire(&id).await?;
    if tried? { Ok(()) } else { Err(disagrees("receiving a message")) }
}

/// What people do about the commonest reasons. Words of the stores' own errors; the first that fits. What a broker refuses
/// says so itself.
const ADVICE: [(&[&str], &str); 7] = [
    (
        &["Connection refused", "connection refused"],
        "nothing listens there: is the server started, and is the port right?",
    ),
    (
        &["failed to lookup", "dns error", "Name or service not known", "No address"],
        "no such host: look at the name in the URL or the endpoint",
    ),
    (
        &["NoSuchBucket", "ContainerNotFound"],
        "the bucket or container is missing: create it, or correct its name",
    ),
    (
        &["certificate", "UnknownIssuer", "InvalidCertificate", "InvalidContentType", "tls", "TLS"],
        "TLS does not agree: name the CA's certificate (amqps: ?cacertfile=PATH, mongodb: ?tlsCAFile=PATH), or use the scheme without TLS",
    ),
    (
        &[
            "Authentication failed",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "Invalid signature",
            "AuthenticationFailed",
            "401 Unauthorized",
        ],
        "the store knows no such user or key: look at the name, the password or the key",
    ),
    (
        &["AccessDenied", "AuthorizationFailure", "403 Forbidden", "not authorized"],
        "this user or key may not do that: give it the right",
    ),
    (
        &["timed out", "no answer within", "no server can be reached"],
        "it does not answer: is it running, and does a firewall stand between?",
    ),
];

fn advice(reason: &str) -> Option<&'static str> {
    ADVICE.iter().find(|(words, _)| words.iter().any(|word| reason.contains(word))).map(|(_, advice)| *advice)
}
