//! Which item is which.
//!
//! An item is known by its guid. One without is known by its link, and one without both by a hash
//! of its title, date and content. A date alone never tells items apart: many have the same.

use std::fmt::{self, Display, Write as _};

use sha2::{Digest, Sha256};

use super::Item;

/// How many digits of a hash name an item: 128 bits, so that no two items of a source ever meet.
const DIGITS: usize = 32;

/// What an item is known by: 32 hexadecimal digits, which also name its files and its event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(String);

impl ItemId {
    /// Returns the id of an item of a feed.
    pub fn of(item: &Item) -> Self {
        match (&item.guid, &item.link) {
            (Some(guid), _) => Self::hashed(&["guid", guid]),
            (None, Some(link)) => Self::hashed(&["link", link]),
            (None, None) => Self::hashed(&[
                "item",
                item.title.as_deref().unwrap_or_default(),
                &item.published.or(item.updated).map(|date| date.to_string()).unwrap_or_default(),
                item.content.as_deref().or(item.summary.as_deref()).unwrap_or_default(),
            ]),
        }
    }

    /// Returns the id of what these parts name together.
    pub fn hashed(parts: &[&str]) -> Self {
        Self(hash(parts))
    }

    /// Reads an id that was written before.
    pub fn parse(text: &str) -> Option<Self> {
        let is_id = text.len() == DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_id.then(|| Self(text.to_owned()))
    }

    /// Returns the digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for ItemId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Returns a hash of what a reader sees of the item. It changes when the item is edited, and not
/// when the feed only dates it anew.
pub fn fingerprint(item: &Item) -> String {
    let text =
        |html: &Option<String>| html.as_deref().map(crate::html::text_of).unwrap_or_default();
    let mut hash = hash(&[
        item.title.as_deref().unwrap_or_default(),
        item.link.as_deref().unwrap_or_default(),
        &text(&item.summary),
        &text(&item.content),
    ]);
    // Sixteen digits are enough to see a change.
    hash.truncate(16);
    hash
}

/// Returns a hash of the parts. Each is preceded by its length, so that ("a", "bc") differs from
/// ("ab", "c").
fn hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let mut digits = String::with_capacity(DIGITS);
    for byte in &hash.finalize()[..DIGITS / 2] {
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::{Item, ItemId, fingerprint};

    fn item(guid: &str, link: &str, title: &str) -> Item {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Item { guid: given(guid), link: given(link), title: given(title), ..Item::default() }
    }

    #[test]
    fn an_item_is_known_by_its_guid_then_its_link_then_what_it_says() {
        assert_eq!(ItemId::of(&item("1", "l", "t")), ItemId::of(&item("1", "m", "u")));
        assert_ne!(ItemId::of(&item("1", "l", "t")), ItemId::of(&item("2", "l", "t")));
        assert_eq!(ItemId::of(&item("", "l", "t")), ItemId::of(&item("", "l", "u")));
        assert_ne!(ItemId::of(&item("", "l", "t")), ItemId::of(&item("l", "", "t")));
        assert_ne!(ItemId::of(&item("", "", "t")), ItemId::of(&item("", "", "u")));
    }

    #[test]
    fn items_of_one_date_are_different_items() {
        let date = "2024-05-06T00:00:00Z".parse().unwrap();
        let dated = |title| Item { published: Some(date), ..item("", "", title) };
        assert_ne!(ItemId::of(&dated("a")), ItemId::of(&dated("b")));
    }

    #[test]
    fn an_id_is_read_as_it_was_written_and_nothing_else_is_one() {
        let id = ItemId::of(&item("1", "", ""));
        assert_eq!(ItemId::parse(id.as_str()), Some(id));
        assert_eq!(ItemId::parse("../../../../../../etc/passwd....."), None);
    }

    #[test]
    fn the_fingerprint_changes_with_the_words_and_not_with_the_markup() {
        let says = |html: &str| Item { content: Some(html.to_owned()), ..item("1", "l", "t") };
        assert_eq!(fingerprint(&says("<p>one</p>")), fingerprint(&says("<p class='x'>one</p>")));
        assert_ne!(fingerprint(&says("<p>one</p>")), fingerprint(&says("<p>two</p>")));
    }
}
