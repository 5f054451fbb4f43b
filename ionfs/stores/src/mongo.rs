//! Stores documents on MongoDB, and on servers that speak its protocol (Azure Cosmos DB's MongoDB
//! API).
//!
//! # How it works
//! A document's `id` is also its `_id`, so that one insert is a claim or a commit. A write is
//! acknowledged when it is in the journals of a majority of the servers, so it is durable at once
//! whatever its caller asks for, and reads go to the primary: what one dispatcher wrote, the next
//! one reads. Nothing needs a transaction over several documents, a change stream or one particular
//! kind of server. `correlationId` can be the shard key.
//!
//! # What it never does
//! It never waits without a bound: each call may take [`ANSWER_WAIT`]. A write that timed out may
//! have happened all the same. Its caller repeats it and finds the document.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use futures_util::future::try_join_all;
use ion_model::term::IndexRange;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::options::{
    Acknowledgment, ClientOptions, IndexOptions, ReadConcern, ReadPreference, SelectionCriteria,
    WriteConcern,
};
use mongodb::{Client, Database, IndexModel};
use serde_json::{Map, Value};

use super::url::without_credentials;
use super::{
    Collection, Documents, Durability, Equals, Guard, Inserted, Query, QueryPart, StoreError,
    TERMS_FIELD, TallyRow, indexes,
};

/// How long one call may take. A replica set elects a new primary in about ten seconds; after that
/// time the caller tries again.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long making the indexes of a large collection may take: a server makes some hundred thousand
/// entries in a second.
const INDEXES_WAIT: Duration = Duration::from_secs(2 * 60 * 60);

/// How often the log says that indexes are being made.
const INDEXES_REPORT: Duration = Duration::from_secs(10);

/// The server's code for a collection that does not exist (NamespaceNotFound).
const NO_COLLECTION: i32 = 26;

/// How long to look for a server, and how long to connect to it. Shorter than [`ANSWER_WAIT`], so
/// that the caller receives the driver's own error.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// How long closing the client may take. A server that is unavailable drops the session by itself.
const FAREWELL_WAIT: Duration = Duration::from_secs(1);

/// The database if the URL names none.
const DATABASE: &str = "ion";

/// MongoDB's error code for a duplicate key.
const DUPLICATE_KEY: i32 = 11000;

/// MongoDB's error codes for an index that exists under another name, or with other keys or
/// options.
const INDEX_CONFLICTS: [i32; 2] = [85, 86];

/// A MongoDB database as a document store.
#[derive(Debug)]
pub struct Mongo {
    name: String,
    database: Database,
}

impl Mongo {
    /// Connects, and makes the indexes that are missing.
    ///
    /// # Errors
    /// [`StoreError::Url`] for a URL that is wrong; [`StoreError::Unavailable`] when the server
    /// does not answer or refuses.
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        let name = without_credentials(url);
        let refused = |error: Error| StoreError::Url {
            url: name.clone(),
            kind: "document",
            reason: format!("{}; as in mongodb://host:27017/ion", error_line(&error)),
        };
        let mut options = ClientOptions::parse(url).await.map_err(refused)?;
        options.app_name.get_or_insert_with(|| "ion".into());
        options.server_selection_timeout.get_or_insert(CONNECT_WAIT);
        options.connect_timeout.get_or_insert(CONNECT_WAIT);
        // The protocol of commits and claims depends on these three options, so a URL may not
        // weaken them.
        options.write_concern =
            Some(WriteConcern::builder().w(Acknowledgment::Majority).journal(true).build());
        options.read_concern = Some(ReadConcern::majority());
        options.selection_criteria =
            Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
        let database = options.default_database.clone().unwrap_or_else(|| DATABASE.to_owned());
        let client = Client::with_options(options).map_err(refused)?;
        let store = Self { database: client.database(&database), name };
        for collection in Collection::ALL {
            store.make_indexes(collection).await?;
        }
        Ok(store)
    }

    /// Makes the indexes that a collection does not have yet. On a large collection this takes
    /// minutes, and the log says so.
    async fn make_indexes(&self, collection: Collection) -> Result<(), StoreError> {
        let models: Vec<IndexModel> =
            indexes(collection).iter().map(|fields| index_on(fields)).collect();
        if models.is_empty() {
            return Ok(());
        }
        let existing = self.existing_indexes(collection);
        let existing = self.with_deadline("looking at indexes", existing).await?;
        let is_there = |model: &IndexModel| {
            let same = existing.iter().find(|index| have_same_keys(&index.keys, &model.keys));
            same.is_some_and(is_complete)
        };
        if models.iter().all(is_there) {
            return Ok(());
        }
        let make = async {
            match self.collection(collection).create_indexes(models.clone()).await {
                Err(error) if is_index_conflict(&error) => {
                    self.make_missing_indexes(collection, models).await
                }
                made => made.map(drop),
            }
        };
        tokio::pin!(make);
        let began = Instant::now();
        while began.elapsed() < INDEXES_WAIT {
            match tokio::time::timeout(INDEXES_REPORT, &mut make).await {
                Ok(made) => {
                    return made
                        .map_err(|error| self.unavailable("making indexes", error_line(&error)));
                }
                Err(_) => tracing::info!(
                    collection = collection.as_str(),
                    seconds = began.elapsed().as_secs(),
                    "bringing the plane's indexes up to date"
                ),
            }
        }
        Err(self.unavailable("making indexes", format!("not made in {} s", INDEXES_WAIT.as_secs())))
    }

    /// Returns the indexes of a collection; none if there is no such collection yet.
    async fn existing_indexes(&self, collection: Collection) -> Result<Vec<IndexModel>, Error> {
        match self.collection(collection).list_indexes().await {
            Ok(indexes) => indexes.try_collect().await,
            Err(error) if is_no_collection(&error) => Ok(vec![]),
            Err(error) => Err(error),
        }
    }

    /// Makes the indexes whose keys no existing index has. An operator may have made an index under
    /// another name. An index with the same keys serves as well, and MongoDB refuses a second one.
    async fn make_missing_indexes(
        &self,
        collection: Collection,
        models: Vec<IndexModel>,
    ) -> Result<(), Error> {
        let target = self.collection(collection);
        let there = self.existing_indexes(collection).await?;
        for model in models {
            if let Some(same) = there.iter().find(|index| have_same_keys(&index.keys, &model.keys))
            {
                let name = index_name(same);
                match is_complete(same) {
                    true => {
                        tracing::debug!(
                            collection = collection.as_str(),
                            name,
                            "an existing index with the same keys is used"
                        )
                    }
                    false => tracing::warn!(
                        collection = collection.as_str(),
                        name,
                        "an existing index holds only a part of the documents, so that Ion's \
                         queries read the whole collection; remove the index, and Ion makes its \
                         own at the next start"
                    ),
                }
                continue;
            }
            let made = target.create_index(model.clone()).await;
            match made {
                // An index with other keys has this name.
                Err(error) if is_index_conflict(&error) => {
                    target
                        .create_index(new_index(
                            model.keys.clone(),
                            format!("{}_own", index_name(&model)),
                        ))
                        .await?;
                }
                made => drop(made?),
            }
        }
        Ok(())
    }

    /// Returns the server's query plan, the output of its `explain`.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn explain(&self, query: &Query) -> Result<Value, StoreError> {
        let find = doc! {
            "find": query.collection.as_str(),
            "filter": query_filter(query),
            "sort": query_order(query),
        };
        let explain =
            self.database.run_command(doc! {"explain": find, "verbosity": "queryPlanner"});
        Ok(to_json(Bson::Document(self.with_deadline("explaining a query", explain).await?)))
    }

    /// Drops the whole database, with all documents in it.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub async fn drop_database(&self) -> Result<(), StoreError> {
        self.with_deadline("dropping the database", self.database.drop()).await
    }

    fn collection(&self, collection: Collection) -> mongodb::Collection<Document> {
        self.database.collection(collection.as_str())
    }

    fn unavailable(
        &self,
        what: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        StoreError::Unavailable {
            store: self.name.clone(),
            what: what.to_owned(),
            source: source.into(),
        }
    }

    /// Waits for the server's answer, for at most [`ANSWER_WAIT`]. `what` names the act in an
    /// error.
    async fn with_deadline<T>(
        &self,
        what: &str,
        call: impl IntoFuture<Output = Result<T, Error>>,
    ) -> Result<T, StoreError> {
        let answer = tokio::time::timeout(ANSWER_WAIT, call.into_future()).await.map_err(|_| {
            self.unavailable(what, format!("no answer within {} s", ANSWER_WAIT.as_secs()))
        })?;
        answer.map_err(|error| self.unavailable(what, error_line(&error)))
    }

    /// Fails unless each document of the guard exists and has the required fields. This is checked
    /// just before the write, not together with it. For a lease that is enough: its holder gives it
    /// up by its own clock well before others may take it, so no other attempt begins in between.
    /// The registry may change in between: then the write counts as made before the change.
    async fn check_guard(&self, guard: Option<Guard>) -> Result<(), StoreError> {
        let conditions = guard.iter().flat_map(Guard::conditions).map(|condition| async move {
            let filter = equals_filter(Some(&condition.id), &condition.equals);
            let target = self.collection(condition.collection);
            let found = target.find_one(filter).projection(doc! {"_id": 1});
            let found = self.with_deadline("checking what a write depends on", found).await?;
            Ok(found.is_none().then_some(condition.collection))
        });
        match try_join_all(conditions).await?.into_iter().flatten().next() {
            Some(changed) => Err(StoreError::Fenced(changed)),
            None => Ok(()),
        }
    }
}

impl Mongo {
    /// Inserts those of these documents whose ids are new. Returns the existing document for each of
    /// the others, with its place in the list.
    async fn insert_new(
        &self,
        collection: Collection,
        documents: &[Document],
    ) -> Result<Vec<(usize, Value)>, StoreError> {
        const WHAT: &str = "inserting documents";
        let target = self.collection(collection);
        let insert = async {
            match target.insert_many(documents).ordered(false).await {
                Ok(_) => Ok(vec![]),
                Err(error) => duplicates(&error).ok_or(error),
            }
        };
        let existing = self.with_deadline(WHAT, insert).await?;
        if existing.is_empty() {
            return Ok(vec![]);
        }
        let id = |place: &usize| documents[*place].get_str("_id").unwrap_or_default().to_owned();
        let mut found = self.get_all(collection, existing.iter().map(id).collect()).await?;
        let with_document = |place: usize| match found.remove(&id(&place)) {
            Some(document) => Ok((place, document)),
            None => Err(self.unavailable(
                WHAT,
                "a document with the same id existed, and was removed meanwhile",
            )),
        };
        existing.into_iter().map(with_document).collect()
    }
}

/// Returns the places of the documents that an insert of many did not insert because their ids
/// existed; none if it failed in another way, too.
fn duplicates(error: &Error) -> Option<Vec<usize>> {
    let ErrorKind::InsertMany(failed) = error.kind.as_ref() else { return None };
    let errors = failed.write_errors.as_ref().filter(|_| failed.write_concern_error.is_none())?;
    errors.iter().map(|error| (error.code == DUPLICATE_KEY).then_some(error.index)).collect()
}

/// Returns the driver's error in one line, without the topology that the driver repeats in it.
fn error_line(error: &Error) -> String {
    match error.kind.as_ref() {
        ErrorKind::ServerSelection { message, .. } => {
            let message = message.split("Topology:").nth(1).unwrap_or(message).trim();
            format!("no server can be reached: {message}")
        }
        kind => kind.to_string(),
    }
}

fn new_index(keys: Document, name: String) -> IndexModel {
    IndexModel::builder().keys(keys).options(IndexOptions::builder().name(name).build()).build()
}

/// Returns the index of these fields.
fn index_on(fields: &[&'static str]) -> IndexModel {
    // `_id` comes last: documents with equal values are sorted by it.
    let keys = ascending(fields.iter().copied().chain(["_id"]));
    new_index(keys, format!("ion_{}", fields.join("_").replace('.', "_")))
}

/// Returns whether a collection does not exist.
fn is_no_collection(error: &Error) -> bool {
    matches!(error.kind.as_ref(), ErrorKind::Command(command) if command.code == NO_COLLECTION)
}

fn index_name(index: &IndexModel) -> &str {
    index.options.as_ref().and_then(|options| options.name.as_deref()).unwrap_or_default()
}

/// Returns whether the index holds every document, and the server may use it for any query.
fn is_complete(index: &IndexModel) -> bool {
    index.options.as_ref().is_none_or(|options| {
        options.partial_filter_expression.is_none()
            && options.sparse != Some(true)
            && options.hidden != Some(true)
            && options.collation.is_none()
    })
}

/// Returns whether two indexes have the same fields in the same order and directions, whatever
/// number type the directions have.
fn have_same_keys(one: &Document, other: &Document) -> bool {
    let direction = |value: &Bson| match value {
        Bson::Int32(number) => Some(f64::from(*number)),
        Bson::Int64(number) => Some(if *number < 0 { -1.0 } else { 1.0 }),
        Bson::Double(number) => Some(*number),
        _ => None,
    };
    let parts = |keys: &Document| -> Vec<(String, Option<f64>)> {
        keys.iter().map(|(field, value)| (field.clone(), direction(value))).collect()
    };
    let one = parts(one);
    one == parts(other) && one.iter().all(|(_, direction)| direction.is_some())
}

/// Returns whether an existing index has the same keys and another name, or the same name and other
/// keys or options.
fn is_index_conflict(error: &Error) -> bool {
    let ErrorKind::Command(refused) = error.kind.as_ref() else { return false };
    INDEX_CONFLICTS.contains(&refused.code)
}

fn is_duplicate(error: &Error) -> bool {
    let ErrorKind::Write(WriteFailure::WriteError(write)) = error.kind.as_ref() else {
        return false;
    };
    write.code == DUPLICATE_KEY
}

/// Returns a filter for these fields. In MongoDB, as in the trait, a missing field equals null.
fn equals_filter(id: Option<&str>, equals: &[Equals]) -> Document {
    let id = id.map(|id| ("_id".to_owned(), Bson::String(id.to_owned())));
    let fields = equals.iter().map(|(field, value)| ((*field).to_owned(), to_bson(value.clone())));
    id.into_iter().chain(fields).collect()
}

/// Returns the filter that selects one document, with the shard key where the document has it.
fn document_filter(collection: Collection, document: &Value, equals: &[Equals]) -> Document {
    let mut filter = equals_filter(document["id"].as_str(), equals);
    let shard_key = match collection {
        Collection::Events => {
            Some(("context.correlationId", &document["context"]["correlationId"]))
        }
        Collection::Jobs => Some(("correlationId", &document["correlationId"])),
        Collection::Modules
        | Collection::Dispatchers
        | Collection::Tickets
        | Collection::Plane
        | Collection::Sources => None,
    };
    if let Some((field, Value::String(correlation))) = shard_key {
        filter.insert(field, correlation.clone());
    }
    filter
}

fn query_filter(query: &Query) -> Document {
    let mut filter = equals_filter(None, &query.equals);
    if let Some((field, values)) = &query.one_of {
        let values: Vec<Bson> = values.iter().cloned().map(to_bson).collect();
        filter.insert(*field, doc! {"$in": values});
    }
    if let Some(range) = &query.range {
        let field = if range.field == "id" { "_id" } else { range.field };
        let mut bounds = doc! {"$gte": to_bson(range.from.clone())};
        bounds.extend(range.below.clone().map(|below| ("$lt".to_owned(), to_bson(below))));
        filter.insert(field, bounds);
    }
    if !query.terms.is_empty() {
        let condition = |range: &IndexRange| match range {
            IndexRange::Is(text) => doc! {TERMS_FIELD: text},
            IndexRange::Between(from, below) => {
                doc! {TERMS_FIELD: {"$elemMatch": {"$gte": from, "$lt": below}}}
            }
        };
        let conditions: Vec<Document> = query.terms.iter().map(condition).collect();
        filter.insert("$and", conditions);
    }
    filter
}

/// Returns the filter of a part of a query's results.
fn part_filter(query: &Query, part: QueryPart<'_>) -> Document {
    let mut filter = query_filter(query);
    let field = query.order_by.unwrap_or("_id");
    let (from, after) = if query.descending { ("$lte", "$lt") } else { ("$gte", "$gt") };
    let conditions = match part {
        QueryPart::All => return filter,
        QueryPart::WithField => vec![doc! {field: {"$ne": Bson::Null}}],
        QueryPart::WithoutField(None) => vec![doc! {field: Bson::Null}],
        QueryPart::WithoutField(Some(id)) => {
            vec![doc! {field: Bson::Null}, doc! {"_id": {after: id}}]
        }
        QueryPart::After(_, id) if query.order_by.is_none() => vec![doc! {"_id": {after: id}}],
        QueryPart::After(value, id) => {
            let value = to_bson(value.clone());
            // The first condition is a range of the index. The second leaves out the documents at
            // its beginning that the previous page has returned.
            let range = doc! {field: {from: value.clone()}};
            let rest = doc! {"$or": [{field: {after: value}}, {"_id": {after: id}}]};
            vec![range, rest]
        }
    };
    // The conditions on terms are in the same list.
    match filter.get_array_mut("$and") {
        Ok(all) => all.extend(conditions.into_iter().map(Bson::Document)),
        Err(_) => drop(filter.insert("$and", conditions)),
    }
    filter
}

fn query_order(query: &Query) -> Document {
    let mut order = ascending(query.order_by.into_iter().chain(["_id"]));
    if query.descending {
        order.iter_mut().for_each(|(_, direction)| *direction = Bson::Int32(-1));
    }
    order
}

fn ascending(fields: impl Iterator<Item = &'static str>) -> Document {
    fields.map(|field| (field.to_owned(), Bson::Int32(1))).collect()
}

/// Converts JSON to BSON, key by key. Keys such as `$oid` in a module's values have no special
/// meaning.
fn to_bson(value: Value) -> Bson {
    match value {
        Value::Null => Bson::Null,
        Value::Bool(flag) => Bson::Boolean(flag),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Bson::Int64(integer),
            None => Bson::Double(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Bson::String(text),
        Value::Array(values) => Bson::Array(values.into_iter().map(to_bson).collect()),
        Value::Object(fields) => {
            Bson::Document(fields.into_iter().map(|(key, value)| (key, to_bson(value))).collect())
        }
    }
}

fn to_json(bson: Bson) -> Value {
    match bson {
        Bson::Array(values) => values.into_iter().map(to_json).collect(),
        Bson::Document(fields) => {
            Value::Object(fields.into_iter().map(|(key, value)| (key, to_json(value))).collect())
        }
        Bson::Null => Value::Null,
        Bson::Boolean(flag) => flag.into(),
        Bson::Int32(number) => number.into(),
        Bson::Int64(number) => number.into(),
        Bson::Double(number) => number.into(),
        Bson::String(text) => text.into(),
        // Other tools wrote these types: dates, object ids and the like. They become readable text.
        other => other.to_string().into(),
    }
}

/// Returns the stored form of a document: `_id` is a copy of its `id`, and `id` stays because older
/// Ion's tools read it.
fn to_stored(document: Value) -> Document {
    let Bson::Document(document) = to_bson(document) else { return Document::new() };
    let id = document.get("id").cloned().map(|id| ("_id".to_owned(), id));
    id.into_iter().chain(document).collect()
}

fn from_stored(mut document: Document) -> Value {
    document.remove("_id");
    let fields: Map<String, Value> =
        document.into_iter().map(|(key, value)| (key, to_json(value))).collect();
    Value::Object(fields)
}

#[async_trait]
impl Documents for Mongo {
    async fn insert(
        &self,
        collection: Collection,
        document: Value,
        guard: Option<Guard>,
        _durability: Durability,
    ) -> Result<Inserted, StoreError> {
        const WHAT: &str = "inserting a document";
        self.check_guard(guard).await?;
        let id = document["id"].as_str().unwrap_or_default().to_owned();
        let (target, document) = (self.collection(collection), to_stored(document));
        let insert = async {
            match target.insert_one(&document).await {
                Ok(_) => Ok(true),
                Err(error) if is_duplicate(&error) => Ok(false),
                Err(error) => Err(error),
            }
        };
        if self.with_deadline(WHAT, insert).await? {
            return Ok(Inserted::New);
        }
        match self.get(collection, &id).await? {
            Some(existing) => Ok(Inserted::Existing(existing)),
            None => {
                Err(self
                    .unavailable(WHAT, "a document with its id existed, and was removed meanwhile"))
            }
        }
    }

    async fn insert_all(
        &self,
        documents: Vec<(Collection, Value)>,
        guard: Option<Guard>,
        _durability: Durability,
    ) -> Result<Vec<Inserted>, StoreError> {
        self.check_guard(guard).await?;
        let collections: HashSet<Collection> = documents.iter().map(|(of, _)| *of).collect();
        let mut outcomes = vec![Inserted::New; documents.len()];
        let mut documents: Vec<_> = documents.into_iter().map(Some).collect();
        for collection in collections {
            let mut places = Vec::new();
            let mut stored = Vec::new();
            for (place, document) in documents.iter_mut().enumerate() {
                if let Some((_, document)) = document.take_if(|(of, _)| *of == collection) {
                    places.push(place);
                    stored.push(to_stored(document));
                }
            }
            for (place, existing) in self.insert_new(collection, &stored).await? {
                outcomes[places[place]] = Inserted::Existing(existing);
            }
        }
        Ok(outcomes)
    }

    async fn replace(
        &self,
        collection: Collection,
        document: Value,
        expect: Vec<Equals>,
        guard: Option<Guard>,
        _durability: Durability,
    ) -> Result<bool, StoreError> {
        self.check_guard(guard).await?;
        let key = document_filter(collection, &document, &expect);
        let (target, document) = (self.collection(collection), to_stored(document));
        let replaced =
            self.with_deadline("replacing a document", target.replace_one(key, &document)).await?;
        Ok(replaced.matched_count == 1)
    }

    async fn get(&self, collection: Collection, id: &str) -> Result<Option<Value>, StoreError> {
        let found = self
            .with_deadline(
                "reading a document",
                self.collection(collection).find_one(doc! {"_id": id}),
            )
            .await?;
        Ok(found.map(from_stored))
    }

    async fn get_all(
        &self,
        collection: Collection,
        ids: Vec<String>,
    ) -> Result<HashMap<String, Value>, StoreError> {
        const WHAT: &str = "reading documents";
        let target = self.collection(collection);
        let found = target.find(doc! {"_id": {"$in": ids}});
        let mut cursor = self.with_deadline(WHAT, found).await?;
        let mut documents = HashMap::new();
        while let Some(document) = self.with_deadline(WHAT, cursor.try_next()).await? {
            let document = from_stored(document);
            documents.insert(document["id"].as_str().unwrap_or_default().to_owned(), document);
        }
        Ok(documents)
    }

    async fn find_existing_ids(
        &self,
        collection: Collection,
        ids: Vec<String>,
    ) -> Result<HashSet<String>, StoreError> {
        const WHAT: &str = "looking for documents";
        let target = self.collection(collection);
        let found = target.find(doc! {"_id": {"$in": ids}}).projection(doc! {"_id": 1});
        let cursor = self.with_deadline(WHAT, found).await?;
        let found: Vec<Document> = self.with_deadline(WHAT, cursor.try_collect()).await?;
        Ok(found
            .iter()
            .filter_map(|document| Some(document.get_str("_id").ok()?.to_owned()))
            .collect())
    }

    async fn find(&self, query: Query) -> Result<Vec<Value>, StoreError> {
        let target = self.collection(query.collection);
        let mut documents = Vec::new();
        for part in query.parts() {
            let limit = i64::try_from(query.limit - documents.len()).unwrap_or(i64::MAX);
            let filter = part_filter(&query, part);
            let mut found = target.find(filter).sort(query_order(&query)).limit(limit);
            if let Some(fields) = query.fields {
                let fields = ["id"].into_iter().chain(fields.iter().copied());
                found = found.projection(ascending(fields));
            }
            let mut cursor = self.with_deadline("finding documents", found).await?;
            // Each step of the cursor has its own deadline, so a long answer does not time out.
            while let Some(document) =
                self.with_deadline("finding documents", cursor.try_next()).await?
            {
                documents.push(from_stored(document));
            }
            if documents.len() >= query.limit {
                break;
            }
        }
        Ok(documents)
    }

    async fn count(&self, query: Query) -> Result<usize, StoreError> {
        let limit = u64::try_from(query.limit).unwrap_or(u64::MAX);
        let target = self.collection(query.collection);
        let counted = target.count_documents(query_filter(&query)).limit(limit);
        let count = self.with_deadline("counting documents", counted).await?;
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }

    async fn tally(
        &self,
        query: Query,
        by: &'static [&'static str],
    ) -> Result<Vec<TallyRow>, StoreError> {
        const WHAT: &str = "counting documents by their fields";
        let group: Document = by
            .iter()
            .enumerate()
            .map(|(n, field)| (n.to_string(), Bson::from(format!("${field}"))))
            .collect();
        let stages = [
            doc! {"$match": query_filter(&query)},
            doc! {"$group": {"_id": group, "count": {"$sum": 1_i64}}},
        ];
        let target = self.collection(query.collection);
        let mut cursor = self.with_deadline(WHAT, target.aggregate(stages)).await?;
        let mut rows = Vec::new();
        while let Some(row) = self.with_deadline(WHAT, cursor.try_next()).await? {
            let row = to_json(Bson::Document(row));
            let values = (0..by.len()).map(|n| row["_id"][n.to_string()].clone()).collect();
            rows.push(TallyRow { values, count: row["count"].as_u64().unwrap_or(0) });
        }
        Ok(rows)
    }

    async fn delete(
        &self,
        collection: Collection,
        id: &str,
        expect: Vec<Equals>,
    ) -> Result<bool, StoreError> {
        let target = self.collection(collection);
        let deleted = self
            .with_deadline(
                "removing a document",
                target.delete_one(equals_filter(Some(id), &expect)),
            )
            .await?;
        Ok(deleted.deleted_count == 1)
    }

    /// Shuts the client down here, because the driver's own shutdown of a dropped client runs in a
    /// task that the end of the runtime may interrupt.
    async fn close(&self) {
        let farewell = self.database.client().clone().shutdown().immediate(true);
        let _ = tokio::time::timeout(FAREWELL_WAIT, farewell.into_future()).await;
    }
}
