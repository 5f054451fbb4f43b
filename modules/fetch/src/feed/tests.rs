//! Whole feeds: what a reader gets of each format.

use url::Url;

use super::{Author, Enclosure, Feed, FeedError, Item, read_feed};

fn read(text: &str) -> Feed {
    let address = Url::parse("https://example.org/feeds/news").unwrap();
    read_feed(text.as_bytes(), Some("application/xml"), Some(&address)).unwrap()
}

fn only(feed: &Feed) -> &Item {
    assert_eq!(feed.items.len(), 1);
    &feed.items[0]
}

#[test]
fn an_item_of_rss_has_all_that_its_elements_say() {
    let feed = read(
        "<rss version='2.0' xmlns:content='http://purl.org/rss/1.0/modules/content/'
              xmlns:dc='http://purl.org/dc/elements/1.1/' xmlns:media='http://search.yahoo.com/mrss/'>
         <channel><title>News &amp; more</title><link>https://example.org/</link><ttl>30</ttl>
           <language>en_GB</language>
           <item><title>One &lt;b&gt;bold&lt;/b&gt; word</title><link>/1</link><guid>tag:1</guid>
             <pubDate>Mon, 06 May 2024 07:08:09 +0200</pubDate><dc:creator>A</dc:creator>
             <description>Short</description>
             <content:encoded><![CDATA[<p><a href='2'>Long</a></p>]]></content:encoded>
             <category>x</category><category>y</category>
             <enclosure url='a.mp3' length='7' type='audio/mpeg'/>
             <media:thumbnail url='t.png'/>
           </item></channel></rss>",
    );
    assert_eq!(feed.title.as_deref(), Some("News & more"));
    assert_eq!((feed.ttl_minutes, feed.language.as_deref()), (Some(30), Some("en-GB")));
    let text = |text: &str| Some(text.to_owned());
    let expected = Item {
        guid: text("tag:1"),
        link: text("https://example.org/1"),
        title: text("One bold word"),
        authors: vec![Author { name: text("A"), ..Author::default() }],
        published: Some("2024-05-06T05:08:09Z".parse().unwrap()),
        updated: None,
        summary: text("Short"),
        content: text("<p><a href=\"https://example.org/feeds/2\">Long</a></p>"),
        categories: vec!["x".to_owned(), "y".to_owned()],
        enclosures: vec![Enclosure {
            url: "https://example.org/feeds/a.mp3".to_owned(),
            media_type: text("audio/mpeg"),
            length: Some(7),
        }],
        image: text("https://example.org/feeds/t.png"),
    };
    assert_eq!(*only(&feed), expected);
}

#[test]
fn items_of_rss_1_0_stand_beside_the_channel() {
    let feed = read(
        "<rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#' xmlns='http://purl.org/rss/1.0/'>
         <channel><title>C</title></channel><item rdf:about='u'><title>I</title></item></rdf:RDF>",
    );
    assert_eq!(feed.title.as_deref(), Some("C"));
    assert_eq!(only(&feed).guid.as_deref(), Some("u"));
}

#[test]
fn a_json_feed_is_read_with_its_authors_and_files() {
    let feed = read(
        r#"{"version": "https://jsonfeed.org/version/1.1", "title": "J", "home_page_url": "/",
            "items": [{"id": 5, "url": "5", "content_text": "a < b", "summary": "s",
              "date_published": "2024-05-06T07:08:09+02:00", "tags": ["t"],
              "authors": [{"name": "A", "url": "https://a.example/"}], "image": "i.png",
              "attachments": [{"url": "a.mp3", "mime_type": "audio/mpeg", "size_in_bytes": 7}]}]}"#,
    );
    let item = only(&feed);
    assert_eq!(item.guid.as_deref(), Some("5"));
    assert_eq!(item.content.as_deref(), Some("a &lt; b"));
    assert_eq!(item.published.unwrap().to_string(), "2024-05-06T05:08:09Z");
    assert_eq!(item.authors[0].url.as_deref(), Some("https://a.example/"));
    assert_eq!(item.enclosures[0].length, Some(7));
    assert_eq!(item.image.as_deref(), Some("https://example.org/feeds/i.png"));
}

#[test]
fn a_web_page_is_an_error_that_names_the_feeds_of_the_page() {
    let page = "<!doctype html><html><head><title>Example</title><link rel=alternate \
        type='application/rss+xml' href='/rss'><link rel=stylesheet href='x'></head></html>";
    let address = Url::parse("https://example.org/news").unwrap();
    let error = read_feed(page.as_bytes(), Some("text/html"), Some(&address)).unwrap_err();
    assert!(error.to_string().contains("https://example.org/rss"), "{error}");
    let error = read_feed(b"<html><body>Please log in</body></html>", None, None).unwrap_err();
    assert!(matches!(error, FeedError::WebPage { feeds } if feeds.is_empty()));
}

#[test]
fn what_is_no_feed_is_an_error() {
    assert!(matches!(read_feed(b" \n ", None, None), Err(FeedError::Empty)));
    for other in ["hello", "<svg/>", "{\"error\": \"no such feed\"}", "{", "<"] {
        assert!(
            matches!(read_feed(other.as_bytes(), None, None), Err(FeedError::NoFeed)),
            "{other}"
        );
    }
}
