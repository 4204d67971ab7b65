package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
)

// Each workload has the same values in each dialect.
func TestDialects(t *testing.T) {
	t.Parallel()
	for _, load := range []workload{digitsLoad, sileroLoad, scriptLoad} {
		in, err := load.v2()
		if err != nil {
			t.Fatal(err)
		}
		var v2 struct {
			Inputs []struct {
				Name  string
				Shape []int
				Data  []float64
			}
		}
		if err := json.Unmarshal(in.body, &v2); err != nil {
			t.Fatal(err)
		}
		want := ""
		for _, i := range v2.Inputs {
			want += fmt.Sprint(i.Data)
		}
		for name, of := range map[string]func() any{"score": load.score, "mlflow": load.mlflow} {
			text, err := asJSON(of())
			if err != nil {
				t.Fatal(err)
			}
			var said map[string]any
			if err := json.Unmarshal(text.body, &said); err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, i := range v2.Inputs {
				values := said["data"]
				if inputs, ok := said["inputs"].(map[string]any); ok {
					values = inputs[i.Name]
				} else if values == nil {
					values = said["inputs"]
				}
				got += fmt.Sprint(flat(values))
			}
			if got != want {
				t.Errorf("%s as %s has other values than as v2", load.name, name)
			}
		}
	}
}

func flat(v any) (all []float64) {
	switch v := v.(type) {
	case float64:
		return []float64{v}
	case []any:
		for _, e := range v {
			all = append(all, flat(e)...)
		}
	}
	return all
}

// What is measured in turn begins with another each round, and ends with an error.
func TestTurns(t *testing.T) {
	t.Parallel()
	order := ""
	measure := func(name string) func() (shot, error) {
		return func() (shot, error) { order += name; return shot{Rate: float64(len(order))}, nil }
	}
	shots, err := turns(3, measure("a"), measure("b"), measure("c"))
	if err != nil || order != "abcbcacab" || fmt.Sprint(column(shots[0], rateOf)) != "[1 6 8]" {
		t.Errorf("%s, %v, %v", order, shots, err)
	}
	if _, err := turns(1, func() (shot, error) { return shot{}, errors.New("no") }); err == nil {
		t.Error("an error was passed over")
	}
}

// A peer that is not installed is told as missing, with pip's words where there are
// some.
func TestMissingPeer(t *testing.T) {
	t.Parallel()
	w := &world{root: t.TempDir()}
	if why := w.missing(peers[0]); why == "" {
		t.Error("it is said to be there")
	}
}
