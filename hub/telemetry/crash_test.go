package telemetry_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	atelier "github.com/atelier-edge/atelier"
	"github.com/atelier-edge/atelier/hub/telemetry"
)

const childVariable = "ATELIER_TELEMETRY_TEST_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		if err := writeForEver(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// crashStream is the stream that the child writes, crashStep the time between its samples.
const (
	crashStream = "01jz0000000000000000000s01"
	crashStep   = time.Second
)

func crashFrame(sequence uint64) frame {
	at := start.Add(time.Duration(sequence) * crashStep)
	return newFrame(crashStream, sequence, at, gauge("g", at, float64(sequence)))
}

// crashTime is when the hub gets a frame. The device's clock is an hour behind,
// and frames take their time: one that came again would be mapped to another time.
func crashTime(sequence uint64) time.Time {
	return start.Add(time.Hour + time.Duration(sequence)*crashStep + time.Duration(sequence%5)*3*time.Millisecond)
}

// writeForEver stores frames behind those that are there, and prints the
// sequence of each that is acknowledged.
func writeForEver(dir string) error {
	c := &clock{start.Add(time.Hour)}
	s, err := telemetry.Open(telemetry.Config{Dir: dir, Now: c.Now, Log: slog.New(slog.DiscardHandler), Retention: 10 * 365 * 24 * time.Hour})
	if err != nil {
		return err
	}
	for sequence := s.Acked(devA.ID)[crashStream] + 1; ; sequence++ {
		f := crashFrame(sequence)
		b, err := f.Encode(nil)
		if err != nil {
			return err
		}
		c.now = crashTime(sequence)
		ack, err := s.Ingest(context.Background(), wsA, devA, b)
		if err != nil {
			return err
		}
		fmt.Println(ack.Through)
	}
}

// A hub that is killed at any moment keeps every sample that it acknowledged, once.
func TestKillKeepsWhatWasAcknowledged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acked := uint64(0)
	for round := range 3 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if _, err := fmt.Sscan(lines.Text(), &acked); err != nil {
				t.Fatal(err)
			}
			if n == 40+round*17 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the child ended with %v", err)
		}
	}
	checkSamples(t, dir, acked)
}

// checkSamples checks that the store in dir holds each of at least the first
// acked samples once.
func checkSamples(t *testing.T, dir string, acked uint64) {
	t.Helper()
	c := &clock{start.Add(2 * time.Hour)}
	s := open(t, dir, c)
	through := s.Acked(devA.ID)[crashStream]
	if through < acked {
		t.Errorf("stored through %d, acknowledged was %d", through, acked)
	}
	end := start.Add(2 * time.Hour)
	if n := value(t, s, wsA, "count_over_time(g[3h])", end); n != float64(through) {
		t.Errorf("%v samples, want %d", n, through)
	}
	if sum := value(t, s, wsA, "sum_over_time(g[3h])", end); sum != float64(through*(through+1)/2) {
		t.Errorf("the samples' sum is %v, want %d", sum, through*(through+1)/2)
	}
	// And the next one is taken.
	if ack := ingest(t, s, wsA, devA, crashFrame(through+1)); ack.Through != through+1 {
		t.Errorf("the next frame is acknowledged through %d", ack.Through)
	}
}

// A power cut may take what the TSDB wrote and did not sync: everything since
// the last checkpoint, late samples included. The journal brings it back.
func TestPowerCutBeforeTheTSDBSynced(t *testing.T) {
	t.Parallel()
	dir, after := t.TempDir(), t.TempDir()
	c := &clock{start.Add(time.Hour)}
	s := open(t, dir, c)
	const first, all = 20, 50
	for i := uint64(1); i <= first; i++ {
		c.now = crashTime(i)
		ingest(t, s, wsA, devA, crashFrame(i))
	}
	if err := s.Close(); err != nil { // takes a checkpoint
		t.Fatal(err)
	}
	copyTree(t, filepath.Join(dir, "tsdb"), filepath.Join(after, "tsdb"))
	s = open(t, dir, c)
	for i := uint64(first + 1); i <= all; i++ {
		c.now = crashTime(i)
		ingest(t, s, wsA, devA, crashFrame(i))
	}
	// Late samples of another series, behind what the TSDB has.
	late := start.Add(-5 * 24 * time.Hour)
	ingest(t, s, wsA, devB, newFrame(atelier.NewID(), 1, c.now, gauge("late", start, 1)))
	ingest(t, s, wsA, devB, newFrame(atelier.NewID(), 1, c.now, gauge("late", late, 2)))
	copyTree(t, filepath.Join(dir, "journal"), filepath.Join(after, "journal"))
	b, err := os.ReadFile(filepath.Join(dir, "checkpoint.json"))
	if err == nil {
		err = os.WriteFile(filepath.Join(after, "checkpoint.json"), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	tornTail(t, filepath.Join(after, "journal"))
	checkSamples(t, after, all)
	s = open(t, copyOf(t, after), c)
	if got := value(t, s, wsA, "count_over_time(late[6d])", start.Add(time.Minute)); got != 2 {
		t.Errorf("%v late samples, want 2", got)
	}
}

// copyOf copies a store's directory while it is open, as a kill would leave it.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	copyTree(t, dir, to)
	if err := os.Remove(filepath.Join(to, "tsdb", "lock")); err != nil {
		t.Fatal(err)
	}
	return to
}

// tornTail appends to the newest file what a power cut leaves of a record.
func tornTail(t *testing.T, journal string) {
	t.Helper()
	list, err := os.ReadDir(journal)
	if err != nil || len(list) == 0 {
		t.Fatal("no journal", err)
	}
	f, err := os.OpenFile(filepath.Join(journal, list[len(list)-1].Name()), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte{0, 0, 1, 0, 9, 9}); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.Create(filepath.Join(to, rel))
		if err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
		return out.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
}
