package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/grpc"
)

// grpcModule starts a module that speaks HTTP/2.
func (d *device) grpcModule(name string, handler http.HandlerFunc) atelier.Backend {
	d.t.Helper()
	b := atelier.Backend{Socket: filepath.Join(d.dir, name), Deployment: "dep", Rollout: "rollout-" + name, Model: "m", Version: 1}
	l, err := net.Listen("unix", b.Socket)
	if err != nil {
		d.t.Fatal(err)
	}
	s := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	s.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.Serve(l) }() // ends with Close
	d.t.Cleanup(func() { _ = s.Close() })
	return b
}

// caller is a client that speaks HTTP/2.
func caller(t *testing.T) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// call makes a call and returns its message, status and text; the status is "" where
// the call broke off.
func (d *device) call(client *http.Client, host string, body io.Reader, header ...string) (message, status, text string, resp *http.Response) {
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodPost, d.url+"/some.Service/Method", body)
	if err != nil {
		d.t.Error(err)
		return
	}
	req.Host = host
	req.Header.Set("Content-Type", "application/grpc")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err = client.Do(req)
	if err != nil {
		return "", "", err.Error(), nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", "", err.Error(), resp
	}
	if s := resp.Header.Get(grpc.StatusField); s != "" {
		return string(b), s, resp.Header.Get(grpc.MessageField), resp
	}
	return string(b), resp.Trailer.Get(grpc.StatusField), resp.Trailer.Get(grpc.MessageField), resp
}

// echoCall answers with what came, and what came with it.
func echoCall(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	if string(b) == "at once" { // a status without a message, as gRPC's libraries send it
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set(grpc.StatusField, "5")
		w.Header().Set(grpc.MessageField, "nothing there")
		return
	}
	grpc.Begin(w)
	w.Header().Set("Came", fmt.Sprint(r.Header.Get("Authorization"), r.Header.Get("X-Api-Key"), r.Header.Get(endpointField), r.Header.Get("Mine"), r.Header.Get("Te"), r.URL.Path))
	w.Header().Set("Came-Id", r.Header.Get(atelier.HeaderRequestID))
	_, _ = w.Write(b) // the client sees what is missing
	w.Header().Set(http.TrailerPrefix+"More", "yes")
	grpc.End(w)
}

func TestGRPCPassesThrough(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{MaxBody: 1 << 20})
	d.lead(d.grpcModule("a", echoCall))
	client := caller(t)
	for name, c := range map[string]struct {
		host   string
		header []string
	}{
		"metadata":  {"", []string{"Authorization", "Bearer " + key, "Atelier-Endpoint", "e"}},
		"authority": {"e.local", []string{"X-Api-Key", key}},
		"key":       {"", []string{"authorization", "bearer other"}},
	} {
		for _, body := range []string{"", "a message", strings.Repeat("large ", 100_000)} {
			got, status, text, resp := d.call(client, c.host, strings.NewReader(body), append(c.header, "Mine", "m")...)
			if status != "0" || got != body {
				t.Fatalf("%s: %q, status %q %s", name, got, status, text)
			}
			id := resp.Header.Get(atelier.HeaderRequestID)
			if !strings.HasPrefix(id, "rollout-a-") || resp.Header.Get("Came-Id") != id || resp.Trailer.Get("More") != "yes" || resp.Header.Get("Came") != "mtrailers/some.Service/Method" {
				t.Errorf("%s: %v, trailers %v", name, resp.Header, resp.Trailer)
			}
		}
	}
	if _, status, text, _ := d.call(client, "e", strings.NewReader("at once"), "X-Api-Key", key); status != "5" || text != "nothing there" {
		t.Errorf("status %q %s", status, text)
	}
	for name, c := range map[string]struct {
		header       []string
		status, says string
	}{
		"no key":      {nil, "16", "names no endpoint"},
		"wrong key":   {[]string{"X-Api-Key", "wrong", "Atelier-Endpoint", "e"}, "16", "no or no valid key"},
		"other key":   {[]string{"X-Api-Key", "wrong"}, "16", "no valid key"},
		"no endpoint": {[]string{"X-Api-Key", key, "Atelier-Endpoint", "x"}, "5", `"x"`},
	} {
		if got, status, text, _ := d.call(client, "", strings.NewReader("x"), c.header...); status != c.status || !strings.Contains(text, c.says) || got != "" {
			t.Errorf("%s: %q, status %q %s, want %s saying %q", name, got, status, text, c.status, c.says)
		}
	}
	if _, status, text, _ := d.call(client, "e", bytes.NewReader(make([]byte, 2<<20)), "X-Api-Key", key); status != "8" {
		t.Errorf("too large: status %q %s", status, text)
	}
	resp, err := client.Get(d.url + "/e/v2")
	if err != nil || resp.StatusCode != http.StatusHTTPVersionNotSupported {
		t.Errorf("REST over HTTP/2: %v, %v", resp, err)
	}
	_ = resp.Body.Close() // its status is all that counts
	c := d.Status().Counters[0]
	if c.Requests["2xx"] != 9 || c.Requests["4xx"] != 3 || c.InFlight != 0 {
		t.Errorf("counts %+v", c)
	}
}

// Modules that are away, slow or speak no gRPC are told apart.
func TestGRPCModuleFails(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{Times: Times{Answer: time.Second}}) // long enough for all but the slow one
	client := caller(t)
	one, _ := d.module("one", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	for name, c := range map[string]struct {
		b      atelier.Backend
		status string
	}{
		"away":     {atelier.Backend{Socket: filepath.Join(d.dir, "nobody"), Deployment: "d", Rollout: "r", Model: "m", Version: 1}, "14"},
		"HTTP/1.1": {one, "14"},
		"other":    {d.grpcModule("other", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }), "12"},
		"slow":     {d.grpcModule("slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), "4"},
		"breaks off": {d.grpcModule("torn", func(w http.ResponseWriter, _ *http.Request) {
			grpc.Begin(w)
			_, _ = w.Write([]byte("x"))
			panic(http.ErrAbortHandler)
		}), "14"},
		"breaks off2": {d.grpcModule("torn2", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), "14"},
	} {
		d.lead(c.b)
		if _, status, text, _ := d.call(client, "e", strings.NewReader("x"), "X-Api-Key", key); status != c.status {
			t.Errorf("%s: status %q %s, want %s", name, status, text, c.status)
		}
	}
}

// Calls under way end where they began when the route changes; none is lost.
func TestGRPCSwitch(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	a, b := d.grpcModule("a", echoCall), d.grpcModule("b", echoCall)
	d.lead(a)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var calls atomic.Int64
	for range 4 {
		client := caller(t)
		wg.Go(func() {
			for ctx.Err() == nil {
				if got, status, text, _ := d.call(client, "e", strings.NewReader("x"), "X-Api-Key", key); status != "0" || got != "x" {
					t.Errorf("status %q %s", status, text)
					return
				}
				calls.Add(1)
			}
		})
	}
	for i := range 10 {
		before := calls.Load()
		until(t, "calls went on", func() bool { return calls.Load() > before+20 || t.Failed() })
		d.lead([]atelier.Backend{b, a}[i%2])
	}
	stop()
	wg.Wait()
}

// A gateway that ends lets calls in progress end.
func TestGRPCDrain(t *testing.T) {
	t.Parallel()
	g, err := New(Options{State: t.TempDir(), Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	until(t, "it listens", func() bool { return g.Status().Listen != "" })
	d := &device{Gateway: g, t: t, dir: t.TempDir(), url: "http://" + g.Status().Listen}
	begun, end := make(chan struct{}), make(chan struct{})
	d.lead(d.grpcModule("a", func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-end
		echoCall(w, r)
	}))
	answered := make(chan string, 1)
	client := caller(t)
	go func() {
		got, status, text, _ := d.call(client, "e", strings.NewReader("x"), "X-Api-Key", key)
		answered <- got + status + text
	}()
	<-begun
	cancel()
	until(t, "it listens no more", func() bool { return g.Status().Listen == "" })
	close(end)
	if got := <-answered; got != "x0" {
		t.Errorf("the call in progress: %q", got)
	}
	client.CloseIdleConnections()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Over TLS calls pass like in the clear, and clients of HTTP that know HTTP/2 too are
// answered with HTTP/1.1.
func TestGRPCOverTLS(t *testing.T) {
	t.Parallel()
	lender := httptest.NewTLSServer(nil) // of its certificate
	defer lender.Close()
	d := newDevice(t, Options{TLS: &tls.Config{Certificates: lender.TLS.Certificates, MinVersion: tls.VersionTLS12, NextProtos: TLSProtocols}})
	d.lead(d.grpcModule("a", echoCall))
	d.url = "https://" + d.addr
	roots := x509.NewCertPool()
	roots.AddCert(lender.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, NextProtos: []string{"h2"}}, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP2(true)
	defer transport.CloseIdleConnections()
	got, status, text, resp := d.call(&http.Client{Transport: transport}, "e", strings.NewReader("a message"), "X-Api-Key", key)
	if status != "0" || got != "a message" || resp.ProtoMajor != 2 {
		t.Errorf("%q, status %q %s", got, status, text)
	}
	both := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	defer both.CloseIdleConnections()
	plain, err := (&http.Client{Transport: both}).Get(d.url + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Body.Close()
	if plain.StatusCode != http.StatusOK || plain.ProtoMajor != 1 {
		t.Errorf("%s over %s", plain.Status, plain.Proto)
	}
}
