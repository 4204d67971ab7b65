package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/atelier-edge/atelier/serving/enginetest"
)

const (
	batchRows  = 64
	batchDelay = 5 * time.Millisecond
	batchTime  = 3 * time.Second
	columns    = 784
)

// batching compares a large model that runs requests together with the same model
// that runs them one by one. The model is made, of 51 MB: published ones of that
// size take one row at a time. What two batches take is twice the time of a request
// that brings as many rows itself.
func batching(ctx context.Context, w *world) ([]Figure, error) {
	d, err := oneDevice(ctx, w)
	if err != nil {
		return nil, err
	}
	model := enginetest.Perceptron(columns, 3200, 3200, 10)
	targets := map[string]target{}
	for name, settings := range map[string][]string{
		"single":   nil,
		"together": {"--max-batch", strconv.Itoa(batchRows), "--max-delay", batchDelay.String()},
	} {
		if err := w.deployLarge(ctx, name, model, settings...); err != nil {
			return nil, err
		}
		key, err := w.key(ctx, name)
		if err != nil {
			return nil, err
		}
		in, err := rows(1)
		if err != nil {
			return nil, err
		}
		targets[name] = target{url: "http://" + d.gateway + "/" + name + "/v2/models/" + name + "/infer", key: key, in: in}
	}
	whole := targets["single"]
	if whole.in, err = rows(batchRows); err != nil {
		return nil, err
	}
	load := func(t target, clients int) func() (shot, error) {
		return func() (shot, error) {
			s, err := w.wrk(ctx, t, clients, batchTime)
			if err == nil && s.Failed > 0 {
				err = fmt.Errorf("%d requests to %s failed", s.Failed, t.url)
			}
			return s, err
		}
	}
	shots, err := turns(rateRounds, load(targets["together"], 64), load(targets["single"], 64), load(whole, 1))
	if err != nil {
		return nil, err
	}
	together, single := column(shots[0], rateOf), column(shots[1], rateOf)
	p99, bound := column(shots[0], p99Of), column(shots[2], func(s shot) float64 { return float64(batchDelay.Milliseconds()) + 2*s.P50 })
	fmt.Fprintf(w.out, "  together %s; one by one %s; one request of %d rows %s\n", shots[0][0], shots[1][0], batchRows, shots[2][0])
	return []Figure{
		higher(fmt.Sprintf("51 MB model, 64 clients, requests/s with --max-batch %d and --max-delay %s", batchRows, batchDelay), "times", ratios(together, single)).
			want(3).beside("one by one, requests/s", single),
		lower("the same, p99 against the delay and two batches", "times", ratios(p99, bound)).want(1).beside("the delay and two batches, ms", bound),
		lower("the same, p99", "ms", p99).beside("one by one, ms", column(shots[1], p99Of)),
	}, nil
}

// deployLarge registers the model under a name, and deploys it with settings for
// how it answers requests.
func (w *world) deployLarge(ctx context.Context, name string, model []byte, settings ...string) error {
	path := filepath.Join(w.dir, name+".onnx")
	if err := os.WriteFile(path, model, 0o600); err != nil {
		return err
	}
	if err := w.atelier(ctx, "model", "register", name, path, "-q"); err != nil {
		return err
	}
	return w.atelier(ctx, append([]string{"deploy", name, "--all", "-q"}, settings...)...)
}

// rows is a request with so many rows.
func rows(n int) (payload, error) {
	values := make([]float32, n*columns)
	for i := range values {
		values[i] = float32(i%29) / 29
	}
	return inBinary(tensor{Name: "x", Datatype: "FP32", Shape: []int{n, columns}, Data: values})
}
