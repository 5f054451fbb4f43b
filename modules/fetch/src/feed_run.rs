//! One run over one feed.
//!
//! Flow: read the state, ask the server with the state's validators, read the feed, let
//! [`feed_state::next`] decide what is published, read the pages of these items if they are wanted,
//! then write results, events and last the state.
//!
//! Guarantees: events are named after their items, so a run that is repeated replaces what an
//! earlier one left. The new state names exactly the items that are published.

use std::time::Instant;

use jiff::Timestamp;
use reqwest::header::{self, HeaderName, HeaderValue};
use serde_json::{Value, json};
use url::Url;

use crate::charset::text_of_page;
use crate::feed::{Feed, FeedError, Item, ItemId, fingerprint, read_feed};
use crate::feed_state::{self, FeedState, Outcome, Step, Visit};
use crate::folder::{Event, Folder, FolderError};
use crate::http::{Answer, Client, HttpError, Request, fresh_for, retry_after, shown};
use crate::pause::REFUSALS_MAX;
use crate::run::{
    Emit, READING_TIME, RunEnd, asked_to_wait_until, chain, is_refusal, pretty, short_title,
    status_advice, write_wishes,
};
use crate::seen::{Choice, Publication, Shown};
use crate::{html, page};

/// What is wanted of a feed.
#[derive(Clone, Debug)]
pub struct FeedSettings {
    /// Its address.
    pub url: Url,
    /// Which items are published.
    pub choice: Choice,
    /// Whether the page of each item is read too.
    pub page: bool,
    /// Which events are published.
    pub emit: Emit,
    /// Whether the answer 403 means that visits come too often.
    pub forbidden_waits: bool,
    /// Whether a wait that the server asked for is ignored.
    pub ignore_wait: bool,
}

/// Why a run failed. Nothing of it counts then.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The folder cannot be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// There is no answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The answer is no feed.
    #[error("{url} cannot be read as a feed")]
    Feed {
        /// The address that answered.
        url: String,
        /// What is wrong.
        #[source]
        source: FeedError,
    },
    /// The state is damaged.
    #[error("the state in/state/feed.json is damaged; remove it to begin anew")]
    State(#[source] serde_json::Error),
    /// The server answered that something is wrong.
    #[error("{url} answered {status}{}", status_advice(*status))]
    Status {
        /// The address that answered.
        url: String,
        /// The status.
        status: u16,
    },
    /// The address in the state is none.
    #[error("{0:?} is no address")]
    Address(String),
    /// The server refuses all visits.
    #[error(
        "{url} answered {status} to {REFUSALS_MAX} visits in a row; visit it less often, or give a --contact"
    )]
    RefusedTooOften {
        /// The address.
        url: String,
        /// The status of its answers.
        status: u16,
    },
}

/// Visits a feed once.
///
/// # Errors
///
/// The run failed and is to be repeated: nothing that it wrote counts.
pub async fn run(
    client: &Client,
    folder: &Folder,
    settings: &FeedSettings,
    now: Timestamp,
) -> Result<RunEnd, RunError> {
    let seen = folder.state("seen")?.map(|seen| String::from_utf8_lossy(&seen).into_owned());
    let state = FeedState::read(folder.state("feed.json")?.as_deref(), seen.as_deref());
    let state = state.map_err(RunError::State)?.at(settings.url.as_str());
    if let Some(until) = asked_to_wait_until(folder)?
        && now < until
        && !settings.ignore_wait
        && !state.is_at_new_address()
    {
        return Ok(RunEnd::Waiting(until));
    }
    let answer = client.get(request(&state)?).await?;
    let (visit, feed) = visit_of(&answer, settings, now)?;
    let is_refused = matches!(visit.outcome, Outcome::Refused { .. });
    if is_refused && state.refusals() >= REFUSALS_MAX {
        let url = shown(&answer.url);
        return Err(RunError::RefusedTooOften { url, status: answer.status });
    }
    let mut step = feed_state::next(state, visit, &settings.choice, now);
    let published = match &feed {
        Some(feed) => publish(client, folder, settings, feed, &mut step).await?,
        None => 0,
    };
    write_state(folder, &step)?;
    Ok(match (step.gone, feed) {
        (Some(reason), _) => RunEnd::Gone(reason),
        (None, Some(_)) => RunEnd::Published(published),
        (None, None) if is_refused => {
            RunEnd::Refused { status: answer.status, until: step.not_before }
        }
        (None, None) => RunEnd::NotModified,
    })
}

fn request(state: &FeedState) -> Result<Request, RunError> {
    let address = Url::parse(state.address());
    let mut request =
        Request::get(address.map_err(|_| RunError::Address(state.address().to_owned()))?);
    let mut add = |name: HeaderName, value: &str| {
        // A value that cannot be sent back is no validator.
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            request.headers.push((name, value));
        }
    };
    add(
        header::ACCEPT,
        "application/rss+xml, application/atom+xml, application/feed+json, application/xml;q=0.9, \
         text/xml;q=0.9, */*;q=0.1",
    );
    let (etag, last_modified) = state.validators();
    if let Some(etag) = etag {
        add(header::IF_NONE_MATCH, etag);
    }
    if let Some(date) = last_modified {
        add(header::IF_MODIFIED_SINCE, date);
    }
    Ok(request)
}

/// Returns what the answer means, and the feed if it has one.
fn visit_of(
    answer: &Answer,
    settings: &FeedSettings,
    now: Timestamp,
) -> Result<(Visit, Option<Feed>), RunError> {
    let wait = retry_after(&answer.headers, now);
    let mut feed = None;
    let outcome = match answer.status {
        200..=299 => {
            let read = read_feed(&answer.body, answer.content_type(), Some(&answer.url));
            let read = read.map_err(|source| RunError::Feed { url: shown(&answer.url), source })?;
            let items = read.items.iter().map(shown_item).collect();
            let ttl_minutes = read.ttl_minutes;
            feed = Some(read);
            Outcome::Read { items, ttl_minutes }
        }
        304 => Outcome::NotModified,
        410 => Outcome::Gone,
        status if is_refusal(status, wait, settings.forbidden_waits) => Outcome::Refused { wait },
        status => return Err(RunError::Status { url: shown(&answer.url), status }),
    };
    let text = |name| answer.header(name).map(str::to_owned);
    let visit = Visit {
        moved_to: answer.moved_to.as_ref().map(Url::to_string),
        etag: text(header::ETAG),
        last_modified: text(header::LAST_MODIFIED),
        fresh_for: fresh_for(&answer.headers),
        outcome,
    };
    Ok((visit, feed))
}

fn shown_item(item: &Item) -> Shown {
    Shown {
        id: ItemId::of(item),
        fingerprint: fingerprint(item),
        date: item.published.or(item.updated),
    }
}

/// Writes the chosen items and their events, and returns how many.
async fn publish(
    client: &Client,
    folder: &Folder,
    settings: &FeedSettings,
    feed: &Feed,
    step: &mut Step,
) -> Result<usize, RunError> {
    let begin = Instant::now();
    let mut written = Vec::new();
    for publication in step.publish.clone() {
        let item = &feed.items[publication.index];
        let id = ItemId::of(item);
        if settings.page && begin.elapsed() > READING_TIME {
            step.state.forget(&id);
            continue;
        }
        let mut article = Article::new(feed, item, &id, publication);
        if let Some(link) = item.link.as_deref().filter(|_| settings.page) {
            read_page_of(client, folder, link, &mut article).await?;
        }
        written.push(article);
    }
    match settings.emit {
        Emit::Each => {
            for article in &written {
                folder
                    .write_data(&article.path("item.json"), pretty(&article.document).as_bytes())?;
                folder.write_event(article.id.as_str(), &article.event())?;
            }
        }
        Emit::Together if written.is_empty() => {}
        Emit::Together => {
            let lines: String = written.iter().map(|one| one.document.to_string() + "\n").collect();
            folder.write_data("items.ndjson", lines.as_bytes())?;
            folder.write_event("articles", &event_of_all(feed, &written))?;
        }
    }
    Ok(written.len())
}

/// An item that is being published.
struct Article<'a> {
    id: ItemId,
    item: &'a Item,
    feed: &'a Feed,
    is_update: bool,
    document: Value,
    /// The files beside `item.json`, below `out/data`.
    files: Vec<String>,
}

impl<'a> Article<'a> {
    fn new(feed: &'a Feed, item: &'a Item, id: &ItemId, publication: Publication) -> Self {
        let mut document = json!({
            "id": id.as_str(),
            "feed": {"title": feed.title, "link": feed.link, "language": feed.language},
        });
        let told = serde_json::to_value(item).expect("an item has only texts, numbers and dates");
        if let (Value::Object(document), Value::Object(told)) = (&mut document, told) {
            document.extend(told);
        }
        if item.authors.is_empty() {
            document["authors"] = json!(feed.authors);
        }
        let text = item.content.as_deref().or(item.summary.as_deref()).map(html::text_of);
        document["text"] = json!(text);
        document["update"] = json!(publication.is_update);
        let is_update = publication.is_update;
        Self { id: id.clone(), item, feed, is_update, document, files: Vec::new() }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.id)
    }

    fn event(&self) -> Event {
        let mut files = vec![self.path("item.json")];
        files.extend(self.files.iter().cloned());
        let mut values = vec![("id", self.id.to_string())];
        let mut add = |key, value: Option<String>| values.extend(value.map(|value| (key, value)));
        add("title", self.item.title.as_deref().map(short_title));
        add("link", self.item.link.clone());
        let date = self.item.published.or(self.item.updated);
        add("published", date.map(|date| date.to_string()));
        add("feed", self.feed.title.clone());
        add("update", self.is_update.then(|| "true".to_owned()));
        Event { event_type: "article", files, values }
    }
}

fn event_of_all(feed: &Feed, articles: &[Article<'_>]) -> Event {
    let mut files = vec!["items.ndjson".to_owned()];
    files.extend(articles.iter().flat_map(|article| article.files.iter().cloned()));
    let mut values = vec![("count", articles.len().to_string())];
    values.extend(feed.title.clone().map(|title| ("feed", title)));
    Event { event_type: "articles", files, values }
}

/// Reads the page of an item and its picture. A page that cannot be read does not hold up its item:
/// `item.json` says what was wrong.
async fn read_page_of(
    client: &Client,
    folder: &Folder,
    link: &str,
    article: &mut Article<'_>,
) -> Result<(), RunError> {
    let told = match fetch_page(client, link).await {
        Err(reason) => json!({"error": reason}),
        Ok(answer) => {
            let text = text_of_page(&answer.body, answer.content_type());
            let page = page::read_page(&text, &answer.url);
            for (name, content) in [("page.html", &text), ("page.txt", &page.text)] {
                article.files.push(article.path(name));
                folder.write_data(&article.path(name), content.as_bytes())?;
            }
            let picture = article.item.image.clone().or(page.picture);
            let mut told = json!({
                "url": answer.url.as_str(),
                "title": page.title,
                "description": page.description,
                "picture": picture,
            });
            match fetch_picture(client, picture.as_deref()).await {
                Ok(Some((name, bytes))) => {
                    article.files.push(article.path(&name));
                    folder.write_data(&article.path(&name), &bytes)?;
                    told["pictureFile"] = json!(article.path(&name));
                }
                Ok(None) => {}
                Err(reason) => told["pictureError"] = json!(reason),
            }
            told
        }
    };
    article.document["page"] = told;
    Ok(())
}

async fn fetch_page(client: &Client, link: &str) -> Result<Answer, String> {
    let answer = fetch(client, link, "text/html, application/xhtml+xml;q=0.9").await?;
    match answer.content_type() {
        Some(kind) if !kind.contains("html") => Err(format!("{link} is {kind} and no page")),
        _ => Ok(answer),
    }
}

/// Returns the name of a file for the picture, and its bytes.
async fn fetch_picture(
    client: &Client,
    picture: Option<&str>,
) -> Result<Option<(String, Vec<u8>)>, String> {
    let Some(picture) = picture else { return Ok(None) };
    let answer = fetch(client, picture, "image/*").await?;
    let kind = answer.content_type().unwrap_or_default().to_ascii_lowercase();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let ending = match kind.strip_prefix("image/") {
        Some("jpeg" | "jpg") => "jpg",
        Some(kind @ ("png" | "gif" | "webp" | "avif")) => kind,
        Some("svg+xml") => "svg",
        _ => return Err(format!("{picture} is {kind:?} and no picture")),
    };
    Ok(Some((format!("picture.{ending}"), answer.body)))
}

async fn fetch(client: &Client, address: &str, accept: &'static str) -> Result<Answer, String> {
    let url = Url::parse(address).map_err(|error| format!("{address:?} is no address: {error}"))?;
    let mut request = Request::get(url);
    request.headers.push((header::ACCEPT, HeaderValue::from_static(accept)));
    match client.get(request).await {
        Ok(answer) if (200..300).contains(&answer.status) => Ok(answer),
        Ok(answer) => Err(format!("{} answered {}", shown(&answer.url), answer.status)),
        Err(error) => Err(chain(&error)),
    }
}

fn write_state(folder: &Folder, step: &Step) -> Result<(), FolderError> {
    folder.set_state("feed.json", Some(step.state.to_json().as_bytes()))?;
    folder.set_state("seen", Some(step.state.seen_lines().as_bytes()))?;
    write_wishes(folder, step.not_before, step.gone.as_deref())
}
