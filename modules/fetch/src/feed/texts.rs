//! The texts of a feed: whether an element holds plain text or HTML, in which of five ways it is
//! written, and who a line names as an author.

use url::Url;

use super::Author;
use super::tree::{Element, Namespace};
use crate::html::{self, escape_text};

/// What an element's text is if nothing in the document says it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Usual {
    /// Plain text, or HTML where it looks like it: RSS leaves this open.
    Guess,
    /// Plain text.
    Plain,
    /// HTML.
    Html,
}

/// A text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// Plain text.
    Plain(String),
    /// HTML.
    Html(String),
}

impl Text {
    /// Returns it as plain text on one line.
    pub(super) fn plain(&self) -> String {
        match self {
            Self::Plain(text) => html::tidy_lines(text).replace('\n', " "),
            Self::Html(text) => html::text_of(text).replace('\n', " "),
        }
    }

    /// Returns it as HTML.
    pub(super) fn html(self) -> String {
        match self {
            Self::Plain(text) => escape_text(&text).into_owned(),
            Self::Html(text) => text,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Plain(text) | Self::Html(text) => text.is_empty(),
        }
    }
}

/// Returns the text of an element. `type` says what it is in Atom 1.0, and `type` and `mode` do in
/// Atom 0.3. HTML has whole addresses afterwards.
pub(super) fn text_in(element: &Element, usual: Usual) -> Text {
    let kind = element.attribute("type").map(|kind| kind.trim().to_ascii_lowercase());
    let kind = kind.as_deref().map(|kind| kind.split(';').next().unwrap_or(kind).trim());
    let is_markup = element.elements().next().is_some();
    let is_base64 = element.attribute("mode").is_some_and(|mode| mode == "base64");
    if is_base64 || kind.is_some_and(|kind| is_binary(kind) && !is_markup) {
        return match decoded(&element.text()) {
            Some(text) if kind == Some("text/plain") => Text::Plain(text),
            Some(text) if kind.is_none() && usual != Usual::Html => Text::Plain(text),
            Some(text) => with_whole_addresses(text, element),
            None => Text::Plain(element.text()),
        };
    }
    if is_markup {
        // Elements inside of an element that was declared as escaped text are elements all the
        // same.
        let inner = match only_div(element) {
            Some(div) if kind == Some("xhtml") => div.inner_html(),
            // Some writers put a div of XML around text that they have escaped.
            Some(div) if kind == Some("html") && div.elements().next().is_none() => div.text(),
            _ => element.inner_html(),
        };
        return with_whole_addresses(inner, element);
    }
    let text = element.text();
    match kind {
        Some("text" | "plain" | "text/plain") if usual != Usual::Guess => Text::Plain(text),
        Some("html" | "text/html") => with_whole_addresses(text, element),
        // XHTML without an element is its text; the writer escaped what was to be markup.
        Some(kind) if kind == "xhtml" || kind.ends_with("xml") => {
            let text = match usual {
                Usual::Html => text,
                Usual::Plain | Usual::Guess => escape_text(&text).into_owned(),
            };
            with_whole_addresses(text, element)
        }
        _ => match usual {
            Usual::Html => with_whole_addresses(text, element),
            Usual::Guess if html::looks_like_html(&text) => with_whole_addresses(text, element),
            Usual::Guess | Usual::Plain => Text::Plain(text),
        },
    }
}

/// Whether content of this type is written in base64, because it is neither text nor XML.
fn is_binary(kind: &str) -> bool {
    kind.contains('/')
        && !kind.starts_with("text/")
        && !kind.ends_with("+xml")
        && !kind.ends_with("/xml")
}

/// Returns the `<div>` that Atom puts around XHTML, if there is nothing beside it.
fn only_div(element: &Element) -> Option<&Element> {
    use super::tree::Node;
    let mut only = None;
    for node in &element.children {
        match node {
            Node::Text(text) if text.trim().is_empty() => {}
            Node::Element(inner) if only.is_none() && inner.name == "div" => only = Some(inner),
            Node::Text(_) | Node::Element(_) => return None,
        }
    }
    only
}

fn with_whole_addresses(text: String, element: &Element) -> Text {
    match element.base.as_deref() {
        Some(base) if text.contains('=') => Text::Html(html::absolute(&text, base)),
        _ => Text::Html(text),
    }
}

/// Returns the text that base64 stands for.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            b'=' => break,
            _ if byte.is_ascii_whitespace() => continue,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xFF).unwrap_or_default());
        }
    }
    String::from_utf8(bytes).ok().map(|text| text.trim().to_owned())
}

/// Returns the address that an element's text or attribute gives.
pub(super) fn address_in(element: &Element, given: &str) -> Option<String> {
    let given = given.trim();
    if given.is_empty() {
        return None;
    }
    match html::resolve(element.base.as_deref(), given) {
        // What was whole already stays as it was written.
        Some(url) if Url::parse(given).is_err() => Some(url.into()),
        _ => Some(given.to_owned()),
    }
}

/// Returns the author that an element names: by elements for name, mail and page, or by one line.
pub(super) fn author_in(element: &Element) -> Option<Author> {
    let mut author = Author::default();
    for part in element.elements() {
        let text = part.text();
        if text.is_empty() || !matches!(part.namespace, Namespace::Feed | Namespace::Itunes) {
            continue;
        }
        match &*part.name {
            "name" => author.name = Some(text),
            "email" => author.email = Some(text),
            "uri" | "url" | "homepage" => author.url = address_in(part, &text),
            _ => {}
        }
    }
    if author == Author::default() {
        author = author_of_line(&element.text());
    }
    (author != Author::default()).then_some(author)
}

/// Reads `me@example.org (My Name)`, `My Name <me@example.org>`, and either alone.
pub(super) fn author_of_line(line: &str) -> Author {
    let is_mail_char =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+' | '@');
    let found = line.split(|c: char| !is_mail_char(c)).find(|word| is_mail(word));
    let Some(mail) = found else {
        let name = line.trim();
        return Author { name: (!name.is_empty()).then(|| name.to_owned()), ..Author::default() };
    };
    // A subject that follows the address belongs to it.
    let at = line.find(mail).unwrap_or_default();
    let rest = &line[at + mail.len()..];
    let subject = if rest.starts_with("?subject=") {
        rest.split([' ', ')', '>']).next().unwrap_or_default()
    } else {
        ""
    };
    let mail = format!("{mail}{subject}");
    let name = line.replace(&mail, "").replace("()", "").replace("<>", "").replace("mailto:", "");
    let name = name.trim();
    let name = name.strip_prefix('(').unwrap_or(name);
    let name = name.strip_suffix(')').unwrap_or(name).trim();
    Author { name: (!name.is_empty()).then(|| name.to_owned()), email: Some(mail), url: None }
}

fn is_mail(word: &str) -> bool {
    let Some((local, host)) = word.split_once('@') else { return false };
    let Some((name, end)) = host.rsplit_once('.') else { return false };
    !local.is_empty() && !name.is_empty() && end.len() >= 2 && !host.contains('@')
}

#[cfg(test)]
mod tests {
    use super::{Author, author_of_line, decoded};

    #[test]
    fn the_line_of_an_author_is_a_name_a_mail_address_or_both() {
        let author = |name: &str, email: &str| {
            let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            Author { name: given(name), email: given(email), url: None }
        };
        for (line, expected) in [
            ("me@example.org (Müller, A.)", author("Müller, A.", "me@example.org")),
            ("Ä <me@example.org>", author("Ä", "me@example.org")),
            ("me@example.org", author("", "me@example.org")),
            ("(me@example.org)", author("", "me@example.org")),
            ("Someone", author("Someone", "")),
            ("@home é@", author("@home é@", "")),
            ("a@b.example?subject=hi (A)", author("A", "a@b.example?subject=hi")),
            ("  ", author("", "")),
        ] {
            assert_eq!(author_of_line(line), expected, "{line}");
        }
    }

    #[test]
    fn base64_becomes_text() {
        assert_eq!(
            decoded("RXhhbXBsZSA8Yj5BdG9tPC9i\nPg==").as_deref(),
            Some("Example <b>Atom</b>")
        );
        assert_eq!(decoded("not base64!"), None);
    }
}
