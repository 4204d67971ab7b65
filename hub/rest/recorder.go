package rest

import (
	"bytes"
	"io"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// recorder holds an answer back until it is remembered.
type recorder struct {
	humaContext
	header http.Header
	status int
	body   bytes.Buffer
}

// Unwrap lets humago find its own context.
func (r *recorder) Unwrap() huma.Context { return r.humaContext }

// SetStatus, Status, SetHeader, AppendHeader and BodyWriter take the answer.
func (r *recorder) SetStatus(code int)              { r.status = code }
func (r *recorder) Status() int                     { return r.status }
func (r *recorder) SetHeader(name, value string)    { r.header.Set(name, value) }
func (r *recorder) AppendHeader(name, value string) { r.header.Add(name, value) }
func (r *recorder) BodyWriter() io.Writer           { return &r.body }

// send gives the answer to the caller.
func (r *recorder) send() {
	for name, values := range r.header {
		for _, v := range values {
			r.humaContext.AppendHeader(name, v)
		}
	}
	r.humaContext.SetStatus(r.status)
	_, _ = r.humaContext.BodyWriter().Write(r.body.Bytes()) // a caller that has gone can ask again
}
