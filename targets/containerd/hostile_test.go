package containerd

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/containerdtest"
	"github.com/atelier-edge/atelier/targets"
)

// application builds the tests' application, once.
var application = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "app")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "app")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/atelier-edge/atelier/internal/containerdtest/app")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w\n%s", err, out)
	}
	return os.ReadFile(path)
})

// appImage is an image with the tests' application, and further layers.
func appImage(t testing.TB, arch string, more ...containerdtest.Layer) containerdtest.Image {
	t.Helper()
	return imageOf(t, arch, "", more...)
}

// imageOf is appImage for a user.
func imageOf(t testing.TB, arch, user string, more ...containerdtest.Layer) containerdtest.Image {
	t.Helper()
	program, err := application()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := containerdtest.Pack(true, containerdtest.File("app", program))
	if err != nil {
		t.Fatal(err)
	}
	img, err := containerdtest.Build(arch, containerdtest.Config{Entrypoint: []string{"/app"}, User: user}, append([]containerdtest.Layer{layer}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// bench is a target with a directory for images and one for modules.
type bench struct {
	*Target
	t            *testing.T
	daemon       *containerdtest.Daemon
	images, work string
	ctx          context.Context
}

func newBench(t *testing.T, d *containerdtest.Daemon) *bench {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	t.Cleanup(cancel)
	dir := t.TempDir()
	b := &bench{Target: newTarget(t, d, dir), t: t, daemon: d, images: t.TempDir(), work: t.TempDir(), ctx: ctx}
	t.Cleanup(b.ends)
	return b
}

// spec runs the application with arguments.
func (b *bench) spec(id string, img containerdtest.Image, args ...string) targets.Spec {
	return targets.Spec{
		ID: id, Dir: b.work, Log: filepath.Join(b.work, id+".log"), LogLimit: 1 << 20,
		Container: &targets.Container{Image: place(b.t, b.images, img), OwnCommand: true, Settings: atelier.ContainerSettings{Args: args}},
	}
}

// ends ends what runs, and sees that nothing is left of it.
func (b *bench) ends() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list, err := b.List(ctx)
	if err != nil {
		b.t.Error(err)
	}
	for _, s := range list {
		if err := b.Stop(ctx, s.ID, 0); err != nil {
			b.t.Error(err)
		}
		if err := b.Remove(ctx, s.ID); err != nil {
			b.t.Error(err)
		}
	}
	b.empty(ctx)
}

// empty checks that containerd has nothing left in the namespace.
func (b *bench) empty(ctx context.Context) {
	b.t.Helper()
	for {
		left := ""
		for _, args := range [][]string{{"containers", "ls", "-q"}, {"tasks", "ls", "-q"}, {"leases", "ls", "-q"}, {"content", "ls", "-q"}, {"snapshots", "ls"}} {
			out, err := b.daemon.Ctr(ctx, append([]string{"-n", b.opts.Namespace}, args...)...)
			if err != nil {
				b.t.Errorf("ctr %v: %v\n%s", args, err, out)
				return
			}
			if lines := strings.Split(strings.TrimSpace(out), "\n"); args[0] == "snapshots" && len(lines) > 1 || args[0] != "snapshots" && lines[0] != "" {
				left += args[0] + ":\n" + out
			}
		}
		if left == "" {
			break
		}
		if pause(ctx, 100*time.Millisecond) != nil { // containerd collects by and by
			b.t.Errorf("containerd still has\n%s", left)
			return
		}
	}
	for _, dir := range []string{filepath.Join(b.opts.Run, "networks"), filepath.Join(b.opts.Run, "mounts"), b.dir} {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			b.t.Errorf("%s still has %v", dir, entries)
		}
	}
}

// packed is a layer of bytes that are what they are.
func packed(b []byte, diff atelier.Digest) containerdtest.Layer {
	return containerdtest.Layer{Packed: b, MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", DiffID: diff}
}

// zeros compresses n bytes of zeros, as the content of a tar archive's file.
func zeros(t *testing.T, n int64) containerdtest.Layer {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	if err := w.WriteHeader(&tar.Header{Name: "zeros", Size: n, Mode: 0o600, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(w, zeroReader{}, n); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return packed(b.Bytes(), atelier.DigestOf(nil))
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestHostile starts what must not start, or must not do harm, beside a module that must not
// notice. All share one containerd.
func TestHostile(t *testing.T) {
	t.Parallel()
	d := containerdtest.New(t)
	img := appImage(t, "")
	witness := newBench(t, d)
	if err := witness.Start(witness.ctx, witness.spec("witness", img, "sleep")); err != nil {
		t.Fatal(err)
	}
	before, err := witness.Status(witness.ctx, "witness")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("all", func(t *testing.T) {
		t.Run("images", func(t *testing.T) { t.Parallel(); hostileImages(t, d, img) })
		t.Run("containerd away", func(t *testing.T) { containerdAway(t, d, img) })
		t.Run("modules", func(t *testing.T) { hostileModules(t, d, img) })
	})
	after, err := witness.Status(witness.ctx, "witness")
	if err != nil || after.PID != before.PID || after.Phase != targets.Running {
		t.Errorf("the witness is %+v, %v, was %+v", after, err, before)
	}
}

// hostileImages must be refused with a reason, and leave nothing.
func hostileImages(t *testing.T, d *containerdtest.Daemon, img containerdtest.Image) {
	b := newBench(t, d)
	refused := func(spec targets.Spec, code atelier.Code, words ...string) {
		t.Helper()
		err := b.Start(b.ctx, spec)
		if atelier.CodeOf(err) != code {
			t.Errorf("Start: %v with code %q, want %q", err, atelier.CodeOf(err), code)
			return
		}
		for _, w := range words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("the refusal does not say %q: %v", w, err)
			}
		}
		if _, err := b.Status(b.ctx, spec.ID); atelier.CodeOf(err) != atelier.NotFound {
			t.Errorf("%s is known afterwards: %v", spec.ID, err)
		}
	}
	entry := func(e containerdtest.Entry) containerdtest.Layer {
		l, err := containerdtest.Pack(true, e)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	climbs := containerdtest.File("../../../../climbed", []byte("x"))
	hard := containerdtest.Entry{Header: tar.Header{Name: "link", Typeflag: tar.TypeLink, Linkname: "../../../etc/shadow", Mode: 0o600}}
	for id, l := range map[string]containerdtest.Layer{"climbs": entry(climbs), "links": entry(hard)} {
		refused(b.spec(id, appImage(t, "", l)), atelier.Corrupt, "climbs out")
	}
	other := "arm64"
	refused(b.spec("arch", appImage(t, other)), atelier.Unsupported, other)
	refused(b.spec("bomb", appImage(t, "", zeros(t, 300<<20))), atelier.Corrupt, "unpacks to more than")
	refused(b.spec("nogzip", appImage(t, "", packed([]byte{0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, atelier.DigestOf(nil)))), atelier.Corrupt, "cannot be unpacked")
	lies := entry(containerdtest.File("x", []byte("x")))
	lies.DiffID = atelier.DigestOf([]byte("another"))
	refused(b.spec("diff", appImage(t, "", lies)), atelier.Corrupt, "does not unpack to")

	corrupt := b.spec("corrupt", appImage(t, "", entry(containerdtest.File("y", []byte("something")))))
	damage(t, corrupt.Container.Image.Layers[1].Path)
	refused(corrupt, atelier.Corrupt, "layer")
	short := b.spec("short", appImage(t, "", entry(containerdtest.File("z", []byte("something else")))))
	if err := os.Truncate(short.Container.Image.Layers[1].Path, 10); err != nil {
		t.Fatal(err)
	}
	refused(short, atelier.Corrupt, "bytes, and it has 10")
	manifest := b.spec("manifest", img)
	manifest.Container.Image.Layers[0].Size++
	refused(manifest, atelier.Corrupt, "its manifest says")
	none := b.spec("none", img)
	none.Container.Image.Layers = nil
	refused(none, atelier.Corrupt, "names 1 layers, and 0 were sent")

	gone := b.spec("gone", img)
	gone.Container.Settings.Entrypoint = []string{"/nothing"}
	refused(gone, atelier.Invalid, "/nothing")
	device := b.spec("device", img)
	device.Container.Settings.Devices = []string{"/dev/no-such-device"}
	refused(device, atelier.Invalid, "/dev/no-such-device")
	private := b.spec("private", img)
	private.Container.Settings.Mounts = []atelier.ContainerMount{{Source: filepath.Join(d.Dir, "root"), Target: "/x"}}
	refused(private, atelier.Forbidden, "the device's own")
	led := b.spec("led", img)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/etc", link); err != nil {
		t.Fatal(err)
	}
	led.Container.Settings.Mounts = []atelier.ContainerMount{{Source: link, Target: "/x", Writable: true}}
	refused(led, atelier.Forbidden, "links lead to /etc")
	b.empty(b.ctx)
}

// TestSparseFiles refuses files whose zeros are in no layer.
func TestSparseFiles(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]*tar.Header{
		"pax": {Name: "x", PAXRecords: map[string]string{"GNU.sparse.major": "1"}}, "gnu": {Name: "x", Typeflag: tar.TypeGNUSparse},
	} {
		c := &counted{img: &targets.Image{}}
		if ok, err := c.filter(h); ok || atelier.CodeOf(err) != atelier.Corrupt {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

// damage changes a byte of a file.
func damage(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// hostileModules run, and are held.
func hostileModules(t *testing.T, d *containerdtest.Daemon, img containerdtest.Image) {
	b := newBench(t, d)
	start := func(spec targets.Spec) {
		t.Helper()
		if err := b.Start(b.ctx, spec); err != nil {
			t.Fatal(err)
		}
	}
	fork := b.spec("fork", img, "fork")
	fork.Limits, fork.Container.Settings.Processes = atelier.Limits{Memory: 256 << 20, CPUs: 0.5}, 32
	start(fork)
	fill := b.spec("fill", img, "fill")
	fill.Limits = atelier.Limits{Memory: 512 << 20, CPUs: 0.5}
	start(fill)
	start(b.spec("deaf", img, "deaf"))
	someone := b.spec("someone", imageOf(t, "", "1000:1000"), "sleep")
	someone.Container.Settings.Mounts = []atelier.ContainerMount{{Source: t.TempDir(), Target: "/x"}}
	start(someone)
	eat := b.spec("eat", img, "eat")
	eat.Limits.Memory = 64 << 20
	start(eat)

	if s, err := b.Wait(b.ctx, "eat"); err != nil || s.Exit == nil || !s.Exit.OutOfMemory || s.Exit.Signal != "killed" || s.Exit.LastLine != "eats" {
		t.Errorf("what takes too much memory ended as %+v, %v", s.Exit, err)
	}
	b.says("deaf", "deaf")
	begin := time.Now()
	if err := b.Stop(b.ctx, "deaf", 200*time.Millisecond); err != nil {
		t.Error(err)
	}
	if s, err := b.Status(b.ctx, "deaf"); err != nil || s.Exit == nil || s.Exit.Signal != "killed" || time.Since(begin) > time.Minute {
		t.Errorf("what does not listen ended as %+v, %v, after %v", s.Exit, err, time.Since(begin))
	}
	b.says("fill", "filled /etc")
	out := b.log("fill")
	for _, dir := range []string{"/", "/etc"} {
		if !strings.Contains(out, "filled "+dir+" with 0 MiB: open "+filepath.Join(dir, "junk")+": read-only file system") {
			t.Errorf("the module could write to %s:\n%s", dir, out[max(0, len(out)-500):])
		}
	}
	if !strings.Contains(out, "filled /tmp with 63 MiB") && !strings.Contains(out, "filled /tmp with 64 MiB") {
		t.Errorf("/tmp has no end:\n%s", out[max(0, len(out)-500):])
	}
	var total int64
	logs, err := filepath.Glob(filepath.Join(b.work, "fill.log*"))
	for _, name := range logs {
		info, statErr := os.Stat(name)
		if statErr == nil {
			total += info.Size()
		}
	}
	if err != nil || total > 2<<20 {
		t.Errorf("the log has %d bytes in %v, %v", total, logs, err)
	}
	count, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/pids", b.group("fork"), "pids.current"))
	if err == nil && len(strings.TrimSpace(string(count))) > 2 {
		t.Errorf("the module has %s processes", count)
	}
}

// log returns the log of an instance.
func (b *bench) log(id string) string {
	b.t.Helper()
	r, err := b.Log(b.ctx, id, 4<<20)
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(out)
}

// says waits until an instance has written words.
func (b *bench) says(id, words string) {
	b.t.Helper()
	for !strings.Contains(b.log(id), words) {
		if pause(b.ctx, 20*time.Millisecond) != nil {
			b.t.Fatalf("%s does not say %q", id, words)
		}
	}
}

// containerdAway stops containerd while a module is waited for and others are started.
func containerdAway(t *testing.T, d *containerdtest.Daemon, img containerdtest.Image) {
	b := newBench(t, d)
	if err := b.Start(b.ctx, b.spec("m", img, "sleep")); err != nil {
		t.Fatal(err)
	}
	before, err := b.Status(b.ctx, "m")
	if err != nil {
		t.Fatal(err)
	}
	waiting, cancel := context.WithCancel(b.ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := b.Wait(waiting, "m")
		ended <- err
	}()
	starting := make(chan error, 1)
	go func() { starting <- b.Start(b.ctx, b.spec("n", img, "sleep")) }()
	d.Kill()
	if err := <-starting; err != nil && atelier.CodeOf(err) != atelier.Unavailable && atelier.CodeOf(err) != atelier.Invalid {
		t.Errorf("Start without containerd: %v", err)
	}
	if _, err := b.Status(b.ctx, "m"); atelier.CodeOf(err) != atelier.Unavailable || !strings.Contains(err.Error(), "find the container") {
		t.Errorf("Status without containerd: %v", err)
	}
	if err := d.Start(b.ctx); err != nil {
		t.Fatal(err)
	}
	for {
		after, err := b.Status(b.ctx, "m")
		if atelier.CodeOf(err) == atelier.Unavailable && pause(b.ctx, 50*time.Millisecond) == nil {
			continue
		}
		if err != nil || after.PID != before.PID || after.Phase != targets.Running {
			t.Errorf("status = %+v, %v, was %+v", after, err, before)
		}
		break
	}
	if err := b.Start(b.ctx, b.spec("n", img, "sleep")); err != nil {
		t.Errorf("Start afterwards: %v", err)
	}
	select {
	case err := <-ended:
		t.Errorf("Wait returned: %v", err)
	default:
	}
	cancel()
	if err := <-ended; atelier.CodeOf(err) != atelier.Timeout {
		t.Errorf("Wait, given up: %v", err)
	}
}
