package openai

// Extras are what an answer has besides OpenAI's fields, where its request asks for them.
type Extras struct {
	Timings *Timings `json:"timings,omitempty"`
	// ChoiceScores are the probabilities of the choices that the answer is held to, in their order.
	ChoiceScores []float32 `json:"choice_scores,omitempty"`
}

// Timings say where the time of a request went, in milliseconds by the server's clock. Stages that did not happen are
// 0.
type Timings struct {
	Preprocess float64 `json:"preprocess_ms"`
	Tokenize   float64 `json:"tokenize_ms"`
	Encode     float64 `json:"encode_ms"`
	Queue      float64 `json:"queue_ms"`
	Prefill    float64 `json:"prefill_ms"`
	Decode     float64 `json:"decode_ms"`
	FirstToken float64 `json:"ttft_ms"`
	Total      float64 `json:"total_ms"`
}
