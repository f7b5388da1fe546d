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
			x.models.EachOf(x.r.Context(), func(d *serving.Deployment) {
				if d.Model.Name == m.ID {
					m.Card = openaiCard(d.Model.Card)
				}
			})
			return x.write(m)
		}
	}
	return refused(http.StatusNotFound, "model_not_found", "no model of this name is served here; GET /v1/models lists them")
}

func openaiCard(c *serving.ModelCard) *openai.ModelCard {
	if c == nil {
		return nil
	}
	out := &openai.ModelCard{
		License: c.License, LicenseName: c.LicenseName, LicenseLink: c.LicenseLink, Languages: c.Languages,
		Datasets: c.Datasets, BaseModels: c.BaseModels, Tags: c.Tags,
		Limits: c.Limits, Text: c.Text, Truncated: c.Truncated, Problem: c.Problem,
	}
	for _, e := range c.Evaluations {
		out.Evaluations = append(out.Evaluations, openai.ModelEvaluation(e))
	}
	return out
}
