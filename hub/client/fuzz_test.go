package client

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

// FuzzProblem reads what something answered that may or may not be a hub: it
// becomes an error with a code and a sentence, whatever it was.
func FuzzProblem(f *testing.F) {
	f.Add(409, `{"type":"about:blank","status":409,"detail":"taken","code":"exists","remedy":"Take another."}`)
	f.Add(502, "<html>")
	f.Add(500, `{"code":"internal","request":"r"}`)
	f.Add(400, `{"code":"invalid"}`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		err := problem(&http.Response{StatusCode: status, Status: http.StatusText(status), Body: io.NopCloser(strings.NewReader(body))})
		if atelier.CodeOf(err) == "" || strings.TrimSpace(err.Error()) == "" {
			t.Fatalf("%d %q became %q with code %q", status, body, err, atelier.CodeOf(err))
		}
	})
}

// FuzzWatch reads a stream of events. It ends, with an error that says why, and
// every event that it yields was in the stream.
func FuzzWatch(f *testing.F) {
	f.Add("id: 1\nevent: change\ndata: {\"sequence\":1,\"kind\":\"model\"}\n\n: beat\n\n")
	f.Add("data: {\ndata: }\n\n")
	f.Add("data:null\r\ndata:{}\r\n")
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
	f.Cleanup(server.Close)
	base, err := url.Parse(server.URL)
	if err != nil {
		f.Fatal(err)
	}
	c := &Client{base: base, http: server.Client()}
	f.Fuzz(func(t *testing.T, stream string) {
		body = stream
		events, failed := 0, false
		for _, err := range c.Watch(t.Context(), "lab", EventFilter{}) {
			if failed {
				t.Fatal("it goes on after an error")
			}
			if failed = err != nil; !failed {
				events++
			}
		}
		if !failed || events > strings.Count(stream, "data:") {
			t.Fatalf("%q gave %d events, and ended without an error: %v", stream, events, !failed)
		}
	})
}
