//! Documents on SQLite: a table of JSON texts for each collection, and an expression index for
//! every query the system makes.

use std::collections::HashSet;

use async_trait::async_trait;
use rusqlite::types::Value as Sql;
use rusqlite::{Connection, OptionalExtension as _, params_from_iter};
use serde_json::Value;

use super::{Sqlite, WriteFailure, touch};
use crate::{
    Collection, Documents, Durability, Equals, Guard, Inserted, Page, Query, StoreError, indexes,
};

/// Returns the statements that make a collection's table and indexes.
///
/// Rows have SQLite's own ascending numbers, so new documents are neighbours in the table, and
/// among equal entries of an index. If rows were ordered by their random ids, each document would
/// change a different page in every index, and a commit takes longer the more pages it writes.
pub(super) fn schema(collection: Collection) -> String {
    let table = collection.as_str();
    let mut sql = format!(
        "CREATE TABLE IF NOT EXISTS {table} (id TEXT PRIMARY KEY NOT NULL, document TEXT NOT \
         NULL);\n"
    );
    for (name, fields) in named_indexes(collection) {
        let columns: Vec<String> = fields.iter().map(|field| extract(field)).collect();
        sql.push_str(&format!(
            "CREATE INDEX IF NOT EXISTS {name} ON {table} ({});\n",
            columns.join(", ")
        ));
    }
    sql
}

fn named_indexes(
    collection: Collection,
) -> impl Iterator<Item = (String, &'static [&'static str])> {
    let name = move |fields: &[&str]| {
        format!("{}_{}", collection.as_str(), fields.join("_").replace('.', "_"))
    };
    indexes(collection).iter().map(move |fields| (name(fields), *fields))
}

/// Rebuilds a collection's table in the layout of [`schema`] if an older Ion made it.
pub(super) fn lay_out_anew(
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
    tracing::info!(table, "rebuilt a table that an older Ion made");
    let mut sql = format!("ALTER TABLE {table} RENAME TO former_{table};\n");
    for (name, _) in named_indexes(collection) {
        sql.push_str(&format!("DROP INDEX IF EXISTS {name};\n"));
    }
    sql.push_str(&schema(collection));
    sql.push_str(&format!(
        "INSERT INTO {table} (id, document) SELECT id, document FROM former_{table} ORDER BY {};\n\
         DROP TABLE former_{table};\n",
        extract("created")
    ));
    connection.execute_batch(&sql)
}

/// Returns the SQL expression for a field. Fields are names in Ion's own code, never input.
fn extract(field: &str) -> String {
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
/// equals null in SQL.
fn conditions(equals: &[Equals], values: &mut Vec<Sql>) -> String {
    let mut sql = String::new();
    for (field, value) in equals {
        match sql_value(value) {
            Sql::Null => sql.push_str(&format!(" AND {} IS NULL", extract(field))),
            value => {
                values.push(value);
                sql.push_str(&format!(" AND {} = ?{}", extract(field), values.len()));
            }
        }
    }
    sql
}

fn id_of(document: &Value) -> String {
    document.get("id").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Fails unless each document of the guard exists and has the required fields.
fn check(connection: &Connection, guard: Option<&Guard>) -> Result<(), WriteFailure> {
    for condition in guard.into_iter().flat_map(Guard::conditions) {
        let mut values = vec![Sql::Text(condition.id.clone())];
        let conditions = conditions(&condition.equals, &mut values);
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
    let (table, id) = (collection.as_str(), id_of(document));
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
    check(connection, guard)?;
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
    let mut values = vec![Sql::Text(id_of(document)), Sql::Text(document.to_string())];
    let conditions = conditions(expect, &mut values);
    let update =
        format!("UPDATE {} SET document = ?2 WHERE id = ?1{conditions}", collection.as_str());
    Ok(connection.prepare_cached(&update)?.execute(params_from_iter(values))? == 1)
}

fn parse(text: &str) -> rusqlite::Result<Value> {
    serde_json::from_str(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into())
    })
}

/// Returns the statement and the values of a query.
pub(super) fn select(query: &Query) -> (String, Vec<Sql>) {
    let mut values = Vec::new();
    let mut sql = format!(
        "SELECT document FROM {} WHERE 1{}",
        query.collection.as_str(),
        conditions(&query.equals, &mut values)
    );
    let (direction, behind) = if query.descending { ("DESC", '<') } else { ("ASC", '>') };
    let field = query.order_by.map_or_else(|| "id".to_owned(), extract);
    if let Some(Page::Behind(value, id)) = &query.page {
        values.push(sql_value(value));
        let value = values.len();
        values.push(Sql::Text(id.clone()));
        // The first condition is a range of the index. The second leaves out the documents at its
        // beginning that the previous page has returned.
        sql.push_str(&format!(
            " AND {field} {behind}= ?{value} AND ({field} {behind} ?{value} OR id {behind} ?{})",
            values.len()
        ));
    }
    sql.push_str(&format!(" ORDER BY {field} {direction}"));
    if query.page.is_some() && query.order_by.is_some() {
        sql.push_str(&format!(", id {direction}"));
    }
    values.push(Sql::Integer(i64::try_from(query.limit).unwrap_or(i64::MAX)));
    sql.push_str(&format!(" LIMIT ?{}", values.len()));
    (sql, values)
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
        self.write_as(self.level(durability), "inserting a document", move |connection| {
            check(connection, guard.as_ref())?;
            insert(connection, collection, &document)
        })
        .await
    }

    async fn insert_all(
        &self,
        documents: Vec<(Collection, Value)>,
        guard: Option<Guard>,
        durability: Durability,
    ) -> Result<Vec<Inserted>, StoreError> {
        self.write_as(self.level(durability), "inserting documents", move |connection| {
            insert_all(connection, &documents, guard.as_ref())
        })
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
        self.write_as(self.level(durability), "replacing a document", move |connection| {
            check(connection, guard.as_ref())?;
            replace(connection, collection, &document, &expect)
        })
        .await
    }

    async fn replace_all(
        &self,
        collection: Collection,
        documents: Vec<Value>,
        expect: Vec<Equals>,
        durability: Durability,
    ) -> Result<usize, StoreError> {
        self.write_as(self.level(durability), "replacing documents", move |connection| {
            documents.iter().try_fold(0, |replaced, document| {
                Ok(replaced + usize::from(replace(connection, collection, document, &expect)?))
            })
        })
        .await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.write("syncing its log", |connection| Ok(touch(connection)?)).await
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

    async fn present(
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

    async fn find(&self, query: Query) -> Result<Vec<Value>, StoreError> {
        self.read("finding documents", move |connection| {
            let (sql, values) = select(&query);
            let mut statement = connection.prepare_cached(&sql)?;
            let rows = statement
                .query_map(params_from_iter(values), |row| parse(row.get_ref(0)?.as_str()?))?;
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
            let conditions = conditions(&expect, &mut values);
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
        for query in crate::known_queries() {
            let (sql, values) = select(&query);
            let plan: Vec<String> = connection
                .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
                .unwrap()
                .query_map(params_from_iter(values), |row| row.get(3))
                .unwrap()
                .collect::<rusqlite::Result<_>>()
                .unwrap();
            assert!(
                plan[0].starts_with("SEARCH") && plan[0].contains("USING INDEX"),
                "{sql}\n{plan:?}"
            );
        }
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
