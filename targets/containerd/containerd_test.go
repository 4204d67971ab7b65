package containerd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/internal/containerdtest"
	"github.com/atelier-edge/atelier/targets"
	"github.com/atelier-edge/atelier/targets/targettest"
)

// keeper builds atelier-keep, once.
var keeper = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "keep")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "atelier-keep")
	cmd := exec.Command("go", "build", "-o", path, "github.com/atelier-edge/atelier/cmd/atelier-keep")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := keeper(); err == nil {
		_ = os.RemoveAll(filepath.Dir(path)) // it lies in a temporary directory
	}
	os.Exit(code)
}

// shell builds an image with a shell and some programs, once.
var shell = sync.OnceValues(func() (containerdtest.Image, error) {
	layer, err := containerdtest.Programs("sleep", "cat", "env", "head", "tail", "tr", "id", "ls", "touch")
	if err != nil {
		return containerdtest.Image{}, err
	}
	return containerdtest.Build("", containerdtest.Config{}, layer)
})

// place writes an image's content into dir, as the agent's store has it.
func place(t testing.TB, dir string, img containerdtest.Image) targets.Image {
	t.Helper()
	put := func(b []byte) targets.Blob {
		d := atelier.DigestOf(b)
		path := filepath.Join(dir, d.Hex())
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return targets.Blob{Path: path, Digest: d, Size: int64(len(b))}
	}
	out := targets.Image{Reference: "test:1", Manifest: put(img.Manifest), Config: put(img.Config)}
	for _, l := range img.Layers {
		out.Layers = append(out.Layers, put(l.Packed))
	}
	return out
}

// newTarget returns a target over dir, with a namespace of its own.
func newTarget(t testing.TB, d *containerdtest.Daemon, dir string) *Target {
	t.Helper()
	keep, err := keeper()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(dir))
	name := hex.EncodeToString(sum[:6])
	target, err := New(Options{
		Dir: dir, Run: filepath.Join(d.Dir, "run", name), Address: d.Address, Namespace: "t" + name, Keep: keep,
		Private: []string{d.Dir}, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = target.Close() }) // the test is over
	return target
}

// inImage makes a target run what the suite asks for in an image with a shell, which sees the
// suite's directory.
type inImage struct {
	*Target
	image targets.Image
}

func (i inImage) Start(ctx context.Context, spec targets.Spec) error {
	spec.Container = &targets.Container{Image: i.image}
	if filepath.IsAbs(spec.Dir) {
		spec.Container.Mounts = []atelier.ContainerMount{{Source: spec.Dir, Target: spec.Dir, Writable: true}}
	}
	return i.Target.Start(ctx, spec)
}

func TestConformance(t *testing.T) {
	t.Parallel()
	d := containerdtest.New(t)
	img, err := shell()
	if err != nil {
		t.Fatal(err)
	}
	image := place(t, t.TempDir(), img)
	targettest.Run(t, targettest.Subject{
		New:      func(t testing.TB, dir string) targets.Target { return inImage{newTarget(t, d, dir), image} },
		Isolated: true,
		KillHolder: func(t testing.TB, target targets.Target, _, id string) {
			s, err := target.Status(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID))
			if err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(stat), ") ")
			var state string
			var shim int
			if _, err := fmt.Sscanf(rest, "%s %d", &state, &shim); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(shim, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
	})
}
