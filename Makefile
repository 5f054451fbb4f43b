# The two commands a newcomer needs: `make demo` and `make test`.
.PHONY: demo test torture bench lint

demo: ## set up what is missing, build, run the video pipeline on a real clip, show the result
	@scripts/demo.sh

test: lint ## set up what is missing, run every lint and every test
	@cargo test --workspace --locked --lib --bins --tests

torture: ## the filesystem's tests for an hour and more: ten million operations of fsx each way, gigabytes of fio
	@scripts/setup-tests.sh
	@ION_TEST_FSX_OPS=10000000 ION_TEST_FIO_MIB=2048 cargo test --locked --test model --test posix -- --nocapture fsx fio pjdfstest

lint:
	@scripts/setup-tests.sh
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings

bench: ## figures: reading, writing, committing, dispatching, against native files and bare stores
	@cargo bench --locked --bench figures
