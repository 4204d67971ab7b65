package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

const (
	inferRounds = 9
	inferCalls  = 1000 // of each kind in a round
)

// infer compares requests through the gateway, with its key, with the same
// requests straight to the model server's socket, in blocks of 50 in turn, and
// with the engine's call in a process of its own, once each round. Each run is
// the difference of two medians of one round.
func infer(ctx context.Context, w *world) (figures []Figure, err error) {
	calls, err := w.startInfer(ctx)
	if err != nil {
		return nil, err
	}
	bare, address, err := w.startRelay(calls[digitsJSON+1].address)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, bare.Stop(syscall.SIGKILL, 10*time.Second)) }()
	relayed := &call{network: "tcp", address: address, request: calls[digitsJSON+1].request}
	if err := boot.Eventually(ctx, 10*time.Second, func() error {
		_, err := relayed.do(ctx)
		return err
	}); err != nil {
		return nil, err
	}
	runs, err := w.inferRuns(ctx, append(calls, relayed)...)
	if err != nil {
		return nil, err
	}
	if err := sameAnswers(calls); err != nil {
		return nil, err
	}
	return inferFigures(runs), nil
}

// startInfer deploys silero and digits to a device and returns the calls.
func (w *world) startInfer(ctx context.Context) ([]*call, error) {
	d, err := oneDevice(ctx, w)
	if err != nil {
		return nil, err
	}
	for _, model := range []string{"silero", "digits:2"} {
		if err := w.atelier(ctx, "deploy", model, "--all", "-q"); err != nil {
			return nil, err
		}
	}
	return inferCallsOf(ctx, w, d)
}

// inferRuns returns the medians of the rounds, of each of calls and, behind them, of
// the engine alone. It closes the calls.
func (w *world) inferRuns(ctx context.Context, calls ...*call) ([][]float64, error) {
	defer func() {
		for _, c := range calls {
			c.close()
		}
	}()
	inProcess, err := w.buildInProcess(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := inTurn(ctx, 200, calls...); err != nil { // warm up
		return nil, err
	}
	runs := make([][]float64, len(calls)+1)
	for range inferRounds {
		medians, err := inTurn(ctx, inferCalls, calls...)
		if err != nil {
			return nil, err
		}
		alone, err := inProcess(ctx)
		if err != nil {
			return nil, err
		}
		for i, m := range append(medians, alone) {
			runs[i] = append(runs[i], m)
		}
	}
	return runs, nil
}

// The indices of the calls; calls of the gateway are even, the same calls
// straight to the model server follow them.
const (
	sileroBinary = 2 * iota
	sileroJSON
	digitsJSON
	digitsRelayed // by the bare relay
	engineAlone   = digitsRelayed + 1
)

func inferFigures(runs [][]float64) []Figure {
	const (
		added  = "added to the engine's call in process"
		engine = "the engine's call, p50"
		share  = "the gateway's share at p50, "
		direct = "straight to atelier-serve's socket, p50"
	)
	binary, asJSON, digits, alone := runs[sileroBinary], runs[sileroJSON], runs[digitsJSON], runs[engineAlone]
	relayed := differences(runs[digitsRelayed], runs[digitsJSON+1])
	return []Figure{
		lower("v2 infer through the gateway, silero, binary tensors, p50, "+added, "µs", differences(binary, alone)).want(180).beside(engine, alone),
		lower("v2 infer through the gateway, silero, JSON, p50, "+added, "µs", differences(asJSON, alone)).want(250).beside(engine, alone),
		lower(share+"silero, binary tensors", "µs", differences(binary, runs[sileroBinary+1])).want(60).beside(direct, runs[sileroBinary+1]),
		lower(share+"silero, JSON", "µs", differences(asJSON, runs[sileroJSON+1])).want(60).beside(direct, runs[sileroJSON+1]),
		lower(share+"digits, JSON", "µs", differences(digits, runs[digitsJSON+1])).want(60).beside(direct, runs[digitsJSON+1]),
		lower("the gateway's share against that of a relay that reads nothing, digits, JSON", "times", ratios(differences(digits, runs[digitsJSON+1]), relayed)).beside("the relay's share, µs", relayed),
	}
}

// inferCallsOf prepares the calls in the order of the indices.
func inferCallsOf(ctx context.Context, w *world, d *device) ([]*call, error) {
	binary, err := inBinary(speech()...)
	if err != nil {
		return nil, err
	}
	asJSON, err := inJSON(speech()...)
	if err != nil {
		return nil, err
	}
	digits, err := inJSON(digit()...)
	if err != nil {
		return nil, err
	}
	var calls []*call
	for _, c := range []struct {
		model string
		in    payload
	}{{"silero", binary}, {"silero", asJSON}, {"digits", digits}} {
		key, err := w.key(ctx, c.model)
		if err != nil {
			return nil, err
		}
		socket, err := d.socket(c.model)
		if err != nil {
			return nil, err
		}
		calls = append(calls, newCall("tcp", d.gateway, "/"+c.model, c.model, key, c.in), newCall("unix", socket, "", c.model, "", c.in))
	}
	return calls, nil
}

// sameAnswers makes sure that the gateway and the model server answered alike.
func sameAnswers(calls []*call) error {
	for i := 0; i < len(calls); i += 2 {
		if a, b := calls[i].answer.Bytes(), calls[i+1].answer.Bytes(); len(a) == 0 || !bytes.Equal(a, b) {
			return fmt.Errorf("%s and %s answered differently: %q and %q", calls[i].address, calls[i+1].address, a, b)
		}
	}
	return nil
}

// buildInProcess builds what calls the engine within its own process and
// returns a function that runs it and gives the median in microseconds.
func (w *world) buildInProcess(ctx context.Context) (func(context.Context) (float64, error), error) {
	program, err := w.buildEngine(ctx)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (float64, error) {
		cmd := exec.CommandContext(ctx, program, "-test.run=^$", "-test.bench=^BenchmarkSilero$", fmt.Sprintf("-test.benchtime=%dx", inferCalls))
		cmd.Dir = filepath.Join(w.root, "serving", "onnxruntime")
		out, err := cmd.CombinedOutput()
		if err != nil {
			return 0, fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
		words := strings.Fields(string(out))
		for i, word := range words {
			if word == "p50-µs/op" {
				return strconv.ParseFloat(words[i-1], 64)
			}
		}
		return 0, fmt.Errorf("%s gave no median:\n%s", cmd, out)
	}, nil
}

// buildEngine builds the benchmarks of the engine within their own process.
func (w *world) buildEngine(ctx context.Context) (program string, err error) {
	program = filepath.Join(w.dir, "in-process.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./serving/onnxruntime")
	build.Dir = w.root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", build, err, out)
	}
	return program, nil
}
