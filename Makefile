# The two commands a newcomer needs: `make demo` and `make test`.
.PHONY: demo test bench lint torture

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

torture: ## kill dispatchers, commands and gc 10,000 times, on the embedded stores and on real servers (an hour)
	@scripts/setup-tests.sh
	@ION_TORTURE_KILLS=$${ION_TORTURE_KILLS:-5000} ION_TORTURE_EVENTS=$${ION_TORTURE_EVENTS:-60} \
		ION_TORTURE_SEED=$${ION_TORTURE_SEED:-$$(date +%s)} cargo test --locked --test torture -- --nocapture
