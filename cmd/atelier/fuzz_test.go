package main

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// FuzzContexts reads a file of contexts that may be anything; what was read can be
// saved, and is the same then.
func FuzzContexts(f *testing.F) {
	f.Add([]byte("current = 'a'\n[context.a]\nhub = 'https://localhost:8443'\ntoken = 't'\n"))
	f.Add([]byte("[context]\n"))
	f.Add([]byte("current = 1"))
	path := filepath.Join(f.TempDir(), "config.toml")
	f.Setenv("ATELIER_CONFIG", path)
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		first, err := loadContexts()
		if err != nil {
			return
		}
		if err := first.save(); err != nil {
			t.Fatal(err)
		}
		again, err := loadContexts()
		if err != nil || again.Current != first.Current || len(again.Context) != len(first.Context) {
			t.Fatalf("%q was saved as another: %+v, %+v, %v", text, first, again, err)
		}
		for name, c := range first.Context {
			if again.Context[name] != c {
				t.Fatalf("context %q is %+v, was %+v", name, again.Context[name], c)
			}
		}
	})
}

// FuzzParseBytes reads a size as people write it.
func FuzzParseBytes(f *testing.F) {
	for _, s := range []string{"512MiB", "2 GB", "1e3", "0", "-1", "NaN", "Inf", "1e-9", "1e30GiB", "0x10", "1_0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseBytes(s)
		if err != nil {
			return
		}
		if n <= 0 {
			t.Fatalf("%q is %d bytes", s, n)
		}
		if again, err := parseBytes(strconv.FormatInt(n, 10)); err != nil || n < 1<<53 && again != n {
			t.Fatalf("%q is %d, which reads as %d, %v", s, n, again, err)
		}
	})
}
