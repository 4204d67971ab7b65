package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/internal/boot"
)

// tool returns the path of somebody else's program. Where it is missing the
// test fails in CI and is skipped elsewhere: `make test` installs it as root.
func tool(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/local/sbin") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 != 0 && filepath.IsAbs(path) {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed; scripts/install-test-tools should have", name)
	}
	t.Skipf("%s is not installed; as root, 'make test-tools' installs it", name)
	return ""
}

// external prepares a world whose hub uses another broker at address: its
// certificates are made, the hub is not started yet.
func external(t testing.TB) (w *world, address, files string) {
	t.Helper()
	w = &world{t: t, dir: shortDir(t)}
	files = filepath.Join(w.dir, "broker")
	address = freeAddress(t)
	out, errOut, err := run(t.Context(), nil, filepath.Join(bin, "atelier-hub"), "broker-files",
		"--data", filepath.Join(w.dir, "hub"), "--host", "127.0.0.1", "--out", files)
	if err != nil {
		t.Fatalf("atelier-hub broker-files: %v\n%s%s", err, out, errOut)
	}
	return w, address, files
}

// serves starts somebody else's broker and waits until it listens.
func serves(t testing.TB, p program, address string) {
	t.Helper()
	p.start(t)
	t.Cleanup(func() {
		p.signal(t, syscall.SIGKILL)
		p.check(t)
	})
	eventually(t, 30*time.Second, func() error {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

func write(t testing.TB, path, format string, args ...any) {
	t.Helper()
	if err := os.WriteFile(path, fmt.Appendf(nil, format, args...), 0o644); err != nil {
		t.Fatal(err)
	}
}

// withMosquitto boots a world on Debian's mosquitto, set up as docs/brokers.md says.
func withMosquitto(t testing.TB) *world {
	t.Helper()
	w, _ := mosquittoWorld(t)
	return w
}

// mosquittoWorld is withMosquitto with the broker itself.
func mosquittoWorld(t testing.TB) (*world, program) {
	t.Helper()
	mosquitto := tool(t, "mosquitto")
	w, address, files := external(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(files, "mosquitto.conf")
	write(t, filepath.Join(files, "acl"), "user hub\ntopic read at1/u/#\ntopic write at1/d/#\n\npattern read at1/d/%%u/+\npattern write at1/u/+/%%u/+\n")
	write(t, config, `per_listener_settings false
persistence false
allow_anonymous false
listener %s 127.0.0.1
cafile %[2]s/ca.pem
certfile %[2]s/server.pem
keyfile %[2]s/server.key
require_certificate true
use_identity_as_username true
acl_file %[2]s/acl
retain_available false
message_size_limit 131072
max_queued_messages 128
max_queued_bytes 16777216
set_tcp_nodelay true
`, port, files)
	if os.Getuid() == 0 { // it would give up root, and with it the right to read its key
		write(t, config, "user root\n%s", read(t, config))
	}
	p := program{&boot.Program{Path: mosquitto, Args: []string{"-c", config}, Log: filepath.Join(w.dir, "mosquitto.log")}}
	serves(t, p, address)
	w.boot("--host", "127.0.0.1", "--mqtt-broker", "ssl://"+address)
	return w, p
}

// withNATS boots a world on Debian's nats-server, set up as docs/brokers.md says.
func withNATS(t testing.TB) *world {
	t.Helper()
	nats := tool(t, "nats-server")
	w, address, files := external(t)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	config, users := filepath.Join(files, "nats.conf"), filepath.Join(files, "users.conf")
	lines := []string{`{ user: "CN=hub", permissions: { subscribe: "at1.u.>", publish: "at1.d.>" } }`}
	writeUsers := func() { write(t, users, "users: [\n%s\n]\n", strings.Join(lines, "\n")) }
	writeUsers()
	write(t, config, `listen: %q
server_name: atelier
jetstream { store_dir: %q }
mqtt {
  host: 127.0.0.1
  port: %s
  tls {
    ca_file: "%[4]s/ca.pem"
    cert_file: "%[4]s/server.pem"
    key_file: "%[4]s/server.key"
    verify_and_map: true
  }
}
authorization { include "users.conf" }
`, freeAddress(t), filepath.Join(w.dir, "jetstream"), port, files)
	p := program{&boot.Program{Path: nats, Args: []string{"-c", config}, Log: filepath.Join(w.dir, "nats.log")}}
	serves(t, p, address)
	w.joined = func(id string) {
		lines = append(lines, fmt.Sprintf(`{ user: "CN=%[1]s", permissions: { subscribe: "at1.d.%[1]s.*", publish: "at1.u.*.%[1]s.*" } }`, id))
		writeUsers()
		if err := p.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	w.boot("--host", "127.0.0.1", "--mqtt-broker", "ssl://"+address)
	return w
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// python is the interpreter of the virtual environment that `make test-tools`
// makes; see tool for where it is missing.
func python(t testing.TB) string {
	t.Helper()
	path := filepath.Join(root, ".cache", "venv", "bin", "python")
	if err := exec.Command(path, "-c", "import tritonclient.http, tritonclient.grpc").Run(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("tritonclient is not installed: %v", err)
		}
		t.Skipf("tritonclient is not installed; 'make test-tools' installs it")
	}
	return path
}
