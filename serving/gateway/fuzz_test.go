package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/durable"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
)

// FuzzTable hands route tables to the control socket. One that is refused
// changes nothing; one that is taken is the one that the next start finds.
func FuzzTable(f *testing.F) {
	good, err := json.Marshal(atelier.RouteTable{Sequence: 3, Device: "dev", Routes: []atelier.Route{{
		Endpoint: "e", Keys: atelier.EndpointKeys{Primary: keyHash("a")},
		Backend: atelier.Backend{Socket: "/run/x", Deployment: "d", Rollout: "r", Model: "m", Version: 1},
	}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"sequence":18446744073709551615,"routes":[{"endpoint":"../x"}]}`))
	f.Add([]byte(`{"routes":[{"endpoint":"e","backend":{"rollout":"a\r\nX: y","socket":"/x"}}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		disk := durabletest.NewDisk()
		opts := Options{State: "/state", FS: disk, Listen: "127.0.0.1:0"}
		g, err := New(opts)
		if err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		g.Control().ServeHTTP(w, httptest.NewRequest(http.MethodPut, "/routes", bytes.NewReader(body)))
		_, err = durable.ReadFile(disk, filepath.Join("/state", tableFile))
		saved := err == nil
		if saved != (w.Code == http.StatusOK) || !saved && len(g.table.Load().byEndpoint) != 0 {
			t.Fatalf("answered %d, saved %v, %d routes in force", w.Code, saved, len(g.table.Load().byEndpoint))
		}
		if !saved {
			var p problem
			if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || p.Code == "" || p.Detail == "" || w.Code >= 500 {
				t.Fatalf("refused with %d %s", w.Code, w.Body)
			}
			return
		}
		next, err := New(opts)
		if err != nil {
			t.Fatalf("the table that was taken cannot be read at the next start: %v", err)
		}
		a, b := g.table.Load(), next.table.Load()
		if a.sequence != b.sequence || len(a.byEndpoint) != len(b.byEndpoint) {
			t.Fatalf("table %d with %d routes came back as %d with %d", a.sequence, len(a.byEndpoint), b.sequence, len(b.byEndpoint))
		}
		for e, r := range a.byEndpoint {
			if strings.ContainsAny(e, "/\r\n ") || strings.ContainsAny(r.backend.Rollout, "\r\n ") || b.byEndpoint[e] == nil || b.byEndpoint[e].backend.Backend != r.backend.Backend {
				t.Fatalf("route %q to %+v", e, r.backend.Backend)
			}
		}
	})
}

// FuzzConversation sends what it likes over one connection to a gateway with one
// endpoint. The module must see no request that was not sent with a key, and the
// requests that net/http reads out of the same bytes are the only ones it may see.
func FuzzConversation(f *testing.F) {
	const auth = "Authorization: Bearer " + key + "\r\n"
	f.Add([]byte("GET /e/x HTTP/1.1\r\nHost: a\r\n" + auth + "\r\n"))
	f.Add([]byte("POST /e/x HTTP/1.1\r\nHost: a\r\n" + auth + "Content-Length: 5\r\n\r\nhelloGET /e/y HTTP/1.1\r\nHost: a\r\n" + auth + "\r\n"))
	f.Add([]byte("POST /e/x HTTP/1.1\r\nHost: a\r\n" + auth + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nGET /e/y HTTP/1.1\r\nHost: a\r\n\r\n"))
	f.Add([]byte("GET /e HTTP/1.1\r\nHost: a\r\nX-Api-Key: " + key + "\r\nConnection: x-api-key\r\n\r\n"))
	f.Add([]byte("GET /e/../x HTTP/1.1\r\nHost: a\r\nX-Api-Key: wrong\r\n\r\n"))

	var mu sync.Mutex
	var seen []string
	d := newFuzzDevice(f, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			seen = append(seen, r.Method+" "+r.URL.RequestURI()+" "+string(body))
		}
	}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		mu.Lock()
		seen = nil
		mu.Unlock()
		conn, server := net.Pipe()
		done := make(chan struct{})
		go func() { newClient(d, server).serve(); close(done) }()
		go func() { _, _ = io.Copy(io.Discard, conn) }() // ends with conn
		_ = conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, _ = conn.Write(raw) // the gateway may hang up in the middle
		_ = conn.Close()
		<-done

		var want []string
		r := bufio.NewReader(bytes.NewReader(raw))
		for {
			// The gateway passes over empty lines before a request, as RFC 9112, section 2.2, wants it; net/http
			// does not.
			for begin, _ := r.Peek(2); string(begin) == "\r\n"; begin, _ = r.Peek(2) {
				_, _ = r.Discard(2)
			}
			req, err := http.ReadRequest(r)
			if err != nil {
				break
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				break
			}
			rest, of := strings.CutPrefix(req.URL.EscapedPath(), "/e")
			given := req.Header.Get("X-Api-Key")
			if scheme, token, ok := strings.Cut(req.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "bearer") {
				given = token
			}
			if of && (rest == "" || rest[0] == '/') && strings.TrimSpace(given) == key {
				want = append(want, req.Method+" "+string(body))
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for i, s := range seen {
			method, rest, _ := strings.Cut(s, " ")
			_, body, _ := strings.Cut(rest, " ")
			if i >= len(want) || want[i] != method+" "+body {
				t.Fatalf("%q made the module see %q, where net/http reads %q", raw, seen, want)
			}
		}
	})
}

// newFuzzDevice is a gateway that listens nowhere, with an endpoint "e".
func newFuzzDevice(f *testing.F, module http.Handler) *Gateway {
	f.Helper()
	dir := f.TempDir()
	g, err := New(Options{State: filepath.Join(dir, "state"), Listen: "127.0.0.1:0"})
	if err != nil {
		f.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		f.Fatal(err)
	}
	s := &http.Server{Handler: module}
	go func() { _ = s.Serve(l) }() // ends with Close
	f.Cleanup(func() { _ = s.Close() })
	err = g.Apply(atelier.RouteTable{Sequence: 1, Routes: []atelier.Route{{
		Endpoint: "e", Keys: atelier.EndpointKeys{Primary: keyHash(key)}, Backend: atelier.Backend{Socket: socket, Rollout: "r"},
	}}})
	if err != nil {
		f.Fatal(err)
	}
	return g
}
