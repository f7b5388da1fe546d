package server

import (
	"net/http"

	"github.com/mmserve/mmserve/internal/openai"
	"github.com/mmserve/mmserve/serving"
)

// modelList are the models that the caller may use, the default first.
func (x *exchange) modelList() (list []openai.Model) {
	x.models.EachOf(x.r.Context(), func(d *serving.Deployment) {
		list = append(list, openai.NewModel(d.Model.Name, x.since, d.Model.MaxLen))
	})
	return list
}

func (x *exchange) listModels() error {
	if err := x.requireModel(); err != nil {
		return err
	}
	return x.write(openai.NewModelList(x.modelList()))
}

func (x *exchange) getModel() error {
	if err := x.requireModel(); err != nil {
		return err
	}
	for _, m := range x.modelList() {
		if m.ID == x.r.PathValue("model") {
			return x.write(m)
		}
	}
	return refused(http.StatusNotFound, "model_not_found", "no model of this name is served here; GET /v1/models lists them")
}
