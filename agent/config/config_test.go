package config

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func TestExampleShowsEveryKeyWithItsDefault(t *testing.T) {
	t.Parallel()
	c, err := Parse([]byte(Example))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("the example gives %+v, the defaults are %+v", c, Default())
	}
	var keys func(reflect.Type)
	keys = func(typ reflect.Type) {
		for f := range typ.Fields() {
			if key := f.Tag.Get("toml"); !strings.Contains(Example, key+" = ") && !strings.Contains(Example, "["+key+"]") {
				t.Errorf("the example does not show %q", key)
			}
			if f.Type.Kind() == reflect.Struct {
				keys(f.Type)
			}
		}
	}
	keys(reflect.TypeFor[Config]())
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for text, field := range map[string]string{
		"[log]\nlevle = 'info'":           "log.levle",
		"[nonsense]\nx = 1":               "nonsense",
		"[log]\nlevel = 'loud'":           "log.level",
		"[log]\nlevel = 3":                "log.level",
		"[telemetry]\ninterval = 'never'": "telemetry.interval",
		"[telemetry]\ninterval = '1ms'":   "telemetry.interval",
		"[telemetry]\nspool_bytes = 1":    "telemetry.spool_bytes",
		"[gateway]\nlisten = '8600'":      "gateway.listen",
		"[disk]\nreserve_bytes = -1":      "disk",
		"[paths]\nstate = 'relative'":     "paths.state",
		"[paths]\nprograms = 'relative'":  "paths.programs",
		"[log":                            "",
	} {
		_, err := Parse([]byte(text))
		var e *atelier.Error
		if !errors.As(err, &e) || e.Code != atelier.Invalid {
			t.Errorf("%q: got %v, expected an error with code invalid", text, err)
			continue
		}
		if e.Field != field && !strings.HasPrefix(e.Field, field+".") {
			t.Errorf("%q: the error names %q, expected %q: %v", text, e.Field, field, e)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	if _, err := Load(filepath.Join(t.TempDir(), "none.toml")); err == nil {
		t.Error("a named file that is missing was accepted")
	}
	path := filepath.Join(t.TempDir(), "agent.toml")
	write(t, path, strings.Repeat("#", maxFile+1))
	if _, err := Load(path); err == nil {
		t.Error("an oversized file was accepted")
	}
}

type change struct {
	c   Config
	err error
}

func TestWatchFollowsChangesAndSurvivesBadFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "agent.toml")
	write(t, path, "[log]\nlevel = 'info'\n")
	ctx, cancel := context.WithCancel(t.Context())
	changes := make(chan change, 16)
	done := make(chan error, 1)
	go func() { done <- Watch(ctx, path, func(c Config, err error) { changes <- change{c, err} }) }()

	if c := <-changes; c.err != nil || c.c.Log.Level != "info" {
		t.Fatalf("at the beginning: got %+v", c)
	}
	write(t, path, "[log]\nlevel = 'debug'\n")
	if c := <-changes; c.err != nil || c.c.Log.Level != "debug" {
		t.Fatalf("got %+v", c)
	}
	write(t, path, "[log]\nlevle = 'info'\n")
	if c := <-changes; c.err == nil || !strings.Contains(c.err.Error(), "log.levle") {
		t.Fatalf("got %+v, expected an error that names log.levle", c)
	}
	// As an editor does it: a new file takes the old one's place.
	write(t, path+".new", "[log]\nlevel = 'warn'\n")
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if c := <-changes; c.err != nil || c.c.Log.Level != "warn" {
		t.Fatalf("got %+v", c)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Example)
	f.Add("[log]\nlevel = 'info'")
	f.Add("[telemetry]\ninterval = 5")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse([]byte(text))
		if err == nil && c.check() != nil {
			t.Errorf("accepted a configuration that does not hold: %+v", c)
		}
	})
}
