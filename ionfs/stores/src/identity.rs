//! The id of a plane. It is made once, is stored with the documents, and marks a bus as belonging
//! to this plane.

use serde_json::json;
use uuid::Uuid;

use super::{Collection, Documents, Durability, Inserted, StoreError};

/// The id of the document that holds a plane's id.
const IDENTITY: &str = "identity";

/// Returns the id of the plane that these documents belong to. The first caller makes the id; it
/// lasts as long as the documents.
///
/// # Errors
/// When the documents cannot be read or written.
pub async fn get_or_set_plane_id(documents: &dyn Documents) -> Result<String, StoreError> {
    match find_plane_id(documents).await? {
        Some(id) => Ok(id),
        None => set_plane_id(documents, IDENTITY, &Uuid::new_v4().to_string()).await,
    }
}

/// Returns the plane's id if it has been made already.
///
/// # Errors
/// When the documents cannot be read.
pub async fn find_plane_id(documents: &dyn Documents) -> Result<Option<String>, StoreError> {
    let found = documents.get(Collection::Plane, IDENTITY).await?;
    Ok(found.and_then(|document| document["plane"].as_str().map(str::to_owned)))
}

/// Stores a plane's id in the document `id`, unless that document exists. Returns the plane's id
/// that the document holds, which is the first caller's.
pub(super) async fn set_plane_id(
    documents: &dyn Documents,
    id: &str,
    plane: &str,
) -> Result<String, StoreError> {
    let document = json!({"id": id, "plane": plane});
    match documents.insert(Collection::Plane, document, None, Durability::Now).await? {
        Inserted::New => Ok(plane.to_owned()),
        Inserted::Existing(before) => Ok(before["plane"].as_str().unwrap_or_default().to_owned()),
    }
}
