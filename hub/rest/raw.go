package rest

import (
	"io"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/atelier-edge/atelier/internal/content"
	"github.com/atelier-edge/atelier/internal/patient"
)

// Raw is the part of an input that gives a Stream route its request.
type Raw struct {
	r *http.Request
	w http.ResponseWriter
}

// Resolve implements huma.Resolver.
func (x *Raw) Resolve(c huma.Context) []error {
	x.r, x.w = humago.Unwrap(c)
	return nil
}

// body returns the request's body. It lasts as long as bytes keep coming.
func (x *Raw) body(stall time.Duration) *patient.Reader { return patient.NewReader(x.w, x.r, stall) }

// serveBlob answers content, or the ranges of it that the request asks for, and
// closes it. name is what a browser would save it as.
func (s *server) serveBlob(b *content.Blob, name string) *stream {
	return &stream{func(c huma.Context) {
		defer func() { _ = b.Close() }() // it was open for reading only
		r, w := humago.Unwrap(c)
		h := w.Header()
		h.Set("Content-Type", octets)
		h.Set("Content-Disposition", contentDisposition(name))
		h.Set("ETag", `"`+string(b.Info().Digest)+`"`)
		http.ServeContent(patient.NewWriter(w, s.stall), r, "", time.Time{}, io.NewSectionReader(b, 0, b.Size()))
	}}
}
