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
	// Card is what its authors say of it, of a model that is asked for by name; an extra.
	Card *ModelCard `json:"card,omitempty"`
}

// ModelCard is what a model's README.md says. Its fields are the contract's.
type ModelCard struct {
	License     string            `json:"license,omitempty"`
	LicenseName string            `json:"license_name,omitempty"`
	LicenseLink string            `json:"license_link,omitempty"`
	Languages   []string          `json:"languages,omitempty"`
	Datasets    []string          `json:"datasets,omitempty"`
	BaseModels  []string          `json:"base_models,omitempty"`
	Tags        []string          `json:"tags,omitempty"`
	Evaluations []ModelEvaluation `json:"evaluations,omitempty"`
	Limits      string            `json:"limits,omitempty"`
	Text        string            `json:"text,omitempty"`
	Truncated   bool              `json:"truncated,omitempty"`
	Problem     string            `json:"problem,omitempty"`
}

// ModelEvaluation is a result that a model's authors give.
type ModelEvaluation struct {
	Task    string `json:"task,omitempty"`
	Dataset string `json:"dataset,omitempty"`
	Metric  string `json:"metric,omitempty"`
	Value   string `json:"value"`
}

// NewModelList is a list of models.
func NewModelList(models []Model) ModelList { return ModelList{Object: "list", Data: models} }

// NewModel is a model of a context in tokens, served since created, in seconds since 1970.
func NewModel(id string, created int64, context int) Model {
	return Model{ID: id, Object: "model", Created: created, OwnedBy: "mmserve", Root: id, MaxModelLen: context}
}
