//! Tickets: what a node needs to know to mount an attempt's tree for a pod, and who may ask for it.
//!
//! A dispatcher writes a ticket into the document store and gives the pod a token that names it.
//! The token is signed and expires, so nobody who can create a pod can name another job's ticket;
//! it counts in one namespace only; and the first pod that comes with it has it, so a token that
//! was copied opens nothing twice. No credential is in either.
//!
//! The ticket also brings back what only the node knows: how the attempt's filesystem work ended.

use std::fmt;
use std::time::Duration;

use hmac::digest::KeyInit as _;
use hmac::{Hmac, Mac as _};
use ion_fs::job::{Older, Outcome};
use ion_model::checksum::hex;
use ion_model::clock::{self, Millis, millis};
use ion_model::id::{EventId, JobId};
use ion_model::limits::SetLimits;
use ion_model::record::JobRecord;
use ion_plane::collect::Collect;
use ion_plane::commit::Origin;
use ion_stores::{Collection, DataPlane, Equals, Inserted, Query, StoreError, encode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::Sha256;

/// Bytes that a key has at least: what the hash gives.
const KEY_MIN: usize = 32;

/// What a token begins with; another format would have another word.
const FORMAT: &str = "ion1";

/// Times a write is tried again when another one came first.
const RACES_MAX: usize = 8;

/// One attempt's ticket.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ticket {
    /// `<job id>-<attempt>`.
    pub id: String,
    /// Raised by every write.
    pub version: i64,
    /// When it was written.
    #[serde(default)]
    pub offered: Millis,
    /// Who commits, and what it may.
    pub origin: Origin,
    /// The event it works on.
    pub event_id: EventId,
    /// The events that a gathering job gathered, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gathered: Option<Vec<EventId>>,
    /// What it finds in its tree of older Ion's ways.
    pub older: Older,
    /// What its module says that it may take.
    #[serde(default)]
    pub limits: SetLimits,
    /// The pod that has come with the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
    /// How its filesystem work ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ended>,
}

/// A pod that has a ticket's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// The uid that no other pod ever has.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Where it is.
    pub node: String,
    /// Its volume that holds the tree: a second one would be a second tree of one attempt.
    pub volume: String,
}

/// How an attempt's filesystem work ended, as its node says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The pod has ended and everything was decided upon.
    Outcome(Outcome),
    /// The tree went away below the pod, and why.
    Lost(String),
}

/// What a token names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The job.
    pub job: JobId,
    /// Its attempt.
    pub attempt: u32,
    /// The namespace that its pod is in.
    pub namespace: String,
    /// When it has expired.
    pub expires: Millis,
}

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not of this form.
    #[error("the token is none of Ion's; only pods that a dispatcher starts have one")]
    Malformed,
    /// Not signed with this key, or changed since.
    #[error(
        "the token is not signed by a dispatcher of this cluster (do all have the same ION_TICKET_KEY?)"
    )]
    Forged,
    /// Its time is over.
    #[error(
        "the token has expired: the pod came too late, or the clock of its node or dispatcher is wrong"
    )]
    Expired,
    /// It was made for pods elsewhere.
    #[error("the token is of another namespace; it counts only where its dispatcher starts pods")]
    Elsewhere,
}

/// Why there is no tree for a pod.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// The documents.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The attempt is over, or never was.
    #[error("attempt {0} does not wait for a pod any more: it is over, and its pod is of no use")]
    Gone(String),
    /// Another pod or volume came before.
    #[error("attempt {id} belongs to volume {volume:?} of pod {pod:?}; no other one has its tree")]
    Taken {
        /// The ticket.
        id: String,
        /// The pod that has it.
        pod: String,
        /// And its volume.
        volume: String,
    },
}

/// What dispatchers sign tokens with, and nodes check them with. Both have it, nobody else.
#[derive(Clone)]
pub struct TicketKey(Hmac<Sha256>);

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey")
    }
}

impl TicketKey {
    /// The key of this text.
    ///
    /// # Errors
    /// In words, when it is too short to be a secret.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() < KEY_MIN {
            return Err(format!(
                "the key of tickets has {} bytes; {KEY_MIN} or more are needed: `openssl rand -hex 32` makes such",
                text.len()
            ));
        }
        Hmac::new_from_slice(text.as_bytes()).map(Self).map_err(|error| error.to_string())
    }

    /// The token of these claims: text without a space, to be seen by whoever may see the pod.
    pub fn sign(&self, claims: &Claims) -> String {
        let text = said(claims);
        let signature = self.signed(&text).finalize().into_bytes();
        format!("{text}.{}", hex(&signature))
    }

    fn signed(&self, text: &str) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(text.as_bytes());
        mac
    }

    /// What a token names, if it is good at `now` for a pod of this namespace.
    ///
    /// # Errors
    /// Why not.
    pub fn verify(&self, token: &str, namespace: &str, now: Millis) -> Result<Claims, TokenError> {
        let (text, signature) = token.trim().rsplit_once('.').ok_or(TokenError::Malformed)?;
        let claims = claims(text).ok_or(TokenError::Malformed)?;
        let signature = unhex(signature).ok_or(TokenError::Malformed)?;
        // In a time that tells nothing of the right one.
        self.signed(text).verify_slice(&signature).map_err(|_| TokenError::Forged)?;
        match claims {
            claims if claims.expires <= now => Err(TokenError::Expired),
            claims if claims.namespace != namespace => Err(TokenError::Elsewhere),
            claims => Ok(claims),
        }
    }
}

fn said(claims: &Claims) -> String {
    let Claims { job, attempt, namespace, expires } = claims;
    format!("{FORMAT}.{job}.{attempt}.{namespace}.{expires}")
}

fn claims(text: &str) -> Option<Claims> {
    let mut parts = text.split('.');
    let mut next = || parts.next();
    let (format, job, attempt, namespace, expires) = (next()?, next()?, next()?, next()?, next()?);
    let claims = Claims {
        job: JobId::new(job),
        attempt: attempt.parse().ok()?,
        namespace: namespace.to_owned(),
        expires: expires.parse().ok()?,
    };
    // Said again it is the same text, so nothing of it was left unread.
    (format == FORMAT && said(&claims) == text).then_some(claims)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
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
    /// The id of an attempt's ticket.
    pub fn id(job: &JobId, attempt: u32) -> String {
        format!("{job}-{attempt}")
    }

    /// Writes it, for pods to come. One that is there already, from a dispatcher that died, stays
    /// as it is.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn offer(&self, plane: &DataPlane) -> Result<(), StoreError> {
        match plane.documents.insert(Collection::Tickets, encode(self), None).await? {
            Inserted::New | Inserted::Existing(_) => Ok(()),
        }
    }

    /// The ticket of this id.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn find(plane: &DataPlane, id: &str) -> Result<Option<Self>, StoreError> {
        plane.documents.get_as(Collection::Tickets, id).await
    }

    /// Gives the tree to this pod's volume, for the first time or again.
    ///
    /// # Errors
    /// [`TicketError::Taken`] when another one has it; [`TicketError::Gone`] when there is nothing
    /// to give any more.
    pub async fn claim(plane: &DataPlane, id: &str, pod: &Pod) -> Result<Self, TicketError> {
        let found = Self::change(plane, id, |ticket| match &ticket.pod {
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

    /// Says how it ended, unless that was said.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn end(plane: &DataPlane, id: &str, ended: &Ended) -> Result<(), StoreError> {
        let said = Self::change(plane, id, |ticket| {
            let first = ticket.ended.is_none();
            if first {
                ticket.ended = Some(ended.clone());
            }
            first
        });
        said.await.map(drop)
    }

    /// Removes it: nobody needs it any more.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn withdraw(plane: &DataPlane, id: &str) -> Result<(), StoreError> {
        plane.documents.delete(Collection::Tickets, id, vec![]).await.map(drop)
    }

    /// Removes the tickets of attempts that have ended, whose dispatchers died before they did so,
    /// if they are older than `grace`; gives how many. For `ion gc`.
    ///
    /// Tickets are read first, then the job of each. An attempt's ticket is written after the
    /// ledger says that it starts, and one that has ended never starts again: a job that is not
    /// active, or at another attempt, is done with that ticket.
    ///
    /// # Errors
    /// When a store fails; what was removed until then is removed.
    pub async fn collect(
        plane: &DataPlane,
        grace: Duration,
        how: Collect,
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
            if how == Collect::Remove {
                Self::withdraw(plane, &ticket.id).await?;
            }
            collected += 1;
        }
        Ok(collected)
    }

    /// The ticket after `change`, or as it is if that says there is nothing to write.
    async fn change(
        plane: &DataPlane,
        id: &str,
        change: impl Fn(&mut Self) -> bool,
    ) -> Result<Option<Self>, StoreError> {
        for _ in 0..RACES_MAX {
            let Some(mut ticket) = Self::find(plane, id).await? else { return Ok(None) };
            let expect: Vec<Equals> = vec![("version", json!(ticket.version))];
            if !change(&mut ticket) {
                return Ok(Some(ticket));
            }
            ticket.version += 1;
            if plane.documents.replace(Collection::Tickets, encode(&ticket), expect, None).await? {
                return Ok(Some(ticket));
            }
        }
        Err(StoreError::Unavailable {
            store: Collection::Tickets.as_str().to_owned(),
            what: format!("changing {id}"),
            source: "others kept changing it first".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims {
        let job = JobId::new("ab5ca29f-2f0b-5f7a-9b2c-0a1b2c3d4e5f");
        Claims { job, attempt: 3, namespace: "media".into(), expires: 2000 }
    }

    #[test]
    fn a_token_is_good_for_what_it_says_until_it_expires() {
        let key = TicketKey::new(&"k".repeat(32)).unwrap();
        let token = key.sign(&claims());
        assert_eq!(key.verify(&token, "media", 1999), Ok(claims()));
        assert_eq!(key.verify(&token, "media", 2000), Err(TokenError::Expired));
        assert_eq!(key.verify(&token, "other", 1999), Err(TokenError::Elsewhere));
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
        assert!(TicketKey::new("short").unwrap_err().contains("openssl rand"));
        assert_eq!(format!("{key:?}"), "TicketKey");
    }
}
