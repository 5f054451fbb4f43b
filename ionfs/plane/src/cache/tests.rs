//! Tests what a reader receives, whatever happens to the bytes on their way.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use ion_model::checksum::BLOCK_BYTES;
use ion_model::clock::Millis;
use ion_stores::object::ObjectBlobs;
use ion_stores::{BlobInfo, Durability, UnfinishedUploads};

use super::*;
use crate::upload::store_bytes;

/// A store in memory behind a faulty network.
#[derive(Debug)]
struct Wire {
    store: ObjectBlobs,
    requests: AtomicU64,
    /// How many of the next requests return a flipped bit.
    flips: AtomicU64,
    /// How many of the next requests break off after a block and a half.
    breaks: AtomicU64,
}

impl Wire {
    fn count_down(count: &AtomicU64) -> bool {
        count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
    }
}

#[async_trait]
impl Blobs for Wire {
    async fn put(
        &self,
        key: &str,
        body: BoxStream<'_, io::Result<Bytes>>,
        durability: Durability,
    ) -> Result<u64, StoreError> {
        self.store.put(key, body, durability).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.store.get_range(key, range).await
    }

    async fn get_stream(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, StoreError>>, StoreError> {
        self.requests.fetch_add(1, Ordering::SeqCst);
        let (flip, breaks) = (Self::count_down(&self.flips), Self::count_down(&self.breaks));
        let pieces: Vec<Bytes> = self.store.get_stream(key, range).await?.try_collect().await?;
        let mut all = pieces.concat();
        if flip {
            let middle = all.len() / 2;
            all[middle] ^= 4;
        }
        if breaks {
            all.truncate(BLOCK_BYTES as usize * 3 / 2);
        }
        let pieces: Vec<_> =
            all.chunks(77_777).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let end = breaks.then(|| {
            Err(StoreError::Unavailable {
                store: "wire".into(),
                what: "cut".into(),
                source: "cut".into(),
            })
        });
        Ok(futures_util::stream::iter(pieces.into_iter().chain(end)).boxed())
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.store.size(key).await
    }

    async fn list(
        &self,
        prefix: &str,
    ) -> Result<BoxStream<'_, Result<BlobInfo, StoreError>>, StoreError> {
        self.store.list(prefix).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.store.delete(key).await
    }

    async fn delete_all(&self, keys: &[String]) -> Result<(), StoreError> {
        self.store.delete_all(keys).await
    }

    async fn delete_listed(&self, listed: &BlobInfo) -> Result<(), StoreError> {
        self.store.delete_listed(listed).await
    }

    async fn end_unfinished_uploads(
        &self,
        before: Millis,
        how: UnfinishedUploads,
    ) -> Result<usize, StoreError> {
        self.store.end_unfinished_uploads(before, how).await
    }
}

struct Bench {
    folder: tempfile::TempDir,
    wire: Arc<Wire>,
    metrics: Arc<PlaneMetrics>,
}

/// Bytes that differ from block to block.
fn content(blocks: u64, more: u64, seed: u64) -> Vec<u8> {
    (0..blocks * BLOCK_BYTES + more)
        .map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 7).to_le_bytes()[0])
        .collect()
}

impl Bench {
    fn new() -> Self {
        let store = ObjectBlobs::in_memory();
        let (requests, flips, breaks) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            wire: Arc::new(Wire { store, requests, flips, breaks }),
            metrics: Arc::default(),
        }
    }

    fn new_cache(&self, limits: CacheLimits) -> Cache {
        Cache::new(self.wire.clone(), self.folder.path().to_owned(), limits, self.metrics.clone())
    }

    async fn store_blob(&self, key: &str, bytes: &[u8]) -> FileEntry {
        let stored =
            store_bytes(&*self.wire, key.to_owned(), key.to_owned(), Bytes::copy_from_slice(bytes))
                .await;
        stored.expect("memory takes it")
    }

    fn requests(&self) -> u64 {
        self.wire.requests.load(Ordering::SeqCst)
    }
}

async fn read_in_pieces(cache: &Cache, entry: &FileEntry, piece: u64) -> Vec<u8> {
    let reader = BlobReader::new(cache.open(entry).expect("it opens"));
    let mut all = Vec::new();
    while (all.len() as u64) < entry.size {
        all.extend_from_slice(&reader.read(all.len() as u64, piece).await.expect("it is read"));
    }
    all
}

/// Waits until every block has been written to the cache's file in the background.
async fn read_range(
    blob: &Arc<CachedBlob>,
    offset: u64,
    length: u64,
) -> Result<Bytes, Arc<CacheError>> {
    blob.read(offset, length, &FetchCount::default()).await
}

async fn wait_until_whole(blob: &Arc<CachedBlob>) {
    for _ in 0..1000 {
        if blob.whole_file().is_some() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("it is not whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_fetched_once_ahead_of_its_reader_and_kept_over_a_restart() {
    let bench = Bench::new();
    let bytes = content(40, 12_345, 1);
    let entry = bench.store_blob("a", &bytes).await;
    let cache = bench.new_cache(CacheLimits::default());
    assert!(read_in_pieces(&cache, &entry, 128 << 10).await == bytes);
    assert_eq!(bench.metrics.bytes_fetched.get(), entry.size, "each block once");
    assert!(bench.requests() <= 12, "in requests of some blocks: {}", bench.requests());
    wait_until_whole(&cache.open(&entry).expect("open")).await;
    drop(cache);
    let cache = bench.new_cache(CacheLimits::default());
    let blob = cache.open(&entry).expect("open");
    assert!(blob.whole_file().is_none(), "nothing on the disk is trusted");
    assert!(read_in_pieces(&cache, &entry, 1 << 20).await == bytes);
    assert_eq!(bench.metrics.bytes_fetched.get(), entry.size, "nothing again");
    assert!(blob.whole_file().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fetch_however_many_wait_and_no_more_than_the_blocks_asked_for() {
    let bench = Bench::new();
    let bytes = content(20, 0, 2);
    let entry = bench.store_blob("a", &bytes).await;
    let cache = bench.new_cache(CacheLimits::default());
    let blob = cache.open(&entry).expect("open");
    let fetched = FetchCount::default();
    let reads = (0..50).map(|_| blob.read(7 * BLOCK_BYTES + 5, 4096, &fetched));
    for read in join_all(reads).await {
        assert!(read.expect("read")[..] == bytes[(7 * BLOCK_BYTES + 5) as usize..][..4096]);
    }
    assert_eq!((bench.metrics.bytes_fetched.get(), bench.requests()), (BLOCK_BYTES, 1));
    assert_eq!(fetched.bytes(), BLOCK_BYTES);
    // Reads across the boundary of two blocks, and beyond the end.
    let two = read_range(&blob, 10 * BLOCK_BYTES - 10, 20).await.expect("read");
    assert!(two[..] == bytes[(10 * BLOCK_BYTES - 10) as usize..][..20]);
    assert_eq!(bench.metrics.bytes_fetched.get(), 3 * BLOCK_BYTES);
    assert_eq!(read_range(&blob, 20 * BLOCK_BYTES - 3, 100).await.expect("read").len(), 3);
    assert!(read_range(&blob, 20 * BLOCK_BYTES, 100).await.expect("read").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_bits_are_noticed_wherever_they_flip() {
    let bench = Bench::new();
    let bytes = content(9, 99, 3);
    let entry = bench.store_blob("a", &bytes).await;
    // A bit flips on the network: the block is fetched again.
    bench.wire.flips.store(1, Ordering::SeqCst);
    let cache = bench.new_cache(CacheLimits::default());
    assert!(read_in_pieces(&cache, &entry, 100_000).await == bytes);
    // A bit flips in the cache's file: the block is fetched again, and the file is repaired.
    wait_until_whole(&cache.open(&entry).expect("open")).await;
    drop(cache);
    let fetched = bench.metrics.bytes_fetched.get();
    let path = bench.folder.path().join(DiskCache::file_name(&entry));
    let file = File::options().read(true).write(true).open(path).expect("it is there");
    file.write_all_at(&[bytes[3 * BLOCK_BYTES as usize] ^ 1], 3 * BLOCK_BYTES).expect("written");
    for _ in 0..2 {
        let cache = bench.new_cache(CacheLimits::default());
        assert!(read_in_pieces(&cache, &entry, 1 << 20).await == bytes);
        wait_until_whole(&cache.open(&entry).expect("open")).await;
        assert_eq!(bench.metrics.bytes_fetched.get(), fetched + BLOCK_BYTES);
    }
    // The same holds while the daemon runs: a block that left its memory is compared again when it
    // is read again.
    let cache = bench.new_cache(CacheLimits::default());
    let blob = cache.open(&entry).expect("open");
    assert!(read_in_pieces(&cache, &entry, 1 << 20).await == bytes);
    file.write_all_at(&[bytes[5 * BLOCK_BYTES as usize] ^ 1], 5 * BLOCK_BYTES).expect("written");
    bench.store_blob("other", &bytes).await;
    cache.shared.memory.drop_blob(0);
    assert!(
        read_range(&blob, 5 * BLOCK_BYTES, 1).await.expect("read")[0]
            == bytes[5 * BLOCK_BYTES as usize]
    );
    // A bit flips in the store: nobody has the right bytes.
    let mut wrong = bytes.clone();
    wrong[4 * BLOCK_BYTES as usize + 17] ^= 128;
    let entry = FileEntry { checksums: bench.store_blob("b", &bytes).await.checksums, ..entry };
    let entry = FileEntry { key: "b".into(), name: "b".into(), ..entry };
    bench.store_blob("b", &wrong).await;
    let blob = cache.open(&entry).expect("open");
    let error =
        read_range(&blob, 4 * BLOCK_BYTES, 1).await.expect_err("it is not what was written");
    assert!(error.to_string().contains("block 4 does not match its checksum"), "{error}");
    assert!(read_range(&blob, 5 * BLOCK_BYTES, 1).await.is_ok(), "the others are");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_breaks_off_goes_on_where_it_was() {
    let bench = Bench::new();
    let bytes = content(16, 0, 4);
    let entry = bench.store_blob("a", &bytes).await;
    bench.wire.breaks.store(2, Ordering::SeqCst);
    let cache = bench.new_cache(CacheLimits::default());
    assert!(read_in_pieces(&cache, &entry, 4 << 20).await == bytes);
    assert_eq!(
        bench.metrics.bytes_fetched.get(),
        entry.size,
        "what had come was not fetched again"
    );
    bench.wire.breaks.store(u64::MAX, Ordering::SeqCst);
    let entry = bench.store_blob("b", &bytes).await;
    let error = read_range(&cache.open(&entry).expect("open"), 0, 1).await;
    assert!(error.is_ok(), "its block had come");
    let gone = FileEntry { key: "gone".into(), ..entry };
    let error =
        read_range(&cache.open(&gone).expect("open"), 0, 1).await.expect_err("there is none");
    assert!(matches!(*error, CacheError::Store { source: StoreError::NoSuchBlob(_), .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_budget_holds_however_many_files_are_open() {
    let bench = Bench::new();
    let limits =
        CacheLimits { memory_bytes: 6 * BLOCK_BYTES, disk_bytes: 30 * BLOCK_BYTES, idle_max: 4 };
    let cache = Arc::new(bench.new_cache(limits));
    let watched = cache.clone();
    let watch = tokio::spawn(async move {
        loop {
            assert!(watched.memory_taken() <= 6 * BLOCK_BYTES);
            tokio::task::yield_now().await;
        }
    });
    let mut reads = Vec::new();
    for file in 0..24 {
        let bytes = content(6, file, file);
        let entry = bench.store_blob(&format!("f{file}"), &bytes).await;
        for piece in [128 << 10, 3 << 20] {
            let (cache, entry, bytes) = (cache.clone(), entry.clone(), bytes.clone());
            reads.push(tokio::spawn(async move {
                assert!(read_in_pieces(&cache, &entry, piece).await == bytes)
            }));
        }
    }
    for read in reads {
        tokio::time::timeout(std::time::Duration::from_secs(60), read)
            .await
            .expect("no deadlock")
            .expect("read");
    }
    assert!(!watch.is_finished(), "over its budget");
    watch.abort();
    let on_disk: u64 = std::fs::read_dir(bench.folder.path())
        .expect("there")
        .map(|file| {
            std::os::unix::fs::MetadataExt::blocks(
                &file.expect("a file").metadata().expect("of it"),
            ) * 512
        })
        .sum();
    assert!(on_disk <= 31 * BLOCK_BYTES, "{on_disk}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_of_this_node_made_is_read_from_its_file_and_stays_right_when_that_changes() {
    let bench = Bench::new();
    let bytes = content(5, 1, 5);
    let path = bench.folder.path().join("staged");
    std::fs::write(&path, &bytes).expect("written");
    let staged = || File::options().read(true).write(true).open(&path).expect("there");
    let cache = bench.new_cache(CacheLimits::default());
    let entry = bench.store_blob("made", &bytes).await;
    assert!(cache.add_staged_file(&entry, staged()));
    assert!(read_in_pieces(&cache, &entry, 1 << 20).await == bytes);
    let blob = cache.open(&entry).expect("open");
    assert!(bench.requests() == 0 && blob.whole_file().is_none(), "the job may still write to it");
    // The job writes to the file.
    staged().write_all_at(b"changed", 2 * BLOCK_BYTES).expect("written");
    cache.shared.memory.drop_blob(0);
    assert!(read_in_pieces(&cache, &entry, 1 << 20).await == bytes);
    assert_eq!(bench.metrics.bytes_fetched.get(), BLOCK_BYTES, "the one block");
    cache.end_staged_file(&entry, None);
    // Another job leaves its file unchanged: the next job reads it, and so may the kernel.
    let entry = bench.store_blob("kept", &bytes).await;
    std::fs::write(&path, &bytes).expect("written");
    let before = bench.requests();
    assert!(cache.add_staged_file(&entry, staged()));
    assert!(read_in_pieces(&cache, &entry, 1 << 20).await == bytes);
    cache.end_staged_file(&entry, Some(&staged()));
    std::fs::remove_file(&path).expect("the staging folder goes");
    assert!(cache.open(&entry).expect("open").whole_file().is_some());
    drop(cache);
    assert!(
        read_in_pieces(&bench.new_cache(CacheLimits::default()), &entry, 1 << 20).await == bytes
    );
    assert_eq!(bench.requests(), before);
}

#[test]
fn nonsense_in_a_document_takes_no_memory() {
    let bench = Bench::new();
    let mut entry = FileEntry {
        name: "n".into(),
        key: "k".into(),
        size: u64::MAX,
        mtime: 0,
        mtime_nanos: 0,
        mode: 0,
        checksums: ion_model::checksum::of(b""),
    };
    entry.checksums.block = 1 << 40;
    let cache = bench.new_cache(CacheLimits::default());
    assert!(matches!(cache.open(&entry), Err(CacheError::Block { .. })));
}
