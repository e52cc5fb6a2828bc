# SPDX-License-Identifier: Apache-2.0
# Thin front of Meson and of the image scripts. `make help` lists what there is.

BUILD  := build
PYTHON := /usr/bin/python3
FUZZ_SECONDS ?= 1800

.PHONY: all help deps-build deps-demo deps-test deps-fuzz deps-proof programs images templates demo test soak \
	proof bench fuzz fuzz-coverage format lint clean

all: deps-build programs images

help:
	@echo "make        install what is missing, build programs and the template default"
	@echo "make templates  also the other templates of the project: python-datasci (the first time"
	@echo "            250 MB to download and a few minutes)"
	@echo "make demo   the same, then run the example in a real microVM and stop again"
	@echo "make test   all tests, with all templates; ends with one line of counts"
	@echo "make soak   the long test: a thousand creates, forks, kills (SOAK=--quick: a tenth)"
	@echo "make proof  proofs about code that reads guest memory (a minute and a half; in make test, too)"
	@echo "make bench  figures with machine, mode, n and percentiles"
	@echo "make fuzz   every fuzz target for FUZZ_SECONDS ($(FUZZ_SECONDS)), as many at a time as there are"
	@echo "            processors;  make fuzz-coverage  what their inputs reach of devices and parsers"
	@echo "make format clang-format of all C files;  make lint  clang-tidy"
	@echo "make clean  remove $(BUILD)/ (the image cache stays: ~/.cache/podflare)"

deps-build deps-demo deps-test deps-fuzz deps-proof:
	@tools/install-deps.sh $(@:deps-%=%)

$(BUILD)/build.ninja: | deps-build
	@meson setup $(BUILD) . >$(BUILD).log 2>&1 || { cat $(BUILD).log; rm -f $(BUILD).log; exit 1; }
	@mkdir -p $(BUILD) && mv $(BUILD).log $(BUILD)/setup.log

programs: $(BUILD)/build.ninja
	@ninja -C $(BUILD)

images: programs
	@guest/build.sh $(BUILD)
	@box/build.sh $(BUILD)

# One after the other: both would wait for the same lock.
templates: images
	@guest/build.sh $(BUILD) templates

demo: deps-demo all
	@tools/demo.sh $(BUILD)

test: deps-test all templates
	@$(PYTHON) guest/template.py --build $(BUILD) build tests/e2e/web-tools
	@$(PYTHON) tests/run.py --build $(BUILD)

# Kills at random moments, and hostile guests for 20 minutes; then the system as a whole.
soak: deps-test all templates
	@PODFLARE_SOAK_KILLS=100 $(PYTHON) tests/run.py --build $(BUILD) --only vmm
	@HOSTILE_OPS=10000 HOSTILE_SECONDS=$(if $(findstring quick,$(SOAK)),120,1200) PODFLARE_BUILD=$(BUILD) \
		$(PYTHON) -m pytest -q tests/guest/test_hostile.py
	@$(PYTHON) tests/soak.py --build $(BUILD) $(SOAK)

proof: deps-proof
	@tests/proof/run.py

bench: deps-demo all templates
	@$(PYTHON) bench/run.py --build $(BUILD)
	@$(PYTHON) bench/egress.py --build $(BUILD)
	@$(PYTHON) bench/transfer.py --build $(BUILD)
	@$(PYTHON) bench/repl.py

# Goes on from what earlier runs have learned, in $(BUILD)/clang/fuzz.
fuzz: deps-test
	@[ -e $(BUILD)/clang/build.ninja ] || CC=clang meson setup $(BUILD)/clang . -Dfuzz=true >/dev/null
	@ninja --quiet -C $(BUILD)/clang fuzz
	@$(PYTHON) tests/fuzz/run.py --build $(BUILD)/clang --seconds $(FUZZ_SECONDS)

fuzz-coverage: deps-fuzz
	@$(PYTHON) tests/fuzz/coverage.py --build $(BUILD)/coverage --corpus $(BUILD)/clang

format:
	@clang-format -i $$(git ls-files '*.c' '*.h')

lint: deps-test $(BUILD)/build.ninja
	@[ -e $(BUILD)/clang/build.ninja ] || CC=clang meson setup $(BUILD)/clang . -Dfuzz=true >/dev/null
	@clang-tidy --quiet -p $(BUILD)/clang $$(git ls-files 'src/*.c')

clean:
	rm -rf $(BUILD)
