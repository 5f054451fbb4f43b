//! The alias under which all indices of a pattern are searched.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::error::IndexError;
use crate::retry::RetrySettings;
use crate::server::{Request, Server};

/// Gives the alias to those of the indices that do not have it.
pub(crate) async fn add_alias(
    server: &Server,
    alias: &str,
    indices: &BTreeSet<Arc<str>>,
    retry: RetrySettings,
    stop: &CancellationToken,
) -> Result<(), IndexError> {
    if indices.is_empty() {
        return Ok(());
    }
    let act = format!("show the alias \"{alias}\"");
    let request = Request::get(format!("_alias/{alias}"), &act);
    let answer = server.ask_patiently(&request, retry, stop).await?;
    let had = match answer.status {
        404 => Value::Null,
        _ => server.accepted(answer, &request)?.json(),
    };
    let Some(actions) = actions(alias, indices, &had) else { return Ok(()) };
    let act = format!("give the alias \"{alias}\" to indices");
    let request = Request::post("_aliases", &actions, &act);
    let answer = server.ask_patiently(&request, retry, stop).await?;
    server.accepted(answer, &request)?;
    Ok(())
}

/// Returns what the server has to do, if it has to do anything. `had` has the indices with the alias
/// as keys.
fn actions(alias: &str, indices: &BTreeSet<Arc<str>>, had: &Value) -> Option<Value> {
    let actions: Vec<_> = indices
        .iter()
        .filter(|index| had.get(index.as_ref()).is_none())
        .map(|index| json!({"add": {"index": index.as_ref(), "alias": alias}}))
        .collect();
    (!actions.is_empty()).then(|| json!({"actions": actions}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_asked_for() {
        let indices = BTreeSet::from(["news-1".into(), "news-2".into()]);
        let had = json!({"news-1": {"aliases": {"news": {}}}});
        let one = json!({"actions": [{"add": {"index": "news-2", "alias": "news"}}]});
        assert_eq!(actions("news", &indices, &had), Some(one));
        let all = actions("news", &indices, &Value::Null).unwrap();
        assert_eq!(all["actions"].as_array().unwrap().len(), 2);
        let had = json!({"news-1": {}, "news-2": {}, "news-3": {}});
        assert_eq!(actions("news", &indices, &had), None);
    }
}
