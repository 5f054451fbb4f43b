//! Tickets: what a node must know to mount an attempt's tree for a pod, and the tokens that entitle
//! a pod to it.
//!
//! A dispatcher writes a ticket into the document store and gives the pod a token that names it.
//! The token is signed and expires, so a user who can create a pod cannot name another job's
//! ticket. The token is valid in one namespace only. The first pod that presents the token claims
//! the ticket, so a copied token does not open the tree a second time. Neither the ticket nor the
//! token holds a credential of a store.
//!
//! The ticket also carries back what only the node knows: how the attempt's filesystem work ended.

use std::fmt;
use std::time::Duration;

use hmac::digest::KeyInit as _;
use hmac::{Hmac, Mac as _};
use ion_fs::job::{OlderConventions, TreeOutcome};
use ion_model::checksum::hex;
use ion_model::clock::{self, Millis, millis};
use ion_model::id::{EventId, JobId};
use ion_model::limits::LimitOverrides;
use ion_model::record::JobRecord;
use ion_plane::collect::GcMode;
use ion_plane::commit::Origin;
use ion_plane::gathered::{GatheredEvents, GatheredList};
use ion_stores::{Collection, DataPlane, Durability, Equals, Inserted, Query, StoreError, encode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;

/// The fewest bytes of a key: the length of the hash.
const KEY_BYTES_MIN: usize = 32;

/// The word with which a token begins. Another format would have another word.
const TOKEN_FORMAT: &str = "ion1";

/// The most tries of a change, when other processes keep changing the ticket first.
const CHANGE_TRIES_MAX: usize = 8;

/// The ticket of one attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ticket {
    /// The ticket's id: `<job id>-<attempt>`.
    pub id: String,
    /// The version, which every write raises.
    pub version: i64,
    /// When the dispatcher wrote the ticket.
    #[serde(default)]
    pub offered: Millis,
    /// The job and attempt that commit, and what they may commit.
    pub origin: Origin,
    /// The event that the job works on.
    pub event_id: EventId,
    /// The events that a gathering job gathered, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gathered: Option<TicketGathered>,
    /// The conventions of older Ion that its tree follows.
    pub older: OlderConventions,
    /// The limits that its module sets.
    #[serde(default)]
    pub limits: LimitOverrides,
    /// The pod that has claimed the ticket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<TicketPod>,
    /// How the attempt's filesystem work ended; `None` while it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<TreeEnd>,
}

/// What a ticket says of gathered events.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TicketGathered {
    /// Their ids.
    Ids(Vec<EventId>),
    /// The list of them in blobs.
    List(Box<GatheredList>),
}

impl TicketGathered {
    /// Returns what a ticket says of these events.
    pub fn of(gathered: &GatheredEvents) -> Self {
        match gathered {
            GatheredEvents::Few(events) => {
                Self::Ids(events.iter().map(|event| event.id.clone()).collect())
            }
            GatheredEvents::List(list) => Self::List(list.clone()),
        }
    }
}

/// The pod that has claimed a ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketPod {
    /// The pod's uid, which no other pod ever has.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// The node that it runs on.
    pub node: String,
    /// The pod's volume that holds the tree. A second volume would be a second tree of the same
    /// attempt, so it is refused.
    pub volume: String,
}

/// How an attempt's filesystem work ended, as its node recorded it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each attempt, and nearly all are of the large variant"
)]
pub enum TreeEnd {
    /// The pod has ended, and everything that it left is committed or refused.
    Outcome(TreeOutcome),
    /// The tree was lost while the pod used it; the reason, in words.
    Lost(String),
}

/// The content of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenContent {
    /// The job.
    pub job: JobId,
    /// The attempt of the job.
    pub attempt: u32,
    /// The namespace of the attempt's pod.
    pub namespace: String,
    /// The moment from which on the token is expired.
    pub expires: Millis,
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text does not have the form of a token.
    #[error("the token is none of Ion's; only pods that a dispatcher starts have one")]
    Malformed,
    /// The token is not signed with this key, or was changed after it was signed.
    #[error(
        "the token is not signed by a dispatcher of this cluster (do all have the same \
         ION_TICKET_KEY?)"
    )]
    Forged,
    /// The token has expired.
    #[error(
        "the token has expired: the pod came too late, or the clock of its node or dispatcher is \
         wrong"
    )]
    Expired,
    /// The token was made for pods of another namespace.
    #[error("the token is of another namespace; it is valid only where its dispatcher starts pods")]
    OtherNamespace,
}

/// The text of a key is too short to be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "ION_TICKET_KEY: the key of tickets has {bytes} bytes; at least {KEY_BYTES_MIN} are needed: `openssl \
     rand -hex 32` makes one"
)]
pub struct TicketKeyError {
    /// The number of bytes that the text has.
    pub bytes: usize,
}

/// Why a pod cannot claim a ticket.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// The document store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The attempt is over, or there never was such an attempt.
    #[error(
        "attempt {0} does not wait for a pod any more: it is over; its pod can do nothing and may \
         be deleted"
    )]
    Gone(String),
    /// Another pod or another volume claimed the ticket before.
    #[error("attempt {id} belongs to volume {volume:?} of pod {pod:?}; no other one has its tree")]
    Taken {
        /// The ticket's id.
        id: String,
        /// The pod that claimed the ticket.
        pod: String,
        /// The volume of that pod.
        volume: String,
    },
}

/// The key with which dispatchers sign tokens and nodes check them. Only dispatchers and nodes have
/// it.
#[derive(Clone)]
pub struct TicketKey(Hmac<Sha256>);

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey")
    }
}

impl TicketKey {
    /// Makes the key from the text of ION_TICKET_KEY. The bytes of the text are the key, without
    /// spaces around it: hexadecimal digits are not decoded.
    ///
    /// # Errors
    /// [`TicketKeyError`] when the text is too short to be a secret.
    pub fn new(text: &str) -> Result<Self, TicketKeyError> {
        let text = text.trim();
        if text.len() < KEY_BYTES_MIN {
            return Err(TicketKeyError { bytes: text.len() });
        }
        let key = Hmac::new_from_slice(text.as_bytes()).expect("HMAC takes keys of any length");
        Ok(Self(key))
    }

    /// Returns the token with this content: text without a space. Every user who may read the pod
    /// can read it.
    pub fn sign(&self, content: &TokenContent) -> String {
        let text = signed_text(content);
        let signature = self.keyed_hash(&text).finalize().into_bytes();
        format!("{text}.{}", hex(&signature))
    }

    /// Returns the hash of a text under this key, not finished yet.
    fn keyed_hash(&self, text: &str) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(text.as_bytes());
        mac
    }

    /// Returns the content of a token, if the token is valid at `now` for a pod of `namespace`.
    ///
    /// # Errors
    /// Returns why the token is not valid.
    pub fn verify(
        &self,
        token: &str,
        namespace: &str,
        now: Millis,
    ) -> Result<TokenContent, TokenError> {
        let (text, signature) = token.trim().rsplit_once('.').ok_or(TokenError::Malformed)?;
        let content = parse_content(text).ok_or(TokenError::Malformed)?;
        let signature = parse_hex(signature).ok_or(TokenError::Malformed)?;
        // The comparison takes the same time for every wrong signature, so its time reveals nothing
        // about the right one.
        self.keyed_hash(text).verify_slice(&signature).map_err(|_| TokenError::Forged)?;
        match content {
            content if content.expires <= now => Err(TokenError::Expired),
            content if content.namespace != namespace => Err(TokenError::OtherNamespace),
            content => Ok(content),
        }
    }
}

/// Returns the part of a token that its signature covers.
fn signed_text(content: &TokenContent) -> String {
    let TokenContent { job, attempt, namespace, expires } = content;
    format!("{TOKEN_FORMAT}.{job}.{attempt}.{namespace}.{expires}")
}

/// Reads the signed part of a token; `None` if it does not have the form of one.
fn parse_content(text: &str) -> Option<TokenContent> {
    let mut parts = text.split('.');
    let mut next = || parts.next();
    let (format, job, attempt, namespace, expires) = (next()?, next()?, next()?, next()?, next()?);
    let content = TokenContent {
        job: JobId::new(job),
        attempt: attempt.parse().ok()?,
        namespace: namespace.to_owned(),
        expires: expires.parse().ok()?,
    };
    // Written as text again, the content must give the same text: then no part was left unread.
    (format == TOKEN_FORMAT && signed_text(&content) == text).then_some(content)
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}

impl Ticket {
    /// Returns the id of an attempt's ticket.
    pub fn id(job: &JobId, attempt: u32) -> String {
        format!("{job}-{attempt}")
    }

    /// Writes the ticket, so that a pod can claim it. A ticket that exists already, written by a
    /// dispatcher that died, stays as it is.
    ///
    /// # Errors
    /// Returns the store's error.
    pub async fn offer(&self, plane: &DataPlane) -> Result<(), StoreError> {
        match plane
            .documents
            .insert(Collection::Tickets, encode(self), None, Durability::Now)
            .await?
        {
            Inserted::New | Inserted::Existing(_) => Ok(()),
        }
    }

    /// Reads a ticket; `None` if there is no such ticket.
    ///
    /// # Errors
    /// Returns the store's error.
    pub async fn find(plane: &DataPlane, id: &str) -> Result<Option<Self>, StoreError> {
        plane.documents.get_as(Collection::Tickets, id).await
    }

    /// Claims the ticket for a volume of a pod. The same volume of the same pod may claim it again.
    ///
    /// # Errors
    /// Returns [`TicketError::Taken`] when another pod or volume has claimed the ticket, and
    /// [`TicketError::Gone`] when there is no such ticket or its attempt has ended.
    pub async fn claim(plane: &DataPlane, id: &str, pod: &TicketPod) -> Result<Self, TicketError> {
        let found = Self::update(plane, id, |ticket| match &ticket.pod {
            None => {
                ticket.pod = Some(pod.clone());
                true
            }
            Some(_) => false,
        });
        match found.await? {
            None => Err(TicketError::Gone(id.to_owned())),
            Some(Self { ended: Some(_), .. }) => Err(TicketError::Gone(id.to_owned())),
            Some(Self { pod: Some(other), .. })
                if (&other.uid, &other.volume) != (&pod.uid, &pod.volume) =>
            {
                Err(TicketError::Taken { id: id.to_owned(), pod: other.name, volume: other.volume })
            }
            Some(ticket) => Ok(ticket),
        }
    }

    /// Records in the ticket how the attempt's filesystem work ended, unless that is recorded
    /// already.
    ///
    /// # Errors
    /// Returns the store's error.
    pub async fn record_end(
        plane: &DataPlane,
        id: &str,
        ended: &TreeEnd,
    ) -> Result<(), StoreError> {
        let updated = Self::update(plane, id, |ticket| {
            let is_first = ticket.ended.is_none();
            if is_first {
                ticket.ended = Some(ended.clone());
            }
            is_first
        });
        updated.await.map(drop)
    }

    /// Removes a ticket that is no longer needed.
    ///
    /// # Errors
    /// Returns the store's error.
    pub async fn withdraw(plane: &DataPlane, id: &str) -> Result<(), StoreError> {
        plane.documents.delete(Collection::Tickets, id, vec![]).await.map(drop)
    }

    /// Removes tickets older than `grace` whose attempts have ended, which remain when a dispatcher
    /// died before it removed them. Returns how many there were. `ion gc` calls it.
    ///
    /// It reads the tickets first, then the job of each. A dispatcher writes a ticket after the
    /// ledger says that the attempt starts, and an attempt that has ended never starts again. So a
    /// job that is not active, or is at another attempt, does not need the ticket any more.
    ///
    /// # Errors
    /// Returns the store's error; tickets that it removed before stay removed.
    pub async fn collect(
        plane: &DataPlane,
        grace: Duration,
        mode: GcMode,
    ) -> Result<usize, StoreError> {
        let before = clock::now() - millis(grace);
        let tickets =
            plane.documents.find_as::<Self>(Query::equal(Collection::Tickets, vec![])).await?;
        let mut collected = 0;
        for ticket in tickets.iter().filter(|ticket| ticket.offered <= before) {
            let Origin { job_id, attempt, .. } = &ticket.origin;
            let job =
                plane.documents.get_as::<JobRecord>(Collection::Jobs, job_id.as_str()).await?;
            if job.is_some_and(|job| job.attempt == *attempt && job.state.is_active()) {
                continue;
            }
            if mode == GcMode::Remove {
                Self::withdraw(plane, &ticket.id).await?;
            }
            collected += 1;
        }
        Ok(collected)
    }

    /// Applies `change` to a ticket and writes the result, unless `change` returns false. Returns
    /// the ticket as it is afterwards; `None` if there is no such ticket.
    async fn update(
        plane: &DataPlane,
        id: &str,
        change: impl Fn(&mut Self) -> bool,
    ) -> Result<Option<Self>, StoreError> {
        for _ in 0..CHANGE_TRIES_MAX {
            let Some(mut ticket) = Self::find(plane, id).await? else { return Ok(None) };
            let expect: Vec<Equals> = vec![("version", json!(ticket.version))];
            if !change(&mut ticket) {
                return Ok(Some(ticket));
            }
            ticket.version += 1;
            if plane
                .documents
                .replace(Collection::Tickets, encode(&ticket), expect, None, Durability::Now)
                .await?
            {
                return Ok(Some(ticket));
            }
        }
        Err(StoreError::Unavailable {
            store: Collection::Tickets.as_str().to_owned(),
            what: format!("changing {id}"),
            source: "other processes kept changing it first".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_content() -> TokenContent {
        let job = JobId::new("ab5ca29f-2f0b-5f7a-9b2c-0a1b2c3d4e5f");
        TokenContent { job, attempt: 3, namespace: "media".into(), expires: 2000 }
    }

    #[test]
    fn a_token_is_good_for_what_it_says_until_it_expires() {
        let key = TicketKey::new(&"k".repeat(32)).unwrap();
        let token = key.sign(&test_content());
        assert_eq!(key.verify(&token, "media", 1999), Ok(test_content()));
        assert_eq!(key.verify(&token, "media", 2000), Err(TokenError::Expired));
        assert_eq!(key.verify(&token, "other", 1999), Err(TokenError::OtherNamespace));
        let other = TicketKey::new(&"l".repeat(32)).unwrap();
        assert_eq!(other.verify(&token, "media", 1999), Err(TokenError::Forged));
        for (from, to) in
            [(".3.", ".4."), (".media.", ".medic."), (".2000.", ".9000."), ("ab5", "ab6")]
        {
            let changed = token.replace(from, to);
            assert_ne!(changed, token);
            assert_eq!(key.verify(&changed, "media", 1999), Err(TokenError::Forged), "{changed}");
        }
        for text in
            ["", ".", "ion1", "ion1.a.1.media.2000", "ion2.a.1.media.2000.00", "ion1.a.1.m.2.zz"]
        {
            assert_eq!(key.verify(text, "media", 0), Err(TokenError::Malformed), "{text}");
        }
        assert!(TicketKey::new("short").unwrap_err().to_string().contains("openssl rand"));
        assert_eq!(format!("{key:?}"), "TicketKey");
    }
}
