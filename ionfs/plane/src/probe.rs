//! Finds out whether each store allows what Ion does, by doing it with test data that it removes
//! again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use ion_model::errors::error_chain;
use ion_model::event::{Context, DocumentType, Message};
use ion_model::id::{CorrelationId, EventId};
use ion_stores::open::{StoreUrls, open_blobs, open_bus, open_documents};
use ion_stores::without_credentials;
use ion_stores::{
    Blobs, Bus, BusReport, Collection, Documents, Durability, Query, QueueLength, StoreError,
    find_plane_id,
};
use ion_system::patience::Retry;
use serde_json::json;
use uuid::Uuid;

/// How long the whole test of one store may take.
const WAIT: Duration = Duration::from_secs(30);

/// How long a message may take to arrive. A longer time leaves too little of [`WAIT`] to clean up.
const ARRIVES: Duration = Duration::from_secs(10);

/// The result of testing one store.
#[derive(Debug)]
pub struct ProbeResult {
    /// `blobs`, `documents`, `bus`, or `queues` for the modules' queues on a broker.
    pub store: &'static str,
    /// The store's URL, without credentials.
    pub url: String,
    /// What the store allows, or what is wrong and the way out.
    pub outcome: Result<String, ProbeError>,
}

/// What is wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// An operation failed. The text has all causes, and advice if the fault is a common one.
    #[error("{}", with_advice(error_chain(.0)))]
    Failed(StoreError),
    /// The whole test took too long.
    #[error("no answer within {} s", WAIT.as_secs())]
    NoAnswer,
    /// The store does not return what was written to it.
    #[error("the store: {0}: it does not return what was written to it")]
    Disagrees(&'static str),
    /// A message was published and did not arrive.
    #[error(
        "the store: receiving a message: it was published and did not arrive; a policy with \
         message-ttl or max-length may take messages off Ion's queues (rabbitmqctl list_policies)"
    )]
    NotDelivered,
    /// Queues of modules are not as Ion declares them, or may not be used.
    #[error("{}", .0.join("\n"))]
    Queues(Vec<String>),
}

impl From<StoreError> for ProbeError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// Tests the three stores, and checks the modules' queues.
pub async fn probe(urls: &StoreUrls) -> Vec<ProbeResult> {
    let documents = async { test_documents(&*open_documents(&urls.documents).await?).await };
    let bus = async {
        test_bus(open_bus(&urls.bus, read_plane(urls).await.plane.as_deref()).await?).await
    };
    let (blobs, documents, bus, queues) = futures_util::join!(
        blobs(urls).boxed(),
        run_probe(
            "documents",
            &urls.documents,
            "insert, read, replace, find, delete",
            documents.boxed()
        ),
        run_probe(
            "bus",
            &urls.bus,
            "declare, publish, send, receive, acknowledge, delete",
            bus.boxed()
        ),
        check_queues(urls).boxed(),
    );
    [Some(blobs), Some(documents), Some(bus), queues].into_iter().flatten().collect()
}

/// Tests only the blob store: nothing else would show a fault of it before a job needs it.
pub async fn blobs(urls: &StoreUrls) -> ProbeResult {
    let blobs = async { test_blobs(&*open_blobs(&urls.blobs).await?).await };
    run_probe("blobs", &urls.blobs, "put, read, list, delete", blobs.boxed()).await
}

/// The plane's id and modules, from the documents. Empty if the documents cannot be read; the test
/// of the documents reports that.
#[derive(Default)]
struct ProbedPlane {
    plane: Option<String>,
    modules: Vec<String>,
}

/// Reads the plane's id and its modules. If documents and bus have the same URL it reads nothing:
/// such a bus has no queues that others may change.
async fn read_plane(urls: &StoreUrls) -> ProbedPlane {
    if urls.documents == urls.bus {
        return ProbedPlane::default();
    }
    let read = async {
        let documents = open_documents(&urls.documents).await?;
        let plane = find_plane_id(&*documents).await?;
        let modules = documents.find(Query::equal(Collection::Modules, vec![])).await?;
        documents.close().await;
        let names = modules.iter().filter_map(|module| module["id"].as_str());
        Ok::<_, StoreError>(ProbedPlane { plane, modules: names.map(str::to_owned).collect() })
    };
    read.await.unwrap_or_default()
}

/// Checks the queues of the registered modules, on a bus where others may change them.
async fn check_queues(urls: &StoreUrls) -> Option<ProbeResult> {
    let registered = read_plane(urls).await;
    if registered.modules.is_empty() {
        return None;
    }
    let look = async {
        open_bus(&urls.bus, registered.plane.as_deref()).await?.inspect(&registered.modules).await
    };
    // The test of the bus itself reports why the bus cannot be inspected.
    let report = tokio::time::timeout(WAIT, look).await.ok()?.ok()?;
    if report == BusReport::default() {
        return None;
    }
    let outcome = if report.complaints.is_empty() {
        let waiting =
            |queue: &QueueLength| format!("{} ({} waiting)", queue.module, queue.messages);
        Ok(report.queues.iter().map(waiting).collect::<Vec<_>>().join(", "))
    } else {
        Err(ProbeError::Queues(report.complaints))
    };
    Some(ProbeResult { store: "queues", url: without_credentials(&urls.bus), outcome })
}

/// Runs the test of one store, for at most [`WAIT`]. `can` is the text of the result if the test
/// succeeds.
async fn run_probe(
    store: &'static str,
    url: &str,
    can: &'static str,
    work: impl Future<Output = Result<(), ProbeError>>,
) -> ProbeResult {
    let tested = tokio::time::timeout(WAIT, work).await.unwrap_or(Err(ProbeError::NoAnswer));
    ProbeResult { store, url: without_credentials(url), outcome: tested.map(|()| can.to_owned()) }
}

/// The tries of a blob store whose blob somebody removed meanwhile: a garbage collection without a
/// grace may remove the probe's blob, which no document names, at any moment.
const BLOB_TRIES: Retry = Retry::times(3);

/// Tests a blob store, again if somebody removed the test's blob meanwhile.
async fn test_blobs(blobs: &dyn Blobs) -> Result<(), ProbeError> {
    BLOB_TRIES.run(async |_| test_blobs_once(blobs).await, |failed| was_removed(failed.error)).await
}

/// Writes a blob, reads it, lists it and deletes it.
async fn test_blobs_once(blobs: &dyn Blobs) -> Result<(), ProbeError> {
    let key = format!(".ion-doctor/{}", Uuid::new_v4());
    let body = stream::once(async { Ok("ion doctor".into()) }).boxed();
    blobs.put(&key, body, Durability::Now).await?;
    let read = blobs.get_range(&key, 4..10).await?;
    let listed =
        blobs.list(".ion-doctor").await?.try_filter(|blob| std::future::ready(blob.key == key));
    let listed = listed.try_collect::<Vec<_>>().await?.len();
    blobs.delete(&key).await?;
    let agrees = read == "doctor" && listed == 1;
    if agrees { Ok(()) } else { Err(ProbeError::Disagrees("reading a blob")) }
}

/// Returns whether a blob, or the file that was to become one, is gone. An error of any other kind
/// is final: another try would only take its time.
fn was_removed(error: &ProbeError) -> bool {
    let error = match error {
        ProbeError::Disagrees(_) | ProbeError::Failed(StoreError::NoSuchBlob(_)) => return true,
        ProbeError::Failed(error) => error,
        _ => return false,
    };
    let first: &dyn std::error::Error = error;
    let mut causes = std::iter::successors(Some(first), |error| error.source());
    let not_found = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    causes.any(|cause| cause.downcast_ref().is_some_and(not_found))
}

async fn test_documents(documents: &dyn Documents) -> Result<(), ProbeError> {
    let id = format!("doctor-{}", Uuid::new_v4());
    let at = Collection::Dispatchers;
    documents.insert(at, json!({"id": id, "seen": 0}), None, Durability::Now).await?;
    let replaced = documents
        .replace(at, json!({"id": id, "seen": 1}), vec![("seen", json!(0))], None, Durability::Now)
        .await?;
    let read = documents.get(at, &id).await?;
    let deleted = documents.delete(at, &id, vec![]).await?;
    let agrees = replaced && deleted && read.is_some_and(|document| document["seen"] == 1);
    if agrees { Ok(()) } else { Err(ProbeError::Disagrees("writing a document")) }
}

async fn test_bus(bus: Arc<dyn Bus>) -> Result<(), ProbeError> {
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
    let delivered = tokio::time::timeout(ARRIVES, test_message(&bus, &id, &message)).await;
    bus.remove_queue(&id).await?;
    match delivered {
        Ok(delivered) => delivered,
        Err(_) => {
            // The broker may have dead-lettered the message. It must not stay among the dead
            // letters.
            bus.remove_dead_letters(&[(id.clone(), id)]).await?;
            Err(ProbeError::NotDelivered)
        }
    }
}

/// Publishes a message, sends it to the queue as well, and receives both.
async fn test_message(
    bus: &Arc<dyn Bus>,
    queue: &str,
    message: &Message,
) -> Result<(), ProbeError> {
    bus.publish(message).await?;
    bus.send(queue, message).await?;
    let mut subscription = bus.clone().subscribe(queue, 1).await?;
    for _ in 0..2 {
        let received = subscription.next(1).await?;
        let tags: Vec<u64> = received.iter().map(|delivery| delivery.tag).collect();
        subscription.acknowledge(&tags).await?;
        if !received.into_iter().all(|delivery| delivery.message.as_ref() == Ok(message)) {
            return Err(ProbeError::Disagrees("receiving a message"));
        }
    }
    Ok(())
}

/// Advice for the most common errors: texts of the stores' own errors, and what to do about them.
/// The first entry that matches is used. A broker's refusal needs none, because its error already
/// names the way out.
const ADVICE: [(&[&str], &str); 7] = [
    (
        &["Connection refused", "connection refused"],
        "nothing listens there: start the server, or correct the port",
    ),
    (
        &["failed to lookup", "dns error", "Name or service not known", "No address"],
        "there is no such host: check the name in the URL or the endpoint",
    ),
    (
        &["NoSuchBucket", "ContainerNotFound"],
        "the bucket or container is missing: create it, or correct its name",
    ),
    (
        &["certificate", "UnknownIssuer", "InvalidCertificate", "InvalidContentType", "tls", "TLS"],
        "TLS does not agree: name the CA's certificate (amqps: ?cacertfile=PATH, mongodb: \
         ?tlsCAFile=PATH), or use the scheme without TLS",
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
        "the store knows no such user or key: check the name, the password or the key",
    ),
    (
        &["AccessDenied", "AuthorizationFailure", "403 Forbidden", "not authorized"],
        "this user or key lacks a right: grant it",
    ),
    (
        &["timed out", "no answer within", "no server can be reached"],
        "the server does not answer: check that it is running and that no firewall blocks it",
    ),
];

/// Returns the text of an error, and below it the advice, if there is any.
fn with_advice(reason: String) -> String {
    let helps = |(words, _): &&(&[&str], &str)| words.iter().any(|word| reason.contains(word));
    match ADVICE.iter().find(helps) {
        Some((_, advice)) => format!("{reason}\n{advice}"),
        None => reason,
    }
}
