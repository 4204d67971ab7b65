package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// talk is a device whose modules talk to each other. Mosquitto's clients are the modules'
// programs: they have nothing but what a module's environment says.
type talk struct {
	*world
	d      *device
	listen string
}

func newTalk(t *testing.T) *talk {
	for _, tool := range []string{"mosquitto_pub", "mosquitto_sub"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed: %v", tool, err)
			}
			t.Skipf("%s is not installed", tool)
		}
	}
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(1))
	k := &talk{world: w, d: w.prepare("press"), listen: freeAddress(t)}
	text, err := os.ReadFile(k.d.config)
	if err == nil {
		err = os.WriteFile(k.d.config, fmt.Appendf(text, "[modules]\nlisten = %q\n", k.listen), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.agentJoins(k.d, w.joinCommand("--label", "site=a"))
	w.startAgent(k.d)
	w.connected(k.d)
	return k
}

// as returns the arguments by which a client is a module.
func (k *talk) as(module string, args ...string) []string {
	k.t.Helper()
	password, err := os.ReadFile(filepath.Join(k.d.state(), "passwords", module))
	if err != nil {
		k.t.Fatal(err)
	}
	host, port, _ := strings.Cut(k.listen, ":")
	return append([]string{"-h", host, "-p", port, "-u", module, "-P", string(password)}, args...)
}

// put publishes messages of QoS 1, one a line, and returns when all are acknowledged.
func (k *talk) put(module, output string, lines ...string) {
	k.t.Helper()
	eventually(k.t, patience, func() error { // the router may just be coming up
		cmd := exec.Command("mosquitto_pub", k.as(module, "-q", "1", "-t", "modules/"+module+"/outputs/"+output, "-l")...)
		cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			return fmt.Errorf("mosquitto_pub: %w: %s", err, out)
		}
		return nil
	})
}

// take returns the next messages that a module gets on a topic of its own.
func (k *talk) take(module, topic string, count int, args ...string) []string {
	k.t.Helper()
	var lines []string
	eventually(k.t, patience, func() error {
		cmd := exec.Command("mosquitto_sub", k.as(module, append(args, "-q", "1", "-t", "modules/"+module+"/"+topic, "-C", fmt.Sprint(count), "-W", "30")...)...)
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("mosquitto_sub: %w: %s", err, out)
		}
		lines = strings.Split(strings.TrimSpace(string(out)), "\n")
		return nil
	})
	return lines
}

// router returns what the agent says of the router.
func (k *talk) router() (r struct {
	PID    int
	Queues []struct{ Pending int }
}) {
	k.t.Helper()
	out, errOut, err := run(k.t.Context(), nil, filepath.Join(bin, "atelier-agent"), "status", "--config", k.d.config, "-o", "json")
	if err != nil {
		k.t.Fatalf("%v: %s", err, errOut)
	}
	var s struct{ Router json.RawMessage }
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		k.t.Fatal(err)
	}
	if s.Router != nil {
		if err := json.Unmarshal(s.Router, &r); err != nil {
			k.t.Fatal(err)
		}
	}
	return r
}

// said are the texts of a module's messages in the workspace.
func (k *talk) said(module string) (texts []string) {
	k.t.Helper()
	var all []struct {
		Module, Output, Text string
		JSON                 json.RawMessage
	}
	k.asked(&all, "message", "list", "press", "--module", module)
	for _, m := range all {
		texts = append(texts, m.Output+": "+m.Text+string(m.JSON))
	}
	return texts
}

// TestModulesTalk lets a camera's pictures go through a model to a counter and what that
// says into the workspace, through kills of every program.
func TestModulesTalk(t *testing.T) {
	t.Parallel()
	k := newTalk(t)
	for _, module := range []string{"counter", "digits"} {
		k.atelier("deploy", "digits", "--name", module, "--to", "site=a")
	}
	k.atelier("deploy", "digits", "--name", "camera", "--to", "site=a",
		"--route", "FROM /messages/modules/camera/outputs/frames INTO /modules/digits/inputs/score",
		"--route", "FROM /modules/digits/outputs/score INTO BrokeredEndpoint(\"/modules/counter/inputs/digits\")",
		"--route", "FROM /messages/modules/counter/* INTO $upstream")
	if out := k.atelier("deployment", "show", "camera"); !strings.Contains(out, "FROM /modules/counter/outputs/* INTO upstream, for 2h0m0s") {
		t.Errorf("the deployment shows: %s", out)
	}

	zeros := `{"data": [[` + strings.Repeat("0, ", 63) + `0]]}`
	k.put("camera", "frames", zeros, zeros)
	for _, answer := range k.take("counter", "inputs/+", 2) { // they waited for the counter's program
		if !strings.Contains(answer, "digit") {
			t.Errorf("the counter got %.200s", answer)
		}
	}

	// While the hub is away, what is acknowledged is kept, whatever is killed then.
	numbers := func(from, to int) (lines []string) {
		for i := from; i < to; i++ {
			lines = append(lines, fmt.Sprint("number ", i))
		}
		return lines
	}
	k.put("counter", "counts", numbers(0, 10)...)
	k.hub.signal(t, syscall.SIGKILL)
	k.put("counter", "counts", numbers(10, 30)...)
	if err := syscall.Kill(k.router().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	k.put("counter", "counts", numbers(30, 40)...) // the agent has started it again
	k.d.agent.signal(t, syscall.SIGKILL)
	k.put("counter", "counts", numbers(40, 50)...) // and it needs no agent
	k.d.agent.start(t)
	k.startHub()
	eventually(t, patience, func() error {
		next := 0
		for _, text := range k.said("counter") {
			var n int
			if _, err := fmt.Sscanf(text, "counts: number %d", &n); err != nil {
				return err
			}
			if n > next {
				return fmt.Errorf("number %d came before %d", n, next)
			}
			next = max(next, n+1)
		}
		if next != 50 {
			return fmt.Errorf("%d of 50 have come", next)
		}
		return nil
	})

	// Twins: what is wanted reaches the module, and what it reports the workspace.
	k.connected(k.d)
	k.atelier("twin", "set", "counter", "interval=5", "mode=fast", "camera.gain=1.5")
	k.atelier("twin", "set", "press/counter", "mode=null", "interval=6")
	eventually(t, patience, func() error {
		if got := k.take("counter", "twin/desired", 1)[0]; got != `{"$version":2,"camera":{"gain":1.5},"interval":6,"mode":"fast"}` {
			return fmt.Errorf("the module got %s", got)
		}
		return nil
	})
	eventually(t, patience, func() error {
		out, err := exec.Command("mosquitto_pub", k.as("counter", "-q", "1", "-t", "modules/counter/twin/reported", "-m", `{"interval":6,"counted":{"ones":3}}`)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	eventually(t, patience, func() error {
		var twin struct {
			Version  int
			Reported struct {
				Properties struct {
					Interval int
					Counted  struct{ Ones int }
				}
			}
		}
		k.asked(&twin, "twin", "show", "press/counter")
		if p := twin.Reported.Properties; twin.Version != 2 || p.Interval != 6 || p.Counted.Ones != 3 {
			return fmt.Errorf("the twin is %+v", twin)
		}
		return nil
	})

	// A module may not speak for another, whatever its program tries.
	if out, err := exec.Command("mosquitto_pub", k.as("camera", "-V", "5", "-q", "1", "-t", "modules/counter/outputs/counts", "-m", "forged")...).CombinedOutput(); !strings.Contains(string(out), "Not authorized") {
		t.Errorf("a forged message was answered %v: %s", err, out)
	}
	// mosquitto_sub ends with 0 also where all it asked for is denied.
	if out, _ := exec.Command("mosquitto_sub", k.as("camera", "-q", "1", "-t", "modules/counter/#", "-W", "5")...).CombinedOutput(); !strings.Contains(string(out), "denied") {
		t.Errorf("a foreign subscription was answered: %s", out)
	}
	if out := k.fails(2, "deploy", "digits", "--name", "camera", "--route", "FROM /modules/camera/outputs/x WHERE a = 1 INTO upstream"); !strings.Contains(out, "a condition at character 32") {
		t.Errorf("a condition is refused with: %s", out)
	}

	// Without routes and twins there is no router.
	if pid := k.router().PID; pid == 0 {
		t.Error("no router runs")
	}
	k.atelier("deployment", "delete", "counter")
	k.atelier("deploy", "digits", "--name", "camera", "--route", "")
	eventually(t, patience, func() error {
		if r := k.router(); r.PID != 0 {
			return fmt.Errorf("a router runs: %+v", r)
		}
		return nil
	})
	began := time.Now()
	if out := k.atelier("deployment", "show", "camera"); strings.Contains(out, "Routes:") {
		t.Errorf("after %v the deployment shows: %s", time.Since(began), out)
	}
}
