# The two commands a newcomer needs: `make demo` and `make test`.
.PHONY: demo test quick test-kubernetes images bench lint audit torture torture-files fuzz

demo: ## set up what is missing, build, run the video pipeline on a real clip, show the result
	@scripts/demo.sh

test: lint ## set up what is missing, run every lint and every test
	@cargo test --workspace --locked --lib --bins --tests
	@cargo test --workspace --locked --doc -- --quiet
	@cargo test --locked --package ion-stores --no-default-features --lib -- --quiet open

quick: ## the fast lane while you work: lints, unit tests and the embedded suites; needs neither root nor servers
	@cargo fmt --all --check
	@scripts/rooms.py --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@cargo test --workspace --locked --lib --bins --test embedded -- --quiet --test-threads 6 \
		--skip fsx --skip what_the_dead_left_is_found_and_repaired --skip a_copy_of_more_than_four_gigabytes

test-kubernetes: ## the kubernetes executor and the chart on a real cluster of one node, built once from Debian's source (ten minutes); as root
	@scripts/setup-kubernetes.sh
	@cargo test --workspace --locked --test machine -- kubernetes:: deploy::

lint: ## formatting, the rooms' walls, clippy with and without features, the dependencies' licenses
	@scripts/setup-tests.sh
	@cargo fmt --all --check
	@scripts/rooms.py --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@cargo clippy --package ion --no-default-features --locked -- -D warnings
	@scripts/check-dependencies.sh

audit: ## known vulnerabilities of the dependencies; needs the network
	@scripts/setup-tests.sh
	@scripts/check-dependencies.sh advisories

images: ## the image that the Helm chart runs, without Docker: target/images/ion-VERSION.tar
	@scripts/setup-build.sh
	@deploy/images.sh

bench: ## figures: reading, writing, committing, dispatching, against native files and bare stores; looking at a large plane
	@scripts/setup-bench.sh
	@cargo bench --workspace --locked --bench figures --bench data --bench chains --bench csi --bench scale --bench index

torture: torture-files ## 10,000 kills of dispatchers, commands and gc on the embedded stores and on real servers, and torture-files (hours)
	@ION_TORTURE_KILLS=$${ION_TORTURE_KILLS:-5000} ION_TORTURE_EVENTS=$${ION_TORTURE_EVENTS:-60} \
		ION_TORTURE_SEED=$${ION_TORTURE_SEED:-$$(date +%s)} cargo test --workspace --locked --test servers -- --nocapture torture::
	@cargo test --workspace --locked --test servers -- --ignored

torture-files: ## the filesystem for hours: ten million operations of fsx each way, gigabytes of fio, a million operations among readers of folders each way, storms of the full size
	@scripts/setup-tests.sh
	@ION_TEST_FSX_OPS=10000000 ION_TEST_FIO_MIB=2048 cargo test --workspace --locked --test embedded --test machine -- --nocapture fsx fio pjdfstest
	@ION_TEST_READERS_OPS=$${ION_TEST_READERS_OPS:-1000000} ION_TEST_READERS_SEED=$${ION_TEST_READERS_SEED:-$$(date +%s)} \
		cargo test --workspace --locked --test machine -- --nocapture readers::
	@ION_TEST_STORMS=full cargo test --workspace --locked --test machine -- --nocapture storms::

fuzz: ## every reader of what others wrote, ION_FUZZ_SECONDS each (1,200); what it finds is in fuzz/artifacts
	@scripts/setup-fuzz.sh
	@scripts/fuzz.sh
