//! Reading a web page: its readable text and its picture.
//!
//! The text of an article stands in blocks with many words and few links; menus, teasers and
//! footers are blocks with few words or many links. The rules that tell them apart by a block's
//! neighbours are those of Kohlschütter, Fankhauser and Nejdl ("Boilerplate Detection using
//! Shallow Text Features", 2010). Where a page marks its article, only that part counts. The page
//! is read as a stream of tags, so a page of a stranger costs no more than its length.

use std::cell::{Cell, RefCell};

use html5ever::tokenizer::{Tag, TagKind, Token, TokenSink, TokenSinkResult};
use url::Url;

use crate::html::{is_block, is_hidden, is_void, resolve, tidy_lines, tokenize, what_follows};

/// How many words a marked article must have to count as the article. Fewer may be a teaser.
const ARTICLE_WORDS: usize = 40;

/// What a page says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Its title.
    pub title: Option<String>,
    /// Its description.
    pub description: Option<String>,
    /// The address of its picture.
    pub picture: Option<String>,
    /// Its readable text, a line for each block.
    pub text: String,
}

/// Reads a page that came from `address`.
pub fn read_page(html: &str, address: &Url) -> Page {
    let sink = tokenize(html, PageSink::default());
    sink.end_block();
    let found = sink.found.into_inner();
    let picture = found.picture.or(found.first_image);
    Page {
        title: found
            .title
            .map(|title| tidy_lines(&title).replace('\n', " "))
            .filter(|t| !t.is_empty()),
        description: found
            .description
            .map(|text| tidy_lines(&text))
            .filter(|text| !text.is_empty()),
        picture: picture.and_then(|given| resolve(Some(address), &given)).map(String::from),
        text: readable(&found.blocks),
    }
}

/// A piece of text between two tags that begin a new line.
#[derive(Clone, Debug, Default)]
struct Block {
    text: String,
    words: usize,
    /// How many of its words are in links.
    linked: usize,
    /// Whether it is in an element that is marked as the article.
    in_article: bool,
    /// Whether it is in an element that is no article: a menu, a form, a footer.
    in_margin: bool,
}

impl Block {
    fn link_density(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "the words of a block are few")]
        let density = self.linked as f64 / self.words.max(1) as f64;
        density
    }
}

/// Returns the text of those blocks that are the article.
fn readable(blocks: &[Block]) -> String {
    let join = |blocks: Vec<&Block>| {
        let texts: Vec<&str> = blocks.iter().map(|block| &*block.text).collect();
        texts.join("\n")
    };
    let marked: Vec<&Block> = blocks.iter().filter(|b| b.in_article && !b.in_margin).collect();
    if marked.iter().map(|block| block.words).sum::<usize>() >= ARTICLE_WORDS {
        let kept = marked.into_iter().filter(|block| block.link_density() < 0.6);
        return join(kept.collect());
    }
    let body: Vec<&Block> = blocks.iter().filter(|block| !block.in_margin).collect();
    let content = content_of(&body);
    if !content.is_empty() {
        return join(content);
    }
    // A short page may have nothing that looks like an article.
    let all: Vec<&Block> = if body.is_empty() { blocks.iter().collect() } else { body };
    join(all)
}

/// Returns the blocks that are text by the words and links of themselves and of their neighbours.
fn content_of<'a>(blocks: &[&'a Block]) -> Vec<&'a Block> {
    let nothing = Block::default();
    let is_content = |at: usize| {
        let current = blocks[at];
        let before = at.checked_sub(1).map_or(&nothing, |at| blocks[at]);
        let after = blocks.get(at + 1).copied().unwrap_or(&nothing);
        if current.link_density() > 1.0 / 3.0 {
            false
        } else if before.link_density() <= 5.0 / 9.0 {
            current.words > 16 || after.words > 15 || before.words > 4
        } else {
            current.words > 40 || after.words > 17
        }
    };
    (0..blocks.len()).filter(|at| is_content(*at)).map(|at| blocks[at]).collect()
}

#[derive(Default)]
struct Found {
    blocks: Vec<Block>,
    block: Block,
    title: Option<String>,
    description: Option<String>,
    picture: Option<String>,
    first_image: Option<String>,
}

/// Collects the blocks and what the head of the page says.
#[derive(Default)]
struct PageSink {
    found: RefCell<Found>,
    /// How many elements are open in which there is nothing to read.
    hidden: Cell<usize>,
    links: Cell<usize>,
    articles: Cell<usize>,
    margins: Cell<usize>,
    in_title: Cell<bool>,
}

impl PageSink {
    fn end_block(&self) {
        let found = &mut *self.found.borrow_mut();
        let mut block = std::mem::take(&mut found.block);
        block.text = tidy_lines(&block.text);
        block.words = block.text.split(' ').filter(|word| !word.is_empty()).count();
        block.linked = block.linked.min(block.words);
        if block.words > 0 {
            found.blocks.push(block);
        }
    }

    fn add_text(&self, text: &str) {
        let found = &mut *self.found.borrow_mut();
        if self.in_title.get() {
            found.title.get_or_insert_default().push_str(text);
            return;
        }
        if self.hidden.get() > 0 {
            return;
        }
        let block = &mut found.block;
        block.text.extend(text.chars().map(|c| if c.is_whitespace() { ' ' } else { c }));
        block.in_article = self.articles.get() > 0;
        block.in_margin = self.margins.get() > 0;
        if self.links.get() > 0 {
            block.linked += text.split_whitespace().count();
        }
    }

    /// Counts how many elements of each kind are open.
    fn count(&self, tag: &Tag) {
        let counter = match &*tag.name {
            name if is_hidden(name) => &self.hidden,
            "a" => &self.links,
            "article" | "main" => &self.articles,
            "nav" | "footer" | "aside" | "form" | "button" | "select" | "dialog" => &self.margins,
            _ => return,
        };
        counter.set(match tag.kind {
            TagKind::StartTag => counter.get() + 1,
            TagKind::EndTag => counter.get().saturating_sub(1),
        });
    }

    fn read_head(&self, tag: &Tag) {
        let attribute = |name: &str| {
            let found = tag.attrs.iter().find(|attribute| &*attribute.name.local == name)?;
            let value = found.value.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        let found = &mut *self.found.borrow_mut();
        match &*tag.name {
            "meta" => {
                let name = attribute("property").or_else(|| attribute("name")).unwrap_or_default();
                let content = attribute("content");
                match &*name.to_ascii_lowercase() {
                    "og:image" | "og:image:secure_url" => {
                        found.picture = found.picture.take().or(content)
                    }
                    "twitter:image" if found.picture.is_none() => found.picture = content,
                    "description" | "og:description" if found.description.is_none() => {
                        found.description = content;
                    }
                    _ => {}
                }
            }
            "img" if found.first_image.is_none() && self.articles.get() > 0 => {
                found.first_image = attribute("src").filter(|source| !source.starts_with("data:"));
            }
            _ => {}
        }
    }
}

impl TokenSink for PageSink {
    type Handle = ();

    fn process_token(&self, token: Token, _line: u64) -> TokenSinkResult<()> {
        match token {
            Token::CharacterTokens(text) => self.add_text(&text),
            Token::TagToken(tag) => {
                if is_block(&tag.name) {
                    self.end_block();
                }
                let is_start = tag.kind == TagKind::StartTag;
                if &*tag.name == "title" {
                    // The title of a drawing comes later than that of the page.
                    self.in_title.set(is_start && self.found.borrow().title.is_none());
                }
                if is_start {
                    self.read_head(&tag);
                }
                if !is_void(&tag.name) {
                    self.count(&tag);
                }
                return what_follows(&tag);
            }
            _ => {}
        }
        TokenSinkResult::Continue
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::{Page, read_page};

    fn page(html: &str) -> Page {
        read_page(html, &Url::parse("https://example.org/a/b").unwrap())
    }

    const WORDS: &str = "The quick brown fox jumps over the lazy dog, and the dog, who had been \
        asleep in the sun since noon, does not so much as open an eye.";

    #[test]
    fn the_readable_text_leaves_out_menus_teasers_and_footers() {
        let html = format!(
            "<html><head><title> A\n title </title><meta name=description content='About foxes'>
             <meta property='og:image' content='/fox.jpg'><style>p {{}}</style></head><body>
             <div><a href=1>Home</a> <a href=2>News</a> <a href=3>Sport</a></div>
             <h1>The fox and the dog today</h1><p>{WORDS}</p><p>{WORDS}</p>
             <div><a href=4>Ten foxes you will not believe</a></div><div><a href=5>More</a></div>
             <footer>Copyright by nobody in particular, for all the years to come</footer>
             <script>var x = '<p>no text</p>'</script></body></html>"
        );
        let page = page(&html);
        assert_eq!(page.text, format!("The fox and the dog today\n{WORDS}\n{WORDS}"));
        assert_eq!(page.title.as_deref(), Some("A title"));
        assert_eq!(page.description.as_deref(), Some("About foxes"));
        assert_eq!(page.picture.as_deref(), Some("https://example.org/fox.jpg"));
    }

    #[test]
    fn an_article_that_is_marked_is_the_text() {
        let html = format!(
            "<p>{WORDS} Subscribe.</p><article><h1>Fox</h1><p>{WORDS}</p><p>Yes.</p><p>{WORDS}</p>
             <img src='data:x'><img src=dog.png></article><p>{WORDS}</p>"
        );
        let page = page(&html);
        assert_eq!(page.text, format!("Fox\n{WORDS}\nYes.\n{WORDS}"));
        assert_eq!(page.picture.as_deref(), Some("https://example.org/a/dog.png"));
    }

    #[test]
    fn a_short_or_broken_page_still_has_its_text() {
        assert_eq!(page("<p>Only this.").text, "Only this.");
        assert_eq!(page("<nav><p>Only <b>this").text, "Only this");
        assert_eq!(page("").text, "");
        assert_eq!(page(&"<div>".repeat(100_000)).text, "");
    }
}
