package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// world is a hub with its devices and a command line that is logged in.
type world struct {
	t      testing.TB
	dir    string
	hub    program
	listen string // address of the REST API
	mqtt   string // address of the embedded broker
	// advertised is where devices find the REST API, if that is elsewhere; the command
	// line goes to listen all the same.
	advertised string
	login      string // the command that the hub printed at its first start
	env        []string
	programs   string          // the directory of the hub's program; bin where ""
	joined     func(id string) // called when a device has joined and before it connects; may be nil
}

// device is one device of a world.
type device struct {
	t        testing.TB
	name     string
	dir      string
	config   string
	gateway  string
	programs string // the directory of the programs that it runs
	agent    program
}

// newWorld boots a hub and logs in. Further arguments go to the hub.
func newWorld(t testing.TB, hubArgs ...string) *world {
	t.Helper()
	return newWorldOf(t, bin, hubArgs...)
}

// newWorldOf does so with the hub's program in a directory.
func newWorldOf(t testing.TB, programs string, hubArgs ...string) *world {
	t.Helper()
	w := &world{t: t, dir: shortDir(t), programs: programs}
	w.boot(hubArgs...)
	return w
}

func (w *world) boot(hubArgs ...string) {
	t := w.t
	t.Helper()
	for _, address := range []*string{&w.listen, &w.mqtt} {
		if *address == "" {
			*address = freeAddress(t)
		}
	}
	w.env = []string{"ATELIER_CONFIG=" + filepath.Join(w.dir, "atelier.toml")}
	w.useHub(cmp.Or(w.programs, bin), append([]string{"--data", filepath.Join(w.dir, "hub"), "--listen", w.listen, "--mqtt", w.mqtt}, hubArgs...))
	t.Cleanup(func() {
		w.hub.signal(t, syscall.SIGTERM)
		w.hub.check(t)
		if err := boot.EndAll(context.WithoutCancel(t.Context()), w.dir); err != nil {
			t.Error(err)
		}
	})
	w.hub.start(t)
	w.login = w.hub.says(t, "atelier login ")
	if w.advertised != "" {
		w.login = strings.Replace(w.login, w.advertised, w.listen, 1)
	}
	w.hub.says(t, "ready")
	w.atelier(strings.Fields(w.login)[1:]...)
}

// useHub lets the hub be the program in dir, from its next start on.
func (w *world) useHub(dir string, args []string) {
	w.hub = program{&boot.Program{Path: filepath.Join(dir, "atelier-hub"), Args: args, Log: filepath.Join(w.dir, "hub.log")}}
}

// startHub starts the hub again and waits until it listens.
func (w *world) startHub() {
	w.t.Helper()
	w.hub.start(w.t)
	eventually(w.t, 60*time.Second, func() error {
		c, err := net.Dial("tcp", w.listen)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// atelier runs the command line, which must succeed, and returns its output.
func (w *world) atelier(args ...string) string {
	w.t.Helper()
	out, errOut, err := run(w.t.Context(), w.env, filepath.Join(bin, "atelier"), args...)
	if err != nil {
		w.t.Fatalf("atelier %s: %v\n%s%s", strings.Join(args, " "), err, out, errOut)
	}
	return out
}

// fails runs the command line, which must fail with the exit code, and returns
// what it says on standard error.
func (w *world) fails(code int, args ...string) string {
	w.t.Helper()
	out, errOut, err := run(w.t.Context(), w.env, filepath.Join(bin, "atelier"), args...)
	if got := exitCode(err); got != code {
		w.t.Fatalf("atelier %s: exit code %d, expected was %d\n%s%s", strings.Join(args, " "), got, code, out, errOut)
	}
	return errOut
}

func exitCode(err error) int {
	type coder interface{ ExitCode() int }
	if c, ok := err.(coder); ok {
		return c.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// asked runs the command line with -o json and decodes its answer into v.
func (w *world) asked(v any, args ...string) {
	w.t.Helper()
	out := w.atelier(append(args, "-o", "json", "-q")...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		w.t.Fatalf("atelier %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// joinCommand makes a join token and returns the arguments of the command that
// a device runs.
func (w *world) joinCommand(args ...string) []string {
	w.t.Helper()
	var token struct{ Command string }
	w.asked(&token, append([]string{"device", "token"}, args...)...)
	return strings.Fields(token.Command)[1:]
}

// prepare makes a device's directory and configuration.
func (w *world) prepare(name string) *device {
	w.t.Helper()
	d := &device{t: w.t, name: name, dir: filepath.Join(w.dir, name), gateway: freeAddress(w.t)}
	d.config = filepath.Join(d.dir, "agent.toml")
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	d.usePrograms(bin)
	return d
}

// usePrograms lets the device run the programs in dir, from its next start on.
func (d *device) usePrograms(dir string) {
	d.t.Helper()
	d.programs = dir
	d.configure(dir, d.gateway)
	d.agent = program{&boot.Program{
		Path: filepath.Join(dir, "atelier-agent"), Args: []string{"run", "--config", d.config}, Log: filepath.Join(d.dir, "agent.log"),
	}}
}

// configure writes the device's configuration, with the directory of programs and
// the gateway's address.
func (d *device) configure(programs, gateway string) {
	d.t.Helper()
	text := fmt.Sprintf("[paths]\nstate = %q\nrun = %q\nprograms = %q\n[gateway]\nlisten = %q\n[telemetry]\ninterval = \"1s\"\n[disk]\nballast_bytes = 4096\n",
		d.state(), filepath.Join(d.dir, "run"), programs, gateway)
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) state() string { return filepath.Join(d.dir, "state") }

// join makes a device, joins it with the labels and starts its agent.
func (w *world) join(name string, labels ...string) *device {
	w.t.Helper()
	d := w.prepare(name)
	var args []string
	for _, l := range labels {
		args = append(args, "--label", l)
	}
	w.agentJoins(d, w.joinCommand(args...))
	w.startAgent(d)
	w.connected(d)
	return d
}

func (w *world) agentJoins(d *device, join []string) {
	w.t.Helper()
	args := append(append([]string{}, join...), "--name", d.name, "--config", d.config)
	if out, errOut, err := run(w.t.Context(), nil, d.agent.Path, args...); err != nil {
		w.t.Fatalf("atelier-agent %s: %v\n%s%s", strings.Join(args, " "), err, out, errOut)
	}
	if w.joined != nil {
		var shown struct{ ID string }
		w.asked(&shown, "device", "show", d.name)
		w.joined(shown.ID)
	}
}

func (w *world) startAgent(d *device) {
	w.t.Helper()
	d.agent.start(w.t)
	w.t.Cleanup(func() {
		d.agent.signal(w.t, syscall.SIGTERM)
		d.agent.check(w.t)
	})
}

// connected waits until the hub says that the device is connected.
func (w *world) connected(d *device) {
	w.t.Helper()
	eventually(w.t, 60*time.Second, func() error {
		var shown struct{ Connected bool }
		w.asked(&shown, "device", "show", d.name)
		if !shown.Connected {
			return fmt.Errorf("%s is not connected", d.name)
		}
		return nil
	})
}

// onnxRuntime is the library that `make runtime` fetched.
func onnxRuntime(t testing.TB) (library, version string) {
	t.Helper()
	dir := filepath.Join(root, ".cache", "onnxruntime")
	found, err := filepath.Glob(filepath.Join(dir, "libonnxruntime.so*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("ONNX Runtime's library is not in %s; run 'make runtime'", dir)
	}
	v, err := os.ReadFile(filepath.Join(dir, "VERSION"))
	if err != nil {
		t.Fatal(err)
	}
	return found[0], strings.TrimSpace(string(v))
}

// registerRuntime gives the hub ONNX Runtime.
func (w *world) registerRuntime() {
	w.t.Helper()
	library, version := onnxRuntime(w.t)
	w.atelier("runtime", "register", "onnxruntime", version, library, "--needs-glibc", "2.28")
}

// digits is the path of a version of the digits classifier.
func digits(version int) string {
	return filepath.Join(root, "examples", "digits", fmt.Sprintf("digits-v%d.onnx", version))
}
