//! One run over one declared API.
//!
//! Flow: read the state, ask for the pages of the API from where the last run ended, choose the
//! items to publish, ask for the details of these if the file says so, then write results, events
//! and last the state.
//!
//! Guarantees: as for feeds (`feed_run`). The state goes on from an answer only if everything in it
//! is remembered.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::header::{self, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;

use crate::api::{
    AnswerError, ApiFile, ApiHeader, ApiItem, NextPage, PagePlace, TemplateError, Values,
};
use crate::feed::ItemId;
use crate::folder::{Event, Folder, FolderError};
use crate::http::{Answer, Client, HttpError, Request, fresh_for, retry_after, shown};
use crate::pause::{self, REFUSALS_MAX};
use crate::run::{
    Emit, READING_TIME, RunEnd, asked_to_wait_until, is_refusal, pretty, short_title,
    status_advice, write_wishes,
};
use crate::seen::{Choice, Publication, SeenItems, Shown};

/// After how many failed requests for details a run asks for no more. The rest is left to the next
/// run.
const FAILED_DETAILS_MAX: usize = 3;

/// What is wanted of an API.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// The declared file.
    pub file: ApiFile,
    /// The values of its names.
    pub values: Values,
    /// Which items are published.
    pub choice: Choice,
    /// Which events are published.
    pub emit: Emit,
    /// Whether the answer 403 means that visits come too often.
    pub forbidden_waits: bool,
    /// Whether a wait that the server asked for is ignored.
    pub ignore_wait: bool,
}

/// What is remembered beside the items.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ApiState {
    /// Where the next run goes on.
    since: Option<String>,
    /// How many visits in a row were refused.
    refusals: u32,
    /// Whether the API has been read before.
    has_been_read: bool,
}

/// Why a run failed. Nothing of it counts then.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// There is no answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A name has no value.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The answer cannot be used.
    #[error("{url} cannot be read")]
    Answer {
        /// The address that answered.
        url: String,
        /// What is wrong.
        #[source]
        source: AnswerError,
    },
    /// The state is damaged.
    #[error("the state in/state/api.json is damaged; remove it to begin anew")]
    State(#[source] serde_json::Error),
    /// The server answered that something is wrong.
    #[error("{url} answered {status}{}", status_advice(*status))]
    Status {
        /// The address that answered.
        url: String,
        /// The status.
        status: u16,
    },
    /// The address that the file gives is none.
    #[error("{0:?} is no address")]
    Address(String),
    /// A header cannot be sent.
    #[error(
        "the header {0:?} cannot be sent: its name or its value has characters that no header has"
    )]
    Header(String),
    /// The next page is on another server.
    #[error("{url} names a next page on another server, which is not asked")]
    ForeignPage {
        /// The address that answered.
        url: String,
    },
    /// The server refuses all visits.
    #[error("{url} answered {status} to {REFUSALS_MAX} visits in a row; visit it less often")]
    RefusedTooOften {
        /// The address.
        url: String,
        /// The status of its answers.
        status: u16,
    },
}

/// Visits an API once.
///
/// # Errors
///
/// The run failed and is to be repeated: nothing that it wrote counts.
pub async fn run(
    client: &Client,
    folder: &Folder,
    settings: &ApiSettings,
    now: Timestamp,
) -> Result<RunEnd, ApiError> {
    let state = folder.state("api.json")?;
    let mut state: ApiState = state
        .map_or(Ok(ApiState::default()), |json| serde_json::from_slice(&json))
        .map_err(ApiError::State)?;
    let seen = folder.state("seen")?.unwrap_or_default();
    let mut seen = SeenItems::read(&String::from_utf8_lossy(&seen));
    if let Some(until) = asked_to_wait_until(folder)?
        && now < until
        && !settings.ignore_wait
    {
        return Ok(RunEnd::Waiting(until));
    }
    let poll = Poll { client, settings, now };
    let read = match poll.read_pages(&state, &seen).await? {
        Reading::Done(read) => read,
        Reading::Refused(refusal) => {
            if state.refusals >= REFUSALS_MAX {
                let Refusal { url, status, .. } = refusal;
                return Err(ApiError::RefusedTooOften { url, status });
            }
            return refuse(folder, &mut state, &refusal, now);
        }
    };
    state.refusals = 0;
    let shown: Vec<Shown> = read.items.iter().map(shown_item).collect();
    let chosen = seen.choose(&shown, &settings.choice, !state.has_been_read);
    let details = poll.read_details(&read.items, &chosen.publish).await?;
    for index in &details.unread {
        seen.forget(&shown[*index].id);
    }
    let count = write_items(folder, settings, &details.items)?;
    // Going on from here would skip what was left to the next run.
    if !chosen.is_partial && details.unread.is_empty() {
        state.since = read.since.or(state.since);
    }
    state.has_been_read = true;
    let wait = details.refused_for.or(read.fresh_for);
    write_state(folder, &state, &seen)?;
    write_wishes(folder, wait.and_then(|wait| pause::later(now, wait)), None)?;
    Ok(RunEnd::Published(count))
}

/// Remembers that a visit was refused, and nothing else.
fn refuse(
    folder: &Folder,
    state: &mut ApiState,
    refusal: &Refusal,
    now: Timestamp,
) -> Result<RunEnd, ApiError> {
    let wait = pause::after_refusal(refusal.wait, state.refusals);
    state.refusals += 1;
    let until = pause::later(now, wait);
    folder.set_state("api.json", Some(json_of(state).as_bytes()))?;
    write_wishes(folder, until, None)?;
    Ok(RunEnd::Refused { status: refusal.status, until })
}

fn json_of(state: &ApiState) -> String {
    serde_json::to_string_pretty(state).expect("a state has only texts and numbers") + "\n"
}

fn write_state(folder: &Folder, state: &ApiState, seen: &SeenItems) -> Result<(), FolderError> {
    folder.set_state("api.json", Some(json_of(state).as_bytes()))?;
    folder.set_state("seen", Some(seen.lines().as_bytes()))
}

fn id_of(item: &ApiItem) -> ItemId {
    ItemId::hashed(&["api", &item.key])
}

fn shown_item(item: &ApiItem) -> Shown {
    let fingerprint = ItemId::hashed(&["data", &item.data.to_string()]);
    Shown { id: id_of(item), fingerprint: fingerprint.to_string(), date: item.time }
}

/// What the pages of an API said.
enum Reading {
    Done(Read),
    Refused(Refusal),
}

struct Read {
    items: Vec<ApiItem>,
    since: Option<String>,
    fresh_for: Option<Duration>,
}

/// That a server refused a visit.
struct Refusal {
    url: String,
    status: u16,
    wait: Option<Duration>,
}

/// The items to publish, with their details.
#[derive(Default)]
struct Details {
    items: Vec<(ApiItem, bool)>,
    /// Which items could not be read this time.
    unread: Vec<usize>,
    /// How long the server asks to be left alone.
    refused_for: Option<Duration>,
}

/// One run's requests.
struct Poll<'a> {
    client: &'a Client,
    settings: &'a ApiSettings,
    now: Timestamp,
}

impl Poll<'_> {
    /// Reads one page after the other.
    async fn read_pages(&self, state: &ApiState, seen: &SeenItems) -> Result<Reading, ApiError> {
        let file = &self.settings.file;
        let mut url = address(&file.url.fill_address(&self.settings.values)?)?;
        if let (Some(since), Some(value)) = (&file.since, &state.since) {
            set_query(&mut url, &since.query, value);
        }
        let mut read = Read { items: Vec::new(), since: None, fresh_for: None };
        for number in 1.. {
            let answer = self.client.get(self.request(url.clone())?).await?;
            if let Some(refusal) = self.refusal(&answer) {
                return Ok(Reading::Refused(refusal));
            }
            let (document, items) = self.items_of(&answer)?;
            if number == 1 {
                read.fresh_for = pause::while_fresh(fresh_for(&answer.headers));
                if file.since.as_ref().is_some_and(|since| since.value.is_some()) {
                    read.since = file.since_of(&document, &items);
                }
            }
            let is_known = |item: &ApiItem| seen.has(&id_of(item));
            let is_all_known = !items.is_empty() && items.iter().all(is_known);
            let count = items.len();
            read.items.extend(items);
            let link = answer.header(header::LINK);
            let place = PagePlace { number, items: count, items_so_far: read.items.len() };
            let next = file.next_page(&document, link, place);
            // Behind a page without anything new there is nothing new.
            let Some(next) = next.filter(|_| !is_all_known) else { break };
            url = match next {
                NextPage::Query { name, value } => {
                    set_query(&mut url, &name, &value);
                    url
                }
                NextPage::Address(next) => {
                    let next = answer.url.join(&next).map_err(|_| ApiError::Address(next))?;
                    // The headers may have a secret that is for this server.
                    if next.origin() != answer.url.origin() {
                        return Err(ApiError::ForeignPage { url: shown(&answer.url) });
                    }
                    next
                }
            };
        }
        if read.since.is_none() {
            read.since = file.since_of(&Value::Null, &read.items);
        }
        Ok(Reading::Done(read))
    }

    fn request(&self, url: Url) -> Result<Request, ApiError> {
        let file = &self.settings.file;
        let mut request = Request::get(url);
        request
            .headers
            .push((header::ACCEPT, HeaderValue::from_static("application/json, */*;q=0.1")));
        for ApiHeader { name, value } in &file.headers {
            let is_secret = value.names().any(|name| file.secrets.iter().any(|one| one == name));
            let value = value.fill(&self.settings.values)?;
            let wrong = || ApiError::Header(name.clone());
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let mut value = HeaderValue::from_str(&value).map_err(|_| wrong())?;
            value.set_sensitive(is_secret);
            request.headers.retain(|(known, _)| *known != header);
            request.headers.push((header, value));
        }
        Ok(request)
    }

    /// Returns the refusal that an answer is.
    fn refusal(&self, answer: &Answer) -> Option<Refusal> {
        let asked = retry_after(&answer.headers, self.now).or_else(|| self.reset(answer));
        is_refusal(answer.status, asked, self.settings.forbidden_waits).then(|| Refusal {
            url: shown(&answer.url),
            status: answer.status,
            wait: asked,
        })
    }

    /// Returns the wait that the API's own header asks for: seconds since 1970, or from now on.
    fn reset(&self, answer: &Answer) -> Option<Duration> {
        /// From here on, a number is an instant: as a wait it would be 30 years.
        const INSTANT: i64 = 1_000_000_000;
        let name = self.settings.file.reset_header.as_ref()?;
        let seconds: i64 = answer.headers.get(name)?.to_str().ok()?.trim().parse().ok()?;
        let wait = if seconds >= INSTANT { seconds - self.now.as_second() } else { seconds };
        Some(Duration::from_secs(u64::try_from(wait).unwrap_or_default()))
    }

    fn items_of(&self, answer: &Answer) -> Result<(Value, Vec<ApiItem>), ApiError> {
        let url = || shown(&answer.url);
        if !(200..300).contains(&answer.status) {
            return Err(ApiError::Status { url: url(), status: answer.status });
        }
        let file = &self.settings.file;
        let read = file.document(&answer.body, answer.content_type()).and_then(|document| {
            let items = file.page(&document)?;
            Ok((document, items))
        });
        read.map_err(|source| ApiError::Answer { url: url(), source })
    }

    /// Asks for more about each item that is published.
    async fn read_details(
        &self,
        items: &[ApiItem],
        publish: &[Publication],
    ) -> Result<Details, ApiError> {
        let begin = Instant::now();
        let mut details = Details::default();
        let mut failures: Vec<ApiError> = Vec::new();
        for Publication { index, is_update } in publish {
            let item = &items[*index];
            let is_over = failures.len() >= FAILED_DETAILS_MAX || begin.elapsed() > READING_TIME;
            if is_over || details.refused_for.is_some() {
                details.unread.push(*index);
                continue;
            }
            match self.detail_of(item).await {
                Ok(Detail::Item(item)) => details.items.push((item, *is_update)),
                Ok(Detail::Nothing) => {}
                Ok(Detail::Refused(refusal)) => {
                    details.refused_for = Some(pause::after_refusal(refusal.wait, 0));
                    details.unread.push(*index);
                }
                Err(error) => {
                    failures.push(error);
                    details.unread.push(*index);
                }
            }
        }
        match failures.into_iter().next() {
            Some(error) if details.items.is_empty() => Err(error),
            _ => Ok(details),
        }
    }

    async fn detail_of(&self, item: &ApiItem) -> Result<Detail, ApiError> {
        let file = &self.settings.file;
        let Some(template) = &file.detail else { return Ok(Detail::Item(item.clone())) };
        let mut values = self.settings.values.clone();
        values.insert("id".to_owned(), item.key.clone());
        let url = address(&template.fill_address(&values)?)?;
        let answer = self.client.get(self.request(url)?).await?;
        if let Some(refusal) = self.refusal(&answer) {
            return Ok(Detail::Refused(refusal));
        }
        let url = shown(&answer.url);
        match answer.status {
            // An item that was removed since stays away.
            404 | 410 => return Ok(Detail::Nothing),
            200..=299 => {}
            status => return Err(ApiError::Status { url, status }),
        }
        let document = file.detail_document(&answer.body, answer.content_type());
        let data = document.map_err(|source| ApiError::Answer { url, source })?;
        if data.is_null() {
            return Ok(Detail::Nothing);
        }
        let mut item = ApiItem { data, ..item.clone() };
        file.describe(&mut item);
        Ok(Detail::Item(item))
    }
}

/// What there is about an item.
enum Detail {
    Item(ApiItem),
    /// It does not exist any more.
    Nothing,
    Refused(Refusal),
}

fn address(text: &str) -> Result<Url, ApiError> {
    Url::parse(text).map_err(|_| ApiError::Address(text.to_owned()))
}

/// Sets a parameter of the address, instead of one of the same name.
fn set_query(url: &mut Url, name: &str, value: &str) {
    let others: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(known, _)| known != name)
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut().clear().extend_pairs(others).append_pair(name, value);
}

/// Writes the items and their events, and returns how many.
fn write_items(
    folder: &Folder,
    settings: &ApiSettings,
    items: &[(ApiItem, bool)],
) -> Result<usize, FolderError> {
    let document = |item: &ApiItem, is_update: bool| {
        json!({
            "id": id_of(item).as_str(),
            "key": item.key,
            "time": item.time.map(|time| time.to_string()),
            "title": item.title,
            "link": item.link,
            "update": is_update,
            "data": item.data,
        })
    };
    match settings.emit {
        Emit::Each => {
            for (item, is_update) in items {
                let id = id_of(item);
                let path = format!("{id}/item.json");
                folder.write_data(&path, pretty(&document(item, *is_update)).as_bytes())?;
                folder.write_event(id.as_str(), &event_of(item, *is_update, path))?;
            }
        }
        Emit::Together if items.is_empty() => {}
        Emit::Together => {
            let lines: String = items
                .iter()
                .map(|(item, is_update)| document(item, *is_update).to_string() + "\n")
                .collect();
            folder.write_data("items.ndjson", lines.as_bytes())?;
            let values = vec![("count", items.len().to_string())];
            let files = vec!["items.ndjson".to_owned()];
            folder.write_event("items", &Event { event_type: "items", files, values })?;
        }
    }
    Ok(items.len())
}

fn event_of(item: &ApiItem, is_update: bool, path: String) -> Event {
    let mut values = vec![("id", id_of(item).to_string()), ("key", short_title(&item.key))];
    let mut add = |key, value: Option<String>| values.extend(value.map(|value| (key, value)));
    add("title", item.title.as_deref().map(short_title));
    add("link", item.link.clone());
    add("time", item.time.map(|time| time.to_string()));
    add("update", is_update.then(|| "true".to_owned()));
    Event { event_type: "item", files: vec![path], values }
}
