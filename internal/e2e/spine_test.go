package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMainJob takes a model from the command line to two devices and back, as
// the demo does, over each of the brokers.
func TestMainJob(t *testing.T) {
	t.Parallel()
	for _, b := range []struct {
		name  string
		world func(testing.TB) *world
	}{
		{"embedded", func(t testing.TB) *world { return newWorld(t) }},
		{"mosquitto", withMosquitto},
		{"nats", withNATS},
	} {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			mainJob(t, b.world(t))
		})
	}
}

func mainJob(t *testing.T, w *world) {
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(1))
	one, two := w.join("one", "site=a"), w.join("two", "site=a")

	w.atelier("deploy", "digits:1", "--to", "site=a")
	e := w.endpoint("digits")
	for _, d := range []*device{one, two} {
		if got := e.accuracy(t, d); got < 0.85 {
			t.Errorf("accuracy on %s is %.3f", d.name, got)
		}
	}

	// Version 2 arrives while requests come in: none may fail.
	w.atelier("model", "register", "digits", digits(2))
	load := e.load(t, one, two)
	w.atelier("deploy", "digits:2")
	load.untilVersion(t, "2")
	if failed := load.stop(); len(failed) > 0 {
		t.Errorf("%d requests failed, the first: %v", len(failed), failed[0])
	}
	if got := e.accuracy(t, one); got < 0.95 {
		t.Errorf("accuracy of version 2 is %.3f", got)
	}

	// Every answer can be traced.
	id := e.infer(t, one, 1).request
	var trace struct {
		Model   string
		Version int
		Digest  string
	}
	w.asked(&trace, "endpoint", "trace", id)
	var version struct{ Digest string }
	w.asked(&version, "model", "show", "digits:2")
	if trace.Model != "digits" || trace.Version != 2 || trace.Digest != version.Digest {
		t.Errorf("the trace of %s says %+v, the digest is %s", id, trace, version.Digest)
	}

	// The hub goes away: answers go on, and what was measured meanwhile arrives later.
	counted := func() float64 {
		return w.query(`sum(atelier_endpoint_requests_total{endpoint="digits",version="2"})`)
	}
	eventually(t, 60*time.Second, func() error {
		if counted() == 0 {
			return fmt.Errorf("no requests are counted")
		}
		return nil
	})
	w.hub.signal(t, syscall.SIGTERM)
	left := time.Now()
	const away = 40
	for range away {
		e.infer(t, one, 1)
		e.infer(t, two, 1)
	}
	eventually(t, 30*time.Second, func() error { // several intervals of telemetry go by
		if time.Since(left) < 4*time.Second {
			return fmt.Errorf("the hub was away for %s only", time.Since(left))
		}
		return nil
	})
	w.startHub()
	back := time.Now()
	w.connected(one)
	w.connected(two)
	during := fmt.Sprintf(`count(count_over_time(system_uptime_seconds[%ds] @ %d))`, int(back.Sub(left).Seconds()), back.Unix())
	eventually(t, 60*time.Second, func() error {
		if n := w.query(during); n != 2 {
			return fmt.Errorf("%v devices have handed in what they measured while the hub was away", n)
		}
		return nil
	})

	// A device goes: its models stay, and the hub says why it is silent.
	two.agent.signal(t, syscall.SIGKILL)
	e.infer(t, two, 1)
	eventually(t, 90*time.Second, func() error {
		if out := w.atelier("why", "two"); !strings.Contains(out, "Unreachable") {
			return fmt.Errorf("why two: %s", out)
		}
		return nil
	})
	two.agent.start(t)
	w.connected(two)
	eventually(t, 30*time.Second, func() error {
		if out := w.atelier("why", "two"); !strings.Contains(out, "is as desired.") {
			return fmt.Errorf("why two: %s", out)
		}
		return nil
	})

	// Taken away, it stops.
	w.atelier("deployment", "delete", "digits")
	eventually(t, 60*time.Second, func() error {
		if _, err := e.try(one, 1); err == nil {
			return fmt.Errorf("the endpoint still answers")
		}
		return nil
	})
}

// query returns the one value of a PromQL query, 0 where there is none.
func (w *world) query(promql string) float64 {
	w.t.Helper()
	var answer struct {
		Result []struct{ Value [2]json.RawMessage }
	}
	w.asked(&answer, "telemetry", "query", promql)
	if len(answer.Result) == 0 {
		return 0
	}
	var text string
	var value float64
	if err := json.Unmarshal(answer.Result[0].Value[1], &text); err != nil {
		w.t.Fatal(err)
	}
	if _, err := fmt.Sscan(text, &value); err != nil {
		w.t.Fatal(err)
	}
	return value
}

// endpoint is an endpoint's name and key.
type endpoint struct{ name, key string }

func (w *world) endpoint(name string) endpoint {
	w.t.Helper()
	var keys struct{ Primary string }
	w.asked(&keys, "endpoint", "keys", name)
	return endpoint{name, keys.Primary}
}

// answer is an answer to an inference of the digits classifier.
type answer struct {
	version, request string
	digits           []int
}

var heldOut = sync.OnceValues(func() (h struct {
	Pixels [][]int
	Digits []int
}, err error) {
	b, err := os.ReadFile(filepath.Join(root, "examples", "digits", "held-out.json"))
	if err != nil {
		return h, err
	}
	return h, json.Unmarshal(b, &h)
})

// try scores the first n held-out digits on a device.
func (e endpoint) try(d *device, n int) (answer, error) {
	var a answer
	h, err := heldOut()
	if err != nil {
		return a, err
	}
	body, err := json.Marshal(map[string]any{"inputs": []any{map[string]any{
		"name": "pixels", "datatype": "FP32", "shape": []int{n, 64}, "data": h.Pixels[:n],
	}}})
	if err != nil {
		return a, err
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+d.gateway+"/"+e.name+"/v2/models/digits/infer", bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Header.Set("X-Api-Key", e.key)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer func() { _ = res.Body.Close() }()
	out, err := io.ReadAll(res.Body)
	if err != nil {
		return a, err
	}
	a.request = res.Header.Get("X-Atelier-Request-Id")
	if res.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s: %s", res.Status, out)
	}
	var v struct {
		Version string `json:"model_version"`
		Outputs []struct {
			Name string
			Data []float64
		}
	}
	if err := json.Unmarshal(out, &v); err != nil {
		return a, err
	}
	a.version = v.Version
	for _, o := range v.Outputs {
		if o.Name == "digit" {
			for _, x := range o.Data {
				a.digits = append(a.digits, int(x))
			}
		}
	}
	if len(a.digits) != n || a.request == "" {
		return a, fmt.Errorf("asked for %d digits, the answer is %s with id %q", n, out, a.request)
	}
	return a, nil
}

func (e endpoint) infer(t testing.TB, d *device, n int) answer {
	t.Helper()
	a, err := e.try(d, n)
	if err != nil {
		t.Fatalf("score on %s: %v", d.name, err)
	}
	return a
}

// accuracy is the share of the held-out digits that the device gets right.
func (e endpoint) accuracy(t testing.TB, d *device) float64 {
	t.Helper()
	h, err := heldOut()
	if err != nil {
		t.Fatal(err)
	}
	a := e.infer(t, d, len(h.Digits))
	right := 0
	for i, digit := range a.digits {
		if digit == h.Digits[i] {
			right++
		}
	}
	return float64(right) / float64(len(h.Digits))
}

// load sends requests to devices without a pause.
type load struct {
	wg   sync.WaitGroup
	quit chan struct{}

	mu     sync.Mutex
	seen   map[string]map[string]int // answers by device and version
	failed []error
}

func (e endpoint) load(t testing.TB, devices ...*device) *load {
	t.Helper()
	l := &load{quit: make(chan struct{}), seen: map[string]map[string]int{}}
	for _, d := range devices {
		l.seen[d.name] = map[string]int{}
	}
	for _, d := range devices {
		for range 2 {
			l.wg.Go(func() {
				for {
					select {
					case <-l.quit:
						return
					default:
					}
					a, err := e.try(d, 1)
					l.mu.Lock()
					if err != nil {
						l.failed = append(l.failed, err)
					} else {
						l.seen[d.name][a.version]++
					}
					l.mu.Unlock()
				}
			})
		}
	}
	return l
}

// untilVersion waits until each device has answered with the version.
func (l *load) untilVersion(t testing.TB, version string) {
	t.Helper()
	eventually(t, 30*time.Second, func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		for name, versions := range l.seen {
			if versions[version] == 0 {
				return fmt.Errorf("%s has not answered with version %s: %v", name, version, versions)
			}
		}
		return nil
	})
}

func (l *load) stop() []error {
	close(l.quit)
	l.wg.Wait()
	return l.failed
}
