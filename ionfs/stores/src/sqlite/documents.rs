//! Documents on SQLite: a table of JSON texts for each collection, and an expression index for
//! every query the system makes.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use ion_model::term::IndexRange;
use ion_system::failpoint;
use rusqlite::types::{Value as Sql, ValueRef};
use rusqlite::{Connection, OptionalExtension as _, params_from_iter};
use serde_json::{Value, json};

use super::{Sqlite, WriteFailure, force_sync};
use crate::{
    Collection, Documents, Durability, Equals, Guard, Inserted, Query, QueryPart, StoreError,
    TERMS_FIELD, TallyRow, indexes,
};

/// Returns the statement that makes a collection's table.
///
/// Rows have SQLite's own ascending numbers, so new documents are neighbours in the table, and
/// among equal entries of an index. If rows were ordered by their random ids, each document would
/// change a different page in every index, and a commit takes longer the more pages it writes.
pub(super) fn table_sql(collection: Collection) -> String {
    let table = collection.as_str();
    format!(
        "CREATE TABLE IF NOT EXISTS {table} (id TEXT PRIMARY KEY NOT NULL, document TEXT NOT \
         NULL);\n"
    )
}

fn index_sql(collection: Collection, name: &str, fields: &[&str]) -> String {
    let columns: Vec<String> = fields.iter().map(|field| extract_sql(field)).collect();
    let (table, columns) = (collection.as_str(), columns.join(", "));
    format!("CREATE INDEX IF NOT EXISTS {name} ON {table} ({columns});\n")
}

/// Returns the names of the indexes that a collection has and that Ion's layout made.
fn existing_indexes(
    connection: &Connection,
    collection: Collection,
) -> rusqlite::Result<HashSet<String>> {
    // SQLite's own indexes have no statement.
    let sql = "SELECT name FROM sqlite_master WHERE type = 'index' AND tbl_name = ?1 AND sql IS \
               NOT NULL";
    let mut statement = connection.prepare(sql)?;
    statement.query_map([collection.as_str()], |row| row.get(0))?.collect()
}

/// Makes the indexes that a collection does not have yet, and says so where this takes time.
pub(super) fn make_missing_indexes(
    connection: &Connection,
    collection: Collection,
) -> rusqlite::Result<()> {
    let existing = existing_indexes(connection, collection)?;
    let is_missing = |(name, _): &(String, &[&str])| !existing.contains(name);
    let missing: Vec<_> = named_indexes(collection).filter(is_missing).collect();
    let table = collection.as_str();
    let has_rows = connection.prepare(&format!("SELECT 1 FROM {table}"))?.exists([])?;
    for (n, (name, fields)) in missing.iter().enumerate() {
        if has_rows {
            let (number, of) = (n + 1, missing.len());
            tracing::info!(
                index = name,
                "bringing the plane's database up to date: {table}, index {number} of {of}"
            );
        }
        connection.execute_batch(&index_sql(collection, name, fields))?;
        failpoint::hit("layout.index");
    }
    Ok(())
}

/// Removes the indexes of former layouts, which would make each write slower. Their names begin
/// with the name of the table.
pub(super) fn drop_former_indexes(
    connection: &Connection,
    collection: Collection,
) -> rusqlite::Result<()> {
    let wanted: HashSet<String> = named_indexes(collection).map(|(name, _)| name).collect();
    let existing = existing_indexes(connection, collection)?;
    let ours = format!("{}_", collection.as_str());
    for name in existing.difference(&wanted).filter(|name| name.starts_with(&ours)) {
        connection.execute_batch(&format!("DROP INDEX IF EXISTS \"{name}\";"))?;
    }
    Ok(())
}

fn named_indexes(
    collection: Collection,
) -> impl Iterator<Item = (String, &'static [&'static str])> {
    // The array has a table of its own.
    let is_expression = |fields: &&&[&str]| fields[0] != TERMS_FIELD;
    let named = move |fields: &&'static [&'static str]| (index_name(collection, fields), *fields);
    indexes(collection).iter().filter(is_expression).map(named)
}

fn index_name(collection: Collection, fields: &[&str]) -> String {
    format!("{}_{}", collection.as_str(), fields.join("_").replace('.', "_"))
}

/// Rebuilds a collection's table in the layout of [`table_sql`] if an older Ion made it.
pub(super) fn rebuild_older_table(
    connection: &Connection,
    collection: Collection,
) -> rusqlite::Result<()> {
    let table = collection.as_str();
    let by_id = "SELECT wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1";
    let by_id: Option<bool> = connection.query_row(by_id, [table], |row| row.get(0)).optional()?;
    // The file's version number is no proof: an older Ion that still runs may have written its own
    // number since.
    if by_id != Some(true) {
        return Ok(());
    }
    let mut sql = format!("ALTER TABLE {table} RENAME TO former_{table};\n");
    for (name, _) in named_indexes(collection) {
        sql.push_str(&format!("DROP INDEX IF EXISTS {name};\n"));
    }
    sql.push_str(&table_sql(collection));
    sql.push_str(&format!(
        "INSERT INTO {table} (id, document) SELECT id, document FROM former_{table} ORDER BY {};\n\
         DROP TABLE former_{table};\n",
        extract_sql("created")
    ));
    connection.execute_batch(&sql)?;
    tracing::info!(table, "rebuilt a table that an older Ion made");
    Ok(())
}

/// Returns the SQL expression for a field. Fields are names in Ion's own code, never input.
fn extract_sql(field: &str) -> String {
    debug_assert!(
        field.chars().all(|c| c.is_ascii_alphanumeric() || c == '.'),
        "{field:?} is no field"
    );
    format!("json_extract(document, '$.{field}')")
}

fn sql_value(value: &Value) -> Sql {
    match value {
        Value::Null => Sql::Null,
        Value::Bool(flag) => Sql::Integer((*flag).into()),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Sql::Integer(integer),
            None => Sql::Real(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Sql::Text(text.clone()),
        // json_extract returns these as JSON text.
        Value::Array(_) | Value::Object(_) => Sql::Text(value.to_string()),
    }
}

/// Returns ` AND <field> = ?` for each condition. A null value becomes `IS NULL`, because nothing
/// equals null in SQL. Only the conditions on fields that `may_search` accepts are searched for in
/// an index; SQLite uses none for an expression with a plus sign.
fn equals_sql(
    equals: &[Equals],
    may_search: impl Fn(&str) -> bool,
    values: &mut Vec<Sql>,
) -> String {
    let mut sql = String::new();
    for (field, value) in equals {
        let plus = if may_search(field) { "" } else { "+" };
        match sql_value(value) {
            Sql::Null => sql.push_str(&format!(" AND {plus}{} IS NULL", extract_sql(field))),
            value => {
                values.push(value);
                let (field, number) = (extract_sql(field), values.len());
                sql.push_str(&format!(" AND {plus}{field} = ?{number}"));
            }
        }
    }
    sql
}

/// Returns the fields of the index that a query is to use: the index that has the query's order or
/// range after fields that must be equal, and of several the one with the most such fields, or
/// else the first one. SQLite has no statistics here, and would guess.
fn index_of(query: &Query) -> &'static [&'static str] {
    let wanted = query.order_by.or(query.range.as_ref().map(|range| range.field));
    let mut best: ((bool, usize, bool), &'static [&'static str]) = ((false, 0, false), &[]);
    for (_, fields) in named_indexes(query.collection) {
        let equal = fields.iter().take_while(|field| query.compares(field)).count();
        let is_next = wanted.is_some() && fields.get(equal).copied() == wanted;
        let rank = (is_next && equal > 0, equal, is_next);
        if rank > best.0 {
            best = (rank, fields);
        }
    }
    best.1
}

fn document_id(document: &Value) -> String {
    document.get("id").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Fails unless each document of the guard exists and has the required fields.
fn check_guard(connection: &Connection, guard: Option<&Guard>) -> Result<(), WriteFailure> {
    for condition in guard.into_iter().flat_map(Guard::conditions) {
        let mut values = vec![Sql::Text(condition.id.clone())];
        let conditions = equals_sql(&condition.equals, |_| false, &mut values);
        let sql =
            format!("SELECT 1 FROM {} WHERE id = ?1{conditions}", condition.collection.as_str());
        if !connection.prepare_cached(&sql)?.exists(params_from_iter(values))? {
            return Err(WriteFailure::Fenced(condition.collection));
        }
    }
    Ok(())
}

/// Inserts a document unless one with its id exists.
pub(super) fn insert(
    connection: &Connection,
    collection: Collection,
    document: &Value,
) -> Result<Inserted, WriteFailure> {
    let (table, id) = (collection.as_str(), document_id(document));
    let insert =
        format!("INSERT INTO {table} (id, document) VALUES (?1, ?2) ON CONFLICT (id) DO NOTHING");
    if connection.prepare_cached(&insert)?.execute((&id, document.to_string()))? == 1 {
        return Ok(Inserted::New);
    }
    let select = format!("SELECT document FROM {table} WHERE id = ?1");
    let existing: String =
        connection.prepare_cached(&select)?.query_row([&id], |row| row.get(0))?;
    Ok(Inserted::Existing(parse(&existing)?))
}

/// Inserts each document, if the guard holds.
pub(super) fn insert_all(
    connection: &Connection,
    documents: &[(Collection, Value)],
    guard: Option<&Guard>,
) -> Result<Vec<Inserted>, WriteFailure> {
    check_guard(connection, guard)?;
    documents
        .iter()
        .map(|(collection, document)| insert(connection, *collection, document))
        .collect()
}

/// Replaces the document with the same id if it has the fields of `expect`. Returns whether it did.
fn replace(
    connection: &Connection,
    collection: Collection,
    document: &Value,
    expect: &[Equals],
) -> Result<bool, WriteFailure> {
    let mut values = vec![Sql::Text(document_id(document)), Sql::Text(document.to_string())];
    let conditions = equals_sql(expect, |_| false, &mut values);
    let update =
        format!("UPDATE {} SET document = ?2 WHERE id = ?1{conditions}", collection.as_str());
    Ok(connection.prepare_cached(&update)?.execute(params_from_iter(values))? == 1)
}

fn parse(text: &str) -> rusqlite::Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
    })
}

/// Returns the expression of a field in a statement. Rows are found by the column `id`, which has
/// an index of its own.
fn field_sql(field: &str) -> String {
    if field == "id" { field.to_owned() } else { extract_sql(field) }
}

/// Returns the expression of a field in a query's statement.
fn query_field_sql(query: &Query, field: &str) -> String {
    match field == "created" && !query.terms.is_empty() {
        true => "t.created".to_owned(),
        false => field_sql(field),
    }
}

/// Returns the expression by which a query's results are sorted.
fn order_sql(query: &Query) -> String {
    query_field_sql(query, query.order_by.unwrap_or("id"))
}

/// Returns the table of a query without terms. Where a range follows equal values in the index,
/// the index is named: to SQLite one with fewer equal values before the range looks as good.
fn table_with_index(query: &Query) -> String {
    let (table, index) = (query.collection.as_str(), index_of(query));
    let range = query.range.as_ref().map(|range| range.field);
    match index.iter().skip(1).any(|field| Some(*field) == range) {
        true => format!("{table} INDEXED BY {}", index_name(query.collection, index)),
        false => table.to_owned(),
    }
}

/// Returns the tables of a query. With terms, the first one finds the documents.
fn source_sql(query: &Query, values: &mut Vec<Sql>) -> String {
    let mut parameter = |text: &String| {
        values.push(Sql::Text(text.clone()));
        format!("?{}", values.len())
    };
    let found = match query.terms.first() {
        None => return table_with_index(query),
        Some(IndexRange::Is(term)) => {
            format!("(SELECT event, created FROM event_terms WHERE term = {})", parameter(term))
        }
        Some(IndexRange::Between(from, below)) => format!(
            "(SELECT DISTINCT event, created FROM event_terms WHERE term >= {} AND term < {})",
            parameter(from),
            parameter(below)
        ),
    };
    // The order of a cross join is the order in which SQLite reads.
    format!("{found} AS t CROSS JOIN events ON events.rowid = t.event")
}

/// Returns the conditions of a query, and puts their values into `values`.
fn filter_sql(query: &Query, part: QueryPart<'_>, values: &mut Vec<Sql>) -> String {
    let index = if query.terms.is_empty() { index_of(query) } else { &[] };
    let mut sql = equals_sql(&query.equals, |field| index.contains(&field), values);
    if let Some((field, wanted)) = &query.one_of {
        let mut parameter = |value| {
            values.push(sql_value(value));
            format!("?{}", values.len())
        };
        let wanted: Vec<String> = wanted.iter().map(&mut parameter).collect();
        sql.push_str(&format!(" AND {} IN ({})", query_field_sql(query, field), wanted.join(", ")));
    }
    for term in query.terms.iter().skip(1) {
        debug_assert!(
            matches!(term, IndexRange::Is(_)),
            "{term:?} would be read for each document"
        );
        if let IndexRange::Is(term) = term {
            values.push(Sql::Text(term.clone()));
            sql.push_str(&format!(
                " AND EXISTS (SELECT 1 FROM event_terms AS u WHERE u.term = ?{} AND u.created = \
                 t.created AND u.event = t.event)",
                values.len()
            ));
        }
    }
    if let Some(range) = &query.range {
        let field = query_field_sql(query, range.field);
        for (comparison, bound) in [(">=", Some(&range.from)), ("<", range.below.as_ref())] {
            let Some(bound) = bound else { continue };
            values.push(sql_value(bound));
            let plus = if begins_beyond(query, part, bound) { "+" } else { "" };
            sql.push_str(&format!(" AND {plus}{field} {comparison} ?{}", values.len()));
        }
    }
    sql
}

/// Returns whether a part begins after this bound of the query's range. SQLite searches an index
/// from one bound only, and would read everything between the two if it were this one.
fn begins_beyond(query: &Query, part: QueryPart<'_>, bound: &Value) -> bool {
    let QueryPart::After(value, _) = part else { return false };
    let is_same_field = query.range.as_ref().map(|range| range.field) == query.order_by;
    let (Some(value), Some(bound)) = (value.as_i64(), bound.as_i64()) else { return false };
    is_same_field && if query.descending { value < bound } else { value >= bound }
}

/// Returns the conditions of a part of a query's results.
fn part_filter_sql(query: &Query, part: QueryPart<'_>, values: &mut Vec<Sql>) -> String {
    let field = order_sql(query);
    let after = if query.descending { '<' } else { '>' };
    match part {
        QueryPart::All => String::new(),
        QueryPart::WithField => format!(" AND {field} IS NOT NULL"),
        QueryPart::WithoutField(None) => format!(" AND {field} IS NULL"),
        QueryPart::WithoutField(Some(id)) => {
            values.push(Sql::Text(id.to_owned()));
            format!(" AND {field} IS NULL AND id {after} ?{}", values.len())
        }
        QueryPart::After(_, id) if query.order_by.is_none() => {
            values.push(Sql::Text(id.to_owned()));
            format!(" AND id {after} ?{}", values.len())
        }
        QueryPart::After(value, id) => {
            values.push(sql_value(value));
            let value = values.len();
            values.push(Sql::Text(id.to_owned()));
            // The first condition is a range of the index. The second leaves out the documents at
            // its beginning that the previous page has returned.
            format!(
                " AND {field} {after}= ?{value} AND ({field} {after} ?{value} OR id {after} ?{})",
                values.len()
            )
        }
    }
}

/// Returns the statement and the values that find a part of a query's results, at most `limit`.
pub(super) fn select_sql(query: &Query, part: QueryPart<'_>, limit: usize) -> (String, Vec<Sql>) {
    let mut values = Vec::new();
    let from = source_sql(query, &mut values);
    let filter = filter_sql(query, part, &mut values);
    let mut sql = format!("SELECT {} FROM {from} WHERE 1{filter}", result_sql(query));
    sql.push_str(&part_filter_sql(query, part, &mut values));
    let direction = if query.descending { "DESC" } else { "ASC" };
    sql.push_str(&format!(" ORDER BY {} {direction}", order_sql(query)));
    if query.start_at.is_some() && query.order_by.is_some() {
        sql.push_str(&format!(", id {direction}"));
    }
    values.push(Sql::Integer(i64::try_from(limit).unwrap_or(i64::MAX)));
    sql.push_str(&format!(" LIMIT ?{}", values.len()));
    (sql, values)
}

/// Returns the expression of a query's results: whole documents, or an array of the wanted fields
/// with the id in front.
fn result_sql(query: &Query) -> String {
    let Some(fields) = query.fields else { return "document".into() };
    let paths: Vec<String> =
        ["id"].iter().chain(fields).map(|field| format!("'$.{field}'")).collect();
    // With one path the result would be the value itself and not an array.
    format!("json_extract(document, {}, '$.id')", paths.join(", "))
}

/// Makes a document of the results of [`result_sql`].
fn document_from_fields(fields: &[&str], values: Value) -> Value {
    let Value::Array(values) = values else { return values };
    let mut document = json!({});
    for (field, value) in ["id"].iter().chain(fields).zip(values) {
        if !value.is_null() {
            let place = field.split('.').fold(&mut document, |at, part| &mut at[part]);
            *place = value;
        }
    }
    document
}

/// Returns the statement that counts what a query finds, up to its limit.
pub(super) fn count_sql(query: &Query) -> (String, Vec<Sql>) {
    let mut values = Vec::new();
    let from = source_sql(query, &mut values);
    let found =
        format!("SELECT 1 FROM {from} WHERE 1{}", filter_sql(query, QueryPart::All, &mut values));
    values.push(Sql::Integer(i64::try_from(query.limit).unwrap_or(i64::MAX)));
    (format!("SELECT count(*) FROM ({found} LIMIT ?{})", values.len()), values)
}

/// Returns the statement that counts what a query finds by the values of fields.
pub(super) fn tally_sql(query: &Query, by: &[&str]) -> (String, Vec<Sql>) {
    let mut values = Vec::new();
    let fields: Vec<String> = by.iter().map(|field| extract_sql(field)).collect();
    let sql = format!(
        "SELECT count(*), {0} FROM {1} WHERE 1{2} GROUP BY {0}",
        fields.join(", "),
        query.collection.as_str(),
        filter_sql(query, QueryPart::All, &mut values)
    );
    (sql, values)
}

fn to_json(value: ValueRef<'_>) -> Value {
    match value {
        ValueRef::Null | ValueRef::Blob(_) => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
    }
}

#[async_trait]
impl Documents for Sqlite {
    async fn insert(
        &self,
        collection: Collection,
        document: Value,
        guard: Option<Guard>,
        durability: Durability,
    ) -> Result<Inserted, StoreError> {
        self.write_with_level(
            self.sync_level(durability),
            "inserting a document",
            move |connection| {
                check_guard(connection, guard.as_ref())?;
                insert(connection, collection, &document)
            },
        )
        .await
    }

    async fn insert_all(
        &self,
        documents: Vec<(Collection, Value)>,
        guard: Option<Guard>,
        durability: Durability,
    ) -> Result<Vec<Inserted>, StoreError> {
        self.write_with_level(
            self.sync_level(durability),
            "inserting documents",
            move |connection| insert_all(connection, &documents, guard.as_ref()),
        )
        .await
    }

    async fn replace(
        &self,
        collection: Collection,
        document: Value,
        expect: Vec<Equals>,
        guard: Option<Guard>,
        durability: Durability,
    ) -> Result<bool, StoreError> {
        self.write_with_level(
            self.sync_level(durability),
            "replacing a document",
            move |connection| {
                check_guard(connection, guard.as_ref())?;
                replace(connection, collection, &document, &expect)
            },
        )
        .await
    }

    async fn replace_all(
        &self,
        collection: Collection,
        documents: Vec<(Value, Vec<Equals>)>,
        durability: Durability,
    ) -> Result<Vec<bool>, StoreError> {
        self.write_with_level(
            self.sync_level(durability),
            "replacing documents",
            move |connection| {
                let replace = |(document, expect): &(Value, Vec<Equals>)| {
                    replace(connection, collection, document, expect)
                };
                documents.iter().map(replace).collect()
            },
        )
        .await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.write("syncing its log", |connection| Ok(force_sync(connection)?)).await
    }

    async fn get(&self, collection: Collection, id: &str) -> Result<Option<Value>, StoreError> {
        let id = id.to_owned();
        self.read("reading a document", move |connection| {
            let select = format!("SELECT document FROM {} WHERE id = ?1", collection.as_str());
            let found: Option<String> =
                connection.prepare_cached(&select)?.query_row([id], |row| row.get(0)).optional()?;
            found.map(|text| parse(&text)).transpose()
        })
        .await
    }

    async fn get_all(
        &self,
        collection: Collection,
        ids: Vec<String>,
    ) -> Result<HashMap<String, Value>, StoreError> {
        self.read("reading documents", move |connection| {
            let select = format!("SELECT document FROM {} WHERE id = ?1", collection.as_str());
            let mut statement = connection.prepare_cached(&select)?;
            let mut found = HashMap::new();
            for id in ids {
                let text: Option<String> =
                    statement.query_row([&id], |row| row.get(0)).optional()?;
                if let Some(text) = text {
                    found.insert(id, parse(&text)?);
                }
            }
            Ok(found)
        })
        .await
    }

    async fn find_existing_ids(
        &self,
        collection: Collection,
        ids: Vec<String>,
    ) -> Result<HashSet<String>, StoreError> {
        self.read("looking for documents", move |connection| {
            let select =
                format!("SELECT EXISTS (SELECT 1 FROM {} WHERE id = ?1)", collection.as_str());
            let mut statement = connection.prepare_cached(&select)?;
            let mut present = HashSet::new();
            for id in ids {
                if statement.query_row([&id], |row| row.get(0))? {
                    present.insert(id);
                }
            }
            Ok(present)
        })
        .await
    }

    async fn maintain(&self) -> Result<(), StoreError> {
        self.index_some_terms().await.map(drop)
    }

    async fn find(&self, query: Query) -> Result<Vec<Value>, StoreError> {
        if !query.terms.is_empty() {
            self.index_all_terms().await?;
        }
        self.read("finding documents", move |connection| {
            let mut found = Vec::new();
            for part in query.parts() {
                let (sql, values) = select_sql(&query, part, query.limit - found.len());
                let mut statement = connection.prepare_cached(&sql)?;
                let rows = statement.query_map(params_from_iter(values), |row| {
                    let document = parse(row.get_ref(0)?.as_str()?)?;
                    Ok(match query.fields {
                        Some(fields) => document_from_fields(fields, document),
                        None => document,
                    })
                })?;
                for document in rows {
                    found.push(document?);
                }
                if found.len() >= query.limit {
                    break;
                }
            }
            Ok(found)
        })
        .await
    }

    async fn count(&self, query: Query) -> Result<usize, StoreError> {
        if !query.terms.is_empty() {
            self.index_all_terms().await?;
        }
        self.read("counting documents", move |connection| {
            let (sql, values) = count_sql(&query);
            connection
                .prepare_cached(&sql)?
                .query_row(params_from_iter(values), |row| row.get::<_, i64>(0))
                .map(|count| usize::try_from(count).unwrap_or(0))
        })
        .await
    }

    async fn tally(
        &self,
        query: Query,
        by: &'static [&'static str],
    ) -> Result<Vec<TallyRow>, StoreError> {
        self.read("counting documents by their fields", move |connection| {
            let (sql, values) = tally_sql(&query, by);
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement.query_map(params_from_iter(values), |row| {
                let count: i64 = row.get(0)?;
                let values = (1..=by.len()).map(|at| Ok(to_json(row.get_ref(at)?)));
                let values = values.collect::<rusqlite::Result<_>>()?;
                Ok(TallyRow { values, count: count.unsigned_abs() })
            })?;
            rows.collect()
        })
        .await
    }

    async fn delete(
        &self,
        collection: Collection,
        id: &str,
        expect: Vec<Equals>,
    ) -> Result<bool, StoreError> {
        let id = id.to_owned();
        self.write("removing a document", move |connection| {
            let mut values = vec![Sql::Text(id)];
            let conditions = equals_sql(&expect, |_| false, &mut values);
            let delete = format!("DELETE FROM {} WHERE id = ?1{conditions}", collection.as_str());
            Ok(connection.prepare_cached(&delete)?.execute(params_from_iter(values))? == 1)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_the_system_makes_uses_an_index() {
        let folder = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&folder.path().join("ion.db")).unwrap();
        let connection = super::super::connect(&store.database).unwrap();
        let queries = crate::known_queries();
        let parts = queries
            .iter()
            .flat_map(|query| query.parts().into_iter().map(move |part| (query, part)));
        for (query, part) in parts {
            let (sql, values) = select_sql(query, part, query.limit);
            let plan: Vec<String> = connection
                .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
                .unwrap()
                .query_map(params_from_iter(values), |row| row.get(3))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap();
            // What a range of terms has found is scanned, and nothing else is.
            let is_search = |line: &String| line.starts_with("SEARCH");
            let is_scan = |line: &String| line.starts_with("SCAN") && line != "SCAN t";
            assert!(plan.iter().any(is_search) && !plan.iter().any(is_scan), "{sql}\n{plan:?}");
            // Another index with the same first fields serves as well.
            let index = index_of(query);
            let equal = index.iter().take_while(|field| query.compares(field)).count();
            let is_sorted = query.order_by.is_some() && index.get(equal).copied() == query.order_by;
            let needed = index[..index.len().min(equal + usize::from(is_sorted))].join("_");
            let name = format!("{}_{}", query.collection.as_str(), needed.replace('.', "_"));
            let is_used = |line: &String| line.contains(&name);
            assert!(index.is_empty() || plan.iter().any(is_used), "{name}: {sql}\n{plan:?}");
            let sorts = |line: &String| line == "USE TEMP B-TREE FOR ORDER BY";
            // Documents without the sort field have no order in the index but that of their ids.
            let is_sorted = is_sorted && !matches!(part, QueryPart::WithoutField(_));
            assert!(!is_sorted || !plan.iter().any(sorts), "{sql}\n{plan:?}");
        }
    }

    #[test]
    fn an_index_of_a_former_layout_goes_and_an_operators_index_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ion.db");
        drop(Sqlite::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch(
                "CREATE INDEX jobs_former ON jobs (json_extract(document, '$.x'));
                 CREATE INDEX mine ON jobs (json_extract(document, '$.y'));
                 DROP INDEX jobs_created;
                 PRAGMA user_version = 5;",
            )
            .unwrap();
        drop(Sqlite::open(&path).unwrap());
        let names = existing_indexes(&connection, Collection::Jobs).unwrap();
        assert!(names.contains("mine") && names.contains("jobs_created"), "{names:?}");
        assert!(!names.contains("jobs_former"), "{names:?}");
    }

    #[tokio::test]
    async fn what_an_older_ion_wrote_is_laid_out_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ion.db");
        let older = Connection::open(&path).unwrap();
        older
            .execute_batch(
                "CREATE TABLE jobs (id TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
                 CREATE INDEX jobs_eventId ON jobs (json_extract(document, '$.eventId'));
                 INSERT INTO jobs VALUES ('b', '{\"id\":\"b\",\"eventId\":\"e\",\"created\":1}');
                 INSERT INTO jobs VALUES ('a', '{\"id\":\"a\",\"eventId\":\"e\",\"created\":2}');
                 PRAGMA user_version = 3;",
            )
            .unwrap();
        drop(older);
        let store = Sqlite::open(&path).unwrap();
        let of_event = Query::equal(Collection::Jobs, vec![("eventId", "e".into())]);
        let found = store.find(of_event.order_by("created")).await.unwrap();
        assert_eq!(
            found.iter().map(|job| job["id"].as_str().unwrap()).collect::<Vec<_>>(),
            ["b", "a"]
        );
        let connection = Connection::open(&path).unwrap();
        let rows: Vec<(i64, String)> = connection
            .prepare("SELECT rowid, id FROM jobs ORDER BY rowid")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        assert_eq!(rows, [(1, "b".to_owned()), (2, "a".to_owned())]);
        let again = serde_json::json!({"id": "a"});
        let again = store.insert(Collection::Jobs, again, None, Durability::Now).await.unwrap();
        assert!(matches!(again, Inserted::Existing(_)));
        assert!(!connection.table_exists(None, "former_jobs").unwrap());
    }
}
