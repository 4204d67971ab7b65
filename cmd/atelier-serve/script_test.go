package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// python3 returns an interpreter.
func python3(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("python3")
	if err != nil {
		t.Fatalf("the test needs python3: %v", err)
	}
	return path
}

// A script that cannot be served is told by the exit code and the last line, its
// output with it.
func TestScriptExitCodes(t *testing.T) {
	t.Parallel()
	python := python3(t)
	good := file(t, "score.py", []byte("def init(): pass\ndef run(d): pass\n"))
	bad := file(t, "score.py", []byte("def init():\n    print('looks for it')\n    raise FileNotFoundError('weights.bin')\ndef run(d): pass\n"))
	long := file(t, "score.py", []byte("def init():\n    print('\\n' * 9000)\n    raise ValueError('ü' * 9000)\ndef run(d): pass\n"))
	hangs := file(t, "score.py", []byte("import time\ntime.sleep(1000)\n"))
	golden := file(t, "golden.json", []byte(`{"format": 1, "route": "score", "tolerance": {"absolute": 0, "relative": 0}, "cases": [
		{"name": "two", "request": {"x": 1}, "response": {"y": [1, 2]}}]}`))
	other := file(t, "score.py", []byte("def init(): pass\ndef run(d): return {'y': [1, 3]}\n"))
	raises := file(t, "score.py", []byte("def init(): pass\ndef run(d): raise KeyError('z')\n"))
	dir := filepath.Dir(good)
	for name, c := range map[string]struct {
		args []string
		code int
		says []string
	}{
		"init":        {[]string{"--script", bad, "--model-dir", dir, "--python", python}, 76, []string{"init() failed: FileNotFoundError: weights.bin\u2028looks for it\u2028Traceback"}},
		"long":        {[]string{"--script", long, "--model-dir", dir, "--python", python}, 76, []string{"init() failed: ValueError: ", "üü"}},
		"hangs":       {[]string{"--script", hangs, "--model-dir", dir, "--python", python, "--init-timeout", "5s"}, 76, []string{"did not return within 5s", "line 2 in <module>"}},
		"absent":      {[]string{"--script", dir + "/nowhere.py", "--model-dir", dir, "--python", python}, 76, []string{"No such file"}},
		"interpreter": {[]string{"--script", good, "--model-dir", dir, "--python", "/nowhere/python"}, 69, []string{"/nowhere/python cannot be started"}},
		"golden":      {[]string{"--script", other, "--model-dir", dir, "--python", python, "--golden", golden}, 70, []string{`golden input "two": of what was expected, y[1] is 2, this version's 3`}},
		"raises":      {[]string{"--script", raises, "--model-dir", dir, "--python", python, "--golden", golden}, 70, []string{`golden input "two": run() of the scoring script raised`, "KeyError"}},
		"usage":       {[]string{"--script", good, "--python", python}, 2, []string{"--script needs --model-dir"}},
		"negative":    {[]string{"--script", good, "--python", python, "--model-dir", dir, "--workers", "-1"}, 2, []string{"must not be negative"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(filepath.Dir(file(t, "here", nil)), "s")
			out, err := exec.Command(program, append([]string{"--name", "m", "--listen", "unix:" + socket}, c.args...)...).CombinedOutput()
			var exit *exec.ExitError
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			last := lines[len(lines)-1]
			if !errors.As(err, &exit) || exit.ExitCode() != c.code || len(last) > 4<<10 {
				t.Errorf("%v, last line of %d bytes %q; want exit code %d", err, len(last), last, c.code)
			}
			for _, text := range c.says {
				if !strings.Contains(last, text) {
					t.Errorf("the last line lacks %q: %q", text, last)
				}
			}
		})
	}
}

// The program serves a script on its socket. When its process group is asked to
// end, it finishes what it has, and nothing of it is left.
func TestServeScript(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed=%v", killed), func(t *testing.T) { testServeScript(t, killed) })
	}
}

func testServeScript(t *testing.T, killed bool) {
	t.Parallel()
	script := file(t, "score.py", []byte(`
import os, time
def init(): pass
def run(data):
    open(data, "w").close()
    time.sleep(1)
    return os.getpid()
`))
	dir := filepath.Dir(script)
	socket := filepath.Join(dir, "s")
	// As under atelier-shim: by relative names, in a group that is signalled as a whole.
	cmd := exec.Command(program, "--name", "m", "--script", "score.py", "--model-dir", ".", "--python", python3(t), "--listen", "unix:"+socket, "--workers", "2")
	cmd.Dir = dir
	var log bytes.Buffer
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }() // it has ended when all went well
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	post := func(mark string) (string, error) {
		resp, err := client.Post("http://module/score", "", strings.NewReader(filepath.Join(dir, mark)))
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return fmt.Sprint(resp.StatusCode, " ", string(b)), err
	}
	wait := func(what string, holds func() bool) {
		for end := time.Now().Add(30 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("it never came that %s\n%s", what, log.String())
			}
		}
	}
	wait("it is ready", func() bool {
		resp, err := client.Get("http://module/v2/health/ready")
		return err == nil && resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	})
	first, err := post("first")
	if err != nil || !strings.HasPrefix(first, "200 ") {
		t.Fatalf("%s, %v", first, err)
	}
	worker, err := strconv.Atoi(strings.TrimPrefix(first, "200 "))
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan string, 1)
	go func() {
		text, err := post("second")
		answered <- fmt.Sprint(text, " ", err)
	}()
	wait("the script has the request", func() bool { _, err := os.Stat(filepath.Join(dir, "second")); return err == nil })
	signal := syscall.SIGTERM
	if killed {
		signal = syscall.SIGKILL
	}
	if err := syscall.Kill(-cmd.Process.Pid, signal); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; !killed && got != first+" <nil>" {
		t.Errorf("the request in progress was answered with %s", got)
	}
	if err := cmd.Wait(); (err != nil) != killed {
		t.Errorf("it ended with %v\n%s", err, log.String())
	}
	wait("the worker is gone", func() bool { return errors.Is(syscall.Kill(worker, 0), syscall.ESRCH) })
}

// The example of docs/serving.md is what it says.
func TestExample(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(repository + "/docs/serving.md")
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile(repository + "/examples/scoring/score.py")
	if err != nil {
		t.Fatal(err)
	}
	const command = "atelier-serve --name scoring --script examples/scoring/score.py --model-dir examples/scoring --python python3 --listen 127.0.0.1:8000"
	const body, want = `{"data": [[2, 1, 1]]}`, `{"scores": [2.0]}`
	for _, text := range []string{string(script), command, body, want} {
		if !strings.Contains(string(doc), text) {
			t.Errorf("docs/serving.md lacks %q", text)
		}
	}
	socket := filepath.Join(filepath.Dir(file(t, "here", nil)), "s")
	args := strings.Fields(command)[1:]
	args[len(args)-1] = "unix:" + socket
	cmd := exec.Command(program, args...)
	var log bytes.Buffer
	cmd.Dir, cmd.Stderr = repository, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }() // it has ended when all went well
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	got := ""
	for end := time.Now().Add(30 * time.Second); got == "" && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		resp, err := client.Post("http://module/score", "application/x-www-form-urlencoded", strings.NewReader(body))
		if err != nil {
			continue
		}
		b, err := io.ReadAll(resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK {
			got = string(b)
		}
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Errorf("it ended with %v", err)
	}
	if got != want || !strings.Contains(log.String(), "INFO:root:1 rows") {
		t.Errorf("it answered %q, want %s\n%s", got, want, log.String())
	}
}

// A script that gives what its golden inputs say takes requests, and so does one whose file
// of that name is something of its own; one that is too slow does not.
func TestScriptGolden(t *testing.T) {
	t.Parallel()
	python := python3(t)
	script := file(t, "score.py", []byte("import json\ndef init(): pass\ndef run(d): return {'y': [json.loads(d)['x'], 2.00001]}\n"))
	cases := `{"format": 1, "route": "score", "tolerance": {"absolute": 0.001, "relative": 0}, %s"cases": [{"name": "two", "request": {"x": 1}, "response": {"y": [1, 2.0]}}]}`
	for name, c := range map[string]struct{ golden, log string }{
		"passes": {strings.Replace(cases, "%s", `"latency_ms": 60000, `, 1), "passed its golden inputs"},
		"other":  {`{"of": "its own"}`, "is not golden inputs of a scoring script"},
		"slow":   {strings.Replace(cases, "%s", `"latency_ms": 0.000001, `, 1), "at the median"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			golden := file(t, "golden.json", []byte(c.golden))
			socket := filepath.Join(filepath.Dir(golden), "s")
			cmd := exec.Command(program, "--name", "m", "--script", script, "--model-dir", filepath.Dir(script), "--python", python, "--golden", golden, "--listen", "unix:"+socket)
			var log bytes.Buffer
			cmd.Stderr = &log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = cmd.Wait(); close(ended) }() // its log says how
			for ready := false; !ready; {
				select {
				case <-ended:
					ready = true
				case <-time.After(5 * time.Millisecond):
					status, _, err := ask(t.Context(), socket, http.MethodGet, "/v2/health/ready", "")
					ready = err == nil && status == http.StatusOK
				}
			}
			_ = cmd.Process.Signal(syscall.SIGTERM) // one that was too slow has ended
			<-ended
			if !strings.Contains(log.String(), c.log) {
				t.Errorf("%q was expected in\n%s", c.log, log.String())
			}
		})
	}
}
