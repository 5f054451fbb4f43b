//! What declared files find in answers.

use serde_json::{Value, json};

use super::{AnswerError, ApiFile, ApiItem, NextPage, PagePlace};

fn file(text: &str) -> ApiFile {
    ApiFile::read(text).unwrap()
}

fn keys(file: &ApiFile, document: &Value) -> Vec<String> {
    file.page(document).unwrap().into_iter().map(|item| item.key).collect()
}

#[test]
fn items_are_found_by_their_paths_with_all_that_describes_them() {
    let api = file("{url: x, items: '$.data[*]', id: $.n, time: $.at, title: $.t, link: $.u}");
    let data = json!({"n": 7, "at": 1_700_000_000, "t": "T", "u": "https://x/"});
    let expected = ApiItem {
        key: "7".to_owned(),
        time: Some("2023-11-14T22:13:20Z".parse().unwrap()),
        title: Some("T".to_owned()),
        link: Some("https://x/".to_owned()),
        data: data.clone(),
    };
    assert_eq!(api.page(&json!({"data": [data]})).unwrap(), [expected]);
    assert!(matches!(api.page(&json!({"data": [{}]})), Err(AnswerError::NoId(_))));
}

#[test]
fn a_bare_list_has_its_values_as_items() {
    assert_eq!(keys(&file("url: x"), &json!([3, "a", {"b": 1}])), ["3", "a", "{\"b\":1}"]);
    assert!(matches!(file("url: x").page(&json!({})), Err(AnswerError::NoItems)));
}

#[test]
fn lists_that_belong_together_become_items() {
    let api = file("{url: x, zip: $.hourly, id: $.time}");
    let document = json!({"hourly": {"time": ["a", "b"], "wind": [1, 2], "unit": "km"}});
    let items = api.page(&document).unwrap();
    assert_eq!(items[1].data, json!({"time": "b", "wind": 2}));
    let uneven = json!({"hourly": {"time": ["a", "b"], "wind": [1]}});
    assert!(matches!(api.page(&uneven), Err(AnswerError::Uneven)));
}

#[test]
fn an_error_that_is_answered_with_200_is_an_error() {
    let api = file("{url: x, expect: {type: json, has: [$.data], error: [$.Note]}}");
    let read = |body: &str| api.document(body.as_bytes(), Some("application/json"));
    assert_eq!(read("{\"data\": []}").unwrap(), json!({"data": []}));
    let refused = read("{\"Note\": \"too often\"}");
    assert!(matches!(refused, Err(AnswerError::Error(text)) if text == "too often"));
    assert!(matches!(read("{\"other\": 1}"), Err(AnswerError::Lacks(_))));
    assert!(matches!(read("<html>"), Err(AnswerError::NotJson { .. })));
    let error = api.document(b"{}", Some("text/html")).unwrap_err();
    assert!(matches!(error, AnswerError::MediaType { .. }));
}

#[test]
fn the_answers_go_on_where_the_file_says() {
    let query = |name: &str, value: &str| {
        Some(NextPage::Query { name: name.to_owned(), value: value.to_owned() })
    };
    let next = |pages: &str, document: Value, link, number, items| {
        let place = PagePlace { number, items, items_so_far: 40 + items };
        file(&format!("{{url: x, pages: {pages}}}")).next_page(&document, link, place)
    };
    let cursor = "{by: cursor, cursor: $.next, query: c}";
    assert_eq!(next(cursor, json!({"next": "t"}), None, 1, 9), query("c", "t"));
    assert_eq!(next(cursor, json!({"next": null}), None, 1, 9), None);
    assert_eq!(next(cursor, json!({"next": ""}), None, 1, 9), None);
    assert_eq!(next("{by: page, query: p}", json!([]), None, 1, 9), query("p", "2"));
    assert_eq!(next("{by: page, query: p, first: 0}", json!([]), None, 1, 9), query("p", "1"));
    assert_eq!(next("{by: page, query: p}", json!([]), None, 2, 0), None);
    assert_eq!(next("{by: page, query: p, most: 3}", json!([]), None, 3, 9), None);
    assert_eq!(next("{by: offset, query: o}", json!([]), None, 2, 9), query("o", "49"));
    let link = Some("<https://x/?a=1,2>; rel=\"prev\", </2>; rel=\"next last\"");
    assert_eq!(next("{by: link}", json!([]), link, 1, 9), Some(NextPage::Address("/2".to_owned())));
    assert_eq!(next("{by: link}", json!([]), Some("</1>; rel=prev"), 1, 9), None);
}

#[test]
fn the_next_run_goes_on_from_the_answer_or_from_the_newest_item() {
    let document = json!({"meta": {"newest": "9"}, "data": []});
    let told = file("{url: x, items: '$.data[*]', since: {query: q, value: $.meta.newest}}");
    assert_eq!(told.since_of(&document, &[]).as_deref(), Some("9"));
    let times = json!(["2024-05-06T07:00:00Z", "2024-05-06T09:00:00Z"]);
    for (form, expected) in [
        ("rfc3339", "2024-05-06T07:30:00Z"),
        ("seconds", "1714980600"),
        ("date", "2024-05-06"),
        ("minutes", "20240506T0730"),
    ] {
        let api =
            file(&format!("{{url: x, time: $, since: {{query: q, form: {form}, overlap: 90m}}}}"));
        let items = api.page(&times).unwrap();
        assert_eq!(api.since_of(&times, &items).as_deref(), Some(expected));
    }
}

#[test]
fn a_file_with_a_mistake_is_refused_with_its_place() {
    for wrong in [
        "url: x\nitem: $.a",
        "url: x\nid: '$['",
        "url: '{'",
        "items: $.a",
        "url: x\npages: {by: luck}",
    ] {
        let error = ApiFile::read(wrong).unwrap_err().to_string();
        assert!(!error.is_empty(), "{wrong}");
    }
    let error = ApiFile::read("url: x\nitem: $.a").unwrap_err().to_string();
    assert!(error.contains("item") && error.contains('2'), "{error}");
}
