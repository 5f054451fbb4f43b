//! Feeds: any bytes are a feed or an error; every item has an id, and ids and texts have a bound.
#![no_main]

use ion_fetch::feed::{ItemId, fingerprint, read_feed};
use libfuzzer_sys::fuzz_target;
use url::Url;

fuzz_target!(|bytes: &[u8]| {
    let address = Url::parse("https://example.org/feed").expect("a fixed address");
    let Ok(feed) = read_feed(bytes, None, Some(&address)) else { return };
    for item in &feed.items {
        assert_eq!(ItemId::parse(ItemId::of(item).as_str()), Some(ItemId::of(item)));
        assert_eq!(fingerprint(item).len(), 16);
    }
    assert_eq!(read_feed(bytes, None, Some(&address)).expect("it was read before"), feed);
});
