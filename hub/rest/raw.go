package rest

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/content"
)

// stallPatience is how long a transfer may stand still before it is given up,
// unless the server says otherwise.
const stallPatience = 60 * time.Second

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
func (x *Raw) body(stall time.Duration) *patientReader {
	return &patientReader{x.r.Body, http.NewResponseController(x.w), stall}
}

type patientReader struct {
	io.Reader
	control *http.ResponseController
	stall   time.Duration
}

func (p *patientReader) Read(b []byte) (int, error) {
	_ = p.control.SetReadDeadline(time.Now().Add(p.stall)) // not every transport has deadlines
	n, err := p.Reader.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = atelier.Errorf(atelier.Timeout, "nothing came for %s", p.stall).WithRemedy("Send it again.")
	}
	return n, err
}

// done lifts the deadline of a body that came whole: left in place it would end a
// request that works for long. Of one that did not, net/http goes on reading.
func (p *patientReader) done() { _ = p.control.SetReadDeadline(time.Time{}) }

// patientWriter lasts as long as the caller keeps taking bytes.
type patientWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

func (p *patientWriter) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(time.Now().Add(p.stall)) // not every transport has deadlines
	return p.ResponseWriter.Write(b)
}

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
		patient := &patientWriter{w, http.NewResponseController(w), s.stall}
		http.ServeContent(patient, r, "", time.Time{}, io.NewSectionReader(b, 0, b.Size()))
	}}
}
