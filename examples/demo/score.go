package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// endpoint is where an endpoint answers, and with which key.
type endpoint struct {
	name string
	key  string
	urls []string // one for each device
}

func (d *demo) endpoint(ctx context.Context, name string) (endpoint, error) {
	e := endpoint{name: name}
	out, err := d.quietly(ctx, "endpoint", "show", name, "-o", "json")
	if err != nil {
		return e, err
	}
	var shown struct{ Addresses []struct{ URL string } }
	if err := json.Unmarshal(out, &shown); err != nil {
		return e, err
	}
	for _, a := range shown.Addresses {
		e.urls = append(e.urls, strings.TrimRight(a.URL, "/"))
	}
	if out, err = d.quietly(ctx, "endpoint", "keys", name, "-o", "json"); err != nil {
		return e, err
	}
	var keys struct{ Primary string }
	if err := json.Unmarshal(out, &keys); err != nil {
		return e, err
	}
	e.key = keys.Primary
	return e, nil
}

// tensor is a tensor of Open Inference Protocol v2, as JSON.
type tensor struct {
	Name     string `json:"name"`
	Shape    []int  `json:"shape"`
	Datatype string `json:"datatype"`
	Data     any    `json:"data"`
}

// answer is an answer to an inference.
type answer struct {
	Version string `json:"model_version"`
	Outputs []struct {
		Name string    `json:"name"`
		Data []float64 `json:"data"`
	} `json:"outputs"`
	request string // its id
}

// infer sends one inference; body is as infers makes it.
func (e endpoint) infer(ctx context.Context, client *http.Client, url string, body []byte) (answer, error) {
	var a answer
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v2/models/"+e.name+"/infer", bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Header.Set("Authorization", "Bearer "+e.key)
	res, err := client.Do(req)
	if err != nil {
		return a, err
	}
	out, err := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	if closeErr := res.Body.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return a, err
	}
	if res.StatusCode != http.StatusOK {
		return a, fmt.Errorf("%s answered %s: %s", url, res.Status, out)
	}
	a.request = res.Header.Get("X-Atelier-Request-Id")
	return a, json.Unmarshal(out, &a)
}

func infers(inputs ...tensor) ([]byte, error) {
	return json.Marshal(map[string]any{"inputs": inputs})
}

// heldOut are digits that the models have never seen.
type heldOut struct {
	Pixels [][]int `json:"pixels"`
	Digits []int   `json:"digits"`
}

func (d *demo) heldOut() (heldOut, error) {
	var h heldOut
	b, err := os.ReadFile(filepath.Join(d.root, "examples/digits/held-out.json"))
	if err != nil {
		return h, err
	}
	return h, json.Unmarshal(b, &h)
}

// accuracy scores all held-out digits on each device and prints how many were right.
func (d *demo) accuracy(ctx context.Context, e endpoint) error {
	h, err := d.heldOut()
	if err != nil {
		return err
	}
	var pixels []int
	for _, p := range h.Pixels {
		pixels = append(pixels, p...)
	}
	body, err := infers(tensor{"pixels", []int{len(h.Pixels), 64}, "FP32", pixels})
	if err != nil {
		return err
	}
	fmt.Printf("  POST /%s/v2/models/%s/infer with %d held-out digits:\n", e.name, e.name, len(h.Digits))
	for _, url := range e.urls {
		a, err := e.infer(ctx, http.DefaultClient, url, body)
		if err != nil {
			return err
		}
		right := 0
		for _, out := range a.Outputs {
			for i := range out.Data {
				if out.Name == "digit" && int(out.Data[i]) == h.Digits[i] {
					right++
				}
			}
		}
		share := float64(right) / float64(len(h.Digits))
		fmt.Printf("    %s  version %s  accuracy %.1f %%  request %s\n", url, a.Version, 100*share, a.request)
		if share < 0.85 {
			return fmt.Errorf("the accuracy at %s is %.3f, expected was above 0.85", url, share)
		}
	}
	return nil
}

// speech asks silero, the published model, about a moment of silence and a
// moment of a buzzing tone, and prints how likely it takes each for speech.
func (d *demo) speech(ctx context.Context, e endpoint) error {
	const samples = 64 + 512 // the model's context and one window, at 16 kHz
	silence, tone := make([]float64, samples), make([]float64, samples)
	for i := range tone {
		for harmonic := 1; harmonic <= 12; harmonic++ {
			tone[i] += 0.06 * math.Sin(2*math.Pi*140*float64(harmonic*i)/16000)
		}
	}
	fmt.Printf("  POST /%s/v2/models/%s/infer: is this speech?\n", e.name, e.name)
	for _, sound := range []struct {
		name string
		data []float64
	}{{"silence", silence}, {"a buzz at 140 Hz", tone}} {
		body, err := infers(
			tensor{"input", []int{1, samples}, "FP32", sound.data},
			tensor{"state", []int{2, 1, 128}, "FP32", make([]float64, 256)},
			tensor{"sr", []int{}, "INT64", []int{16000}},
		)
		if err != nil {
			return err
		}
		a, err := e.infer(ctx, http.DefaultClient, e.urls[0], body)
		if err != nil {
			return err
		}
		for _, out := range a.Outputs {
			if out.Name == "output" && len(out.Data) == 1 {
				fmt.Printf("    %s  %-17s %.4f\n", e.urls[0], sound.name+":", out.Data[0])
			}
		}
	}
	return nil
}

// load sends requests without a pause until it is stopped.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	mu     sync.Mutex
	result result
}

type result struct {
	sent, answered, failed int
	byVersion              map[string]int
	first                  error
}

func (r result) versions() string {
	var parts []string
	for _, v := range []string{"1", "2"} {
		if n := r.byVersion[v]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d answers of version %s", n, v))
		}
	}
	return strings.Join(parts, ", ")
}

// startLoad sends single digits to each device from two clients with keep-alive.
func (d *demo) startLoad(e endpoint) (*load, error) {
	h, err := d.heldOut()
	if err != nil {
		return nil, err
	}
	body, err := infers(tensor{"pixels", []int{1, 64}, "FP32", h.Pixels[0]})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{cancel: cancel, result: result{byVersion: map[string]int{}}}
	for _, url := range e.urls {
		for range 2 {
			l.done.Go(func() {
				client := &http.Client{Transport: &http.Transport{}, Timeout: 10 * time.Second}
				defer client.CloseIdleConnections()
				for ctx.Err() == nil {
					// The request that is under way when the load stops is waited for.
					a, err := e.infer(context.WithoutCancel(ctx), client, url, body)
					l.count(a, err)
				}
			})
		}
	}
	return l, nil
}

func (l *load) count(a answer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.result.sent++
	if err != nil {
		l.result.failed++
		if l.result.first == nil {
			l.result.first = err
		}
		return
	}
	l.result.answered++
	l.result.byVersion[a.Version]++
}

// stop ends the load and returns what came of it, after a moment in which the
// new version gets requests too.
func (l *load) stop() result {
	time.Sleep(500 * time.Millisecond) // the load itself is what goes on meanwhile
	l.cancel()
	l.done.Wait()
	return l.result
}
