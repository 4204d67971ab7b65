package boot

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func shell(t *testing.T, script string) *Program {
	t.Helper()
	p := &Program{Path: "/bin/sh", Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "log")}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(syscall.SIGKILL, time.Minute); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestProgramSaysAndStops(t *testing.T) {
	t.Parallel()
	p := shell(t, "echo one; echo two words; exec sleep 60")
	line, err := p.Says(t.Context(), "two")
	if err != nil || line != "two words" {
		t.Errorf("it says %q, %v", line, err)
	}
	if p.PID() == 0 {
		t.Error("it has no process id")
	}
	if err := p.Stop(syscall.SIGTERM, time.Minute); err != nil {
		t.Error(err)
	}
	if err := p.Stop(syscall.SIGTERM, time.Minute); err != nil {
		t.Errorf("to stop it again: %v", err)
	}
	if p.Tail(1) != "two words" {
		t.Errorf("the tail is %q", p.Tail(1))
	}
}

func TestSaysGivesUpWhenTheProgramEnds(t *testing.T) {
	t.Parallel()
	p := shell(t, "echo the reason; exit 3")
	began := time.Now()
	_, err := p.Says(t.Context(), "never")
	if err == nil || !strings.Contains(err.Error(), "the reason") || time.Since(began) > 30*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

func TestStopTellsOfOneThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	p := shell(t, "trap '' TERM; echo up; while :; do sleep 0.1; done")
	if _, err := p.Says(t.Context(), "up"); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(syscall.SIGTERM, 200*time.Millisecond); err == nil {
		t.Error("it ended")
	}
}

func TestEventually(t *testing.T) {
	t.Parallel()
	tries := 0
	err := Eventually(t.Context(), time.Minute, func() error {
		tries++
		if tries < 3 {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
	cause := errors.New("cause")
	if err := Eventually(t.Context(), time.Minute, func() error { return Hopeless{cause} }); !errors.Is(err, cause) {
		t.Errorf("hopeless: %v", err)
	}
	if err := Eventually(t.Context(), time.Millisecond, func() error { return cause }); !errors.Is(err, cause) {
		t.Errorf("in vain: %v", err)
	}
}
