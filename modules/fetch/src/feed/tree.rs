//! The elements of an XML document that may be broken in many ways.
//!
//! quick-xml cuts the text into tags, and this file makes a tree of them. It repairs what feeds get
//! wrong: control characters, text before the document, `<` and `&` that stand for themselves,
//! undeclared entities and prefixes, tags that are never closed or never opened, and a document
//! that is cut off. It never fetches anything and never expands an entity that names another one,
//! so a small document stays a small tree.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use url::Url;

use crate::html::escape_text;

/// How deep elements may lie. Deeper ones are put beside each other, which bounds every function
/// that goes down the tree. Pages inside of feeds reach 30.
const DEPTH_MAX: usize = 200;

/// How many declarations of namespaces count at one place. Every name is looked up among them, so
/// more make a hostile document slow. Feeds have 20.
const PREFIXES_MAX: usize = 500;

/// How many bytes the entities that a document declares may become altogether. More would let a
/// small document fill the memory; documents that declare entities use a few of them.
const ENTITY_BYTES_MAX: usize = 1024 * 1024;

/// How long an address in `xml:base` may be. It is repeated in each relative address.
const BASE_BYTES_MAX: usize = 512;

/// What an element's namespace means to a feed. All versions of RSS and Atom are one namespace,
/// because feeds mix their elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// RSS and Atom of any version, or none.
    Feed,
    /// RSS 1.0's module for content.
    Content,
    /// Dublin Core.
    Dublin,
    /// Dublin Core's newer terms.
    DublinTerms,
    /// Yahoo's Media RSS.
    Media,
    /// Apple's podcasts.
    Itunes,
    /// XHTML.
    Html,
    /// RDF.
    Rdf,
    /// The attributes `xml:base` and `xml:lang`.
    Xml,
    /// Any other.
    Other,
}

/// An element or a piece of text.
#[derive(Debug)]
pub(crate) enum Node {
    /// An element.
    Element(Element),
    /// Text without entities.
    Text(String),
}

/// An element.
#[derive(Debug)]
pub(crate) struct Element {
    /// Its namespace.
    pub(crate) namespace: Namespace,
    /// Its name without a prefix, in small letters.
    pub(crate) name: String,
    /// Its name as it stands in the document.
    pub(crate) written: String,
    /// Its attributes.
    pub(crate) attributes: Vec<Attribute>,
    /// What it contains.
    pub(crate) children: Vec<Node>,
    /// The address that relative ones in it begin at.
    pub(crate) base: Option<Rc<Url>>,
}

/// An attribute.
#[derive(Debug)]
pub(crate) struct Attribute {
    namespace: Namespace,
    name: String,
    written: String,
    value: String,
}

impl Element {
    /// Returns the value of an attribute without a namespace.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attribute_in(Namespace::Feed, name)
    }

    /// Returns the value of an attribute of a namespace.
    pub(crate) fn attribute_in(&self, namespace: Namespace, name: &str) -> Option<&str> {
        let found = self.attributes.iter().find(|a| a.namespace == namespace && a.name == name)?;
        Some(&found.value)
    }

    /// Whether this is the element of this name and namespace.
    pub(crate) fn is(&self, namespace: Namespace, name: &str) -> bool {
        self.namespace == namespace && self.name == name
    }

    /// Returns the elements in it.
    pub(crate) fn elements(&self) -> impl Iterator<Item = &Element> {
        self.children.iter().filter_map(|node| match node {
            Node::Element(element) => Some(element),
            Node::Text(_) => None,
        })
    }

    /// Returns the text in it, without that of its elements and without white space around it.
    pub(crate) fn text(&self) -> String {
        let texts = self.children.iter().filter_map(|node| match node {
            Node::Text(text) => Some(&**text),
            Node::Element(_) => None,
        });
        texts.collect::<String>().trim().to_owned()
    }

    /// Returns what is in it as HTML: elements of XHTML without their prefixes.
    pub(crate) fn inner_html(&self) -> String {
        let mut html = String::new();
        write_nodes(&self.children, &mut html);
        html.trim().to_owned()
    }
}

fn write_nodes(nodes: &[Node], html: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => html.push_str(&escape_text(text)),
            Node::Element(element) => {
                let name = element.written.rsplit(':').next().unwrap_or(&element.written);
                html.push('<');
                html.push_str(name);
                for attribute in &element.attributes {
                    html.push(' ');
                    html.push_str(&attribute.written);
                    html.push_str("=\"");
                    html.push_str(&escape_text(&attribute.value).replace('"', "&quot;"));
                    html.push('"');
                }
                if element.children.is_empty() && crate::html::is_void(&element.name) {
                    html.push_str(" />");
                } else {
                    html.push('>');
                    write_nodes(&element.children, html);
                    html.push_str("</");
                    html.push_str(name);
                    html.push('>');
                }
            }
        }
    }
}

/// Returns the elements at the top of a document that came from `base`.
pub(crate) fn parse(text: &str, base: Option<Url>) -> Vec<Node> {
    let text = repaired(text);
    let mut reader = Reader::from_str(&text);
    let config = reader.config_mut();
    config.check_end_names = false;
    config.allow_unmatched_ends = true;
    config.allow_dangling_amp = true;
    let mut tree = Tree::new(base);
    loop {
        match reader.read_event() {
            Ok(Event::Start(start)) => tree.open(&start),
            Ok(Event::Empty(start)) => {
                tree.open(&start);
                tree.close(start.name().as_ref());
            }
            Ok(Event::End(end)) => tree.close(end.name().as_ref()),
            Ok(Event::Text(text)) => tree.add_text(&String::from_utf8_lossy(&text)),
            Ok(Event::CData(text)) => tree.add_text(&String::from_utf8_lossy(&text)),
            Ok(Event::GeneralRef(name)) => {
                let text = tree.entities.resolve(&String::from_utf8_lossy(&name));
                tree.add_text(&text);
            }
            Ok(Event::DocType(declaration)) => {
                tree.entities.declare(&String::from_utf8_lossy(&declaration));
            }
            Ok(Event::Comment(_) | Event::PI(_) | Event::Decl(_)) => {}
            // An error is the end of what can be read: the document is cut inside of a tag.
            Ok(Event::Eof) | Err(_) => return tree.into_nodes(),
        }
    }
}

/// Returns the text without what stands before the first tag and without control characters, with
/// each `<` escaped that begins no tag.
fn repaired(text: &str) -> String {
    let start = text.find('<').unwrap_or(text.len());
    let mut rest = &text[start..];
    let mut repaired = String::with_capacity(rest.len());
    while let Some(at) = rest.find('<') {
        push_clean(&rest[..at], &mut repaired);
        rest = &rest[at..];
        let whole = |end: &str| rest.find(end).map_or(rest.len(), |found| found + end.len());
        let next = rest[1..].chars().next();
        if rest.starts_with("<![CDATA[") || rest.starts_with("<!--") {
            let is_cdata = rest.starts_with("<![");
            let length = whole(if is_cdata { "]]>" } else { "-->" });
            push_clean(&rest[..length], &mut repaired);
            // The end of a section that was cut off.
            if is_cdata && !rest[..length].ends_with("]]>") {
                repaired.push_str("]]>");
            }
            rest = &rest[length..];
        } else {
            let is_tag =
                next.is_some_and(|c| c.is_alphabetic() || matches!(c, '/' | '!' | '?' | '_'));
            repaired.push_str(if is_tag { "<" } else { "&lt;" });
            rest = &rest[1..];
        }
    }
    push_clean(rest, &mut repaired);
    repaired
}

/// Appends the text without characters that XML does not allow. Characters of the range C1 are
/// those of windows-1252 at the same numbers: nothing else puts them into feeds.
fn push_clean(text: &str, into: &mut String) {
    for c in text.chars() {
        match c {
            '\t' | '\n' | '\r' => into.push(c),
            '\u{0}'..='\u{1F}' | '\u{7F}' | '\u{FFFE}' | '\u{FFFF}' => {}
            _ => into.push(windows_1252(c)),
        }
    }
}

/// Returns the character that a number of the range C1 is meant to be.
fn windows_1252(c: char) -> char {
    match u8::try_from(u32::from(c)) {
        Ok(byte @ 0x80..=0x9F) => {
            encoding_rs::WINDOWS_1252.decode(&[byte]).0.chars().next().unwrap_or(c)
        }
        _ => c,
    }
}

/// The entities that a document declares. Only values without a further entity count, so that no
/// entity grows by naming others.
struct Entities {
    declared: HashMap<String, String>,
    /// How many bytes they may still become.
    bytes_left: Cell<usize>,
}

impl Entities {
    /// Reads the entities of a document type declaration.
    fn declare(&mut self, declaration: &str) {
        for part in declaration.split("<!ENTITY").skip(1) {
            let part = part.trim_start();
            let Some((name, value)) = part.split_once(char::is_whitespace) else { continue };
            let value = value.trim_start();
            let Some(quote @ ('"' | '\'')) = value.chars().next() else { continue };
            let Some((value, _)) = value[1..].split_once(quote) else { continue };
            let is_plain = value.split('&').skip(1).all(|rest| rest.starts_with('#'));
            if is_plain && value.len() <= 256 && self.declared.len() < 1000 {
                let value = self.replace(value);
                self.declared.entry(name.to_owned()).or_insert(value);
            }
        }
    }

    /// Returns what the entity stands for: declared ones, those of HTML, and numbers. An unknown
    /// entity stands for itself.
    fn resolve(&self, name: &str) -> String {
        let number =
            name.strip_prefix('#').and_then(|digits| match digits.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => digits.parse().ok(),
            });
        if let Some(c) = number.and_then(char::from_u32) {
            let mut text = String::new();
            push_clean(c.encode_utf8(&mut [0; 4]), &mut text);
            return text;
        }
        if let Some(declared) = self.declared.get(name)
            && let Some(left) = self.bytes_left.get().checked_sub(declared.len())
        {
            self.bytes_left.set(left);
            return declared.clone();
        }
        match crate::html::entity(name) {
            Some(text) => text,
            None => format!("&{name};"),
        }
    }

    /// Returns the text with its entities replaced. An `&` that begins none stands for itself.
    fn replace(&self, text: &str) -> String {
        let mut parts = text.split('&');
        let mut replaced = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            match part.split_once(';') {
                Some((name, rest))
                    if !name.is_empty()
                        && name.chars().all(|c| c.is_alphanumeric() || c == '#') =>
                {
                    replaced.push_str(&self.resolve(name));
                    replaced.push_str(rest);
                }
                _ => {
                    replaced.push('&');
                    replaced.push_str(part);
                }
            }
        }
        replaced
    }
}

/// A tree that is being made: the elements that are open, and what is done at the top.
struct Tree {
    entities: Entities,
    base: Option<Rc<Url>>,
    top: Vec<Node>,
    open: Vec<Element>,
    /// The namespaces that each open element declares.
    prefixes: Vec<(usize, String, Namespace)>,
}

impl Tree {
    fn new(base: Option<Url>) -> Self {
        Self {
            entities: Entities {
                declared: HashMap::new(),
                bytes_left: Cell::new(ENTITY_BYTES_MAX),
            },
            base: base.map(Rc::new),
            top: Vec::new(),
            open: Vec::new(),
            prefixes: Vec::new(),
        }
    }

    fn open(&mut self, start: &BytesStart<'_>) {
        self.close_void();
        if self.open.len() >= DEPTH_MAX {
            self.close_last();
        }
        let depth = self.open.len() + 1;
        let mut pairs = Vec::new();
        for attribute in start.html_attributes().with_checks(false).flatten() {
            let name = String::from_utf8_lossy(attribute.key.as_ref()).into_owned();
            let value = self.entities.replace(&String::from_utf8_lossy(&attribute.value));
            let prefix = match name.split_once(':') {
                Some(("xmlns", prefix)) => Some(prefix),
                None if name == "xmlns" => Some(""),
                _ => None,
            };
            if let Some(prefix) = prefix {
                if self.prefixes.len() < PREFIXES_MAX {
                    self.prefixes.push((depth, prefix.to_owned(), namespace_of(&value)));
                }
            } else {
                pairs.push((name, value));
            }
        }
        let attributes = pairs
            .into_iter()
            .map(|(written, value)| {
                let (namespace, name) = match written.split_once(':') {
                    Some((prefix, name)) => (self.namespace_of_prefix(prefix), name),
                    None => (Namespace::Feed, &*written),
                };
                Attribute { namespace, name: name.to_lowercase(), written, value }
            })
            .collect();
        let written = String::from_utf8_lossy(start.name().as_ref()).into_owned();
        let (namespace, name) = match written.split_once(':') {
            Some((prefix, name)) => (self.namespace_of_prefix(prefix), name),
            None => (self.namespace_of_prefix(""), &*written),
        };
        let name = name.to_lowercase();
        let mut element =
            Element { namespace, name, written, attributes, children: Vec::new(), base: None };
        element.base = self.base_in(&element);
        self.open.push(element);
    }

    /// Returns the address that relative ones in the element begin at.
    fn base_in(&self, element: &Element) -> Option<Rc<Url>> {
        let outer = match self.open.last() {
            Some(parent) => &parent.base,
            None => &self.base,
        };
        // CDF has the attribute without a namespace.
        let given = element.attribute_in(Namespace::Xml, "base");
        let Some(given) = given.or_else(|| element.attribute("base")) else {
            return outer.clone();
        };
        match crate::html::resolve(outer.as_deref(), given) {
            Some(url) if url.as_str().len() <= BASE_BYTES_MAX => Some(Rc::new(url)),
            _ => outer.clone(),
        }
    }

    fn namespace_of_prefix(&self, prefix: &str) -> Namespace {
        let declared = self.prefixes.iter().rev().find(|(_, declared, _)| declared == prefix);
        match declared {
            Some((_, _, namespace)) => *namespace,
            None => usual_namespace(prefix),
        }
    }

    /// Closes an element of HTML that nothing can be in, and that its writer did not close.
    fn close_void(&mut self) {
        let is_void = |element: &Element| matches!(&*element.name, "br" | "hr" | "img" | "wbr");
        if self.open.last().is_some_and(is_void) {
            self.close_last();
        }
    }

    fn add_text(&mut self, text: &str) {
        self.close_void();
        let Some(element) = self.open.last_mut() else { return };
        match element.children.last_mut() {
            Some(Node::Text(before)) => before.push_str(text),
            _ => element.children.push(Node::Text(text.to_owned())),
        }
    }

    /// Closes the innermost open element of this name, and those in it that were never closed. An
    /// end without a beginning closes nothing.
    fn close(&mut self, written: &[u8]) {
        let is_it = |element: &Element| element.written.as_bytes() == written.trim_ascii();
        let Some(at) = self.open.iter().rposition(is_it) else { return };
        while self.open.len() > at {
            self.close_last();
        }
    }

    fn close_last(&mut self) {
        let Some(element) = self.open.pop() else { return };
        while self.prefixes.last().is_some_and(|(depth, ..)| *depth > self.open.len()) {
            self.prefixes.pop();
        }
        let around = self.open.last_mut().map_or(&mut self.top, |parent| &mut parent.children);
        around.push(Node::Element(element));
    }

    fn into_nodes(mut self) -> Vec<Node> {
        while !self.open.is_empty() {
            self.close_last();
        }
        self.top
    }
}

/// Returns the namespace that an address stands for.
fn namespace_of(address: &str) -> Namespace {
    let address = address.trim().to_lowercase();
    if address.contains("backend.userland.com/rss") {
        return Namespace::Feed;
    }
    match &*address {
        ""
        | "http://blogs.law.harvard.edu/tech/rss"
        | "http://purl.org/rss/1.0/"
        | "http://my.netscape.com/rdf/simple/0.9/"
        | "http://example.com/newformat#"
        | "http://example.com/necho"
        | "http://purl.org/echo/"
        | "uri/of/echo/namespace#"
        | "http://purl.org/pie/"
        | "http://purl.org/atom/ns#"
        | "http://www.w3.org/2005/atom"
        | "http://purl.org/rss/1.0/modules/rss091#" => Namespace::Feed,
        "http://purl.org/rss/1.0/modules/content/" => Namespace::Content,
        "http://purl.org/dc/elements/1.1/" => Namespace::Dublin,
        "http://purl.org/dc/terms/" => Namespace::DublinTerms,
        "http://search.yahoo.com/mrss" | "http://search.yahoo.com/mrss/" => Namespace::Media,
        "http://www.itunes.com/dtds/podcast-1.0.dtd"
        | "http://example.com/dtds/podcast-1.0.dtd" => Namespace::Itunes,
        "http://www.w3.org/1999/xhtml" => Namespace::Html,
        "http://www.w3.org/1999/02/22-rdf-syntax-ns#" => Namespace::Rdf,
        _ => Namespace::Other,
    }
}

/// Returns the namespace that a prefix has in most feeds, for feeds that do not declare it.
fn usual_namespace(prefix: &str) -> Namespace {
    match &*prefix.to_lowercase() {
        "" | "atom" | "rss" => Namespace::Feed,
        "xml" => Namespace::Xml,
        "content" => Namespace::Content,
        "dc" => Namespace::Dublin,
        "dcterms" => Namespace::DublinTerms,
        "media" => Namespace::Media,
        "itunes" => Namespace::Itunes,
        "xhtml" => Namespace::Html,
        "rdf" => Namespace::Rdf,
        _ => Namespace::Other,
    }
}

#[cfg(test)]
mod tests;
