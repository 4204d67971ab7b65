package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

const (
	shadowClients = 8
	shadowTime    = 3 * time.Second
)

// shadowing compares an endpoint whose requests a second version gets copies of with one
// that has no second version, and with one that has it as a canary without a share, on
// whose connections the gateway answers, too. The clients ask without a pause, so that a
// copy always meets requests.
func shadowing(ctx context.Context, w *world) ([]Figure, error) {
	d, err := oneDevice(ctx, w)
	if err != nil {
		return nil, err
	}
	in, err := digitsLoad.v2()
	if err != nil {
		return nil, err
	}
	var measures []func() (shot, error)
	for _, e := range []struct {
		name   string
		beside []string // how the second version is deployed
	}{{"alone", nil}, {"canary", []string{"--canary", "0"}}, {"shadowed", []string{"--shadow", "--sample", "1"}}} {
		if err := w.deployBeside(ctx, e.name, e.beside); err != nil {
			return nil, err
		}
		key, err := w.key(ctx, e.name)
		if err != nil {
			return nil, err
		}
		t := target{url: "http://" + d.gateway + "/" + e.name + "/v2/models/" + e.name + "/infer", key: key, in: in}
		measures = append(measures, func() (shot, error) {
			s, err := w.wrk(ctx, t, shadowClients, shadowTime)
			if err == nil && s.Failed > 0 {
				err = fmt.Errorf("%d requests to %s failed", s.Failed, t.url)
			}
			return s, err
		})
	}
	shots, err := turns(rateRounds, measures...)
	if err != nil {
		return nil, err
	}
	out, err := w.command(ctx, "atelier", "endpoint", "shadow", "shadowed", "-o", "json")
	if err != nil {
		return nil, err
	}
	var told struct {
		Devices []struct{ Compared, Disagreed, Dropped uint64 }
	}
	if err := json.Unmarshal(out, &told); err != nil {
		return nil, fmt.Errorf("'atelier endpoint shadow' gave %q: %w", out, err)
	}
	fmt.Fprintf(w.out, "  alone %s; beside a canary without a share %s; with a shadow %s\n  the shadow: %+v\n", shots[0][0], shots[1][0], shots[2][0], told.Devices)
	alone, canary, shadowed := column(shots[0], p99Of), column(shots[1], p99Of), column(shots[2], p99Of)
	what := fmt.Sprintf("digits, %d clients, p99 with a shadow against ", shadowClients)
	return []Figure{
		lower(what+"an endpoint without", "times", ratios(shadowed, alone)).want(1.05).beside("without, ms", alone),
		lower(what+"one with a canary that gets nothing", "times", ratios(shadowed, canary)).beside("with such a canary, ms", canary),
	}, nil
}

// deployBeside registers both versions of digits under a name, serves the first and,
// where there are settings for it, deploys the second beside it.
func (w *world) deployBeside(ctx context.Context, name string, beside []string) error {
	for version := 1; version <= 2; version++ {
		if err := w.atelier(ctx, "model", "register", name, w.digits(version), "-q"); err != nil {
			return err
		}
	}
	if err := w.atelier(ctx, "deploy", name+":1", "--all", "-q"); err != nil {
		return err
	}
	if beside == nil {
		return nil
	}
	return w.atelier(ctx, append([]string{"deploy", name + ":2", "-q"}, beside...)...)
}
