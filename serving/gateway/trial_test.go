package gateway

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
)

// version starts a module that says which version it is, in JSON.
func (d *device) version(n int, handler http.HandlerFunc) (atelier.Backend, *http.Server) {
	d.t.Helper()
	if handler == nil {
		handler = func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"version":%d}`, n)
		}
	}
	b, s := d.module(fmt.Sprintf("v%d", n), handler)
	b.Version = n
	return b, s
}

// beside makes endpoint e lead to b, with a trial beside it.
func (d *device) beside(b, other atelier.Backend, split atelier.Split) {
	d.t.Helper()
	d.seq++
	table := atelier.RouteTable{Sequence: d.seq, Device: "dev", Routes: []atelier.Route{{
		Endpoint: "e", Keys: atelier.EndpointKeys{Primary: keyHash(key), Secondary: keyHash("other")}, Backend: b,
		Trial: &atelier.RouteTrial{Backend: other, Split: split},
	}}}
	if err := d.Apply(table); err != nil {
		d.t.Fatal(err)
	}
}

// ask sends a request with header fields, given as name and value, and returns the
// header and the body of the answer.
func (d *device) ask(path, body string, fields ...string) (http.Header, string) {
	d.t.Helper()
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodPost, d.url+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	for i := 0; i < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		d.t.Fatalf("%s: %s %s", path, resp.Status, b)
	}
	return resp.Header, string(b)
}

// of returns the gateway's counts of a backend.
func (d *device) of(b atelier.Backend) atelier.EndpointCounters {
	for _, c := range d.Status().Counters {
		if c.Rollout == b.Rollout {
			return c
		}
	}
	return atelier.EndpointCounters{}
}

func TestCanaryByWeight(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(3, 4))
	d.random = func() uint64 { mu.Lock(); defer mu.Unlock(); return r.Uint64() }
	one, _ := d.version(1, nil)
	two, _ := d.version(2, nil)
	for _, weight := range []float64{10, 50, 0, 100} {
		d.beside(one, two, atelier.Split{Kind: atelier.Canary, Weight: weight})
		const n = 600
		canary := 0
		for range n {
			header, body := d.ask("/e/score", "{}")
			model := header.Get(atelier.HeaderModel)
			if want := `{"version":` + strings.TrimPrefix(model, "m:") + "}"; body != want {
				t.Fatalf("%s is said to be of %q", body, model)
			}
			if want := "rollout-v" + strings.TrimPrefix(model, "m:"); !strings.HasPrefix(header.Get(atelier.HeaderRequestID), want) {
				t.Fatalf("the id %s is not of %s", header.Get(atelier.HeaderRequestID), want)
			}
			if model == "m:2" {
				canary++
			}
		}
		p := weight / 100
		// The random numbers are the same each time; five standard deviations is what any would keep.
		if off := math.Abs(float64(canary) - n*p); off > 5*math.Sqrt(n*p*(1-p)) {
			t.Errorf("at weight %v version 2 answered %d of %d", weight, canary, n)
		}
	}
	until(t, "all answers were counted", func() bool { return d.of(one).Requests["2xx"]+d.of(two).Requests["2xx"] == 4*600 })
}

// Requests with the same value go to the same version, and a growing weight moves only
// those that it has to.
func TestCanaryIsSticky(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	one, _ := d.version(1, nil)
	two, _ := d.version(2, nil)
	const customers = 200
	before := map[int]bool{}
	for _, weight := range []float64{20, 60} {
		d.beside(one, two, atelier.Split{Kind: atelier.Canary, Weight: weight, Sticky: "header:X-Customer"})
		moved := 0
		for c := range customers {
			var canary bool
			for i := range 3 {
				header, _ := d.ask("/e/score", "{}", "x-customer", fmt.Sprint("customer ", c))
				is := header.Get(atelier.HeaderModel) == "m:2"
				if i > 0 && is != canary {
					t.Fatalf("customer %d is answered by both versions", c)
				}
				canary = is
			}
			if before[c] && !canary {
				t.Errorf("customer %d had version 2 at a smaller weight than %v", c, weight)
			}
			if canary {
				moved++
			}
			before[c] = canary
		}
		p := weight / 100
		if off := math.Abs(float64(moved) - customers*p); off > 5*math.Sqrt(customers*p*(1-p)) {
			t.Errorf("at weight %v %d of %d customers have version 2", weight, moved, customers)
		}
	}
	d.beside(one, two, atelier.Split{Kind: atelier.Canary, Weight: 50, Sticky: atelier.StickyKey})
	of := map[string]string{}
	for range 10 {
		for _, k := range []string{key, "other"} {
			header, _ := d.ask("/e/score", "{}", "Authorization", "Bearer "+k)
			model := header.Get(atelier.HeaderModel)
			if was := of[k]; was != "" && was != model {
				t.Fatalf("key %q is answered by %s and by %s", k, was, model)
			}
			of[k] = model
		}
	}
}

func TestCanaryAndRequestsForAVersion(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	one, _ := d.version(1, nil)
	two, _ := d.version(2, nil)
	for _, weight := range []float64{0, 100} {
		d.beside(one, two, atelier.Split{Kind: atelier.Canary, Weight: weight})
		for version, want := range map[int]string{1: "m:1", 2: "m:2", 3: "m:1"} {
			header, _ := d.ask(fmt.Sprintf("/e/v2/models/m/versions/%d/infer?x=1", version), "{}")
			if got := header.Get(atelier.HeaderModel); got != want {
				t.Errorf("at weight %v version %d is answered by %s", weight, version, got)
			}
		}
	}
}

// A canary that is gone, ends over requests or talks nonsense costs no answer.
func TestCanaryThatFailsHarmsNobody(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	one, _ := d.version(1, nil)
	var calls atomic.Int64
	two, server := d.version(2, func(http.ResponseWriter, *http.Request) {
		calls.Add(1)
		panic(http.ErrAbortHandler)
	})
	d.beside(one, two, atelier.Split{Kind: atelier.Canary, Weight: 100})
	for range 20 {
		if header, body := d.ask("/e/score", "{}"); body != `{"version":1}` || header.Get(atelier.HeaderModel) != "m:1" {
			t.Fatalf("%s came of %s", body, header.Get(atelier.HeaderModel))
		}
	}
	if calls.Load() < 20 {
		t.Errorf("the canary was asked %d times", calls.Load())
	}
	_ = server.Close()
	for range 20 {
		if _, body := d.ask("/e/score", "{}"); body != `{"version":1}` {
			t.Fatal(body)
		}
	}
	until(t, "all answers were counted", func() bool { return d.of(one).Requests["2xx"] == 40 })
	if c := d.of(two); c.Fallbacks != 40 || len(c.Requests) != 0 || c.InFlight != 0 {
		t.Errorf("of the canary the gateway tells %+v", c)
	}
	if c := d.of(one); c.Requests["2xx"] != 40 || c.InFlight != 0 {
		t.Errorf("of the other %+v", c)
	}
}

// Weights change, the canary is promoted and taken back under load; nobody notices.
func TestSplitsChangeUnderLoad(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	one, _ := d.version(1, nil)
	two, _ := d.version(2, nil)
	d.lead(one)
	stop := make(chan struct{})
	var failed, answered atomic.Int64
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, body := d.request(http.MethodPost, "/e/score", strings.NewReader("{}"))
				if answered.Add(1); resp.StatusCode != 200 || !strings.HasPrefix(string(body), `{"version":`) {
					failed.Add(1)
				}
			}
		})
	}
	for round := range 10 {
		next := answered.Load() + 50
		d.beside(one, two, atelier.Split{Kind: atelier.Canary, Weight: float64(10 * round)})
		until(t, "requests were answered", func() bool { return answered.Load() > next })
		d.beside(one, two, atelier.Split{Kind: atelier.Shadow, Sample: 1})
		d.lead(two)
		d.lead(one)
	}
	close(stop)
	clients.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d of %d requests failed", failed.Load(), answered.Load())
	}
}

// Connections that are lent come back when requests are to be split, and say which
// version answers also before.
func TestSplitRecallsLentConnections(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	m := d.borrows("lent")
	two, _ := d.version(2, nil)
	d.lead(m.Backend)
	k := d.lent(m)
	if resp, _, err := k.ask(post("/e/x", key, "hello")); err != nil || resp.Header.Get(atelier.HeaderModel) != "m:1" {
		t.Errorf("a lent connection says %v, %v", resp, err)
	}
	lent := m.lent.Load()
	d.beside(m.Backend, two, atelier.Split{Kind: atelier.Canary, Weight: 100})
	for range 5 {
		if resp, body, err := k.ask(post("/e/x", key, "hello")); err != nil || body != `{"version":2}` || resp.Header.Get(atelier.HeaderModel) != "m:2" {
			t.Fatalf("after the split %v %q %v came", resp, body, err)
		}
	}
	if m.lent.Load() != lent {
		t.Error("a lent connection was answered after the split")
	}
	d.lead(m.Backend)
	d.untilLent(k, m) // and it is lent again afterwards
}

// Calls of gRPC are split as requests are, and a canary that is gone costs none.
func TestCanaryOfCalls(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	client := caller(t)
	one, two := d.grpcModule("one", echoCall), d.grpcModule("two", echoCall)
	two.Version = 2
	d.beside(one, two, atelier.Split{Kind: atelier.Canary, Weight: 50, Sticky: "header:X-Customer"})
	models := map[string]int{}
	for c := range 40 {
		var first string
		for range 2 {
			_, status, text, resp := d.call(client, "e", strings.NewReader("hello"), "Authorization", "Bearer "+key, "X-Customer", fmt.Sprint(c))
			if status != "0" {
				t.Fatalf("status %s, %s", status, text)
			}
			model := resp.Header.Get(atelier.HeaderModel)
			if models[model]++; first != "" && model != first {
				t.Fatalf("customer %d is answered by %s and %s", c, first, model)
			}
			first = model
		}
	}
	if models["m:1"] < 10 || models["m:2"] < 10 || len(models) != 2 {
		t.Errorf("the calls were answered by %v", models)
	}
	gone := two
	gone.Socket, gone.Rollout = gone.Socket+".gone", "rollout-gone"
	d.beside(one, gone, atelier.Split{Kind: atelier.Canary, Weight: 100})
	_, status, text, resp := d.call(client, "e", strings.NewReader("hello"), "Authorization", "Bearer "+key)
	if status != "0" || resp.Header.Get(atelier.HeaderModel) != "m:1" {
		t.Errorf("beside a canary that is gone: status %s, %s", status, text)
	}
	if c := d.of(gone); c.Fallbacks == 0 {
		t.Errorf("of the canary the gateway tells %+v", c)
	}
}

func shadowSplit(t atelier.Tolerance) atelier.Split {
	return atelier.Split{Kind: atelier.Shadow, Sample: 1, Tolerance: t}
}

// number answers {"y": x}, where f makes x of the request's body.
func number(f func(n int) string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var n int
		if _, err := fmt.Fscan(r.Body, &n); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"y":%s}`, f(n))
	}
}

// A shadow that is known to disagree over 7 % of the requests is said to.
func TestShadowCountsDisagreements(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	one, _ := d.version(1, number(func(n int) string { return fmt.Sprintf("%d.5", n) }))
	var ids sync.Map
	two, _ := d.version(2, func(w http.ResponseWriter, r *http.Request) {
		ids.Store(r.Header.Get(atelier.HeaderRequestID), true)
		if r.Header.Get("Authorization") != "" {
			t.Error("the shadow got the key")
		}
		number(func(n int) string {
			if n%100 < 7 {
				return fmt.Sprintf("%d.7", n)
			}
			return fmt.Sprintf("%d.5001", n)
		})(w, r)
	})
	d.beside(one, two, shadowSplit(atelier.Tolerance{Absolute: 0.01}))
	const n = 1000
	asked := map[string]bool{}
	for i := range n {
		header, body := d.ask("/e/score", fmt.Sprint(i))
		if want := fmt.Sprintf(`{"y":%d.5}`, i); body != want || header.Get(atelier.HeaderModel) != "m:1" {
			t.Fatalf("%s came of %s, %s was expected", body, header.Get(atelier.HeaderModel), want)
		}
		asked[header.Get(atelier.HeaderRequestID)] = true
		if i%20 == 19 { // a pause, as clients make them
			until(t, "the copies were compared", func() bool {
				s := d.of(two).Shadow
				return s != nil && s.Compared+s.Dropped+s.Errors == uint64(i+1)
			})
		}
	}
	s := d.of(two).Shadow
	if s.Compared != n || s.Dropped != 0 || s.Errors != 0 {
		t.Errorf("it counted %+v", s)
	}
	if share := 100 * float64(s.Disagreed) / float64(s.Compared); math.Abs(share-7) > 1 {
		t.Errorf("%.1f %% disagree, 7 were expected", share)
	}
	if len(s.Samples) != atelier.MaxDisagreements {
		t.Fatalf("there are %d samples", len(s.Samples))
	}
	for _, sample := range s.Samples {
		if !asked[sample.Request] || !strings.HasPrefix(sample.Difference, "y is ") || !strings.Contains(sample.Served, ".5}") || !strings.Contains(sample.Shadow, ".7}") || sample.Path != "score" {
			t.Errorf("a sample is %+v", sample)
		}
		if _, ok := ids.Load(sample.Request); !ok {
			t.Errorf("the shadow does not know the request %s", sample.Request)
		}
	}
	served, took := uint64(0), uint64(0)
	for i := range s.Served {
		served, took = served+s.Served[i], took+s.Shadow[i]
	}
	if served != n || took != n || s.ServedSeconds <= 0 || s.ShadowSeconds <= 0 {
		t.Errorf("the latencies are %+v", s)
	}
	if c := d.of(two); len(c.Requests) != 0 {
		t.Errorf("copies count as requests: %+v", c.Requests)
	}
}

// A shadow that hangs, dies or answers with failures is counted, its queue is bounded, and
// the version that serves goes on.
func TestShadowThatFails(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	one, _ := d.version(1, nil)
	hang := make(chan struct{})
	var once sync.Once
	release := func() { once.Do(func() { close(hang) }) }
	defer release()
	var broken atomic.Bool
	two, _ := d.version(2, func(w http.ResponseWriter, r *http.Request) {
		<-hang
		if broken.Load() {
			panic(http.ErrAbortHandler)
		}
		http.Error(w, "no", http.StatusInternalServerError)
	})
	d.beside(one, two, shadowSplit(atelier.Tolerance{}))
	const n = 3 * maxCopies
	for range n {
		if _, body := d.ask("/e/score", "{}"); body != `{"version":1}` {
			t.Fatal(body)
		}
	}
	if s := d.of(two).Shadow; s.Dropped < n-maxCopies-1 || s.Compared != 0 {
		t.Errorf("while it hangs, it is %+v", s)
	}
	release()
	until(t, "the others failed", func() bool { s := d.of(two).Shadow; return s.Errors+s.Dropped == n && s.Errors > 0 })
	broken.Store(true)
	before := d.of(two).Shadow.Errors
	d.ask("/e/score", "{}")
	until(t, "one died", func() bool { return d.of(two).Shadow.Errors > before })
	if s := d.of(two).Shadow; s.Compared != 0 || s.Disagreed != 0 {
		t.Errorf("failures count as answers: %+v", s)
	}
}

// Beside an endpoint that never rests a shadow takes only a small part of the time.
func TestShadowGivesWay(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	one, _ := d.version(1, nil)
	two, _ := d.version(2, nil)
	d.beside(one, two, shadowSplit(atelier.Tolerance{}))
	g := d.table.Load().byEndpoint["e"].trial.backend.shadow.Load()
	leave := g.enter() // a request that takes long
	d.ask("/e/score", "{}")
	stop := make(chan struct{})
	began := time.Now()
	if !g.await(stop, began.Add(4*restFor)) {
		t.Error("it was told to stop")
	}
	if took := time.Since(began); took < 4*restFor {
		t.Errorf("it went on after %v", took)
	}
	close(stop)
	if g.await(stop, time.Now().Add(time.Hour)) {
		t.Error("it went on beside a request")
	}
	leave()
	until(t, "the copy was compared", func() bool { return d.of(two).Shadow.Compared == 1 })
}

func TestOddTrialsAreRefused(t *testing.T) {
	t.Parallel()
	d := newDevice(t, Options{})
	one, _ := d.version(1, nil)
	two, _ := d.version(2, nil)
	ok := atelier.RouteTrial{Backend: two, Split: atelier.Split{Kind: atelier.Canary, Weight: 1}}
	for name, edit := range map[string]func(*atelier.RouteTrial){
		"weight":  func(r *atelier.RouteTrial) { r.Split.Weight = 200 },
		"same":    func(r *atelier.RouteTrial) { r.Backend = one },
		"rollout": func(r *atelier.RouteTrial) { r.Backend.Rollout = "a\r\nb" },
		"model":   func(r *atelier.RouteTrial) { r.Backend.Model = "a\r\nb" },
		"socket":  func(r *atelier.RouteTrial) { r.Backend.Socket = "here" },
	} {
		bad := ok
		edit(&bad)
		err := d.Apply(atelier.RouteTable{Sequence: 1, Routes: []atelier.Route{{Endpoint: "e", Backend: one, Trial: &bad}}})
		if atelier.CodeOf(err) != atelier.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
