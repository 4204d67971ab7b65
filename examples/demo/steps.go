package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

func (d *demo) startHub(ctx context.Context) error {
	address, err := boot.FreeAddress()
	if err != nil {
		return err
	}
	mqtt, err := boot.FreeAddress()
	if err != nil {
		return err
	}
	d.listen = address
	d.hub = d.program("atelier-hub", "hub.log", "--data", filepath.Join(d.dir, "hub"), "--listen", address, "--mqtt", mqtt)
	if err := d.start(d.hub); err != nil {
		return err
	}
	line, err := d.hub.Says(ctx, "atelier login ")
	if err != nil {
		return errors.Join(errNoLogin, err)
	}
	if _, err := d.hub.Says(ctx, "ready"); err != nil {
		return err
	}
	if err := d.atelier(ctx, strings.Fields(line)[1:]...); err != nil {
		return err
	}
	return d.atelier(ctx, "workspace", "create", "demo", "--description", "the main job, end to end")
}

func (d *demo) register(ctx context.Context) error {
	library, err := filepath.Glob(filepath.Join(d.root, ".cache/onnxruntime/libonnxruntime.so*"))
	if err != nil || len(library) != 1 {
		return fmt.Errorf("expected ONNX Runtime's library in .cache/onnxruntime, found %v", library)
	}
	version, err := os.ReadFile(filepath.Join(d.root, ".cache/onnxruntime/VERSION"))
	if err != nil {
		return err
	}
	if err := d.atelier(ctx, "runtime", "register", "onnxruntime", strings.TrimSpace(string(version)), library[0], "--needs-glibc", "2.28"); err != nil {
		return err
	}
	if err := d.atelier(ctx, "model", "register", "digits", filepath.Join(d.root, "examples/digits/digits-v1.onnx"),
		"--description", "one linear layer", "--tag", "data=uci-digits"); err != nil {
		return err
	}
	return d.atelier(ctx, "model", "register", "silero", filepath.Join(d.root, ".cache/models/silero-vad.onnx"),
		"--description", "detects speech, version 6")
}

func (d *demo) join(ctx context.Context) error {
	out, err := d.capture(ctx, "device", "token", "--label", "site=demo", "--uses", "2", "-o", "json")
	if err != nil {
		return err
	}
	var token struct{ Command string }
	if err := json.Unmarshal(out, &token); err != nil {
		return err
	}
	join := strings.Fields(token.Command)
	for _, name := range []string{"demo-1", "demo-2"} {
		dev := &device{name: name, dir: filepath.Join(d.dir, name)}
		if dev.gateway, err = boot.FreeAddress(); err != nil {
			return err
		}
		if err := os.MkdirAll(dev.dir, 0o755); err != nil {
			return err
		}
		config := filepath.Join(dev.dir, "agent.toml")
		settings := fmt.Sprintf("[paths]\nstate = %q\nrun = %q\n\n[gateway]\nlisten = %q\n\n[telemetry]\ninterval = \"1s\"\n",
			filepath.Join(dev.dir, "state"), filepath.Join(dev.dir, "run"), dev.gateway)
		if err := os.WriteFile(config, []byte(settings), 0o644); err != nil {
			return err
		}
		args := append(append([]string{}, join[1:]...), "--name", name, "--config", config)
		if _, err := d.command(ctx, all, "atelier-agent", args...); err != nil {
			return err
		}
		dev.agent = d.program("atelier-agent", name+"/agent.log", "run", "--config", config)
		if err := d.start(dev.agent); err != nil {
			return err
		}
		d.agents = append(d.agents, dev)
	}
	err = boot.Eventually(ctx, 30*time.Second, func() error {
		devices, err := d.devices(ctx)
		if err != nil {
			return err
		}
		for name, connected := range devices {
			if !connected {
				return fmt.Errorf("%s is not connected", name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.atelier(ctx, "device", "list")
}

// devices says for each device whether it is connected, without showing the question.
func (d *demo) devices(ctx context.Context) (map[string]bool, error) {
	out, err := d.quietly(ctx, "device", "list", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list []struct {
		Name      string
		Connected bool
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, err
	}
	devices := map[string]bool{}
	for _, one := range list {
		devices[one.Name] = one.Connected
	}
	return devices, nil
}

func (d *demo) deploy(ctx context.Context) error {
	if err := d.atelier(ctx, "deploy", "digits:1", "--to", "site=demo"); err != nil {
		return err
	}
	if err := d.atelier(ctx, "deploy", "silero:1", "--device", "demo-2"); err != nil {
		return err
	}
	return d.atelier(ctx, "status")
}

func (d *demo) ask(ctx context.Context) error {
	if err := d.atelier(ctx, "endpoint", "list"); err != nil {
		return err
	}
	digits, err := d.endpoint(ctx, "digits")
	if err != nil {
		return err
	}
	if err := d.accuracy(ctx, digits); err != nil {
		return err
	}
	silero, err := d.endpoint(ctx, "silero")
	if err != nil {
		return err
	}
	return d.speech(ctx, silero)
}

func (d *demo) upgrade(ctx context.Context) error {
	if err := d.atelier(ctx, "model", "register", "digits", filepath.Join(d.root, "examples/digits/digits-v2.onnx"),
		"--description", "64-32-10 with ReLU"); err != nil {
		return err
	}
	digits, err := d.endpoint(ctx, "digits")
	if err != nil {
		return err
	}
	load, err := d.startLoad(digits)
	if err != nil {
		return err
	}
	deployErr := d.atelier(ctx, "deploy", "digits:2")
	result := load.stop()
	if deployErr != nil {
		return deployErr
	}
	fmt.Printf("\n  requests sent %d, answered %d, failed %d; by version: %s\n", result.sent, result.answered, result.failed, result.versions())
	if result.failed > 0 {
		return fmt.Errorf("%d requests failed, the first with: %w", result.failed, result.first)
	}
	if len(result.byVersion) < 2 {
		return fmt.Errorf("the load did not see both versions: %s", result.versions())
	}
	fmt.Println()
	return d.accuracy(ctx, digits)
}

func (d *demo) hubAway(ctx context.Context) error {
	digits, err := d.endpoint(ctx, "digits")
	if err != nil {
		return err
	}
	if err := d.stop(d.hub, syscall.SIGTERM); err != nil {
		return err
	}
	left := time.Now()
	if err := d.accuracy(ctx, digits); err != nil {
		return err
	}
	// A few telemetry intervals go by without the hub.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(4 * time.Second):
	}
	if err := d.start(d.hub); err != nil {
		return err
	}
	back := time.Now()
	away := int(back.Sub(left).Seconds())
	fmt.Printf("\n  The hub was away for %d s. How often each device measured meanwhile, once a second:\n\n", away)
	query := fmt.Sprintf("sum by (device) (count_over_time(system_uptime_seconds[%ds] @ %d))", away, back.Unix())
	err = boot.Eventually(ctx, 60*time.Second, func() error {
		out, err := d.quietly(ctx, "telemetry", "query", query, "-o", "json")
		if err != nil {
			return err
		}
		var answer struct {
			Result []struct{ Value [2]any } // a time, and the count as a string
		}
		if err := json.Unmarshal(out, &answer); err != nil {
			return err
		}
		complete := 0
		for _, r := range answer.Result {
			// One may be from just before the hub left.
			if n, err := strconv.Atoi(fmt.Sprint(r.Value[1])); err == nil && n > 1 {
				complete++
			}
		}
		if complete < len(d.agents) {
			return fmt.Errorf("%d of %d devices have handed in their telemetry", complete, len(d.agents))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := d.atelier(ctx, "telemetry", "query", query); err != nil {
		return err
	}
	return d.atelier(ctx, "telemetry", "query", "sum by (endpoint, version, device) (atelier_endpoint_requests_total)")
}

func (d *demo) why(ctx context.Context) error {
	last := d.agents[len(d.agents)-1]
	if err := d.stop(last.agent, syscall.SIGKILL); err != nil {
		return err
	}
	silero, err := d.endpoint(ctx, "silero")
	if err != nil {
		return err
	}
	if err := d.speech(ctx, silero); err != nil {
		return err
	}
	err = boot.Eventually(ctx, 60*time.Second, func() error {
		devices, err := d.devices(ctx)
		if err == nil && devices[last.name] {
			err = fmt.Errorf("%s still counts as connected", last.name)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := d.atelier(ctx, "why", last.name); err != nil {
		return err
	}
	fmt.Println()
	if err := d.start(last.agent); err != nil {
		return err
	}
	err = boot.Eventually(ctx, 30*time.Second, func() error {
		devices, err := d.devices(ctx)
		if err == nil && !devices[last.name] {
			err = fmt.Errorf("%s is not back", last.name)
		}
		return err
	})
	if err != nil {
		return err
	}
	return d.atelier(ctx, "why", last.name)
}
