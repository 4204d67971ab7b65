package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// toxiproxy stands between devices and their hub, and is driven over its API.
type toxiproxy struct {
	api     string
	proxies []string
}

// startToxiproxy starts Shopify's toxiproxy, which `make test-tools` builds. It
// leads from each address to the one beside it.
func startToxiproxy(t testing.TB, dir string, links map[string][2]string) *toxiproxy {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, ".cache", "bin", "toxiproxy-server-*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 {
		if os.Getenv("CI") == "true" {
			t.Fatal("toxiproxy is not there; scripts/install-test-tools should have built it")
		}
		t.Skip("toxiproxy is not there; 'make test-tools' builds it")
	}
	api := freeAddress(t)
	host, port, err := net.SplitHostPort(api)
	if err != nil {
		t.Fatal(err)
	}
	x := &toxiproxy{api: "http://" + api}
	p := built("", filepath.Join(dir, "toxiproxy.log"), "LOG_LEVEL=error", found[0], "-host", host, "-port", port)
	p.Path = "/usr/bin/env"
	serves(t, p, api)
	for name, link := range links {
		x.proxies = append(x.proxies, name)
		if err := x.do(t.Context(), http.MethodPost, "/proxies", map[string]any{
			"name": name, "listen": link[0], "upstream": link[1], "enabled": true,
		}); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

func (x *toxiproxy) do(ctx context.Context, method, path string, body any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, x.api+path, bytes.NewReader(b))
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	out, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode >= 300 {
		err = fmt.Errorf("toxiproxy: %s %s: %s: %s", method, path, res.Status, out)
	}
	return err
}

// linkFault is a way in which a link goes wrong: a toxic, or "down".
type linkFault struct {
	kind       string
	stream     string
	attributes map[string]any
}

// linkFaults are taken in turn; their order and their times come from the seed.
var linkFaults = []linkFault{
	{kind: "down"},
	{"reset_peer", "downstream", map[string]any{"timeout": 0}},
	{"timeout", "upstream", map[string]any{"timeout": 0}}, // a black hole, as a cable that was pulled
	{"latency", "downstream", map[string]any{"latency": 400, "jitter": 300}},
	{"limit_data", "downstream", map[string]any{"bytes": 90_000}},
	{"bandwidth", "downstream", map[string]any{"rate": 60}}, // KB/s
	{"slow_close", "downstream", map[string]any{"delay": 1500}},
	{"slicer", "downstream", map[string]any{"average_size": 700, "size_variation": 600, "delay": 20}},
}

// cuts counts what was done to the links.
type cuts struct {
	mu     sync.Mutex
	counts map[string]int
}

// trouble lets the links go wrong every few seconds until ctx ends, and heals them.
// Each fault takes all links at once, and but for "down" most connections of each.
func (x *toxiproxy) trouble(ctx context.Context, seed uint64, done *cuts) error {
	r := rand.New(rand.NewPCG(seed, 0))
	between := func(low, high time.Duration) time.Duration { return low + time.Duration(r.Int64N(int64(high-low))) }
	healed := context.WithoutCancel(ctx)
	order := linkFaults
	for i := 0; ; i++ {
		if i%len(linkFaults) == 0 { // each as often, in another order each time
			order = nil
			for _, at := range r.Perm(len(linkFaults)) {
				order = append(order, linkFaults[at])
			}
		}
		f := order[i%len(linkFaults)]
		if !waits(ctx, between(2*time.Second, 5*time.Second)) {
			return nil
		}
		for _, name := range x.proxies {
			if err := x.begin(healed, name, f); err != nil {
				return err
			}
		}
		done.mu.Lock()
		done.counts[f.kind]++
		done.mu.Unlock()
		waits(ctx, between(time.Second, 4*time.Second))
		for _, name := range x.proxies {
			if err := x.end(healed, name, f); err != nil {
				return err
			}
		}
	}
}

func (x *toxiproxy) begin(ctx context.Context, name string, f linkFault) error {
	if f.kind == "down" {
		return x.do(ctx, http.MethodPost, "/proxies/"+name, map[string]any{"enabled": false})
	}
	return x.do(ctx, http.MethodPost, "/proxies/"+name+"/toxics", map[string]any{
		"name": "fault", "type": f.kind, "stream": f.stream, "toxicity": 0.8, "attributes": f.attributes,
	})
}

func (x *toxiproxy) end(ctx context.Context, name string, f linkFault) error {
	if f.kind == "down" {
		return x.do(ctx, http.MethodPost, "/proxies/"+name, map[string]any{"enabled": true})
	}
	return x.do(ctx, http.MethodDelete, "/proxies/"+name+"/toxics/fault", nil)
}

// waits waits, and reports whether ctx still lasts.
func waits(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
