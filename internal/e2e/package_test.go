package e2e

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	atelier "github.com/atelier-edge/atelier"
)

// needed returns a program of the system or of the cache, which CI must have.
func needed(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode()&0o111 != 0 && !info.IsDir() {
			return filepath.Join(dir, name)
		}
	}
	if found, _ := filepath.Glob(filepath.Join(root, ".cache", "bin", name+"-v*")); len(found) > 0 {
		return found[0]
	}
	absent(t, name+" is missing: scripts/install-test-tools installs it")
	return ""
}

// absent skips the test, or fails it where nothing may be absent.
func absent(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// libraryIn finds libraries in what ldd prints.
var libraryIn = regexp.MustCompile(`(/\S+) \(0x`)

// smallBase writes a tar file of a root file system: this machine's C and C++ libraries.
func smallBase(t testing.TB, name string) {
	t.Helper()
	library, _ := onnxRuntime(t)
	files := map[string]string{}
	for _, of := range []string{library, filepath.Join(bin, "atelier-serve"), "/usr/bin/python3"} {
		out, err := exec.Command("ldd", of).Output()
		if err != nil {
			t.Fatalf("ldd %s: %v", of, err)
		}
		for _, found := range libraryIn.FindAllStringSubmatch(string(out), -1) {
			files[strings.TrimPrefix(found[1], "/")] = found[1]
		}
	}
	// What an interpreter loads of the C library besides, where that is in parts.
	for _, part := range []string{"libutil.so.1", "librt.so.1", "libpthread.so.0", "libdl.so.2", "libcrypt.so.1", "libresolv.so.2"} {
		if found, _ := filepath.Glob("/lib/*/" + part); len(found) > 0 {
			files[found[0][1:]] = found[0]
		}
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	errs := []error{w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777})}
	for path, from := range files {
		text, err := os.ReadFile(from)
		errs = append(errs, err, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path, Mode: 0o755, Size: int64(len(text))}))
		_, err = w.Write(text)
		errs = append(errs, err)
	}
	if err := errors.Join(append(errs, w.Close(), os.WriteFile(name, b.Bytes(), 0o600))...); err != nil {
		t.Fatal(err)
	}
}

// TestPackages makes images of a scoring script and of an ONNX model, looks at them with
// other tools, and lets containerd run them. ATELIER_BASE names a base for them to stand
// on, such as 'make base' builds; without it one is made of this machine's libraries.
func TestPackages(t *testing.T) {
	t.Parallel()
	skopeo, crane, oras := needed(t, "skopeo"), needed(t, "crane"), needed(t, "oras")
	w := newWorld(t)
	w.atelier("workspace", "create", "plant")
	base := os.Getenv("ATELIER_BASE")
	if base == "" {
		base = filepath.Join(w.dir, "base.tar")
		smallBase(t, base)
	}

	// What is missing is told with what would mend it.
	w.atelier("model", "register", "digits", digits(1))
	if out := w.fails(2, "package", "build", "digits"); !strings.Contains(out, "atelier base add") {
		t.Errorf("without a base it says\n%s", out)
	}
	w.atelier("base", "add", "small", base)
	if out := w.fails(2, "package", "build", "digits"); !strings.Contains(out, "atelier runtime register atelier-serve") {
		t.Errorf("without the model server it says\n%s", out)
	}
	w.atelier("runtime", "register", "atelier-serve", "1", filepath.Join(bin, "atelier-serve"))
	w.registerRuntime()

	var first, again, second, other atelier.Package
	w.asked(&first, "package", "build", "digits")
	w.asked(&again, "package", "build", "digits:1")
	if first.State != atelier.BuildReady || first.ID != again.ID || first.Inputs == "" || len(first.Images) != 1 || first.Images[0].Arch != runtime.GOARCH {
		t.Fatalf("the package is %+v, then %+v", first, again)
	}
	w.asked(&other, "package", "build", "digits:1", "--name", "numbers", "--threads", "1")
	w.atelier("model", "register", "digits", digits(2))
	w.asked(&second, "package", "build", "digits")
	for i, l := range second.Images[0].Layers {
		shared := l.Digest == first.Images[0].Layers[i].Digest
		if want := l.Kind != atelier.LayerModel; shared != want || other.Images[0].Layers[i].Digest != first.Images[0].Layers[i].Digest {
			t.Errorf("layer %d, of the kind %s, is shared: %t", i, l.Kind, shared)
		}
	}
	if out := w.fails(4, "package", "build", "digits:2", "--threads", "2"); !strings.Contains(out, "of other inputs") {
		t.Errorf("another package under the same name: %s", out)
	}
	w.fails(2, "package", "build", "digits:2", "--workers", "2", "--tag", "b") // of no use for it
	w.fails(3, "package", "show", "digits:9")
	w.fails(4, "base", "delete", "small")

	w.scoringPackages(t)
	w.readLayouts(t, skopeo, crane, oras)
	w.runPackages(t)

	// What goes takes its images along, and no more than its own.
	w.atelier("package", "delete", "numbers:1")
	var images []atelier.Image
	w.asked(&images, "image", "list")
	if slices.ContainsFunc(images, func(i atelier.Image) bool { return i.Repository == "numbers" }) ||
		!slices.ContainsFunc(images, func(i atelier.Image) bool { return i.Repository == "digits" && slices.Contains(i.Tags, "2") }) {
		t.Errorf("the images are %+v", images)
	}
	var token struct{ Secret string }
	w.asked(&token, "token", "create", "reader", "--role", "viewer")
	w.env = append(w.env, "ATELIER_TOKEN="+token.Secret)
	w.atelier("package", "list")
	w.fails(4, "package", "build", "digits:1", "--tag", "c")
	w.fails(4, "package", "delete", "digits:1")
	w.fails(4, "base", "add", "mine", base)
}

// scoringPackages makes packages of the example's scoring script: as a version that
// has it, and beside a version that has none.
func (w *world) scoringPackages(t *testing.T) {
	t.Helper()
	requirements := filepath.Join(w.dir, "requirements.txt")
	if err := os.WriteFile(requirements, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.atelier("environment", "create", "plain", "-f", requirements, "--python", debianPython())
	example := filepath.Join(root, "examples", "scoring")
	w.atelier("model", "register", "weights", digits(1)) // whose files the script below does not look at
	if out := w.fails(4, "package", "build", "weights", "--code", example, "--script", "score.py", "--environment", "plain"); !strings.Contains(out, "environment show plain:1 --wait") {
		t.Errorf("before the environment is built it says\n%s", out)
	}
	fields := strings.Fields(w.login)
	out, errOut, err := run(t.Context(), []string{"ATELIER_TOKEN=" + fields[len(fields)-1]}, filepath.Join(bin, "atelier-builder"), "--once", "--hub", "https://"+w.listen,
		"--fingerprint", fields[slices.Index(fields, "--fingerprint")+1])
	if err != nil {
		t.Fatalf("atelier-builder: %v\n%s%s", err, out, errOut)
	}
	w.atelier("model", "register", "scoring", example, "--script", "score.py", "--environment", "plain")
	var a, b atelier.Package
	w.asked(&a, "package", "build", "scoring", "--deadline", "20s")
	w.fails(2, "package", "build", "weights", "--code", example, "--script", "../score.py", "--environment", "plain")
	code := filepath.Join(w.dir, "code")
	script := "import json, os\ndef init(): ...\ndef run(data): return sorted(os.listdir(os.environ['AZUREML_MODEL_DIR']))\n"
	if err := errors.Join(os.Mkdir(code, 0o700), os.WriteFile(filepath.Join(code, "list.py"), []byte(script), 0o600)); err != nil {
		t.Fatal(err)
	}
	w.asked(&b, "package", "build", "weights", "--code", code, "--script", "list.py", "--environment", "plain")
	kinds := func(p atelier.Package) (kinds []atelier.LayerKind) {
		for _, l := range p.Images[0].Layers {
			kinds = append(kinds, l.Kind)
		}
		return kinds
	}
	if want := []atelier.LayerKind{"base", "environment", "server", "model", "code"}; !slices.Equal(kinds(a), want) || !slices.Equal(kinds(b), want) {
		t.Errorf("the layers are %v and %v", kinds(a), kinds(b))
	}
	if a.Environment != "plain:1" || a.Images[0].Layers[1].Digest != b.Images[0].Layers[1].Digest || a.Images[0].Layers[2].Digest != b.Images[0].Layers[2].Digest {
		t.Error("two packages do not share the layers of environment and model server")
	}
}

// readLayouts exports a package and reads it with other tools, from the file as from the
// registry.
func (w *world) readLayouts(t *testing.T, skopeo, crane, oras string) {
	t.Helper()
	fields := strings.Fields(w.login)
	token := fields[len(fields)-1]
	home := filepath.Join(w.dir, "home")
	env := []string{"HOME=" + home, "DOCKER_CONFIG=" + filepath.Join(home, "docker"), "REGISTRY_AUTH_FILE=" + filepath.Join(home, "auth.json"), "SSL_CERT_FILE=" + w.authority(t)}
	tool := func(name string, args ...string) string {
		t.Helper()
		out, errOut, err := run(t.Context(), env, name, args...)
		if err != nil {
			t.Fatalf("%s %s: %v\n%s%s", filepath.Base(name), strings.Join(args, " "), err, out, errOut)
		}
		return out
	}
	layout, file := filepath.Join(w.dir, "layout"), filepath.Join(w.dir, "layout.tar")
	w.atelier("package", "export", "digits:2", "--to", layout)
	w.atelier("package", "export", "digits:2", "--to", file)
	w.fails(4, "package", "export", "digits:2", "--to", file)
	one := tool(skopeo, "inspect", "--raw", "oci:"+layout+":2")
	if two := tool(skopeo, "inspect", "--raw", "oci-archive:"+file+":2"); one != two || !strings.Contains(one, `"dev.atelier.layer":"model"`) {
		t.Errorf("directory and file have different manifests, or none:\n%s\n%s", one, two)
	}
	tool(skopeo, "--insecure-policy", "copy", "oci:"+layout+":2", "dir:"+filepath.Join(w.dir, "copied"))
	tool(crane, "auth", "login", w.listen, "-u", "me", "-p", token)
	image := w.listen + "/plant/digits:2"
	tool(crane, "validate", "--fast", "--remote", image) // without it crane takes every layer for one that gzip made
	tool(crane, "pull", "--format", "oci", image, filepath.Join(w.dir, "by-crane"))
	if d := strings.TrimSpace(tool(crane, "digest", image)); d != string(atelier.DigestOf([]byte(one))) {
		t.Errorf("the registry has %s, the layout %s", d, atelier.DigestOf([]byte(one)))
	}
	// The ModelPack artifact gives the file back, from registry and layout.
	tool(oras, "login", w.listen, "-u", "me", "-p", token, "--ca-file", w.authority(t))
	tool(oras, "pull", "--ca-file", w.authority(t), "-o", filepath.Join(w.dir, "pulled"), image+atelier.ModelPackTag)
	tool(oras, "pull", "--oci-layout", "-o", filepath.Join(w.dir, "unpacked"), layout+":2"+atelier.ModelPackTag)
	want, _ := os.ReadFile(digits(2))
	for _, dir := range []string{"pulled", "unpacked"} {
		if got, err := os.ReadFile(filepath.Join(w.dir, dir, "digits-v2.onnx")); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the model came back with %d bytes, want %d: %v", dir, len(got), len(want), err)
		}
	}
	// A base comes out of a registry, the hub's own here, and out of a layout.
	digest := strings.TrimSpace(tool(crane, "digest", image))
	w.atelier("package", "build", "digits:1", "--tag", "on-digits", "--base", w.listen+"/plant/digits@"+digest)
	var a, b atelier.Base
	w.asked(&a, "base", "show", "digits-"+strings.TrimPrefix(digest, "sha256:")[:12])
	w.asked(&b, "base", "add", "of-layout", layout+":2")
	if len(a.Images) != 1 || len(a.Images[0].Layers) != 4 || b.Images[0].Config != a.Images[0].Config {
		t.Errorf("the bases are %+v and %+v", a, b)
	}
	w.fails(2, "package", "build", "digits:1", "--tag", "x", "--base", image)
	w.fails(5, "base", "add", "gone", w.listen+"/plant/digits@sha256:"+strings.Repeat("0", 64))
	// Into another registry, which is another workspace's here.
	w.atelier("workspace", "create", "mirror")
	w.atelier("package", "push", "digits:2", w.listen+"/mirror/copies/digits:9", "--workspace", "plant")
	if d := strings.TrimSpace(tool(crane, "digest", w.listen+"/mirror/copies/digits:9")); d != digest {
		t.Errorf("the copy is %s, want %s", d, digest)
	}
	// And into the registry that a workspace has of its own, by itself.
	w.atelier("workspace", "create", "own", "--registry", "https://"+w.listen+"/mirror")
	w.atelier("base", "add", "of-layout", layout+":2")
	w.atelier("model", "register", "digits", digits(1))
	var own atelier.Package
	w.asked(&own, "package", "build", "digits", "--tag", "first")
	if d := strings.TrimSpace(tool(crane, "digest", w.listen+"/mirror/digits:first")); own.Manifest == nil || d != string(own.Manifest.Digest) {
		t.Errorf("the workspace's own registry has %s, the package is %+v", d, own.Manifest)
	}
	tool(crane, "digest", w.listen+"/mirror/digits:first"+atelier.ModelPackTag)
	w.atelier("workspace", "use", "plant")
}

// runPackages lets containerd pull and run images, and asks them.
func (w *world) runPackages(t *testing.T) {
	t.Helper()
	containerd, ctr := needed(t, "containerd"), needed(t, "ctr")
	needed(t, "runc")
	if os.Getuid() != 0 {
		absent(t, "containerd needs root")
	}
	dir := shortDir(t)
	socket := filepath.Join(dir, "c.sock")
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = %q\n[ttrpc]\naddress = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, socket+".ttrpc")
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	daemon := exec.Command(containerd, "--config", filepath.Join(dir, "config.toml"))
	daemon.Stdout, daemon.Stderr = &log, &log
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
	try := func(args ...string) (string, error) {
		out, errOut, err := run(t.Context(), nil, ctr, append([]string{"-a", socket, "-n", "packages"}, args...)...)
		return out + errOut, err
	}
	must := func(args ...string) {
		t.Helper()
		if out, err := try(args...); err != nil {
			t.Fatalf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	eventually(t, 60*time.Second, func() error { _, err := try("version"); return err })
	fields := strings.Fields(w.login)
	hosts := filepath.Join(dir, "certs.d")
	err := errors.Join(os.MkdirAll(filepath.Join(hosts, w.listen), 0o700), os.WriteFile(filepath.Join(hosts, w.listen, "hosts.toml"),
		fmt.Appendf(nil, "server = \"https://%[1]s\"\n[host.\"https://%[1]s\"]\nca = %[2]q\n", w.listen, w.authority(t)), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(repository, tag, path, body string) string {
		t.Helper()
		image := w.listen + "/plant/" + repository + ":" + tag
		must("images", "pull", "--snapshotter", "native", "--hosts-dir", hosts, "--user", "me:"+fields[len(fields)-1], image)
		// As the image says, in a network of its own: nothing there takes the port.
		must("run", "-d", "--snapshotter", "native", "--runc-root", filepath.Join(dir, "runc"), image, repository)
		defer func() {
			_, _ = try("task", "kill", "-s", "SIGKILL", repository)
			eventually(t, 30*time.Second, func() error {
				if out, err := try("task", "rm", "-f", repository); err != nil && !strings.Contains(out, "not found") {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
			must("container", "rm", repository)
		}()
		tasks, err := try("task", "ls")
		found := regexp.MustCompile(`(?m)^` + repository + `\s+(\d+)`).FindStringSubmatch(tasks)
		if err != nil || len(found) != 2 {
			t.Fatalf("the tasks are %s: %v", tasks, err)
		}
		var out string
		eventually(t, 60*time.Second, func() (err error) {
			out, err = askWithin(t.Context(), found[1], "127.0.0.1:8080", path, body)
			return err
		})
		return out
	}
	if got := ask("scoring", "1", "/score", `{"data": [[2, 1, 1]]}`); strings.TrimSpace(got) != `{"scores": [2.0]}` {
		t.Errorf("the script answers %s", got)
	}
	if got := ask("weights", "1", "/score", `{}`); strings.TrimSpace(got) != `["digits-v1.onnx"]` {
		t.Errorf("the script beside a model answers %s", got)
	}
	row := strings.TrimSuffix(strings.Repeat("0,", 64), ",")
	if got := ask("digits", "2", "/score", `{"data": [[`+row+`]]}`); !strings.Contains(got, `"outputs"`) {
		t.Errorf("the model answers %s", got)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "runc", "packages", "*")); err != nil || len(names) > 0 {
		t.Errorf("containers are left: %v, %v", names, err)
	}
}

// askWithin posts to an address in the network of a process.
func askWithin(ctx context.Context, pid, address, path, body string) (answer string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and its network with it
		answer, err = askHere(ctx, pid, address, path, body)
	}()
	<-done
	return answer, err
}

func askHere(ctx context.Context, pid, address, path, body string) (_ string, err error) {
	ns, err := os.Open("/proc/" + pid + "/ns/net")
	if err != nil {
		return "", err
	}
	defer func() { _ = ns.Close() }()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return "", err
	}
	if err := loopbackUp(); err != nil {
		return "", err
	}
	c, err := net.Dial("tcp", address) // makes its socket in this thread
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	if err := errors.Join(c.SetDeadline(time.Now().Add(30*time.Second)), req.Write(c)); err != nil {
		return "", err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), req)
	if err != nil {
		return "", err
	}
	text, err := io.ReadAll(res.Body)
	if err = errors.Join(err, res.Body.Close()); err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return string(text), err
}

// loopbackUp turns on the loopback interface of this thread's network.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
