package serving

import (
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
)

// Names of telemetry, all of them. Those of gen_ai.* are the GenAI conventions', at semconv v1.41.0, the last with Go
// constants for them; image and text tokens were added to the conventions later. mmserve.* are our own.
// docs/observability.md says what each means.
const (
	scope = "github.com/mmserve/mmserve/server"

	metricRequestDuration = "gen_ai.server.request.duration"
	metricFirstToken      = "gen_ai.server.time_to_first_token"
	metricOutputToken     = "gen_ai.server.time_per_output_token"

	metricStageDuration  = "mmserve.request.stage.duration"
	metricFinished       = "mmserve.requests.finished"
	metricRejected       = "mmserve.requests.rejected"
	metricRunning        = "mmserve.requests.running"
	metricWaiting        = "mmserve.requests.waiting"
	metricPreparing      = "mmserve.requests.preparing"
	metricTokens         = "mmserve.tokens"
	metricImages         = "mmserve.images"
	metricSlots          = "mmserve.slots"
	metricCachedSlots    = "mmserve.slots.cached"
	metricKVUtilization  = "mmserve.kv.utilization"
	metricKVTokens       = "mmserve.kv.tokens"
	metricKVBudget       = "mmserve.kv.budget"
	metricKVResident     = "mmserve.kv.resident"
	metricDrafts         = "mmserve.engine.drafts"
	metricSteps          = "mmserve.engine.steps"
	metricFailedSteps    = "mmserve.engine.steps.failed"
	metricStepDuration   = "mmserve.engine.step.duration"
	metricStepRows       = "mmserve.engine.step.rows"
	metricPreemptions    = "mmserve.engine.preemptions"
	metricGaveWay        = "mmserve.engine.preemptions.priority"
	metricEvictions      = "mmserve.engine.evictions"
	metricMoves          = "mmserve.engine.moves"
	metricStalled        = "mmserve.engine.stalled"
	metricEncoderCalls   = "mmserve.encoder.requests"
	metricEncoderRuns    = "mmserve.encoder.runs"
	metricEncoderTiles   = "mmserve.encoder.tiles"
	metricEncoderSize    = "mmserve.encoder.cache.size"
	metricEncoderEntries = "mmserve.encoder.cache.entries"
	metricDiskSize       = "mmserve.encoder.disk.size"
	metricDiskEntries    = "mmserve.encoder.disk.entries"
	metricDiskFailures   = "mmserve.encoder.disk.failures"
	metricModelInfo      = "mmserve.model.info"
	metricCacheConfig    = "mmserve.cache.config.info"
	metricDeviceCopied   = "mmserve.device.copied"
	metricDeviceMemory   = "mmserve.device.memory"
	metricSessionNodes   = "mmserve.session.nodes"
	metricFallbackNodes  = "mmserve.session.fallback.nodes"
	metricInflight       = "mmserve.messages.inflight"
	metricEvicted        = "mmserve.messages.evicted"
	metricConnections    = "mmserve.connections"
	metricQuotaRefused   = "mmserve.quota.refused"
	metricQuotaTenants   = "mmserve.quota.tenants"
	metricPolicy         = "mmserve.policy.findings"
	metricAbuse          = "mmserve.abuse.quarantines"
	metricQuarantined    = "mmserve.abuse.quarantined"

	spanImageDecode = "mmserve.image.decode"
	spanImageResize = "mmserve.image.resize"
	spanDecodeStep  = "mmserve.step.decode"
	spanPrefillStep = "mmserve.step.prefill"
	spanMixedStep   = "mmserve.step.mixed"

	// Stages of a request, as the span "mmserve." + stage and in the attribute keyStage.
	stagePreprocess = "preprocess"
	stageTokenize   = "tokenize"
	stageEncode     = "encode"
	stageQueue      = "queue"
	stagePrefill    = "prefill"
	stageDecode     = "decode"

	provider          = "mmserve"
	operationChat     = "chat"
	operationUpload   = "upload_media" // in the audit log only, as the next
	operationDelete   = "delete_media"
	operationComplete = "text_completion"
	operationEmbed    = "embeddings"
	operationCount    = "count_tokens" // the conventions have none

	keyOperation       = semconv.GenAIOperationNameKey
	keyProvider        = semconv.GenAIProviderNameKey
	keyRequestModel    = semconv.GenAIRequestModelKey
	keyMaxTokens       = semconv.GenAIRequestMaxTokensKey
	keyTemperature     = semconv.GenAIRequestTemperatureKey
	keyTopP            = semconv.GenAIRequestTopPKey
	keyTopK            = semconv.GenAIRequestTopKKey
	keySeed            = semconv.GenAIRequestSeedKey
	keyStream          = semconv.GenAIRequestStreamKey
	keyFrequency       = semconv.GenAIRequestFrequencyPenaltyKey
	keyPresence        = semconv.GenAIRequestPresencePenaltyKey
	keyResponseID      = semconv.GenAIResponseIDKey
	keyResponseModel   = semconv.GenAIResponseModelKey
	keyFinishReasons   = semconv.GenAIResponseFinishReasonsKey
	keyFirstChunk      = semconv.GenAIResponseTimeToFirstChunkKey
	keyInputTokens     = semconv.GenAIUsageInputTokensKey
	keyOutputTokens    = semconv.GenAIUsageOutputTokensKey
	keyCacheRead       = semconv.GenAIUsageCacheReadInputTokensKey
	keyImageInput      = attribute.Key("gen_ai.usage.image.input_tokens")
	keyTextInput       = attribute.Key("gen_ai.usage.text.input_tokens")
	keyErrorType       = semconv.ErrorTypeKey
	keyStage           = attribute.Key("stage")
	keyOutcome         = attribute.Key("outcome")
	keyReason          = attribute.Key("reason")
	keyQuota           = attribute.Key("quota")
	keyNamedTenant     = attribute.Key("tenant")
	keyCategory        = attribute.Key("category")
	keyAction          = attribute.Key("action")
	keyFoundIn         = attribute.Key("found_in")
	keySignal          = attribute.Key("signal")
	keyScope           = attribute.Key("scope")
	keyKind            = attribute.Key("kind")
	keyPriority        = attribute.Key("priority")
	keyPhase           = attribute.Key("phase")
	keyResult          = attribute.Key("result")
	keySource          = attribute.Key("source")
	keyModel           = attribute.Key("model")
	keyDigest          = attribute.Key("digest")
	keyDirection       = attribute.Key("direction")
	keyGraph           = attribute.Key("graph")
	keyPlace           = attribute.Key("provider")
	keyBlockSize       = attribute.Key("block_size")
	keyBlocks          = attribute.Key("num_gpu_blocks")
	keyTenant          = attribute.Key("mmserve.tenant")
	keyImages          = attribute.Key("mmserve.images")
	keyImageBytes      = attribute.Key("mmserve.image.bytes")
	keyImageWidth      = attribute.Key("mmserve.image.width")
	keyImageHeight     = attribute.Key("mmserve.image.height")
	keyImageTiles      = attribute.Key("mmserve.image.tiles")
	keyEncoderTokens   = attribute.Key("mmserve.encoder.tokens")
	keyEncoderCached   = attribute.Key("mmserve.encoder.cached_tokens")
	keySlot            = attribute.Key("mmserve.slot")
	keyPrefillTokens   = attribute.Key("mmserve.prefill.tokens")
	keyPrefillCached   = attribute.Key("mmserve.prefill.cached_tokens")
	keyPrefillChunks   = attribute.Key("mmserve.prefill.chunks")
	keyDecodeSteps     = attribute.Key("mmserve.decode.steps")
	keyDecodeBatch     = attribute.Key("mmserve.decode.batch_size.mean")
	keyDecodeBatchMost = attribute.Key("mmserve.decode.batch_size.max")
	keyStepRows        = attribute.Key("mmserve.step.rows")
	keyStepTokens      = attribute.Key("mmserve.step.tokens")
)

// The bucket boundaries of gen_ai.server.* are the conventions'.
var (
	requestBuckets     = []float64{0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92}
	firstTokenBuckets  = []float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}
	outputTokenBuckets = []float64{0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5}
	stageBuckets       = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}
	stepBuckets        = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}
	rowBuckets         = []float64{1, 2, 4, 8, 16, 32, 64, 128}
)
