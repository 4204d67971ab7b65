package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// serving measures what answers requests on a device, through its gateway with a
// key: beside the servers that people use otherwise, and under faults.
var serving = benchmark{
	name:  "serving",
	about: "requests on a device: rates and tails against other servers, batching, memory, faults",
	parts: []part{
		{"digits", func(ctx context.Context, w *world) ([]Figure, error) { return w.rates(ctx, digitsLoad) }},
		{"silero", func(ctx context.Context, w *world) ([]Figure, error) { return w.rates(ctx, sileroLoad) }},
		{"script", func(ctx context.Context, w *world) ([]Figure, error) { return w.rates(ctx, scriptLoad) }},
		{"one", oneClient},
		{"batch", batching},
		{"shadow", shadowing},
		{"footprint", footprint},
		{"switches", switchesUnderLoad},
		{"deaths", deaths},
	},
}

// workload is something that is served, and how requests for it look in each of
// the dialects.
type workload struct {
	name   string
	model  func(w *world) string // the ONNX file, "" for the script
	v2     func() (payload, error)
	score  func() any // what POST /score takes
	mlflow func() any // what POST /invocations takes
	// wanted is how many times the requests of the best peer are asked for.
	wanted float64
}

func plain(tensors []tensor) any {
	values := map[string]any{}
	for _, t := range tensors {
		values[t.Name] = nested(t)
	}
	return map[string]any{"inputs": values}
}

// nested gives a tensor's values in lists, as its shape is.
func nested(t tensor) any {
	var level func(shape []int, values []float32) any
	level = func(shape []int, values []float32) any {
		if len(shape) == 1 {
			return values
		}
		var list []any
		each := len(values) / shape[0]
		for i := range shape[0] {
			list = append(list, level(shape[1:], values[i*each:(i+1)*each]))
		}
		return list
	}
	if values, ok := t.Data.([]float32); ok {
		return level(t.Shape, values)
	}
	return t.Data.([]int64)[0] // the one scalar
}

var (
	digitsLoad = workload{
		name: "digits", model: func(w *world) string { return w.digits(2) }, wanted: 3,
		v2:    func() (payload, error) { return inJSON(digit()...) },
		score: func() any { return plain(digit()) }, mlflow: func() any { return plain(digit()) },
	}
	sileroLoad = workload{
		name: "silero", model: (*world).silero,
		v2:    func() (payload, error) { return inJSON(speech()...) },
		score: func() any { return plain(speech()) }, mlflow: func() any { return plain(speech()) },
	}
	scriptLoad = workload{
		name: "script", model: func(*world) string { return "" }, wanted: 1.5,
		v2: func() (payload, error) {
			return inJSON(tensor{Name: "data", Datatype: "FP32", Shape: []int{1, 64}, Data: digit()[0].Data})
		},
		score:  func() any { return map[string]any{"data": nested(digit()[0])} },
		mlflow: func() any { return map[string]any{"inputs": nested(digit()[0])} },
	}
)

func asJSON(v any) (payload, error) {
	body, err := json.Marshal(v)
	return payload{body: body}, err
}

// endpoint deploys what load serves to the one device and returns the gateway's
// base URL for it, and the endpoint's key.
func (w *world) endpoint(ctx context.Context, load workload) (url, key string, err error) {
	d, err := oneDevice(ctx, w)
	if err != nil {
		return "", "", err
	}
	deploy := []string{"deploy", load.name, "--all", "-q"}
	if load.model(w) == "" {
		if err := w.registerScript(ctx, load.name); err != nil {
			return "", "", err
		}
		deploy = append(deploy, "--workers", strconv.Itoa(scriptWorkers))
	}
	if err := w.atelier(ctx, deploy...); err != nil {
		return "", "", err
	}
	key, err = w.key(ctx, load.name)
	return "http://" + d.gateway + "/" + load.name, key, err
}

// scriptWorkers is how many processes run the script on our side: of 1, 2 and 4, which
// the peers are tried with as well, what serves best on two processors.
const scriptWorkers = 4

// registerScript builds an environment with NumPy and registers the script that the
// peers run too.
func (w *world) registerScript(ctx context.Context, name string) error {
	requirements := filepath.Join(w.dir, "requirements.txt")
	dir := filepath.Join(w.dir, "script")
	source, err := os.ReadFile(filepath.Join(w.root, "bench/peers/score.py"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for path, text := range map[string][]byte{requirements: []byte(numpyPin + "\n"), filepath.Join(dir, "score.py"): source} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return err
		}
	}
	if err := w.atelier(ctx, "environment", "create", "numpy", "-f", requirements); err != nil {
		return err
	}
	login, err := w.hub.Says(ctx, "atelier login ")
	if err != nil {
		return err
	}
	_, after, _ := strings.Cut(login, "--fingerprint ")
	fingerprint, _, _ := strings.Cut(after, " ")
	began := time.Now()
	builder := w.program("env", "builder.log", "ATELIER_TOKEN="+w.token, filepath.Join(w.root, "bin/atelier-builder"),
		"--once", "--hub", "https://"+w.listen, "--fingerprint", fingerprint)
	builder.Path = "/usr/bin/env"
	if err := builder.Start(); err != nil {
		return err
	}
	select {
	case <-builder.Exited():
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := w.atelier(ctx, "environment", "show", "numpy", "--wait"); err != nil {
		return fmt.Errorf("%w\nThe end of the builder's log:\n%s", err, builder.Tail(10))
	}
	fmt.Fprintf(w.out, "  the environment was built in %s\n", time.Since(began).Round(100*time.Millisecond))
	return w.atelier(ctx, "model", "register", name, dir, "--script", "score.py", "--environment", "numpy", "-q")
}

const numpyPin = "numpy==2.3.5" // as scripts/install-peers has it

// oneClient is what REST adds to the engine's call at one client.
func oneClient(ctx context.Context, w *world) ([]Figure, error) {
	calls, err := w.startInfer(ctx)
	if err != nil {
		return nil, err
	}
	runs, err := w.inferRuns(ctx, calls[sileroBinary], calls[sileroJSON])
	if err != nil {
		return nil, err
	}
	const peer = "the engine's call, p50"
	binary, asJSON, alone := runs[0], runs[1], runs[2]
	return []Figure{
		lower("silero, 1 client, binary tensors, p50 added to the call in process", "µs", differences(binary, alone)).want(150).beside(peer, alone),
		lower("silero, 1 client, JSON, p50 added to the call in process", "µs", differences(asJSON, alone)).want(220).beside(peer, alone),
	}, nil
}

// turns calls each of measures rounds times in turn, each round beginning with
// another, and returns what they gave.
func turns(rounds int, measures ...func() (shot, error)) ([][]shot, error) {
	shots := make([][]shot, len(measures))
	for round := range rounds {
		for i := range measures {
			at := (i + round) % len(measures)
			s, err := measures[at]()
			if err != nil {
				return nil, err
			}
			shots[at] = append(shots[at], s)
		}
	}
	return shots, nil
}

func column(shots []shot, of func(shot) float64) []float64 {
	values := make([]float64, len(shots))
	for i, s := range shots {
		values[i] = of(s)
	}
	return values
}

func best(values []float64) int { return slices.Index(values, slices.Max(values)) }
