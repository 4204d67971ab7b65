package process

import (
	"encoding/json"
	"os"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/targets"
)

// FuzzState reads what a shim left behind, whatever became of it: it is read as it
// was written or refused as corrupt, and it never points at a process that is not
// the module's.
func FuzzState(f *testing.F) {
	good, err := json.Marshal(state{Status: targets.Status{ID: "x", PID: os.Getpid()}, BootID: bootID(), StartTicks: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"pid":-1,"boot_id":"` + bootID() + `"}`))
	f.Add([]byte(`{"id":"x","phase":"running","pid":1,"start_ticks":0}`))
	f.Add([]byte(`{"exit":{"code":1e9}}`))
	f.Add([]byte{})
	i := instance(f.TempDir())
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, name := range []string{statusFile, specFile} {
			if err := os.WriteFile(i.path(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		var s state
		if err := i.read(statusFile, &s); err != nil {
			if atelier.CodeOf(err) != atelier.Corrupt {
				t.Fatalf("code %s: %v", atelier.CodeOf(err), err)
			}
		} else {
			again(t, i, statusFile, &s)
			if s.alive() && (s.PID <= 0 || s.BootID == "") {
				t.Fatalf("%s names the living process %d", b, s.PID)
			}
		}
		var spec targets.Spec
		if err := i.read(specFile, &spec); err == nil {
			again(t, i, specFile, &spec)
		}
	})
}

func again[T any](t *testing.T, i instance, name string, v *T) {
	t.Helper()
	first, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(i.path(name), first, 0o600); err != nil {
		t.Fatal(err)
	}
	var read T
	if err := i.read(name, &read); err != nil {
		t.Fatal(err)
	}
	if second, err := json.Marshal(read); err != nil || string(first) != string(second) {
		t.Fatalf("%s came back as %s, %v", first, second, err)
	}
}

// FuzzNumber reads a figure out of one of the kernel's files.
func FuzzNumber(f *testing.F) {
	f.Add([]byte("Name:\tx\nRssAnon:\t  123 kB\n"), "\nRssAnon:")
	f.Add([]byte("\noom_kill 9223372036854775808\n"), "\noom_kill ")
	f.Fuzz(func(t *testing.T, text []byte, key string) {
		if n := number(text, key); n < 0 {
			t.Fatalf("%q in %q is %d", key, text, n)
		}
	})
}
