package runner

import (
	"slices"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/agent/agenttest"
	"github.com/atelier-edge/atelier/targets"
)

// TestServingFlags sees that a module's settings reach its model server, and that one
// without is started as ever.
func TestServingFlags(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	r := &Runner{opts: Options{Modules: d.dir, Run: d.dir, Programs: "/programs"}}
	plain := d.module("a", "a")
	set := d.module("b", "b")
	set.Serving = atelier.ServingSettings{MaxBatch: 8, MaxDelay: 2.5, Threads: 2, Concurrency: 3, Workers: 4, WorkerMemory: 1 << 29, Deadline: 1500, Providers: "cuda,cpu"}
	before := newInstance(r, plain).spec().Command
	got := newInstance(r, set).spec().Command
	want := []string{
		"--max-batch", "8", "--max-delay", "2.5ms", "--threads", "2", "--concurrency", "3", "--workers", "4",
		"--worker-memory", "536870912", "--deadline", "1.5s", "--providers", "cuda,cpu", "--listen",
	}
	at := slices.Index(got, "--max-batch")
	if at < 0 || !slices.Equal(got[at:len(got)-1], want) {
		t.Errorf("it is started as %q", got)
	}
	for kind, flag := range map[string]string{atelier.VariantMLflow: "--mlflow", atelier.VariantPickle: "--pickle"} {
		m := d.scripted(d.module("c", "c"), packed(t, "python"))
		m.Model.Variant.Kind = kind
		i := newInstance(r, m)
		if c := i.spec().Command; !slices.Contains(c, flag) || !slices.Contains(c, i.interpreter()) || slices.Contains(c, "--script") || i.target != nil {
			t.Errorf("one of the kind %s is started as %q", kind, c)
		}
	}
	if len(before) != len(got)-len(want)+1 || slices.Contains(before, "--threads") {
		t.Errorf("one without settings is started as %q", before)
	}
}

// TestFallback sees that a module that serves on another provider than the preferred one
// serves, and that the device says so.
func TestFallback(t *testing.T) {
	t.Parallel()
	d := newDevice(t)
	m := d.module("a", "a")
	m.Serving.Providers = "cuda,cpu"
	d.target.Behave = func(targets.Spec) agenttest.Behaviour {
		return agenttest.Behaviour{Health: atelier.ModuleHealth{Provider: "cpu", Fallback: "it runs on cpu; cuda: the device does not have an NVIDIA GPU"}}
	}
	d.start()
	d.desire(m)
	d.serves(m)
	d.eventually("it is told", func() bool {
		s := d.status(m).Current
		return s.State() == atelier.Serving && s.Provider == "cpu" && s.Why().Reason() == atelier.ReasonProviderFallback && strings.Contains(s.Why().Message(), "NVIDIA")
	})
}
