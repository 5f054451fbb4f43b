//! Several jobs by one call of the store: a batch is claimed, looked after and ended so.

use std::collections::HashMap;

use ion_model::clock::Millis;
use ion_model::errors::error_chain;
use ion_model::event::{DocumentType, Event, PublicationState};
use ion_model::id::{EventId, JobId};
use ion_model::record::JobRecord;
use ion_model::text::quote;
use ion_stores::{Collection, Durability, ID_BYTES_MAX, Inserted, StoreError, decode, encode};
use ion_system::failpoint;
use serde_json::{Value, json};

use super::{
    ClaimOutcome, Ledger, LedgerError, MessageSubject, apply_transition, claimed_record,
    durability_of,
};
use crate::job::Transition;
use crate::pipeline::Module;

impl Ledger {
    /// Claims the jobs of a module on these events like [`Ledger::claim`], all by one call of the
    /// store. Returns the outcomes in the order of the events.
    ///
    /// # Errors
    /// When the store fails. An existing record that cannot be read is an error of its own outcome.
    pub async fn claim_all(
        &self,
        module: &Module,
        events: &[Event],
        holder: Option<(&str, Millis)>,
    ) -> Result<Vec<Result<ClaimOutcome, StoreError>>, LedgerError> {
        let record = |event| claimed_record(module, event, holder);
        let records = events.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        let documents = records.iter().map(|record| (Collection::Jobs, encode(record))).collect();
        // A power failure that loses these inserts also loses the acknowledgements of the messages
        // and all that the jobs did. The jobs are then claimed again.
        let durability = Durability::BeforeNextMessage;
        let inserted = self.plane.documents.insert_all(documents, None, durability).await?;
        failpoint::hit("claim.inserted");
        let outcome = |(record, inserted)| match inserted {
            Inserted::New => Ok(ClaimOutcome::Won(record)),
            Inserted::Existing(existing) => {
                decode(Collection::Jobs, existing).map(ClaimOutcome::Known)
            }
        };
        Ok(records.into_iter().zip(inserted).map(outcome).collect())
    }

    /// Applies to each job what happened to it, like [`Ledger::advance`], all by one call of the store
    /// where nobody else has written the records meanwhile. Returns the outcomes in the order of
    /// the jobs.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn advance_all(
        &self,
        happened: &[(JobRecord, Transition)],
    ) -> Result<Vec<Result<JobRecord, LedgerError>>, LedgerError> {
        let mut outcomes = Vec::with_capacity(happened.len());
        let (mut replacements, mut durability) = (Vec::new(), Durability::WithNextSync);
        for (job, happening) in happened {
            let after = apply_transition(job, happening);
            if let Ok(after) = &after {
                let expect = vec![("version", json!(job.version))];
                durability = durability.stronger(durability_of(job, after));
                replacements.push((encode(after), expect));
            }
            outcomes.push(after);
        }
        let documents = &self.plane.documents;
        let replaced = documents.replace_all(Collection::Jobs, replacements, durability).await?;
        failpoint::hit("ledger.written");
        let mut replaced = replaced.into_iter();
        for ((job, happening), outcome) in happened.iter().zip(&mut outcomes) {
            if outcome.is_ok() && replaced.next() == Some(false) {
                *outcome = match self.advance(job, happening).await {
                    Err(LedgerError::Store(error)) => return Err(error.into()),
                    advanced => advanced,
                };
            }
        }
        Ok(outcomes)
    }

    /// Claims those of these queued jobs that no other dispatcher has claimed, by one call of the
    /// store.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn claim_queued_all(
        &self,
        due: &[JobRecord],
        holder: &str,
        lease: Millis,
    ) -> Result<Vec<JobRecord>, LedgerError> {
        let happening = Transition::Claimed { holder: holder.to_owned(), lease };
        let claim = |job: &JobRecord| apply_transition(job, &happening);
        let claimed = due.iter().map(claim).collect::<Result<Vec<_>, _>>()?;
        let replacement = |(before, after): (&JobRecord, &JobRecord)| {
            (encode(after), vec![("version", json!(before.version))])
        };
        let replacements = due.iter().zip(&claimed).map(replacement).collect();
        let documents = &self.plane.documents;
        let durability = Durability::BeforeNextMessage;
        let replaced = documents.replace_all(Collection::Jobs, replacements, durability).await?;
        failpoint::hit("claim.queued-taken");
        let claimed = claimed.into_iter().zip(replaced);
        Ok(claimed.filter_map(|(job, replaced)| replaced.then_some(job)).collect())
    }

    /// Returns what messages name, in their order. A message may contain any id: the id was chosen by
    /// a client that may write to the broker.
    ///
    /// # Errors
    /// When the store cannot be read; never because of the content of a document.
    pub async fn message_subjects(
        &self,
        ids: &[EventId],
    ) -> Result<Vec<MessageSubject>, StoreError> {
        let readable = ids.iter().filter(|id| id.as_str().len() <= ID_BYTES_MAX);
        let readable = readable.map(EventId::to_string).collect();
        let mut documents = self.plane.documents.get_all(Collection::Events, readable).await?;
        let subject = |id: &EventId| subject_of(id, documents.remove(id.as_str()));
        Ok(ids.iter().map(subject).collect())
    }

    /// Returns the events of these ids that can be read, staged or not, by their ids. The others are
    /// left out.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn events(&self, ids: &[EventId]) -> Result<HashMap<EventId, Event>, StoreError> {
        let ids = ids.iter().map(EventId::to_string).collect();
        let documents = self.plane.documents.get_all(Collection::Events, ids).await?;
        let read = |document| decode::<Event>(Collection::Events, document).ok();
        Ok(documents
            .into_values()
            .filter_map(read)
            .map(|event| (event.id.clone(), event))
            .collect())
    }

    /// Returns the records of these jobs that can be read, by their ids.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn get_all(&self, ids: &[JobId]) -> Result<HashMap<JobId, JobRecord>, StoreError> {
        let ids = ids.iter().map(JobId::to_string).collect();
        let documents = self.plane.documents.get_all(Collection::Jobs, ids).await?;
        let read = |document| decode::<JobRecord>(Collection::Jobs, document).ok();
        Ok(documents.into_values().filter_map(read).map(|job| (job.id.clone(), job)).collect())
    }
}

/// Returns what a message with this event id names; `document` is what the store has under the id.
fn subject_of(id: &EventId, document: Option<Value>) -> MessageSubject {
    if id.as_str().len() > ID_BYTES_MAX {
        let id = quote(id.as_str());
        return MessageSubject::NoEvent(format!("{id} is too long for an event's id"));
    }
    let Some(document) = document else {
        // The document is inserted before its message is published, so this event never existed, or
        // was removed.
        return MessageSubject::NoEvent(format!("event {id} is not in the document store"));
    };
    let event: Event = match decode(Collection::Events, document) {
        Ok(event) => event,
        Err(error) => return MessageSubject::NoEvent(error_chain(&error)),
    };
    let context = &event.context;
    match event.publication {
        _ if context.document_type != DocumentType::EventMeta => {
            let kind = context.document_type.as_str();
            MessageSubject::NoEvent(format!("document {id} is no event: its type is {kind:?}"))
        }
        _ if context.correlation_id.as_str().len() > ID_BYTES_MAX => {
            MessageSubject::NoEvent(format!("the correlation of event {id} is too long for an id"))
        }
        PublicationState::Staged => MessageSubject::NotYet,
        PublicationState::Unpublished | PublicationState::Published => {
            MessageSubject::Event(Box::new(event))
        }
    }
}
