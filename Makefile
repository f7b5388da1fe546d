# The two commands of a newcomer are `make run` and `make test`. Both set up what they need.

GO      ?= go
BIN     := bin/mmserve
ORT     := node_modules/onnxruntime-node/package.json
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

.PHONY: run build clients sdks test test-sdks test-clients test-webgpu test-arm64 test-kubernetes manifests image sbom test-observability test-training test-captioning test-conversations otelcol lint proto released ort fuzz mutation bench bench-peers loadtest soak attack test-image web web-modules test-web test-fleet test-safety clean

## run: fetch ONNX Runtime, build, caption the sample images with the embedded model
run: build
	@$(BIN) caption

## build: bin/mmserve, with the ONNX Runtime library it needs beside it in the repository
build: ort
	$(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o $(BIN) ./cmd/mmserve

## ort: fetch the pinned ONNX Runtime library (SHA-512 in package-lock.json)
ort: $(ORT)

$(ORT): package.json package-lock.json .npmrc
	npm ci --ignore-scripts --omit=dev --loglevel=error
	@touch $@

## sdks: what tests of clients need of npm
SDKS := clients/openai/node/node_modules/openai/package.json clients/node/node_modules/@grpc/grpc-js/package.json
sdks: $(SDKS)

clients/openai/node/node_modules/openai/package.json: clients/openai/node/package-lock.json
clients/node/node_modules/@grpc/grpc-js/package.json: clients/node/package-lock.json
$(SDKS):
	cd $(dir $<) && npm ci --ignore-scripts --loglevel=error
	@touch $@

## web: the playground's built files, which are committed, anew from server/web/src
web: web-modules
	cd server/web && npx tsc && npm run --silent build

## web-modules: what the playground is built with
web-modules: server/web/node_modules/esbuild/package.json
server/web/node_modules/esbuild/package.json: server/web/package.json server/web/package-lock.json server/web/.npmrc
	cd $(dir $<) && npm ci --loglevel=error
	@touch $@

## test-web: the playground in Debian's Chromium, which it installs where apt-get can; else it says why not, and passes
test-web: build web-modules sdks bin/grpcurl
	cd server/web && npx tsc
	@if why=$$(scripts/chromium.sh); then cd server/web && CHROMIUM=$$why node --test --test-concurrency=1 --test-timeout=300000 test/*.test.mjs; \
	else echo "test-web is skipped: no Chromium"; fi

## test-sdks: OpenAI's SDKs for Node and Go against a server; the one for Go takes minutes to build
test-sdks: ort sdks
	MMSERVE_TEST_SDKS=1 $(GO) test -count=1 -v -timeout 20m -run '^TestOpenAISDK$$' ./cmd/mmserve

## test-clients: grpcurl and ghz against a server with TLS and keys; the first run builds them, which takes minutes
test-clients: ort bin/grpcurl bin/ghz
	MMSERVE_TEST_CLIENTS=1 $(GO) test -count=1 -v -timeout 10m -run '^Test(GRPCurl|GHZ)$$' ./cmd/mmserve

bin/grpcurl bin/ghz: tools/clients/go.mod
	$(GO) -C tools/clients build -o ../../bin/ tool

## test: everything CI checks; under the race detector, which slows tests five to ten times, what starts goroutines
MODULE := github.com/mmserve/mmserve
PLAIN := cmd/mmserve fusion internal/chat internal/constrain internal/kernels internal/onnx internal/tokenizer \
  model model/export model/families model/synth model/verify training/health
RACED := Admin|Bench$$|CaptionKilled|CaptionWorkersOfAQueue|Concurrent|ConfigReload|ConversationOutlives|ManyStreams|ReloadKeys|RollingRestart|Subject|Swap|TwoModels|Unload
test: ort sdks web-modules lint
	@fmt=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); if [ -n "$$fmt" ]; then echo "gofmt would change:"; echo "$$fmt"; exit 1; fi
	$(GO) vet ./...
	$(GO) test -race -timeout 15m $$($(GO) list ./... | grep -vxF "$$(printf '$(MODULE)/%s\n' $(PLAIN))")
	$(GO) test -race -run '^Test($(RACED))' -timeout 10m ./cmd/mmserve ./internal/tokenizer
	$(GO) test -timeout 15m $(addprefix ./,$(PLAIN))
	$(GO) test -run '^TestPixelsAsTransformers$$' -timeout 5m ./vision
	$(GO) test -run 'Anywhere|Attack|Canary|Cheap|Costly|Flood|Hostile|Hundred|Large|Pace|Strips|Whole' -timeout 5m ./internal/imaging ./server
	$(GO) test -run 'Flood|Weights|Goodput|Knee' -timeout 5m ./loadtest
	MMSERVE_TEST_GRANITE=1 $(GO) test -run '^Test(GraniteShape|ImageCommandIsCheap|ConfigRefuses|ServeRefuses)$$' -timeout 10m ./cmd/mmserve

## test-webgpu: the device path on Mesa's software Vulkan, which it installs where apt-get can; else it says why not, and passes
STREAMS ?= 2m
test-webgpu: ort
	@mkdir -p .cache/mesa; if icd=$$(scripts/lavapipe.sh); then \
	  VK_DRIVER_FILES=$$icd MESA_SHADER_CACHE_DIR=$(CURDIR)/.cache/mesa MMSERVE_TEST_WEBGPU=1 MMSERVE_TEST_STREAMS=$(STREAMS) \
	  $(GO) test -count=1 -v -p 1 -timeout 40m -run 'WebGPU|Device|Fused' ./internal/ort ./model/... ./cmd/mmserve; \
	else echo "test-webgpu is skipped"; fi

## test-arm64: kernels, images, decoder and captions on ARM64, under qemu elsewhere, which it installs where apt-get can; else it says why
## not, and passes
test-arm64: build
	GO=$(GO) scripts/test-arm64.sh $(BIN)

## test-kubernetes: the chart and the other manifests on a real control plane, with kwok in place of kubelets; the first run builds it,
## which takes 20 minutes of a processor, and 2.5 GB. What cannot be had skips the test; docs/kubernetes.md has the transcript
KUBE_MODULE := tools/kubernetes/go.mod
KUBE_VERSION := 1.37.2
KUBE := bin/kube-apiserver bin/kube-controller-manager bin/kube-scheduler bin/kwok bin/helm
test-kubernetes: $(KUBE)
	@command -v etcd >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -y --no-install-recommends etcd-server; } || echo "no etcd: the test is skipped"
	$(GO) -C tools/kubernetes test -count=1 -v -timeout 30m .

bin/kube-%: $(KUBE_MODULE)
	$(GO) -C tools/kubernetes build -trimpath -p 1 -o ../../$@ -ldflags '-s -w -X k8s.io/component-base/version.gitMajor=1 \
	  -X k8s.io/component-base/version.gitMinor=37 -X k8s.io/component-base/version.gitVersion=v$(KUBE_VERSION)' k8s.io/kubernetes/cmd/$(@F) \
	  || echo "no $(@F): the test is skipped"

bin/kwok:
	GOBIN=$(CURDIR)/bin $(GO) install -trimpath -ldflags '-s -w' sigs.k8s.io/kwok/cmd/kwok@v0.8.0 || echo "no kwok: the test is skipped"

bin/helm:
	GOBIN=$(CURDIR)/bin $(GO) install -trimpath -ldflags '-s -w' helm.sh/helm/v4/cmd/helm@v4.3.2 || echo "no helm: the test is skipped"

## manifests: writes anew what follows from the chart (deploy/helm/testdata, deploy/kustomize) and from flags (its schema)
manifests: bin/helm
	$(GO) test -run '^TestSchemaHasFlags$$' ./deploy -rewrite
	$(GO) -C tools/kubernetes test -run '^TestRenderings$$' . -rewrite

## image: the image for processors, as IMAGE; BASES=local builds it where no registry is reached (docs/deploy.md)
IMAGE ?= mmserve:latest
image:
	scripts/image.sh $(IMAGE) $(VERSION)

## test-image: IMAGE in podman: read-only, without capabilities, with 1 GiB; where no podman is, it says so and passes
test-image: build
	scripts/test-image.sh $(IMAGE)

## sbom: bin/mmserve.cdx.json, what bin/mmserve and ONNX Runtime beside it are made of (CycloneDX)
sbom: build
	GO=$(GO) scripts/sbom.sh $(BIN) $(BIN).cdx.json

## test-observability: rules, dashboard and traces against promtool, Prometheus and an OpenTelemetry Collector, those that are there
test-observability: build otelcol
	@command -v prometheus >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get install -y --no-install-recommends prometheus; } || echo "no Prometheus: its tests are skipped"
	MMSERVE_TEST_OBSERVABILITY=1 $(GO) test -count=1 -v -timeout 10m ./deploy/observability

## otelcol: bin/otelcol, a small OpenTelemetry Collector for test-observability
otelcol: bin/otelcol

bin/otelcol: tools/otelcol/main.go tools/otelcol/go.mod
	cd tools/otelcol && $(GO) build -o ../../bin/otelcol . || echo "no Collector: its test is skipped"

## test-captioning: captioning killed at 50 moments, servers killed, disks full, stores and workers, 100,000 images; docs/captioning.md has the numbers
test-captioning: ort bin/stores
	MMSERVE_TEST_CAPTIONING=1 $(GO) test -count=1 -v -timeout 40m -run '^TestCaption' ./cmd/mmserve

## test-conversations: 50 kills, and appends to a store of a million messages; PostgreSQL where there is one. Minutes, most of them on the disk
test-conversations:
	MMSERVE_TEST_CONVERSATIONS=1 $(GO) test -count=1 -v -timeout 20m -run 'Kill|Postgres' ./conversation
	MMSERVE_BENCH_MESSAGES=1000000 $(GO) test -run '^$$' -bench '^BenchmarkAppend$$' -benchtime 10000x -timeout 20m ./conversation

bin/stores: tools/stores/main.go tools/stores/go.mod
	cd tools/stores && $(GO) build -o ../../bin/stores . || echo "no stand-ins of stores: their test is skipped"

## test-safety: policies on models of npm packages, 400 drawn pages, and answers cut into tokens in 10,000 ways
SAFETY := tools/safety/node_modules/nsfwjs/package.json
test-safety: ort $(SAFETY)
	$(GO) run ./cmd/convert-tfjs tools/safety/node_modules/nsfwjs/dist/models/mobilenet_v2 tools/safety/nsfw
	MMSERVE_TEST_SAFETY=1 MMSERVE_SAFETY_MODELS=$(CURDIR)/tools/safety $(GO) test -count=1 -v -timeout 60m -run 'Leak|InImages|NSFW' ./safety

$(SAFETY): tools/safety/package-lock.json
	cd tools/safety && npm ci --ignore-scripts --loglevel=error
	@touch $@

## test-training: the recipe of the embedded model, where python3 has what it needs; else it says what is missing, and passes
test-training:
	@if why=$$(python3 -c 'import numpy, PIL, tokenizers, torch' 2>&1); then cd training && OMP_NUM_THREADS=1 python3 -m unittest; \
	else echo "test-training is skipped: $$(echo "$$why" | tail -1)"; fi

## lint: static checks, at the versions of tools/go.mod; the first run builds them, which takes minutes
lint:
	$(GO) tool -modfile=tools/go.mod buf lint
	$(GO) tool -modfile=tools/go.mod buf breaking --against $(RELEASED)
	$(GO) tool -modfile=tools/go.mod staticcheck ./...
	GO=$(GO) scripts/vulncheck.sh

## released: notes the contract as it is now as that of the last release, which lint holds later changes against; part of a release
RELEASED := proto/mmserve/v1/released.binpb
released:
	$(GO) tool -modfile=tools/go.mod buf build --exclude-source-info -o $(RELEASED)

## proto: write the generated Go beside the .proto files, and the contract to the client for Node
proto:
	$(GO) tool -modfile=tools/go.mod buf generate
	cp proto/mmserve/v1/*.proto clients/node/proto/mmserve/v1/
	cp clients/proto/mmserve/retry.proto clients/node/proto/mmserve/

## clients: the stubs for Python, anew; needs protoc 3.21 and grpc_python_plugin (Debian: protobuf-compiler-grpc)
clients:
	protoc -I proto -I clients/proto --python_out=clients/python --grpc_python_out=clients/python \
	  --plugin=protoc-gen-grpc_python=$$(command -v grpc_python_plugin) mmserve/v1/mmserve.proto mmserve/v1/conversation.proto mmserve/retry.proto

## fuzz: every fuzz target for FUZZTIME each
FUZZTIME ?= 60s
fuzz: ort
	@set -e; for pkg in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "== $$pkg $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; done; done

## mutation: changes PKG's code one place at a time and says what its tests do not notice; MUTATION="-n 60 -budget 5m" is a sample
PKG ?= batching
MUTATION ?=
mutation: ort
	$(GO) -C tools run ./mutation -C .. $(MUTATION) ./$(PKG)

## bench: every Go benchmark once, over a checkpoint of granite-docling's shape that is made for them; the table is bin/bench.txt
BENCH_MODEL := .cache/bench-model
bench: build $(BENCH_MODEL)/config.json
	MMSERVE_BENCH_MODEL=$(CURDIR)/$(BENCH_MODEL) $(GO) test -run '^$$' -bench . -benchmem -timeout 60m ./... | tee bin/bench.txt

$(BENCH_MODEL)/config.json:
	$(BIN) model init --config testdata/granite-docling --out $(BENCH_MODEL)

## bench-peers: mmserve against what users would pick instead, side by side (docs/performance.md says how to get them)
bench-peers: build
	$(GO) run ./cmd/bench-peers

## loadtest: the embedded model under load for a quarter of a minute; the report is bin/loadtest.html
LOADTEST ?= --rate 8 --duration 15s --warm-up 3s --prompt uniform:4,40 --output uniform:8,48 --images 0.25 --image-sizes 512x512:2,640x480
loadtest: build
	@$(BIN) --log-level warn serve --listen 127.0.0.1:18089 & pid=$$!; trap "kill $$pid; wait $$pid" EXIT; \
	$(BIN) bench --server 127.0.0.1:18089 --wait 60s --slo ttft=1s,tpot=100ms --json bin/loadtest.json --html bin/loadtest.html $(LOADTEST)

## soak: the embedded model at 80 % of what it carries, for SOAK, with everything that goes wrong (docs/reliability.md)
SOAK ?= 10m
soak: build
	$(GO) build -o bin/soak ./cmd/soak
	bin/soak -duration $(SOAK)

## attack: what is known to kill or stall servers of this kind, one attacker and ten, with bounds (docs/reliability.md)
ATTACK ?= .
attack: build
	$(GO) run ./cmd/attack -run '$(ATTACK)'

## test-fleet: three servers restarted in turn under 15 streams a second, and one killed, behind balancers (Debian's, which it installs) and clients; 16 minutes
FLEET ?= .
test-fleet: build sdks
	@for p in haproxy nginx; do command -v $$p >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get install -y --no-install-recommends haproxy nginx-light python3-grpcio >/dev/null; } || echo "no $$p: its runs are skipped"; done
	$(GO) build -o bin/rollout ./cmd/rollout
	bin/rollout -run '$(FLEET)'

clean:
	rm -rf bin node_modules
