package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// faultsOfDevices are what goes wrong on devices and in what is deployed to them,
// all below one hub.
func faultsOfDevices(t *testing.T) {
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.registerRuntime()
	w.atelier("model", "register", "digits", digits(1))
	press := w.join("press")

	t.Run("crashes", func(t *testing.T) { inject(t, []incident{crashes(w, press)}) }) // alone: the module comes back soon
	t.Run("modules", func(t *testing.T) { inject(t, moduleFaults(w, press)) })
	t.Run("machine", func(t *testing.T) { inject(t, machineFaults(w)) })
	t.Run("connection", func(t *testing.T) { inject(t, connectionFaults(w, press)) })
}

// deploys deploys a model to one device under a name.
func (w *world) deploys(model, name string, d *device, args ...string) {
	w.t.Helper()
	w.atelier(append([]string{"deploy", model, "--name", name, "--device", d.name, "--no-wait"}, args...)...)
}

// modules are the places that tell of a deployment on a device.
func (w *world) tells(d *device, deployment string) []place {
	return []place{w.why(d.name, "deployment "+deployment), d.status(deployment), d.agent.log()}
}

func moduleFaults(w *world, press *device) []incident {
	return []incident{
		{
			name: "a model that the runtime cannot load", where: "model file", reason: "InitFailed",
			says: []string{"cannot be loaded", "Gemx"}, remedy: "atelier device logs press broken",
			inject: func(t testing.TB) {
				b := bytes.Replace([]byte(read(t, digits(1))), []byte("Gemm"), []byte("Gemx"), 1)
				path := filepath.Join(t.TempDir(), "broken.onnx")
				write(t, path, "%s", b)
				w.atelier("model", "register", "broken", path)
				w.deploys("broken", "broken", press)
			},
			told: w.tells(press, "broken"),
		},
		{
			name: "a module over its memory limit", where: "deployment", reason: "OutOfMemory",
			says: []string{"limit of 4.0 MiB"}, remedy: "--name small --memory",
			inject: func(testing.TB) { w.deploys("digits", "small", press, "--memory", "4MiB") },
			told:   w.tells(press, "small"),
		},
		{
			name: "a kind of target that the device does not have", where: "deployment", reason: "UnsupportedFeature",
			says: []string{"press", `"container"`, "process"}, remedy: "--target",
			inject: func(testing.TB) { w.deploys("digits", "boxed", press, "--target", "container") },
			told:   []place{w.why("press", "deployment boxed")},
		},
		{
			name: "content that is damaged on the hub's disk", where: "a byte of the hub's content store", reason: "DigestMismatch",
			says: []string{"sha256:", "damaged"}, remedy: "register the model again",
			inject: func(t testing.TB) {
				path := variation(t, "damaged.onnx", "atelier-exampleX")
				w.atelier("model", "register", "damaged", path)
				flip(t, blobOf(t, filepath.Join(w.dir, "hub"), path))
				w.deploys("damaged", "damaged", press)
			},
			told: append(w.tells(press, "damaged"), w.hub.log()),
		},
		{
			name: "a desired state that fits no message", where: "deployment", reason: "StateTooLarge",
			says: []string{"901 files", "KiB"}, remedy: "fewer files",
			inject: func(t testing.TB) {
				dir := t.TempDir()
				write(t, filepath.Join(dir, "model.onnx"), "%s", read(t, digits(1)))
				for i := range 899 {
					write(t, filepath.Join(dir, fmt.Sprintf("one-of-many-files-beside-the-model-%03d.txt", i)), "the same")
				}
				w.atelier("model", "register", "manifold", dir, "--entry", "model.onnx")
				w.deploys("manifold", "manifold", press)
			},
			told: []place{w.why("press", "deployment manifold")},
		},
		{
			name: "a module that stops answering", where: "SIGSTOP to its process", reason: "ProbeFailed",
			says: []string{"did not answer 3 times"}, remedy: "atelier device logs press stuck",
			inject: func(t testing.TB) {
				w.deploys("digits", "stuck", press)
				w.signalModule(t, press, "stuck", syscall.SIGSTOP)
			},
			told: []place{press.agent.log()},
		},
		{
			name: "a wrong key of an endpoint", where: "request", reason: "unauthenticated",
			says: []string{"endpoint good"}, remedy: "atelier endpoint keys",
			inject: func(t testing.TB) {
				w.deploys("digits", "good", press)
				e := w.endpoint("good")
				eventually(t, patience, func() error { _, err := e.try(press, 1); return err })
			},
			told: []place{press.asks("good", "atk_wrong")},
		},
		{
			name: "an endpoint that the device does not have", where: "request", reason: "not_found",
			says: []string{`"nothing"`}, remedy: "atelier endpoint list",
			told: []place{press.asks("nothing", "atk_wrong")},
		},
		{
			name: "a configuration file with an error", where: "agent.toml", reason: "ConfigInvalid",
			says: []string{"telemetry.intervall", "line 2"}, remedy: "Remove the line",
			inject: func(t testing.TB) { write(t, w.join("misset").config, "[telemetry]\nintervall = \"5s\"\n") },
			told:   []place{w.why("misset", "condition Configured"), w.at("misset").agent.log()},
		},
	}
}

func crashes(w *world, press *device) incident {
	return incident{
		name: "a module that is killed again and again", where: "SIGKILL to its process", reason: "CrashLoop",
		says: []string{"5 failures in a row", `signal "killed"`}, remedy: "atelier device logs press dying",
		inject: func(t testing.TB) {
			w.deploys("digits", "dying", press)
			for range 5 {
				w.signalModule(t, press, "dying", syscall.SIGKILL)
			}
		},
		told: w.tells(press, "dying"),
	}
}

// variation is the digits classifier with another producer's name in it, and so
// with another digest.
func variation(t testing.TB, file, producer string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), file)
	write(t, path, "%s", strings.Replace(read(t, digits(1)), "atelier-examples", producer, 1))
	return path
}

// blobOf is where the content store below dir keeps the content of a file.
func blobOf(t testing.TB, dir, path string) string {
	t.Helper()
	sum := sha256.Sum256([]byte(read(t, path)))
	name := hex.EncodeToString(sum[:])
	found, err := filepath.Glob(filepath.Join(dir, "content", "blobs", "sha256", name[:2], name))
	if err != nil || len(found) != 1 {
		t.Fatalf("no blob %s below %s: %v", name, dir, err)
	}
	return found[0]
}

// flip changes a byte in the middle of a file.
func flip(t testing.TB, path string) {
	t.Helper()
	b := []byte(read(t, path))
	b[len(b)/2] ^= 1
	if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, b, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// signalModule waits until a deployment's module runs on a device, and sends its
// process a signal.
func (w *world) signalModule(t testing.TB, d *device, deployment string, sig syscall.Signal) {
	t.Helper()
	var shown struct{ ID string }
	w.asked(&shown, "deployment", "show", deployment)
	eventually(t, patience, func() error {
		held, err := filepath.Glob(filepath.Join(d.state(), "instances", "process", shown.ID+"-*", "status.json"))
		if err != nil || len(held) == 0 {
			return fmt.Errorf("no process of %s: %v", deployment, err)
		}
		var s struct {
			Phase string
			PID   int
		}
		if err := json.Unmarshal([]byte(read(t, held[0])), &s); err != nil || s.Phase != "running" {
			return fmt.Errorf("%s is %q: %v", deployment, s.Phase, err)
		}
		if _, err := w.endpoint(deployment).try(d, 1); err != nil {
			return err
		}
		return syscall.Kill(s.PID, sig)
	})
}

// asks is what a device's gateway answers to a request to an endpoint.
func (d *device) asks(endpoint, key string) place {
	return place{"the endpoint's answer", func() ([]word, error) {
		req, err := http.NewRequest(http.MethodGet, "http://"+d.gateway+"/"+endpoint+"/v2/models/digits", nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("X-Api-Key", key)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return nil, err
		}
		defer func() { _ = res.Body.Close() }()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			return nil, err
		}
		return problemWords(b)
	}}
}

// machineFaults are those of a device's machine: its disk, its programs, its
// libraries, its ports.
func machineFaults(w *world) []incident {
	return []incident{
		onFullDisk(w),
		{
			name: "the gateway's port is taken", where: "another program on the device", reason: "PortInUse",
			says: []string{"127.0.0.1:", "address already in use"}, remedy: "gateway.listen",
			inject: func(t testing.TB) {
				d := w.prepare("busy")
				l, err := net.Listen("tcp", d.gateway)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = l.Close() })
				w.agentJoins(d, w.joinCommand())
				w.startAgent(d)
				w.connected(d)
			},
			told: []place{w.why("busy", "condition Gateway"), w.at("busy").status("Gateway"), w.at("busy").agent.log()},
		},
		{
			name: "a desired state that cannot be saved", root: true, where: "the device's disk is full", reason: "StateNotDurable",
			says: []string{"desired.json", "no space left on device"}, remedy: "Free disk space",
			inject: func(t testing.TB) {
				d := w.prepare("brim")
				write(t, d.config, "%s", strings.Replace(read(t, d.config), "ballast_bytes = 4096", "ballast_bytes = 0", 1)) // it would save the day
				tmpfs(t, d.state(), "4m")
				w.agentJoins(d, w.joinCommand())
				w.startAgent(d)
				w.connected(d)
				fill(t, filepath.Join(d.state(), "filler"), 4<<20)
				w.deploys("digits", "brim", d)
			},
			told: []place{w.why("brim", "condition StateDurable"), w.why("brim", "desired state"), w.at("brim").status("StateDurable"), w.at("brim").agent.log()},
		},
		{
			name: "measurements that cannot be kept", root: true, where: "the device's disk is full", reason: "TelemetryLost",
			says: []string{"batches", "were given up", "no space left on device"}, remedy: "telemetry.spool_bytes",
			told: []place{w.why("brim", "condition Telemetry"), w.at("brim").status("Telemetry"), w.at("brim").agent.log()},
		},
		{
			name: "content that is damaged on the device's disk", where: "a byte of the device's content store", reason: "DigestMismatch",
			says: []string{"sha256:", "now has the digest"}, remedy: "Check the disk",
			inject: func(t testing.TB) {
				d := w.join("worn")
				w.deploys("digits", "worn", d)
				e := w.endpoint("worn")
				eventually(t, patience, func() error { _, err := e.try(d, 1); return err })
				d.agent.signal(t, syscall.SIGTERM)
				if _, errOut, err := d.runs("down"); err != nil {
					t.Fatalf("%v: %s", err, errOut)
				}
				flip(t, blobOf(t, d.state(), digits(1)))
				d.agent.start(t)
				eventually(t, patience, func() error { _, err := e.try(d, 1); return err }) // and it mends itself
			},
			told: []place{w.at("worn").agent.log()},
		},
		missing(w, "atelier-gateway", "GatewayDown", "condition Gateway", "Gateway"),
		missing(w, "atelier-shim", "StartFailed", "deployment digits", "digits"),
		missing(w, "atelier-serve", "StartFailed", "deployment digits", "digits"),
		{
			name: "a program for another architecture", where: "programs on the device", reason: "StartFailed",
			says: []string{"atelier-serve", "exec format error"}, remedy: "made for this machine",
			inject: func(t testing.TB) {
				d := w.without(t, "foreign", "atelier-serve")
				b := []byte(read(t, filepath.Join(bin, "atelier-serve")))
				b[18] ^= 0x55 // e_machine of the ELF header
				if err := os.WriteFile(filepath.Join(d.dir, "programs", "atelier-serve"), b, 0o755); err != nil {
					t.Fatal(err)
				}
				w.agentJoins(d, w.joinCommand())
				w.startAgent(d)
				w.connected(d)
				w.deploys("digits", "foreign", d)
			},
			told: w.tells(w.at("foreign"), "foreign"),
		},
		{
			name: "a library that the runtime needs is missing", root: true, where: "the device's /usr/lib", reason: "RuntimeMissing",
			says: []string{"bare", "libstdc++.so.6", "libstdc++6"}, remedy: "Install",
			inject: func(t testing.TB) {
				d := w.prepare("bare")
				w.agentJoins(d, w.joinCommand())
				hide := "for f in /lib*/libstdc++.so.6* /lib/*/libstdc++.so.6* /usr/lib*/libstdc++.so.6* /usr/lib/*/libstdc++.so.6* /usr/local/lib*/libstdc++.so.6*; " +
					"do if [ -f $f ]; then mount --bind /dev/null $f; fi; done"
				inNamespace(t, d, hide)
				w.startAgent(d)
				w.connected(d)
				w.deploys("digits", "bare", d)
			},
			told: []place{w.why("bare", "deployment bare")},
		},
		{
			name: "too little memory for a model", root: true, where: "the device's /proc/meminfo", reason: "MemoryShort",
			says: []string{"MiB", "available"}, remedy: "Stop another module",
			inject: func(t testing.TB) {
				d := w.prepare("tiny")
				w.agentJoins(d, w.joinCommand())
				write(t, filepath.Join(d.dir, "meminfo"), "MemTotal: 65536 kB\nMemFree: 8192 kB\nMemAvailable: 8192 kB\nBuffers: 0 kB\nCached: 0 kB\n")
				inNamespace(t, d, "mount --bind "+filepath.Join(d.dir, "meminfo")+" /proc/meminfo")
				w.startAgent(d)
				w.connected(d)
				w.deploys("digits", "tiny", d)
			},
			told: w.tells(w.at("tiny"), "tiny"),
		},
		{
			name: "a state directory that is read-only", root: true, where: "the device's disk", reason: "internal",
			says: []string{"read-only file system", "state"}, remedy: "findmnt -T",
			inject: func(t testing.TB) {
				d := w.prepare("frozen")
				w.agentJoins(d, w.joinCommand())
				mount(t, "--bind", d.state(), d.state())
				remount(t, d.state())
			},
			told: []place{w.at("frozen").command("internal", 1, "run")},
		},
	}
}

// at is a device that join or prepare made, or will make, by its name.
func (w *world) at(name string) *device {
	dir := filepath.Join(w.dir, name)
	d := &device{t: w.t, name: name, dir: dir, config: filepath.Join(dir, "agent.toml")}
	d.agent = built("atelier-agent", filepath.Join(dir, "agent.log"))
	return d
}

// without prepares a device on which one of the programs is not installed.
func (w *world) without(t testing.TB, name, program string) *device {
	t.Helper()
	d := w.prepare(name)
	programs := filepath.Join(d.dir, "programs")
	if err := os.Mkdir(programs, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"atelier-gateway", "atelier-shim", "atelier-serve"} {
		if p == program {
			continue
		}
		if err := os.Symlink(filepath.Join(bin, p), filepath.Join(programs, p)); err != nil {
			t.Fatal(err)
		}
	}
	d.configure(programs, d.gateway)
	return d
}

func missing(w *world, program, reason, subject, about string) incident {
	name := strings.Replace(program, "atelier-", "no-", 1)
	return incident{
		name: program + " is not installed", where: "programs on the device", reason: reason,
		says: []string{program, "no such file"}, remedy: "Check that",
		inject: func(t testing.TB) {
			d := w.without(t, name, program)
			w.agentJoins(d, w.joinCommand())
			w.startAgent(d)
			w.connected(d)
			if about == "digits" {
				w.deploys("digits", name, d)
			}
		},
		told: []place{w.why(name, strings.Replace(subject, "digits", name, 1)), w.at(name).status(strings.Replace(about, "digits", name, 1)), w.at(name).agent.log()},
	}
}

// onFullDisk gives a device a disk that cannot hold the runtime.
func onFullDisk(w *world) incident {
	return incident{
		name: "a disk too small for the content", root: true, where: "the device's disk", reason: "NoSpace",
		says: []string{"MiB", "free", "reserve"}, remedy: "Free at least",
		inject: func(t testing.TB) {
			d := w.prepare("full")
			tmpfs(t, d.state(), "24m")
			w.agentJoins(d, w.joinCommand())
			w.startAgent(d)
			w.connected(d)
			w.deploys("digits", "full", d)
		},
		told: w.tells(w.at("full"), "full"),
	}
}

// inNamespace lets the device's agent run in a mount namespace of its own, in
// which a script was run first.
func inNamespace(t testing.TB, d *device, script string) {
	t.Helper()
	d.agent.Path = tool(t, "unshare")
	d.agent.Args = []string{"--mount", "sh", "-ec", script + "; exec " + filepath.Join(bin, "atelier-agent") + " run --config " + d.config}
}

func mount(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command(tool(t, "mount"), args...).CombinedOutput(); err != nil {
		t.Fatalf("mount %v: %v: %s", args, err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command(tool(t, "umount"), "--lazy", args[len(args)-1]).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
}

func remount(t testing.TB, dir string) {
	t.Helper()
	if out, err := exec.Command(tool(t, "mount"), "-o", "remount,bind,ro", dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
}

// tmpfs puts a small disk at dir.
func tmpfs(t testing.TB, dir, size string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, "-t", "tmpfs", "-o", "mode=0700,size="+size, "none", dir)
}

// connectionFaults are those of a device that does not talk with its hub.
func connectionFaults(w *world, press *device) []incident {
	return []incident{
		{
			name: "a device that never connected", where: "the agent is not started", reason: "NeverConnected",
			says: []string{"unborn", "never connected"}, remedy: "Start atelier-agent",
			inject: func(testing.TB) { w.agentJoins(w.prepare("unborn"), w.joinCommand()) },
			told:   []place{w.why("unborn", "connection")},
		},
		{
			name: "no agent runs", where: "the agent is not started", reason: "AgentDown",
			says: []string{"unborn/state"}, remedy: "systemctl start atelier-agent",
			told: []place{w.at("unborn").status("Connected")},
		},
		{
			name: "an agent that is killed", where: "SIGKILL to the agent", reason: "Unreachable",
			says: []string{"killed", "ago"}, remedy: "power and network",
			inject: func(t testing.TB) { w.join("killed").agent.signal(t, syscall.SIGKILL) },
			told:   []place{w.why("killed", "connection")},
		},
		{
			name: "a device that is revoked while it is connected", where: "atelier device revoke", reason: "Revoked",
			says: []string{"revoked", "at 2"}, remedy: "new token",
			inject: func(t testing.TB) {
				w.join("thief")
				w.atelier("device", "revoke", "thief")
			},
			told: []place{w.at("thief").status("Connected"), w.why("thief", "connection"), w.at("thief").agent.log()},
		},
		{
			name: "a device that is revoked while it is away", where: "atelier device revoke", reason: "Revoked",
			says: []string{"revoked"}, remedy: "new token",
			inject: func(t testing.TB) {
				d := w.join("lost")
				d.agent.signal(t, syscall.SIGTERM)
				w.atelier("device", "revoke", "lost")
				d.agent.start(t)
			},
			told: []place{w.at("lost").status("Connected"), w.why("lost", "connection"), w.at("lost").agent.log()},
		},
	}
}
