package distribution

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atelier-edge/atelier/hub/access"
)

// installed returns a program of the system, which CI must have.
func installed(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin") {
		if path := filepath.Join(dir, name); executable(path) {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: scripts/install-test-tools installs it", name)
	}
	t.Skipf("%s is missing: scripts/install-test-tools installs it", name)
	return ""
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}

// shell runs programs with a home, docker credentials and temporary files of their own.
type shell struct {
	t   testing.TB
	dir string
	env []string
}

func (x *registry) shell(t testing.TB) *shell {
	dir := t.TempDir()
	return &shell{t, dir, append(os.Environ(),
		"HOME="+dir, "DOCKER_CONFIG="+filepath.Join(dir, "docker"), "REGISTRY_AUTH_FILE="+filepath.Join(dir, "auth.json"), "SSL_CERT_FILE="+x.ca)}
}

func (s *shell) try(program string, args ...string) (string, error) {
	cmd := exec.CommandContext(s.t.Context(), program, args...)
	cmd.Dir, cmd.Env = s.dir, s.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *shell) run(program string, args ...string) string {
	s.t.Helper()
	out, err := s.try(program, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	return out
}

// refused runs what must fail, and tell why with the words.
func (s *shell) refused(words, program string, args ...string) {
	s.t.Helper()
	out, err := s.try(program, args...)
	if err == nil || !strings.Contains(strings.ToLower(out), strings.ToLower(words)) {
		s.t.Errorf("%s %s: %v, want a failure that says %q\n%s", filepath.Base(program), strings.Join(args, " "), err, words, out)
	}
}

// layer writes a tar file that no other test has, with a file of that size in it.
func (s *shell) layer(name string, size int) {
	s.t.Helper()
	content := make([]byte, size)
	random := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(time.Now().UnixNano())})
	_, _ = random.Read(content) // never fails
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, err := range []error{
		w.WriteHeader(&tar.Header{Name: "models/" + name, Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg}),
		func() error { _, err := w.Write(content); return err }(),
		w.Close(),
		os.WriteFile(filepath.Join(s.dir, name), b.Bytes(), 0o600),
	} {
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// TestCrane pushes, checks, copies, lists and deletes with crane.
func TestCrane(t *testing.T) {
	t.Parallel()
	crane := cached(t, "crane")
	x := newRegistry(t)
	plant, other := x.workspace("plant-7"), x.workspace("plant-8")
	_ = other
	image, copied := x.host+"/plant-7/press/cell:1.4", x.host+"/plant-7/press/copy:1.4"

	s := x.shell(t)
	s.layer("one.tar", 300<<10)
	s.layer("two.tar", 20)
	s.refused("unauthorized", crane, "append", "--oci-empty-base", "-f", "one.tar", "-t", image)
	s.run(crane, "auth", "login", x.host, "-u", "anybody", "-p", x.token("robot", access.Admin, plant))
	s.run(crane, "append", "--oci-empty-base", "-f", "one.tar", "-f", "two.tar", "-t", image)
	s.run(crane, "validate", "--remote", image)
	s.run(crane, "copy", image, copied)
	if a, b := s.run(crane, "digest", image), s.run(crane, "digest", copied); a != b {
		t.Errorf("the copy is %s, the image %s", b, a)
	}
	s.run(crane, "tag", image, "newest")
	if tags := s.run(crane, "ls", x.host+"/plant-7/press/cell"); tags != "1.4\nnewest\n" {
		t.Errorf("the tags are %q", tags)
	}
	s.run(crane, "pull", image, "pulled.tar")
	s.run(crane, "validate", "--tarball", "pulled.tar")
	s.refused("NAME_UNKNOWN", crane, "copy", image, x.host+"/plant-8/press/cell:1.4")
	s.run(crane, "delete", strings.TrimSpace(copied[:strings.LastIndex(copied, ":")]+"@"+s.run(crane, "digest", copied)))
	s.refused("MANIFEST_UNKNOWN", crane, "manifest", copied)

	viewer := x.shell(t)
	viewer.run(crane, "auth", "login", x.host, "-u", "anybody", "-p", x.token("eyes", access.Viewer, plant))
	viewer.run(crane, "validate", "--remote", image)
	viewer.refused("DENIED", crane, "tag", image, "mine")
}

// TestOras pushes and pulls artifacts, and what is said about them.
func TestOras(t *testing.T) {
	t.Parallel()
	oras := cached(t, "oras")
	x := newRegistry(t)
	x.workspace("plant-7")
	s := x.shell(t)
	s.layer("model.onnx", 1<<20)
	s.layer("signature", 100)
	image := x.host + "/plant-7/models/digits:2"
	s.run(oras, "login", x.host, "-u", "anybody", "-p", x.admin, "--ca-file", x.ca)
	s.run(oras, "push", "--ca-file", x.ca, image, "--artifact-type", "application/vnd.cncf.model.manifest.v1+json", "model.onnx:application/vnd.cncf.model.weight.v1.raw")
	s.run(oras, "attach", "--ca-file", x.ca, image, "--artifact-type", "application/vnd.example.signature", "signature")
	if out := s.run(oras, "discover", "--ca-file", x.ca, image); !strings.Contains(out, "application/vnd.example.signature") {
		t.Errorf("nothing is known about the image:\n%s", out)
	}
	s.run(oras, "pull", "--ca-file", x.ca, "-o", "out", image)
	want, _ := os.ReadFile(filepath.Join(s.dir, "model.onnx"))
	if got, err := os.ReadFile(filepath.Join(s.dir, "out", "model.onnx")); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the model came back with %d bytes, want %d: %v", len(got), len(want), err)
	}
	s.run(oras, "cp", "-r", "--from-ca-file", x.ca, "--to-ca-file", x.ca, image, x.host+"/plant-7/models/copy:2")
	if out := s.run(oras, "repo", "tags", "--ca-file", x.ca, x.host+"/plant-7/models/copy"); strings.TrimSpace(out) != "2" {
		t.Errorf("the copy's tags are %q", out)
	}
	s.run(oras, "manifest", "delete", "--ca-file", x.ca, "-f", image)
}

// TestSkopeo copies in and out, and between repositories.
func TestSkopeo(t *testing.T) {
	t.Parallel()
	skopeo, crane := installed(t, "skopeo"), cached(t, "crane")
	x := newRegistry(t)
	x.workspace("plant-7")
	s := x.shell(t)
	s.layer("layer.tar", 100<<10)
	first, second := x.host+"/plant-7/first:1", x.host+"/plant-7/second:1"
	s.run(crane, "auth", "login", x.host, "-u", "anybody", "-p", x.admin)
	s.run(crane, "append", "--oci-empty-base", "-f", "layer.tar", "-t", first)
	x.shell(t).refused("unauthorized", skopeo, "inspect", "docker://"+first) // a shell that has not logged in
	s.run(skopeo, "login", "--username", "anybody", "--password", x.admin, x.host)
	s.run(skopeo, "--insecure-policy", "copy", "docker://"+first, "docker://"+second)
	s.run(skopeo, "--insecure-policy", "copy", "docker://"+second, "oci:"+filepath.Join(s.dir, "layout")+":1")
	s.run(skopeo, "--insecure-policy", "copy", "--format", "v2s2", "oci:"+filepath.Join(s.dir, "layout")+":1", "docker://"+x.host+"/plant-7/docker:1")
	if out := s.run(skopeo, "inspect", "--raw", "docker://"+x.host+"/plant-7/docker:1"); !strings.Contains(out, typeDocker) {
		t.Errorf("the manifest is not Docker's:\n%s", out)
	}
	if out := s.run(skopeo, "list-tags", "docker://"+x.host+"/plant-7/second"); !strings.Contains(out, `"1"`) {
		t.Errorf("the tags are %s", out)
	}
	s.run(skopeo, "delete", "docker://"+second)
	s.refused("manifest", skopeo, "inspect", "docker://"+second)
}

const typeDocker = "application/vnd.docker.distribution.manifest.v2+json"

// TestContainerd lets a containerd of the test's own pull and unpack an image.
func TestContainerd(t *testing.T) {
	t.Parallel()
	containerd, ctr, crane := installed(t, "containerd"), installed(t, "ctr"), cached(t, "crane")
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("containerd needs root")
		}
		t.Skip("containerd needs root")
	}
	x := newRegistry(t)
	x.workspace("plant-7")
	s := x.shell(t)
	s.layer("layer.tar", 200<<10)
	image := x.host + "/plant-7/press/cell:1"
	s.run(crane, "auth", "login", x.host, "-u", "anybody", "-p", x.admin)
	s.run(crane, "append", "--oci-empty-base", "-f", "layer.tar", "-t", image)

	socket := filepath.Join(s.dir, "c.sock")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = %q\n",
		filepath.Join(s.dir, "root"), filepath.Join(s.dir, "state"), socket)
	if err := os.WriteFile(filepath.Join(s.dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	daemon := exec.Command(containerd, "--config", filepath.Join(s.dir, "config.toml"))
	daemon.Stdout, daemon.Stderr, daemon.Env = &log, &log, s.env
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Signal(os.Interrupt)
		_ = daemon.Wait()
		if t.Failed() {
			t.Logf("containerd says:\n%s", log.String())
		}
	})
	for deadline := time.Now().Add(60 * time.Second); ; {
		if _, err := s.try(ctr, "-a", socket, "version"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("containerd does not answer")
		}
		<-time.After(50 * time.Millisecond)
	}
	// ctr takes what is on this machine for a registry without TLS, unless it is told.
	hosts := filepath.Join(s.dir, "certs.d")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(hosts, x.host), 0o700),
		os.WriteFile(filepath.Join(hosts, x.host, "hosts.toml"), fmt.Appendf(nil, "server = \"https://%[1]s\"\n[host.\"https://%[1]s\"]\ncapabilities = [\"pull\", \"resolve\", \"push\"]\nca = %[2]q\n", x.host, x.ca), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.refused("401 unauthorized", ctr, "-a", socket, "images", "pull", "--snapshotter", "native", "--hosts-dir", hosts, image)
	s.run(ctr, "-a", socket, "images", "pull", "--snapshotter", "native", "--hosts-dir", hosts, "--user", "anybody:"+x.admin, image)
	if out := s.run(ctr, "-a", socket, "images", "check", "--snapshotter", "native"); !strings.Contains(out, "complete") {
		t.Errorf("the image is not whole:\n%s", out)
	}
	s.run(ctr, "-a", socket, "images", "tag", image, x.host+"/plant-7/press/again:1")
	s.run(ctr, "-a", socket, "images", "push", "--hosts-dir", hosts, "--user", "anybody:"+x.admin, x.host+"/plant-7/press/again:1")
	s.run(crane, "validate", "--remote", x.host+"/plant-7/press/again:1")
}
