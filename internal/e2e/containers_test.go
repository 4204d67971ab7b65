package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/boot"
	"github.com/atelier-edge/atelier/internal/containerdtest"
)

// app builds the project's test application as an image, with a file that says its version.
func app(t testing.TB, version string) containerdtest.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./internal/containerdtest/app")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	base, err := containerdtest.Pack(true, containerdtest.File("app", program))
	if err != nil {
		t.Fatal(err)
	}
	code, err := containerdtest.Pack(false, containerdtest.File("version", []byte(version)))
	if err != nil {
		t.Fatal(err)
	}
	img, err := containerdtest.Build("", containerdtest.Config{Entrypoint: []string{"/app"}, Env: []string{"COLOUR=blue"}}, base, code)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// push pushes an image with crane.
func (w *world) push(t testing.TB, img containerdtest.Image, name string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, ".cache", "bin", "crane-*"))
	if err != nil || len(found) == 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("crane is missing: scripts/install-test-tools builds it")
		}
		t.Skip("crane is missing: scripts/install-test-tools builds it")
	}
	layout := t.TempDir()
	if err := img.WriteLayout(layout, "latest"); err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	env := []string{"HOME=" + home, "DOCKER_CONFIG=" + home, "SSL_CERT_FILE=" + w.authority(t)}
	fields := strings.Fields(w.login)
	for _, args := range [][]string{
		{"auth", "login", w.listen, "-u", "anybody", "-p", fields[len(fields)-1]},
		{"push", layout, w.listen + "/" + name},
	} {
		cmd := exec.CommandContext(t.Context(), found[0], args...)
		cmd.Env = env
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("crane %s: %v\n%s", args[0], err, out)
		}
	}
}

// useContainerd lets the device run containers by d.
func (d *device) useContainerd(daemon *containerdtest.Daemon) {
	d.t.Helper()
	d.t.Cleanup(func() {
		if err := containerdtest.Unmount(d.dir); err != nil {
			d.t.Error(err)
		}
	})
	f, err := os.OpenFile(d.config, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprintf(f, "[containers]\naddress = %q\nnamespace = %q\n", daemon.Address, d.name)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// get asks an endpoint of the device for a path and returns the answer's text.
func (d *device) get(ctx context.Context, e endpoint, path string) (string, *http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.gateway+"/"+e.name+path, nil)
	if err != nil {
		return "", nil, err
	}
	if e.key != "" {
		req.Header.Set("X-Api-Key", e.key)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, b)
	}
	return string(b), res, err
}

// TestContainers pushes an image, deploys it, and asks its endpoint: through new versions, through
// the end of agent, driver and containerd, and after a reboot without the hub.
func TestContainers(t *testing.T) {
	t.Parallel()
	daemon := containerdtest.New(t)
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.push(t, app(t, "one"), "plant/press/cell:1")
	w.push(t, app(t, "two"), "plant/press/cell:2")

	d := w.prepare("press")
	d.useContainerd(daemon)
	w.agentJoins(d, w.joinCommand())
	w.startAgent(d)
	w.connected(d)

	w.fails(3, "deploy", "--image", "press/cell:9", "--all")
	w.fails(2, "deploy", "press", "--image", "press/cell:1", "--all")
	// Nobody vouches for what was pushed until somebody signs it.
	if out := w.fails(4, "deploy", "--image", "press/cell:1", "--port", "8080", "--all"); !strings.Contains(out, "is not signed") {
		t.Errorf("an image that nobody signed is refused with\n%s", out)
	}
	w.atelier("image", "sign", "press/cell:1")
	w.atelier("image", "sign", "press/cell:2")
	w.atelier("deploy", "--image", "press/cell:1", "--port", "8080", "--env", "SIZE=7", "--probe", "http:/healthz", "--memory", "256MiB", "--cpus", "1.5", "--all")
	e := w.endpoint("cell")
	ask := func(path, want string) string {
		t.Helper()
		var got string
		eventually(t, time.Minute, func() (err error) {
			if got, _, err = d.get(t.Context(), e, path); err == nil && !strings.Contains(got, want) {
				err = fmt.Errorf("%s answered %q, expected was %q", path, got, want)
			}
			return err
		})
		return got
	}
	ask("/", "app one")
	if _, res, err := d.get(t.Context(), endpoint{name: "cell"}, "/"); res == nil || res.StatusCode != http.StatusUnauthorized {
		t.Errorf("without a key the endpoint answers %v", err)
	}
	env := ask("/env", "PORT=8080")
	for _, want := range []string{"COLOUR=blue", "SIZE=7", "ATELIER_DEPLOYMENT=cell"} {
		if !strings.Contains(env, want) {
			t.Errorf("%s is missing in the environment\n%s", want, env)
		}
	}
	// What the container must not have.
	ask("/write?file=/x", "read-only file system")
	ask("/write?file=/tmp/x", "<nil>")
	ask("/dial?to="+w.listen, "refused") // the device's loopback is another one
	ask("/dial?to=192.0.2.1:80", "unreachable")
	status := ask("/read?file=/proc/self/status", "CapEff:")
	for _, want := range []string{"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			t.Errorf("%q is missing in the process's status\n%s", want, status)
		}
	}
	_, res, err := d.get(t.Context(), e, "/")
	if err != nil {
		t.Fatal(err)
	}
	if out := w.atelier("endpoint", "trace", res.Header.Get(atelier.HeaderRequestID)); !strings.Contains(out, "press/cell:1") {
		t.Errorf("the trace says\n%s", out)
	}
	if out := w.atelier("device", "logs", "press", "cell"); !strings.Contains(out, "listens on 127.0.0.1:8080") {
		t.Errorf("the log is\n%s", out)
	}

	// Another version takes the traffic once it is well, and what the settings say stays.
	w.atelier("deploy", "--image", "press/cell:2")
	ask("/", "app two")
	ask("/env", "SIZE=7")

	// A tag that is gone changes nothing of what is deployed.
	w.atelier("image", "delete", "press/cell")

	pid := func() string {
		return strings.TrimSpace(ask("/read?file=/proc/self/cgroup", "")) + task(t, daemon, d.name)
	}
	before := pid()
	d.agent.signal(t, syscall.SIGKILL)
	ask("/", "app two")
	driver := driverOf(t, d)
	if err := syscall.Kill(driver, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	daemon.Kill()
	ask("/", "app two")
	w.startAgent(d)
	ask("/", "app two")
	if err := daemon.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, func() error { return servingOn(w, "cell") })
	if after := pid(); after != before {
		t.Errorf("the container was replaced: %s, before %s", after, before)
	}

	// A reboot while the hub is away.
	w.hub.signal(t, syscall.SIGKILL)
	d.agent.signal(t, syscall.SIGKILL)
	if err := boot.CutAll(t.Context(), d.dir); err != nil {
		t.Fatal(err)
	}
	if err := containerdtest.Unmount(d.dir); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Reboot(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(d.dir, "run")); err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.startAgent(d)
	ask("/", "app two")

	w.startHub()
	w.connected(d)
	w.atelier("deployment", "delete", "cell")
	eventually(t, time.Minute, func() error {
		for _, list := range [][]string{{"containers", "ls", "-q"}, {"tasks", "ls", "-q"}, {"leases", "ls", "-q"}, {"snapshots", "ls"}} {
			out, err := daemon.Ctr(t.Context(), append([]string{"-n", d.name}, list...)...)
			if err != nil {
				return err
			}
			if lines := strings.Split(strings.TrimSpace(out), "\n"); len(lines) > 1 || list[0] != "snapshots" && lines[0] != "" {
				return fmt.Errorf("containerd still has %s:\n%s", list[0], out)
			}
		}
		return nil
	})
}

// servingOn returns nil where the deployment serves on every device.
func servingOn(w *world, deployment string) error {
	var shown struct {
		Devices []atelier.DeviceStatus `json:"device_statuses"`
	}
	w.asked(&shown, "deployment", "show", deployment)
	for _, s := range shown.Devices {
		if s.State() != atelier.Serving || s.Why().Reason() != atelier.ReasonAsDesired {
			return fmt.Errorf("%s is %s: %s", s.DeviceName, s.State(), s.Why().Message())
		}
	}
	return nil
}

// task returns the process id of the one task in a namespace.
func task(t testing.TB, daemon *containerdtest.Daemon, namespace string) string {
	t.Helper()
	out, err := daemon.Ctr(t.Context(), "-n", namespace, "tasks", "ls")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if err != nil || len(lines) != 2 {
		t.Fatalf("the tasks are %v\n%s", err, out)
	}
	return strings.Fields(lines[1])[1]
}

// driverOf returns the process id of the device's driver.
func driverOf(t testing.TB, d *device) (pid int) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		programs, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return err
		}
		for _, path := range programs {
			line, _ := os.ReadFile(path) // "" for one that has just ended
			if words := strings.Split(string(line), "\x00"); strings.HasSuffix(words[0], "atelier-driver-containerd") && strings.Contains(string(line), d.dir+"/") {
				_, err := fmt.Sscanf(path, "/proc/%d/", &pid)
				return err
			}
		}
		return errors.New("the device has no driver")
	})
	return pid
}
