package python

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	atelier "github.com/atelier-edge/atelier"
)

// schema is what run() is decorated with, as inference-schema tells it.
type schema struct {
	Input    json.RawMessage `json:"input"`
	Output   json.RawMessage `json:"output"`
	Versions []string        `json:"versions"` // of Swagger that it can be told in
}

// swaggerVersions are the versions of Swagger that there are, with the names that
// clients may give them and the files beside a script that take their place.
var swaggerVersions = []struct {
	version string
	names   []string
	files   []string
}{
	{"2", []string{"2", "2.0"}, []string{"swagger.json", "swagger2.json"}},
	{"3", []string{"3", "3.0"}, []string{"swagger3.json"}},
	{"3.1", []string{"3.1"}, []string{"swagger3.1.json"}},
}

// maxSwagger bounds a swagger file that comes with a script.
const maxSwagger = 4 << 20

// swagger holds the documents by the names of their versions.
type swagger map[string][]byte

// newSwagger makes the documents for a script: those that lie beside it, and for
// the other versions what its schemas say.
func newSwagger(name, version, script string, s *schema) (swagger, error) {
	docs := swagger{}
	if s == nil {
		anything := json.RawMessage(`{"type":"object","example":{}}`)
		s = &schema{Input: anything, Output: anything, Versions: []string{"2.0", "3.0", "3.1"}}
	}
	for _, v := range swaggerVersions {
		doc, err := swaggerFile(filepath.Dir(script), v.files)
		if err != nil {
			return nil, err
		}
		if doc == nil {
			if !slices.ContainsFunc(v.names, func(n string) bool { return slices.Contains(s.Versions, n) }) {
				continue
			}
			if doc, err = json.Marshal(document(v.version, name, version, s)); err != nil {
				return nil, err
			}
		}
		for _, n := range v.names {
			docs[n] = doc
		}
	}
	return docs, nil
}

// swaggerFile returns the first of the files that there is, nil for none.
func swaggerFile(dir string, names []string) ([]byte, error) {
	for _, name := range names {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if info.Size() > maxSwagger {
			return nil, atelier.Errorf(atelier.TooLarge, "%s has %d bytes, at most %d were expected", path, info.Size(), maxSwagger)
		}
		doc, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if !json.Valid(doc) {
			return nil, atelier.Errorf(atelier.Invalid, "%s is no JSON", path)
		}
		return doc, nil
	}
	return nil, nil
}

// get returns the document of a version, "" for the oldest.
func (d swagger) get(version string) ([]byte, error) {
	if version == "" {
		version = swaggerVersions[0].version
	}
	if doc, ok := d[version]; ok {
		return doc, nil
	}
	var there []string
	for _, v := range swaggerVersions {
		if d[v.version] != nil {
			there = append(there, v.version)
		}
	}
	return nil, atelier.Errorf(atelier.NotFound, "there is no Swagger of version %.20q, the versions are %s", version, strings.Join(there, ", ")).WithField("version")
}

type object = map[string]any

// document describes the routes in a version of Swagger, with the operations that
// Azure's server has.
func document(version, name, serviceVersion string, s *schema) object {
	old := version == "2"
	refs := "#/components/schemas/"
	if old {
		refs = "#/definitions/"
	}
	content := func(kind string, schema object) object {
		if old {
			return object{"schema": schema}
		}
		return object{"content": object{kind: object{"schema": schema}}}
	}
	ref := func(to string) object { return object{"$ref": refs + to} }
	answer := func(description, kind string, schema object) object {
		good := content(kind, schema)
		good["description"] = description
		bad := content("application/json", ref("ErrorResponse"))
		bad["description"] = "Why it could not be done."
		return object{"200": good, "default": bad}
	}
	score := object{
		"operationId": "RunMLService", "description": "Runs the scoring script on the data that come.",
		"security":  []object{{"Bearer": []string{}}},
		"responses": answer("What run() returned.", "application/json", ref("ServiceOutput")),
	}
	choice := object{"name": "version", "in": "query", "required": false}
	if old {
		score["parameters"] = []object{{"name": "serviceInputPayload", "in": "body", "description": "The data.", "schema": ref("ServiceInput")}}
		choice["type"] = "string"
	} else {
		score["requestBody"] = object{"description": "The data.", "content": object{"application/json": object{"schema": ref("ServiceInput")}}}
		choice["schema"] = object{"type": "string"}
	}
	schemas := object{
		"ServiceInput": s.Input, "ServiceOutput": s.Output,
		"ErrorResponse": object{"type": "object", "properties": object{"message": object{"type": "string"}, "error": object{"type": "string"}, "code": object{"type": "string"}}},
	}
	bearer := object{"Bearer": object{"type": "apiKey", "name": "Authorization", "in": "header", "description": "Bearer KEY"}}
	doc := object{
		"info": object{"title": name, "description": "The scoring script of " + name, "version": serviceVersion},
		"paths": object{
			"/": object{"get": object{
				"operationId": "ServiceHealthCheck", "description": "Tells that the script is ready.",
				"responses": answer("It is.", "text/plain", object{"type": "string"}),
			}},
			"/score": object{"post": score},
			"/swagger.json": object{"get": object{
				"operationId": "GetSwaggerSpec", "description": "Gives this description.", "parameters": []object{choice},
				"responses": answer("The description.", "application/json", object{"type": "object"}),
			}},
		},
	}
	if old {
		doc["swagger"], doc["schemes"] = "2.0", []string{"https", "http"}
		doc["consumes"], doc["produces"] = []string{"application/json"}, []string{"application/json"}
		doc["securityDefinitions"], doc["definitions"] = bearer, schemas
		return doc
	}
	doc["openapi"] = map[string]string{"3": "3.0.3", "3.1": "3.1.0"}[version]
	doc["components"] = object{"schemas": schemas, "securitySchemes": bearer}
	return doc
}
