package api

import (
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// documents serve the interface documents. They are printed once, at the start.
type documents struct {
	yaml, json           []byte // OpenAPI
	asyncYAML, asyncJSON []byte // AsyncAPI
}

// print fills the documents.
func (d *documents) print(open *huma.OpenAPI) (err error) {
	if d.yaml, err = open.YAML(); err != nil {
		return fmt.Errorf("print openapi.yaml: %w", err)
	}
	if d.json, err = open.MarshalJSON(); err != nil {
		return fmt.Errorf("print openapi.json: %w", err)
	}
	if d.asyncJSON, err = asyncJSON(); err != nil {
		return err
	}
	d.asyncYAML, err = AsyncAPI()
	return err
}

func (d *documents) openapiYAML(w http.ResponseWriter, r *http.Request) {
	callOf(r.Context()).route = "/openapi.yaml"
	writeText(w, "application/openapi+yaml", d.yaml)
}

func (d *documents) openapiJSON(w http.ResponseWriter, r *http.Request) {
	callOf(r.Context()).route = "/openapi.json"
	writeText(w, "application/openapi+json", d.json)
}

func (d *documents) asyncapiYAML(w http.ResponseWriter, r *http.Request) {
	callOf(r.Context()).route = "/asyncapi.yaml"
	writeText(w, "application/vnd.aai.asyncapi+yaml;version=3.0.0", d.asyncYAML)
}

func (d *documents) asyncapiJSON(w http.ResponseWriter, r *http.Request) {
	callOf(r.Context()).route = "/asyncapi.json"
	writeText(w, "application/vnd.aai.asyncapi+json;version=3.0.0", d.asyncJSON)
}
