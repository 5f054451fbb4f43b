//! Pieces of HTML, as feeds have them: the text that a reader sees, and relative addresses made
//! whole.
//!
//! Only html5ever's tokenizer is used here, which accepts any text. Nothing is made safe: whoever
//! shows HTML of a stranger in a browser cleans it there.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};

use html5ever::TokenizerResult;
use html5ever::tendril::StrTendril;
use html5ever::tokenizer::states::RawKind;
use html5ever::tokenizer::{
    BufferQueue, Tag, TagKind, Token, TokenSink, TokenSinkResult, Tokenizer, TokenizerOpts,
};
use url::Url;

/// Whether the element never has an end tag.
pub(crate) fn is_void(name: &str) -> bool {
    matches!(
        name,
        "area"
            | "base"
            | "br"
            | "col"
            | "embed"
            | "hr"
            | "img"
            | "input"
            | "link"
            | "meta"
            | "param"
            | "source"
            | "track"
            | "wbr"
    )
}

/// Whether an element begins a new line of text.
pub(crate) fn is_block(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "aside"
            | "blockquote"
            | "br"
            | "dd"
            | "div"
            | "dl"
            | "dt"
            | "fieldset"
            | "figcaption"
            | "figure"
            | "footer"
            | "form"
            | "h1"
            | "h2"
            | "h3"
            | "h4"
            | "h5"
            | "h6"
            | "header"
            | "hr"
            | "li"
            | "main"
            | "nav"
            | "ol"
            | "p"
            | "pre"
            | "section"
            | "table"
            | "td"
            | "th"
            | "tr"
            | "ul"
    )
}

/// Whether what is in the element is not text for a reader.
pub(crate) fn is_hidden(name: &str) -> bool {
    matches!(name, "script" | "style" | "template" | "noscript" | "iframe")
}

/// Returns text as HTML that shows it.
pub(crate) fn escape_text(text: &str) -> Cow<'_, str> {
    quick_xml::escape::minimal_escape(text)
}

/// Returns what an entity of HTML stands for.
pub(crate) fn entity(name: &str) -> Option<String> {
    let (first, second) = html5ever::data::NAMED_ENTITIES.get(&*format!("{name};"))?;
    let characters = [*first, *second].into_iter().filter(|number| *number != 0);
    characters.map(char::from_u32).collect()
}

/// Returns the address that `given` means at `base`. White space and line breaks inside of an
/// address are mistakes of whoever wrote it, and are left out.
pub(crate) fn resolve(base: Option<&Url>, given: &str) -> Option<Url> {
    let given = given.trim();
    match base {
        Some(base) => base.join(given).ok(),
        None => Url::parse(given).ok(),
    }
}

/// Returns the text that a reader of the HTML sees: words with single spaces, one line for each
/// block.
pub(crate) fn text_of(html: &str) -> String {
    let sink = TextSink::default();
    let sink = tokenize(html, sink);
    tidy_lines(&sink.text.into_inner())
}

/// Returns the lines with single spaces between words, without empty lines.
pub(crate) fn tidy_lines(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if !tidy.is_empty() {
            tidy.push('\n');
        }
        tidy.push_str(first);
        for word in words {
            tidy.push(' ');
            tidy.push_str(word);
        }
    }
    tidy
}

/// Whether text that may be plain or HTML is HTML: it has an end tag or an entity, and no tag or
/// entity that HTML does not know.
pub(crate) fn looks_like_html(text: &str) -> bool {
    let mut is_html = false;
    for part in text.split('<').skip(1) {
        let is_end = part.starts_with('/');
        let name: String =
            part.trim_start_matches('/').chars().take_while(char::is_ascii_alphanumeric).collect();
        if name.is_empty() {
            continue;
        }
        if !is_known(&name.to_ascii_lowercase()) {
            return false;
        }
        is_html |= is_end && part[1 + name.len()..].starts_with('>');
    }
    for part in text.split('&').skip(1) {
        let Some((name, _)) = part.split_once(';') else { continue };
        if let Some(number) = name.strip_prefix('#') {
            is_html |= !number.is_empty() && number.chars().all(|c| c.is_ascii_alphanumeric());
        } else if !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            if entity(name).is_none() {
                return false;
            }
            is_html = true;
        }
    }
    is_html
}

/// Whether an element is one of those that texts consist of.
fn is_known(name: &str) -> bool {
    is_void(name)
        || is_block(name)
        || matches!(
            name,
            "a" | "abbr"
                | "acronym"
                | "audio"
                | "b"
                | "bdo"
                | "big"
                | "button"
                | "canvas"
                | "caption"
                | "center"
                | "cite"
                | "code"
                | "colgroup"
                | "del"
                | "details"
                | "dfn"
                | "dir"
                | "em"
                | "font"
                | "i"
                | "ins"
                | "kbd"
                | "label"
                | "legend"
                | "map"
                | "mark"
                | "menu"
                | "meter"
                | "nextid"
                | "noscript"
                | "optgroup"
                | "option"
                | "output"
                | "progress"
                | "q"
                | "s"
                | "samp"
                | "select"
                | "small"
                | "span"
                | "strike"
                | "strong"
                | "sub"
                | "summary"
                | "sup"
                | "tbody"
                | "textarea"
                | "tfoot"
                | "thead"
                | "time"
                | "tt"
                | "u"
                | "var"
                | "video"
        )
}

/// Returns the HTML with its relative addresses made whole. HTML without any is returned as it is.
/// The HTML grows to at most some times its length; addresses beyond that stay relative.
pub(crate) fn absolute(html: &str, base: &Url) -> String {
    let bytes_left = Cell::new(8 * html.len() + 4096);
    let sink = AddressSink {
        base: base.clone(),
        html: RefCell::default(),
        changed: Cell::default(),
        bytes_left,
        raw: Cell::default(),
    };
    let sink = tokenize(html, sink);
    if sink.changed.get() { sink.html.into_inner() } else { html.to_owned() }
}

/// Sends the tokens of the HTML to the sink.
pub(crate) fn tokenize<S: TokenSink>(html: &str, sink: S) -> S {
    let input = BufferQueue::default();
    input.push_back(StrTendril::from_slice(html));
    let tokenizer = Tokenizer::new(sink, TokenizerOpts::default());
    // A script is only a token here: it is not run, and the tokenizer goes on behind it.
    while !matches!(tokenizer.feed(&input), TokenizerResult::Done) {}
    tokenizer.end();
    tokenizer.sink
}

/// Returns how the tokenizer reads what follows a start tag.
pub(crate) fn what_follows<H>(tag: &Tag) -> TokenSinkResult<H> {
    if tag.kind != TagKind::StartTag {
        return TokenSinkResult::Continue;
    }
    match &*tag.name {
        "script" => TokenSinkResult::RawData(RawKind::ScriptData),
        "style" | "iframe" | "noframes" | "xmp" => TokenSinkResult::RawData(RawKind::Rawtext),
        "title" | "textarea" => TokenSinkResult::RawData(RawKind::Rcdata),
        _ => TokenSinkResult::Continue,
    }
}

/// Collects the text.
#[derive(Default)]
struct TextSink {
    text: RefCell<String>,
    /// How many hidden elements are open.
    hidden: Cell<usize>,
}

impl TokenSink for TextSink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        match token {
            Token::CharacterTokens(text) if self.hidden.get() == 0 => {
                // A line break in the source is white space like any other.
                self.text
                    .borrow_mut()
                    .extend(text.chars().map(|c| if c.is_whitespace() { ' ' } else { c }));
            }
            Token::TagToken(tag) => {
                if is_block(&tag.name) {
                    self.text.borrow_mut().push('\n');
                }
                if is_hidden(&tag.name) && !tag.self_closing {
                    let open = self.hidden.get();
                    self.hidden.set(match tag.kind {
                        TagKind::StartTag => open + 1,
                        TagKind::EndTag => open.saturating_sub(1),
                    });
                }
                return what_follows(&tag);
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// Writes the HTML again, with whole addresses.
struct AddressSink {
    base: Url,
    html: RefCell<String>,
    changed: Cell<bool>,
    /// How many bytes the addresses may still add.
    bytes_left: Cell<usize>,
    /// Whether the text is that of a script or a style, which has no entities.
    raw: Cell<bool>,
}

impl AddressSink {
    fn write_tag(&self, tag: &Tag) {
        let html = &mut *self.html.borrow_mut();
        html.push('<');
        if tag.kind == TagKind::EndTag {
            html.push('/');
        }
        html.push_str(&tag.name);
        for attribute in &tag.attrs {
            let name = &*attribute.name.local;
            let mut value = attribute.value.to_string();
            if is_address(&tag.name, name)
                && !value.starts_with('#')
                && Url::parse(&value).is_err()
                && let Some(whole) = resolve(Some(&self.base), &value)
                && let Some(left) = self.bytes_left.get().checked_sub(whole.as_str().len())
            {
                self.bytes_left.set(left);
                value = whole.into();
                self.changed.set(true);
            }
            html.push(' ');
            html.push_str(name);
            html.push_str("=\"");
            html.push_str(&value.replace('&', "&amp;").replace('"', "&quot;"));
            html.push('"');
        }
        html.push_str(if tag.self_closing { " />" } else { ">" });
    }
}

impl TokenSink for AddressSink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        match token {
            Token::CharacterTokens(text) => {
                let html = &mut *self.html.borrow_mut();
                if self.raw.get() {
                    html.push_str(&text);
                } else {
                    html.push_str(&escape_text(&text));
                }
            }
            Token::CommentToken(text) => {
                let html = &mut *self.html.borrow_mut();
                html.push_str("<!--");
                html.push_str(&text);
                html.push_str("-->");
            }
            Token::TagToken(tag) => {
                self.write_tag(&tag);
                let next = what_follows(&tag);
                self.raw.set(matches!(
                    next,
                    TokenSinkResult::RawData(RawKind::ScriptData | RawKind::Rawtext)
                ));
                return next;
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

/// Whether the attribute of an element holds an address.
fn is_address(element: &str, attribute: &str) -> bool {
    match attribute {
        "href" => matches!(element, "a" | "area" | "link"),
        "src" => true,
        "cite" => matches!(element, "blockquote" | "del" | "ins" | "q"),
        "action" => element == "form",
        "background" => element == "body",
        "longdesc" => matches!(element, "img" | "frame" | "iframe"),
        "usemap" => matches!(element, "img" | "input" | "object"),
        "data" | "classid" | "codebase" => element == "object",
        "poster" => element == "video",
        "profile" => element == "head",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::{absolute, looks_like_html, text_of};

    #[test]
    fn the_text_of_html_is_what_a_reader_sees() {
        let html = "<p>One&nbsp;&amp; <b>two</b>\n three</p><script>if (a < b) {}</script>\
            <ul><li>x<li>y</ul><style>p {}</style>1 < 2";
        assert_eq!(text_of(html), "One & two three\nx\ny\n1 < 2");
        assert_eq!(text_of("no markup"), "no markup");
        assert_eq!(text_of("a<br>b<br/>c"), "a\nb\nc");
    }

    #[test]
    fn text_is_html_only_if_it_says_so() {
        assert!(looks_like_html("<b>bold</b>"));
        assert!(looks_like_html("one &amp; two"));
        assert!(looks_like_html("&#8217;s"));
        for plain in ["AT&T", "a < b", "<b>", "if (x<y) </y>", "std::vector<int> </int>", "&nix;"] {
            assert!(!looks_like_html(plain), "{plain}");
        }
    }

    #[test]
    fn relative_addresses_become_whole_and_nothing_else_changes() {
        let base = Url::parse("https://example.org/a/b.html").unwrap();
        let html = "<p class=x>1 &lt; 2 <a href='../c?x=1&amp;y'>c</a> <img src=d.png></p>";
        assert_eq!(
            absolute(html, &base),
            "<p class=\"x\">1 &lt; 2 <a href=\"https://example.org/c?x=1&amp;y\">c</a> \
             <img src=\"https://example.org/a/d.png\"></p>"
        );
        let many = "<a href=x>".repeat(10_000);
        let long = Url::parse(&format!("https://example.org/{}/", "y".repeat(400))).unwrap();
        assert!(absolute(&many, &long).len() < 12 * many.len());
        for same in ["<a href=#note>x</a>", "<a  href='https://x.org/'>x</a>", "a & b < c"] {
            assert_eq!(absolute(same, &base), same);
        }
    }
}
