//go:build linux

package programming_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/fpga/artifact"
	"github.com/atelier-edge/atelier/fpga/bitstream"
	"github.com/atelier-edge/atelier/fpga/board"
	"github.com/atelier-edge/atelier/fpga/driver"
	"github.com/atelier-edge/atelier/fpga/driver/sim"
	"github.com/atelier-edge/atelier/fpga/programming"
	"github.com/atelier-edge/atelier/internal/durable/durabletest"
	"github.com/atelier-edge/atelier/internal/trust"
)

// victim is a process that programs a package and is killed at a step.
type victim struct {
	Dir, Class, Window, Firmware string
	Key                          trust.PublicKey
	Golden, Next                 programming.Package
	Die                          programming.Step // "" lives
}

const victimEnv = "ATELIER_PROGRAMMING_VICTIM"

func TestMain(m *testing.M) {
	if path := os.Getenv(victimEnv); path != "" {
		if err := beVictim(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func beVictim(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var v victim
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	p, err := openAt(context.Background(), v.Dir, v.Class, v.Window, v.Firmware, programming.Options{
		Target: artifact.Target{Part: "hx8k"}, Keys: trust.NewKeySet(v.Key), Golden: v.Golden,
		Watch: func(s programming.Step) {
			if s == v.Die {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // it comes at any moment
			}
		}})
	if err != nil {
		return err
	}
	return p.Program(context.Background(), v.Next, nil)
}

// start starts a victim.
func (w *world) start(t *testing.T, die programming.Step) *exec.Cmd {
	t.Helper()
	b, err := json.Marshal(victim{w.dir, w.kernel.Class, w.kernel.Window, w.firmware, w.signer.Public(), w.golden, w.b, die})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "victim.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env, cmd.Stderr = append(os.Environ(), victimEnv+"="+path), os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func killed(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}

// TestKilledInEachStep kills the process that programs at the beginning of each step. The
// next one finds the device as it was until the intent is written, and takes it to
// the golden image afterwards.
func TestKilledInEachStep(t *testing.T) {
	t.Parallel()
	untouched := []programming.Step{programming.Verify, programming.Check, programming.Drain, programming.Intend}
	for _, step := range append(slices.Clone(untouched), programming.Load, programming.Settle, programming.Identify, programming.Weights,
		programming.Golden, programming.Commit, "") {
		t.Run(string(step), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, false)
			p := w.open(t, programming.Limits{})
			if err := p.Program(t.Context(), w.a, nil); err != nil {
				t.Fatal(err)
			}
			if err := p.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := w.start(t, step).Wait(); err != nil && !killed(err) || (err == nil) != (step == "") {
				t.Fatalf("the process ended with %v", err)
			}
			begin := time.Now()
			p = w.open(t, programming.Limits{})
			closing(t, p)
			t.Logf("known again after %v", time.Since(begin))
			switch {
			case step == "":
				w.runs(t, p, w.b, programming.LastGood)
			case slices.Contains(untouched, step):
				w.runs(t, p, w.a, programming.LastGood)
			default:
				w.runs(t, p, w.golden, programming.GoldenOnly)
			}
			if err := p.Program(t.Context(), w.b, nil); err != nil {
				t.Error(err)
			}
			w.runs(t, p, w.b, programming.New)
		})
	}
}

// TestKilledWhileItLoads kills the process within the write that loads the image.
func TestKilledWhileItLoads(t *testing.T) {
	t.Parallel()
	w := newWorld(t, false)
	p := w.open(t, programming.Limits{})
	if err := p.Program(t.Context(), w.a, nil); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.board.Break(board.Hang)
	cmd := w.start(t, "")
	for w.board.Phase() != board.Loading {
		time.Sleep(time.Millisecond)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	w.board.Release() // the kernel finishes what it began, and only then is the process gone
	if err := cmd.Wait(); !killed(err) {
		t.Fatalf("the process ended with %v", err)
	}
	p = w.open(t, programming.Limits{})
	closing(t, p)
	w.runs(t, p, w.golden, programming.GoldenOnly)
}

// TestPowerCuts cuts the power of disk and device at each operation on the disk.
func TestPowerCuts(t *testing.T) {
	t.Parallel()
	w := &world{target: artifact.Target{Part: bitstream.SimulatedPart}} // small images: there are many rounds
	packages(t, w)
	ended := map[programming.Place]int{}
	for n := 1; ; n++ {
		disk, b := durabletest.NewDisk(), board.New(board.Options{Part: bitstream.SimulatedPart})
		dir := t.TempDir()
		open := func() (*programming.Programmer, error) {
			return programming.Open(t.Context(), programming.Options{Dir: dir, FS: disk, Driver: driver.NewGuard(sim.New("sim", b)),
				Target: w.target, Keys: w.keys, Golden: w.golden, Log: quiet()})
		}
		p, err := open()
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Program(t.Context(), w.a, nil); err != nil {
			t.Fatal(err)
		}
		disk.CutAt(n)
		err = p.Program(t.Context(), w.b, nil)
		if closed := p.Close(t.Context()); closed != nil {
			t.Fatal(closed)
		}
		disk.Restart(rand.New(rand.NewPCG(uint64(n), 1)))
		b.CutPower()
		again, err2 := open()
		if err2 != nil {
			t.Fatalf("after a cut at operation %d: %v", n, err2)
		}
		held, _ := b.Loaded()
		s := again.Status()
		if s.Image != held || !slices.Contains([]atelier.Digest{atelier.DigestOf(w.golden.Image), atelier.DigestOf(w.a.Image), atelier.DigestOf(w.b.Image)}, held) {
			t.Errorf("after a cut at operation %d, the device is said to be on %+v and holds %s", n, s, held)
		}
		ended[s.On]++
		if closed := again.Close(t.Context()); closed != nil {
			t.Fatal(closed)
		}
		if err == nil {
			break
		}
	}
	if ended[programming.GoldenOnly] == 0 || ended[programming.LastGood] == 0 {
		t.Errorf("the device ended on %v, expected were golden and last good images", ended)
	}
	t.Logf("after cuts at each operation: %v", ended)
}
