//! What the elements of RSS, Atom and CDF mean.
//!
//! A feed is the first `<rss>`, `<rdf:RDF>`, `<feed>` or `<channel>`; its items are all `<item>`
//! and `<entry>` in it, wherever they stand. Each version has names of its own for the same thing, and
//! all of them are read in every feed.

use jiff::Timestamp;
use url::Url;

use super::texts::{Text, Usual, address_in, author_in, text_in};
use super::tree::{Element, Namespace, Node};
use super::{Enclosure, Feed, ITEMS_MAX, Item};
use crate::dates::parse_date;

/// How many files of one item are read. More let a hostile feed fill the memory.
const ENCLOSURES_MAX: usize = 100;

/// How many categories of one item are read. Each is compared with those before it.
const CATEGORIES_MAX: usize = 1000;

/// Reads the feed among these elements, if there is one.
pub(super) fn read(nodes: &[Node]) -> Option<Feed> {
    let root = find(nodes, &|element| {
        element.is(Namespace::Rdf, "rdf")
            || (element.namespace == Namespace::Feed
                && matches!(&*element.name, "rss" | "rdf" | "feed" | "channel"))
    })?;
    let mut feed = Feed::default();
    let usual = Usual::of_feed(root);
    read_head(root, usual, &mut feed);
    read_items(root, usual, &mut feed.items);
    Some(feed)
}

impl Usual {
    /// Returns what titles are if their element does not say it: Atom has plain ones.
    fn of_feed(root: &Element) -> Self {
        if root.name == "feed" { Self::Plain } else { Self::Guess }
    }
}

/// Whether these elements are those of a web page.
pub(super) fn is_web_page(nodes: &[Node]) -> bool {
    find(nodes, &|element| matches!(&*element.name, "html" | "head" | "body")).is_some()
}

/// Returns the addresses of the feeds that a web page names.
pub(super) fn feeds_of_page(nodes: &[Node], address: Option<&Url>) -> Vec<String> {
    fn collect(element: &Element, address: Option<&Url>, found: &mut Vec<String>) {
        let kind = element.attribute("type").unwrap_or_default();
        if element.name == "link"
            && element.attribute("rel") == Some("alternate")
            && ["rss", "atom", "feed+json"].iter().any(|feed| kind.contains(feed))
            && let Some(href) = element.attribute("href")
            && let Some(url) = crate::html::resolve(address, href)
            && found.len() < 10
        {
            found.push(url.into());
        }
        for inner in element.elements() {
            collect(inner, address, found);
        }
    }
    let mut found = Vec::new();
    for node in nodes {
        if let Node::Element(element) = node {
            collect(element, address, &mut found);
        }
    }
    found
}

/// Returns the first element that is wanted, at any depth.
fn find<'a>(nodes: &'a [Node], is_wanted: &dyn Fn(&Element) -> bool) -> Option<&'a Element> {
    nodes.iter().find_map(|node| match node {
        Node::Element(element) if is_wanted(element) => Some(element),
        Node::Element(element) => find(&element.children, is_wanted),
        Node::Text(_) => None,
    })
}

/// Whether the element is an item.
fn is_item(element: &Element) -> bool {
    element.namespace == Namespace::Feed && matches!(&*element.name, "item" | "entry")
}

/// Reads what stands beside the items. In RSS it is in `<channel>`.
fn read_head(root: &Element, usual: Usual, feed: &mut Feed) {
    if feed.language.is_none() {
        feed.language = language_of(root);
    }
    if let Some(href) = root.attribute("href") {
        feed.link = address_in(root, href);
    }
    if let Some(date) = root.attribute("lastmod") {
        feed.updated = parse_date(date);
    }
    for element in root.elements() {
        match Meaning::of(element) {
            _ if is_item(element) => {}
            Some(Meaning::Title) if feed.title.is_none() => feed.title = title(element, usual),
            Some(Meaning::Link) => {
                if let Some(Link::Page(link)) = read_link(element) {
                    feed.link = Some(link);
                }
            }
            Some(Meaning::Author) => feed.authors.extend(author_in(element)),
            Some(Meaning::Updated) => set(&mut feed.updated, parse_date(&element.text())),
            None if element.namespace == Namespace::Feed => match &*element.name {
                "channel" => read_head(element, usual, feed),
                "language" => set(&mut feed.language, language(&element.text())),
                "ttl" => set(&mut feed.ttl_minutes, element.text().parse().ok()),
                _ => {}
            },
            None if element.is(Namespace::Dublin, "language") => {
                set(&mut feed.language, language(&element.text()));
            }
            _ => {}
        }
    }
}

fn language_of(element: &Element) -> Option<String> {
    element.attribute_in(Namespace::Xml, "lang").and_then(language)
}

/// Returns the tag of a language. Some feeds write it like a locale, with an underscore.
fn language(text: &str) -> Option<String> {
    some(text.trim().replace('_', "-"))
}

fn read_items(element: &Element, usual: Usual, items: &mut Vec<Item>) {
    for element in element.elements() {
        if items.len() >= ITEMS_MAX {
            return;
        }
        if is_item(element) {
            items.push(ItemReader::read(element, usual));
        } else {
            read_items(element, usual, items);
        }
    }
}

/// What an element of an item or of a feed says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Title,
    Link,
    Guid,
    Author,
    Published,
    Created,
    Updated,
    Summary,
    Description,
    Content,
    Category,
    Keywords,
    Enclosure,
    Image,
    MediaTitle,
    MediaDescription,
    Group,
}

impl Meaning {
    fn of(element: &Element) -> Option<Self> {
        use Namespace::{Content, Dublin, DublinTerms, Feed, Html, Itunes, Media};
        Some(match (element.namespace, &*element.name) {
            (Feed | Dublin, "title") => Self::Title,
            (Feed, "link") => Self::Link,
            (Feed, "guid" | "id") => Self::Guid,
            (Feed, "author" | "managingeditor")
            | (Dublin, "author" | "creator")
            | (Itunes, "author") => Self::Author,
            (Feed, "published" | "issued" | "pubdate") | (DublinTerms, "issued") => Self::Published,
            (Feed, "created") | (DublinTerms, "created") => Self::Created,
            (Feed, "updated" | "modified" | "lastbuilddate")
            | (Dublin, "date")
            | (DublinTerms, "modified") => Self::Updated,
            (Media, "title") => Self::MediaTitle,
            (Media, "description") => Self::MediaDescription,
            (Feed | Itunes, "summary") => Self::Summary,
            (Feed | Dublin, "description") | (Feed, "abstract") => Self::Description,
            (Feed, "content" | "body" | "fullitem") | (Content, "encoded") | (Html, "body") => {
                Self::Content
            }
            (Feed, "category" | "keywords")
            | (Itunes, "category")
            | (Dublin, "subject")
            | (Media, "category") => Self::Category,
            (Media | Itunes, "keywords") => Self::Keywords,
            (Feed, "enclosure") => Self::Enclosure,
            (Media, "thumbnail" | "content") | (Itunes, "image") => Self::Image,
            (Media, "group") => Self::Group,
            _ => return None,
        })
    }
}

/// An item that is being read.
struct ItemReader {
    item: Item,
    usual: Usual,
    created: Option<Timestamp>,
    /// The page that a guid is, if nothing else names one.
    permalink: Option<String>,
    /// What its media are called, if the item itself has no title.
    media_title: Option<String>,
    /// What its media show, if the item itself has no summary.
    media_description: Option<String>,
}

impl ItemReader {
    fn read(element: &Element, usual: Usual) -> Item {
        let mut reader = Self {
            item: Item::default(),
            usual,
            created: None,
            permalink: None,
            media_title: None,
            media_description: None,
        };
        reader.item.guid =
            element.attribute_in(Namespace::Rdf, "about").and_then(|id| some(id.to_owned()));
        if let Some(href) = element.attribute("href") {
            reader.item.link = address_in(element, href);
        }
        reader.item.updated = element.attribute("lastmod").and_then(parse_date);
        for part in element.elements() {
            reader.read_part(part);
        }
        let mut item = reader.item;
        item.link = item.link.or(reader.permalink);
        item.published = item.published.or(reader.created);
        item.title = item.title.or(reader.media_title);
        item.summary = item.summary.or(reader.media_description);
        item
    }

    fn read_part(&mut self, element: &Element) {
        let item = &mut self.item;
        match Meaning::of(element) {
            Some(Meaning::Title) if item.title.is_none() => item.title = title(element, self.usual),
            Some(Meaning::Link) => match read_link(element) {
                Some(Link::Page(link)) => item.link = Some(link),
                Some(Link::Enclosure(enclosure)) => self.add_enclosure(enclosure),
                None => {}
            },
            Some(Meaning::Guid) => self.read_guid(element),
            Some(Meaning::Author) => item.authors.extend(author_in(element)),
            Some(Meaning::Published) => set(&mut item.published, parse_date(&element.text())),
            Some(Meaning::Created) => set(&mut self.created, parse_date(&element.text())),
            Some(Meaning::Updated) => set(&mut item.updated, parse_date(&element.text())),
            Some(Meaning::Summary) => self.add_summary(text_in(element, Usual::Plain)),
            Some(Meaning::Description) => {
                let is_plain = element.name == "abstract";
                let usual = if is_plain { Usual::Plain } else { Usual::Html };
                self.add_summary(text_in(element, usual));
            }
            Some(Meaning::Content) => self.read_content(element),
            Some(Meaning::Category) => self.read_category(element),
            Some(Meaning::Keywords) => {
                for word in element.text().split(',') {
                    self.add_category(word);
                }
            }
            Some(Meaning::Enclosure) => {
                if let Some(enclosure) = read_enclosure(element) {
                    self.add_enclosure(enclosure);
                }
            }
            Some(Meaning::Image) => self.read_image(element),
            Some(Meaning::MediaTitle) => set(&mut self.media_title, title(element, self.usual)),
            Some(Meaning::MediaDescription) => {
                set(&mut self.media_description, some(text_in(element, Usual::Html).html()));
            }
            Some(Meaning::Group) => {
                for part in element.elements() {
                    self.read_part(part);
                }
            }
            Some(Meaning::Title) | None => {}
        }
    }

    fn read_guid(&mut self, element: &Element) {
        let text = element.text();
        if text.is_empty() {
            return;
        }
        let is_permalink = element.name == "guid"
            && element.attribute("ispermalink").is_none_or(|it| it == "true");
        if is_permalink {
            self.permalink = address_in(element, &text);
        }
        self.item.guid = Some(text);
    }

    /// Keeps the first summary. A second one is the content, if there is no other.
    fn add_summary(&mut self, text: Text) {
        if text.is_empty() {
            return;
        }
        if self.item.summary.is_none() {
            self.item.summary = Some(text.html());
        } else if self.item.content.is_none() {
            self.item.content = Some(text.html());
        }
    }

    fn read_content(&mut self, element: &Element) {
        let usual = if element.name == "content" { Usual::Plain } else { Usual::Html };
        let text = text_in(element, usual);
        if self.item.content.is_none() && !text.is_empty() {
            self.item.content = Some(text.html());
        }
    }

    fn read_category(&mut self, element: &Element) {
        let text = element.text();
        match element.attribute("term").or_else(|| element.attribute("text")) {
            Some(term) => self.add_category(term),
            None => self.add_category(&text),
        }
        // Apple's categories lie in each other.
        for inner in element.elements() {
            if inner.is(Namespace::Itunes, "category") {
                self.read_category(inner);
            }
        }
    }

    fn add_enclosure(&mut self, enclosure: Enclosure) {
        if self.item.enclosures.len() < ENCLOSURES_MAX {
            self.item.enclosures.push(enclosure);
        }
    }

    fn add_category(&mut self, term: &str) {
        let term = term.trim();
        let is_known = |known: &String| known == term;
        if !term.is_empty()
            && self.item.categories.len() < CATEGORIES_MAX
            && !self.item.categories.iter().any(is_known)
        {
            self.item.categories.push(term.to_owned());
        }
    }

    /// Reads a picture. The first one counts.
    fn read_image(&mut self, element: &Element) {
        let is_picture = element.name != "content"
            || element.attribute("medium") == Some("image")
            || element.attribute("type").is_some_and(|kind| kind.starts_with("image/"));
        let given = element.attribute("url").or_else(|| element.attribute("href"));
        if is_picture
            && self.item.image.is_none()
            && let Some(given) = given
        {
            self.item.image = address_in(element, given);
        }
    }
}

/// Sets the value if there is a new one: the last element of a name counts, if it can be read.
fn set<T>(value: &mut Option<T>, new: Option<T>) {
    if new.is_some() {
        *value = new;
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn title(element: &Element, usual: Usual) -> Option<String> {
    some(text_in(element, usual).plain())
}

/// What a link leads to.
enum Link {
    /// The page of the item or of the feed.
    Page(String),
    /// A file.
    Enclosure(Enclosure),
}

/// Reads a link: RSS has the address as its text, Atom as an attribute, with its purpose.
fn read_link(element: &Element) -> Option<Link> {
    let Some(href) = attribute_of_address(element) else {
        return address_in(element, &element.text()).map(Link::Page);
    };
    let kind = element.attribute("type").map(str::to_ascii_lowercase);
    match element.attribute("rel").map(str::to_ascii_lowercase).as_deref() {
        None | Some("alternate") => {
            let is_page = kind.as_deref().is_none_or(|kind| kind.contains("html"));
            is_page.then(|| address_in(element, href).map(Link::Page))?
        }
        Some("enclosure") => read_enclosure(element).map(Link::Enclosure),
        _ => None,
    }
}

fn attribute_of_address(element: &Element) -> Option<&str> {
    ["url", "uri", "href"].iter().find_map(|name| element.attribute(name))
}

fn read_enclosure(element: &Element) -> Option<Enclosure> {
    Some(Enclosure {
        url: address_in(element, attribute_of_address(element)?)?,
        media_type: element.attribute("type").and_then(|kind| some(kind.trim().to_owned())),
        length: element.attribute("length").and_then(|length| length.trim().parse().ok()),
    })
}
