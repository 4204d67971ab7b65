package brokertest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Files writes what a broker needs into a directory: the authority's certificate
// as ca.pem, and a certificate for localhost and 127.0.0.1 with its key as
// server.pem and server.key, readable by all.
type Files interface{ Files(dir string) }

// Server is a broker of another project that runs for a test.
type Server struct {
	URL string // for devices and hub, "ssl://127.0.0.1:PORT"

	t       testing.TB
	command []string
	address string
	stop    func()
}

// Mosquitto starts Debian's mosquitto as docs/brokers.md says.
func Mosquitto(t testing.TB, pki Files) *Server {
	binary := find(t, "mosquitto")
	dir, address := worldReadable(t), freeAddress(t)
	pki.Files(dir)
	acl := filepath.Join(dir, "acl")
	write(t, acl, fence(t, "mosquitto.acl"))
	conf := strings.NewReplacer(
		"listener 8883", "listener "+port(address)+" 127.0.0.1",
		"/etc/mosquitto/atelier/acl", acl,
		"/etc/mosquitto/atelier", dir,
	).Replace(fence(t, "mosquitto.conf"))
	write(t, filepath.Join(dir, "mosquitto.conf"), conf)
	return start(t, address, binary, "-c", filepath.Join(dir, "mosquitto.conf"))
}

// NATS starts Debian's nats-server as docs/brokers.md says. NATS takes no
// pattern with the client's name, so it must be told every device beforehand.
func NATS(t testing.TB, pki Files, devices ...string) *Server {
	binary := find(t, "nats-server")
	dir, address := worldReadable(t), freeAddress(t)
	pki.Files(dir)
	users := fence(t, "nats-hub.conf")
	for _, d := range devices {
		users += strings.ReplaceAll(fence(t, "nats-device.conf"), "DEVICE", d)
	}
	write(t, filepath.Join(dir, "users.conf"), "users: [\n"+users+"]\n")
	conf := strings.NewReplacer(
		"host: 0.0.0.0", "host: 127.0.0.1",
		"port: 8883", "port: "+port(address),
		"/etc/nats/atelier", dir,
		"/var/lib/nats", filepath.Join(dir, "store"),
		"listen: 127.0.0.1:4222", "listen: "+freeAddress(t),
	).Replace(fence(t, "nats.conf"))
	write(t, filepath.Join(dir, "nats.conf"), conf)
	return start(t, address, binary, "-c", filepath.Join(dir, "nats.conf"))
}

func start(t testing.TB, address string, command ...string) *Server {
	s := &Server{URL: "ssl://" + address, t: t, address: address, command: command}
	s.Start()
	t.Cleanup(func() { s.Stop() })
	return s
}

// Start starts the server again after Stop, at the same address.
func (s *Server) Start() {
	s.t.Helper()
	cmd := exec.Command(s.command[0], s.command[1:]...)
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its output tells more than its code
		close(ended)
	}()
	s.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := net.DialTimeout("tcp", s.address, time.Second)
		if err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-ended:
			s.t.Fatalf("%s ended:\n%s", s.command[0], out.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.stop()
			s.t.Fatalf("%s does not listen on %s: %v\n%s", s.command[0], s.address, err, out.String())
		}
	}
}

// Stop kills the server.
func (s *Server) Stop() { s.stop() }

// find returns the path of a broker's program. Where it is missing the test
// fails in CI, which must have it, and is skipped elsewhere.
func find(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/usr/local/sbin") {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed, and CI must test on it: apt-get install %s", name, name)
	}
	t.Skipf("%s is not installed; to run this test: apt-get install %s", name, name)
	return ""
}

// fence returns the code block of docs/brokers.md whose first line is
// "# name".
func fence(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	for err == nil {
		if _, missing := os.Stat(filepath.Join(dir, "go.mod")); missing == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("the test runs outside of the module")
		}
		dir = filepath.Dir(dir)
	}
	doc, err := os.ReadFile(filepath.Join(dir, "docs", "brokers.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := bytes.Cut(doc, []byte("\n# "+name+"\n"))
	if !ok {
		t.Fatalf("docs/brokers.md has no block %q", name)
	}
	block, _, ok := bytes.Cut(rest, []byte("\n```"))
	if !ok {
		t.Fatalf("block %q of docs/brokers.md does not end", name)
	}
	return string(block) + "\n"
}

// worldReadable returns a directory that a server without our rights can read.
func worldReadable(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; strings.HasPrefix(d, filepath.Clean(os.TempDir())+string(filepath.Separator)); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// freeAddress returns a local address that nobody listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func port(address string) string {
	_, p, err := net.SplitHostPort(address)
	if err != nil {
		panic(fmt.Sprintf("brokertest: %q was made by freeAddress", address))
	}
	return p
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
