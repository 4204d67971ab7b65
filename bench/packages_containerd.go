package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
	"github.com/atelier-edge/atelier/internal/containerdtest"
)

// containers measures how fast a container is there.
var containers = benchmark{
	name: "containers", about: "containers on a device, against containerd's own command line",
	parts: []part{{name: "start", measure: containerStarts}},
}

const (
	containerRuns  = 12
	containerRatio = 1.3
	// ballast makes the image as large as a small one is.
	ballast = 32 << 20
)

// containerStarts brings a deployment to the other of two images, again and again, and waits
// until its endpoint answers with it; the content of both is on the device. In turn with it
// 'ctr run' starts the same image, imported and unpacked before, on the device's network, and is
// asked until it answers.
func containerStarts(ctx context.Context, w *world) (figures []Figure, err error) {
	if why := containerdtest.Missing(); why != "" {
		return nil, errors.New(why)
	}
	if err := w.boot(ctx); err != nil {
		return nil, err
	}
	daemon := &containerdtest.Daemon{Dir: filepath.Join(w.dir, "ctrd"), Address: filepath.Join(w.dir, "ctrd", "c.sock")}
	if err := os.MkdirAll(daemon.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := daemon.Start(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, containerdtest.Unmount(w.dir), daemon.Remove()) }()
	for version := 1; version <= 2; version++ {
		if err := w.bringImage(ctx, daemon, version); err != nil {
			return nil, err
		}
	}
	d, err := w.admit(ctx, "press")
	if err != nil {
		return nil, err
	}
	config, err := os.OpenFile(filepath.Join(d.dir, "agent.toml"), os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = fmt.Fprintf(config, "\n[containers]\naddress = %q\n", daemon.Address)
		err = errors.Join(err, config.Close())
	}
	if err == nil {
		err = w.start(ctx, d)
	}
	if err == nil {
		err = w.atelier(ctx, "image", "sign", "app:1")
	}
	if err == nil {
		err = w.atelier(ctx, "deploy", "--image", "app:1", "--port", "8080", "--all", "-q")
	}
	if err != nil {
		return nil, err
	}
	key, err := w.key(ctx, "app")
	if err != nil {
		return nil, err
	}
	var took, alone []float64
	for i := range containerRuns + 2 { // the first two bring the content and warm up
		version := 2 - i%2
		ms, err := w.switchImage(ctx, "http://"+d.gateway+"/app/", key, version)
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, between); err != nil {
			return nil, err
		}
		ctr, err := runImage(ctx, daemon, version)
		if err != nil {
			return nil, err
		}
		if i >= 2 {
			took, alone = append(took, ms), append(alone, ctr)
		}
	}
	const peer = "ctr run of the same image, unpacked, until it answers, p50"
	return []Figure{
		lower("from deploy to a healthy container, content on the device, p50", "ms", took).beside(peer, alone),
		lower("the same, against ctr run", "times", ratios(took, alone)).want(containerRatio).beside(peer+", ms", alone),
	}, nil
}

// bringImage builds a version of the test application as an image, and brings it into the
// workspace's registry and into a namespace of containerd's.
func (w *world) bringImage(ctx context.Context, daemon *containerdtest.Daemon, version int) error {
	program := filepath.Join(w.dir, "app")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./internal/containerdtest/app")
	build.Dir, build.Env = w.root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	code, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	base, err := containerdtest.Pack(true, containerdtest.File("app", code), containerdtest.File("ballast", make([]byte, ballast)))
	if err != nil {
		return err
	}
	told, err := containerdtest.Pack(false, containerdtest.File("version", fmt.Append(nil, version)))
	if err != nil {
		return err
	}
	img, err := containerdtest.Build("", containerdtest.Config{Entrypoint: []string{"/app"}}, base, told)
	if err != nil {
		return err
	}
	layout := filepath.Join(w.dir, fmt.Sprint("layout-", version))
	if err := img.WriteLayout(layout, imageInContainerd(version)); err != nil {
		return err
	}
	archive, err := os.Create(layout + ".tar")
	if err == nil {
		err = errors.Join(containerdtest.Tar(layout, archive), archive.Close())
	}
	if err != nil {
		return err
	}
	if out, err := daemon.Ctr(ctx, "-n", "bench", "images", "import", archive.Name()); err != nil {
		return fmt.Errorf("ctr images import: %w\n%s", err, out)
	}
	return w.crane(ctx, layout, fmt.Sprint("app:", version))
}

func imageInContainerd(version int) string { return fmt.Sprint("bench.example/app:", version) }

// crane pushes an OCI layout into the workspace's registry.
func (w *world) crane(ctx context.Context, layout, name string) error {
	found, err := filepath.Glob(filepath.Join(w.root, ".cache/bin/crane-*"))
	if err != nil || len(found) == 0 {
		return errors.New("crane is missing: scripts/install-test-tools builds it")
	}
	pem, err := w.authority()
	if err != nil {
		return err
	}
	ca := filepath.Join(w.dir, "ca.pem")
	if err := os.WriteFile(ca, pem, 0o600); err != nil {
		return err
	}
	host := w.listen
	for _, args := range [][]string{{"auth", "login", host, "-u", "bench", "-p", w.token}, {"push", layout, host + "/bench/" + name}} {
		cmd := exec.CommandContext(ctx, found[0], args...)
		cmd.Env = []string{"HOME=" + w.dir, "DOCKER_CONFIG=" + w.dir, "SSL_CERT_FILE=" + ca}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("crane %s: %w\n%s", args[0], err, out)
		}
	}
	return nil
}

// switchImage brings the deployment to a version of the image, and returns the milliseconds until
// the endpoint answers with it.
func (w *world) switchImage(ctx context.Context, url, key string, version int) (float64, error) {
	began := time.Now()
	if err := w.rest(ctx, http.MethodPatch, "/deployments/app", "application/json", fmt.Appendf(nil, `{"image":{"reference":"app:%d"}}`, version), nil); err != nil {
		return 0, err
	}
	return answersWith(ctx, began, url, key, version)
}

// runImage starts a version of the image by ctr, and returns the milliseconds until it answers.
func runImage(ctx context.Context, daemon *containerdtest.Daemon, version int) (ms float64, err error) {
	address, err := boot.FreeAddress()
	if err != nil {
		return 0, err
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0, err
	}
	const id = "alone"
	began := time.Now()
	if out, err := daemon.Ctr(ctx, "-n", "bench", "run", "-d", "--net-host", "--env", "PORT="+port, imageInContainerd(version), id); err != nil {
		return 0, fmt.Errorf("ctr run: %w\n%s", err, out)
	}
	ms, err = answersWith(ctx, began, "http://127.0.0.1:"+port+"/", "", version)
	for _, args := range [][]string{{"tasks", "kill", "-s", "SIGKILL", id}, {"tasks", "rm", "-f", id}, {"containers", "rm", id}} {
		if out, failed := daemon.Ctr(ctx, append([]string{"-n", "bench"}, args...)...); failed != nil && args[0] == "containers" {
			err = errors.Join(err, fmt.Errorf("ctr %s: %w\n%s", args[0], failed, out))
		}
	}
	return ms, err
}

// answersWith returns the milliseconds since began until url answers with the version.
func answersWith(ctx context.Context, began time.Time, url, key string, version int) (float64, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	for time.Since(began) < time.Minute {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return 0, err
		}
		if key != "" {
			req.Header.Set("X-Api-Key", key)
		}
		if res, err := client.Do(req); err == nil {
			b, err := io.ReadAll(res.Body)
			if err = errors.Join(err, res.Body.Close()); err == nil && strings.HasPrefix(string(b), fmt.Sprintf("app %d,", version)) {
				return float64(time.Since(began).Microseconds()) / 1e3, nil
			}
		}
		time.Sleep(time.Millisecond) // asking without a pause would take the processor from the start
	}
	return 0, fmt.Errorf("%s did not answer with version %d within a minute", url, version)
}
