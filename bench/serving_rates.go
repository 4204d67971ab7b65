package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	rateRounds = 5
	trialTime  = 2 * time.Second // with each count of workers
	rateTime   = 2 * time.Second
)

var clientCounts = []int{8, 64}

// candidate is a peer with the workers that serve a workload best.
type candidate struct {
	peer
	*running
	label, note string
}

// rates compares what a device answers on an endpoint with what the peers answer.
// Each peer is tried with several counts of workers first; the best runs on.
func (w *world) rates(ctx context.Context, load workload) ([]Figure, error) {
	url, key, err := w.endpoint(ctx, load)
	if err != nil {
		return nil, err
	}
	var figures []Figure
	var rivals []candidate
	for _, p := range peers {
		c, err := w.choose(ctx, p, load)
		if err != nil {
			fmt.Fprintf(w.out, "  %s is missing: %v\n", p.name, err)
			figures = append(figures, Figure{Figure: load.name + ", " + p.name, Unit: "missing", Better: "higher", Note: err.Error()})
			continue
		}
		rivals = append(rivals, *c)
	}
	if len(rivals) == 0 {
		return nil, errors.New("no peer runs; see scripts/install-peers")
	}
	ours := target{url: url + "/score", key: key}
	if load.model(w) != "" {
		ours.url = url + "/v2/models/" + load.name + "/infer"
		ours.in, err = load.v2()
	} else {
		ours.in, err = asJSON(load.score())
	}
	if err != nil {
		return nil, err
	}
	for _, clients := range clientCounts {
		compared, err := w.compare(ctx, load, ours, rivals, clients)
		if err != nil {
			return nil, err
		}
		figures = append(figures, compared...)
	}
	for _, r := range rivals {
		if err := r.stop(); err != nil {
			return nil, err
		}
	}
	if load.name == sileroLoad.name {
		shares, err := w.shareOfEngine(ctx, url, key)
		if err != nil {
			return nil, err
		}
		figures = append(figures, shares...)
	}
	return figures, nil
}

// choose tries the counts of workers at 64 clients and leaves the best running.
func (w *world) choose(ctx context.Context, p peer, load workload) (*candidate, error) {
	if why := w.missing(p); why != "" {
		return nil, errors.New(why)
	}
	version, err := w.versionOf(ctx, p)
	if err != nil {
		return nil, err
	}
	var best *running
	var most float64
	var workers int
	var tried []string
	var failed error // of the last count with which it did not start
	for _, n := range p.workers {
		r, err := w.startPeer(ctx, p, load, n)
		if err != nil && ctx.Err() == nil {
			failed = err
			tried = append(tried, fmt.Sprintf("%d: it did not start", n))
			continue
		}
		if err != nil {
			return nil, err
		}
		s, err := w.wrk(ctx, r.target, 64, trialTime)
		if err != nil {
			return nil, err
		}
		tried = append(tried, fmt.Sprintf("%d: %.0f/s", n, s.Rate))
		worse := r
		if s.Rate > most {
			worse, best, most, workers = best, r, s.Rate, n
		}
		if worse != nil {
			if err := worse.stop(); err != nil {
				return nil, err
			}
		}
	}
	if best == nil {
		return nil, errors.Join(fmt.Errorf("it answered no request with any count of workers; %s", strings.Join(tried, ", ")), failed)
	}
	c := &candidate{peer: p, running: best, label: fmt.Sprintf("%s, workers %d", p.name, workers)}
	c.note = fmt.Sprintf("%s %s; %s; workers at 64 clients: %s", p.pkg, version, best.command, strings.Join(tried, ", "))
	fmt.Fprintf(w.out, "  %s\n", c.note)
	return c, nil
}

// compare loads ours and the rivals in turn.
func (w *world) compare(ctx context.Context, load workload, ours target, rivals []candidate, clients int) ([]Figure, error) {
	measures := []func() (shot, error){func() (shot, error) { return w.answered(ctx, ours, clients) }}
	for _, r := range rivals {
		measures = append(measures, func() (shot, error) { return w.wrk(ctx, r.target, clients, rateTime) })
	}
	shots, err := turns(rateRounds, measures...)
	if err != nil {
		return nil, err
	}
	rate, p99 := column(shots[0], rateOf), column(shots[0], p99Of)
	what := fmt.Sprintf("%s, %d clients, ", load.name, clients)
	rates := make([]float64, len(rivals))
	tails := make([]float64, len(rivals))
	for i := range rivals {
		rates[i], tails[i] = median(column(shots[1+i], rateOf)), -median(column(shots[1+i], p99Of))
	}
	figures := []Figure{
		higher(what+"answered", "requests/s", rate),
		lower(what+"p50", "ms", column(shots[0], func(s shot) float64 { return s.P50 })),
		lower(what+"p99", "ms", p99),
	}
	for i, r := range rivals {
		more := higher(what+"requests/s against "+r.name, "times", ratios(rate, column(shots[1+i], rateOf))).beside(r.label+", requests/s", column(shots[1+i], rateOf))
		if load.wanted > 0 && i == best(rates) {
			more = more.want(load.wanted)
		}
		tail := lower(what+"p99 against "+r.name, "times", ratios(p99, column(shots[1+i], p99Of))).want(1).beside(r.label+", ms", column(shots[1+i], p99Of))
		more.Note, tail.Note = r.note, r.note
		figures = append(figures, more, tail)
	}
	fmt.Fprintf(w.out, "  %s%.0f/s, best peer %s: %.0f/s; p99 %.2f ms, best peer %s: %.2f ms\n", what, median(rate), rivals[best(rates)].label, slices.Max(rates),
		median(p99), rivals[best(tails)].label, -slices.Max(tails))
	return figures, nil
}

// answered is wrk for ours, of which no request may fail.
func (w *world) answered(ctx context.Context, t target, clients int) (shot, error) {
	s, err := w.wrk(ctx, t, clients, rateTime)
	if err == nil && s.Failed > 0 {
		err = fmt.Errorf("%d requests to %s failed", s.Failed, t.url)
	}
	return s, err
}

// shareOfEngine compares silero with binary tensors over HTTP with as many calls of
// the engine at a time within one process, which has no client beside it.
func (w *world) shareOfEngine(ctx context.Context, url, key string) ([]Figure, error) {
	program, err := w.buildEngine(ctx)
	if err != nil {
		return nil, err
	}
	in, err := inBinary(speech()...)
	if err != nil {
		return nil, err
	}
	t := target{url: url + "/v2/models/silero/infer", key: key, in: in}
	var figures []Figure
	for _, clients := range clientCounts {
		shots, err := turns(rateRounds,
			func() (shot, error) { return w.answered(ctx, t, clients) },
			func() (shot, error) {
				rate, err := w.engineRate(ctx, program)
				return shot{Rate: rate}, err
			})
		if err != nil {
			return nil, err
		}
		rate, alone := column(shots[0], rateOf), column(shots[1], rateOf)
		percent := ratios(rate, alone)
		for i := range percent {
			percent[i] *= 100
		}
		figures = append(figures, higher(fmt.Sprintf("silero, %d clients, binary tensors, of what the same threads do in process", clients), "%", percent).
			want(45).beside("in process, inferences/s", alone))
		fmt.Fprintf(w.out, "  silero, %d clients, binary tensors: %s; in process %.0f/s\n", clients, shots[0][0], median(alone))
	}
	return figures, nil
}

// engineRate is how many inferences the engine's benchmark does in a second.
func (w *world) engineRate(ctx context.Context, program string) (float64, error) {
	cmd := exec.CommandContext(ctx, program, "-test.run=^$", "-test.bench=^BenchmarkSileroTogether$", "-test.benchtime="+rateTime.String())
	cmd.Dir = filepath.Join(w.root, "serving/onnxruntime")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	words := strings.Fields(string(out))
	if i := slices.Index(words, "inferences/s"); i > 0 {
		return strconv.ParseFloat(words[i-1], 64)
	}
	return 0, fmt.Errorf("%s gave no rate:\n%s", cmd, out)
}
