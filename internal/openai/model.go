package openai

// ModelList is the answer to GET /v1/models.
type ModelList struct {
	Object string  `json:"object"` // "list"
	Data   []Model `json:"data"`
}

// Model is one that is served. MaxModelLen is vLLM's: the context in tokens.
type Model struct {
	ID          string `json:"id"`
	Object      string `json:"object"` // "model"
	Created     int64  `json:"created"`
	OwnedBy     string `json:"owned_by"`
	Root        string `json:"root"`
	MaxModelLen int    `json:"max_model_len"`
}

// NewModelList is a list of models.
func NewModelList(models []Model) ModelList { return ModelList{Object: "list", Data: models} }

// NewModel is a model of a context in tokens, served since created, in seconds since 1970.
func NewModel(id string, created int64, context int) Model {
	return Model{ID: id, Object: "model", Created: created, OwnedBy: "mmserve", Root: id, MaxModelLen: context}
}
