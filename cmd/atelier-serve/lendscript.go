package main

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"strings"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
	"github.com/atelier-edge/atelier/serving/lending"
	"github.com/atelier-edge/atelier/serving/python"
)

// lentScript answers requests for a scoring script on connections that a gateway
// lends. The script sees what it sees of requests that are passed on.
type lentScript struct {
	handler *python.Handler
	maxBody int64
}

// Takes implements lending.Handler.
func (l *lentScript) Takes(r *http1.Request, path []byte) bool {
	return string(r.Method) == "POST" && string(path) == scorePath && r.Body.Length <= l.maxBody
}

// Answer implements lending.Handler.
func (l *lentScript) Answer(ctx context.Context, r *lending.Request) lending.Answer {
	fields := make(http.Header, len(r.Head.Fields)+1)
	host := ""
	for f := range http1.Forwarded(r.Head.Fields, "authorization", "x-api-key", "x-atelier-request-id") {
		if http1.Is(f.Name, "host") {
			host = string(f.Value)
			continue
		}
		fields.Add(string(f.Name), string(f.Value))
	}
	fields.Set(atelier.HeaderRequestID, string(r.ID))
	request := &http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: scorePath}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: fields, Host: host, ContentLength: int64(len(r.Body)), Body: body{bytes.NewReader(r.Body)},
	}
	var a scriptAnswer
	l.handler.ServeHTTP(&a, request.WithContext(ctx))
	return a.answer()
}

// body is a request's body, of which nothing has to be closed.
type body struct{ *bytes.Reader }

func (body) Close() error { return nil }

// scriptAnswer takes an answer as a connection would.
type scriptAnswer struct {
	header http.Header
	status int
	body   []byte
}

// Header implements http.ResponseWriter.
func (a *scriptAnswer) Header() http.Header {
	if a.header == nil {
		a.header = make(http.Header, 8)
	}
	return a.header
}

// WriteHeader implements http.ResponseWriter.
func (a *scriptAnswer) WriteHeader(status int) { a.status = status }

// Write implements http.ResponseWriter. The handler writes once and leaves the bytes
// alone afterwards.
func (a *scriptAnswer) Write(p []byte) (int, error) {
	if a.body == nil {
		a.body = p
	} else {
		a.body = append(bytes.Clone(a.body), p...)
	}
	return len(p), nil
}

// byLending are fields that are written where the connection is.
var byLending = map[string]bool{"Content-Type": true, "Content-Length": true, "Date": true, atelier.HeaderRequestID: true}

func (a *scriptAnswer) answer() lending.Answer {
	var fields bytes.Buffer
	_ = a.header.WriteSubset(&fields, byLending) // a buffer takes all; names and values that are none are mended as ever
	status := a.status
	if status == 0 {
		status = http.StatusOK
	}
	kind := strings.NewReplacer("\r", " ", "\n", " ").Replace(a.header.Get("Content-Type"))
	return lending.Answer{Status: status, ContentType: kind, Fields: fields.Bytes(), Body: a.body}
}
