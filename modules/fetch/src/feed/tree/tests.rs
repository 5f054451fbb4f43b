//! What broken documents become.

use super::{Element, Namespace, Node, parse};

fn only(text: &str) -> Element {
    let mut nodes = parse(text, None);
    assert_eq!(nodes.len(), 1, "{nodes:?}");
    match nodes.remove(0) {
        Node::Element(element) => element,
        Node::Text(text) => panic!("only text: {text}"),
    }
}

#[test]
fn entities_of_html_and_of_the_document_are_replaced_and_unknown_ones_stay() {
    let text = "<!DOCTYPE a [<!ENTITY me \"I &#38; you\"> <!ENTITY big \"&me;&me;\">]>\
        <a b='&me;'>&nbsp;&eacute; &me; &big; &nothing; &amp; a&b &#128; &#x20AC;</a>";
    let a = only(text);
    assert_eq!(a.text(), "é I & you &big; &nothing; & a&b € €");
    assert_eq!(a.attribute("b"), Some("I & you"));
}

#[test]
fn declared_entities_fill_no_memory() {
    let value = "x".repeat(200);
    let text = format!("<!DOCTYPE a [<!ENTITY e '{value}'>]><a>{}</a>", "&e;".repeat(100_000));
    let length = only(&text).text().len();
    assert!((1_000_000..1_500_000).contains(&length), "{length}");
}

#[test]
fn a_less_than_sign_that_begins_no_tag_is_text() {
    assert_eq!(only("<a>1 < 2 <3 <![CDATA[<b> < c]]></a>").text(), "1 < 2 <3 <b> < c");
}

#[test]
fn control_characters_and_text_before_the_document_are_left_out() {
    assert_eq!(only("\u{FEFF} \n junk <a>x\u{8}\u{0}y</a>").text(), "xy");
}

#[test]
fn tags_that_are_never_closed_or_opened_harm_nothing_else() {
    let root = only("<r><a>one<br>two</a></nothing><b>three</r>");
    let names: Vec<_> = root.elements().map(|element| &*element.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(root.inner_html(), "<a>one<br />two</a><b>three</b>");
}

#[test]
fn a_document_that_is_cut_off_keeps_what_came() {
    for cut in ["<r><a>one</a><b>tw", "<r><a>one</a><b", "<r><a>one</a></", "<r><a><![CDATA[one"] {
        assert!(only(cut).inner_html().contains("one"), "{cut}");
    }
}

#[test]
fn prefixes_mean_what_they_usually_mean_unless_they_are_declared() {
    let root =
        only("<r><dc:date/><x:date xmlns:x='http://purl.org/dc/elements/1.1/'/><x:date/></r>");
    let found: Vec<_> = root.elements().map(|element| element.namespace).collect();
    assert_eq!(found, [Namespace::Dublin, Namespace::Dublin, Namespace::Other]);
}

#[test]
fn elements_lie_as_deep_as_is_allowed_and_no_deeper() {
    let deep = "<a>".repeat(100_000);
    let mut depth = 0;
    let mut at = &only(&deep);
    while let Some(next) = at.elements().next() {
        (depth, at) = (depth + 1, next);
    }
    assert!(depth < super::DEPTH_MAX);
}

#[test]
fn inner_elements_are_written_as_html() {
    let a = only("<a><x:p title='&quot;&lt;'>1 &lt; 2<x:br/></x:p><div/></a>");
    assert_eq!(a.inner_html(), "<p title=\"&quot;&lt;\">1 &lt; 2<br /></p><div></div>");
}
