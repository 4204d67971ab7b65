package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	atelier "github.com/atelier-edge/atelier"
)

func TestCommandLine(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("[log]\nlevle = 'info'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]struct {
		code        int
		out, errOut string
	}{
		"":                      {exitUsage, "", "Usage:"},
		"help":                  {0, "Usage:", ""},
		"--help":                {0, "Usage:", ""},
		"version":               {0, "atelier-agent dev", ""},
		"fly":                   {exitUsage, "", `no command "fly"`},
		"run --fly":             {exitUsage, "", "-fly"},
		"run now":               {exitUsage, "", `unexpected argument "now"`},
		"join --help":           {0, "", "-fingerprint"},
		"join --state " + dir:   {exitFailed, "", "is missing"},
		"join --label =":        {exitUsage, "", "label"},
		"status --state " + dir: {exitNotFound, "", "has not joined"},
		"run --state " + dir + " --run " + filepath.Join(dir, "run"): {exitNotFound, "", "atelier-agent join"},
		"run --config " + bad:           {exitFailed, "", `"log.levle"`},
		"run --config " + dir + "/none": {exitFailed, "", "no such file"},
		"check":                         {0, "onnxruntime", ""},
		"check -o xml":                  {exitFailed, "", "xml"},
		"join --hub http://x --fingerprint y --token z --state " + dir: {exitFailed, "", "https"},
	} {
		var out, errOut bytes.Buffer
		code := run(t.Context(), strings.Fields(args), &out, &errOut)
		if code != want.code || !strings.Contains(out.String(), want.out) || !strings.Contains(errOut.String(), want.errOut) {
			t.Errorf("atelier-agent %s: exit code %d, want %d\nout: %s\nerr: %s", args, code, want.code, &out, &errOut)
		}
	}
}

func TestCheckAnswersJSON(t *testing.T) {
	t.Parallel()
	var out, errOut bytes.Buffer
	if code := run(t.Context(), []string{"check", "-o", "json"}, &out, &errOut); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errOut)
	}
	var f atelier.Facts
	if err := json.Unmarshal(out.Bytes(), &f); err != nil || f.OS == "" || len(f.Runtimes) != 1 {
		t.Errorf("got %s, %v", &out, err)
	}
}

// maxProgram is what the agent may take on disk, stripped.
const maxProgram = 10_000_000

func TestTheProgramStaysSmall(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "atelier-agent")
	// As the Makefile builds it.
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", "nethttpomithttp2", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes", info.Size())
	if info.Size() > maxProgram {
		t.Errorf("the program has %d bytes, at most %d are allowed: find out with 'go tool nm -size -sort size' what grew", info.Size(), maxProgram)
	}
}
