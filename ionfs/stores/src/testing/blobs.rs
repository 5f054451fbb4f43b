//! What every blob store promises.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::{Blobs, Durability, StoreError};

/// Tries what every blob store promises. The store must be empty, and is empty afterwards but for
/// blobs below `c/`.
///
/// # Panics
/// When the store breaks a promise, or fails.
pub async fn blobs_contract(blobs: &dyn Blobs) {
    blobs_keep_what_they_were_given(blobs).await;
    a_body_that_fails_leaves_no_blob(blobs).await;
}

async fn put(blobs: &dyn Blobs, key: &str, body: Vec<u8>) {
    let pieces: Vec<std::io::Result<Bytes>> =
        body.chunks(300_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    let stored = blobs.put(key, stream::iter(pieces).boxed(), Durability::Now).await.unwrap();
    assert_eq!(stored, body.len() as u64);
}

async fn blobs_keep_what_they_were_given(blobs: &dyn Blobs) {
    let long: Vec<u8> = (0..20_000_000u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
    let odd = "c/j/1.0/a b%#?*\n\u{e9}\u{1f600}\\\u{7f}";
    let endless = format!("c/j/1.1/{}", "n".repeat(255));
    let cases = [
        ("c/empty", vec![]),
        ("c/long", long.clone()),
        (odd, b"odd".to_vec()),
        (&endless, b"endless".to_vec()),
    ];
    for (key, body) in &cases {
        put(blobs, key, body.clone()).await;
        assert_eq!(blobs.size(key).await.unwrap(), Some(body.len() as u64), "{key:?}");
        assert_eq!(blobs.get_range(key, 0..body.len() as u64).await.unwrap(), body, "{key:?}");
    }
    assert_eq!(
        blobs.get_range("c/long", 9_999_990..10_000_010).await.unwrap(),
        &long[9_999_990..10_000_010]
    );
    let listed: BTreeSet<String> =
        blobs.list("c").await.unwrap().map_ok(|info| info.key).try_collect().await.unwrap();
    assert_eq!(listed, cases.iter().map(|(key, _)| blobs.canonical_key(key)).collect());
    let listed: Vec<_> = blobs.list("c/j").await.unwrap().try_collect().await.unwrap();
    assert_eq!(listed.len(), 2);
    for info in &listed {
        blobs.delete_listed(info).await.unwrap();
    }
    assert_eq!(blobs.size(odd).await.unwrap(), None);
    blobs.delete("c/long").await.unwrap();
    blobs.delete("c/long").await.unwrap();
    assert!(matches!(blobs.get_range("c/long", 0..1).await, Err(StoreError::NoSuchBlob(_))));
}

async fn a_body_that_fails_leaves_no_blob(blobs: &dyn Blobs) {
    for good_pieces in [0, 30] {
        let good = (0..good_pieces).map(|_| Ok(Bytes::from(vec![1; 1 << 20])));
        let body = stream::iter(good.chain([Err(std::io::Error::other("cut"))]));
        assert!(blobs.put("x/cut", body.boxed(), Durability::Now).await.is_err());
        assert_eq!(blobs.size("x/cut").await.unwrap(), None);
        assert_eq!(blobs.list("x").await.unwrap().count().await, 0);
    }
}
