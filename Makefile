# The two commands a newcomer needs: `make demo` and `make test`.
.PHONY: demo test bench lint

demo: ## set up what is missing, build, run the video pipeline on a real clip, show the result
	@scripts/demo.sh

test: lint ## set up what is missing, run every lint and every test
	@cargo test --workspace --locked --lib --bins --tests

lint:
	@scripts/setup-tests.sh
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- -D warnings

bench: ## figures: reading, writing, committing, dispatching, against native files and bare stores
	@cargo bench --locked --bench figures
