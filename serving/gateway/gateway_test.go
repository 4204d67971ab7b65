package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/serving/http1"
)

const key = "secret-key"

func keyHash(k string) string {
	sum := sha256.Sum256([]byte(k))
	return hex.EncodeToString(sum[:])
}

// device is a gateway that runs, with modules that tests make.
type device struct {
	*Gateway
	t    *testing.T
	dir  string
	url  string
	addr string
	seq  uint64
}

func newDevice(t *testing.T, opts Options) *device {
	t.Helper()
	d := &device{t: t, dir: t.TempDir()}
	opts.State = filepath.Join(d.dir, "state")
	if opts.Listen == "" {
		opts.Listen = "127.0.0.1:0"
	}
	g, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	d.Gateway = g
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	until(t, "it listens", func() bool { return g.Status().Listen != "" })
	d.addr = g.Status().Listen
	d.url = "http://" + d.addr
	return d
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("gave up waiting until %s", what)
		}
	}
}

// module starts an HTTP server on a socket of its own.
func (d *device) module(name string, handler http.HandlerFunc) (atelier.Backend, *http.Server) {
	d.t.Helper()
	b := atelier.Backend{Socket: filepath.Join(d.dir, name), Deployment: "dep", Rollout: "rollout-" + name, Model: "m", Version: 1}
	l, err := net.Listen("unix", b.Socket)
	if err != nil {
		d.t.Fatal(err)
	}
	s := &http.Server{Handler: handler}
	go func() { _ = s.Serve(l) }() // ends with Close
	d.t.Cleanup(func() { _ = s.Close() })
	return b, s
}

// lead makes endpoint e lead to b.
func (d *device) lead(b atelier.Backend) {
	d.t.Helper()
	d.seq++
	table := atelier.RouteTable{Sequence: d.seq, Device: "dev", Routes: []atelier.Route{{
		Endpoint: "e", Keys: atelier.EndpointKeys{Primary: keyHash(key), Secondary: keyHash("other")}, Backend: b,
	}}}
	if err := d.Apply(table); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) request(method, path string, body io.Reader) (*http.Response, []byte) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), method, d.url+path, body)
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return resp, b
}

// raw sends text as it is and returns all that comes back until the gateway closes.
func (d *device) raw(text string) string {
	d.t.Helper()
	conn, err := net.Dial("tcp", d.addr)
	if err != nil {
		d.t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		d.t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		d.t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		d.t.Fatalf("after %q: %v", b, err)
	}
	return string(b)
}

func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.Header().Set("X-Path", r.URL.String())
	w.Header().Set("X-Auth", r.Header.Get("Authorization")+r.Header.Get("X-Api-Key"))
	w.Header().Set("X-Id", r.Header.Get(atelier.HeaderRequestID))
	_, _ = w.Write(body)
}

func TestRoutesAndKeys(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	b, _ := d.module("a", echo)
	d.lead(b)
	for _, path := range []string{"/", "/healthz"} {
		if resp, body := d.request("GET", path, nil); resp.StatusCode != 200 || !bytes.Contains(body, []byte("ok")) {
			t.Errorf("%s: %s %s", path, resp.Status, body)
		}
	}
	for path, want := range map[string]string{"/e/v2/x?y=z": "/v2/x?y=z", "/e/": "/", "/e": "/", "/e?q": "/?q", "/e/a%2Fb": "/a%2Fb"} {
		resp, body := d.request("POST", path, strings.NewReader("hello"))
		id := resp.Header.Get(atelier.HeaderRequestID)
		if resp.StatusCode != 200 || string(body) != "hello" || resp.Header.Get("X-Path") != want {
			t.Errorf("%s: %s %q at %s", path, resp.Status, body, resp.Header.Get("X-Path"))
		}
		if !strings.HasPrefix(id, "rollout-a-") || resp.Header.Get("X-Id") != id || resp.Header.Get("X-Auth") != "" {
			t.Errorf("%s: request id %q, the module saw id %q and credentials %q", path, id, resp.Header.Get("X-Id"), resp.Header.Get("X-Auth"))
		}
	}
	if resp, _ := d.request("GET", "/nothing/x", nil); resp.StatusCode != 404 || resp.Header.Get(atelier.HeaderRequestID) != "" {
		t.Errorf("unknown endpoint: %s", resp.Status)
	}
	for name, c := range map[string]struct {
		header, value string
		want          int
	}{
		"primary": {"Authorization", "Bearer " + key, 200}, "secondary": {"X-Api-Key", "other", 200}, "lower case": {"Authorization", "bearer " + key, 200},
		"none": {"X", "y", 401}, "wrong": {"Authorization", "Bearer wrong", 401}, "empty": {"X-Api-Key", "", 401},
		"hash": {"X-Api-Key", keyHash(key), 401}, "basic": {"Authorization", "Basic " + key, 401},
	} {
		req, err := http.NewRequestWithContext(t.Context(), "POST", d.url+"/e/x", strings.NewReader("body"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(c.header, c.value)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var p problem
		if resp.StatusCode == 401 {
			if err := json.NewDecoder(resp.Body).Decode(&p); err != nil || p.Code != atelier.Unauthenticated || p.Remedy == "" || p.Request == "" {
				t.Errorf("%s: %+v, %v", name, p, err)
			}
		}
		if resp.StatusCode != c.want || resp.Header.Get(atelier.HeaderRequestID) == "" {
			t.Errorf("%s: %s, want %d, with an id", name, resp.Status, c.want)
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
	}
	until(t, "all is counted", func() bool { // an answer is out before it is counted
		c := d.Status().Counters[0]
		return c.Requests["2xx"] == 8 && c.Requests["4xx"] == 5 && c.InFlight == 0 && c.Seconds > 0
	})
}

func TestBodies(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{MaxBody: 8 << 20})
	b, _ := d.module("a", echo)
	d.lead(b)
	for _, size := range []int{0, 1, 100, 64 << 10, 1 << 20, 1<<20 + 1, 5 << 20} {
		body := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		for name, r := range map[string]io.Reader{"length": bytes.NewReader(body), "chunked": io.MultiReader(bytes.NewReader(body))} {
			if resp, got := d.request("POST", "/e/x", r); resp.StatusCode != 200 || !bytes.Equal(got, body) {
				t.Errorf("%d bytes, %s: %s with %d bytes", size, name, resp.Status, len(got))
			}
		}
	}
	if resp, _ := d.request("POST", "/e/x", bytes.NewReader(make([]byte, 8<<20+1))); resp.StatusCode != 413 {
		t.Errorf("too large: %s", resp.Status)
	}
	const head = "POST /e/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: " + key + "\r\n"
	got := d.raw(head + "Connection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi")
	if !strings.Contains(got, "200 OK") || !strings.HasSuffix(got, "hi") {
		t.Errorf("expect with the body at once: %q", got)
	}
	for name, text := range map[string]string{
		"pipelined":    head + "Content-Length: 1\r\n\r\na" + head + "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n1\r\nb\r\n0\r\n\r\n",
		"old":          strings.Replace(head, "1.1", "1.0", 1) + "Content-Length: 1\r\n\r\nb",
		"answers HEAD": "HEAD /e/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Api-Key: " + key + "\r\n\r\n",
	} {
		got := d.raw(text)
		if strings.Count(got, "HTTP/1.1 200 OK") != strings.Count(text, "/e/x") || !strings.HasPrefix(name, "answers") && !strings.HasSuffix(got, "\r\n\r\nb") {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestExpectContinue(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	b, _ := d.module("a", echo)
	d.lead(b)
	conn, err := net.Dial("tcp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	if _, err := fmt.Fprintf(conn, "POST /e/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: %s\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", key); err != nil {
		t.Fatal(err)
	}
	if line, err := r.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q, %v", line, err)
	}
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "abc"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
}

// What could be read in two ways is refused, and the connection closed.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{Times: Times{Head: 200 * time.Millisecond}})
	var seen atomic.Int64
	b, _ := d.module("a", func(w http.ResponseWriter, r *http.Request) { seen.Add(1); echo(w, r) })
	d.lead(b)
	const head = "POST /e/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: " + key + "\r\n"
	const inner = "GET /e/inner HTTP/1.1\r\nHost: a\r\nX-Api-Key: " + key + "\r\n\r\n"
	for name, text := range map[string]string{
		"both":          head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
		"two lengths":   head + "Content-Length: 0\r\nContent-Length: 10\r\n\r\n" + inner,
		"bad chunk":     head + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + inner,
		"chunk overrun": head + "Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n" + inner,
		"large head":    head + "X: " + strings.Repeat("x", http1.MaxHead) + "\r\n\r\n" + inner,
		"slow head":     head,
	} {
		got := d.raw(text)
		if strings.Count(got, "HTTP/1.1 ") != 1 || strings.Contains(got, " 200 ") || !strings.Contains(got, "Connection: close") {
			t.Errorf("%s: %q", name, got)
		}
	}
	if n := seen.Load(); n != 0 {
		t.Errorf("%d requests reached the module", n)
	}
}

func TestHopByHop(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	headers := make(chan http.Header, 1)
	b, _ := d.module("a", func(w http.ResponseWriter, r *http.Request) {
		headers <- r.Header
		w.Header().Set("Connection", "X-Private")
		w.Header().Set("X-Private", "1")
		w.Header().Set("X-Public", "1")
		w.Header().Set(atelier.HeaderRequestID, "forged")
	})
	d.lead(b)
	got := d.raw("GET /e/x HTTP/1.1\r\nHost: a\r\nX-Api-Key: " + key + "\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nX-End: 1\r\nTE: trailers\r\n" +
		"Upgrade: websocket\r\nX-Atelier-Request-Id: mine\r\n\r\n")
	h := <-headers
	if h.Get("X-Hop") != "" || h.Get("Te") != "" || h.Get("Upgrade") != "" || h.Get("X-End") != "1" || strings.Contains(h.Get(atelier.HeaderRequestID), "mine") {
		t.Errorf("the module saw %v", h)
	}
	if strings.Contains(got, "X-Private") || !strings.Contains(got, "X-Public: 1") || strings.Contains(got, "forged") || strings.Count(got, atelier.HeaderRequestID) != 1 {
		t.Errorf("the client saw %q", got)
	}
}

// Switching drops nothing: requests in flight end where they began, and clients
// keep their connections.
func TestSwitchDropsNothing(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	serve := func(name string) (atelier.Backend, *http.Server) {
		return d.module(name, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, name)
		})
	}
	before, server := serve("v0")
	d.lead(before)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var answered, failed atomic.Int64
	for range 8 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				req, err := http.NewRequestWithContext(t.Context(), "POST", d.url+"/e/x", strings.NewReader("some body"))
				if err != nil {
					t.Error(err)
					return
				}
				req.Header.Set("X-Api-Key", key)
				resp, err := client.Do(req)
				if err == nil {
					var body []byte
					body, err = io.ReadAll(resp.Body)
					_ = resp.Body.Close() // it was read to its end
					if err == nil && (resp.StatusCode != 200 || !strings.Contains(resp.Header.Get(atelier.HeaderRequestID), string(body))) {
						err = fmt.Errorf("%s %q from %s", resp.Status, body, resp.Header.Get(atelier.HeaderRequestID))
					}
				}
				if err != nil {
					failed.Add(1)
					t.Errorf("a request failed: %v", err)
					return
				}
				answered.Add(1)
			}
		})
	}
	for i := 1; i <= 10; i++ {
		next, nextServer := serve(fmt.Sprintf("v%d", i))
		mark := answered.Load()
		until(t, "requests pass", func() bool { return answered.Load() > mark+20 || failed.Load() > 0 })
		d.lead(next)
		until(t, "the former one is idle", func() bool {
			for _, c := range d.Status().Counters {
				if c.Rollout == before.Rollout {
					return c.InFlight == 0
				}
			}
			return true
		})
		if err := server.Close(); err != nil { // at once, as a module that is stopped
			t.Fatal(err)
		}
		before, server = next, nextServer
	}
	stop()
	wg.Wait()
	if failed.Load() > 0 || answered.Load() < 200 {
		t.Errorf("%d answered, %d failed", answered.Load(), failed.Load())
	}
	for _, c := range d.Status().Counters {
		if c.Departed == (c.Rollout == before.Rollout) {
			t.Errorf("of %s it is said that it has departed: %v", c.Rollout, c.Departed)
		}
	}
}

// A module that was restarted under its socket leaves stale connections behind.
func TestStaleConnection(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	b, server := d.module("a", echo)
	d.lead(b)
	for range 5 {
		if resp, _ := d.request("POST", "/e/x", strings.NewReader("x")); resp.StatusCode != 200 {
			t.Fatalf("%s", resp.Status)
		}
		if err := server.Close(); err != nil {
			t.Fatal(err)
		}
		if resp, _ := d.request("POST", "/e/x", strings.NewReader("x")); resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" || resp.Header.Get(atelier.HeaderRequestID) == "" {
			t.Errorf("without a module: %s", resp.Status)
		}
		b, server = d.module("a", echo)
	}
}

// A module that dies in the middle is not waited for.
func TestModuleDies(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	b, _ := d.module("a", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/half":
			w.Header().Set("Content-Length", "100000")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush() // or nothing would leave
		case "/junk":
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = io.WriteString(conn, "no HTTP at all\r\n\r\n")
			_ = conn.Close()
			return
		}
		panic(http.ErrAbortHandler)
	})
	d.lead(b)
	for _, path := range []string{"/e/none", "/e/junk"} {
		if resp, _ := d.request("POST", path, strings.NewReader("x")); resp.StatusCode != 502 || resp.Header.Get(atelier.HeaderRequestID) == "" {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", d.url+"/e/half", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		_ = resp.Body.Close() // its end is the error that counts
	}
	if err == nil {
		t.Error("half an answer passed for a whole one")
	}
	until(t, "all is counted", func() bool { return d.Status().Counters[0].Requests["5xx"] == 3 })
}

// A client that gives up frees the module.
func TestClientGivesUp(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	begun, ended := make(chan struct{}), make(chan struct{})
	b, _ := d.module("a", func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(begun)
		<-r.Context().Done()
		close(ended)
	})
	d.lead(b)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	req, err := http.NewRequestWithContext(ctx, "POST", d.url+"/e/x", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Api-Key", key)
	if _, err := http.DefaultClient.Do(req); !errors.Is(err, context.Canceled) {
		t.Fatalf("Do = %v", err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the module was not told")
	}
	until(t, "it is counted", func() bool { c := d.Status().Counters[0]; return c.Requests["4xx"] == 1 && c.InFlight == 0 })
}

// A slow answer is waited for, and what follows on the connection is not disturbed.
func TestSlowAnswer(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{Times: Times{Answer: 400 * time.Millisecond}})
	b, _ := d.module("a", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/never" {
			<-r.Context().Done()
			return
		}
		time.Sleep(3 * quiet) // the module's work
		echo(w, r)
	})
	d.lead(b)
	for range 3 {
		if resp, body := d.request("POST", "/e/x", strings.NewReader("abc")); resp.StatusCode != 200 || string(body) != "abc" {
			t.Errorf("%s %q", resp.Status, body)
		}
	}
	if resp, _ := d.request("POST", "/e/never", strings.NewReader("abc")); resp.StatusCode != 504 {
		t.Errorf("never answered: %s", resp.Status)
	}
}

func TestTableIsSaved(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	b, _ := d.module("a", echo)
	d.lead(b)
	again, err := New(Options{State: filepath.Join(d.dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if s := again.Status(); s.Sequence != 1 || len(s.Counters) != 1 || s.Counters[0].Rollout != b.Rollout {
		t.Errorf("status after a restart = %+v", s)
	}
	if err := d.Apply(atelier.RouteTable{Sequence: 0}); atelier.CodeOf(err) != atelier.Stale {
		t.Errorf("an older table: %v, want code stale", err)
	}
	for name, change := range map[string]func(*atelier.Route){
		"endpoint": func(r *atelier.Route) { r.Endpoint = "../x" }, "socket": func(r *atelier.Route) { r.Backend.Socket = "x" },
		"rollout": func(r *atelier.Route) { r.Backend.Rollout = "a\r\nb" }, "key": func(r *atelier.Route) { r.Keys.Primary = "abc" },
	} {
		r := atelier.Route{Endpoint: "e", Backend: b}
		change(&r)
		if err := d.Apply(atelier.RouteTable{Sequence: 2, Routes: []atelier.Route{r}}); atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%s: %v, want code invalid", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.dir, "state", tableFile), []byte("{torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err = New(Options{State: filepath.Join(d.dir, "state")}); err != nil || again.Status().Sequence != 0 {
		t.Errorf("New with a torn table: %v", err)
	}
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Options{State: t.TempDir(), Listen: l.Addr().String(), Times: Times{Relisten: 10 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	until(t, "it says that the port is taken", func() bool { s := g.Status(); return s.Listen == "" && strings.Contains(s.Error, "in use") })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "it listens", func() bool { s := g.Status(); return s.Listen == l.Addr().String() && s.Error == "" })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
