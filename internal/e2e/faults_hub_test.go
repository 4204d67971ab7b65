package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

func faultsOfJoining(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	w.atelier("workspace", "create", "plant")
	other.atelier("workspace", "create", "plant")
	d, taken := w.prepare("newcomer"), w.prepare("press")
	token := func(w *world, args ...string) []string { return w.joinCommand(args...)[1:] }
	join := func(code string, exit int, args ...string) place {
		return d.command(code, exit, append([]string{"join", "--name", "newcomer"}, args...)...)
	}
	expired := token(w, "--expires-in", "1m")
	made := time.Now()
	used := token(w)
	w.agentJoins(taken, append([]string{"join"}, used...))
	good, foreign := token(w), token(other)
	mistyped := append([]string{}, good...)
	mistyped[5] = strings.ToUpper(mistyped[5][:8]) + mistyped[5][8:]
	inject(t, []incident{
		{
			name: "a join token that has expired", where: "atelier-agent join", reason: "forbidden",
			says: []string{"expired", "2"}, remedy: "atelier device token",
			inject: func(t testing.TB) {
				eventually(t, patience, func() error {
					if time.Since(made) < time.Minute {
						return fmt.Errorf("it is valid for a minute")
					}
					return nil
				})
			},
			told: []place{join("forbidden", 4, expired...), w.hub.log()},
		},
		{
			name: "a join token that is used up", where: "atelier-agent join", reason: "forbidden",
			says: []string{"used up", "1 of 1"}, remedy: "atelier device token",
			told: []place{join("forbidden", 4, used...), w.hub.log()},
		},
		{
			name: "a join token that is mistyped", where: "atelier-agent join", reason: "unauthenticated",
			says: []string{"join token"}, remedy: "atelier device token",
			told: []place{join("unauthenticated", 4, mistyped...), w.hub.log()},
		},
		{
			name: "a join token of another hub", where: "atelier-agent join", reason: "unauthenticated",
			says: []string{"join token"}, remedy: "atelier device token",
			told: []place{join("unauthenticated", 4, append(append([]string{}, good[:4]...), foreign[4:]...)...)},
		},
		{
			name: "the fingerprint of another hub", where: "atelier-agent join", reason: "forbidden",
			says: []string{good[3], foreign[3], "expected"}, remedy: "fingerprint",
			told: []place{join("forbidden", 4, append(append(append([]string{}, good[:2]...), foreign[2:4]...), good[4:]...)...)},
		},
		{
			name: "a hub that does not run", where: "atelier-agent join", reason: "unavailable",
			says: []string{"https://127.0.0.1:1", "refused"}, remedy: "atelier-hub runs",
			told: []place{join("unavailable", 5, append([]string{"--hub", "https://127.0.0.1:1"}, good[2:]...)...)},
		},
		{
			name: "a device's name that is taken", where: "atelier-agent join", reason: "exists",
			says: []string{`"press"`}, remedy: "another name",
			told: []place{d.command("exists", 4, append([]string{"join", "--name", "press"}, good...)...), w.hub.log()},
		},
		{
			name: "a device that has joined already", where: "atelier-agent join", reason: "exists",
			says: []string{`"press"`, w.listen}, remedy: "--replace",
			told: []place{taken.command("exists", 4, append([]string{"join"}, good...)...)},
		},
		{
			name: "a wrong access token", where: "atelier", reason: "unauthenticated",
			says: []string{"access token is not known"}, remedy: "administrator of the hub",
			told: []place{refusalOf("atelier", "unauthenticated", 4, func() (string, int) {
				_, errOut, err := run(t.Context(), append([]string{"ATELIER_TOKEN=atl_" + strings.Repeat("a", 43)}, w.env...), filepath.Join(bin, "atelier"), "status")
				return errOut, exitCode(err)
			}), w.hub.log()},
		},
	})
}

func faultsOfRuntimes(t *testing.T) {
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	w.atelier("model", "register", "digits", digits(1))
	d := w.join("press")
	library, _ := onnxRuntime(t)
	step := func(f incident) {
		t.Helper()
		inject(t, []incident{f})
	}
	step(incident{
		name: "a runtime that is not registered", where: "hub", reason: "RuntimeMissing",
		says: []string{"onnxruntime", "linux/", "press", "none for any other platform"}, remedy: "atelier runtime register onnxruntime",
		inject: func(testing.TB) { w.deploys("digits", "first", d) },
		told:   []place{w.why("press", "deployment first")},
	})
	step(incident{
		name: "a runtime for another architecture only", where: "hub", reason: "RuntimeMissing",
		says: []string{"onnxruntime", "press", "there is one for linux/riscv64"}, remedy: "--arch",
		inject: func(testing.TB) {
			w.atelier("runtime", "register", "onnxruntime", "1.0.0", library, "--arch", "riscv64")
		},
		told: []place{w.why("press", "deployment first")},
	})
	step(incident{
		name: "a runtime that is no library", where: "runtime that was registered", reason: "RuntimeMissing",
		says: []string{"runtime cannot be loaded", "libonnxruntime.so"}, remedy: "atelier runtime register",
		inject: func(t testing.TB) {
			path := filepath.Join(t.TempDir(), "libonnxruntime.so")
			write(t, path, "this is no library")
			w.atelier("runtime", "register", "onnxruntime", "1.0.1", path)
			w.deploys("digits", "second", d)
		},
		told: w.tells(d, "second"),
	})
	step(incident{
		name: "a runtime that says another architecture than it is for", where: "runtime that was registered", reason: "RuntimeMissing",
		says: []string{"runtime cannot be loaded", "libonnxruntime.so"}, remedy: "atelier runtime register",
		inject: func(t testing.TB) {
			path := filepath.Join(t.TempDir(), "libonnxruntime.so")
			b := []byte(read(t, library))
			b[18] ^= 0x55 // e_machine of the ELF header
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			w.atelier("runtime", "register", "onnxruntime", "1.0.2", path)
			w.deploys("digits", "third", d)
		},
		told: w.tells(d, "third"),
	})
}

// faultsOfAHubThatIsAway stops a hub whose devices' certificates last a minute,
// puts another hub in its place, and brings the first one back.
func faultsOfAHubThatIsAway(t *testing.T) {
	w := newWorld(t, "--device-certificates", "1m")
	w.atelier("workspace", "create", "plant")
	d := w.join("press")
	idle := w.prepare("idle")
	w.agentJoins(idle, w.joinCommand())
	w.hub.signal(t, syscall.SIGTERM)
	inject(t, []incident{
		{
			name: "a hub that is away, as its devices see it", where: "the hub is stopped", reason: "Unreachable",
			says: []string{"127.0.0.1:", "connection refused"}, remedy: "nc -vz 127.0.0.1",
			told: []place{d.status("Connected"), d.agent.log()},
		},
		{
			name: "a hub that is away, as people see it", where: "the hub is stopped", reason: "unavailable",
			says: []string{"https://" + w.listen, "refused"}, remedy: "atelier-hub",
			told: []place{w.command("unavailable", 5, "why", "press")},
		},
	})
	// Another hub, set up anew, takes its addresses.
	another := program{&boot.Program{Path: w.hub.Path, Args: append([]string{}, w.hub.Args...), Log: filepath.Join(w.dir, "another.log")}}
	another.Args[1] = filepath.Join(w.dir, "another")
	another.start(t)
	another.says(t, "ready")
	inject(t, []incident{
		{
			name: "a certificate of another hub, as devices see it", where: "another hub has the address", reason: "HubNotTrusted",
			says: []string{"127.0.0.1:", "not by the authority that this device pinned"}, remedy: "atelier-agent join --replace",
			told: []place{d.status("Connected"), d.agent.log()},
		},
		{
			name: "a certificate of another hub, as people see it", where: "another hub has the address", reason: "unavailable",
			says: []string{"another authority", w.listen}, remedy: "log in again",
			told: []place{w.command("unavailable", 5, "why", "press")},
		},
		{
			name: "a certificate that has expired, on the device", where: "the hub is away for longer than certificates last", reason: "CertificateExpired",
			says: []string{"ran out at 2", "could not be renewed"}, remedy: "clock",
			told: []place{d.status("Certificate")},
		},
	})
	another.signal(t, syscall.SIGTERM)
	w.startHub()
	inject(t, []incident{{
		name: "a certificate that has expired, at the hub", where: "the device is away for longer than certificates last", reason: "CertificateExpired",
		says: []string{"idle", "ran out"}, remedy: "clock",
		told: []place{w.why("idle", "certificate")},
	}})
	w.connected(d) // by itself, with a certificate of its own making
}

func faultsOfABroker(t *testing.T) {
	w, broker := mosquittoWorld(t)
	w.atelier("workspace", "create", "plant")
	d := w.join("press")
	broker.signal(t, syscall.SIGTERM)
	inject(t, []incident{
		{
			name: "a broker that is away, as devices see it", where: "Mosquitto is stopped", reason: "Unreachable",
			says: []string{"127.0.0.1:", "connection refused"}, remedy: "nc -vz 127.0.0.1",
			told: []place{d.status("Connected"), d.agent.log()},
		},
		{
			name: "a broker that is away, as the hub sees it", where: "Mosquitto is stopped", reason: "unavailable",
			says: []string{"ssl://127.0.0.1:", "broke"}, remedy: "Check that the broker runs",
			told: []place{w.hub.log()},
		},
	})
	broker.start(t)
	w.connected(d)
	eventually(t, patience, func() error {
		words, err := d.status("Connected").read()
		if err == nil && len(words) > 0 {
			err = fmt.Errorf("not connected: %+v", words)
		}
		return err
	})
	w.hub.signal(t, syscall.SIGTERM)
	inject(t, []incident{{
		name: "a hub that is away while its broker runs", where: "the hub is stopped", reason: "HubSilent",
		says: []string{"connection stands"}, remedy: "Check that atelier-hub runs",
		inject: func(t testing.TB) {
			// Something to report, so that it shows that nobody answers.
			d.configure(bin, freeAddress(t))
		},
		told: []place{d.status("Connected")},
	}})
	w.startHub()
}

// faultsOfAFullHub fills the hub's disk.
func faultsOfAFullHub(t *testing.T) {
	if !isRoot(t) {
		t.Skip("to fill the hub's disk, a small one is mounted: run it as root")
	}
	w := &world{t: t, dir: shortDir(t)}
	data := filepath.Join(w.dir, "hub")
	tmpfs(t, data, "160m")
	w.boot()
	w.atelier("workspace", "create", "plant")
	inject(t, []incident{{
		name: "a hub's disk that is full", where: "the hub's disk", reason: "no_space",
		says: []string{data, "is full"}, remedy: "df -h",
		inject: func(t testing.TB) { fill(t, filepath.Join(data, "filler"), 160<<20) },
		told:   []place{w.command("no_space", 4, "model", "register", "digits", digits(1)), w.hub.log()},
	}})
	if err := os.Remove(filepath.Join(data, "filler")); err != nil {
		t.Fatal(err)
	}
	w.atelier("model", "register", "digits", digits(1)) // as if nothing had been
}

// fill writes a file until the disk is full.
func fill(t testing.TB, path string, most int) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }() // it was to be full, and is
	block := make([]byte, 4096)
	for range most / len(block) {
		if _, err := f.Write(block); err != nil {
			return
		}
	}
	t.Fatalf("the disk takes more than %d bytes", most)
}
