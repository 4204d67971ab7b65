package rest

import (
	"bytes"
	"compress/gzip"
	"embed"
	"encoding/json"
	"io"
	"mime"
	"net/http"
	"path"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/swaggest/swgui/v5/static"
)

//go:embed docs/index.html docs/start.js
var docsPage embed.FS

// docsPolicy lets the page load its own scripts and styles and call this hub,
// and nothing else. Swagger UI sets style attributes and shows data: images.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// docsFiles are the files of the page: ours, and Swagger UI's as they come,
// gzipped, in package swgui.
var docsFiles = map[string]bool{
	"index.html": false, "start.js": false,
	"swagger-ui.css": true, "swagger-ui-bundle.js": true,
}

// registerDocs serves the OpenAPI document and the page to browse it. All of the
// page is embedded in the program: it works where there is no internet.
func (s *server) registerDocs(api huma.API) {
	s.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, r *http.Request) {
		doc, err := json.Marshal(api.OpenAPI())
		if err != nil {
			problemOf(r.Context(), err).write(w)
			return
		}
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(doc)
	})
	s.mux.HandleFunc("GET /docs", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/docs/", http.StatusMovedPermanently)
	})
	s.mux.HandleFunc("GET /docs/{file...}", serveDocs)
}

func serveDocs(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("file")
	if name == "" {
		name = "index.html"
	}
	zipped, known := docsFiles[name]
	if !known {
		(&Problem{Status: http.StatusNotFound, Code: codeOf(http.StatusNotFound), Detail: "the page has no such file"}).complete(r.Context()).write(w)
		return
	}
	body, err := readDocs(name, zipped)
	if err != nil {
		problemOf(r.Context(), err).write(w)
		return
	}
	h := w.Header()
	h.Set("Content-Type", mime.TypeByExtension(path.Ext(name)))
	h.Set("Content-Security-Policy", docsPolicy)
	h.Set("Cache-Control", "max-age=3600")
	if zipped {
		h.Set("Vary", "Accept-Encoding")
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			h.Set("Content-Encoding", "gzip")
		} else if body, err = gunzip(body); err != nil {
			problemOf(r.Context(), err).write(w)
			return
		}
	}
	_, _ = w.Write(body)
}

func readDocs(name string, zipped bool) ([]byte, error) {
	if zipped {
		return static.FS.ReadFile(name + ".gz")
	}
	return docsPage.ReadFile("docs/" + name)
}

func gunzip(b []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}
