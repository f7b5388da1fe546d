package server

import (
	"net/http"
	"time"

	"github.com/mmserve/mmserve/batching"
	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/server/web"
	"github.com/mmserve/mmserve/serving"
)

// enginePath streams what the engines do, to admins.
const enginePath = web.Prefix + "engine"

// snapshotEvery is the time between two events.
const snapshotEvery = 500 * time.Millisecond

// engineSnapshot is what an engine holds and has done: counts alone. Fields from Steps on are totals.
type engineSnapshot struct {
	Model string `json:"model"`
	// Slots are those of the KV cache; Running of them have sequences, Cached what ended ones left.
	Slots   int `json:"slots"`
	Running int `json:"running"`
	Cached  int `json:"cached"`
	// Waiting are by class: batch, default, interactive. Preparing have a place, and no complete prompt yet.
	Waiting   []int `json:"waiting"`
	Preparing int   `json:"preparing"`
	KVTokens  int   `json:"kv_tokens"`
	KVBudget  int   `json:"kv_budget"`

	Steps           int64 `json:"steps"`
	PrefillSteps    int64 `json:"prefill_steps"`
	DecodeRows      int64 `json:"decode_rows"`
	PromptTokens    int64 `json:"prompt_tokens"`
	GeneratedTokens int64 `json:"generated_tokens"`
	CachedTokens    int64 `json:"cached_tokens"`
	Preemptions     int64 `json:"preemptions"`
}

func newSnapshot(model string, s batching.Stats) engineSnapshot {
	return engineSnapshot{
		Model: model, Slots: s.Slots, Running: s.Running, Cached: s.CachedSlots, Waiting: s.WaitingBy[:],
		Preparing: max(0, s.Accepted-s.Running-s.Waiting), KVTokens: s.KVTokens, KVBudget: s.KVBudget,
		Steps: s.Steps, PrefillSteps: s.PrefillSteps, DecodeRows: s.DecodeRows, PromptTokens: s.PromptTokens,
		GeneratedTokens: s.GeneratedTokens, CachedTokens: s.CachedTokens, Preemptions: s.Preemptions,
	}
}

// webEngine sends a snapshot of all engines now and then, until the client leaves or the server stops.
func (x *exchange) webEngine() error {
	if err := x.requireModel(); err != nil {
		return err
	}
	next := time.NewTicker(snapshotEvery)
	defer next.Stop()
	to := sse{x: x}
	if to.begin(); x.r.Method == http.MethodHead {
		return nil
	}
	for {
		var list []engineSnapshot
		x.models.Each(func(d *serving.Deployment) { list = append(list, newSnapshot(d.Model.Name, d.Engine.Stats())) })
		to.add(openai.Marshal(struct {
			Time    int64            `json:"time_ms"` // since 1970
			Engines []engineSnapshot `json:"engines"`
		}{time.Now().UnixMilli(), list}))
		if err := to.flush(); err != nil {
			return nil // who left does not read why
		}
		select {
		case <-next.C:
		case <-x.r.Context().Done():
			return nil
		case <-x.drained.Done():
			return nil
		}
	}
}
